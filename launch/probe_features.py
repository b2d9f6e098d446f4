"""The frozen features that a probe works on: from the cache, or computed with a progress bar."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from polyscene.downstream.frozen.feature_cache import FeatureKey, cached_features
from polyscene.downstream.frozen.images import ImageFiles, ImageObjects
from polyscene.runtime.features import image_features, pooled_features
from polyscene.runtime.progress import ProgressBar
from polyscene.runtime.run import RunDirectory
from polyscene.runtime.weights import BackboneWeights, load_backbone, weights_hash
from polyscene.ssl.moco.encoder import create_backbone

from .evaluation import Subject
from .probe_config import ProbeConfig


def frozen_backbone(weights: BackboneWeights, device: torch.device) -> tuple[nn.Module, str]:
    """The network of some weights in evaluation mode on a device, and the line that says what was loaded."""
    backbone = create_backbone(weights.arch)
    line = load_backbone(backbone, weights)
    return backbone.to(device, memory_format=torch.channels_last).eval(), line


class FrozenFeatures:
    """Features of one backbone; those of a split are computed when they are first asked for.

    Args:
        config: crops, precision and workers.
        run: log and progress bars.
        subject: whose weights they are.
        backbone: made of these weights, on ``device``.
        device: where to compute.
        cache: folder that keeps features, or None.
        fingerprints: of the images of every split.
    """

    def __init__(
        self,
        config: ProbeConfig,
        run: RunDirectory,
        subject: Subject,
        backbone: nn.Module,
        device: torch.device,
        cache: Path | None,
        fingerprints: Mapping[str, str],
    ):
        self.config, self.run, self.subject = config, run, subject
        self.backbone, self.device, self.cache, self.fingerprints = backbone, device, cache, fingerprints
        self._hash = weights_hash(subject.weights)

    def of(self, split: str, images: ImageFiles | ImageObjects) -> Tensor:
        """Average-pooled features (N, C) float32 on the CPU, not normalised, of the evaluation crops of a split."""
        config = self.config
        key = FeatureKey(
            self.subject.weights.arch,
            self._hash,
            self.fingerprints[split],
            config.resize,
            config.crop,
            config.precision,
        )

        def compute() -> Tensor:
            with ProgressBar(self.run.console, f"{self.subject.name}, {split} images", len(images)) as bar:
                features, _ = image_features(
                    self.backbone,
                    images,
                    resize=config.resize,
                    crop=config.crop,
                    device=self.device,
                    precision=config.precision,
                    l2=False,
                    workers=config.workers,
                    progress=bar.update,
                )
            return features

        return cached_features(self.cache, key, len(images), compute, self.run.log)

    @torch.no_grad()
    def of_crops(self, crops: Tensor) -> Tensor:
        """Average-pooled features (B, C) float32 of uint8 crops (B, 3, H, W) that are on the device."""
        return pooled_features(self.backbone, crops, self.config.precision)
