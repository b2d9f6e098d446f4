"""Image-level tasks beside the dense ones of networks on four scales (thesis, section 5.4)."""

import pytest
import torch
from torch.nn import functional as F

from polyscene.downstream.multitask.heads.image_level import ImageLevelHead
from polyscene.downstream.multitask.mti_net.build import (
    INTERACTING,
    KINDS,
    MultiScaleOptions,
    empty_multi_scale_model,
)
from polyscene.downstream.multitask.mti_net.views import FrontEndView
from polyscene.runtime.errors import UserError

DENSE = {"segmentation": 5, "depth": 1}
ALL = {"segmentation": 5, "scene": 3, "depth": 1}
AUXILIARY = {"normals": 3}


def with_scene(build, kind, **options):
    return build(kind, channels=ALL, image_level=("scene",), **options)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_one_output_an_image(build, photos, kind):
    model = with_scene(build, kind)
    assert model.tasks == ("segmentation", "scene", "depth")
    assert model.image_level == ("scene",)
    outputs = model(photos)
    assert {task: tuple(x.shape) for task, x in outputs.final.items()} == {
        "segmentation": (2, 5, 64, 96),
        "scene": (2, 3, 1, 1),
        "depth": (2, 1, 64, 96),
    }
    assert outputs.final["scene"].dtype == torch.float32
    assert all("scene" not in level for level in outputs.deep)
    assert model.parameter_counts().of_task("scene") >= 4 * 16 * 3 + 3
    alone = model(photos, ("scene",)).final
    assert list(alone) == ["scene"]
    torch.testing.assert_close(alone["scene"], outputs.final["scene"])


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_it_is_a_linear_decoder_of_the_backbone(build, photos, kind):
    """No front end, distillation or aggregation: the means of the backbone's maps and a matrix."""
    model = with_scene(build, kind)
    head = model.heads.tasks["scene"]
    head.prediction.bias.normal_(generator=torch.Generator().manual_seed(1))
    encoder = model.encoder.tasks["scene"] if kind == "single" else model.encoder
    features = torch.cat([x.flatten(2).mean(2) for x in encoder(photos)], dim=1)
    assert features.shape == (2, 64)  # four maps of 16 channels
    expected = F.linear(features, head.prediction.weight.flatten(1), head.prediction.bias)
    torch.testing.assert_close(model(photos, ("scene",)).final["scene"].flatten(1), expected)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_network_of_the_dense_tasks_stays_the_same(build, photos, kind):
    """Not a parameter more, the same start values, the same outputs bit for bit."""
    auxiliary = AUXILIARY if kind in INTERACTING else None
    plain = build(kind, channels=DENSE, auxiliary=auxiliary)
    more = with_scene(build, kind, auxiliary=auxiliary)
    own = {key: value for key, value in more.state_dict().items() if "tasks.scene." not in key}
    assert own.keys() == plain.state_dict().keys()
    assert all(torch.equal(value, own[key]) for key, value in plain.state_dict().items())
    expected, found = plain(photos), more(photos)
    assert all(torch.equal(found.final[task], value) for task, value in expected.final.items())
    for level, other in zip(expected.deep, found.deep, strict=True):
        assert level.keys() == other.keys()
        assert all(torch.equal(other[task], value) for task, value in level.items())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter(build, photos, kind):
    model = with_scene(build, kind).train()
    for name, parameter in model.named_parameters():
        if "fc1.bias" in name:  # see test_networks.py
            parameter.data.fill_(5)
    outputs = model(photos)
    sum(x.square().mean() for level in (outputs.final, *outputs.deep) for x in level.values()).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


@pytest.mark.parametrize("arch", ["resnet10t", "hrnet_w18_small_v2"])
def test_a_single_task_network_of_the_image_level_is_trained_as_a_whole(build, photos, arch):
    """All maps are pooled: what only the finer ones need would otherwise get no gradient."""
    model = build("single", arch=arch, channels={"scene": 3}, image_level=("scene",)).train()
    model(photos).final["scene"].square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("kind", INTERACTING)
@torch.no_grad()
def test_front_ends_leave_it_out(build, photos, kind):
    view = FrontEndView(with_scene(build, kind, auxiliary=AUXILIARY).eval(), 4)
    assert view.tasks == ("segmentation", "depth", "normals")
    assert list(view(photos).final) == ["segmentation", "depth", "normals"]
    with pytest.raises(UserError, match="'scene' is not in this model"):
        view(photos, ("scene",))


@pytest.mark.parametrize("kind", INTERACTING)
def test_what_cannot_interact_is_refused(build, kind):
    with pytest.raises(UserError, match=r"all main tasks are image-level.*use model.kind=multi_task"):
        build(kind, channels={"scene": 3}, image_level=("scene",))
    with pytest.raises(UserError, match=r"'scene' is image-level, so that no front end predicts it"):
        build(kind, channels=DENSE, auxiliary={"scene": 3}, image_level=("scene",))


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_model_takes_its_state(build, photos, kind):
    model = with_scene(build, kind, seed=3)
    options = MultiScaleOptions(kind, pyramid_width=16, width=16)
    empty = empty_multi_scale_model(options, "resnet10t", ALL, image_level=("scene",))
    empty.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(empty(photos).final["scene"], model(photos).final["scene"])
    assert isinstance(empty.heads.tasks["scene"], ImageLevelHead)
