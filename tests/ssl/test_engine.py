"""The training loop on a tiny encoder: what happens when, and what is left behind."""

import json
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import alone, make_model, make_runner

from polyscene.runtime.checkpoint import list_checkpoints
from polyscene.runtime.errors import RunFailed
from polyscene.runtime.preemption import StopRequest
from polyscene.runtime.run import RunDirectory
from polyscene.runtime.training_state import resume
from polyscene.ssl import engine
from polyscene.ssl.engine import Schedule, train
from polyscene.ssl.loading import image_loader
from polyscene.ssl.sources import open_source
from polyscene.ssl.state import TrainingState, averaged_backbone
from polyscene.ssl.step import StepRunner
from polyscene.ssl.views.crops import CropGroup
from polyscene.ssl.views.sampling import sample_views
from polyscene.ssl.views.spec import ViewSpec

VIEWS = ViewSpec(large=CropGroup(2, 16, (0.2, 1.0)), small=CropGroup(2, 8, (0.05, 0.14)))


def sample(epoch, indices, sizes):
    return sample_views(0, epoch, indices, sizes, VIEWS)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for i in range(24):
        path = root / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    return open_source("folder", root)


def make(source, folder, **schedule):
    model = make_model()
    runner = make_runner(model, alone(), batch=8, kind="split", group=4)
    state = TrainingState(model, runner.optimizer, alone(), {"arch": "tiny", "dataset": "x", "config_hash": "0"})
    settings = {"steps_per_epoch": 3, "total_steps": 12, "end_step": 12, "learning_rate": 0.1, "log_every": 4}
    plan = Schedule(**{**settings, "save_every_minutes": None, **schedule})
    folder.mkdir(exist_ok=True)
    run = RunDirectory(folder)
    resume(state, run.checkpoints, run)

    def go(watch=lambda batches: batches, **more):
        batches = image_loader(
            source,
            batch_size=8,
            rank=0,
            world_size=1,
            seed=0,
            start_step=state.step,
            end_step=plan.end_step,
            workers=0,
            sample_views=sample,
        )
        return train(runner, state, watch(batches), VIEWS, plan, run, **more)

    return state, run, go


def lines(run):
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def test_logs_saves_and_evaluates_when_due(source, tmp_path):
    state, run, go = make(
        source, tmp_path / "run", save_every_steps=5, keep_last=3, evaluate_every_steps=6, keep_every_steps=None
    )
    evaluated = []

    def evaluate():
        evaluated.append(state.step)
        return {"knn_accuracy": 0.5}

    assert go(evaluate=evaluate)
    assert state.step == 12
    assert evaluated == [6, 12]
    assert [p.name for p in list_checkpoints(run.checkpoints)] == [f"step-{s:08d}.pt" for s in (5, 10, 12)]
    assert [line["step"] for line in lines(run) if "loss" in line] == [4, 8, 12]
    assert [line["step"] for line in lines(run) if "knn_accuracy" in line] == [6, 12]
    rates = [line["learning_rate"] for line in lines(run) if "loss" in line]
    assert rates == sorted(rates, reverse=True)


def test_a_stop_request_saves_at_once_and_the_rest_follows_later(source, tmp_path):
    whole, _, go = make(source, tmp_path / "whole")
    go()
    state, run, go = make(source, tmp_path / "halves")
    stop = StopRequest()
    stop.signal = signal.SIGUSR2
    assert not go(stop=stop)
    assert state.step == 1
    assert len(list_checkpoints(run.checkpoints)) == 1
    again, _, go = make(source, tmp_path / "halves")
    assert again.step == 1
    assert go()
    for (name, value), other in zip(whole.model.state_dict().items(), again.model.state_dict().values()):
        assert torch.equal(value, other), name


