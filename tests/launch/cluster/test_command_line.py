from pathlib import Path

import pytest

from polyscene.launch.cluster.command_line import check_inputs, check_processes, missing_inputs, parse_command
from polyscene.runtime.errors import UserError


def test_a_pretraining(words, photos, tmp_path):
    line = parse_command(words(tmp_path / "run", "online_knn.held_out=nowhere"))
    assert (line.name, line.run, line.device) == ("pretrain", tmp_path / "run", "cpu")
    assert ("data.root", photos / "train") in line.inputs
    assert missing_inputs(line) == [("online_knn.held_out", Path("nowhere"))]
    with pytest.raises(UserError, match="online_knn.held_out=nowhere does not exist"):
        check_inputs(line)


@pytest.mark.parametrize(
    ("words", "run", "inputs"),
    [
        (["scenes", "data/scenes", "count=4"], "data/scenes-job", []),
        (["export", "runs/a", "x/b.pth", "--format", "timm"], "x/b-job", ["runs/a"]),
        (["export", "runs/a", "x/tasks", "--fold", "--task", "depth"], "x/tasks-job", ["runs/a"]),
        (["predict", "runs/a", "photos", "count=2"], "runs/a/predictions-job", ["runs/a", "photos"]),
        (["predict", "runs/a/model.safetensors", "photos", "out=p"], "p-job", ["runs/a/model.safetensors", "photos"]),
        (["analyse", "gradients", "runs/a"], "runs/a/analysis/gradients", ["runs/a"]),
        (["analyse", "features", "runs/a", "runs/b", "out=f"], "f", ["runs/a", "runs/b"]),
        (["report", "runs", "out=page.html"], "page-job", ["runs"]),
        (["report", "runs"], "runs/report-job", ["runs"]),
    ],
)
def test_commands_without_a_config(words, run, inputs):
    line = parse_command(words)
    assert line.run == Path(run)
    assert [str(path) for _, path in line.inputs] == inputs


@pytest.mark.parametrize(
    ("config", "more", "inputs"),
    [
        ("probe/quickstart", ["weights=w", "data.train=a", "data.test=b"], {"weights": "w", "data.train": "a"}),
        ("probe/voc_svm", ["weights=random", "out=o", "data.root=r"], {"data.root": "r"}),
        ("retrieve/quickstart", ["weights=w"], {"weights": "w"}),
        ("propagate/frames", ["weights=w", "data.frames=f", "data.masks=m"], {"data.frames": "f", "data.masks": "m"}),
        ("cam/quickstart", ["images=[a.jpg,b.jpg]"], {"weights": "runs/demo/pretrain"}),
        ("multitask/scenes/rcm", ["evaluate.single=[s,t]"], {"data.root": "runs/demo/scenes/NYUD_MT"}),
    ],
)
def test_commands_with_a_config(config, more, inputs):
    line = parse_command([config.partition("/")[0], config, *more])
    assert inputs.items() <= {key: str(path) for key, path in line.inputs}.items()
    assert not any(path == Path("random") for _, path in line.inputs)
    # Names of lists are no paths.
    if config.startswith(("multitask", "retrieve")):
        assert not any(key in ("data.train", "data.val", "data.test") for key, _ in line.inputs)


def test_every_value_of_a_list_is_an_input():
    line = parse_command(["multitask", "multitask/scenes/rcm", "evaluate.single=[s,t]"])
    assert [str(path) for key, path in line.inputs if key == "evaluate.single"] == ["s", "t"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "no command is named"),
        (["pretrian", "x"], "'pretrian' cannot be submitted; commands that can: analyse, cam,"),
        (["tasks", "list", "x"], "can be submitted"),
        (["pretrain", "out=x"], "needs a config file"),
        (["pretrain", "pretrain/quickstart", "optim.lrr=1"], "did you mean 'optim.lr'"),
        (["pretrain", "pretrain/quickstart", "optim.lr=-1"], "optim.lr=-1.0 must be greater than 0"),
        (["pretrain", "pretrain/quickstart", "--fast"], "'--fast' is no setting"),
        (["cam", "cam/quickstart", "alpha=2"], "alpha=2.0 must lie between 0 and 1"),
        (["retrieve", "retrieve/quickstart", "clusters=0"], "clusters"),
        (["predict", "runs/a"], "no images named"),
        (["report", "a", "b"], "out=FILE.html is required"),
        (["scenes", "count=3"], "needs the folder"),
        (["export", "a"], "needs RUN_OR_FILE and OUT"),
    ],
)
def test_refusals(words, complaint):
    with pytest.raises(UserError) as refusal:
        parse_command(words)
    assert complaint in str(refusal.value)


def test_a_wrong_layout_is_seen_before_anything_is_queued(words, photos, tmp_path):
    with pytest.raises(UserError, match="does not look like coco"):
        check_inputs(parse_command(words(tmp_path / "run", "data.kind=coco")))


def test_processes_must_share_the_batch(words, tmp_path):
    line = parse_command(words(tmp_path / "run"))
    check_processes(line, 4, gpus=True)
    with pytest.raises(UserError, match="batch_size=8 is not a multiple of the cluster file's 3 processes; change one"):
        check_processes(line, 3, gpus=True)
    accumulated = parse_command(words(tmp_path / "run", "optim.accumulate=4"))
    with pytest.raises(UserError, match=r"4 processes x optim.accumulate=4"):
        check_processes(accumulated, 4, gpus=True)


def test_evaluations_are_one_process():
    line = parse_command(["probe", "probe/quickstart"])
    check_processes(line, 1, gpus=False)
    with pytest.raises(UserError, match="probe runs as one process, the cluster file starts 8"):
        check_processes(line, 8, gpus=True)


def test_cuda_needs_gpus(words, tmp_path):
    line = parse_command(words(tmp_path / "run", "device=cuda"))
    with pytest.raises(UserError, match="gpus_per_node=0"):
        check_processes(line, 1, gpus=False)
