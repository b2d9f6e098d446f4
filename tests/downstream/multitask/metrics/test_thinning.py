"""Thinning against scikit-image."""

import numpy as np
import pytest
from scipy import ndimage
from skimage import morphology

from polyscene.downstream.multitask.metrics.thinning import thin


@pytest.mark.parametrize("smooth", [0, 0.7, 1.5, 3])
def test_as_scikit_image(smooth):
    generator = np.random.default_rng(0)
    for level in (-0.2, 0, 0.1):
        for shape in ((1, 1), (1, 9), (40, 57), (63, 20)):
            image = ndimage.gaussian_filter(generator.standard_normal(shape), smooth) > level
            before = image.copy()
            assert (thin(image) == morphology.thin(image)).all()
            assert (image == before).all()


def test_memory_order_and_steps_do_not_matter():
    image = ndimage.gaussian_filter(np.random.default_rng(1).standard_normal((80, 70)), 2) > 0
    expected = morphology.thin(image)
    assert (thin(np.asfortranarray(image)) == expected).all()
    assert (thin(np.repeat(np.repeat(image, 2, 0), 2, 1)[::2, ::2]) == expected).all()


def test_full_and_empty():
    assert (thin(np.ones((30, 21), dtype=bool)) == morphology.thin(np.ones((30, 21), dtype=bool))).all()
    assert not thin(np.zeros((5, 5), dtype=bool)).any()
