"""Models of all kinds: what they give, whom a loss reaches, what is counted, and tasks that come later."""

import math

import pytest
import torch
from torch import nn

from polyscene.downstream.backbones import feature_maps
from polyscene.downstream.multitask.heads.build import HEADS
from polyscene.downstream.multitask.models.build import KINDS, ModelOptions, build_model, empty_model
from polyscene.runtime.errors import UserError

INDEPENDENT = [kind for kind in KINDS if kind != "multi_task"]
CHANNELS = {"edges": 1, "normals": 3}


@pytest.fixture(scope="session")
def images(images):
    """(2, 3, 48, 48)"""
    return images[:2, :, :48, :48].contiguous()


def loss(outputs):
    return sum(output.square().mean() + output.mean() for output in outputs.final.values())


def step(model, images, tasks):
    """One step of SGD with weight decay on all parameters that ask for gradients."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.01)
    model.train()
    loss(model(images, tasks)).backward()
    optimizer.step()
    optimizer.zero_grad()
    model.eval()


def copy_of(state):
    return {key: value.clone() for key, value in state.items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(value, right[key]) for key, value in left.items())


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_outputs(make, images, kind):
    model = make(kind)
    assert model.tasks == ("edges", "normals")
    outputs = model(images)
    assert outputs.deep == ()
    assert {task: tuple(output.shape) for task, output in outputs.final.items()} == {
        "edges": (2, 1, 48, 48),
        "normals": (2, 3, 48, 48),
    }
    assert all(output.dtype == torch.float32 and output.std() > 1e-3 for output in outputs.final.values())
    chosen = model(images[:1, :, :37, :43], ["normals"]).final
    assert list(chosen) == ["normals"]
    assert chosen["normals"].shape == (1, 3, 37, 43)
    assert list(model(images, ("normals", "edges")).final) == ["normals", "edges"]


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_every_kind_starts_as_the_pretrained_network(make, weights, images, head):
    """At the start the task encoders do the same, so that the same heads give the same outputs."""
    reference = make("multi_task", head=head)
    expected = reference(images).final["normals"]
    plain = feature_maps(weights("resnet10t"), layers=reference.encoder.layers, output_stride=16)
    by_hand = reference.heads.tasks["normals"](plain(images), (48, 48))
    assert torch.equal(expected, by_hand)
    for kind in INDEPENDENT if head == "deeplab_v3_plus" else ["rcm"]:
        found = make(kind, head=head, response_init=kind == "rcm")(images).final["normals"]
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max(), kind


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_trains_its_own_parameters_only(make, images, kind):
    model = make(kind)
    before = copy_of(model.state_dict())
    step(model, images, ["normals"])
    after = model.state_dict()
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    own = {key for key in before if "tasks.normals." in key}
    if kind == "multi_task":
        assert changed - own
        assert all(key.startswith("encoder.") for key in changed - own)
        assert not any("tasks.edges." in key for key in changed)
    else:
        assert changed <= own
    heads = {key for key in own if key.startswith("heads.")}
    assert heads <= changed
    if kind not in ("multi_task", "series_adapters"):  # the BatchNorm in front of a matrix of zeros has no gradient yet
        assert own == changed


def test_the_frozen_encoder_runs_once_and_without_gradients(make, images):
    model, calls = make("frozen").train(), []
    model.encoder.body.layer1[0].conv1.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    outputs = model(images).final
    assert calls == [False]
    assert all(output.requires_grad for output in outputs.values())
    assert not any(name.startswith("encoder.") for name, p in model.named_parameters() if p.requires_grad)
    shared, calls = make("multi_task").train(), []
    shared.encoder.body.layer1[0].conv1.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    shared(images)
    assert calls == [True]


@pytest.mark.parametrize("kind", INDEPENDENT)
def test_tasks_together_are_tasks_apart(make, images, kind):
    """One step of SGD on both tasks gives the bits that two jobs of one task each give."""
    together = make(kind)
    step(together, images, ["edges", "normals"])
    state = together.state_dict()
    for task, channels in CHANNELS.items():
        alone = make(kind, {task: channels})
        step(alone, images, [task])
        for key, value in alone.state_dict().items():
            torch.testing.assert_close(state[key], value, rtol=1e-6, atol=1e-7)
        with torch.no_grad():
            torch.testing.assert_close(
                together(images, [task]).final[task], alone(images).final[task], rtol=1e-5, atol=1e-6
            )


@pytest.mark.parametrize("kind", INDEPENDENT)
def test_a_task_that_comes_later(make, images, disturb, kind):
    """Its start does not depend on when it comes; the others keep every bit, of parameters, buffers and outputs."""
    model = make(kind, {"edges": 1})
    disturb(model, "edges")
    before = copy_of(model.state_dict())
    with torch.no_grad():
        old = model(images).final["edges"]
    assert old.std() > 0.05

    model.add_task("normals", 3)
    fresh = make(kind).state_dict()
    assert all(torch.equal(value, fresh[key]) for key, value in model.state_dict().items() if "normals" in key)
    step(model, images, ["normals"])
    after = model.state_dict()
    assert same(before, {key: value for key, value in after.items() if "tasks.normals." not in key})
    with torch.no_grad():
        assert torch.equal(model(images, ["edges"]).final["edges"], old)
        assert torch.equal(model(images).final["edges"], old)
    model.remove_task("normals")
    assert model.tasks == ("edges",)
    assert same(before, model.state_dict())


def test_seed_of_a_later_task(make):
    model = make("frozen", {"edges": 1}, seed=7)
    model.add_task("normals", 3)
    model.add_task("depth", 1, seed=8)
    expected = make("frozen", {"normals": 3}, seed=7)
    assert torch.equal(
        model.heads.tasks["normals"].prediction.weight, expected.heads.tasks["normals"].prediction.weight
    )
    other = make("frozen", {"depth": 1}, seed=8)
    assert torch.equal(model.heads.tasks["depth"].prediction.weight, other.heads.tasks["depth"].prediction.weight)


def test_train_only(make):
    model = make("rcm")
    model.train_only(["normals"])
    wanting = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert wanting == {name for name, _ in model.named_parameters() if "tasks.normals." in name}
    own = {id(parameter) for parameter in model.task_parameters("normals")}
    assert own == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


def test_parameters_of_rcm_on_resnet18(weights):
    """The numbers of the paper: 17 layers, a bank of 10.99 M, 1.397 M + 0.172 M per task."""
    model = build_model(ModelOptions("rcm", response_init=False), weights("resnet18"), {"depth": 1, "edges": 1})
    counts = model.parameter_counts()
    assert sum(hasattr(module, "bank") for module in model.modules()) == 17
    assert (counts.shared, counts.shared_trained) == (10_994_880, 0)
    # ASPP, low-level features, two 3x3, their BatchNorms, prediction; see the test of the heads.
    head = 512 * 256 * 29 + 1280 * 256 + 64 * 48 + 304 * 256 * 9 + 256 * 256 * 9 + 2 * (1280 + 816) + 257
    assert counts.tasks["depth"] == {
        "modulators": 1_396_736,
        "convolutions": 172_032,
        "gains": 3_904,
        "norms": 9_600,
        "head": head,
    }
    assert counts.of_task("depth") == sum(parameter.numel() for parameter in model.task_parameters("depth"))
    assert counts.total == 10_994_880 + 2 * counts.of_task("depth")


@pytest.mark.parametrize(
    ("kind", "shared", "trained"),
    [
        ("single", 0, 0),
        ("multi_task", 11_176_512, 11_176_512),
        ("frozen", 11_176_512, 0),
        ("task_norms", 11_166_912, 0),
    ],
)
def test_parameters_of_the_others(weights, kind, shared, trained):
    counts = build_model(ModelOptions(kind, head_width=8), weights("resnet18"), CHANNELS).parameter_counts()
    assert (counts.shared, counts.shared_trained) == (shared, trained)
    if kind == "single":
        assert counts.tasks["edges"]["convolutions"] + counts.tasks["edges"]["norms"] == 11_176_512


@pytest.mark.parametrize("kind", ["rcm", "multi_task", "task_norms", "series_adapters"])
@torch.no_grad()
def test_an_empty_model_takes_the_state(make, images, disturb, kind):
    model = make(kind, head="aspp", output_stride=8)
    disturb(model, "normals")
    before = torch.random.get_rng_state()
    empty = empty_model(ModelOptions(kind, head="aspp", head_width=8, output_stride=8), "resnet10t", CHANNELS)
    assert torch.equal(torch.random.get_rng_state(), before)
    empty.load_state_dict(model.state_dict())
    assert torch.equal(empty(images).final["normals"], model(images).final["normals"])


@torch.no_grad()
def test_reduced_ranks(make, weights, moments, images):
    full, reduced = make("rcm"), make("rcm", rank=0.75, response_init=True)
    assert reduced.parameter_counts().shared < 0.8 * full.parameter_counts().shared
    empty = empty_model(ModelOptions("rcm", rank=0.75, head_width=8), "resnet10t", CHANNELS)
    empty.load_state_dict(reduced.state_dict())
    assert torch.equal(empty(images).final["edges"], reduced(images).final["edges"])


@pytest.mark.parametrize("kind", ["multi_task", "rcm"])
def test_channels_last_and_autocast(make, images, kind):
    model = make(kind).train().to(memory_format=torch.channels_last)
    kept = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda module, inputs, output: kept.append(
                    output.is_contiguous(memory_format=torch.channels_last) and output.dtype == torch.bfloat16
                )
            )
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(images.contiguous(memory_format=torch.channels_last))
    assert kept
    assert all(kept)
    assert all(output.dtype == torch.float32 for output in outputs.final.values())
    loss(outputs).backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trained)


def test_refusals(make, weights, images):
    model = make("frozen")
    for call in (
        lambda: model(images, ["depth"]),
        lambda: model.remove_task("depth"),
        lambda: model.train_only(["depth"]),
        lambda: list(model.task_parameters("depth")),
    ):
        with pytest.raises(UserError, match="'depth' is not in this model, which has: edges, normals"):
            call()
    with pytest.raises(UserError, match="already"):
        model.add_task("edges", 1)
    for kind in ("multi_task", "rcm"):
        with pytest.raises(UserError, match="cannot be the name"):
            make(kind, {"semantic.segmentation": 3})
    with pytest.raises(UserError, match="response_init=false"):
        build_model(ModelOptions("rcm"), weights("resnet10t"), CHANNELS)
    with pytest.raises(UserError, match="does not know"):
        empty_model(ModelOptions("frozen"), "resnet19", CHANNELS)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "rmc"}, "model.kind=rmc"),
        ({"kind": "rcm", "head": "fcn"}, "model.head=fcn"),
        ({"kind": "rcm", "output_stride": 4}, "output_stride=4"),
        ({"kind": "rcm", "reparameterize": "some"}, "reparameterize=some"),
        ({"kind": "rcm", "rank": 1.5}, "rank=1.5"),
        ({"kind": "rcm", "rank": 0}, "rank=0"),
        ({"kind": "rcm", "rank": 4, "response_init": False}, "response_init=true"),
        ({"kind": "rcm", "head_width": 0}, "head_width=0"),
        ({"kind": "rcm", "rank": math.nan}, "rank=nan"),
    ],
)
def test_options_that_cannot_be(options, said):
    with pytest.raises(UserError, match=said) as error:
        ModelOptions(**options)
    assert "\n" not in str(error.value)
