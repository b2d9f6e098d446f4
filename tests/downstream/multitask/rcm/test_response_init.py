"""Response Initialization: exact at full rank, the best approximation below it, the sign of the lost mean."""

import pytest
import torch

from polyscene.downstream.multitask.rcm.moments import Moments
from polyscene.downstream.multitask.rcm.network import rcm_encoder
from polyscene.downstream.multitask.rcm.response_init import ResponseBasis, resolve_rank, response_basis, spectrum


@pytest.fixture
def values():
    """(32, 4000) float64 responses with correlated channels and a mean that is not zero."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(32, 32, generator=generator, dtype=torch.float64) * 0.85 ** torch.arange(32)
    noise = torch.randn(32, 4000, generator=generator, dtype=torch.float64)
    return mixing @ noise + 2 * torch.randn(32, 1, generator=generator, dtype=torch.float64)


def moments_of(values):
    return Moments(torch.tensor(float(values.shape[1]), dtype=torch.float64), values.sum(1), values @ values.T)


def test_directions_are_principal_components(values):
    basis = response_basis(moments_of(values))
    centred = values - values.mean(1, keepdim=True)
    left, singular, _ = torch.linalg.svd(centred, full_matrices=False)
    torch.testing.assert_close(basis.variances, singular**2 / values.shape[1])
    torch.testing.assert_close((basis.directions.T @ left).diagonal().abs(), torch.ones(32, dtype=torch.float64))
    torch.testing.assert_close(basis.directions.T @ basis.directions, torch.eye(32, dtype=torch.float64))
    # The share of energy is that of the singular values.
    torch.testing.assert_close(basis.energy_kept(), (singular**2).cumsum(0) / (singular**2).sum())
    assert (basis.directions.abs().max(0).values == basis.directions.max(0).values).all()


def test_full_rank_gives_the_weights_back(values):
    basis = response_basis(moments_of(values))
    weight = torch.randn(32, 7, 3, 3, generator=torch.Generator().manual_seed(1))
    bank, matrix = basis.factors(weight, 32)
    assert bank.shape == weight.shape
    torch.testing.assert_close(torch.einsum("or,rikl->oikl", matrix, bank), weight.double())
    assert basis.lost_mean(32).abs().max() < 1e-12
    bank, matrix = basis.factors(weight, 24)
    assert bank.shape == (24, 7, 3, 3)
    assert matrix.shape == (32, 24)


@pytest.mark.parametrize("rank", [8, 24])
def test_the_lost_mean_makes_the_approximation_the_best_one(values, rank):
    """Rank 24 of 32: the error left is that of the dropped variances, and no less (Eckart-Young)."""
    basis = response_basis(moments_of(values))
    kept = basis.directions[:, :rank]
    lost = basis.lost_mean(rank)[:, None]

    def error(sign):
        return float((kept @ (kept.T @ values) + sign * lost - values).square().sum(0).mean())

    assert error(1) == pytest.approx(float(basis.variances[rank:].sum()), rel=1e-9)
    assert error(0) == pytest.approx(error(1) + float(lost.square().sum()), rel=1e-9)
    assert error(-1) == pytest.approx(error(1) + 4 * float(lost.square().sum()), rel=1e-9)
    assert error(1) < error(0) < error(-1)


@pytest.mark.parametrize("rank", [24, 32, 0.75])
@torch.no_grad()
def test_in_a_network_the_corrected_mean_has_the_lowest_error(plain, weights, moments, images, rank):
    """running_mean -= lost is better than no correction, which is better than the published code's +=."""
    found = moments("resnet10t")
    encoder = rcm_encoder(weights("resnet10t"), found, output_stride=32, rank=rank)
    encoder.add_task("edge")
    target = plain("resnet10t").forward_features(images)

    def error():
        return float((encoder(images, "edge")[-1] - target).square().mean())

    def put_back():
        """Add each lost mean to the running mean once; the sum of their norms."""
        total = 0.0
        for pair in encoder.pairs:
            if pair.role == "spatial":
                width = encoder.body.get_submodule(pair.convolution).bank.shape[0]
                lost = response_basis(found[pair.convolution]).lost_mean(width)
                total += float(lost.norm())
                encoder.body.get_submodule(pair.norm).tasks["edge"].running_mean += lost
        return total

    corrected = error()
    assert put_back() > 1
    uncorrected = error()
    put_back()
    wrong_sign = error()
    assert corrected < uncorrected < wrong_sign


def test_more_directions_are_nearer(plain, weights, moments, images):
    with torch.no_grad():
        target = plain("resnet10t").forward_features(images)
        errors = []
        for rank in (0.25, 0.75, None):
            encoder = rcm_encoder(weights("resnet10t"), moments("resnet10t"), output_stride=32, rank=rank)
            encoder.add_task("edge")
            errors.append(float((encoder(images, "edge")[-1] - target).abs().max()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-4 < errors[-2]


def test_ranks():
    assert [resolve_rank(rank, 64) for rank in (None, 0.75, 24, 24.0, 500, 0.001)] == [64, 48, 24, 24, 64, 1]
    for rank in (0, -1, 2.5):
        with pytest.raises(ValueError, match="rank"):
            resolve_rank(rank, 64)


def test_spectrum_rises_to_one(values):
    curve = spectrum({"conv1": moments_of(values)})["conv1"]
    assert curve.shape == (32,)
    assert (curve.diff() >= 0).all()
    assert float(curve[-1]) == pytest.approx(1)
    nothing = ResponseBasis(torch.eye(2), torch.zeros(2), torch.zeros(2))
    assert torch.equal(nothing.energy_kept(), torch.ones(2))
