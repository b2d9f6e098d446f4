"""A miniature data set, a command-line runner, and the words of a run that takes seconds."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from polyscene.launch import cli


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


@pytest.fixture
def one_thread():
    """Bit-identity holds for equal thread counts: the processes that tests start use one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
