import pickle
from dataclasses import fields

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest

from polyscene.runtime.errors import UserError
from polyscene.ssl.views.autoaugment import IMAGENET_POLICY
from polyscene.ssl.views.crops import CropGroup, intersection, iou
from polyscene.ssl.views.sampling import sample_views
from polyscene.ssl.views.spec import ViewParameters, ViewSpec

LARGE = CropGroup(2, 160, (0.2, 1.0))
SMALL = CropGroup(4, 96, (0.05, 0.14))
SPEC = ViewSpec(LARGE, SMALL)
COUNT = 4000


def equal(a: ViewParameters, b: ViewParameters) -> bool:
    return all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(ViewParameters))


def random_sizes(count):
    return torch.from_numpy(np.random.default_rng(0).integers(50, 700, (count, 2)))


@pytest.fixture(scope="module")
def params():
    return sample_views(3, 1, torch.arange(COUNT), torch.tensor([[480, 640]]).expand(COUNT, 2), SPEC)


def within(observed: torch.Tensor, probability: float) -> bool:
    """Whether a share of draws agrees with a probability to five standard deviations."""
    deviation = np.sqrt(probability * (1 - probability) / observed.numel())
    return abs(observed.double().mean().item() - probability) < 5 * deviation + 1e-12


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        ViewSpec(LARGE, None, max_iou=0.2),
        ViewSpec(CropGroup(3, 32, (0.3, 0.6)), CropGroup(1, 16, (0.1, 0.2)), "inside", augmentation="autoaugment"),
        ViewSpec(LARGE, CropGroup(0, 96, (0.05, 0.14)), "none", augmentation="standard"),
    ],
)
def test_an_images_views_do_not_depend_on_its_batch(spec):
    indices, sizes = torch.arange(40) * 7, random_sizes(40)
    whole = sample_views(0, 2, indices, sizes, spec)
    order = torch.from_numpy(np.random.default_rng(1).permutation(40))
    assert equal(sample_views(0, 2, indices[order], sizes[order], spec), whole[order])
    for rows in (slice(0, 1), slice(1, 17), slice(17, 40)):
        assert equal(sample_views(0, 2, indices[rows].tolist(), sizes[rows], spec), whole[rows])
    assert whole.boxes.shape == (40, spec.num_views, 4)


def test_another_epoch_seed_or_image_gives_other_views():
    sizes = random_sizes(20)
    first = sample_views(0, 0, torch.arange(20), sizes, SPEC)
    for other in (
        sample_views(1, 0, torch.arange(20), sizes, SPEC),
        sample_views(0, 1, torch.arange(20), sizes, SPEC),
        sample_views(0, 0, torch.arange(20) + 20, sizes, SPEC),
    ):
        # Some images are so elongated that every crop is the central one.
        assert (first.boxes != other.boxes).any(-1).float().mean() > 0.9
        assert (first.factors != other.factors).any(-1).all()
        assert not torch.equal(first.flip, other.flip)
        assert not torch.equal(first.policy, other.policy)


def test_more_small_crops_leave_the_views_that_were_there_alone():
    sizes = random_sizes(20)
    few = sample_views(0, 0, torch.arange(20), sizes, SPEC)
    many = sample_views(0, 0, torch.arange(20), sizes, ViewSpec(LARGE, CropGroup(9, 96, (0.05, 0.14))))
    for field in fields(ViewParameters):
        assert torch.equal(getattr(many, field.name)[:, :6], getattr(few, field.name))


def test_the_anchor_always_gets_the_standard_set():
    for augmentation in ("standard", "autoaugment", "mix"):
        spec = ViewSpec(LARGE, SMALL, augmentation=augmentation)
        branch = sample_views(0, 0, torch.arange(500), random_sizes(500), spec).branch
        assert (branch[:, spec.anchor] == 0).all()
        queries = branch[:, [v for v in range(6) if v != spec.anchor]]
        expected = {"standard": 0.0, "autoaugment": 1.0, "mix": 0.5}[augmentation]
        assert within(queries == 1, expected)


