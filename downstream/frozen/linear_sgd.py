"""Linear probe by SGD on augmented crops (MoCo, He et al. 2020, section 4.1): all learning rates in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from polyscene.runtime.errors import UserError
from polyscene.runtime.knn import accuracy

from .linear_crops import AugmentedCrops, EpochBatches, EvaluationCrops

LEARNING_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""Two a decade around MoCo's 30."""

MOMENTUM = 0.9
INITIAL_STD = 0.01  # of the weights, as in MoCo's main_lincls.py; biases start at zero


@dataclass(frozen=True)
class SgdHead:
    """The head of one learning rate.

    Attributes:
        accuracy: on the test features, in [0, 1].
        predictions: (M,) int64 classes of the test features.
        learning_rate: before the first milestone.
        weight: (classes, C) float32.
        bias: (classes,) float32.
    """

    accuracy: float
    predictions: Tensor
    learning_rate: float
    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class SgdResult:
    """The heads of all learning rates, trained on all training images.

    Attributes:
        best: the head of the chosen learning rate.
        accuracies: learning rate -> test accuracy, in [0, 1]; 0 where the head diverged.
        sweep: (learning rate, held-out accuracy); empty without held-out images.
        chosen_on: ``held-out`` or ``test``: what the learning rate was chosen on.
        diverged: learning rates whose weights became NaN or infinite.
    """

    best: SgdHead
    accuracies: dict[float, float]
    sweep: list[tuple[float, float]]
    chosen_on: str
    diverged: list[float]


def sgd_probe(
    feature_extractor: Callable[[Tensor], Tensor],
    dataset: Dataset,
    test: Tensor,
    test_labels: Tensor,
    *,
    classes: int,
    channels: int,
    learning_rates: Sequence[float] = LEARNING_RATES,
    epochs: int = 100,
    milestones: Sequence[int] = (60, 80),
    batch_size: int = 256,
    crop: int = 224,
    seed: int = 0,
    workers: int = 0,
    device: torch.device,
    holdout: float = 0.1,
    progress: Callable[[int], None] | None = None,
) -> SgdResult:
    """Train one linear head per learning rate on the frozen features of random resized, flipped crops.

    SGD with momentum 0.9, no weight decay, the learning rate divided by 10 at each milestone. MoCo-era papers choose
    the learning rate on the test set; here a held-out part of the training images chooses it (a second set of heads
    never sees them), and the head that is reported was trained on all. Both sets share one pass of features.

    Args:
        feature_extractor: uint8 (B, 3, crop, crop) on ``device`` -> features (B, C), without gradient.
        dataset: item i is a uint8 (3, H, W) image and its class number. An unreadable image raises UserError.
        test: (M, C) features of the evaluation crops.
        test_labels: (M,) int64.
        classes: number of classes.
        channels: C.
        learning_rates: one head (and its twin) each.
        epochs: passes over the data set.
        milestones: epochs, from 0, before which the learning rate is divided by 10.
        batch_size: images a step; the last of an epoch may be smaller.
        crop: side of the crops, pixels.
        seed: of weights, order, crops and held-out images. Crops depend on (seed, epoch, image) only.
        workers: processes that decode and crop.
        device: where heads and features are.
        holdout: share of the training images that chooses the learning rate, in [0, 1); 0: the test set chooses.
        progress: called with the number of epochs done, after each.

    Raises:
        UserError: no images, an unreadable image, ``holdout`` outside [0, 1), or every head diverged.
        ValueError: a class number outside 0..classes-1.
    """
    held_out = _draw_held_out(len(dataset), holdout, seed)
    rates = [float(rate) for rate in learning_rates]
    copies = 2 if held_out.any() else 1  # the last set of heads sees all images
    heads = LinearHeads(rates * copies, classes, channels, seed=seed, device=device)
    batches = EpochBatches(len(dataset), batch_size, epochs, seed)
    crops = DataLoader(
        AugmentedCrops(dataset, crop, seed),
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    with torch.no_grad():
        for step, (images, labels, indices, reasons) in enumerate(crops):
            _check_batch(labels, reasons, classes)
            features = feature_extractor(images.to(device, non_blocking=True)).float()
            keep = torch.ones(len(heads), len(labels))
            if copies == 2:
                keep[: len(rates)] = torch.from_numpy(~held_out[indices.numpy()]).float()
            epoch, last = step // batches.steps, (step + 1) % batches.steps == 0
            factor = 0.1 ** sum(milestone <= epoch for milestone in milestones)
            heads.step(features, labels.to(device), keep.to(device), factor)
            if progress is not None and last:
                progress(epoch + 1)
        finite = heads.finite()[: len(rates)] & heads.finite()[-len(rates) :]
        if not finite.any():
            raise UserError("the linear heads of all learning rates diverged; give smaller learning rates")
        sweep = []
        if copies == 2:
            views = EvaluationCrops(dataset, np.flatnonzero(held_out), crop)
            scores = _held_out_accuracy(feature_extractor, views, heads, batch_size, workers, device)[: len(rates)]
            sweep = [(rate, float(score) * bool(ok)) for rate, score, ok in zip(rates, scores, finite)]
        return _result(heads, rates, finite, sweep, test.to(device, torch.float32), test_labels.cpu())


class LinearHeads:
    """Linear classifiers that share their input, each trained by SGD with a learning rate of its own.

    All start from the same weights. A head that diverges spoils no other: no sum runs over heads.

    Attributes:
        weight: (R, classes, C).
        bias: (R, classes).
    """

    def __init__(self, rates: Sequence[float], classes: int, channels: int, *, seed: int, device: torch.device):
        start = torch.randn(classes, channels, generator=torch.Generator().manual_seed(seed)) * INITIAL_STD
        self.rates = torch.tensor(rates, device=device)
        self.weight = start.to(device).repeat(len(rates), 1, 1)
        self.bias = torch.zeros(len(rates), classes, device=device)
        self._velocity = torch.zeros_like(self.weight), torch.zeros_like(self.bias)

    def __len__(self) -> int:
        return len(self.rates)

    def logits(self, features: Tensor) -> Tensor:
        """(B, C) -> (B, R, classes)."""
        return (features @ self.weight.flatten(0, 1).T).view(len(features), *self.bias.shape) + self.bias

    def step(self, features: Tensor, labels: Tensor, keep: Tensor, factor: float) -> None:
        """One step of SGD with momentum on the mean cross-entropy of the kept images.

        Args:
            features: (B, C) float32.
            labels: (B,) int64.
            keep: (R, B) of 0 and 1: the images a head learns from.
            factor: of all learning rates.
        """
        errors = torch.softmax(self.logits(features), dim=2)
        errors -= torch.nn.functional.one_hot(labels, self.bias.shape[1])[:, None]
        errors *= (keep / keep.sum(dim=1, keepdim=True).clamp_min(1)).T[:, :, None]
        gradient = (errors.flatten(1).T @ features).view_as(self.weight)
        rates = self.rates * factor
        for value, velocity, slope in zip((self.weight, self.bias), self._velocity, (gradient, errors.sum(dim=0))):
            velocity.mul_(MOMENTUM).add_(slope)
            value.sub_(rates.view(-1, *[1] * (value.dim() - 1)) * velocity)

    def finite(self) -> Tensor:
        """(R,) bool on the CPU: whether all weights of a head are finite."""
        return (self.weight.isfinite().all(dim=(1, 2)) & self.bias.isfinite().all(dim=1)).cpu()


def _draw_held_out(count: int, share: float, seed: int) -> np.ndarray:
    """(count,) bool; labels are not known before images are decoded, so the draw is not stratified."""
    if count < 1:
        raise UserError("the linear probe has no training images")
    if not 0 <= share < 1:
        raise UserError(f"holdout={share} must be at least 0 and less than 1: it is a share of the training images")
    size = min(max(round(share * count), 1), count - 1) if share else 0
    held_out = np.zeros(count, dtype=bool)
    held_out[np.random.default_rng(seed % 2**64).permutation(count)[:size]] = True
    return held_out


def _check_batch(labels: Tensor, reasons: Sequence[str], classes: int) -> None:
    unreadable = next((reason for reason in reasons if reason), None)
    if unreadable is not None:
        raise UserError(unreadable)
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"class numbers {int(labels.min())}..{int(labels.max())} among {classes} classes")


