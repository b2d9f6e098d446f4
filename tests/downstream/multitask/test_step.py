"""The training step against a plain loop with torch's own optimisers."""

import sys
from pathlib import Path

import pytest
import torch
from torchvision.transforms.v2 import functional as T

sys.path.insert(0, str(Path(__file__).parent / "workers"))

from tiny_dense import RECIPE, alone, make_images, make_model, specs

from polyscene.downstream.multitask.balancing.fixed import Fixed
from polyscene.downstream.multitask.loading import train_batches
from polyscene.downstream.multitask.optimizers import make_optimizer
from polyscene.downstream.multitask.step import DenseStep

WEIGHTS = {"segmentation": 2.0, "depth": 0.5, "normals": 10.0}


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    images = make_images(tmp_path_factory.mktemp("made"))
    arguments = {"batch_size": 4, "seed": 1, "start_step": 0, "end_step": 4, "workers": 0, "world": alone()}
    return list(train_batches(images, RECIPE, **arguments))


def plain_loop(model, optimizer, batches, rates, weights, deep=False):
    """Word by word: normalise, forward, weighted sum, backward, update."""
    found = []
    tasks = specs()
    for batch, rate in zip(batches, rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        images = T.normalize(batch.images.float() / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        final, deeper = model.train()(images)
        losses = {name: tasks[name].loss(final[name], *batch.targets[name]) for name in final}
        total = sum(weights.get(name, 1.0) * loss for name, loss in losses.items())
        for maps in deeper:
            for name, output in maps.items():
                output = torch.nn.functional.interpolate(output, (24, 32), mode="bilinear", align_corners=False)
                total = total + weights.get(name, 1.0) * tasks[name].loss(output, *batch.targets[name])
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        found.append([total.item(), *(loss.item() for loss in losses.values())])
    return found


@pytest.mark.parametrize("deep", [(), ("segmentation", "normals")])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_steps_equal_a_plain_loop(batches, kind, deep):
    rates = [0.05, 0.04, 0.03, 0.02] if kind == "sgd" else [1e-3, 9e-4, 8e-4, 7e-4]
    twin = make_model(frozen_norm=False, deep=deep)
    parameters = [p for p in twin.parameters() if p.requires_grad]
    oracle = (
        torch.optim.SGD(parameters, 1.0, momentum=0.9, weight_decay=1e-4)
        if kind == "sgd"
        else torch.optim.Adam(parameters, 1.0, weight_decay=1e-4)
    )
    expected = plain_loop(twin, oracle, batches, rates, WEIGHTS)
    model = make_model(frozen_norm=False, deep=deep)
    frozen = model.frozen.weight.clone()
    step = DenseStep(
        model, make_optimizer(model, kind, learning_rate=1.0), specs(), Fixed([*specs()], WEIGHTS), alone()
    )
    for number, (batch, rate) in enumerate(zip(batches, rates)):
        losses = step.step(batch, step=number, learning_rate=rate)
        shown = [losses.total.item(), *(losses.tasks[name].item() for name in specs())]
        assert shown == pytest.approx(expected[number], rel=1e-5)
    for (name, value), other in zip(model.state_dict().items(), twin.state_dict().values()):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
    assert torch.equal(model.frozen.weight, frozen)


def test_an_auxiliary_task_has_deep_outputs_only(batches):
    model = make_model(tasks=("depth",), deep=("depth", "normals"))
    tasks = {name: specs()[name] for name in ("depth", "normals")}
    step = DenseStep(
        model,
        make_optimizer(model, "sgd", learning_rate=0.1),
        tasks,
        Fixed([*tasks], {"normals": 10.0}),
        alone(),
        tasks=("depth",),
    )
    with torch.no_grad():
        images = T.normalize(batches[0].images.float() / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        final, (deep,) = model.train()(images)
        large = {n: torch.nn.functional.interpolate(o, (24, 32), mode="bilinear") for n, o in deep.items()}
        expected = {name: tasks[name].loss(output, *batches[0].targets[name]) for name, output in large.items()}
        depth = tasks["depth"].loss(final["depth"], *batches[0].targets["depth"])
    losses = step.step(batches[0], step=0, learning_rate=0.1)
    assert losses.tasks["depth"].item() == pytest.approx(depth.item(), rel=1e-5)
    assert losses.tasks["normals"].item() == pytest.approx(expected["normals"].item(), rel=1e-5)
    total = depth + expected["depth"] + 10 * expected["normals"]
    assert losses.total.item() == pytest.approx(total.item(), rel=1e-5)


def test_tasks_with_parts_of_their_own_train_as_in_separate_runs(batches):
    """Losses are added, so a task whose parameters nobody shares gets the gradients of its own run."""
    together = make_model(tasks=("segmentation", "depth"))
    together.body.requires_grad_(False)
    together.norm.requires_grad_(False)
    alone_model = make_model(tasks=("depth",))
    shared = {name: value.clone() for name, value in together.state_dict().items() if "segmentation" not in name}
    alone_model.load_state_dict(shared)
    apart = {}
    for tasks, model in ((("segmentation", "depth"), together), (("depth",), alone_model)):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("tasks."))
        chosen = {name: specs()[name] for name in tasks}
        step = DenseStep(model, make_optimizer(model, "sgd", learning_rate=0.1), chosen, Fixed([*chosen]), alone())
        for number, batch in enumerate(batches):
            step.step(batch, step=number, learning_rate=0.1)
        apart[tasks] = model.tasks["depth"].weight.clone()
    first, second = apart.values()
    torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-7)


def test_bf16_keeps_losses_and_weights_in_float32(batches):
    found = {}
    for precision in ("fp32", "bf16"):
        model = make_model(frozen_norm=False)
        optimizer = make_optimizer(model, "sgd", learning_rate=0.05)
        step = DenseStep(model, optimizer, specs(), Fixed([*specs()], WEIGHTS), alone(), precision=precision)
        losses = [step.step(batch, step=i, learning_rate=0.05).total for i, batch in enumerate(batches)]
        assert all(loss.dtype == torch.float32 for loss in losses)
        assert all(p.dtype == torch.float32 for p in model.parameters())
        found[precision] = torch.stack(losses)
    assert not torch.equal(found["bf16"], found["fp32"])
    torch.testing.assert_close(found["bf16"], found["fp32"], rtol=0.02, atol=0)


def test_a_loss_that_is_not_finite_is_reported_before_the_weights_move(batches):
    model = make_model()
    step = DenseStep(model, make_optimizer(model, "sgd", learning_rate=0.1), specs(), Fixed([*specs()]), alone())
    with torch.no_grad():
        model.tasks["depth"].bias.fill_(float("nan"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(FloatingPointError, match="loss is nan at step 7"):
        step.step(batches[0], step=7, learning_rate=0.1)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


def test_optimisers_of_nothing_or_of_another_kind():
    model = make_model()
    with pytest.raises(ValueError, match="rmsprop"):
        make_optimizer(model, "rmsprop", learning_rate=0.1)
    with pytest.raises(ValueError, match="nothing to train"):
        make_optimizer(model.requires_grad_(False), "sgd", learning_rate=0.1)
