"""Activation maps against hand-computed cases and the probe they explain."""

import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator
from sklearn.decomposition import PCA

from polyscene.downstream.backbones import feature_maps
from polyscene.downstream.frozen.cam import (
    PixelMoments,
    class_activation_maps,
    component_map,
    enlarge,
    probe_logits,
    unit_range,
)
from polyscene.runtime.features import image_features, normalise
from polyscene.runtime.weights import BackboneWeights
from polyscene.ssl.moco.encoder import create_backbone

CPU = torch.device("cpu")


def test_a_hand_computed_map():
    """Two channels on 1 x 2 pixels; pooled (2, 1.5), of norm 2.5."""
    features = torch.tensor([[[4.0, 0.0]], [[0.0, 3.0]]])
    weight, bias = torch.tensor([[1.0, 0.0], [1.0, -2.0]]), torch.tensor([0.5, 1.0])
    plain = class_activation_maps(features, weight, normalised=False)
    assert plain.tolist() == [[[4.0, 0.0]], [[4.0, -6.0]]]
    assert probe_logits(features, weight, bias, normalised=False).tolist() == [2.5, 0.0]
    scaled = class_activation_maps(features, weight, normalised=True)
    assert torch.allclose(scaled, plain / 2.50001)
    assert probe_logits(features, weight, bias, normalised=True).tolist() == pytest.approx([1.3, 0.6], abs=1e-4)


@pytest.mark.parametrize("normalised", [True, False])
def test_the_mean_of_a_map_plus_bias_is_the_logit(normalised):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(32, 5, 7, generator=generator).relu() * 9
    weight, bias = torch.randn(6, 32, generator=generator), torch.randn(6, generator=generator)
    maps = class_activation_maps(features, weight, normalised=normalised)
    logits = probe_logits(features, weight, bias, normalised=normalised)
    torch.testing.assert_close(maps.mean(dim=(1, 2)) + bias, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("normalised", [True, False])
def test_the_logits_are_those_of_the_probe(normalised):
    """Pooled features as `polyscene probe` computes them, against layer4 maps of the same network at stride 32."""
    torch.manual_seed(0)
    backbone = create_backbone("resnet18")
    weights = BackboneWeights("resnet18", backbone.state_dict())
    crop = torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8)
    pooled, _ = image_features(backbone, [crop], resize=96, crop=96, device=CPU, l2=normalised)
    weight, bias = torch.randn(5, 512), torch.randn(5)
    with torch.no_grad():
        features = feature_maps(weights, output_stride=32)(normalise(crop[None]))[0][0]
    expected = pooled[0] @ weight.T + bias
    torch.testing.assert_close(
        probe_logits(features, weight, bias, normalised=normalised), expected, rtol=1e-4, atol=1e-4
    )
    maps = class_activation_maps(features, weight, normalised=normalised)
    torch.testing.assert_close(maps.mean(dim=(1, 2)) + bias, expected, rtol=1e-4, atol=1e-4)


def random_images(seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(6, 6, generator=generator)
    shapes = ((4, 5), (6, 3), (5, 5))
    return [torch.einsum("ij,jhw->ihw", mixing, torch.randn(6, *shape, generator=generator)) + 50 for shape in shapes]


def component_of(images):
    moments = PixelMoments(images[0].shape[0], CPU)
    for image in images:
        moments.add(image)
    return moments.component()


def test_the_component_is_that_of_scikit_learn():
    images = random_images()
    component = component_of(images)
    pixels = torch.cat([image.flatten(1) for image in images], dim=1).T.double().numpy()
    oracle = PCA(n_components=1).fit(pixels)
    assert abs(float(component.direction @ torch.from_numpy(oracle.components_[0]))) == pytest.approx(1, abs=1e-9)
    assert component.variance_share == pytest.approx(oracle.explained_variance_ratio_[0])
    values = np.concatenate([component_map(image, component).flatten().numpy() for image in images])
    assert np.abs(values) == pytest.approx(np.abs(oracle.transform(pixels)[:, 0]), abs=1e-4)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_borders_are_negative_whatever_the_sign_of_the_features(sign):
    """One channel carries a bright square in the middle: the component must be high there, low at the border."""
    square = torch.zeros(3, 8, 8)
    square[1, 3:6, 2:6] = sign * 5
    component = component_of([square, square])
    values = component_map(square, component)
    assert values[3:6, 2:6].min() > 0
    assert values[0].max() < 0
    assert component.variance_share == pytest.approx(1)


def test_without_a_difference_at_the_border_the_largest_entry_is_positive():
    rows = torch.zeros(2, 1, 6)  # all border
    rows[0, :, ::2], rows[1, :, ::2] = -3, 1
    component = component_of([rows])
    assert float(component.direction[0]) > 0
    with pytest.raises(ValueError, match="no pixels"):
        PixelMoments(3, CPU).component()


def test_constant_features_have_a_component_without_variance():
    component = component_of([torch.ones(3, 4, 4)])
    assert component.variance_share == 0
    assert torch.equal(unit_range(component_map(torch.ones(3, 4, 4), component)), torch.zeros(4, 4))


def test_enlarged_cells_lie_on_multiples_of_the_stride():
    cells = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    large = enlarge(cells, (29, 24), 8)
    assert large.shape == (29, 24)
    assert torch.equal(large[::8, ::8], cells)
    # Between cells: scipy's bilinear interpolation; beyond the last: its value.
    oracle = RegularGridInterpolator((np.arange(4) * 8, np.arange(3) * 8), cells.numpy())
    y, x = np.meshgrid(np.arange(25), np.arange(17), indexing="ij")
    assert large[:25, :17].numpy() == pytest.approx(oracle((y, x)), abs=1e-5)
    assert torch.equal(large[:, 17:], large[:, 16:17].expand(-1, 7))
    assert torch.equal(large[25:], large[24:25].expand(4, -1))


def test_a_cell_sees_the_pixels_around_its_place():
    """What a lone bright spot changes in the maps, enlarged, is centred on the spot."""
    torch.manual_seed(0)
    weights = BackboneWeights("resnet18", create_backbone("resnet18").state_dict())
    # layer2: a layer whose field of view, some 100 pixels, lies within the image.
    network = feature_maps(weights, layers=("layer2",), output_stride=8)
    grey = torch.zeros(1, 3, 256, 256)
    spot = grey.clone()
    spot[..., 96:113, 136:153] = 3.0  # centred on (104, 144)
    with torch.no_grad():
        response = (network(spot)[0] - network(grey)[0]).abs().sum(dim=1)[0]
    response = enlarge(response, (256, 256), 8)
    rows, columns = response.sum(dim=1), response.sum(dim=0)
    centre = [float((v * torch.arange(256)).sum() / v.sum()) for v in (rows, columns)]
    # Half a cell, the error of an interpolation that starts half a cell late, would be 3.5.
    assert centre == pytest.approx([104, 144], abs=1.5)


def test_unit_range():
    assert unit_range(torch.tensor([[-1.0, 3.0], [1.0, 0.0]])).tolist() == [[0.0, 1.0], [0.5, 0.25]]
    assert unit_range(torch.full((2, 2), 7.0)).tolist() == [[0, 0], [0, 0]]
