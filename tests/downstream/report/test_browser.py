"""The page in a real browser: desktop and phone, light and dark."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from polyscene.downstream.report.page import write_report
from polyscene.downstream.report.palette import DARK, LIGHT
from polyscene.downstream.report.runs import find_runs
from polyscene.runtime.results import Metric, Picture

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH: the page is not looked at in a browser")

WIDTHS = {"phone": 390, "desktop": 1280}
HEIGHT = 900
SCHEMES = {"dark": 0, "light": 1}  # Blink's PreferredColorScheme

# Opens everything that can be opened, then reports what a reader would see. The page's own policy forbids scripts, so
# this runs in a copy without it; Chromium's window cannot be as narrow as a phone, an iframe can.
MEASURE = """
<script>
addEventListener('load', () => {
  const box = selector => document.querySelector(selector).getBoundingClientRect();
  const nav = getComputedStyle(document.querySelector('nav'));
  const closed = {width: document.documentElement.scrollWidth, position: nav.position};
  document.querySelectorAll('details').forEach(d => d.open = true);
  document.querySelectorAll('input[type=checkbox]').forEach(c => c.checked = true);
  const inside = e => e.closest('.scroll, .frame, pre, .hidden, svg, .skip');
  const wide = [...document.body.querySelectorAll('*')].filter(
    e => !inside(e) && e.getBoundingClientRect().right > innerWidth + 0.5);
  const small = [...document.querySelectorAll('svg.chart text')].map(
    t => parseFloat(getComputedStyle(t).fontSize) * t.ownerSVGElement.getBoundingClientRect().width / 400);
  const scrolled = [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth);
  parent.postMessage({
    name: window.name, inner: innerWidth, closed, open: document.documentElement.scrollWidth,
    wide: wide.slice(0, 5).map(e => e.outerHTML.slice(0, 120)),
    background: getComputedStyle(document.body).backgroundColor,
    mainLeft: box('main').left, navRight: box('nav').right, navBottom: box('nav').bottom, mainTop: box('main').top,
    broken: [...document.images].filter(i => !i.complete || i.naturalWidth === 0).length,
    images: document.images.length,
    smallest: Math.min(...small), scrolled: scrolled.length,
    focusable: scrolled.every(e => e.tabIndex === 0 && e.getAttribute('aria-label')),
    grown: getComputedStyle(document.querySelector('figure:has(.grow) img')).maxWidth,
  }, '*');
});
</script>
"""

WRAPPER = """<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<body style="margin:0;display:flex"><script>
const found = {};
addEventListener('message', event => {
  found[event.data.name] = event.data;
  document.getElementById('found').textContent = JSON.stringify(found);
});
</script>%s<pre id="found" style="display:none"></pre>"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """``chromium(page, scheme, *options)``: the text that it prints."""
    profile = tmp_path_factory.mktemp("profile")

    def run(page, scheme, *options):
        command = [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
        ]
        command += [f"--user-data-dir={profile}", f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}"]
        command += ["--no-first-run", "--virtual-time-budget=3000", *options, page.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    return run


@pytest.fixture
def report(tmp_path, pretrain_run, evaluation_run, picture):
    """A page with all that tends to be too wide: long names and paths, many columns, large pictures, long code."""
    runs = tmp_path / "runs"
    long = "a_run_with_a_name_that_somebody_made_from_all_of_its_settings_lr0.3_momentum0.995"
    pretrain_run(runs / long, data={"kind": "folder", "root": "/a/very/long/path/to/the/photos/" + "x" * 60})
    pretrain_run(runs / "second", steps=300, finished=False)
    picture(runs / "second" / "pictures" / "large.png", size=(1400, 120))
    metrics = [Metric(f"m{i}", f"metric number {i}") for i in range(9)]
    values = {metric.key: 0.1 * i for i, metric in enumerate(metrics)}
    fields = {"metrics": metrics, "values": values, "baseline": {"random": values}, "published": [], "chance": {}}
    classes = {f"class_{'x' * i}": 0.5 for i in range(30)}
    fields["per_class"] = {"m0": {"weights": classes, "random": classes}}
    evaluation_run(runs / "many_columns", **fields, subject="/" + "/".join(["folder"] * 20), title="w" * 120)
    evaluation_run(runs / "clusters", protocol={"clusters": 5, "note": "z" * 200})
    evaluation_run(runs / "pictures", pictures=[Picture(f"pictures/{i}.png", "q" * 90) for i in range(3)])
    return write_report(find_runs([runs]), tmp_path / "report.html")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_desktop_and_phone(tmp_path, report, chromium, scheme):
    text = report.read_text(encoding="utf-8")
    copy, policies = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    assert policies == 1
    (tmp_path / "copy.html").write_text(copy.replace("</body>", MEASURE + "</body>"), encoding="utf-8")
    frame = '<iframe name="{}" src="copy.html" style="border:0;flex:none;width:{}px;height:{}px"></iframe>'
    frames = "".join(frame.format(name, width, HEIGHT) for name, width in WIDTHS.items())
    (tmp_path / "wrapper.html").write_text(WRAPPER % frames)
    printed = chromium(tmp_path / "wrapper.html", scheme, "--dump-dom", "--window-size=1700,900")
    found = json.loads(html.unescape(re.search(r'<pre id="found"[^>]*>(.*?)</pre>', printed, re.DOTALL).group(1)))

    colour = {"light": LIGHT, "dark": DARK}[scheme]["page"]
    for name, width in WIDTHS.items():
        page = found[name]
        assert page["inner"] == width
        # No horizontal scroll, with all details closed and with everything open.
        assert page["wide"] == []
        assert page["closed"]["width"] <= width
        assert page["open"] <= width
        assert page["background"] == "rgb({}, {}, {})".format(*(int(colour[i : i + 2], 16) for i in (1, 3, 5)))
        assert page["images"] == 5  # what two runs have in common is shown once
        assert page["broken"] == 0
        assert page["smallest"] >= 9  # pixels, of the charts' text
        assert page["focusable"]
        assert page["grown"] == "none"  # "full size" was ticked
    assert found["phone"]["scrolled"] > 0
    # The contents stand beside the text and stay in view on wide screens; they come before it on narrow ones.
    assert found["desktop"]["closed"]["position"] == "sticky"
    assert found["desktop"]["navRight"] <= found["desktop"]["mainLeft"]
    assert found["phone"]["closed"]["position"] == "static"
    assert found["phone"]["navBottom"] <= found["phone"]["mainTop"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_screenshot_of_the_page_as_it_is(tmp_path, report, chromium, scheme):
    shot = tmp_path / "shot.png"
    chromium(report, scheme, f"--screenshot={shot}", "--window-size=1280,900")
    pixels = np.asarray(Image.open(shot).convert("RGB"), dtype=int)
    assert pixels.shape == (900, 1280, 3)
    colour = {"light": LIGHT, "dark": DARK}[scheme]
    page, text = (np.array([int(colour[role][i : i + 2], 16) for i in (1, 3, 5)]) for role in ("page", "text"))
    share = (np.abs(pixels - page).max(axis=-1) < 3).mean()
    assert 0.6 < share < 0.99  # mostly ground, and not a blank page
    assert (np.abs(pixels - text).max(axis=-1) < 12).mean() > 0.002
