"""First and second moments of a ResNet's convolution responses, streamed over images in one pass.

Memory depends on the widths of the network only, not on the number of images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn

from polyscene.runtime.distributed import World
from polyscene.runtime.errors import UserError

from .pairs import convolution_pairs

_CHUNK = 1 << 20  # values converted to float64 at a time


class NoImages(UserError):
    """There was nothing to measure on."""


@dataclass(frozen=True)
class Moments:
    """Sums over positions of the responses ``y`` (C) of a convolution, before BatchNorm.

    Attributes:
        count: () float64, number of positions.
        total: (C,) float64, sum of ``y``.
        products: (C, C) float64, sum of ``y y^T``.
    """

    count: Tensor
    total: Tensor
    products: Tensor

    @property
    def mean(self) -> Tensor:
        """(C,) float64."""
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """(C, C) float64, divided by the number of positions."""
        return self.products / self.count - torch.outer(self.mean, self.mean)

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of positions together."""
        return Moments(self.count + other.count, self.total + other.total, self.products + other.products)

    def reduce(self, world: World) -> Moments:
        """The moments of all ranks together, on every rank."""
        sums = (world.mean(part.to(world.device)) * world.size for part in (self.count, self.total, self.products))
        return Moments(*(part.cpu() for part in sums))


@torch.no_grad()
def response_moments(
    body: ResNet,
    batches: Iterable[Tensor],
    *,
    names: Sequence[str] | None = None,
    world: World | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Moments]:
    """Run images through a ResNet in evaluation mode and sum the moments of its responses.

    Args:
        body: a timm ResNet (BasicBlock or Bottleneck), on the device to be used; its mode is put back afterwards.
        batches: normalised images (N, 3, H, W) each; every rank its own.
        names: the convolutions wanted (``layer1.0.conv1``); by default all that a BatchNorm follows.
        world: sum over its ranks.
        progress: called with the number of images after every batch.

    Returns:
        Name of the convolution -> moments, on the CPU, the same on every rank.

    Raises:
        NoImages: on no rank.
        UserError: responses that are not finite, or a network of another kind.
        ValueError: an unknown name.
    """
    known = [pair.convolution for pair in convolution_pairs(body)]
    names = known if names is None else list(names)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no convolution {unknown[0]}; there are {', '.join(known)}")
    observers = {name: _Observer(body.get_submodule(name)) for name in names}
    device = next(body.parameters()).device
    was_training = body.training
    body.eval()
    handles = [observer.convolution.register_forward_hook(observer.observe) for observer in observers.values()]
    try:
        for images in batches:
            body.forward_features(images.to(device, non_blocking=True))
            if progress is not None:
                progress(len(images))
    finally:
        for handle in handles:
            handle.remove()
        body.train(was_training)
    moments = {name: observer.moments() for name, observer in observers.items()}
    if world is not None:
        moments = {name: each.reduce(world) for name, each in moments.items()}
    for name, each in moments.items():
        if each.count == 0:
            raise NoImages("no images to measure responses on; name a folder or list with at least one image")
        if not each.products.isfinite().all():
            raise UserError(f"the responses of {name} are not finite; the weights or images hold NaN or infinity")
    return moments


class _Observer:
    """Sums the moments of one convolution's responses, or of its inputs where these are fewer.

    A 1x1 convolution has ``y = W x``, so ``sum y y^T = W (sum x x^T) W^T``: for the last convolution of a bottleneck
    that is a sixteenth of the work.
    """

    def __init__(self, convolution: nn.Conv2d):
        self.convolution = convolution
        pointwise = convolution.kernel_size == (1, 1) and convolution.padding == (0, 0) and convolution.groups == 1
        self.from_inputs = pointwise and convolution.in_channels < convolution.out_channels
        width = convolution.in_channels if self.from_inputs else convolution.out_channels
        place = {"dtype": torch.float64, "device": convolution.weight.device}
        self.count = 0
        self.total = torch.zeros(width, **place)
        self.products = torch.zeros(width, width, **place)

    def observe(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Forward hook: add the responses (N, C, H, W) of a batch."""
        values = output
        if self.from_inputs:
            vertical, horizontal = self.convolution.stride
            values = inputs[0][:, :, ::vertical, ::horizontal]
        # A view, without copying, where the network runs channels last.
        positions = values.permute(0, 2, 3, 1).reshape(-1, values.shape[1])
        for chunk in positions.split(max(1, _CHUNK // values.shape[1])):
            chunk = chunk.double()
            self.count += len(chunk)
            self.total += chunk.sum(0)
            self.products.addmm_(chunk.T, chunk)

    def moments(self) -> Moments:
        total, products = self.total, self.products
        if self.from_inputs:
            weight = self.convolution.weight.double().flatten(1)
            total, products = weight @ total, weight @ products @ weight.T
        return Moments(torch.tensor(float(self.count), dtype=torch.float64), total.cpu(), products.cpu())


def moments_to_state(moments: Mapping[str, Moments]) -> dict[str, Tensor]:
    """One flat dict of tensors, for a safetensors file."""
    return {
        f"{name}.{part}": getattr(each, part)
        for name, each in moments.items()
        for part in ("count", "total", "products")
    }


def moments_from_state(state: Mapping[str, Tensor]) -> dict[str, Moments]:
    """What :func:`moments_to_state` was given.

    Raises:
        UserError: a part is missing or of a wrong shape or type.
    """
    names = sorted({key.rpartition(".")[0] for key in state})
    moments = {}
    for name in names:
        parts = [state.get(f"{name}.{part}") for part in ("count", "total", "products")]
        width = 0 if parts[1] is None else parts[1].numel()
        if [None if part is None else tuple(part.shape) for part in parts] != [(), (width,), (width, width)]:
            raise UserError(f"response moments: those of '{name}' are incomplete; compute them again from images")
        moments[name] = Moments(*(part.double() for part in parts))
    return moments
