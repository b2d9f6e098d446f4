import pytest
import torch

from polyscene.downstream.multitask.models.model_file import load_model


def outputs(path, tasks=None):
    images = torch.linspace(-2, 2, 3 * 40 * 48).view(1, 3, 40, 48)
    with torch.no_grad():
        return load_model(path).model(images, tasks).final


def test_list_shows_tasks_and_what_they_own(dense_run, polyscene):
    code, printed, _ = polyscene("tasks", "list", dense_run)
    assert code == 0
    own = load_model(dense_run).model.parameter_counts()
    for task in ("segmentation", "depth"):
        line = next(line for line in printed.splitlines() if f" {task} " in line)
        assert f"{own.of_task(task):,}" in line
    assert f"{own.total:,}" in printed


def test_remove_leaves_the_others_as_they_were(dense_run, polyscene, tmp_path):
    code, printed, err = polyscene("tasks", "remove", dense_run, "depth", tmp_path / "less")
    assert code == 0, err
    assert printed.strip() == f"{tmp_path / 'less' / 'model.safetensors'}: rcm resnet10t with segmentation"
    assert torch.equal(outputs(tmp_path / "less")["segmentation"], outputs(dense_run)["segmentation"])
    assert (tmp_path / "less" / "model.safetensors").stat().st_size < (dense_run / "model.safetensors").stat().st_size
    code, _, err = polyscene("tasks", "remove", tmp_path / "less", "segmentation", tmp_path / "none")
    assert code == 2
    assert "only task" in err
    code, _, err = polyscene("tasks", "remove", dense_run, "sky", tmp_path / "none")
    assert code == 2
    assert "task 'sky' is not in this model" in err
    assert not (tmp_path / "none").exists()


def test_jobs_of_one_task_each_merge_into_one_model(dense_run, dense_words, polyscene, tmp_path):
    """Jobs that start from the same weights and images have the same bank, also without a common run."""
    code, _, err = polyscene(*dense_words(tmp_path / "saliency", "task=saliency"))
    assert code == 0, err
    code, printed, err = polyscene("tasks", "merge", tmp_path / "all.safetensors", dense_run, tmp_path / "saliency")
    assert code == 0, err
    assert "segmentation, depth, saliency" in printed
    merged = outputs(tmp_path / "all.safetensors")
    for source in (dense_run, tmp_path / "saliency"):
        for task, output in outputs(source).items():
            assert torch.equal(merged[task], output)

    # The merged model is a base: it can be evaluated.
    words = dense_words(
        tmp_path / "eval", f"model.base={tmp_path / 'all.safetensors'}", "tasks=[saliency,depth]", "iterations=0"
    )
    assert polyscene(*words)[0] == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["RUN", "RUN"], "exists already; OUT is one of the models"),
        (["OUT", "RUN"], "at least two models"),
        (["OUT", "RUN", "missing"], "missing: no such file; give a finished run"),
    ],
)
def test_merge_refused(words, expected, dense_run, polyscene, tmp_path):
    places = {"RUN": dense_run, "OUT": tmp_path / "out"}
    arguments = [places.get(word, word) for word in words]
    if arguments[0] == dense_run:
        arguments.append(dense_run)
    code, _, err = polyscene("tasks", "merge", *arguments)
    assert code == 2
    assert expected in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
