"""Colours of features against scikit-learn, and features against the encoder's own output."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from polyscene.downstream.backbones import LAYERS, feature_maps
from polyscene.downstream.multitask.analysis.features import (
    common_basis,
    compare_features,
    layer_maps,
    resemblance,
)
from polyscene.runtime.errors import UserError


@pytest.fixture
def maps():
    """Two models' features of 16 correlated channels, (16, 12, 10) each."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(16, 16, generator=generator) * 0.7 ** torch.arange(16)
    return [(mixing @ torch.randn(16, 120, generator=generator)).reshape(16, 12, 10) + shift for shift in (0.0, 0.5)]


def test_the_basis_is_that_of_scikit_learn(maps):
    basis = common_basis(maps)
    values = torch.cat([each.flatten(1) for each in maps], dim=1).T.double().numpy()
    pca = PCA(3).fit(values)
    np.testing.assert_allclose(basis.mean.numpy(), pca.mean_, atol=1e-12)
    np.testing.assert_allclose(basis.shares.numpy(), pca.explained_variance_ratio_, rtol=1e-9)
    signs = np.sign((basis.components.numpy().T * pca.components_).sum(1))
    np.testing.assert_allclose(basis.components.numpy().T, signs[:, None] * pca.components_, atol=1e-9)
    projected = (pca.transform(maps[1].flatten(1).T.double().numpy()) * signs).reshape(12, 10, 3)
    np.testing.assert_allclose(basis.project(maps[1]).numpy(), projected, atol=1e-9)
    assert (basis.components.abs().max(0).values == basis.components.max(0).values).all()


def test_colours_span_the_range_of_all_models_together(maps):
    basis = common_basis(maps)
    drawn = np.stack([basis.colours(each) for each in maps])
    assert drawn.shape == (2, 12, 10, 3)
    for colour in range(3):
        channel = drawn[..., colour]
        assert channel.min() == 0
        assert channel.max() == 255
        assert (channel == 0).mean() < 0.03
        # Colours are proportional to the component.
        component = np.stack([basis.project(each).numpy()[..., colour] for each in maps])
        inside = (channel > 0) & (channel < 255)
        slope, start = np.polyfit(component[inside], channel[inside].astype(float), 1)
        assert np.abs(slope * component[inside] + start - channel[inside]).max() < 1.5


def test_equal_features_have_equal_colours(maps):
    found = compare_features(
        {"a": {"layer1": [maps[0]]}, "same": {"layer1": [maps[0].clone()]}, "other": {"layer1": [maps[1]]}}
    )
    first = found.pictures["a"]["layer1"][0]
    assert np.array_equal(first, found.pictures["same"]["layer1"][0])
    assert np.abs(first.astype(int) - found.pictures["other"]["layer1"][0]).mean() > 20
    assert found.cka["a"]["layer1"] == pytest.approx(1)
    assert found.cka["same"]["layer1"] == pytest.approx(1)
    assert found.cka["other"]["layer1"] < 0.5


def test_resemblance():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(8, 2000, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64)).Q
    assert resemblance(features, 3 * turn @ features + 1) == pytest.approx(1)
    unrelated = torch.randn(5, 2000, generator=generator, dtype=torch.float64)
    assert resemblance(features, unrelated) < 0.02
    # Half of the variance is the same: features (x, u) and (x, v).
    x, u, v = torch.randn(3, 4000, generator=generator, dtype=torch.float64)
    assert resemblance(torch.stack([x, u]), torch.stack([x, v])) == pytest.approx(0.5, abs=0.02)
    assert resemblance(features, torch.ones(3, 2000)) == 0


def test_layer_maps_are_the_encoders_own(model, weights, images):
    own = model("rcm", "depth", "edges")
    found = layer_maps(own, images[:1], ["depth"])
    expected = feature_maps(weights("resnet10t"), layers=LAYERS, output_stride=16)(images[:1])
    for layer, each in zip(LAYERS, expected):
        torch.testing.assert_close(found["depth"][layer], each, rtol=1e-3, atol=1e-4)
    shared = layer_maps(model("multi_task", "depth"), images[:1], ["depth"], layers=("layer2",))
    torch.testing.assert_close(shared["depth"]["layer2"], expected[1], rtol=1e-3, atol=1e-4)


def test_every_task_has_its_own_maps(model, images):
    own = model("rcm", "depth", "edges").train()
    with torch.no_grad():
        own.encoder.body.layer1[0].bn1.tasks["edges"].bias += 0.5
    before = layer_maps(own, images[:1], ["depth"])["depth"]
    found = layer_maps(own, images[:1], ["depth", "edges"])
    assert all(torch.equal(found["depth"][layer], before[layer]) for layer in LAYERS)
    assert all((found["depth"][layer] - found["edges"][layer]).abs().max() > 0.01 for layer in LAYERS)
    assert own.training
    assert all(not module._forward_hooks for module in own.modules())


def test_bottlenecks(weights, images):
    from polyscene.downstream.multitask.models.build import ModelOptions, build_model

    made = build_model(ModelOptions("task_norms", head="aspp", head_width=8), weights("resnet14t"), {"depth": 1})
    found = layer_maps(made, images[:1], ["depth"], layers=("layer1", "layer2"))
    expected = feature_maps(weights("resnet14t"), layers=("layer1", "layer2"), output_stride=16)(images[:1])
    for layer, each in zip(("layer1", "layer2"), expected):
        torch.testing.assert_close(found["depth"][layer], each, rtol=1e-3, atol=1e-4)


def test_refusals(model, images, maps):
    own = model("rcm", "depth")
    with pytest.raises(UserError, match="'edges' is not in this model"):
        layer_maps(own, images[:1], ["edges"])
    with pytest.raises(UserError, match="no layer9"):
        layer_maps(own, images[:1], ["depth"], layers=("layer9",))
    assert all(not module._forward_hooks for module in own.modules())
    with pytest.raises(UserError, match="no common colours"):
        common_basis([maps[0], maps[1][:8]])
    with pytest.raises(UserError, match="no common colours"):
        common_basis([maps[0][:2]])


def test_dead_features_are_black():
    basis = common_basis([torch.zeros(4, 5, 5)])
    assert basis.shares.tolist() == [0, 0, 0]
    assert not basis.colours(torch.zeros(4, 5, 5)).any()
