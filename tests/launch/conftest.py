"""A miniature data set, a command-line runner, the words of a run that takes seconds, and chains without real jobs."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from polyscene.launch import cli
from polyscene.launch.cluster import submission

sys.path.insert(0, str(Path(__file__).parent / "workers"))

from chain_jobs import DIAMOND, Jobs


def draw(path, seed, size=(48, 40)):
    """A smooth random picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    small = Image.fromarray(generator.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    small.resize(size, Image.Resampling.BICUBIC).save(path, quality=95)


@pytest.fixture(scope="session", name="draw")
def draw_fixture():
    """``draw(path, seed, size)``: write a smooth random picture."""
    return draw


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """24 images in 3 class folders, and 6 held-out ones."""
    root = tmp_path_factory.mktemp("photos")
    for i in range(24):
        draw(root / "train" / f"class{i % 3}" / f"{i:02d}.jpg", i)
    for i in range(6):
        draw(root / "val" / f"class{i % 3}" / f"{i:02d}.jpg", 100 + i)
    return root


@pytest.fixture
def words(photos):
    """``words(out, *more)``: the command line of a tiny run: 24 images, 3 steps an epoch, 9 steps."""

    def make(out, *more):
        return [
            "pretrain",
            "pretrain/quickstart",
            f"out={out}",
            f"data.root={photos / 'train'}",
            "data.workers=0",
            "device=cpu",
            "epochs=3",
            "batch_size=8",
            "views.large.size=32",
            "views.small.count=2",
            "views.small.size=16",
            "model.backbone=resnet18",
            "model.queue=20",
            "model.norm.group=4",
            "neighbours.k=3",
            "neighbours.start_epoch=1",
            "checkpoint.every_steps=2",
            "log.every=1",
            "log.pictures=false",
            "log.tensorboard=false",
            "online_knn.every_epochs=null",
            "online_knn.held_out=null",
            *more,
        ]

    return make


@pytest.fixture
def polyscene(capfd, monkeypatch):
    """Run the command line in this process: ``(exit code, stdout, stderr)``."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["polyscene", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture
def start():
    """Start the command line in a process of its own (killed at the end of the test if it still lives)."""
    processes = []

    def run(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", "polyscene.launch.cli", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def make_dense_folder(root, train=12, val=4, size=(40, 56)):
    """A labelled folder: bright blobs on a dark ground, whose brightness says the class, the depth and the saliency."""
    generator = np.random.default_rng(0)
    for name in ("images", "segmentation", "depth", "saliency"):
        (root / name).mkdir(parents=True)
    for i in range(train + val):
        small = torch.from_numpy(generator.random((1, 1, 4, 5)))
        share = torch.nn.functional.interpolate(small, size, mode="bicubic")[0, 0].clamp(0, 1).numpy()
        photo = np.repeat((share * 255).astype(np.uint8)[..., None], 3, axis=2)
        Image.fromarray(photo).save(root / "images" / f"{i:02d}.jpg", quality=95)
        Image.fromarray((share * 2.999).astype(np.uint8)).save(root / "segmentation" / f"{i:02d}.png")
        Image.fromarray(((share > 0.5) * 255).astype(np.uint8)).save(root / "saliency" / f"{i:02d}.png")
        np.save(root / "depth" / f"{i:02d}.npy", (1 + 4 * share).astype(np.float32))
    (root / "classes.txt").write_text("dark\nmiddle\nbright\n")
    (root / "train.txt").write_text("".join(f"{i:02d}\n" for i in range(train)))
    (root / "val.txt").write_text("".join(f"{i:02d}\n" for i in range(train, train + val)))


@pytest.fixture(scope="session")
def dense_folder(tmp_path_factory):
    """12 images to train on and 4 to evaluate on, with segmentation (3 classes), depth and saliency."""
    root = tmp_path_factory.mktemp("dense")
    make_dense_folder(root)
    return root


@pytest.fixture(scope="session")
def dense_copy(tmp_path_factory):
    """``dense_copy()``: such a folder of one's own, to be damaged."""

    def make():
        root = tmp_path_factory.mktemp("copy")
        make_dense_folder(root)
        return root

    return make


@pytest.fixture(scope="session")
def dense_words(dense_folder, tmp_path_factory):
    """``dense_words(out, *more)``: the command line of a multi-task run that takes a second: 3 steps, two tasks."""
    config = tmp_path_factory.mktemp("config") / "tiny.yaml"
    config.write_text(
        f"""
        weights: random
        arch: resnet10t
        device: cpu
        precision: fp32
        tasks: [segmentation, depth]
        batch_size: 4
        iterations: 3
        data: {{kind: folder, root: {dense_folder}, workers: 0}}
        model: {{head_width: 8, rcm: {{init_count: 4}}}}
        augmentation: {{recipe: rcm, size: [32, 48]}}
        optim: {{lr: 0.01}}
        evaluate: {{pictures: 1}}
        log: {{every: 1, tensorboard: false}}
        """
    )

    def make(out, *more):
        return ["multitask", config, f"out={out}", *more]

    return make


@pytest.fixture(scope="session")
def dense_run(dense_words, tmp_path_factory):
    """A finished RCM run with the tasks segmentation and depth."""
    out = tmp_path_factory.mktemp("dense_run") / "run"
    run_command(*dense_words(out))
    return out


@pytest.fixture(scope="session")
def run_words():
    """``run_words(*words)``: run the command line once for the tests of a module; it must succeed."""

    def run(*words):
        run_command(*words)

    return run


def run_command(*arguments):
    """The command line in this process, for fixtures of a whole session; it must succeed."""
    before = sys.argv
    sys.argv = ["polyscene", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
    finally:
        sys.argv = before


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with nothing but a folder of images."""
    monkeypatch.chdir(tmp_path)
    Path("images/a").mkdir(parents=True)
    Path("images/a/1.jpg").touch()
    return tmp_path


@pytest.fixture
def chain_file(here):
    """``chain_file(steps, **keys)``: a chain of ``name: (command, *after)``."""

    def make(steps, **keys):
        steps = {name: {"command": command, "after": list(after)} for name, (command, *after) in steps.items()}
        Path("chain.yaml").write_text(yaml.safe_dump({"out": "runs", "steps": steps, **keys}))
        return "chain.yaml"

    return make


@pytest.fixture
def jobs(monkeypatch):
    """Jobs of this process in place of those that a chain submits."""
    made = Jobs()
    monkeypatch.setattr(submission, "submit_commands", made)
    return made


@pytest.fixture
def refused(chain_file, polyscene, jobs):
    """``refused(*changes)``: the one line that refuses the chain of four steps before anything is started."""

    def run(*changes):
        code, out, err = polyscene("chain", chain_file(DIAMOND, vars={"size": 3}), *changes)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert jobs.started == []
        assert not Path("runs").exists()
        return err

    return run
