import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from polyscene.downstream.multitask.data.nyud import tasks as nyud_tasks
from polyscene.downstream.multitask.data.pascal_context import tasks as pascal_tasks
from polyscene.downstream.multitask.data.records import Sample
from polyscene.downstream.multitask.data.transforms import (
    Augmentation,
    Draw,
    apply,
    augment,
    collate,
    draw,
    mti_net_nyud_augmentation,
    mti_net_pascal_augmentation,
    pad_image,
    rcm_augmentation,
    stretch_image,
)
from polyscene.downstream.multitask.data.warp import FILL
from polyscene.downstream.multitask.tasks import Target
from polyscene.runtime.errors import UserError

H, W = 12, 16
SPECS = {**pascal_tasks(), **nyud_tasks()}
STILL = Draw(scale=1.0, degrees=0.0, flip=False, left=0.0, top=0.0)


def make_sample(seed=0, height=H, width=W):
    """Random targets of every task, each with holes that hold nonsense."""
    g = torch.Generator().manual_seed(seed)
    valid = torch.rand(height, width, generator=g) > 0.1
    normals = F.normalize(
        torch.randn(3, height, width, generator=g) * 0.3 + torch.tensor([0, -1, 0.5])[:, None, None], dim=0
    )
    depth = 1 + torch.rand(1, height, width, generator=g) * 4
    targets = {
        "segmentation": Target(torch.randint(0, 40, (height, width), generator=g), valid),
        "parts": Target(torch.randint(0, 7, (height, width), generator=g), valid),
        "saliency": Target((torch.rand(1, height, width, generator=g) > 0.5).float(), valid),
        "edges": Target((torch.rand(1, height, width, generator=g) > 0.8).float(), valid),
        "normals": Target(torch.where(valid, normals, torch.nan), valid),
        "depth": Target(torch.where(valid, depth, torch.inf), valid),
    }
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=g)
    return Sample("a", image, targets)


def crop(size=(H, W), **options):
    return Augmentation(size, "crop", **options)


# ---- parameters


def test_parameters_depend_on_seed_epoch_and_index_only():
    recipe = mti_net_pascal_augmentation()
    first = draw(recipe, 3, 5, 7)
    draw(recipe, 0, 0, 0)
    np.random.seed(1)  # noqa: NPY002 - a global generator must not matter
    assert draw(recipe, 3, 5, 7) == first
    others = [draw(recipe, *key) for key in ((4, 5, 7), (3, 6, 7), (3, 5, 8), (5, 3, 7), (-3, 5, 7))]
    assert len({first, *others}) == 6


def test_samples_do_not_depend_on_what_was_read_before():
    sample, recipe = make_sample(), rcm_augmentation((10, 10))
    runs = [augment(sample, SPECS, recipe, seed=1, epoch=e, index=i) for e, i in ((0, 4), (1, 4), (0, 4))]
    assert torch.equal(runs[0].image, runs[2].image)
    assert not torch.equal(runs[0].image, runs[1].image)
    for name in runs[0].targets:
        for one, other in zip(runs[0].targets[name], runs[2].targets[name]):
            assert torch.equal(one, other)


def test_parameters_have_the_published_distributions():
    drawn = [draw(rcm_augmentation((512, 512)), 0, e, i) for e in range(4) for i in range(700)]
    scales, counts = np.unique([d.scale for d in drawn], return_counts=True)
    assert scales.tolist() == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]
    assert counts.min() > 330  # 400 each on average, deviation 18.5
    assert {d.degrees for d in drawn} == {0.0}
    assert abs(np.mean([d.flip for d in drawn]) - 0.5) < 0.04
    drawn = [draw(mti_net_pascal_augmentation(), 0, 0, i) for i in range(2000)]
    for values, low, high in (([d.scale for d in drawn], 0.75, 1.25), ([d.degrees for d in drawn], -20, 20)):
        assert low <= min(values) < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < max(values) <= high
        assert abs(np.mean(values) - (low + high) / 2) < 0.02 * (high - low)
    assert {draw(mti_net_nyud_augmentation(), 0, 0, i).scale for i in range(50)} == {1.0, 1.2, 1.5}


