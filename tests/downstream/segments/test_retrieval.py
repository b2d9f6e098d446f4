"""The whole way from files to scores, on images whose answer is known."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import adjusted_rand_score
from torch import nn

from polyscene.downstream.backbones import feature_maps
from polyscene.downstream.segments.data import LabelScheme, image_folder, with_saliency
from polyscene.downstream.segments.extract import dense_features, extract_regions
from polyscene.downstream.segments.pictures import choose_queries, class_colours, predicted_map
from polyscene.downstream.segments.regions import cluster_regions, majority_labels, salient_region
from polyscene.downstream.segments.retrieval import check_bank, retrieve_labels
from polyscene.downstream.segments.scores import class_iou, mean_iou, pixel_accuracy
from polyscene.launch.evaluation import random_weights
from polyscene.runtime.errors import UserError

CPU = torch.device("cpu")
COLOURS = np.array([[20, 20, 20], [230, 30, 30], [30, 200, 40], [40, 60, 220]], dtype=np.uint8)
NAMES = ("ground", "red", "green", "blue")
SCHEME = LabelScheme(NAMES, (255,))
SIZE = (32, 48)


@pytest.fixture
def planted(tmp_path):
    """40 images of 4 x 6 blocks of 8 pixels, each block of one class; void is a stripe of pixels."""
    generator = np.random.default_rng(0)
    for part in ("images", "labels", "saliency"):
        (tmp_path / part).mkdir()
    for i in range(40):
        labels = generator.integers(0, 4, (4, 6)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
        image = COLOURS[labels]
        labels[5] = 255
        name = f"{'train' if i < 30 else 'test'}{i:02d}.png"
        Image.fromarray(image).save(tmp_path / "images" / name)
        Image.fromarray(labels).save(tmp_path / "labels" / name)
    return image_folder(tmp_path / "images", tmp_path / "labels", "train*", "test*")


class Perfect(nn.Module):
    """Features that tell the colour of a cell."""

    def forward(self, images):
        cells = nn.functional.avg_pool2d(images, 8)
        colours = torch.from_numpy(COLOURS).float() / 255
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        distance = torch.cdist(cells.permute(0, 2, 3, 1), ((colours - mean) / std)[None, None])
        return [torch.softmax(-8 * distance, dim=-1).permute(0, 3, 1, 2)]


class Noise(nn.Module):
    """Features that tell nothing."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, images):
        n, _, height, width = images.shape
        return [torch.randn(n, 12, height // 8, width // 8, generator=self.generator)]


def regions(network, pairs, describe=None, label=majority_labels, *, bank, most=4, **more):
    describe = describe or partial(cluster_regions, classes=4, clusters=most, seed=0)
    settings = {"size": SIZE, "batch_size": 8, "device": CPU, **more}
    return extract_regions(network, pairs, SCHEME, describe, label, most=most, drop_unlabelled=bank, **settings)


def test_perfect_features_reach_exactly_one(planted):
    bank, test = regions(Perfect(), planted[0], bank=True), regions(Perfect(), planted[1], bank=False)
    result = retrieve_labels(bank, test)
    assert class_iou(result.confusion).tolist() == [1, 1, 1, 1]
    assert result.confusion.sum() == 10 * (32 - 1) * 48  # all but the void stripe
    assert np.allclose(result.similarities, 1, atol=1e-5)


def test_features_without_information_reach_chance(planted):
    network = Noise()
    # One block a region: 24 regions an image, none of them mixed.
    bank = regions(network, planted[0], bank=True, most=24)
    test = regions(network, planted[1], bank=False, most=24)
    result = retrieve_labels(bank, test)
    expected, iou = class_iou(result.guessing), class_iou(result.confusion)
    # Four equally frequent classes: IoU = (1/16) / (1/4 + 1/4 - 1/16) = 1/7, accuracy 1/4; 240 regions are labelled.
    assert mean_iou(expected) == pytest.approx(1 / 7, abs=0.01)
    assert pixel_accuracy(result.guessing) == pytest.approx(1 / 4, abs=0.02)
    assert mean_iou(iou) == pytest.approx(mean_iou(expected), abs=0.06)
    assert pixel_accuracy(result.confusion) == pytest.approx(1 / 4, abs=0.09)


def test_predicted_maps_score_like_the_regions(planted):
    bank, test = regions(Perfect(), planted[0], bank=True), regions(Perfect(), planted[1], bank=False)
    result = retrieve_labels(bank, test)
    for image, path in enumerate(planted[1].labels):
        truth = np.asarray(Image.open(path))
        guess = predicted_map(test, result.predictions, image, SIZE, None, SCHEME.count)
        assert (guess[truth != 255] == truth[truth != 255]).all()


def test_saliency_protocol(planted, tmp_path):
    for path in planted[0].labels + planted[1].labels:
        labels = np.asarray(Image.open(path))
        # The salient object: all blocks of the class that covers most, ground aside.
        main = 1 + np.bincount(labels.ravel(), minlength=256)[1:4].argmax()
        Image.fromarray(((labels == main) * 255).astype(np.uint8)).save(tmp_path / "saliency" / path.name)
    train, test = (with_saliency(p, tmp_path / "saliency") for p in planted)
    label = partial(majority_labels, excluded=0)
    describe = partial(salient_region, classes=4)
    bank = regions(Perfect(), train, describe, label, bank=True, most=1)
    found = regions(Perfect(), test, describe, label, bank=False, most=1)
    assert len(bank.labels) == 30
    assert (bank.labels > 0).all()
    result = retrieve_labels(bank, found, background=0)
    # Every salient pixel gets its class; everything else is called ground.
    assert (result.predictions == found.labels).all()
    outside = result.confusion[1:].sum(axis=1) - np.diagonal(result.confusion)[1:]
    assert (result.confusion[1:, 0] == outside).all()
    assert result.confusion[0, 0] == result.confusion[0].sum()


def test_void_regions_leave_the_bank_but_are_queries(planted):
    labels = np.full((32, 48), 255, dtype=np.uint8)
    for path in (planted[0].labels[0], planted[1].labels[0]):
        Image.fromarray(labels).save(path)
    bank, test = regions(Perfect(), planted[0], bank=True), regions(Perfect(), planted[1], bank=False)
    assert 0 not in bank.owners
    assert set(test.owners) == set(range(10))
    result = retrieve_labels(bank, test)
    assert class_iou(result.confusion).tolist() == [1, 1, 1, 1]
    assert result.confusion.sum() == 9 * (32 - 1) * 48


def test_banks_that_say_nothing_are_refused(planted):
    for path in planted[0].labels:
        Image.fromarray(np.full((32, 48), 255, dtype=np.uint8)).save(path)
    with pytest.raises(UserError, match="no region of the training images has a label"):
        check_bank(regions(Perfect(), planted[0], bank=True), NAMES)
    for path in planted[0].labels:
        Image.fromarray(np.full((32, 48), 2, dtype=np.uint8)).save(path)
    with pytest.raises(UserError, match=r"all \d+ training regions are 'green'"):
        check_bank(regions(Perfect(), planted[0], bank=True), NAMES)


def test_batch_size_and_workers_change_nothing(planted):
    one = regions(Perfect(), planted[0], bank=True, batch_size=1)
    other = regions(Perfect(), planted[0], bank=True, batch_size=7, workers=1)
    for name in ("histograms", "labels", "owners", "numbers", "maps", "rest"):
        assert (getattr(one, name) == getattr(other, name)).all(), name
    assert np.allclose(one.embeddings, other.embeddings, atol=1e-6)


@pytest.fixture(scope="module")
def network():
    return feature_maps(random_weights("resnet18", 0), output_stride=8)


def photo(seed, size=(96, 128)):
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 3, 6, 8, generator=generator)
    return (nn.functional.interpolate(small, size, mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)


def test_dense_features_are_unit_cells_in_any_memory_format(network):
    images = photo(0)
    plain = dense_features(network, images, device=CPU)
    assert plain.shape == (1, 12, 16, 512)
    assert plain.is_contiguous()
    assert torch.allclose(plain.norm(dim=-1), torch.ones(1, 12, 16), atol=1e-5)
    last = dense_features(network.to(memory_format=torch.channels_last), images, device=CPU)
    network.to(memory_format=torch.contiguous_format)
    assert torch.allclose(plain, last, atol=1e-4)


def test_bf16_gives_nearly_the_same_segments(network):
    images = photo(1)
    exact = dense_features(network, images, device=CPU)
    rough = dense_features(network, images, device=CPU, precision="bf16")
    assert rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    assert (exact * rough).sum(-1).min() > 0.99
    labels = np.zeros((96, 128), dtype=np.int64)
    maps = [cluster_regions(f[0].numpy(), labels, None, classes=2, clusters=4, seed=0).map for f in (exact, rough)]
    assert adjusted_rand_score(maps[0].ravel(), maps[1].ravel()) > 0.8


def test_queries_for_the_picture_differ_in_image_and_class(planted):
    test = regions(Perfect(), planted[1], bank=False)
    chosen = choose_queries(test, 6, background=0)
    assert len({int(test.owners[q]) for q in chosen}) == 6
    assert len({int(test.labels[q]) for q in chosen}) == 3
    assert 0 not in test.labels[chosen]
    assert len(choose_queries(test, 100)) == 10


def test_colours_are_distinct_and_void_is_white():
    for classes, background in ((11, None), (20, None), (21, 0), (60, None)):
        colours = class_colours(classes, background)
        assert len(np.unique(colours, axis=0)) == classes + 1
        assert colours[-1].tolist() == [255, 255, 255]
    # The palette of the VOC development kit.
    assert class_colours(21, 0)[[0, 1, 2, 15, 20]].tolist() == [
        *([0, 0, 0], [128, 0, 0], [0, 128, 0], [192, 128, 128], [0, 64, 128]),
    ]
