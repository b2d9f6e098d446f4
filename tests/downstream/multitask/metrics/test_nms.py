"""Smoothing, orientation and non-maximum suppression: pixel by pixel, and on ridges of known direction."""

import math

import numpy as np
import pytest

from polyscene.downstream.multitask.metrics.nms import (
    edge_orientation,
    suppress_non_maxima,
    thin_edges,
    triangle_smoothing,
)


def ridge(degrees, size=61):
    """A smooth line through the middle whose normal has this angle, x to the right and y down."""
    y, x = np.mgrid[:size, :size] - size // 2
    angle = math.radians(degrees)
    return np.exp(-((x * math.cos(angle) + y * math.sin(angle)) ** 2) / 8)


def test_triangle_by_hand():
    spike = np.zeros((9, 9))
    spike[4, 4] = 1
    weights = np.array([0, 1, 2, 3, 2, 1, 0]) / 9
    assert triangle_smoothing(spike, 2)[1:8, 1:8] == pytest.approx(np.outer(weights, weights))
    assert triangle_smoothing(np.full((5, 7), 0.3), 4) == pytest.approx(np.full((5, 7), 0.3))
    assert (triangle_smoothing(spike, 0) == spike).all()


@pytest.mark.parametrize("degrees", [0, 20, 45, 70, 90, 110, 135, 160])
def test_orientation_and_thin_line_of_a_ridge(degrees):
    edges = ridge(degrees)
    on_line = edges > 0.9
    inner = np.zeros_like(on_line)
    inner[12:-12, 12:-12] = True
    angle = np.degrees(edge_orientation(edges, smoothing=2))[on_line & inner]
    tangent = math.tan(math.radians(degrees)) if degrees != 90 else 1e6
    expected = math.degrees(math.atan(math.copysign(tangent**2, tangent)))  # as published, squared
    off = np.abs((angle - expected + 90) % 180 - 90)
    assert np.median(off) < 2
    thin = thin_edges(edges, smoothing=2) > 1e-3
    y, x = np.nonzero(thin & inner)
    across = (x - 30) * math.cos(math.radians(degrees)) + (y - 30) * math.sin(math.radians(degrees))
    assert np.abs(across).max() < 1.01
    # One pixel per row or column of the inner square that the line crosses, two where it passes between pixels.
    length = 37
    assert length <= len(x) <= 1.5 * length


def test_pixel_by_pixel():
    generator = np.random.default_rng(0)
    edges, orientation = generator.random((13, 17)), generator.random((13, 17)) * np.pi
    edges[4:7, 3:9] = 0
    radius, border, margin = 2, 4, 1.05

    def value(row, column):
        row, column = min(max(row, 0), 13 - 1.001), min(max(column, 0), 17 - 1.001)
        top, left = math.floor(row), math.floor(column)
        total = 0.0
        for r, c in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
            total += edges[r, c] * (1 - abs(row - r)) * (1 - abs(column - c))
        return total

    expected = np.zeros_like(edges)
    for row in range(13):
        for column in range(17):
            angle = orientation[row, column]
            neighbours = [
                value(row + step * math.sin(angle), column + step * math.cos(angle)) for step in (-2, -1, 1, 2)
            ]
            if all(margin * edges[row, column] >= neighbour for neighbour in neighbours):
                fade = min(row, 12 - row, border) / border * min(column, 16 - column, border) / border
                expected[row, column] = edges[row, column] * fade
    result = suppress_non_maxima(edges, orientation, radius, border, margin)
    assert result == pytest.approx(expected)
    assert 0 < (result > 0).sum() < 100


def test_tiny_maps():
    for shape in ((1, 1), (1, 8), (2, 2), (3, 2)):
        assert thin_edges(np.ones(shape)).shape == shape
