"""odsF by hand, and against the reference tool's own results on five images of BSDS500."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat

from polyscene.downstream.multitask.metrics.edges import (
    THRESHOLDS,
    EdgeMetric,
    average_precision,
    benchmark_thresholds,
    best_f_measure,
    boundary_counts,
    precision_recall,
)

IMAGES = ("2018", "3063", "5096", "6046", "8068")
FIXTURE = "bsds_bench_fixture"


def fixture_archive():
    places = [Path(os.environ["POLYSCENE_DATA"])] if "POLYSCENE_DATA" in os.environ else []
    places.append(Path(__file__).parents[5] / "shared" / "data")
    return next((p / f"{FIXTURE}.tar" for p in places if (p / f"{FIXTURE}.tar").is_file()), None)


@pytest.fixture(scope="module")
def bsds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bsds")
    with tarfile.open(fixture_archive()) as archive:
        archive.extractall(folder, filter="data")
    return folder / FIXTURE


def annotations(bsds, name):
    """(A, H, W) bool."""
    cells = loadmat(bsds / "groundTruth" / f"{name}.mat")["groundTruth"][0]
    return np.stack([cell[0, 0]["Boundaries"] > 0 for cell in cells])


def segment_boundaries(labels):
    """A pixel is boundary if it or the one above or left of it differs from the next: seg2bdry's 'imageSize'."""
    right, down = np.zeros((2, *labels.shape), dtype=bool)
    right[:, :-1] = labels[:, :-1] != labels[:, 1:]
    down[:-1] = labels[:-1] != labels[1:]
    boundary = right | down
    boundary[:-1] |= right[1:]
    boundary[:, :-1] |= down[:, 1:]
    return boundary


def image_counts(bsds, kind, name, thresholds):
    truth = annotations(bsds, name)
    if kind == "segs":
        levels = loadmat(bsds / "segs" / f"{name}.mat")["segs"].ravel()
        maps = [segment_boundaries(labels).astype(float) for labels in levels]
        return np.concatenate([boundary_counts(m, truth, 0.0075, np.array([0.5])) for m in maps])
    if kind == "png":
        strength = np.asarray(Image.open(bsds / "png" / f"{name}.png")) / 255
    else:
        strength = loadmat(bsds / "ucm2" / f"{name}.mat")["ucm2"][2::2, 2::2]
    return boundary_counts(strength, truth, 0.0075, thresholds)


@pytest.mark.skipif(fixture_archive() is None, reason=f"needs {FIXTURE}.tar in $POLYSCENE_DATA or ../shared/data")
@pytest.mark.parametrize(
    ("case", "kind"), [("test_1", "ucm2"), ("test_2", "png"), ("test_3", "segs"), ("test_4", "segs")]
)
def test_reference_tool(bsds, case, kind):
    thresholds = np.array(benchmark_thresholds(5))
    metric = EdgeMetric(0.0075, thresholds)
    per_image = np.loadtxt(bsds / case / "eval_bdry_img.txt")
    for name, (_, _, recall, precision, score) in zip(IMAGES, per_image):
        counts = image_counts(bsds, kind, name, thresholds)
        metric.add(torch.from_numpy(counts))
        found = best_f_measure(*precision_recall(counts), thresholds)
        assert found[:3] == pytest.approx((score, precision, recall), abs=0.003)
    curve = np.loadtxt(bsds / case / "eval_bdry_thr.txt")
    precision, recall = precision_recall(metric.sums["counts"].numpy())
    # Annotated and predicted totals agree, so these ratios are those of the matched counts.
    assert recall == pytest.approx(curve[:, 1], rel=0.005)
    assert precision == pytest.approx(curve[:, 2], rel=0.005)
    _, ods_recall, ods_precision, ods, _, _, ois, area = np.loadtxt(bsds / case / "eval_bdry.txt")
    result = metric.compute()
    assert result["odsf"] == pytest.approx(ods, abs=0.001)
    assert result["recall"] == pytest.approx(ods_recall, abs=0.003)
    assert result["precision"] == pytest.approx(ods_precision, abs=0.003)
    assert result["oisf"] == pytest.approx(ois, abs=0.001)
    assert result["ap"] == pytest.approx(area, abs=0.001)


def square(size=40):
    image = torch.zeros(size, size)
    image[10, 10:31] = image[30, 10:31] = 1
    image[10:31, 10] = image[10:31, 30] = 1
    return image


def level_line():
    image = torch.zeros(40, 40)
    image[12, 8:32] = 1
    return image


