"""The RCM encoder and what it is compared with: same start, what is trained, what stays, what is counted."""

import pytest
import torch

from polyscene.downstream.backbones import LAYERS, feature_maps
from polyscene.downstream.multitask.rcm.adapters import (
    parallel_adapter_encoder,
    series_adapter_encoder,
    task_specific_encoder,
)
from polyscene.downstream.multitask.rcm.network import adapted_convolutions, empty_rcm_encoder, rcm_encoder
from polyscene.runtime.errors import UserError

EARLY = ("layer1", "layer2")  # keeps eigen-decompositions of wide layers out of the tests


@pytest.fixture
def difference(pretrained_maps, images):
    """Encoder with a task "edge" -> largest difference to the pretrained network, over the chosen stages."""

    @torch.no_grad()
    def measure(encoder, arch):
        expected = pretrained_maps(arch, encoder.layers)
        found = encoder.eval()(images[:2], "edge")
        assert [tuple(a.shape) for a in found] == [tuple(b.shape) for b in expected]
        assert all(float(b.abs().max()) > 1 for b in expected)
        return max(float((a - b).abs().max()) for a, b in zip(found, expected))

    return measure


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
@pytest.mark.parametrize("initialised", [False, True])
@pytest.mark.parametrize("normalized", [False, True])
def test_every_ablation_starts_as_the_pretrained_network(
    weights, plain, moments, difference, arch, initialised, normalized
):
    found = moments(arch, adapted_convolutions(plain(arch), "spatial")) if initialised else None
    encoder = rcm_encoder(weights(arch), found, layers=LAYERS, normalized=normalized)
    encoder.add_task("edge")
    assert encoder.strides == (4, 8, 16, 16)
    assert encoder.channels == ((64, 128, 256, 512) if arch == "resnet18" else (256, 512, 1024, 2048))
    assert difference(encoder, arch) < 1e-4


@pytest.mark.parametrize(("arch", "layers"), [("resnet10t", LAYERS), ("resnet14t", EARLY)])
def test_all_convolutions_reparameterized(weights, plain, moments, difference, arch, layers):
    names = [name for name in adapted_convolutions(plain(arch), "all") if name[:6] not in ("layer3", "layer4")]
    found = moments(arch, None if arch == "resnet10t" else names)
    encoder = rcm_encoder(weights(arch), found, layers=layers, reparameterize="all")
    encoder.add_task("edge")
    assert difference(encoder, arch) < 1e-4
    assert "convolutions" not in encoder.parameter_counts().tasks["edge"]


def make(kind, weights):
    made = {
        "rc": lambda: rcm_encoder(weights),
        "rc_nff": lambda: rcm_encoder(weights, normalized=True),
        "series": lambda: series_adapter_encoder(weights),
        "parallel": lambda: parallel_adapter_encoder(weights),
        "frozen": lambda: task_specific_encoder(weights, convolutions="none", norms=False),
        "norms": lambda: task_specific_encoder(weights, convolutions="none", norms=True),
        "pointwise": lambda: task_specific_encoder(weights, convolutions="pointwise", norms=True),
        "convolutions": lambda: task_specific_encoder(weights, convolutions="all", norms=False),
        "single": lambda: task_specific_encoder(weights, convolutions="all", norms=True),
    }
    return made[kind]()


KINDS = ["rc", "rc_nff", "series", "parallel", "frozen", "norms", "pointwise", "convolutions", "single"]


@pytest.mark.parametrize("kind", KINDS[2:])
def test_adapters_start_as_the_pretrained_network(weights, difference, kind):
    encoder = make(kind, weights("resnet10t"))
    encoder.add_task("edge")
    assert difference(encoder, "resnet10t") < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_training_a_new_task_leaves_everything_else_as_it_was(weights, images, perturb, kind):
    encoder = make(kind, weights("resnet10t"))
    encoder.add_task("edge")
    perturb(encoder, "edge")
    with torch.no_grad():
        old = encoder.eval()(images, "edge")
    before = {key: value.clone() for key, value in encoder.state_dict().items()}

    encoder.add_task("depth", copy_from="edge")
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(encoder(images, "depth"), old))
    # All parameters are handed to the optimiser, with weight decay, and stochastic statistics are on.
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)
    encoder.train()
    for _ in range(2):
        optimizer.zero_grad()
        if kind != "frozen":
            sum(each.square().mean() for each in encoder(images, "depth")).backward()
        optimizer.step()
    after = encoder.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())

    encoder.eval()
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(encoder(images, "edge"), old))
        changed = [not torch.equal(a, b) for a, b in zip(encoder(images, "depth"), old)]
    assert all(changed) == (kind != "frozen")
    untouched = [key for key, value in after.items() if "tasks.depth." in key and _same_as_edge(after, key, value)]
    assert not untouched

    encoder.remove_task("depth")
    assert encoder.tasks == ("edge",)
    assert encoder.state_dict().keys() == before.keys()


def _same_as_edge(state, key, value):
    return torch.equal(value, state[key.replace("tasks.depth.", "tasks.edge.")])


def test_train_only_and_task_parameters(weights):
    encoder = rcm_encoder(weights("resnet10t"))
    encoder.add_task("edge")
    encoder.add_task("depth")
    encoder.train_only(["depth"])
    wanting = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert wanting == {name for name, _ in encoder.named_parameters() if "tasks.depth." in name}
    own = {id(parameter) for parameter in encoder.task_parameters("depth")}
    assert own == {id(parameter) for parameter in encoder.parameters() if parameter.requires_grad}


