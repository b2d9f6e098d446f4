import numpy as np
import pytest
from torchvision.transforms import AutoAugment, AutoAugmentPolicy

from polyscene.ssl.views.autoaugment import IMAGENET_POLICY, magnitude, sample_policy
from polyscene.ssl.views.colour import OPERATIONS

THEIR_NAMES = {
    "Posterize": "posterize",
    "Rotate": "rotate",
    "Solarize": "solarize",
    "AutoContrast": "autocontrast",
    "Equalize": "equalize",
    "Invert": "invert",
    "Color": "saturation",
    "Contrast": "contrast",
    "Sharpness": "sharpness",
    "ShearX": "shear_x",
}
THEIRS = AutoAugment(AutoAugmentPolicy.IMAGENET)


def test_the_policy_equals_torchvisions():
    theirs = THEIRS._get_policies(AutoAugmentPolicy.IMAGENET)
    expected = tuple(tuple((THEIR_NAMES[name], p, level or 0) for name, p, level in pair) for pair in theirs)
    assert expected == IMAGENET_POLICY
    assert {name for pair in IMAGENET_POLICY for name, _, _ in pair} <= set(OPERATIONS)


@pytest.mark.parametrize("name", sorted(THEIR_NAMES))
def test_magnitudes_equal_torchvisions(name):
    magnitudes, signed = THEIRS._augmentation_space(10, (96, 96))[name]
    factor = name in ("Color", "Contrast", "Sharpness")
    for level in range(10):
        theirs = float(magnitudes[level]) if magnitudes.ndim else 0.0
        for positive in (False, True):
            value = -theirs if signed and not positive else theirs
            expected = 1 + value if factor else value
            assert magnitude(THEIR_NAMES[name], level, positive) == pytest.approx(expected, abs=1e-4)


def test_magnitudes_follow_the_sub_policy_and_the_sign():
    policy, applied, magnitudes = sample_policy(np.random.default_rng(0).random((5000, 5)))
    assert policy.max() == 24
    seen = {(p, i): set() for p in range(25) for i in range(2)}
    for p, values in zip(policy, magnitudes):
        for i in range(2):
            seen[p, i].add(float(values[i]))
    for (p, i), values in seen.items():
        name, _, level = IMAGENET_POLICY[p][i]
        assert values == {float(np.float32(magnitude(name, level, s))) for s in (False, True)}
    assert applied.shape == (5000, 2)


def test_certain_and_impossible_operations():
    numbers = np.full((1, 5), 0.0)
    numbers[0, 0] = 12.5 / 25  # equalize with probability 0, equalize with 0.8
    assert sample_policy(numbers)[1].tolist() == [[False, True]]
    numbers[0, :3] = [13.5 / 25, np.nextafter(1, 0), np.nextafter(1, 0)]  # invert 0.6, equalize 1.0
    assert sample_policy(numbers)[1].tolist() == [[False, True]]
