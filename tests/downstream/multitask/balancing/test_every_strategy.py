"""What holds for all strategies."""

import io

import pytest
import torch
from torch import nn

from polyscene.downstream.multitask.balancing.build import BALANCERS, make_balancer
from polyscene.downstream.multitask.balancing.weighing import step_weights
from polyscene.runtime.errors import UserError

TASKS = ("a", "b", "c")


def signals(steps, seed=0):
    """Losses, Gramians and KPIs of some steps, different for every task."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(steps):
        gradients = torch.randn(3, 5, generator=generator, dtype=torch.float64)
        found.append(
            (torch.rand(3, generator=generator) + 0.1, gradients @ gradients.T, torch.rand(3, generator=generator))
        )
    return found


def toy(seed=0):
    """A shared layer, two heads, and a batch on which the tasks differ a hundredfold in scale."""
    generator = torch.Generator().manual_seed(seed)
    shared, heads = nn.Linear(6, 5), nn.ModuleDict({"a": nn.Linear(5, 2), "b": nn.Linear(5, 3)})
    model = nn.ModuleList([shared, heads])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    inputs = torch.randn(8, 6, generator=generator)
    truth = {"a": torch.randn(8, 2, generator=generator), "b": 10 * torch.randn(8, 3, generator=generator)}

    def losses(rows=slice(None)):
        hidden = shared(inputs[rows]).tanh()
        return [(heads[name](hidden) - truth[name][rows]).square().mean() for name in ("a", "b")]

    return model, losses


def test_all_names_can_be_made(strategy):
    assert strategy.name.split()[0] in BALANCERS
    assert strategy(TASKS).tasks == TASKS


def test_equal_tasks_have_equal_weights(strategy):
    balancer = strategy(TASKS, classification=())
    gradient = torch.randn(7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for step in range(8):
        loss = 1.5 - 0.1 * step + 0.05 * (step % 3)
        length = gradient.square().sum() * (1 + step)
        weights = balancer.weigh(torch.full((3,), loss), length.expand(3, 3), torch.full((3,), 0.1 * step))
        assert weights.isfinite().all()
        assert weights.tolist() == pytest.approx([weights.mean().item()] * 3, rel=1e-5)
        assert weights[0] > 0


def test_a_continued_run_has_the_same_weights(strategy):
    whole, first = strategy(TASKS, {"b": 2.0}), strategy(TASKS, {"b": 2.0})
    events = signals(13)
    expected = [whole.weigh(*event) for event in events]
    for event in events[:7]:
        first.weigh(*event)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = strategy(TASKS, {"b": 2.0})
    second.load_state_dict(torch.load(file, weights_only=True))
    for event, wanted in zip(events[7:], expected[7:], strict=True):
        second = second.to("cpu")  # may replace parameters: nothing may be lost
        assert torch.equal(second.weigh(*event), wanted)
    if strategy.name not in ("fixed", "uniform"):
        assert not torch.equal(expected[-1], expected[0]), "a strategy that never moves cannot show this"


def test_the_host_never_waits_for_the_device(strategy):
    """On the meta device there are no numbers to look at: reading one raises."""
    balancer = strategy(TASKS).to("meta")
    for event in signals(2):
        losses, gramian, kpis = (signal.to("meta") for signal in event)
        weights = balancer.weigh(losses, gramian, kpis)
        assert weights.shape == (3,)
        assert weights.device.type == "meta"
        assert all(parameter.device.type == "meta" for parameter in balancer.parameters())
        assert not weights.requires_grad


def test_processes_agree_with_one_that_has_the_whole_batch(strategy, alone, on_ranks):
    def train(world):
        model, losses = toy()
        balancer = strategy(("a", "b"))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        rows = slice(8 * world.rank // world.size, 8 * (world.rank + 1) // world.size)
        found = []
        for step in range(5):
            mine = losses(rows)
            kpis = torch.tensor([0.1 + 0.1 * step, 0.5])
            weights = step_weights(balancer, mine, [model[0].weight], world, kpis)
            optimizer.zero_grad()
            (weights * torch.stack(mine)).sum().backward()
            for parameter in model.parameters():
                parameter.grad = world.mean(parameter.grad)
            optimizer.step()
            found.append(weights)
        return torch.stack(found)

    first, second = on_ranks(train)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, train(alone), rtol=1e-4, atol=1e-6)


def test_losses_fall(strategy, alone):
    model, losses = toy()
    balancer = strategy(("a", "b"))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    before = [loss.item() for loss in losses()]
    for _ in range(60):
        found = losses()
        weights = step_weights(balancer, found, list(model[0].parameters()), alone, torch.tensor([0.4, 0.6]))
        optimizer.zero_grad()
        (weights * torch.stack(found)).sum().backward()
        optimizer.step()
    after = [loss.item() for loss in losses()]
    assert after[0] < before[0]
    assert after[1] < before[1]


def test_fixed_and_uniform():
    losses = torch.tensor([3.0, 4.0, 5.0])
    assert make_balancer("fixed", TASKS, {"b": 50.0}).weigh(losses).tolist() == [1, 50, 1]
    assert make_balancer("uniform", TASKS, {"b": 50.0}).weigh(losses).tolist() == [1, 1, 1]


def test_base_weights_are_a_scale_of_the_losses():
    """Weighing base * loss, as a user would who scales the losses himself, is the same total loss."""
    base = torch.tensor([1.0, 50.0, 0.2])
    for name in ("uncertainty", "gradnorm", "dwa", "mgda"):
        ours, plain = make_balancer(name, TASKS, dict(zip(TASKS, base.tolist()))), make_balancer(name, TASKS)
        for losses, gramian, _ in signals(5, seed=2):
            weights = ours.weigh(losses, gramian)
            expected = plain.weigh(losses * base, gramian * torch.outer(base, base)) * base
            torch.testing.assert_close(weights, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("average", TASKS), "balancing=average"),
        (("fixed", ()), "at least one task"),
        (("fixed", ("a", "a")), "each once"),
        (("dwa", TASKS, {"b": 0.0}), "task_weights.b=0"),
        (("fixed", TASKS, {"b": float("nan")}), "task_weights.b=nan"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(UserError, match=message):
        make_balancer(*arguments)


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("dwa", {"dwa_period": 0}, "period=0"),
        ("dwa", {"dwa_temperature": 0.0}, "temperature=0"),
        ("gradnorm", {"gradnorm_alpha": -1.0}, "alpha=-1"),
        ("gradnorm", {"gradnorm_rate": 0.0}, "learning_rate=0"),
        ("uncertainty", {"classification": ("d",)}, "'d' is not one of the tasks a, b, c"),
        ("dtp", {"dtp_focus": {"d": 1.0}}, "'d' is not one of"),
        ("dtp", {"dtp_focus": -1.0}, "focus of a is -1"),
        ("dtp", {"dtp_smoothing": 0.0}, "smoothing=0"),
        ("mgda", {"mgda_normalize": "l1"}, "normalize=l1"),
        ("mgda", {"mgda_solver": "qp"}, "solver=qp"),
        ("mgda", {"mgda_total": 0.0}, "total=0"),
        ("similar_losses", {"measure_iterations": 0}, "iterations=0"),
    ],
)
def test_refused_settings(name, setting, message):
    with pytest.raises(UserError, match=message):
        make_balancer(name, TASKS, **setting)
