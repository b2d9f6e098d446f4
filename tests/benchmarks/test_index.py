"""The benchmark of the index finds the files it made, and what it measures is what it says."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from polyscene.ssl.sources import open_source

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "index.py"


@pytest.fixture(scope="module")
def benchmark():
    specification = importlib.util.spec_from_file_location("index_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_tree(benchmark, tmp_path):
    benchmark.make_tree(tmp_path / "images", 4321)
    source = open_source("folder", tmp_path / "images")
    assert len(source) == 4321
    assert len(source.class_names) == 22
    assert {name.count("/") for name in map(source.name, range(len(source)))} == {2}
    assert benchmark.walk(tmp_path / "images") == 0


def test_a_run_leaves_numbers_and_nothing_else(benchmark, tmp_path, monkeypatch, capsys):
    out = tmp_path / "results" / "index.json"
    folder = tmp_path / "somewhere"
    folder.mkdir()
    words = ["index.py", "--images", "500", "--rounds", "2", "--folder", str(folder), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    searched = []
    monkeypatch.setattr(
        benchmark, "open_source", lambda *a, **k: searched.append(k) or open_source(*a, **k), raising=True
    )
    benchmark.main()
    assert list(folder.iterdir()) == []
    assert [bool(options) for options in searched] == [False, *[True] * 6]
    found = json.loads(out.read_text())
    assert found["images"] == 500
    assert list(found["ways"]) == [benchmark.REFERENCE, "search", "saved index", "sizes and times"]
    assert found["ways"][benchmark.REFERENCE]["ratio"] == 1
    assert all(len(way["seconds_of_rounds"]) == 2 for way in found["ways"].values())
    assert found["command"].endswith("index.py --images 500 --rounds 2 --folder " + f"{folder} --out {out}")
    assert "saved index" in capsys.readouterr().out


def test_numbers_out_of_range_are_one_line(benchmark, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["index.py", "--rounds", "0"])
    with pytest.raises(SystemExit, match="must be at least 1"):
        benchmark.main()