def _held_out_accuracy(
    feature_extractor: Callable[[Tensor], Tensor],
    views: EvaluationCrops,
    heads: LinearHeads,
    batch_size: int,
    workers: int,
    device: torch.device,
) -> Tensor:
    """(R,) accuracies on the CPU."""
    right = torch.zeros(len(heads), dtype=torch.int64, device=device)
    for images, labels in DataLoader(views, batch_size=batch_size, num_workers=workers):
        predictions = heads.logits(feature_extractor(images.to(device)).float()).argmax(dim=2)
        right += (predictions == labels.to(device)[:, None]).sum(dim=0)
    return right.cpu() / len(views)


def _result(
    heads: LinearHeads,
    rates: Sequence[float],
    finite: Tensor,
    sweep: list[tuple[float, float]],
    test: Tensor,
    test_labels: Tensor,
) -> SgdResult:
    offset = len(heads) - len(rates)
    # One head at a time: (M, R, classes) logits of a large test set would not fit.
    predictions = [
        torch.cat([(part @ heads.weight[r].T + heads.bias[r]).argmax(dim=1).cpu() for part in test.split(8192)])
        for r in range(offset, len(heads))
    ]
    accuracies = [accuracy(p, test_labels) * bool(ok) for p, ok in zip(predictions, finite)]
    scores = [score for _, score in sweep] if sweep else accuracies
    chosen = max((i for i in range(len(rates)) if finite[i]), key=lambda i: scores[i])
    best = SgdHead(
        accuracies[chosen],
        predictions[chosen],
        rates[chosen],
        heads.weight[offset + chosen].cpu(),
        heads.bias[offset + chosen].cpu(),
    )
    diverged = [rate for rate, ok in zip(rates, finite) if not ok]
    return SgdResult(best, dict(zip(rates, accuracies)), sweep, "held-out" if sweep else "test", diverged)
