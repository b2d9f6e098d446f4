"""The page: complete, escaped, without anything from outside, accessible."""

import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from polyscene.downstream.report import palette
from polyscene.downstream.report.page import breakable, write_report
from polyscene.downstream.report.runs import find_runs
from polyscene.runtime.results import Picture

VOID = {"meta", "link", "img", "br", "wbr", "input", "source", "hr", "line", "circle", "polyline"}


class Page(HTMLParser):
    """Elements as (tag, attributes) and the text of the page; refuses tags that do not match."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.words, self._open = [], [], []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def make(tmp_path, **options):
    out = write_report(find_runs([tmp_path / "runs"]), tmp_path / "report.html", **options)
    return out.read_text(encoding="utf-8")


@pytest.fixture
def several(tmp_path, pretrain_run, evaluation_run):
    """Two pretrainings, three evaluations in two protocols, one unfinished, one damaged."""
    runs = tmp_path / "runs"
    pretrain_run(runs / "first")
    pretrain_run(runs / "second", steps=200, finished=False, seed=1)
    evaluation_run(runs / "k15", miou=0.418)
    evaluation_run(runs / "k15b", miou=0.3)
    evaluation_run(runs / "k5", miou=0.5, protocol={"clusters": 5})
    unfinished, damaged = evaluation_run(runs / "unfinished"), evaluation_run(runs / "damaged")
    (unfinished / "results.json").unlink()
    (damaged / "results.json").write_text("{")
    return runs


def test_everything_is_on_the_page(tmp_path, several):
    page = Page(make(tmp_path))
    for words in [
        "7 runs compared",
        "2 pretraining runs, 5 evaluations",
        "finished",
        "unfinished, step 200 of 400",
        "kNN accuracy",
        "Loss",
        "resnet10t",
        "Segment retrieval: k-means segments",
        "41.8%",
        "+30.8 points",
        "resnet18, random initialisation",
        "thesis table 7.6",
        "published",
        "Not one protocol.",
        "clusters = 5",
        "retrieved regions",
        "The log warns: model.queue is large",
        "results.json is damaged",
        "The evaluation has not written its results yet",
    ]:
        assert words in page.text, words
    assert len(page.all("svg")) > 7
    assert len(page.all("img")) == 5
    # A run's values stand beside the other's: seed differs, batch size does not.
    rows = re.findall(r'<tr( class="differs")?><th scope="row">([a-z ]+)<', make(tmp_path))
    assert ("", "batch size") in rows
    assert (' class="differs"', "seed") in rows


def test_nothing_is_loaded_and_nothing_runs(tmp_path, several):
    text = make(tmp_path)
    page = Page(text)
    assert not page.all("script")
    assert not page.all("link")
    assert not page.all("iframe")
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "srcset", "href", "poster", "data", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")), (tag, name, value[:60])
    assert "url(" not in text
    assert "@import" not in text
    (policy,) = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")


def test_user_text_cannot_become_markup(tmp_path, pretrain_run, evaluation_run):
    evil = "<script>alert(1)</script>"
    attribute = '" onerror="alert(1)'
    evaluation_run(
        tmp_path / "runs" / "a",
        title=evil,
        subject=evil,
        per_class={"miou_all": {"weights": {evil: 0.5}, "random": {evil: 0.1}}},
        pictures=[Picture("pictures/a.png", evil + attribute), Picture("pictures/<b>.png", evil)],
        protocol={"clusters": evil, "protocol": evil, evil: attribute, "arch": evil},
    )
    evaluation_run(tmp_path / "runs" / "b", protocol={"clusters": attribute, "protocol": evil})
    run = pretrain_run(tmp_path / "runs" / "<img src=x onerror=alert(2)>", seed=evil)
    (run / "log.txt").write_text(f"2026-01-02 10:00:00 warning: {evil}\n")
    page = Page(make(tmp_path, title=evil))
    assert not page.all("script")
    assert not [a for _, a in page.elements if "onerror" in a]
    assert all(a["src"].startswith("data:image/") for a in page.all("img"))
    assert page.text.count(evil) >= 8
    assert any(a["alt"].startswith(evil + attribute) for a in page.all("img"))


def test_headings_landmarks_and_names(tmp_path, several):
    text = make(tmp_path)
    page = Page(text)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    assert [len(page.all(tag)) for tag in ("header", "nav", "main", "footer")] == [1, 1, 1, 1]
    assert page.all("html")[0]["lang"] == "en"
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    targets = [a["href"][1:] for a in page.all("a")]
    targets += [word for _, a in page.elements for word in a.get("aria-labelledby", "").split()]
    assert set(targets) <= set(ids)
    # The first link leads past the table of contents.
    assert page.all("a")[0]["href"] == "#content"
    for _, attributes in page.elements:
        if attributes.get("tabindex") == "0":
            assert attributes["aria-label"]
    assert len([a for a in page.all("div") if a.get("class") == "scroll"]) == len(page.all("table"))
    assert all(a["alt"] for a in page.all("img"))
    assert all("scope" in a for a in page.all("th"))


def test_pictures_that_are_missing_outside_or_repeated_are_noted(tmp_path, evaluation_run, picture):
    picture(tmp_path / "secret.png")
    runs = tmp_path / "runs"
    pictures = [Picture("pictures/random.png", "of random weights"), Picture("pictures/gone.png", "what is gone")]
    for name in ("a", "b"):
        evaluation_run(runs / name, pictures=pictures)
        (runs / name / "pictures" / "gone.png").unlink()
    evaluation_run(runs / "c", pictures=[Picture("../../secret.png", "outside")])
    page = Page(make(tmp_path))
    assert len(page.all("img")) == 1
    assert "gone.png' is missing" in page.text
    assert "the same picture as in a" in page.text
    assert "../../secret.png lies outside the run" in page.text


def test_an_evaluation_without_numbers(tmp_path, evaluation_run):
    evaluation_run(
        tmp_path / "runs" / "cam",
        command="cam",
        title="Where frozen features look: 8 images",
        metrics=[],
        values={},
        baseline={},
        chance={},
        per_class={},
        published=[],
    )
    page = Page(make(tmp_path))
    assert "has no number of its own" in page.text
    assert "1 picture" in page.text
    assert len(page.all("img")) == 1


def test_a_pretraining_without_metrics_or_config(tmp_path, pretrain_run):
    run = pretrain_run(tmp_path / "runs" / "a", finished=False)
    (run / "metrics.jsonl").write_text("")
    (run / "log.txt").unlink()
    (run / "pictures" / "views.png").unlink()
    page = Page(make(tmp_path))
    assert "No metrics were logged yet" in page.text
    assert "No pictures" in page.text
    (run / "config.yaml").write_text("a: [")
    page = Page(make(tmp_path))
    assert "config.yaml is damaged" in page.text


def test_a_long_run_gives_a_small_page(tmp_path, pretrain_run):
    run = pretrain_run(tmp_path / "runs" / "a")
    lines = [f'{{"step": {i}, "epoch": {i / 100}, "loss": {i % 7}, "top1": 0.5}}' for i in range(1, 30_000)]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    assert len(make(tmp_path)) < 150_000


def test_long_paths_may_break_and_are_escaped():
    assert breakable("/a_b/<c>/") == "/<wbr>a_<wbr>b/<wbr>&lt;c&gt;/"


# WCAG 2.2, success criteria 1.4.3 (text, 4.5 : 1) and 1.4.11 (lines and marks that carry meaning, 3 : 1).
def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_formula_on_known_pairs():
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_enough_contrast(scheme):
    roles, series = {
        "light": (palette.LIGHT, palette.SERIES_LIGHT),
        "dark": (palette.DARK, palette.SERIES_DARK),
    }[scheme]
    assert palette.LIGHT.keys() == palette.DARK.keys()
    for ground in ("page", "panel", "note"):
        for role in ("text", "muted", "accent", "good", "bad"):
            assert contrast(roles[role], roles[ground]) >= 4.5, (role, ground)
    # Letters in the colour of their curve are text.
    assert all(contrast(colour, roles["page"]) >= 4.5 for colour in series)
    assert contrast(roles["note-line"], roles["note"]) >= 3


def test_every_colour_of_the_style_sheet_is_in_the_palette(tmp_path, evaluation_run):
    evaluation_run(tmp_path / "runs" / "a")
    text = make(tmp_path)
    style = text[text.index("<style>") : text.index("</style>")]
    defined = set(re.findall(r"--([a-z0-9-]+):", style))
    assert set(re.findall(r"var\(--([a-z0-9-]+)", text)) <= defined
    rules = style.replace(palette.css_variables(), "")
    assert not re.findall(r"#[0-9a-fA-F]{3,8}\b", rules)
