"""Worker scripts under torchrun, and images for the loader."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from polyscene.ssl.sources import open_source

WORKERS = Path(__file__).parent / "workers"
sys.path.insert(0, str(WORKERS))


@pytest.fixture
def torchrun():
    """Run ``torchrun(processes, script or "-m", *arguments)``; the completed process, checked for success."""

    def run(processes, *command, check=True):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*launcher, *map(str, command)], capture_output=True, text=True, env=environment, timeout=280
        )
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def source(tmp_path):
    """23 images of different sizes in two folders; the red value of image i is 10 i."""
    for i in range(23):
        path = tmp_path / "data" / f"{'ab'[i % 2]}" / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5 + i % 4, 6 + i % 3), (10 * i, i, 0)).save(path)
    return open_source("folder", tmp_path / "data")
