import numpy as np
import torch
from fake_gpu import NoCheck

from polyscene.launch.check_multitask import planned_model, speed_row
from polyscene.launch.multitask_config import MultitaskConfig
from polyscene.launch.multitask_model import open_ingredients
from polyscene.launch.multitask_plan import plan_schedule
from polyscene.runtime.config import load_config


def test_a_good_config_is_described(dense_words, polyscene):
    code, printed, err = polyscene("check", *dense_words("runs/there")[1:])
    assert code == 0, err
    assert "no problem found" in err
    for expected in ("12 ('train')", "3 channels, judged by miou", "3 (3 an epoch, 1 epochs)", "GFLOPs", "images/s"):
        assert expected in printed


def test_faults_of_the_data_are_told_and_counted(dense_copy, dense_words, polyscene):
    root = dense_copy()
    (root / "depth" / "03.npy").unlink()
    (root / "depth" / "05.npy").unlink()
    np.save(root / "depth" / "14.npy", np.full((40, 56), 4000, np.float32))
    code, _, err = polyscene("check", *dense_words("x", f"data.root={root}")[1:])
    assert code == 2
    lines = err.strip().splitlines()
    missing = next(line for line in lines if line.startswith("error: train depth"))
    assert "03.png' does not exist (2 images)" in missing or "03.npy' does not exist (2 images)" in missing
    assert any(line.startswith("warning: val depth") and "millimetres" in line for line in lines)
    assert lines[-1].startswith("error: 1 kinds of faults")


def test_what_the_run_would_refuse_is_refused(dense_words, polyscene):
    code, _, err = polyscene("check", *dense_words("x", "task=flying")[1:])
    assert code == 2
    assert "has no task 'flying'" in err


def test_adding_a_task_is_planned_on_its_base(dense_run, dense_words, polyscene):
    code, printed, err = polyscene("check", *dense_words("x", f"model.base={dense_run}", "task=saliency")[1:])
    assert code == 0, err
    assert "parameters of saliency alone" in printed
    assert "parameters of depth alone" in printed


def test_the_speed_is_measured_on_the_device(dense_words, monkeypatch):
    # The meta device has no numbers, and refuses to work with tensors of the CPU as a GPU does.
    autocast = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda device, *rest, **more: autocast("cpu", *rest, **more))
    monkeypatch.setattr("polyscene.downstream.multitask.step.FiniteCheck", NoCheck)
    _, path, *words = dense_words("runs/there")
    config = load_config(MultitaskConfig, path, words)
    found = open_ingredients(config)
    schedule, model = plan_schedule(config, found.train), planned_model(config, found)
    assert "images/s" in speed_row(config, found, model, schedule, torch.device("meta"))
