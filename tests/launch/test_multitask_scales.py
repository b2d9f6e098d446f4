"""MTI-Net and its kin from the command line."""

import json

import pytest
import torch

from polyscene.downstream.multitask.models.model_file import load_model
from polyscene.runtime.results import read_results

SMALL = ("augmentation.size=[64,96]", "evaluate.stretch=[64,96]", "model.pyramid_width=8", "model.pad_net.width=8")


def logged(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def mti_run(dense_words, tmp_path_factory, run_words):
    """A finished MTI-Net with an auxiliary task, whose losses GradNorm balanced."""
    out = tmp_path_factory.mktemp("mti") / "run"
    words = ("model.kind=mti_net", "auxiliary_tasks=[saliency]", "balancing.strategy=gradnorm")
    run_words(*dense_words(out, *SMALL, *words, "evaluate.front_ends=true"))
    return out


def test_a_run_has_main_and_auxiliary_tasks_and_front_ends(mti_run):
    saved = load_model(mti_run)
    assert (saved.options.kind, list(saved.tasks), list(saved.auxiliary)) == (
        "mti_net",
        ["segmentation", "depth"],
        ["saliency"],
    )
    assert saved.model.auxiliary == ("saliency",)
    results = read_results(mti_run / "results.json")
    keys = [metric.key for metric in results.metrics]
    first = [key for key in keys if key.startswith("front_end")]
    assert keys[:2] == ["segmentation_miou", "depth_rmse"]
    assert first == [
        f"front_end_{stride}_{key}"
        for stride in (4, 8, 16, 32)
        for key in ("segmentation_miou", "depth_rmse", "saliency_iou")
    ]
    assert "saliency_iou" not in keys
    assert "auxiliary saliency, gradnorm weights" in results.subject
    lines = logged(mti_run)
    weights = [[line[f"weight_{task}"] for task in ("segmentation", "depth", "saliency")] for line in lines]
    assert weights[0] != weights[-1]
    for line in weights:
        assert sum(line) == pytest.approx(3, rel=1e-4)


def test_the_front_ends_of_a_finished_model_can_be_judged_later(mti_run, dense_words, polyscene, tmp_path):
    words = (*SMALL, f"model.base={mti_run}", "iterations=0", "evaluate.front_ends=true")
    code, printed, err = polyscene(*dense_words(tmp_path / "eval", *words))
    assert code == 0, err
    assert "First predictions of the front ends" in printed
    before, after = (read_results(run / "results.json").values for run in (mti_run, tmp_path / "eval"))
    assert after == pytest.approx(before, rel=1e-5)


def test_reduced_precision_changes_little(mti_run, dense_words, polyscene, tmp_path):
    words = (*SMALL, f"model.base={mti_run}", "iterations=0", "evaluate.pictures=0", "precision=bf16")
    code, _, err = polyscene(*dense_words(tmp_path / "eval", *words))
    assert code == 0, err
    exact, rough = (read_results(run / "results.json").values for run in (mti_run, tmp_path / "eval"))
    assert rough["depth_rmse"] != exact["depth_rmse"]
    assert rough["depth_rmse"] == pytest.approx(exact["depth_rmse"], rel=0.01)
    assert rough["segmentation_pixel_accuracy"] == pytest.approx(exact["segmentation_pixel_accuracy"], abs=0.02)


def test_a_stopped_run_goes_on_with_its_weights(mti_run, dense_words, polyscene, tmp_path):
    words = ("model.kind=mti_net", "auxiliary_tasks=[saliency]", "balancing.strategy=gradnorm", "evaluate.pictures=0")
    runs = {name: tmp_path / name for name in ("whole", "parts")}
    assert polyscene(*dense_words(runs["whole"], *SMALL, *words))[0] == 0
    assert polyscene(*dense_words(runs["parts"], *SMALL, *words, "max_steps=2"))[0] == 0
    assert polyscene(*dense_words(runs["parts"], *SMALL, *words))[0] == 0
    models = [(out / "model.safetensors").read_bytes() for out in runs.values()]
    assert models[0] == models[1]
    assert [line["weight_depth"] for line in logged(runs["whole"])] == [
        line["weight_depth"] for line in logged(runs["parts"])
    ]


def test_predict_and_list_and_what_cannot_be_done(mti_run, dense_folder, polyscene, tmp_path):
    code, printed, err = polyscene("predict", mti_run, dense_folder / "images", "count=2", f"out={tmp_path / 'out'}")
    assert code == 0, err
    assert "2 photos, segmentation, depth" in printed
    code, printed, _ = polyscene("tasks", "list", mti_run)
    assert code == 0
    assert "feature propagation" in printed
    for words, said in (
        (["tasks", "remove", mti_run, "depth", tmp_path / "less"], "the other tasks use its features"),
        (["tasks", "merge", tmp_path / "m", mti_run, mti_run], "train one encoder together"),
        (["export", mti_run, tmp_path / "folded", "--fold"], "no plain networks to fold"),
    ):
        code, _, err = polyscene(*words)
        assert code == 2
        assert said in err
        assert len(err.strip().splitlines()) == 1


def test_tasks_cannot_be_added(mti_run, dense_words, polyscene, tmp_path):
    code, _, err = polyscene(*dense_words(tmp_path / "run", f"model.base={mti_run}", "task=saliency"))
    assert code == 2
    assert "whose encoder is trained" in err


@pytest.mark.parametrize("words", [["kind=pad_net"], ["kind=multi_task", "head=semantic_fpn"]])
def test_the_other_kinds_run(words, dense_words, polyscene, tmp_path):
    out = tmp_path / "run"
    words = [*(f"model.{word}" for word in words), "max_steps=1", "evaluate.pictures=0"]
    code, _, err = polyscene(*dense_words(out, *SMALL, *words))
    assert code == 0, err
    assert read_results(out / "results.json").values["depth_rmse"] > 0


def test_single_task_networks_of_two_jobs_merge(dense_words, polyscene, tmp_path):
    """Networks that share nothing: the merged model has the outputs of both."""
    for task in ("depth", "saliency"):
        words = ("model.kind=single", "model.head=aggregation", f"task={task}", "max_steps=1", "evaluate.pictures=0")
        code, _, err = polyscene(*dense_words(tmp_path / task, *SMALL, *words))
        assert code == 0, err
    code, _, err = polyscene("tasks", "merge", tmp_path / "both", tmp_path / "depth", tmp_path / "saliency")
    assert code == 0, err
    images = torch.linspace(-2, 2, 3 * 64 * 64).view(1, 3, 64, 64)
    with torch.no_grad():
        both = load_model(tmp_path / "both").model(images).final
        for task in ("depth", "saliency"):
            assert torch.equal(both[task], load_model(tmp_path / task).model(images).final[task])


def test_check_counts_auxiliary_tasks(dense_words, polyscene, tmp_path):
    config, *words = dense_words(tmp_path / "run", *SMALL, "model.kind=mti_net", "auxiliary_tasks=[saliency]")[1:]
    code, printed, err = polyscene("check", config, *words)
    assert code == 0, err
    assert "auxiliary" in next(line for line in printed.splitlines() if "task saliency" in line)
    assert not (tmp_path / "run").exists()