# ---- pixels


def assert_same(found, expected, tolerance=1e-4):
    assert torch.equal(found.valid, expected.valid)
    mask = found.valid.expand_as(found.values)
    assert torch.allclose(found.values[mask].double(), expected.values[mask].double(), atol=tolerance)


def test_nothing_drawn_changes_nothing():
    sample = make_sample()
    for recipe in (crop(), Augmentation((H, W), "stretch")):
        result = apply(sample, SPECS, recipe, STILL)
        assert torch.equal(result.image, sample.image)
        for name, target in sample.targets.items():
            assert_same(result.targets[name], target)
            assert torch.isfinite(result.targets[name].values).all()
            assert (result.targets[name].values.masked_select(~target.valid.expand_as(target.values)) == 0).all()


@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_a_flip_mirrors_everything_and_the_normals_sign(fit):
    sample = make_sample()
    result = apply(sample, SPECS, Augmentation((H, W), fit), STILL._replace(flip=True))
    assert torch.equal(result.image, sample.image.flip(-1))
    for name, (values, valid) in sample.targets.items():
        mirrored = values.flip(-1)
        if name == "normals":
            mirrored = mirrored * torch.tensor([-1.0, 1.0, 1.0])[:, None, None]
        assert_same(result.targets[name], Target(mirrored, valid.flip(-1)))


def test_a_quarter_turn_turns_everything_counter_clockwise():
    sample = make_sample(height=H, width=H)
    result = apply(sample, SPECS, crop((H, H)), STILL._replace(degrees=90.0))
    assert torch.equal(result.image, torch.rot90(sample.image, 1, (-2, -1)))
    for name, (values, valid) in sample.targets.items():
        turned = torch.rot90(values, 1, (-2, -1))
        if name == "normals":  # right becomes up, up becomes left; forward stays
            turned = torch.stack([-turned[2], turned[1], turned[0]])
        assert_same(result.targets[name], Target(turned, torch.rot90(valid, 1, (-2, -1))))


def test_crops_and_padding_are_windows_of_the_image():
    sample = make_sample()
    cut = apply(sample, SPECS, crop((5, 9)), STILL._replace(left=0.5, top=0.99))
    left, top = math.floor(0.5 * (W - 9 + 1)), H - 5
    assert torch.equal(cut.image, sample.image[:, top:, left : left + 9])
    values, valid = sample.targets["segmentation"]
    window = np.s_[top:, left : left + 9]
    assert_same(cut.targets["segmentation"], Target(values[window], valid[window]))

    padded = apply(sample, SPECS, crop((H + 3, W + 4)), STILL._replace(left=0.99, top=0.0))
    assert torch.equal(padded.image[:, :H, 4:], sample.image)
    assert (padded.image[:, H:] == torch.tensor(FILL, dtype=torch.uint8).view(3, 1, 1)).all()
    for name, (_, valid) in sample.targets.items():
        found = padded.targets[name]
        assert torch.equal(found.valid[:H, 4:], valid), name
        assert not found.valid[H:].any()
        assert not found.valid[:, :4].any()


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.5])
def test_a_flip_mirrors_the_window_not_its_place(scale):
    sample, recipe = make_sample(), crop((7, 9))
    drawn = Draw(scale, 8.0, False, 0.2, 0.8)
    plain, mirrored = apply(sample, SPECS, recipe, drawn), apply(sample, SPECS, recipe, drawn._replace(flip=True))
    assert (mirrored.image.int() - plain.image.flip(-1).int()).abs().max() <= 1  # rounding of halves
    for name in ("segmentation", "depth", "edges"):
        values, valid = plain.targets[name]
        assert_same(mirrored.targets[name], Target(values.flip(-1), valid.flip(-1)))