def test_frequencies_of_the_standard_set(params):
    assert within(params.flip, 0.5)
    assert within(params.jitter, 0.8)
    assert within(params.grey, 0.2)
    assert within(params.sigma > 0, 0.5)
    orders = params.order.reshape(-1, 4).long()
    assert (orders.sort(dim=1).values == torch.arange(4)).all()
    codes = (orders * torch.tensor([64, 16, 4, 1])).sum(1)
    assert chisquare(torch.unique(codes, return_counts=True)[1].numpy()).pvalue > 1e-3
    assert codes.unique().numel() == 24


def test_strengths_of_the_standard_set(params):
    sigma = params.sigma[params.sigma > 0].double().numpy()
    assert kstest((sigma - 0.1) / 1.9, "uniform").pvalue > 1e-3
    for i, (low, high) in enumerate([(0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1)]):
        factor = params.factors[..., i].double().numpy().ravel()
        assert kstest((factor - low) / (high - low), "uniform").pvalue > 1e-3


def test_views_of_an_image_are_independent(params):
    for name in ("flip", "jitter", "grey"):
        values = getattr(params, name).double().numpy()
        correlations = np.corrcoef(values.T) - np.eye(6)
        assert np.abs(correlations).max() < 5 / np.sqrt(COUNT)


def test_frequencies_of_the_policy(params):
    assert chisquare(torch.bincount(params.policy.ravel().long(), minlength=25).numpy()).pvalue > 1e-3
    for p, pair in enumerate(IMAGENET_POLICY):
        for i, (_, probability, _) in enumerate(pair):
            assert within(params.applied[params.policy == p][:, i], probability)


def test_constraints_hold():
    sizes = torch.tensor([[480, 640]]).expand(1000, 2)
    overlap = sample_views(0, 0, torch.arange(1000), sizes, SPEC)
    boxes = overlap.boxes.numpy()
    share = intersection(boxes[:, 2:], boxes[:, 1:2]) / (boxes[:, 2:, 2] * boxes[:, 2:, 3])
    assert (share[~overlap.fallback[:, 2:].numpy()] > 0.099).all()

    inside = sample_views(0, 0, torch.arange(1000), sizes, ViewSpec(LARGE, SMALL, "inside")).boxes.numpy()
    assert (intersection(inside[:, 2:], inside[:, 1:2]) == inside[:, 2:, 2] * inside[:, 2:, 3]).all()

    capped = sample_views(0, 0, torch.arange(1000), sizes, ViewSpec(LARGE, SMALL, max_iou=0.2))
    boxes = capped.boxes.numpy()
    assert (iou(boxes[:, 0], boxes[:, 1])[~capped.fallback[:, 0].numpy()] <= 0.2).all()
    assert capped.fallback[:, 0].float().mean() < 0.05


def test_parameters_travel_between_processes(params):
    copy = pickle.loads(pickle.dumps(params[:5]))
    assert equal(copy, params[:5])
    assert len(copy) == 5
    assert copy.to("cpu", non_blocking=True) is copy.pin_memory()


def test_view_counts():
    assert (SPEC.num_views, SPEC.num_queries, SPEC.anchor) == (6, 5, 1)
    two = ViewSpec(LARGE, None)
    assert (two.num_views, two.num_queries, two.groups) == (2, 1, [LARGE])
    assert sample_views(0, 0, [], np.zeros((0, 2), dtype=int), SPEC).boxes.shape == (0, 6, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"large": CropGroup(1, 8, (0.2, 1.0))}, "large.count=1: at least two"),
        ({"constraint": "near"}, "constraint=near: choose one of overlap, inside, none"),
        ({"augmentation": "randaugment"}, "augmentation=randaugment: choose one of"),
        ({"min_overlap": 1.5}, "min_overlap=1.5"),
        ({"max_iou": -0.1}, "max_iou=-0.1"),
    ],
)
def test_impossible_specifications_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        ViewSpec(**{"large": LARGE, "small": SMALL, **change})


def test_bad_sizes_are_refused():
    with pytest.raises(UserError, match="sizes must be height and width of each of the 2 images"):
        sample_views(0, 0, [0, 1], [[3, 3]], SPEC)
    with pytest.raises(UserError, match="image 8 has no pixels"):
        sample_views(0, 0, [7, 8], [[3, 3], [0, 3]], SPEC)
