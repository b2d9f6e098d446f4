import json
import re

import pytest
import torch

from polyscene.downstream.multitask.metrics.delta import delta_mtl
from polyscene.downstream.multitask.models.model_file import load_model
from polyscene.downstream.multitask.rcm.moments_file import load_moments
from polyscene.runtime.results import read_results


def results(out):
    return json.loads((out / "results.json").read_text())


def frozen_part(state, *tasks):
    """What belongs to none of the tasks."""
    return {key: value for key, value in state.items() if not any(f"tasks.{task}." in key for task in tasks)}


def logged(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_model_results_moments_and_pictures(dense_run):
    found = results(dense_run)
    assert 0 <= found["segmentation_miou"] <= 1
    assert found["depth_rmse"] > 0
    assert "delta" not in found
    assert set(found["per_class"]["segmentation_miou"]["weights"]) <= {"dark", "middle", "bright"}
    assert [p["file"] for p in found["pictures"]] == ["pictures/prediction_01.png", "pictures/spectrum.png"]
    assert all((dense_run / p["file"]).stat().st_size > 1000 for p in found["pictures"])
    saved = load_model(dense_run)
    assert (saved.arch, saved.options.kind, list(saved.tasks)) == ("resnet10t", "rcm", ["segmentation", "depth"])
    assert saved.tasks["segmentation"].classes == ("dark", "middle", "bright")
    assert load_moments(dense_run / "moments.safetensors")["layer1.0.conv1"].count > 0
    costs = found["protocol"]["resources"]
    assert costs["trained"] == sum(costs["tasks"].values())  # RCM trains what belongs to a task, and all of it
    assert costs["parameters"] == costs["shared"] + costs["trained"]
    lines = logged(dense_run)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[0]["loss"] == pytest.approx(lines[0]["loss_segmentation"] + lines[0]["loss_depth"], rel=1e-4)


def test_the_same_command_again_says_that_it_is_finished(dense_run, dense_words, polyscene):
    before = (dense_run / "model.safetensors").stat().st_mtime_ns
    code, _, err = polyscene(*dense_words(dense_run))
    assert code == 0
    assert "is already finished" in err
    assert (dense_run / "model.safetensors").stat().st_mtime_ns == before
    code, _, err = polyscene(*dense_words(dense_run, "optim.lr=0.5"))
    assert code == 2
    assert "another config (optim.lr: 0.01 -> 0.5)" in err


def test_frozen_means_frozen_and_trained_means_trained(dense_run, dense_words, polyscene, tmp_path):
    """One step more or less changes the tasks' parts only, bit for bit."""
    code, _, err = polyscene(*dense_words(tmp_path / "run", "max_steps=1"))
    assert code == 0, err
    long, short = (load_model(out).model.state_dict() for out in (dense_run, tmp_path / "run"))
    bank = frozen_part(long, "segmentation", "depth")
    assert any("layer1" in key for key in bank)
    assert all(torch.equal(value, short[key]) for key, value in bank.items())
    moved = [key for key in long if key not in bank and not torch.equal(long[key], short[key])]
    assert any("segmentation" in key and "encoder" in key for key in moved)
    assert any("depth" in key and "encoder" in key for key in moved)


def test_stopped_and_continued_equals_undisturbed(dense_run, dense_words, polyscene, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert polyscene(*dense_words(whole))[0] == 0
    assert polyscene(*dense_words(parts, "max_steps=2"))[0] == 0
    code, _, err = polyscene(*dense_words(parts))
    assert code == 0
    assert "continuing at step 2" in err
    assert "moments of" in err  # kept, not measured again
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    assert results(whole)["depth_rmse"] == results(parts)["depth_rmse"]
    assert [line["step"] for line in logged(parts)] == [1, 2, 3]


def test_a_task_is_added_and_the_others_keep_their_bits(dense_run, dense_words, polyscene, tmp_path):
    out = tmp_path / "added"
    words = dense_words(
        out, f"model.base={dense_run}", "task=saliency", "evaluate.all_tasks=true", "model.head_width=64"
    )
    code, printed, err = polyscene(*words)
    assert code == 0, err
    old, new = load_model(dense_run), load_model(out)
    assert list(new.tasks) == ["segmentation", "depth", "saliency"]
    assert new.options == old.options  # the head's width too
    kept, state = old.model.state_dict(), new.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in kept.items())
    images = torch.randn(1, 3, 40, 56)
    with torch.no_grad():
        before, after = old.model(images).final, new.model(images, ("segmentation", "depth")).final
    assert all(torch.equal(before[task], after[task]) for task in before)
    found, earlier = results(out), results(dense_run)
    assert found["depth_rmse"] == earlier["depth_rmse"]
    assert "saliency_iou" in found
    assert "saliency" in printed
    assert set(logged(out)[0]) >= {"loss", "loss_saliency"}
    assert "loss_depth" not in logged(out)[0]


def test_evaluation_alone_finds_the_numbers_of_the_run(dense_run, dense_words, polyscene, tmp_path):
    words = dense_words(tmp_path / "again", f"model.base={dense_run}", "iterations=0")
    code, _, err = polyscene(*words)
    assert code == 0, err
    keys = ("segmentation_miou", "depth_rmse", "depth_abs_rel")
    assert {key: results(tmp_path / "again")[key] for key in keys} == {key: results(dense_run)[key] for key in keys}
    assert not (tmp_path / "again" / "model.safetensors").exists()
    assert "already finished" in polyscene(*words)[2]


def test_evaluation_during_training_is_recorded_and_not_repeated(dense_words, polyscene, tmp_path, monkeypatch):
    from polyscene.launch import multitask_judge

    calls = []
    measure = multitask_judge.measure
    monkeypatch.setattr(multitask_judge, "measure", lambda *a, **k: calls.append(1) or measure(*a, **k))
    words = ("task=depth", "model.kind=frozen", "batch_size=6", "iterations=4", "evaluate.every_epochs=1")
    code, _, err = polyscene(*dense_words(tmp_path / "run", *words))
    assert code == 0, err
    scores = {line["step"]: line["depth_rmse"] for line in logged(tmp_path / "run") if "depth_rmse" in line}
    assert list(scores) == [2, 4]
    assert len(calls) == 2  # the last one is that of results.json
    assert results(tmp_path / "run")["depth_rmse"] == scores[4]


def test_results_of_a_shorter_training_do_not_count_as_finished(dense_words, polyscene, tmp_path):
    words = dense_words(tmp_path / "run", "task=depth", "model.kind=frozen", "evaluate.pictures=0")
    assert polyscene(*words, "max_steps=1")[0] == 0
    early = results(tmp_path / "run")["depth_rmse"]
    assert polyscene(*words)[0] == 0
    assert results(tmp_path / "run")["depth_rmse"] != early
    assert load_model(tmp_path / "run").metadata["steps"] == "3"


def test_overwrite_removes_all_of_an_earlier_run(dense_words, polyscene, tmp_path):
    out = tmp_path / "run"
    assert polyscene(*dense_words(out, "task=depth", "max_steps=1"))[0] == 0
    words = dense_words(out, "task=saliency", "max_steps=1", "seed=1", "overwrite=true")
    code, _, err = polyscene(*words)
    assert code == 0, err  # moments of other random weights would be refused
    assert list(load_model(out).tasks) == ["saliency"]


def test_delta_against_single_task_runs(dense_words, polyscene, tmp_path):
    for task in ("segmentation", "depth"):
        assert polyscene(*dense_words(tmp_path / task, "model.kind=single", f"task={task}"))[0] == 0
    singles = f"evaluate.single=[{tmp_path / 'segmentation'},{tmp_path / 'depth'}]"
    code, printed, err = polyscene(*dense_words(tmp_path / "many", "model.kind=multi_task", singles))
    assert code == 0, err
    found = results(tmp_path / "many")
    alone = {
        "segmentation": results(tmp_path / "segmentation")["segmentation_miou"],
        "depth": results(tmp_path / "depth")["depth_rmse"],
    }
    together = {"segmentation": found["segmentation_miou"], "depth": found["depth_rmse"]}
    expected = delta_mtl(together, alone, {"segmentation": "higher", "depth": "lower"})
    assert found["delta"] == pytest.approx(expected)
    assert "single-task runs" in printed

    code, _, err = polyscene(*dense_words(tmp_path / "x", f"evaluate.single={tmp_path / 'depth'}"))
    assert code == 2
    assert "no single-task result of 'segmentation'" in err
    code, _, err = polyscene(*dense_words(tmp_path / "x", f"evaluate.single={tmp_path / 'many'}"))
    assert code == 2
    assert "holds a model of kind 'multi_task'" in err
    assert not (tmp_path / "x").exists()


def test_seeds_are_averaged_and_can_be_extended(dense_words, polyscene, tmp_path):
    out = tmp_path / "seeds"
    words = dense_words(out, "task=depth", "model.kind=frozen")
    code, _, err = polyscene(*words, "seeds=[3,4]")
    assert code == 0, err
    three, four = (read_results(out / f"seed-{seed}" / "results.json").values["depth_rmse"] for seed in (3, 4))
    assert three != four
    found = read_results(out / "results.json")
    assert found.values["depth_rmse"] == pytest.approx((three + four) / 2)
    assert found.deviation["depth_rmse"] == pytest.approx(abs(three - four) / 2**0.5)
    assert found.pictures[0].file == "seed-3/pictures/prediction_01.png"
    assert "already finished (seeds [3, 4])" in polyscene(*words, "seeds=[3,4]")[2]
    one = load_model(out / "seed-3").model.state_dict()
    two = load_model(out / "seed-4").model.state_dict()
    assert not torch.equal(one["heads.tasks.depth.prediction.weight"], two["heads.tasks.depth.prediction.weight"])

    code, printed, err = polyscene(*words, "seeds=[3,4,5]")
    assert code == 0, err
    assert err.count("is already finished") == 2
    assert len(read_results(out / "results.json").protocol["per_seed"]) == 3
    assert "±" in printed


def test_seeds_share_the_moments_of_the_same_weights(dense_words, polyscene, tmp_path, dense_run):
    """Weights from a file are the same for all seeds: their responses are measured once."""
    import safetensors.torch
    import timm

    torch.manual_seed(1)
    safetensors.torch.save_file(timm.create_model("resnet10t", num_classes=0).state_dict(), tmp_path / "w.safetensors")
    words = dense_words(tmp_path / "s", f"weights={tmp_path / 'w.safetensors'}", "seeds=[0,1]", "max_steps=1")
    code, _, err = polyscene(*words)
    assert code == 0, err
    assert len(re.findall("responses to 4 images", err)) == 1
    assert (tmp_path / "s" / "moments.safetensors").exists()
    assert not (tmp_path / "s" / "seed-1" / "moments.safetensors").exists()
    again = dense_words(
        tmp_path / "t",
        f"weights={tmp_path / 'w.safetensors'}",
        f"model.rcm.init_images={tmp_path / 's' / 'moments.safetensors'}",
        "max_steps=1",
        "seed=1",
    )
    code, _, err = polyscene(*again)
    assert code == 0, err
    assert (tmp_path / "t" / "model.safetensors").read_bytes() != b""
    a = frozen_part(load_model(tmp_path / "t").model.state_dict(), "segmentation", "depth")
    b = load_model(tmp_path / "s" / "seed-1").model.state_dict()
    assert all(torch.equal(value, b[key]) for key, value in a.items())


def test_images_of_response_initialization_can_be_named(dense_words, dense_folder, polyscene, tmp_path):
    words = dense_words(
        tmp_path / "run", f"model.rcm.init_images={dense_folder / 'images'}", "model.rcm.init_count=3", "max_steps=1"
    )
    code, _, err = polyscene(*words)
    assert code == 0, err
    assert f"responses to 3 images of '{dense_folder / 'images'}'" in err


def test_a_task_file_of_ones_own(dense_words, dense_run, polyscene, tmp_path):
    file = tmp_path / "bright.py"
    file.write_text(TASK_FILE)
    out = tmp_path / "run"
    code, printed, err = polyscene(*dense_words(out, f"tasks=[depth,{file}]"))
    assert code == 0, err
    assert "bright" in printed
    assert load_model(out).tasks["bright"].source == str(file)
    assert 0 <= results(out)["bright_accuracy"] <= 1


TASK_FILE = """
import numpy as np
import torch
from PIL import Image

from polyscene.downstream.multitask.losses import balanced_bce
from polyscene.downstream.multitask.tasks import Target, TargetGeometry, TaskSpec, grey, probability


class Accuracy:
    def __init__(self):
        self.right = self.seen = 0

    def update(self, prediction, values, valid):
        self.right += int(((prediction >= 0.5) == (values[0] >= 0.5))[valid].sum())
        self.seen += int(valid.sum())

    def merge(self, other):
        self.right, self.seen = self.right + other.right, self.seen + other.seen

    def compute(self):
        return {"accuracy": self.right / max(self.seen, 1)}

    def state(self):
        return {"counts": torch.tensor([self.right, self.seen])}

    def load_state(self, state):
        self.right, self.seen = state["counts"].tolist()


def read(root, name):
    mask = np.array(Image.open(root / "images" / f"{name}.jpg").convert("L")) > 127
    return Target(torch.from_numpy(mask).float()[None], torch.ones(mask.shape, dtype=torch.bool))


def task():
    return TaskSpec(
        name="bright",
        title="Bright",
        channels=1,
        loss=balanced_bce,
        make_metric=Accuracy,
        metric="accuracy",
        higher_is_better=True,
        unit="%",
        geometry=TargetGeometry("nearest"),
        activate=probability,
        colour=grey,
        read=read,
    )
"""
