"""What the benchmarks share: options that cannot be, and the file of results."""

import argparse
import importlib.metadata
import json
from datetime import date

import pytest
import torch


@pytest.fixture(scope="module")
def record(load_script):
    return load_script("record")


@pytest.mark.parametrize("script", ["end_to_end", "memory", "scaling", "step", "views"])
def test_without_a_gpu_its_preset_is_refused_in_one_line(load_script, refusal, monkeypatch, script):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = refusal(load_script(script).main, ["--preset", "gpu"])
    assert said.startswith("--preset gpu: ")
    assert said.count("\n") == 1


def test_results_go_where_the_preset_says(record, tmp_path):
    def parse(*arguments):
        return record.parse_preset(record.make_preset_parser(None), arguments, script="views", least={})

    assert parse().out == record.FOLDER / "results" / "views_cpu.json"
    assert parse("--out", str(tmp_path)).out == tmp_path
    assert (parse().seed, parse("--seed", "7").seed) == (0, 7)


def test_numbers_that_were_not_given_are_not_too_small(record, refusal):
    words, least = record.make_parser(None), {"rounds": 1, "batch_size": 4}
    record.check_least(words, argparse.Namespace(rounds=1, batch_size=None), least)
    said = refusal(
        lambda options: record.check_least(words, options, least), argparse.Namespace(rounds=2, batch_size=3)
    )
    assert "--batch-size 3: give 4 or more" in said


def test_cases_are_those_of_the_preset(record, refusal):
    words, cases = record.make_parser(None), {"cpu": {"a": 1, "b": 2}, "gpu": {"c": 3}}

    def choose(chosen):
        return record.choose_cases(words, argparse.Namespace(preset="cpu", cases=chosen), cases)

    assert choose(None) == ["a", "b"]
    assert choose(["b"]) == ["b"]
    assert "--cases c: preset cpu has a, b" in refusal(choose, ["b", "c"])


def test_the_gpu_is_named_where_it_is_used(record, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "fast")
    assert list(record.machine_of_preset("cpu").items()) == [("gpu", None), *record.machine().items()]
    assert record.machine_of_preset("gpu")["gpu"] == "fast"


def test_a_record(record, tmp_path, capsys, monkeypatch):
    out = tmp_path / "new" / "x.json"
    monkeypatch.setattr("sys.argv", ["anything", "--rounds", "3"])
    record.write_record(out, "views", None, {"rounds": 3}, ["pillow"])
    assert capsys.readouterr().out == f"written: {out}\n"
    found = json.loads(out.read_text())
    assert list(found) == ["date", "command", "rounds", "environment"]
    assert found["date"] == date.today().isoformat()
    assert found["command"] == "python benchmarks/views.py --rounds 3"
    assert found["environment"]["pillow"] == importlib.metadata.version("pillow")
