"""MTI-Net, PAD-Net and the baselines as whole networks."""

import pytest
import torch
from torch.nn import functional as F

from polyscene.downstream.multitask.balancing.fixed import Fixed
from polyscene.downstream.multitask.data.transforms import Batch
from polyscene.downstream.multitask.mti_net.build import (
    KINDS,
    MultiScaleOptions,
    empty_multi_scale_model,
)
from polyscene.downstream.multitask.mti_net.views import FrontEndView
from polyscene.downstream.multitask.step import DenseStep
from polyscene.downstream.multitask.tasks import Target, load_task
from polyscene.runtime.distributed import World
from polyscene.runtime.errors import UserError

MAIN = {"segmentation": 5, "depth": 1}
AUXILIARY = {"normals": 3}
INTERACTING = ("pad_net", "mti_net")


def shapes(model):
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def test_shapes_of_mti_net(build, photos):
    model = build("mti_net", auxiliary=AUXILIARY)
    outputs = model(photos)
    assert {task: tuple(x.shape) for task, x in outputs.final.items()} == {
        "segmentation": (2, 5, 64, 96),
        "depth": (2, 1, 64, 96),
    }
    assert model.deep_strides == (4, 8, 16, 32)
    for stride, level in zip(model.deep_strides, outputs.deep, strict=True):
        assert {task: tuple(x.shape) for task, x in level.items()} == {
            task: (2, number, 64 // stride, 96 // stride) for task, number in (MAIN | AUXILIARY).items()
        }
    assert model.tasks == ("segmentation", "depth")
    assert model.auxiliary == ("normals",)


def test_shapes_of_pad_net_and_of_odd_images(build):
    images = torch.randn(1, 3, 50, 75)
    outputs = build("pad_net", auxiliary=AUXILIARY)(images)
    assert outputs.final["segmentation"].shape == (1, 5, 50, 75)
    assert [set(level) for level in outputs.deep] == [{"segmentation", "depth", "normals"}]
    assert outputs.deep[0]["normals"].shape == (1, 3, 13, 19)
    for kind in ("mti_net", "single"):
        assert build(kind)(images).final["depth"].shape == (1, 1, 50, 75)


@pytest.mark.parametrize("kind", INTERACTING)
@pytest.mark.parametrize("switches", [{}, {"scales": (8, 32)}, {"fpm": False}, {"distillation": "published"}])
def test_gradients_reach_every_parameter(build, photos, kind, switches):
    model = build(kind, auxiliary=AUXILIARY, **switches).train()
    for name, parameter in model.named_parameters():
        if "fc1.bias" in name:  # the gates of this small network have one hidden unit each, which may be off by chance
            parameter.data.fill_(5)
    outputs = model(photos)
    assert all(x.dtype == torch.float32 for level in (outputs.final, *outputs.deep) for x in level.values())
    sum(x.square().mean() for level in (outputs.final, *outputs.deep) for x in level.values()).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


def test_a_training_step_lowers_the_losses_of_all_outputs(build):
    """With the step of every model: auxiliary labels are used though the model has no final output for them."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=generator, dtype=torch.uint8)
    valid = torch.ones(2, 64, 64, dtype=torch.bool)
    specs = {task: load_task(task) for task in ("depth", "normals")}
    world = World(rank=0, size=1, device=torch.device("cpu"))
    targets = {
        "depth": Target(torch.rand(2, 1, 64, 64, generator=generator) + 1, valid),
        "normals": Target(F.normalize(torch.randn(2, 3, 64, 64, generator=generator), dim=1), valid),
    }

    def train():
        model = build("mti_net", channels={"depth": 1}, auxiliary=AUXILIARY)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        step = DenseStep(model, optimizer, specs, Fixed([*specs], {"normals": 10.0}), world, tasks=model.tasks)
        batch = Batch(["first", "second"], images, targets)
        return [step.step(batch, step=number, learning_rate=1e-3) for number in range(4)]

    losses = train()
    assert list(losses[0].tasks) == ["depth", "normals"]
    assert losses[-1].total < losses[0].total
    assert [loss.total.item() for loss in train()] == [loss.total.item() for loss in losses]


def test_hrnet_is_trained_to_the_last_weight(build, photos):
    model = build("mti_net", arch="hrnet_w18_small_v2", scales=(4, 8, 16)).train()
    outputs = model(photos)
    sum(x.square().mean() for level in (outputs.final, *outputs.deep) for x in level.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_without_deep_supervision_the_first_predictions_alone_are_idle(build, photos):
    """So the auxiliary task's features do reach the main tasks."""
    model = build("mti_net", auxiliary=AUXILIARY).train()
    sum(x.square().mean() for x in model(photos).final.values()).backward()
    idle = {name for name, p in model.named_parameters() if p.grad is None}
    assert idle == {name for name, _ in model.named_parameters() if ".front_end.prediction." in name}
    assert model.scales["32"].front_end.refine["normals"][0].conv1.weight.grad.abs().sum() > 0


def test_a_scale_that_is_off_takes_exactly_its_parameters(build):
    every, fewer = shapes(build("mti_net")), shapes(build("mti_net", scales=(4, 8, 16)))
    gone = set(every) - set(fewer)
    expected = {key for key in every if key.startswith(("scales.32.", "encoder.pyramid.layer_blocks.3."))}
    # Nothing comes from 1/32 any more: the block at 1/16 keeps its width, and needs no shortcut.
    expected |= {key for key in every if key.startswith("scales.16.front_end.") and ".0.downsample." in key}
    assert gone == expected
    assert set(fewer) < set(every)
    changed = {key for key in fewer if fewer[key] != every[key]}
    first = {f"scales.16.front_end.refine.{task}.0.conv1.weight" for task in MAIN}
    assert changed == first | {key for key in every if key.startswith("heads.") and every[key] not in ((5,), (1,), ())}
    assert all(fewer[key] == (16, 16, 3, 3) and every[key] == (16, 32, 3, 3) for key in first)


def test_everything_off_is_a_network_of_one_scale(build, photos):
    """Backbone map at 1/4, two blocks, first prediction, equation 5.1, 1x1 - BatchNorm - ReLU - 1x1."""
    model = build("mti_net", scales=(4,))
    assert shapes(model) == shapes(build("mti_net", scales=(4,), fpm=False))
    assert {key.split(".")[2] for key in shapes(model) if key.startswith("scales.")} == {"front_end", "distillation"}
    scale = model.scales["4"]
    with torch.no_grad():
        (image_map,) = model.encoder(photos)
        features = {task: scale.front_end.refine[task](image_map) for task in MAIN}
        outputs = model(photos)
        for task, other in (("segmentation", "depth"), ("depth", "segmentation")):
            attention = scale.distillation.tasks[task][other]
            mask = torch.sigmoid(attention.mask(features[other]))
            distilled = features[task] + mask * attention.transform(features[other])
            head = model.heads.tasks[task]
            low = head.prediction(head.fuse.join.norm(head.fuse.join.convolution(distilled)).relu())
            expected = F.interpolate(low, (64, 96), mode="bilinear")
            assert torch.allclose(outputs.final[task], expected, atol=1e-6)
            assert torch.allclose(outputs.deep[0][task], scale.front_end.prediction[task](features[task]), atol=1e-6)


@torch.no_grad()
def test_propagation_goes_from_coarse_to_fine(build, photos):
    with_fpm, without = build("mti_net"), build("mti_net", fpm=False)
    assert not any("propagation" in key for key in shapes(without))
    assert with_fpm.scales["4"].propagation is None

    def moved(model):
        before = model(photos).deep
        model.scales["16"].front_end.refine["depth"][1].conv2.weight.add_(0.1)
        after = model(photos).deep
        return [not torch.equal(a["segmentation"], b["segmentation"]) for a, b in zip(before, after)]

    assert moved(with_fpm) == [True, True, False, False]
    assert moved(without) == [False, False, False, False]


def test_auxiliary_tasks_are_in_deep_alone_and_leave_other_initial_values(build, photos):
    plain, more = build("mti_net"), build("mti_net", auxiliary=AUXILIARY)
    assert set(more(photos).final) == set(MAIN)
    assert all(set(level) == {*MAIN, *AUXILIARY} for level in more(photos).deep)
    assert not any("normals" in key for key in more.heads.state_dict())
    first, second = plain.state_dict(), more.state_dict()
    equal = [key for key in first if first[key].shape == second[key].shape]
    assert all(torch.equal(first[key], second[key]) for key in equal)
    assert any(key.startswith("scales.4.front_end.refine.depth") for key in equal)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_task_asked_for_alone_is_the_same(build, photos, kind):
    model = build(kind)
    alone = model(photos, ["depth"])
    assert list(alone.final) == ["depth"]
    assert torch.allclose(alone.final["depth"], model(photos).final["depth"], atol=1e-6)
    with pytest.raises(UserError, match="'edges' is not in this model"):
        model(photos, ["edges"])


@torch.no_grad()
def test_front_end_view_is_the_deep_output_at_its_scale(build, photos):
    model = build("mti_net", auxiliary=AUXILIARY)
    deep = model(photos).deep
    for level, stride in enumerate(model.deep_strides):
        outputs = FrontEndView(model, stride)(photos, ["depth", "normals"])
        assert list(outputs.final) == ["depth", "normals"]
        assert outputs.deep == ()
        expected = F.interpolate(deep[level]["normals"], (64, 96), mode="bilinear")
        assert torch.allclose(outputs.final["normals"], expected, atol=1e-6)
    with pytest.raises(UserError, match="no front end at 1/2; choose 1/4, 1/8, 1/16, 1/32"):
        FrontEndView(model, 2)
    with pytest.raises(UserError, match="'edges' is not"):
        FrontEndView(model, 4)(photos, ["edges"])


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_counted_once(build, kind):
    model = build(kind, auxiliary=AUXILIARY if kind in INTERACTING else None)
    counts = model.parameter_counts()
    assert counts.total == sum(parameter.numel() for parameter in model.parameters())
    for task in MAIN:
        own = sum(parameter.numel() for parameter in model.task_parameters(task))
        assert own >= counts.tasks[task]["head"] > 0
        if kind != "multi_task":
            assert own == counts.of_task(task)


def test_a_tasks_own_parts_are_those_its_output_alone_uses(build, photos):
    model = build("mti_net", auxiliary=AUXILIARY).train()
    outputs = model(photos)
    rest = [outputs.final["segmentation"], *(x for level in outputs.deep for x in level.values())]
    sum(x.square().mean() for x in rest).backward()
    idle = {id(parameter) for parameter in model.parameters() if parameter.grad is None}
    assert idle == {id(parameter) for parameter in model.task_parameters("depth")}


def test_single_task_networks_share_nothing(build, photos):
    model = build("single")
    with torch.no_grad():
        alone = build("multi_task", channels={"depth": 1})(photos).final["depth"]
        assert torch.allclose(model(photos).final["depth"], alone, atol=1e-6)
    model.train()(photos).final["depth"].square().mean().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert reached == {name for name, _ in model.named_parameters() if ".depth." in name}
    model.remove_task("depth")
    assert model.tasks == ("segmentation",)
    assert not any("depth" in key for key in model.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_model_has_the_same_shapes(build, kind):
    options = MultiScaleOptions(kind, pyramid_width=16, width=16, scales=[4, 16])
    model = build(kind, scales=(4, 16))
    assert shapes(empty_multi_scale_model(options, "resnet10t", MAIN)) == shapes(model)
    assert not model.training


def test_seeds_decide(build):
    first, again, other = (build("mti_net", seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    for key in first:
        if key.endswith(("conv1.weight", "prediction.weight", "mask.weight")) and not key.startswith("encoder.body."):
            assert not torch.equal(first[key], other[key])


@torch.no_grad()
def test_reduced_precision_and_memory_format(build, photos):
    model = build("mti_net", auxiliary=AUXILIARY)
    exact = model(photos)
    last = model.to(memory_format=torch.channels_last)(photos.contiguous(memory_format=torch.channels_last))
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(photos)
    for task in MAIN:
        assert torch.allclose(exact.final[task], last.final[task], atol=1e-5)
        assert rough.final[task].dtype == torch.float32
        error = (rough.final[task] - exact.final[task]).norm() / exact.final[task].norm()
        assert 0 < error < 0.1


def test_wrong_options_are_refused(build):
    named = {"fpm_softmax": "mti_net.fpm_softmax", "distillation": "pad_net.distillation", "width": "pad_net.width"}
    for key, value in (("fpm_softmax", "x"), ("distillation", "x"), ("head", "x"), ("scales", (8, 4)), ("width", 6)):
        with pytest.raises(UserError, match=f"model.{named.get(key, key)}="):
            build("mti_net", **{key: value})
    with pytest.raises(UserError, match="model.kind=x"):
        build("x")
    with pytest.raises(UserError, match="has no auxiliary tasks"):
        build("multi_task", auxiliary=AUXILIARY)
    with pytest.raises(UserError, match="already in this model"):
        build("mti_net", auxiliary={"depth": 1})
    with pytest.raises(UserError, match="no main task"):
        build("mti_net", channels={}, auxiliary=AUXILIARY)
    with pytest.raises(UserError, match="cannot be removed"):
        build("pad_net").remove_task("depth")


def test_fpn_baselines_may_have_the_semantic_head(build, photos):
    model = build("multi_task", head="semantic_fpn")
    assert model(photos).final["segmentation"].shape == (2, 5, 64, 96)
    assert not any("fuse" in key for key in model.state_dict())
