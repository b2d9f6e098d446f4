"""The multi-task training loop: what is logged, saved, resumed, and what ends it."""

import json
import math
import signal
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "workers"))

from tiny_dense import RECIPE, alone, make_images, make_model

from polyscene.downstream.multitask.balancing.build import make_balancer
from polyscene.downstream.multitask.balancing.fixed import Fixed
from polyscene.downstream.multitask.engine import train
from polyscene.downstream.multitask.loading import train_batches
from polyscene.downstream.multitask.optimizers import make_optimizer
from polyscene.downstream.multitask.schedule import Schedule
from polyscene.downstream.multitask.state import MultitaskState
from polyscene.downstream.multitask.step import DenseStep
from polyscene.runtime.checkpoint import list_checkpoints
from polyscene.runtime.errors import RunFailed, UserError
from polyscene.runtime.preemption import StopRequest
from polyscene.runtime.run import RunDirectory
from polyscene.runtime.training_state import resume


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("made"))


class StopAfter(StopRequest):
    """A signal that comes during a step."""

    def __init__(self, batches, steps):
        super().__init__()
        self.batches, self.steps = batches, steps

    def __iter__(self):
        for number, batch in enumerate(self.batches):
            if number == self.steps - 1:
                self.signal = signal.SIGTERM
            yield batch


def start(images, folder, *, kind="sgd", balancer=None, workers=0, stop_after=None, evaluate=None, model=None, **plan):
    """Start or continue a run; its state, its directory and whether it reached the end."""
    model = model or make_model(frozen_norm=False)
    optimizer = make_optimizer(model, kind, learning_rate=0.05)
    balancer = balancer or Fixed([*images.tasks], {"depth": 0.5})
    identity = {"arch": "tiny", "dataset": "made", "config_hash": "0"}
    state = MultitaskState(model, optimizer, alone(), identity, balancer=balancer)
    step = DenseStep(model, optimizer, images.tasks, balancer, alone())
    settings = {"steps_per_epoch": 2, "total_steps": 6, "end_step": 6, "learning_rate": 0.05, "log_every": 2}
    schedule = Schedule(**{**settings, "save_every_minutes": None, **plan})
    folder.mkdir(exist_ok=True)
    run = RunDirectory(folder)
    resume(state, run.checkpoints, run)
    batches = train_batches(
        images,
        RECIPE,
        batch_size=4,
        seed=0,
        start_step=state.step,
        end_step=schedule.end_step,
        workers=workers,
        world=alone(),
    )
    stop = StopAfter(batches, stop_after) if stop_after else None
    completed = train(step, state, stop or batches, schedule, run, stop=stop, evaluate=evaluate)
    return state, run, completed


