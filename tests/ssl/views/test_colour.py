"""Every operation against PIL and against torchvision's 8-bit tensors, on pictures and on random numbers."""

import colorsys
import math
from itertools import product

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tv
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import _apply_op

from polyscene.ssl.views import colour

THEIRS = {
    "brightness": tv.adjust_brightness,
    "contrast": tv.adjust_contrast,
    "saturation": tv.adjust_saturation,
    "hue": tv.adjust_hue,
    "grey": lambda image, amount: tv.rgb_to_grayscale(image, 3),
    "posterize": lambda image, amount: tv.posterize(image, int(amount)),
    "solarize": tv.solarize,
    "invert": lambda image, amount: tv.invert(image),
    "autocontrast": lambda image, amount: tv.autocontrast(image),
    "equalize": lambda image, amount: tv.equalize(image),
    "sharpness": tv.adjust_sharpness,
    "rotate": lambda image, amount: tv.rotate(image, amount),
    "shear_x": lambda image, amount: _apply_op(image, "ShearX", amount, InterpolationMode.NEAREST, None),
}
AMOUNTS = {
    "brightness": [0.6, 1.0, 1.37],
    "contrast": [0.2, 0.6, 1.0, 1.4, 1.8],
    "saturation": [0.2, 0.6, 1.0, 1.4, 1.8],
    "hue": [-0.1, -0.03, 0.0, 0.07, 0.1],
    "posterize": [4, 5, 6, 8],
    "solarize": [0, 28.33, 56.67, 113.33, 141.67, 255],
    "sharpness": [0.3, 1.0, 1.7],
    "rotate": [-30, -26.667, -10, 10, 26.667, 30],
    "shear_x": [-1 / 6, 1 / 6],
}
CASES = [(name, amount) for name in THEIRS for amount in AMOUNTS.get(name, [0.0])]
EXACT = set(THEIRS) - {"hue", "autocontrast", "rotate", "shear_x"}


def to_pil(image):
    return Image.fromarray(image.permute(1, 2, 0).to(torch.uint8).numpy())


def from_pil(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def run(name, images, amount):
    return colour.apply(name, images, torch.full((len(images),), float(amount)), float(amount))


@pytest.fixture(scope="module", params=["pictures", "noise"])
def images(request, photos):
    if request.param == "pictures":
        return photos
    return torch.randint(0, 256, (3, 3, 33, 47), generator=torch.Generator().manual_seed(0)).float()


@pytest.mark.parametrize(("name", "amount"), CASES)
def test_operation_equals_pils(name, amount, images):
    if name == "hue":
        amount = int(amount * 255) / 255  # PIL turns by whole steps of its 8-bit hue
    before = images.clone()
    ours = run(name, images, amount)
    assert torch.equal(images, before)
    theirs = torch.stack([from_pil(THEIRS[name](to_pil(image), amount)) for image in images])
    if name in EXACT:
        assert torch.equal(ours, theirs)
    else:
        assert (ours - theirs).abs().mean() <= 1
    if name in ("rotate", "shear_x"):
        assert (ours != theirs).float().mean() < 0.005


@pytest.mark.parametrize(("name", "amount"), CASES)
def test_operation_agrees_with_torchvisions_tensors(name, amount, images):
    theirs = torch.stack([THEIRS[name](image, amount) for image in images.to(torch.uint8)]).float()
    ours = run(name, images, amount)
    if name in ("rotate", "shear_x"):
        # On images of odd size rotated by 30 degrees whole lines of sources lie on a pixel boundary.
        assert (ours != theirs).float().mean() < 0.02
    else:
        assert (ours - theirs).abs().mean() <= 1


@pytest.mark.parametrize(("name", "amount"), [*CASES, ("blur", 0.1), ("blur", 2.0)])
def test_results_are_whole_numbers_of_8_bits(name, amount, images):
    result = run(name, images, amount)
    assert result.shape == images.shape
    assert torch.equal(result, result.round())
    assert result.min() >= 0
    assert result.max() <= 255


@pytest.mark.parametrize("name", colour.OPERATIONS)
def test_each_image_gets_its_own_amount(name, photos):
    amounts = torch.tensor({"blur": [0.1, 0.5, 1, 1.5, 2]}.get(name, (AMOUNTS.get(name, [0.0]) * 5)[:5]))
    together = colour.apply(name, photos, amounts, amounts.max().item())
    for i in range(len(photos)):
        alone = colour.apply(name, photos[i : i + 1], amounts[i : i + 1], amounts[i].item())
        assert torch.equal(together[i], alone[0])


@pytest.mark.parametrize("name", colour.OPERATIONS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 3)])
def test_tiny_images_are_no_special_case(name, shape):
    images = torch.randint(0, 256, (2, 3, *shape), generator=torch.Generator().manual_seed(1)).float()
    amount = {"blur": 1.5}.get(name, AMOUNTS.get(name, [0.0])[0])
    result = run(name, images, amount)
    assert result.shape == images.shape
    assert torch.isfinite(result).all()
    if name in EXACT:
        theirs = torch.stack([from_pil(THEIRS[name](to_pil(image), amount)) for image in images])
        assert torch.equal(result, theirs)


