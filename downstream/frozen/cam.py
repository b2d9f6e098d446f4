"""Maps of what frozen features respond to: class activation maps, and the features' first principal component."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NORM_FLOOR = 1e-5  # of `runtime.features.l2_normalise`


def pooled_norm(features: Tensor) -> Tensor:
    """What `runtime.features.l2_normalise` divides the pooled feature of an image by: its norm plus 1e-5.

    Args:
        features: (C, h, w) of one image.

    Returns:
        scalar tensor.
    """
    return features.float().mean(dim=(1, 2)).norm() + NORM_FLOOR


def probe_logits(features: Tensor, weight: Tensor, bias: Tensor, *, normalised: bool) -> Tensor:
    """Logits of a linear probe of average-pooled features.

    Args:
        features: (C, h, w) of one image.
        weight: (classes, C).
        bias: (classes,).
        normalised: the probe was trained on L2-normalised features.

    Returns:
        (classes,) float32.
    """
    logits = weight @ features.float().mean(dim=(1, 2))
    return (logits / pooled_norm(features) if normalised else logits) + bias


def class_activation_maps(features: Tensor, weight: Tensor, *, normalised: bool) -> Tensor:
    """Channel-weighted feature maps of a linear probe (CAM, Zhou et al. 2016, equation 2).

    Where the probe saw L2-normalised pooled features, its weights are divided by the norm of this image's pooled
    feature. So the mean of a map plus the class's bias is exactly the probe's logit.

    Args:
        features: (C, h, w) of one image.
        weight: (K, C) rows of the probe's weight.
        normalised: the probe was trained on L2-normalised features.

    Returns:
        (K, h, w) float32.
    """
    maps = torch.einsum("kc,chw->khw", weight, features.float())
    return maps / pooled_norm(features) if normalised else maps


@dataclass(frozen=True)
class Component:
    """The first principal component of pixel features.

    Attributes:
        mean: (C,) of all pixels, float64.
        direction: (C,) of unit length, float64.
        variance_share: of the whole variance, in [0, 1].
    """

    mean: Tensor
    direction: Tensor
    variance_share: float


class PixelMoments:
    """Running mean and covariance of the pixel features of any number of images; keeps no pixel.

    Args:
        channels: C.
        device: where to add up.
    """

    def __init__(self, channels: int, device: torch.device):
        self._count = self._border_count = 0
        self._sum = torch.zeros(channels, dtype=torch.float64, device=device)
        self._border_sum = torch.zeros_like(self._sum)
        self._products = torch.zeros(channels, channels, dtype=torch.float64, device=device)

    def add(self, features: Tensor) -> None:
        """Add the (C, h, w) features of one image."""
        # The products of one image in float32 would be lost in a large mean: float64 throughout.
        pixels = features.double()
        flat = pixels.flatten(1)
        self._count += flat.shape[1]
        self._sum += flat.sum(dim=1)
        self._products += flat @ flat.T
        inner = pixels[:, 1:-1, 1:-1]
        self._border_count += flat.shape[1] - inner[0].numel()
        self._border_sum += flat.sum(dim=1) - inner.sum(dim=(1, 2))

    def component(self) -> Component:
        """The direction of greatest variance, turned so that the pixels at the images' borders are negative on average.

        Objects stand rarely at the border, so the positive side is usually theirs. Where border and mean do not
        differ, the largest entry of the direction is positive.

        Raises:
            ValueError: no pixels were added.
        """
        if self._count == 0:
            raise ValueError("the principal component of no pixels")
        mean = self._sum / self._count
        covariance = self._products / self._count - torch.outer(mean, mean)
        variances, directions = torch.linalg.eigh(covariance)
        direction = directions[:, -1]
        at_border = float(direction @ (self._border_sum / max(self._border_count, 1) - mean))
        if abs(at_border) < 1e-9 * float(variances[-1].clamp_min(0).sqrt()):
            at_border = -float(direction[direction.abs().argmax()])
        total = float(variances.clamp_min(0).sum())
        share = float(variances[-1]) / total if total > 0 else 0.0
        return Component(mean, direction if at_border <= 0 else -direction, share)


def component_map(features: Tensor, component: Component) -> Tensor:
    """Coordinates of the pixels of one image along a component: (C, h, w) -> (h, w) float32."""
    flat = features.double().flatten(1)
    return ((component.direction @ (flat - component.mean[:, None])).view(features.shape[1:])).float()


def enlarge(cells: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Bilinear interpolation at the places where a ResNet's cells lie: cell i is centred on pixel i * stride.

    All strided layers of a ResNet have odd windows and symmetric padding, so the first cell is centred on the first
    pixel, not half a cell further; beyond the last cell its value is kept.

    Args:
        cells: (h, w).
        size: (H, W) of the image, pixels.
        stride: image pixels per cell.

    Returns:
        (H, W) float32.
    """
    rows, columns = (
        (torch.arange(pixels, device=cells.device) / stride).clamp_max(count - 1)
        for pixels, count in zip(size, cells.shape)
    )
    return _at(_at(cells.float(), rows).T, columns).T


def _at(values: Tensor, places: Tensor) -> Tensor:
    """Linear interpolation of the rows of (n, m) at (k,) places in 0..n-1: (k, m)."""
    low = places.floor().long()
    share = (places - low)[:, None]
    return values[low] * (1 - share) + values[(low + 1).clamp_max(len(values) - 1)] * share


def unit_range(values: Tensor) -> Tensor:
    """Shift and scale to [0, 1] by the smallest and largest value; zeros where all are equal."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else torch.zeros_like(values)
