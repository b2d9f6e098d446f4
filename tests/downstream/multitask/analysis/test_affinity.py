"""Affinities of pixels, against loops over pixels and kernels."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from polyscene.downstream.multitask.analysis.affinity import (
    agreement,
    correspondence,
    count_affinities,
    image_counts,
    independent,
    kappa,
    matched_dissimilar,
    matched_similar,
)
from polyscene.downstream.multitask.analysis.affinity_figure import draw_affinities
from polyscene.downstream.multitask.data.folder import open_folder
from polyscene.downstream.multitask.data.records import Sample
from polyscene.downstream.multitask.tasks import load_task
from polyscene.downstream.multitask.tasks.spec import Target
from polyscene.runtime.errors import UserError

TASKS = ("segmentation", "depth", "edges", "normals")
AFFINITIES = {name: load_task(name).affinity for name in TASKS}


def labels(seed, height=11, width=14):
    """Random labels of four tasks, each with holes of its own."""
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(3, height, width)) + np.array([0, -3, 0])[:, None, None]
    values = {
        "segmentation": generator.integers(0, 3, (height, width)),
        "depth": (2 + 0.3 * generator.random((1, height, width))).astype(np.float32),
        "edges": (generator.random((1, height, width)) ** 2).astype(np.float32),
        "normals": (vectors / np.linalg.norm(vectors, axis=0)).astype(np.float32),
    }
    return {
        name: Target(torch.from_numpy(value), torch.from_numpy(generator.random((height, width)) > 0.2))
        for name, value in values.items()
    }


def are_similar(task, values, a, b):
    """Of two pixels, as the module says it in words."""
    if task == "segmentation":
        return values[a] == values[b]
    first, second = values[(slice(None), *a)].double(), values[(slice(None), *b)].double()
    if task == "edges":
        return bool(first >= 0.5) == bool(second >= 0.5)
    if task == "depth":
        return abs(float(first - second)) / max(float(first), float(second)) < 0.1
    return math.degrees(math.acos(min(1.0, float(first @ second)))) < 22.5


def counted_by_loops(targets, first, second, dilation, kernel):
    """The 2x2 table of one image: every centre, every other pixel of its kernel; hence every pair twice."""
    height, width = targets[first].valid.shape
    table = torch.zeros(2, 2, dtype=torch.int64)
    reach = range(-(kernel // 2), kernel // 2 + 1)
    for y in range(height):
        for x in range(width):
            for dy in reach:
                for dx in reach:
                    a, b = (y, x), (y + dy * dilation, x + dx * dilation)
                    if (dy, dx) == (0, 0) or not (0 <= b[0] < height and 0 <= b[1] < width):
                        continue
                    if not all(targets[task].valid[pixel] for task in (first, second) for pixel in (a, b)):
                        continue
                    row, column = (int(are_similar(task, targets[task].values, a, b)) for task in (first, second))
                    table[row, column] += 1
    assert (table % 2 == 0).all()
    return table // 2


class Images:
    """Labels in memory, with what `count_affinities` needs of a data set."""

    def __init__(self, targets, tasks=TASKS):
        self.targets, self.tasks = targets, {name: load_task(name) for name in tasks}

    def __len__(self):
        return len(self.targets)

    def read(self, index):
        chosen = {name: self.targets[index][name] for name in self.tasks}
        return Sample(str(index), torch.zeros(3, 1, 1, dtype=torch.uint8), chosen)


@pytest.mark.parametrize(("kernel", "dilations"), [(3, (1, 2, 5)), (5, (1, 3))])
def test_counts_are_those_of_loops_over_pixels(kernel, dilations):
    targets = [labels(0), labels(1, 9, 6)]
    found = count_affinities(Images(targets), dilations, kernel=kernel)
    assert found.pairs[:3] == [("segmentation", "depth"), ("segmentation", "edges"), ("segmentation", "normals")]
    assert found.table.shape == (6, len(dilations), 2, 2)
    for number, (first, second) in enumerate(found.pairs):
        for column, dilation in enumerate(dilations):
            expected = sum(counted_by_loops(image, first, second, dilation, kernel) for image in targets)
            assert torch.equal(found.table[number, column], expected), (first, second, dilation)
    assert (found.table[:, 0] > 0).all()  # the test sees all four cases


def test_measures_of_a_table_counted_by_hand():
    table = torch.tensor([[10, 5], [15, 70]])  # 10 dissimilar in both, 70 similar in both
    assert float(matched_similar(table)) == pytest.approx(70 / 90)
    assert float(matched_dissimilar(table)) == pytest.approx(10 / 30)
    assert float(correspondence(table)) == pytest.approx((70 / 90 + 10 / 30) / 2)
    assert float(agreement(table)) == pytest.approx(0.8)
    by_chance = 0.85 * 0.75 + 0.15 * 0.25
    assert float(agreement(independent(table))) == pytest.approx(by_chance)
    assert float(kappa(table)) == pytest.approx((0.8 - by_chance) / (1 - by_chance))


def test_equal_tasks_correspond_fully_and_independent_ones_by_chance():
    first, other = labels(0, 60, 80), labels(1, 60, 80)
    both = {"segmentation": first["segmentation"], "edges": other["edges"]}
    affinities = {name: AFFINITIES[name] for name in both}
    table = image_counts(both, affinities, (1, 7), 3)
    assert torch.allclose(correspondence(table), correspondence(independent(table)), atol=0.02)
    assert (kappa(table).abs() < 0.03).all()
    # The same classes under two names.
    same = {"a": first["segmentation"], "b": first["segmentation"]}
    table = image_counts(same, dict.fromkeys(same, AFFINITIES["segmentation"]), (1, 7), 3)
    assert (table[..., 0, 1] == 0).all()
    assert torch.equal(correspondence(table), torch.ones(1, 2, dtype=torch.float64))


def test_stripes_are_shared_at_one_scale_and_not_at_another():
    # One row of 64 pixels whose classes change every 8 pixels in one task and every 16 in the other.
    columns = torch.arange(64)[None]
    everywhere = torch.ones(1, 64, dtype=torch.bool)
    stripes = {f"every{n}": Target(columns // n % 2, everywhere) for n in (8, 16)}
    table = image_counts(stripes, dict.fromkeys(stripes, AFFINITIES["segmentation"]), (1, 8, 16), 3)
    # 7 steps and 3 of them; every pair differs in the first task; no pair there, every pair in the second.
    assert table[0].tolist() == [[[3, 4], [0, 56]], [[24, 32], [0, 0]], [[0, 0], [48, 0]]]
    assert correspondence(table)[0].tolist() == pytest.approx([(56 / 60 + 3 / 7) / 2, (0 / 32 + 24 / 56) / 2, 0])


def test_images_smaller_than_the_kernel_add_nothing():
    large, small = labels(0, 20, 20), labels(1, 4, 4)
    alone = count_affinities(Images([large]), (1, 9))
    together = count_affinities(Images([large, small]), (1, 9))
    assert torch.equal(alone.table[:, 1], together.table[:, 1])
    assert (together.table[:, 0] > alone.table[:, 0]).any()
    with pytest.raises(UserError, match="at 20 pixels no pair of pixels"):
        count_affinities(Images([large, small]), (1, 20))


def test_a_smaller_threshold_makes_fewer_pairs_similar():
    usual = count_affinities(Images([labels(0)]), (1,))
    strict = count_affinities(Images([labels(0)]), (1,), thresholds={"depth": 0.02})
    depth = usual.pairs.index(("depth", "edges"))
    assert strict.table[depth, 0, 1].sum() < usual.table[depth, 0, 1].sum()
    assert strict.table[depth, 0].sum() == usual.table[depth, 0].sum()
    other = usual.pairs.index(("edges", "normals"))
    assert torch.equal(strict.table[other], usual.table[other])


def test_labels_on_disk_are_counted_in_worker_processes(tmp_path):
    for name in ("images", "segmentation", "depth"):
        (tmp_path / name).mkdir()
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    targets = [labels(seed) for seed in range(3)]
    for i, each in enumerate(targets):
        Image.fromarray(np.zeros((11, 14, 3), np.uint8)).save(tmp_path / "images" / f"{i}.png")
        classes = torch.where(each["segmentation"].valid, each["segmentation"].values, 255).numpy().astype(np.uint8)
        Image.fromarray(classes).save(tmp_path / "segmentation" / f"{i}.png")
        np.save(tmp_path / "depth" / f"{i}.npy", torch.where(each["depth"].valid, each["depth"].values, 0).numpy()[0])
    (tmp_path / "train.txt").write_text("0\n1\n2\n")
    images = open_folder(tmp_path, "train")
    done = []
    found = count_affinities(images, (1, 2), workers=2, progress=done.append)
    assert done == [1, 2, 3]
    assert torch.equal(found.table, count_affinities(Images(targets, ("segmentation", "depth")), (1, 2)).table)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": Images([], ("depth",))}, "depth cannot be compared with another"),
        ({"images": Images([], ())}, "no task cannot be compared"),
        ({"thresholds": {"parts": 1}}, "thresholds names 'parts'"),
        ({"thresholds": {"edges": 1}}, "'edges' has no threshold"),
        ({"dilations": ()}, "dilations"),
        ({"dilations": (1, 1)}, "dilations"),
        ({"dilations": (0, 1)}, "dilations"),
        ({"kernel": 4}, "kernel=4"),
        ({"kernel": 1}, "kernel=1"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(UserError, match=message):
        count_affinities(**{"images": Images([labels(0)]), "dilations": (1,), **change})


def test_the_figure_has_a_line_for_every_pair(tmp_path):
    found = count_affinities(Images([labels(0)]), (1, 2, 4))
    draw_affinities(found, {name: name for name in TASKS}, tmp_path / "affinity.png")
    drawn = np.asarray(Image.open(tmp_path / "affinity.png").convert("RGB")).reshape(-1, 3)
    for colour in ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233)):
        assert (np.abs(drawn.astype(int) - colour).max(axis=1) < 3).sum() > 100, colour