def test_a_batch_is_fetched_when_the_step_before_is_done(source, tmp_path, monkeypatch):
    _, _, go = make(source, tmp_path / "run", end_step=3)
    events = []

    def noting(name, original):
        def call(*arguments, **more):
            events.append(name)
            return original(*arguments, **more)

        return call

    monkeypatch.setattr(engine, "render_views", noting("render", engine.render_views))
    monkeypatch.setattr(StepRunner, "step", noting("step", StepRunner.step))
    assert go(watch=lambda batches: (events.append("fetch") or batch for batch in batches))
    assert events == ["fetch", "render", "step"] * 3


def test_pixels_that_lie_on_a_gpu_are_kept_until_they_are_rendered(source, tmp_path, monkeypatch):
    _, _, go = make(source, tmp_path / "run", end_step=3)
    given, kept = [], []

    def run(side, work, reads):
        kept.extend(reads)
        return work()

    monkeypatch.setattr(engine.SideStream, "run", run)
    assert go(watch=lambda batches: (given.append(batch.pixels) or batch for batch in batches))
    assert [id(pixels) for pixels in kept] == [id(pixels) for pixels in given]


def test_what_is_fetched_at_a_stop_was_trained_on(source, tmp_path):
    state, _, go = make(source, tmp_path / "run")
    stop, fetched = StopRequest(), []

    def count(batches):
        for batch in batches:
            fetched.append(batch.step)
            if batch.step == 2:
                stop.signal = signal.SIGUSR2
            yield batch

    assert not go(stop=stop, watch=count)
    assert fetched == [0, 1, 2]
    assert state.step == 3


class LateCheck:
    """Reports a loss that is not finite one step late, or when settled, as on a GPU."""

    def __init__(self, world, report):
        self.report, self.pending = report, None

    def check(self, loss, step):
        self.settle()
        self.pending = (step, loss)

    def settle(self):
        if self.pending is not None and not self.pending[1].isfinite():
            self.report(*self.pending)


@pytest.mark.parametrize("end", [12, 3])
@pytest.mark.parametrize("late", [False, True])
def test_a_loss_that_is_not_finite_leaves_the_batch_that_made_it(source, tmp_path, monkeypatch, late, end):
    if late:
        monkeypatch.setattr("polyscene.ssl.step.FiniteCheck", LateCheck)
    state, run, go = make(source, tmp_path / "run", end_step=end)
    original, shown = engine.render_views, []

    def poisoned(*arguments):
        views = original(*arguments)
        if len(shown) == 2:
            views[0][5, 0, 0, 0, 0] = torch.nan
        shown.append(views)
        return views

    monkeypatch.setattr(engine, "render_views", poisoned)
    seen = []
    with pytest.raises(RunFailed, match="nonfinite-step-00000002-rank0.pt"):
        go(watch=lambda batches: (seen.append(batch) or batch for batch in batches))
    saved = torch.load(run.path / "nonfinite-step-00000002-rank0.pt", weights_only=True)
    assert saved["step"] == 2
    assert torch.equal(saved["indices"], seen[2].indices)
    for ours, theirs in zip(saved["views"], shown[2], strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=0, atol=0)
    assert state.step == (3 if late else 2)


def test_minutes_are_counted_too(source, tmp_path):
    _, run, go = make(source, tmp_path / "run", save_every_minutes=1e-9, keep_last=20)
    go()
    assert len(list_checkpoints(run.checkpoints)) == 12


def test_lasting_collapse_is_warned_of_once(source, tmp_path, capsys):
    state, _, go = make(source, tmp_path / "run", log_every=1)
    with torch.no_grad():  # every image gets the same embedding
        state.model.query.head[2].weight.zero_()
        state.model.query.head[2].bias.fill_(1.0)
        for parameter in state.model.query.parameters():
            parameter.requires_grad_(parameter is state.model.query.head[2].bias)
    go()
    assert capsys.readouterr().err.count("embeddings are collapsing") == 1


def test_the_averaged_backbone_is_the_backbone_of_one_process(source, tmp_path):
    state, _, go = make(source, tmp_path / "run", end_step=2)
    go()
    averaged = averaged_backbone(state)
    for name, value in state.model.query.backbone.state_dict().items():
        assert torch.equal(averaged[name], value), name
        assert averaged[name].data_ptr() != value.data_ptr()
