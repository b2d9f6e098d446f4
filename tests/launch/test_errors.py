"""Bad input: one line that names the key, exit code 2, no traceback."""

import pytest
import torch


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["modle.backbone=resnet50"], "unknown key 'modle'; did you mean 'model.backbone'"),
        (["optim.lr=fast"], "'optim.lr' must be number"),
        (["data.root=/nowhere/at/all"], "/nowhere/at/all"),
        (["model.backbone=vit_base_patch16_224"], "is not a ResNet"),
        (["model.backbone=resnet9999"], "timm has no model 'resnet9999'"),
        (["batch_size=25"], "24"),
        (["batch_size=1"], "batch_size=1 is too small"),
        (["optim.accumulate=3"], "optim.accumulate=3 does not divide batch_size=8"),
        (["neighbours.k=21"], "neighbours.k=21 is larger than model.queue=20"),
        (["model.norm.kind=split", "model.norm.group=3"], "model.norm.group=3 does not divide the 8 images"),
        (["views.large.count=1"], "views.large.count=1: at least 2"),
        (["views.large.size=4"], "views.large.size=4 pixels is too small"),
        (["views.small.scale=[0.5, 0.1]"], "views.small.scale=[0.5, 0.1]"),
        (["views.max_iou=1.5"], "views.max_iou=1.5"),
        (["views.min_overlap=-1"], "views.min_overlap=-1.0"),
        (["data.long_tailed=true"], "data.long_tailed needs class folders"),
        (["data.kind=coco"], "train2017"),
        (["model.momentum=1"], "model.momentum=1.0"),
        (["checkpoint.every_steps=null", "checkpoint.every_minutes=null"], "set one of them"),
        (["online_knn.every_epochs=1", "online_knn.held_out=/nowhere"], "/nowhere"),
        (["out=/proc/polyscene"], "cannot write to '/proc/polyscene'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, words, polyscene, more, message):
    code, out, err = polyscene(*words(tmp_path / "run", *more))
    assert code == 2, err
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in err
    assert out == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_an_absent_gpu_is_one_line(tmp_path, words, polyscene):
    code, _, err = polyscene(*words(tmp_path / "run", "device=cuda"))
    assert code == 2
    assert err.strip().startswith("error: device=cuda, but")


def test_a_full_gpu_is_one_line_and_a_fault_of_the_program_is_not(tmp_path, words, polyscene, monkeypatch):
    found = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a capacity of 79.15 GiB")

    def fail(*_, **__):
        raise found

    monkeypatch.setattr("polyscene.launch.pretrain.train", fail)
    code, _, err = polyscene(*words(tmp_path / "run"))
    assert code == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: CUDA out of memory. Tried to allocate 2.00 GiB; lower batch_size")
    assert "Traceback" not in err
    found = RuntimeError("shapes differ")
    with pytest.raises(RuntimeError, match="shapes differ"):
        polyscene(*words(tmp_path / "run"))


def test_empty_folder(tmp_path, words, polyscene):
    (tmp_path / "empty").mkdir()
    code, _, err = polyscene(*words(tmp_path / "run", f"data.root={tmp_path / 'empty'}"))
    assert code == 2
    assert str(tmp_path / "empty") in err


def test_a_refused_run_does_not_block_the_corrected_one(tmp_path, words, polyscene):
    out = tmp_path / "run"
    for wrong in ("batch_size=1000", "model.backbone=resnet9999", "model.norm.kind=split model.norm.group=3"):
        assert polyscene(*words(out, *wrong.split()))[0] == 2
    code, _, err = polyscene(*words(out, "max_steps=1"))
    assert code == 0, err
