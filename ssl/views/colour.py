"""Pixel operations of both augmentation branches, on batches, each image with its own amount.

Images are (n, 3, H, W) float32 holding whole numbers 0..255, as are the results: each operation ends on the 8-bit grid,
as the published pipeline's (PIL) operations do. Amounts are (n,) float32 on the images' device. Nothing here asks the
device for a value, so nothing waits for it. Unless a docstring says otherwise an operation equals PIL's to the bit.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

OPERATIONS = (
    "brightness",
    "contrast",
    "saturation",
    "hue",
    "grey",
    "blur",
    "posterize",
    "solarize",
    "invert",
    "autocontrast",
    "equalize",
    "sharpness",
    "rotate",
    "shear_x",
)


def apply(operation: str, images: Tensor, amounts: Tensor, largest: float) -> Tensor:
    """Run one operation on every image, image i with amounts[i].

    Args:
        operation: one of `OPERATIONS`.
        images: (n, 3, H, W) float32 whole numbers 0..255; not changed.
        amounts: (n,) float32 on the same device: see the operation; ignored by those without a magnitude.
        largest: the largest absolute amount, known to the host: it bounds the support of the blur and the turn of the
            hue.

    Raises:
        ValueError: the operation is unknown.
    """
    amounts = amounts.view(-1, 1, 1, 1)
    match operation:
        case "brightness":
            return brightness(images, amounts)
        case "contrast":
            return contrast(images, amounts)
        case "saturation":
            return saturation(images, amounts)
        case "hue":
            return hue(images, amounts, abs(largest))
        case "grey":
            return grey(images).expand_as(images)
        case "blur":
            return blur(images, amounts, blur_radius(largest))
        case "posterize":
            return posterize(images, amounts)
        case "solarize":
            return solarize(images, amounts)
        case "invert":
            return 255 - images
        case "autocontrast":
            return autocontrast(images)
        case "equalize":
            return equalize(images)
        case "sharpness":
            return sharpness(images, amounts)
        case "rotate":
            return rotate(images, amounts)
        case "shear_x":
            return shear_x(images, amounts)
    raise ValueError(f"unknown operation {operation!r}; one of {', '.join(OPERATIONS)}")


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with black: 0 is black, 1 the image, beyond 1 brighter."""
    return images.mul(factor).clamp_(max=255).floor_()


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean grey of the image (rounded, as PIL's)."""
    luma = grey(images)
    pixels = luma[0].numel()
    # Exact, hence the same value whatever the order of the sum: float32 holds whole numbers below 2^24.
    exact = torch.float32 if 255 * pixels < 1 << 24 else torch.float64
    mean = luma.sum(dim=(1, 2, 3), keepdim=True, dtype=exact).to(torch.float64).div_(pixels).add_(0.5).floor_()
    return _blend(mean.to(images.dtype), images, factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey image: 0 is grey, 1 the image. AutoAugment calls it Color."""
    return _blend(grey(images), images, factor)


def grey(images: Tensor) -> Tensor:
    """Luma of ITU-R 601 in PIL's 16-bit fixed point, (n, 1, H, W). All terms are exact in float32."""
    red, green, blue = images.split(1, dim=1)
    luma = (red * (19595 / 65536)).add_(green, alpha=38470 / 65536).add_(blue, alpha=7471 / 65536)
    return luma.add_(0.5).floor_()


def hue(images: Tensor, shift: Tensor, largest: float) -> Tensor:
    """Turn the hue by `shift` turns, keeping value and chroma: the HSV model of torchvision's tensors.

    With the channels' maximum V, minimum m, middle value d and chroma C = V - m, a turn by t <= 1/6 takes channel x to
    2x - d + 6 t C s, cut to m..V, where s = -1, 0, 1 says on which side of x's hue the colour lies: the sign of blue -
    green for red, of red - blue for green, of green - red for blue. (2x - d is the triangular wave whose cut is x, and
    s its slope.) Larger turns first exchange the channels.

    Shift, hue and saturation stay continuous, where PIL cuts each of them to 8 bits: on photographs the two differ by
    0.15 to 0.45 of 255 levels on average, as do PIL and torchvision's tensors.

    Args:
        images: (n, 3, H, W).
        shift: (n, 1, 1, 1), turns.
        largest: the largest absolute shift, known to the host.
    """
    if largest > 1 / 6:
        thirds = (shift * 3).round()
        source = (torch.arange(3, device=images.device).view(3, 1, 1) - thirds.long()).remainder(3)
        images = images.gather(1, source.expand_as(images))
        shift = shift - thirds / 3
    red, green, blue = images.unbind(1)
    low, high = torch.minimum(red, green), torch.maximum(red, green)
    middle = torch.maximum(low, torch.minimum(high, blue))
    low, high = torch.minimum(low, blue, out=low), torch.maximum(high, blue, out=high)
    step = (high - low).mul_(shift[:, 0] * 6)
    side = torch.empty_like(images)
    for out, (plus, minus) in zip(side.unbind(1), ((blue, green), (red, blue), (green, red))):
        torch.sub(plus, minus, out=out)
    turned = torch.add(middle.neg_()[:, None], images, alpha=2)
    turned.addcmul_(side.clamp_(-1, 1), step[:, None])  # whole numbers cut to -1..1 are their signs
    torch.maximum(turned, low[:, None], out=turned)
    return torch.minimum(turned, high[:, None], out=turned).round_()


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest `bits` bits (0..8) of every value."""
    step = torch.exp2(8 - bits)
    return (images / step).floor_().mul_(step)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert every value at or above the threshold (0..255, need not be whole)."""
    return torch.where(images >= threshold, 255 - images, images)


def autocontrast(images: Tensor) -> Tensor:
    """Stretch each channel linearly to 0..255; a channel of one value stays.

    Computed exactly and rounded down; PIL's double-precision product is one less at some whole results.
    """
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    spread = high - low
    flat = spread == 0
    low = low.masked_fill(flat, 0)
    spread = spread.masked_fill(flat, 255)
    return (images - low).mul_(255).div_(spread).floor_()


def equalize(images: Tensor) -> Tensor:
    """Equalise the histogram of each channel, with PIL's integer table."""
    count, channels, height, width = images.shape
    values = images.view(count * channels, height * width).long()
    histogram = images.new_zeros((count * channels, 256))
    histogram.scatter_add_(1, values, images.new_ones(()).expand_as(values))
    highest = values.amax(dim=1, keepdim=True)
    step = ((height * width) - histogram.gather(1, highest)).div_(255).floor_()
    below = histogram.cumsum(1).sub_(histogram)
    table = (below + (step / 2).floor_()).div_(step.clamp(min=1)).floor_().clamp_(max=255)
    table = torch.where(step == 0, torch.arange(256.0, device=images.device), table)
    return table.gather(1, values).view_as(images)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with a smoothed image (3 x 3, centre weight 5 of 13; the border stays): 0 is smooth, 1 the image."""
    if min(images.shape[-2:]) <= 2:
        return images.clone()
    rows = images[..., :-2, :] + images[..., 1:-1, :] + images[..., 2:, :]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = images.clone()
    smooth[..., 1:-1, 1:-1] = total.add_(images[..., 1:-1, 1:-1] * 4).div_(13).add_(0.5).floor_()
    return _blend(smooth, images, factor)


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotate counter-clockwise about the centre; nearest neighbour, black outside.

    Coordinates are float32 where PIL has 16-bit fractions and torchvision's tensors another rounding of ties: pixels
    whose source lies within 1e-4 of a pixel boundary may take the neighbour.
    """
    x, y = _centred_grid(images)
    angle = degrees.view(-1, 1, 1) * (-math.pi / 180)
    cosine, sine = torch.cos(angle), torch.sin(angle)
    height, width = images.shape[-2:]
    return _fetch(images, cosine * x + sine * y + width / 2, cosine * y - sine * x + height / 2)


def shear_x(images: Tensor, tangent: Tensor) -> Tensor:
    """Shear along x about the top edge: source x = x + tangent * y; nearest neighbour, black outside."""
    x, y = _centred_grid(images)
    height, width = images.shape[-2:]
    x, y = x + width / 2, y + height / 2
    x = x + tangent.view(-1, 1, 1) * y
    return _fetch(images, x, y.expand_as(x))


def blur_radius(sigma: float) -> int:
    """Pixels on each side of the centre that a Gaussian blur of this sigma takes in: up to three sigma."""
    return max(1, math.ceil(3 * sigma))


def blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Separable Gaussian blur, the image continued by its border pixels, cut off at three sigma.

    PIL's GaussianBlur (the published one) approximates the Gaussian by three box blurs: on photographs of 160 pixels
    the two differ by 0.0, 0.5, 0.5, 0.3 of 255 levels on average at sigma 0.1, 0.5, 1, 2.

    Args:
        images: (n, 3, H, W).
        sigma: (n, 1, 1, 1), > 0, pixels.
        radius: at least `blur_radius` of the largest sigma.
    """
    taps = blur_taps(sigma, radius)
    # On a CPU adding shifted images is quickest; on a GPU a product with a banded matrix, a single launch per side.
    blurred = _blur_by_bands(images, taps) if images.is_cuda else _blur_by_shifts(images, taps)
    return blurred.round_()


def blur_taps(sigma: Tensor, radius: int) -> Tensor:
    """Weights (n, radius + 1) of the centre and of each distance from it; they sum to one over both sides."""
    distance = torch.arange(radius + 1, dtype=sigma.dtype, device=sigma.device)
    sigma = sigma.view(-1, 1)
    weights = torch.exp(-0.5 * (distance / sigma).square())
    weights = weights * (distance <= (3 * sigma).ceil())
    return weights / (2 * weights.sum(1, keepdim=True) - weights[:, :1])


def _blur_by_shifts(images: Tensor, taps: Tensor) -> Tensor:
    radius = taps.shape[1] - 1
    weights = taps.view(*taps.shape, 1, 1, 1).unbind(1)
    for dim in (2, 3):
        padding = (0, 0, radius, radius) if dim == 2 else (radius, radius, 0, 0)
        windows = F.pad(images, padding, mode="replicate").unfold(dim, images.shape[dim], 1)
        # The image at every distance from -radius to radius; all are views of the padded one.
        shifted = [window if dim == 3 else window.transpose(2, 3) for window in windows.unbind(dim)]
        blurred = images * weights[0]
        for distance in range(1, radius + 1):
            blurred.addcmul_(shifted[radius - distance] + shifted[radius + distance], weights[distance])
        images = blurred
    return images


def _blur_by_bands(images: Tensor, taps: Tensor) -> Tensor:
    """The same as two matrix products per image; in half precision, which holds 0..255 exactly and has tensor cores."""
    count, channels, height, width = images.shape
    dtype = torch.float16 if images.is_cuda else images.dtype
    down = blur_band(taps, height).to(dtype)
    across = down if width == height else blur_band(taps, width).to(dtype)
    blurred = torch.bmm(images.to(dtype).view(count, channels * height, width), across.transpose(1, 2))
    blurred = blurred.view(count, channels, height, width)
    return torch.matmul(down[:, None], blurred).to(images.dtype)


def blur_band(taps: Tensor, length: int) -> Tensor:
    """Matrices (n, length, length) that blur a line; weights beyond it go to its first and last pixel."""
    radius = taps.shape[1] - 1
    line = torch.arange(length, device=taps.device)
    distance = (line[:, None] - line[None, :]).abs()
    band = F.pad(taps, (0, 1))[:, distance.clamp(max=radius + 1)]
    # beyond[i]: total weight of the distances larger than i.
    beyond = F.pad(taps, (0, max(length - radius, 0))).flip(1).cumsum(1).flip(1)[:, 1 : length + 1]
    band[:, :, 0] += beyond
    band[:, :, -1] += beyond.flip(1)
    return band


def _blend(start: Tensor, end: Tensor, share: Tensor) -> Tensor:
    """start + share * (end - start), cut to 0..255 and to whole numbers, as PIL's blend."""
    return (end - start).mul_(share).add_(start).clamp_(0, 255).floor_()


def _centred_grid(images: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel centres relative to the image's centre: x (1, W) and y (H, 1)."""
    height, width = images.shape[-2:]
    x = torch.arange(width, device=images.device, dtype=images.dtype) + (0.5 - width / 2)
    y = torch.arange(height, device=images.device, dtype=images.dtype) + (0.5 - height / 2)
    return x[None, :], y[:, None]


def _fetch(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """images at the continuous source coordinates (n, H, W), nearest neighbour, 0 outside."""
    count, channels, height, width = images.shape
    x, y = x.floor(), y.floor()
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    source = (y.clamp_(0, height - 1) * width).add_(x.clamp_(0, width - 1)).long().view(count, 1, height * width)
    found = images.view(count, channels, -1).gather(2, source.expand(-1, channels, -1))
    return found.view_as(images).mul_(inside[:, None])