def lines(run):
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def test_what_is_logged_saved_and_evaluated(images, tmp_path):
    evaluated = []

    def evaluate():
        evaluated.append(1)
        return {"depth_rmse": 1.5}

    state, run, completed = start(
        images, tmp_path / "run", evaluate=evaluate, evaluate_every_steps=4, save_every_steps=4, keep_last=5
    )
    assert completed
    assert state.step == 6
    assert len(evaluated) == 2  # after step 4 and at the end
    assert [path.name for path in list_checkpoints(run.checkpoints)] == ["step-00000004.pt", "step-00000006.pt"]
    logged = [line for line in lines(run) if "loss" in line]
    assert [line["step"] for line in logged] == [2, 4, 6]
    names = ["loss_segmentation", "loss_depth", "loss_normals", "loss_edges"]
    assert list(logged[0]) == [
        *("step", "loss", *names, *(name.replace("loss", "weight") for name in names)),
        *("learning_rate", "epoch", "images_per_second", "data_wait_percent"),
    ]
    for line in logged:
        weights = [line[name.replace("loss", "weight")] for name in names]
        assert weights == [1, 0.5, 1, 1]
        parts = [line[name] * weight for name, weight in zip(names, weights)]
        assert line["loss"] == pytest.approx(sum(parts), rel=1e-4)
    assert logged[0]["learning_rate"] == pytest.approx(0.05 * (1 - 1 / 6) ** 0.9, rel=1e-5)
    assert [line["epoch"] for line in logged] == [1, 2, 3]
    assert [line["step"] for line in lines(run) if "depth_rmse" in line] == [4, 6]
    # The log and the console say which task does what.
    assert "segmentation" in (run.path / "log.txt").read_text()


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_a_stopped_run_goes_on_bit_for_bit(images, tmp_path, kind):
    whole, _, completed = start(images, tmp_path / "whole", kind=kind)
    assert completed
    first, run, completed = start(images, tmp_path / "halves", kind=kind, workers=2, stop_after=3)
    assert not completed
    assert first.step == 3
    assert [path.name for path in list_checkpoints(run.checkpoints)] == ["step-00000003.pt"]
    second, run, completed = start(images, tmp_path / "halves", kind=kind, workers=1)
    assert completed
    assert second.step == 6
    for (name, value), other in zip(whole.model.state_dict().items(), second.model.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    kept, other = whole.optimizer.state_dict()["state"], second.optimizer.state_dict()["state"]
    for index, buffers in kept.items():
        for name, buffer in buffers.items():
            assert torch.equal(buffer, other[index][name]), name


@pytest.mark.parametrize("strategy", ["dtp", "dwa", "uncertainty", "similar_losses"])
def test_a_strategy_goes_on_with_what_it_has_learnt(images, tmp_path, strategy):
    def train(folder, **options):
        balancer = make_balancer(strategy, [*images.tasks], measure_iterations=2)
        return start(images, tmp_path / folder, balancer=balancer, log_every=1, **options)

    whole, run, _ = train("whole")
    train("halves", stop_after=3)
    second, again, _ = train("halves")
    for (name, value), other in zip(whole.model.state_dict().items(), second.model.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    weights = [[{k: v for k, v in line.items() if k.startswith("weight")} for line in lines(r)] for r in (run, again)]
    assert weights[0] == weights[1]
    assert len({str(line) for line in weights[0]}) > 1  # they did move


def test_a_checkpoint_of_another_strategy_is_one_line(images, tmp_path):
    start(images, tmp_path / "run", end_step=2)
    with pytest.raises(UserError, match="another balancing strategy"):
        start(images, tmp_path / "run", balancer=make_balancer("dwa", [*images.tasks]))


def test_a_killed_run_repeats_its_lines_of_metrics(images, tmp_path):
    start(images, tmp_path / "whole", log_every=1)
    start(images, tmp_path / "killed", log_every=1, end_step=4, save_every_steps=3)
    (newest,) = (p for p in list_checkpoints(tmp_path / "killed" / "checkpoints") if "4" in p.name)
    newest.unlink()  # as if the process had died before it could save
    start(images, tmp_path / "killed", log_every=1)
    losses = [[line["loss"] for line in lines(RunDirectory(tmp_path / name))] for name in ("whole", "killed")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6


def test_a_checkpoint_of_another_model_is_one_line(images, tmp_path):
    start(images, tmp_path / "run", end_step=1)
    with pytest.raises(UserError, match="does not fit this model") as caught:
        start(images.only(["depth"]), tmp_path / "run", model=make_model(tasks=("depth",), frozen_norm=False))
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_not_finite_ends_the_run_with_a_batch_to_reproduce_it(images, tmp_path):
    def spoil():
        with torch.no_grad():
            model.tasks["depth"].bias.fill_(float("nan"))
        return {"depth_rmse": 0.0}

    model = make_model(frozen_norm=False)
    with pytest.raises(RunFailed, match="the loss is nan at step 2; the batch and the weights are saved") as caught:
        start(images, tmp_path / "run", model=model, evaluate=spoil, evaluate_every_steps=2, save_every_steps=1)
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    content = torch.load(tmp_path / "run" / "nonfinite-step-00000002-rank0.pt", weights_only=True)
    assert content["step"] == 2
    assert math.isnan(content["loss"])
    (batch,) = train_batches(images, RECIPE, batch_size=4, seed=0, start_step=2, end_step=3, workers=0, world=alone())
    assert content["names"] == batch.names
    assert torch.equal(content["images"], batch.images)
    assert torch.equal(content["targets"]["depth"][0], batch.targets["depth"].values)
    saved = [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")]
    assert saved[-1] == "step-00000002.pt"
