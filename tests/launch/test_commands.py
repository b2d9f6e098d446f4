"""check, scenes, export, --help and --print-config."""

import pytest
import torch

from polyscene.runtime.weights import read_weights


def test_check_passes_on_a_miniature_coco(tmp_path, polyscene, draw):
    for i in range(260):
        draw(tmp_path / "coco" / "train2017" / f"{i:012d}.jpg", i, size=(40, 30))
    code, out, err = polyscene("check", "configs/pretrain/coco_knn_800ep.yaml", f"data.root={tmp_path / 'coco'}")
    assert code == 0, err
    assert "260" in out
    assert "no problem found" in err
    assert "model.queue=65536 is larger than half of the 260 images" in err
    assert "negative; lower batch_size and model.queue" in err
    assert "small crops that miss 'overlap'" in out


def test_check_names_damage(tmp_path, polyscene, draw):
    for i in range(30):
        draw(tmp_path / "data" / f"{i}.jpg", i)
    for i in range(3):
        (tmp_path / "data" / f"{i}.jpg").write_bytes(b"broken")
    arguments = [f"data.root={tmp_path / 'data'}", "data.kind=folder", "device=cpu", "online_knn.held_out=null"]
    code, _, err = polyscene("check", "pretrain/quickstart", *arguments, "batch_size=8", "model.norm.group=4")
    assert code == 2
    assert "3 of 30 sampled images" in err


def test_print_config_reads_back(tmp_path, words, polyscene):
    code, out, _ = polyscene(*words(tmp_path / "run"), "--print-config")
    assert code == 0
    (tmp_path / "c.yaml").write_text(out)
    assert not (tmp_path / "run").exists()
    again = polyscene("pretrain", tmp_path / "c.yaml", "--print-config")[1]
    assert again == out


@pytest.mark.parametrize("command", ["pretrain", "check", "probe", "retrieve", "propagate", "cam", "scenes"])
def test_help_lists_every_key(command, polyscene):
    code, out, _ = polyscene(command, "--help")
    assert code == 0
    expected = {
        "pretrain": ["views.small.scale", "model.norm.kind", "integer | null"],
        "check": ["optim.lr"],
        "probe": ["weights", "temperature", "svm.variant", "linear.learning_rates", "data.kind"],
        "retrieve": ["weights", "clusters", "data.ignore"],
        "propagate": ["weights", "radius", "data.masks"],
        "cam": ["weights", "head", "output_stride"],
        "scenes": ["count", "seed"],
    }
    assert all(word in out for word in expected[command])


def test_scenes_command_and_its_refusals(tmp_path, polyscene):
    code, _, err = polyscene("scenes", tmp_path / "s", "count=5", "size=[48,64]", "workers=1")
    assert code == 0, err
    assert "5 images" in err
    code, _, err = polyscene("scenes", tmp_path / "s", "count=5", "size=[48,64]", "workers=1")
    assert (code, "already complete" in err) == (0, True)
    code, _, err = polyscene("scenes", tmp_path / "s", "count=7", "size=[48,64]")
    assert code == 2
    assert polyscene("scenes", tmp_path / "t", "count=0")[0] == 2
    assert polyscene("scenes", tmp_path / "t", "cuont=3")[2].strip().endswith("did you mean 'count'?")


def test_export_command(tmp_path, words, polyscene):
    import torchvision

    assert polyscene(*words(tmp_path / "run", "max_steps=1"))[0] == 0
    code, out, err = polyscene("export", tmp_path / "run", tmp_path / "r18.pth", "--format", "torchvision")
    assert code == 0, err
    assert "resnet18" in out
    missing = torchvision.models.resnet18().load_state_dict(
        torch.load(tmp_path / "r18.pth", weights_only=True), strict=False
    )
    assert missing.missing_keys == ["fc.weight", "fc.bias"]
    assert missing.unexpected_keys == []
    assert polyscene("export", tmp_path / "run", tmp_path / "x", "--format", "keras")[0] == 2


def test_the_minimal_example_runs(tmp_path, draw):
    import subprocess
    import sys
    from pathlib import Path

    script = Path(__file__).resolve().parents[2] / "examples" / "pretrain_minimal.py"
    for i in range(40):
        draw(tmp_path / "many" / f"{i}.jpg", i)
    command = [sys.executable, str(script), str(tmp_path / "many"), str(tmp_path / "b.safetensors"), "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "step 1/1" in done.stdout
    assert read_weights(tmp_path / "b.safetensors").arch == "resnet18"


def test_a_killed_scene_worker_is_one_line_and_the_same_command_starts_again(tmp_path, start):
    import os
    import signal
    import time
    from pathlib import Path

    command = ["scenes", tmp_path / "s", "count=400", "size=[96,128]", "workers=2"]
    process = start(*command)
    deadline = time.monotonic() + 100
    while not list(tmp_path.glob("s/images/train/*/*.jpg")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [c for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
    os.kill(int(workers[0]), signal.SIGKILL)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2, err
    assert "a process that draws died" in err
    assert "Traceback" not in err