EVERYWHERE = torch.ones(40, 40, dtype=torch.bool)


def test_thresholds():
    assert len(THRESHOLDS) == 101
    assert [*THRESHOLDS[:3], *THRESHOLDS[-2:]] == pytest.approx([0.001, 0.01, 0.02, 0.99, 0.999])
    assert benchmark_thresholds(5) == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])
    for bad in ((), (0.0, 0.5), (0.5, 0.5), (0.6, 0.5)):
        with pytest.raises(ValueError, match="thresholds must increase"):
            EdgeMetric(0.01, bad)


def test_a_perfect_map_and_an_empty_one():
    perfect, empty = EdgeMetric(0.011), EdgeMetric(0.011)
    for truth in (level_line(), level_line().T.contiguous(), torch.diag(level_line()[12])):
        perfect.update(truth * 0.9, truth[None], EVERYWHERE)
    empty.update(torch.zeros(40, 40), square()[None], EVERYWHERE)
    result = perfect.compute()
    assert result["odsf"] == result["oisf"] == result["precision"] == result["recall"] == 1
    assert result["threshold"] < 0.9
    assert set(empty.compute().values()) <= {0.0, 0.001}


def test_suppression_makes_a_blurred_map_perfect_again():
    blurred = torch.nn.functional.avg_pool2d(square()[None, None], 5, 1, 2)[0, 0]
    suppressed = EdgeMetric(0.03)
    suppressed.update(blurred, square()[None], EVERYWHERE)
    assert suppressed.compute()["odsf"] > 0.9


def test_best_threshold_of_the_set_and_of_every_image():
    """The true line has strength .9 in one image and .3 in the other; false ones are a little weaker or far below."""
    metric = EdgeMetric(0.011, (0.2, 0.5, 0.8), suppress=False)
    truth = torch.zeros(40, 40)
    truth[5] = 1
    false = torch.zeros(40, 40)
    false[20] = false[35] = 1
    metric.update(0.9 * truth + 0.6 * false, truth[None], EVERYWHERE)
    metric.update(0.3 * truth, truth[None], EVERYWHERE)
    assert metric.sums["counts"].tolist() == [[80, 80, 80, 160], [40, 80, 40, 120], [40, 80, 40, 40]]
    result = metric.compute()
    assert result["odsf"] == pytest.approx(2 * 0.5 / 1.5)
    assert (result["precision"], result["recall"]) in [(0.5, 1.0), (1.0, 0.5)]
    assert result["oisf"] == 1
    # Recall 1 with precision 1/2 and recall 1/2 with precision 1/3: 51 steps of .01 with a mean of 5/12.
    assert result["ap"] == pytest.approx(51 * 0.01 * 5 / 12)


def test_interpolation_between_thresholds():
    precision, recall = np.array([0.2, 1.0]), np.array([1.0, 0.2])
    best = best_f_measure(precision, recall, np.array([0.4, 0.6]))
    assert best == pytest.approx((0.6, 0.6, 0.6, 0.5), abs=0.01)  # halfway; the ends have 1/3
    assert best_f_measure(precision[:1], recall[:1], np.array([0.4])) == pytest.approx((1 / 3, 0.2, 1, 0.4))


def test_average_precision_by_hand():
    # Trapezoid between recall .2 and .6, zero elsewhere; 41 steps of .01.
    area = average_precision(np.array([0.5, 1.0]), np.array([0.6, 0.2]))
    assert area == pytest.approx(41 * 0.01 * 0.75)
    assert average_precision(np.array([1.0, 1.0]), np.array([0.4, 0.4])) == 0


def test_annotators_and_invalid_pixels():
    metric = EdgeMetric(0.001, (0.5,), suppress=False)
    valid = EVERYWHERE.clone()
    valid[:, :20] = False
    # Of 24 pixels 12 are valid; the second annotator drew the line 5 pixels further to the left.
    truth = torch.stack([level_line(), level_line().roll(-5, 1)])
    metric.update(level_line(), truth, valid)
    assert metric.sums["counts"].tolist() == [[12 + 7, 12 + 7, 12, 12]]
    metric.update(level_line(), truth[1:], valid)
    assert metric.sums["counts"].tolist() == [[12 + 7 + 7, 12 + 7 + 7, 12 + 7, 24]]


def test_a_broken_prediction_has_no_boundaries():
    metric = EdgeMetric(0.011)
    metric.update(torch.full((40, 40), float("nan")), square()[None], EVERYWHERE)
    assert metric.compute()["odsf"] == 0
