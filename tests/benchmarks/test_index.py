"""The benchmark of the index finds the files it made, and what it measures is what it says."""

import pytest

from polyscene.ssl.sources import open_source


@pytest.fixture(scope="module")
def benchmark(load_script):
    return load_script("index")


def test_the_tree(benchmark, tmp_path):
    benchmark.make_tree(tmp_path / "images", 4321)
    source = open_source("folder", tmp_path / "images")
    assert len(source) == 4321
    assert len(source.class_names) == 22
    assert {name.count("/") for name in map(source.name, range(len(source)))} == {2}
    assert benchmark.walk(tmp_path / "images") == 0


def test_a_run_leaves_numbers_and_nothing_else(benchmark, run_main, tmp_path, monkeypatch):
    folder = tmp_path / "somewhere"
    folder.mkdir()
    searched = []
    monkeypatch.setattr(
        benchmark, "open_source", lambda *a, **k: searched.append(k) or open_source(*a, **k), raising=True
    )
    shown, found = run_main(benchmark, ["--images", "500", "--rounds", "2", "--folder", str(folder)], {"load"})
    assert list(folder.iterdir()) == []
    assert [bool(options) for options in searched] == [False, *[True] * 6]
    assert found["images"] == 500
    assert list(found["ways"]) == [benchmark.REFERENCE, "search", "saved index", "sizes and times"]
    assert found["ways"][benchmark.REFERENCE]["ratio"] == 1
    assert all(len(way["seconds_of_rounds"]) == 2 for way in found["ways"].values())
    assert "saved index" in shown


def test_numbers_out_of_range_are_one_line(benchmark):
    with pytest.raises(SystemExit, match="must be at least 1"):
        benchmark.main(["--rounds", "0"])
