"""``polyscene report``: words, places, and a page about real runs."""

import os

import pytest

from polyscene.runtime.results import Evaluation, Metric, Picture, write_results


@pytest.fixture
def evaluated(tmp_path, draw):
    """``evaluated(name)``: the directory of a finished evaluation."""

    def make(name, **fields):
        folder = tmp_path / name
        draw(folder / "pictures" / "a.png", seed=1)
        given = {
            "command": "retrieve",
            "title": "segment retrieval",
            "subject": "runs/a",
            "metrics": [Metric("miou", "mIoU")],
            "values": {"miou": 0.418},
            "baseline": {"random": {"miou": 0.11}},
            "pictures": [Picture("pictures/a.png", "regions")],
            "protocol": {"protocol": "kmeans"},
            **fields,
        }
        (folder / "config.yaml").write_text(f"weights: runs/a\nout: {folder}\n")
        write_results(folder, Evaluation(**given))
        return folder

    return make


def test_a_page_about_a_pretraining_and_an_evaluation_of_it(polyscene, words, evaluated, tmp_path):
    out = tmp_path / "demo" / "pretrain"
    code, _, _ = polyscene(*words(out, "log.pictures=true", "online_knn.every_epochs=1"))
    assert code == 0
    evaluated("demo/retrieve", subject=str(out))
    code, printed, _ = polyscene("report", tmp_path / "demo")
    assert (code, printed.strip()) == (0, str(tmp_path / "demo" / "report.html"))
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert len(page) < 10_000_000
    for text in (
        "pretraining, kNN-MoCo",
        "9 (3 an epoch)",
        "kNN accuracy",
        "Loss, by epoch",
        "resnet18",
        "41.8%",
        "+30.8",
    ):
        assert text in page, text
    assert page.count('src="data:image/') == 2  # views and regions
    # The measured backbone has the name of its run in this report, not its path.
    assert '<th scope="row">pretrain<span class="sub">' in page


def test_where_the_page_goes(polyscene, evaluated, tmp_path, monkeypatch):
    first, second = evaluated("runs/a/first"), evaluated("runs/b/second")
    _, printed, _ = polyscene("report", first)
    assert printed.strip() == str(first / "report.html")
    monkeypatch.chdir(tmp_path)
    _, printed, _ = polyscene("report", "runs/a/first", second)
    assert printed.strip() == os.path.join("runs", "report.html")
    code, printed, _ = polyscene("report", first, second, f"out={tmp_path / 'new' / 'page.html'}", "title=Two <runs>")
    assert code == 0
    assert "<h1>Two &lt;runs&gt;</h1>" in (tmp_path / "new" / "page.html").read_text(encoding="utf-8")


def test_what_cannot_be_read_is_a_warning_and_on_the_page(polyscene, evaluated, tmp_path):
    evaluated("runs/good")
    (evaluated("runs/bad") / "results.json").write_text("{")
    code, _, err = polyscene("report", tmp_path / "runs")
    assert code == 0
    assert err.count("\n") == 1
    assert "warning:" in err
    assert "results.json is damaged" in err
    assert "results.json is damaged" in (tmp_path / "runs" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{run}", "output=x.html"], "'output=x.html': report knows the words out=FILE.html and title=TEXT"),
        (["{run}", "out=page.pdf"], "must name an HTML file"),
        (["{run}", "out=report"], "must name an HTML file, for example out=report/report.html"),
        (["{run}", "out="], "out= is empty"),
        (["{run}", "title= "], "title= is empty"),
        (["{run}", "out=a.html", "out=b.html"], "out= is given twice"),
        (["out=a.html"], "no run is named"),
        (["{root}/absent"], "does not exist"),
        (["{root}/empty"], "not a run directory"),
        (["{run}/results.json"], "is a file; name the run directory"),
        (["{run}", "{root}/empty"], "not a run directory"),
        (["{run}", "out={run}/results.json/report.html"], "cannot write to"),
    ],
)
def test_bad_words_are_one_line(polyscene, evaluated, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    run = evaluated("runs/a")
    (tmp_path / "empty").mkdir()
    code, printed, err = polyscene("report", *(a.format(run=run, root=tmp_path) for a in arguments))
    assert code == 2
    assert err.count("\n") == 1
    assert words in err
    assert printed == ""
    assert not list(tmp_path.rglob("*.html"))


def test_a_directory_with_an_equals_sign_is_a_run(polyscene, evaluated):
    run = evaluated("lr=0.1")
    code, _, _ = polyscene("report", run)
    assert code == 0
    assert (run / "report.html").is_file()
