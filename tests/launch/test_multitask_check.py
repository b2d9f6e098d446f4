import numpy as np


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
