"""Two processes train and evaluate as one does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKERS = Path(__file__).parent / "workers"
sys.path.insert(0, str(WORKERS))

from tiny_dense import alone, make_images  # noqa: E402
from two_process_dense import KINDS, run  # noqa: E402


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Folder of the images, and kind -> what each of two processes ended with."""
    folder = tmp_path_factory.mktemp("two")
    make_images(folder / "images")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, str(WORKERS / "two_process_dense.py"), str(folder / "images"), str(folder / "rank")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=250,
    )
    assert done.returncode == 0, done.stdout + done.stderr

    def load(kind):
        return [torch.load(folder / f"rank-{kind}-{rank}.pt", weights_only=True) for rank in range(2)]

    return folder / "images", {kind: load(kind) for kind in KINDS}


def flat(state):
    return torch.cat([value.double().flatten() for name, value in state.items() if not name.endswith("tracked")])


@pytest.mark.parametrize("kind", KINDS)
def test_losses_weights_and_scores_equal_one_process(ranks, kind):
    folder, found = ranks
    one = run(alone(), folder, kind)
    first, second = found[kind]
    for ours, theirs in zip(one["losses"], first["losses"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    for ours, theirs in zip(one["weights"], first["weights"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
    assert first["weights"] == second["weights"]
    for name, value in one["model"].items():
        assert torch.equal(first["model"][name], second["model"][name]), f"the processes differ in {name}"
        if kind in ("frozen", "sync"):
            torch.testing.assert_close(value, first["model"][name], rtol=1e-3, atol=1e-5)
    # Of a deep network single weights differ more; they all went the same way.
    way, theirs = (flat(state) - flat(one["start"]) for state in (one["model"], first["model"]))
    assert (way - theirs).norm() < 0.01 * way.norm()
    assert first["scores"] == second["scores"]
    for task, scores in one["scores"].items():
        # Weights differ by rounding: single pixels may change their class.
        assert scores == pytest.approx(first["scores"][task], rel=0.01, abs=0.002), task
