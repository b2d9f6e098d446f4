import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyscene.runtime.errors import UserError
from polyscene.ssl.subsets import balanced_subset, long_tailed_subset, pareto_shares, random_subset

IMAGENET = np.repeat(np.arange(1000), 1300)


def sizes_of(labels, chosen):
    assert (np.diff(chosen) > 0).all(), "sorted, each once"
    return np.bincount(labels[chosen], minlength=labels.max() + 1)


def test_long_tail_reproduces_the_published_data_set():
    """ImageNet-LT: 115,846 images; 385, 479, 136 classes of > 100, 20..100, < 20 images; 5 to 1,280 a class."""
    sizes = sizes_of(IMAGENET, long_tailed_subset(IMAGENET, 115_846, seed=0))
    assert sizes.sum() == 115_846
    assert (sizes > 100).sum() == pytest.approx(385, abs=10)
    assert ((sizes >= 20) & (sizes <= 100)).sum() == pytest.approx(479, abs=10)
    assert (sizes < 20).sum() == pytest.approx(136, abs=10)
    assert sizes.max() >= 1280
    assert sizes.min() == 5


def test_sizes_follow_the_quantiles_of_the_law():
    labels = np.repeat(np.arange(500), 5000)
    sizes = np.sort(sizes_of(labels, long_tailed_subset(labels, 100_000, seed=0)))[::-1]
    # Independent oracle: the share of classes larger than x is (1 + (x - c) / s) ** -6, so this is linear in x.
    steps = (np.arange(500) + 0.5) / 500
    transformed = steps ** (-1 / 6)
    slope, intercept = np.polyfit(transformed, sizes, 1)
    assert np.abs(slope * transformed + intercept - sizes).max() < 1.0
    assert slope > 0


def test_shares_have_mean_one_and_fall():
    shares = pareto_shares(1000)
    assert shares.mean() == pytest.approx(1)
    assert (np.diff(shares) < 0).all()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_totals_are_exact_and_no_class_is_overdrawn(data):
    available = np.array(data.draw(st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(any)))
    seed = data.draw(st.integers(0, 5))
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(available)), available))
    total = data.draw(st.integers(1, len(labels)))
    balanced = np.bincount(labels[balanced_subset(labels, total, seed)], minlength=len(available))
    assert balanced.sum() == total
    assert (balanced <= available).all()
    # As even as possible: whoever is not exhausted has at most one less than the largest.
    assert (balanced[balanced < available] >= balanced.max() - 1).all()
    if total >= (available > 0).sum():
        tailed = np.bincount(labels[long_tailed_subset(labels, total, seed)], minlength=len(available))
        assert tailed.sum() == total
        assert (tailed <= available).all()
        assert (tailed[available > 0] >= 1).all()


@pytest.mark.parametrize("choose", [balanced_subset, long_tailed_subset, lambda y, n, s: random_subset(len(y), n, s)])
def test_the_seed_decides(choose):
    labels = np.repeat(np.arange(20), 50)
    np.testing.assert_array_equal(choose(labels, 300, 1), choose(labels, 300, 1))
    assert not np.array_equal(choose(labels, 300, 1), choose(labels, 300, 2))


def test_the_order_of_the_classes_is_shuffled():
    first = sizes_of(IMAGENET, long_tailed_subset(IMAGENET, 118_000, seed=1))
    second = sizes_of(IMAGENET, long_tailed_subset(IMAGENET, 118_000, seed=2))
    np.testing.assert_array_equal(np.sort(first), np.sort(second))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1
    assert abs(np.corrcoef(first, np.arange(1000))[0, 1]) < 0.1


def test_every_image_has_the_same_chance():
    counts = np.zeros(40)
    for seed in range(400):
        counts[random_subset(40, 10, seed)] += 1
    # Binomial(400, 1/4): mean 100, standard deviation 8.7
    assert np.abs(counts - 100).max() < 4 * 8.7


def test_impossible_sizes():
    labels = np.repeat(np.arange(5), 4)
    for choose in (balanced_subset, long_tailed_subset):
        with pytest.raises(UserError, match="subset=21: must be between 1 and the 20 images"):
            choose(labels, 21, 0)
        with pytest.raises(UserError, match="subset=0"):
            choose(labels, 0, 0)
    with pytest.raises(UserError, match="subset=4: a long-tailed subset needs at least one image of each of 5 classes"):
        long_tailed_subset(labels, 4, 0)
    assert len(balanced_subset(labels, 4, 0)) == 4