def test_parameters_of_resnet18_are_those_of_the_paper(weights):
    encoder = rcm_encoder(weights("resnet18"))
    encoder.add_task("edge")
    counts = encoder.parameter_counts()
    layers = [pair for pair in encoder.pairs if hasattr(encoder.body.get_submodule(pair.convolution), "bank")]
    assert len(layers) == 17
    assert counts.bank == 10_994_880
    own = counts.tasks["edge"]
    assert own["modulators"] == 1_396_736
    assert own["convolutions"] == 172_032
    assert own["gains"] == 3_904  # a row norm for each of the 17 layers' channels
    assert own["norms"] == 9_600
    assert counts.other == 0
    # The bank and the copies are the whole pretrained network; nothing is lost or counted twice.
    whole = sum(parameter.numel() for parameter in feature_maps(weights("resnet18")).parameters())
    assert counts.bank + own["convolutions"] + own["norms"] == whole
    assert counts.of_task("edge") == sum(parameter.numel() for parameter in encoder.task_parameters("edge"))


def test_parameters_of_resnet50(weights):
    spatial = rcm_encoder(weights("resnet50"))
    spatial.add_task("edge")
    assert spatial.parameter_counts().tasks["edge"]["modulators"] == 1_261_568
    every = rcm_encoder(weights("resnet50"), reparameterize="all")
    every.add_task("edge")
    shortcuts = 256**2 + 512**2 + 1024**2 + 2048**2
    assert every.parameter_counts().tasks["edge"]["modulators"] - shortcuts == 22_638_592
    assert every.parameter_counts().bank == 23_454_912


@pytest.mark.parametrize(
    ("kind", "bank", "other", "of_task"),
    [
        ("frozen", 11_166_912, 9_600, 0),
        ("norms", 11_166_912, 0, 9_600),
        ("pointwise", 10_994_880, 0, 172_032 + 9_600),
        ("convolutions", 0, 9_600, 11_166_912),
        ("single", 0, 0, 11_166_912 + 9_600),
        # A matrix and a BatchNorm for each of 17 layers; or a matrix of inputs by outputs.
        ("series", 10_994_880, 0, 1_396_736 + 2 * 3_904 + 172_032 + 9_600),
        ("parallel", 10_994_880, 0, 1_220_800 + 172_032 + 9_600),
    ],
)
def test_parameters_of_the_others(weights, kind, bank, other, of_task):
    encoder = make(kind, weights("resnet18"))
    encoder.add_task("edge")
    counts = encoder.parameter_counts()
    assert (counts.bank, counts.other, counts.of_task("edge")) == (bank, other, of_task)
    assert counts.of_task("edge") == sum(parameter.numel() for parameter in encoder.task_parameters("edge"))


def test_a_reduced_rank_saves_parameters(weights, moments):
    encoder = rcm_encoder(weights("resnet18"), moments("resnet18"), rank=0.5)
    encoder.add_task("edge")
    assert encoder.parameter_counts().tasks["edge"]["modulators"] == 1_396_736 // 2
    assert encoder.parameter_counts().bank == 10_994_880 // 2


def test_stages_after_the_last_are_dropped(weights, difference):
    encoder = rcm_encoder(weights("resnet18"), layers=("layer2",))
    encoder.add_task("edge")
    assert not any("layer3" in key or "layer4" in key for key in encoder.state_dict())
    assert difference(encoder, "resnet18") < 1e-4


def test_squeeze_and_excitation_is_shared_and_frozen(weights, difference):
    encoder = task_specific_encoder(weights("seresnet18"), convolutions="none", norms=True)
    encoder.add_task("edge")
    assert difference(encoder, "seresnet18") < 1e-4
    assert not any("se" in name.split(".") for name, p in encoder.named_parameters() if p.requires_grad)
    attention = sum(p.numel() for name, p in encoder.named_parameters() if "se" in name.split("."))
    assert encoder.parameter_counts().other == attention > 0


def test_refusals(weights, moments, images):
    encoder = rcm_encoder(weights("resnet10t"))
    for name in ("semantic segmentation", "a.b", "", "keys"):
        with pytest.raises(UserError, match="cannot be the name"):
            encoder.add_task(name)
    encoder.add_task("edge")
    with pytest.raises(UserError, match="already"):
        encoder.add_task("edge")
    with pytest.raises(UserError, match=r"'depth' is not in this model, which has: edge"):
        encoder(images, "depth")
    with pytest.raises(UserError, match="'depth' is not"):
        encoder.add_task("normals", copy_from="depth")
    with pytest.raises(UserError, match="'depth' is not"):
        encoder.remove_task("depth")
    with pytest.raises(UserError, match="do not fit 'conv1.0'"):
        rcm_encoder(weights("resnet10t"), moments("resnet18"))
    with pytest.raises(ValueError, match="rank needs"):
        rcm_encoder(weights("resnet10t"), rank=0.5)
    with pytest.raises(ValueError, match="reparameterize"):
        rcm_encoder(weights("resnet10t"), reparameterize="some")
    with pytest.raises(ValueError, match="convolutions"):
        task_specific_encoder(weights("resnet10t"), convolutions="some", norms=True)
    with pytest.raises(UserError, match="32 groups"):
        empty_rcm_encoder("resnext50_32x4d")
    with pytest.raises(UserError, match="SelectiveKernel"):
        empty_rcm_encoder("skresnet18")


def test_channels_last_and_autocast(weights, images):
    encoder = rcm_encoder(weights("resnet10t")).train()
    encoder.add_task("edge")
    encoder.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        loss = sum(each.float().mean() for each in encoder(images.to(memory_format=torch.channels_last), "edge"))
    loss.backward()
    gradients = [parameter.grad for parameter in encoder.task_parameters("edge")]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