def test_every_window_is_possible_and_none_leaves_the_image():
    drawn = [draw(crop((4, 6)), 0, 0, i) for i in range(400)]
    full = torch.arange(H * W).reshape(H, W)
    sample = Sample("a", make_sample().image, {"segmentation": Target(full, torch.ones(H, W, dtype=torch.bool))})
    corners = set()
    for one in drawn:
        values, valid = apply(sample, SPECS, crop((4, 6)), one._replace(flip=False)).targets["segmentation"]
        assert valid.all()
        corners.add(int(values[0, 0]))
    assert {corner // W for corner in corners} == set(range(H - 4 + 1))
    assert {corner % W for corner in corners} == set(range(W - 6 + 1))


def test_halving_keeps_every_other_label_and_divides_depth():
    sample = make_sample()
    result = apply(sample, SPECS, crop((H // 2, W // 2)), STILL._replace(scale=0.5))
    values, valid = sample.targets["segmentation"]
    assert_same(result.targets["segmentation"], Target(values[::2, ::2], valid[::2, ::2]))
    metres, known = sample.targets["depth"]
    whole = F.max_pool2d((~known).float()[None, None], 2)[0, 0] == 0  # no hole among the four
    mean = F.avg_pool2d(torch.where(known, metres, 0)[None], 2)[0]
    assert_same(result.targets["depth"], Target(mean / 0.5, whole))
    expected = F.avg_pool2d(sample.image[None].float(), 2)[0]
    assert (result.image.float() - expected).abs().max() <= 0.51


def test_doubling_agrees_with_interpolate():
    sample = make_sample()
    sample = Sample(
        "a",
        sample.image,
        {"depth": Target(sample.targets["depth"].values.nan_to_num(posinf=2.0), torch.ones(H, W, dtype=torch.bool))},
    )
    result = apply(sample, SPECS, crop((2 * H, 2 * W)), STILL._replace(scale=2.0))
    image = F.interpolate(sample.image[None].float(), scale_factor=2, mode="bilinear", align_corners=False)[0]
    assert (result.image.float() - image).abs().max() <= 0.51
    depth = F.interpolate(sample.targets["depth"].values[None], scale_factor=2, mode="bilinear", align_corners=False)[0]
    assert_same(result.targets["depth"], Target(depth / 2, torch.ones(2 * H, 2 * W, dtype=torch.bool)), 1e-4)


def test_zooming_into_the_centre_keeps_the_centre_and_the_size():
    y, x = torch.meshgrid(torch.arange(H) + 0.5, torch.arange(W) + 0.5, indexing="ij")
    metres = (2 + 0.1 * x + 0.01 * y)[None]
    sample = Sample("a", make_sample().image, {"depth": Target(metres, torch.ones(H, W, dtype=torch.bool))})
    values, valid = apply(sample, SPECS, Augmentation((H, W), "stretch"), STILL._replace(scale=1.5)).targets["depth"]
    expected = (2 + 0.1 * (W / 2 + (x - W / 2) / 1.5) + 0.01 * (H / 2 + (y - H / 2) / 1.5)) / 1.5
    assert valid.all()
    assert torch.allclose(values[0], expected, atol=1e-5)
    _, valid = apply(sample, SPECS, Augmentation((H, W), "stretch"), STILL._replace(scale=0.5)).targets["depth"]
    assert valid[3:-3, 4:-4].all()
    assert valid.sum() == (H // 2) * (W // 2)


def test_turned_normals_stay_those_of_the_same_surface():
    # A sphere looks the same from all sides: its picture, turned about the centre, is itself.
    side = 41
    y, x = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    valid = x**2 + y**2 < 0.8
    vectors = torch.stack([x, -(1 - x**2 - y**2).clamp(min=0).sqrt(), -y])  # right, forward, up
    image = torch.zeros(3, side, side, dtype=torch.uint8)
    sample = Sample("a", image, {"normals": Target(torch.where(valid, vectors, 0), valid)})
    for degrees in (17.0, -130.0):
        for flip in (False, True):
            drawn = STILL._replace(degrees=degrees, flip=flip)
            found, known = apply(sample, SPECS, crop((side, side)), drawn).targets["normals"]
            assert known.sum() > 0.8 * valid.sum()
            assert (found - vectors)[:, known].abs().max() < 0.02
            assert torch.allclose(found[:, known].norm(dim=0), torch.ones(int(known.sum())), atol=1e-5)


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.25, 2.0])
@pytest.mark.parametrize("degrees", [0.0, 11.0])
def test_invalid_pixels_never_contaminate(scale, degrees):
    sample = make_sample(3)
    recipe, drawn = crop((H, W)), Draw(scale, degrees, True, 0.3, 0.6)
    base = apply(sample, SPECS, recipe, drawn)
    other = Sample("a", sample.image, {})
    for name, (values, valid) in sample.targets.items():
        nonsense = torch.where(valid, values.nan_to_num(posinf=0.0), 1234)
        other.targets[name] = Target(nonsense, valid)
    again = apply(other, SPECS, recipe, drawn)
    for name, (values, valid) in base.targets.items():
        assert torch.equal(again.targets[name].valid, valid)
        assert torch.equal(again.targets[name].values, values), name
        assert valid.any()
        assert torch.isfinite(values).all()
    metres, valid = base.targets["depth"]
    assert metres[0, valid].min() >= 1 / scale - 1e-3
    assert metres[0, valid].max() <= 5 / scale + 1e-3
    assert set(base.targets["segmentation"].values.unique().tolist()) <= {
        0,
        *sample.targets["segmentation"].values.unique().tolist(),
    }


def test_targets_and_image_move_together():
    # The image shows the class numbers; wherever it is not interpolated, both must still agree.
    labels = torch.arange(H).repeat_interleave(W).reshape(H, W) // 4 + 3 * (torch.arange(W) // 4)
    image = (labels * 20).to(torch.uint8).repeat(3, 1, 1)
    sample = Sample("a", image, {"segmentation": Target(labels, torch.ones(H, W, dtype=torch.bool))})
    for index in range(20):
        for recipe in (rcm_augmentation((H, W)), mti_net_pascal_augmentation((H, W))):
            result = augment(sample, SPECS, recipe, seed=0, epoch=0, index=index)
            values, valid = result.targets["segmentation"]
            off = (result.image[0].float() - values * 20).abs()
            assert (off[valid] < 35).float().mean() > 0.95
            assert (off[valid] == 0).float().mean() > 0.25
            assert (result.image[:, ~valid] == torch.tensor(FILL, dtype=torch.uint8)[:, None]).all()


# ---- evaluation and batches


def test_evaluation_pads_only():
    image = make_sample().image
    padded = pad_image(image, (20, 16))
    assert padded.shape == (3, 20, 16)
    assert torch.equal(padded[:, :H, :W], image)
    assert (padded[:, H:].permute(1, 2, 0) == torch.tensor(FILL, dtype=torch.uint8)).all()
    assert pad_image(image, (4, 4)).shape == (3, H, W)  # nothing is ever cut
    assert pad_image(image, multiple=16).shape == (3, 16, 16)
    assert pad_image(image, (20, 20), multiple=8).shape == (3, 24, 24)
    assert torch.equal(stretch_image(image, (H, W)), image)


def test_batches():
    recipe = rcm_augmentation((10, 10))
    samples = [augment(make_sample(i), SPECS, recipe, seed=0, epoch=0, index=i) for i in range(3)]
    batch = collate(samples)
    assert batch.names == ["a"] * 3
    assert batch.images.shape == (3, 3, 10, 10)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    for name, (values, valid) in batch.targets.items():
        assert valid.shape == (3, 10, 10)
        assert torch.equal(values[1], samples[1].targets[name].values)
        output = torch.zeros(3, SPECS[name].channels, 10, 10)
        assert torch.isfinite(SPECS[name].loss(output, values, valid))
    moved = batch.to("cpu")
    assert isinstance(moved.targets["depth"], Target)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fit": "cover"}, "fit='cover'"),
        ({"size": (0, 5)}, r"size=\[0, 5\]"),
        ({"scales": (0.5, 0.0)}, "factors above 0"),
        ({"flip": 1.5}, "flip=1.5"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Augmentation(**{"size": (8, 8), **options})