@pytest.mark.parametrize("name", ["equalize", "autocontrast", "contrast", "hue"])
@pytest.mark.parametrize("value", [0, 17, 255])
def test_uniform_images_stay(name, value):
    images = torch.full((1, 3, 9, 9), float(value))
    assert torch.equal(run(name, images, 0.05 if name == "hue" else 1.3), images)


@given(st.integers(0, 2**31), st.integers(1, 300))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_equalize_equals_pils_for_any_histogram(seed, spread):
    generator = np.random.default_rng(seed)
    pixels = (generator.normal(generator.integers(0, 256), spread / 4, (1, 3, 41, 29))).clip(0, 255).round()
    images = torch.from_numpy(pixels).float()
    assert torch.equal(run("equalize", images, 0)[0], from_pil(tv.equalize(to_pil(images[0]))))


def gaussian_reference(image: np.ndarray, sigma: float) -> np.ndarray:
    """A direct sum over shifted pixels in float64, borders repeated, cut at ceil(3 sigma)."""
    radius = math.ceil(3 * sigma)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights /= weights.sum()
    for axis in (1, 2):
        index = np.arange(image.shape[axis])
        image = sum(
            weight * image.take((index + shift).clip(0, image.shape[axis] - 1), axis=axis)
            for weight, shift in zip(weights, range(-radius, radius + 1))
        )
    return image


@pytest.mark.parametrize("shape", [(30, 25), (4, 50), (1, 1)])
@pytest.mark.parametrize("sigma", [0.1, 0.34, 1.0, 2.0, 3.5])
def test_blur_is_a_gaussian_in_both_forms(shape, sigma):
    images = torch.randint(0, 256, (2, 3, *shape), generator=torch.Generator().manual_seed(2)).float()
    expected = np.stack([gaussian_reference(image.double().numpy(), sigma) for image in images])
    taps = colour.blur_taps(torch.full((2, 1, 1, 1), sigma), colour.blur_radius(sigma) + 2)
    for blurred in (colour._blur_by_shifts(images, taps), colour._blur_by_bands(images, taps)):
        assert np.abs(blurred.numpy() - expected).max() < 1e-3
    assert np.abs(run("blur", images, sigma).numpy() - expected).max() < 0.501


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
def test_blur_is_close_to_pils(sigma, photos):
    theirs = torch.stack([from_pil(to_pil(image).filter(ImageFilter.GaussianBlur(sigma))) for image in photos])
    assert (run("blur", photos, sigma) - theirs).abs().mean() <= 1


def test_hue_turns_a_full_circle(photos):
    third = run("hue", torch.tensor([200.0, 10.0, 10.0]).view(1, 3, 1, 1), 1 / 3)
    assert third.ravel().tolist() == [10, 200, 10]
    assert torch.equal(run("hue", photos, 1.0), photos)


@pytest.mark.parametrize("shift", [-0.5, -0.3, -1 / 6, -0.1, -0.013, 0.0, 0.05, 0.1, 1 / 6, 0.2, 1 / 3, 0.49])
def test_hue_equals_the_textbooks_hsv(shift):
    generator = np.random.default_rng(3)
    # Random colours, and all ways in which channels can be equal, black or white.
    colours = np.concatenate(
        [generator.integers(0, 256, (200, 3)), *([list(c)] for c in product((0, 90, 255), repeat=3))]
    )
    hsv = [colorsys.rgb_to_hsv(*(colour / 255)) for colour in colours]
    expected = 255 * np.array([colorsys.hsv_to_rgb((h + shift) % 1, s, v) for h, s, v in hsv])
    images = torch.from_numpy(colours.T.copy()).float().view(1, 3, 1, -1)
    assert np.abs(run("hue", images, shift)[0, :, 0].T.numpy() - expected).max() < 0.501


def test_hues_of_a_batch_may_turn_any_way(photos):
    amounts = torch.tensor([0.3, -0.45, 0.02, 0.9, -0.1])
    together = colour.apply("hue", photos, amounts, 0.9)
    for i, amount in enumerate(amounts.tolist()):
        assert (together[i] - run("hue", photos[i : i + 1], amount)[0]).abs().max() <= 1


@pytest.mark.parametrize("side", [256, 257])  # sums of a white image below and above 2^24
def test_mean_grey_of_large_images_is_exact(side):
    images = torch.full((1, 3, side, side), 255.0)
    images[..., ::2] = 254
    assert torch.equal(run("contrast", images, 0.5)[0], from_pil(tv.adjust_contrast(to_pil(images[0]), 0.5)))


def test_unknown_operations_are_refused(photos):
    with pytest.raises(ValueError, match="unknown operation 'sepia'"):
        run("sepia", photos, 1)
