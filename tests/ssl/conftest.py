"""Start worker scripts under torchrun."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
