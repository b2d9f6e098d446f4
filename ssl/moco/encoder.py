"""Backbone plus MLP projection head: images -> (features, embedding)."""

from __future__ import annotations

import timm
import torch
import torch.nn.functional as F
from timm.models.resnet import ResNet
from torch import Tensor, nn

from polyscene.runtime.errors import UserError


def create_backbone(arch: str) -> nn.Module:
    """A randomly initialised ResNet-family backbone without classifier, (N, 3, H, W) -> (N, C) pooled features.

    Residual branches start as in MoCo's torchvision models (last BatchNorm weight 1, not 0).

    Raises:
        UserError: timm has no such model, or it is not of the ResNet family.
    """
    if not timm.is_model(arch):
        close = timm.list_models(f"{arch[:6]}*")[:5] or ["resnet18", "resnet50"]
        raise UserError(f"model.backbone: timm has no model '{arch}'; try for example {', '.join(close)}")
    try:
        model = timm.create_model(arch, num_classes=0, zero_init_last=False)
    except TypeError as error:  # other families do not know the argument
        raise UserError(f"model.backbone: '{arch}' is not a ResNet; use for example resnet50") from error
    if not isinstance(model, ResNet):
        raise UserError(f"model.backbone: '{arch}' is not a ResNet; use for example resnet50")
    return model


class Encoder(nn.Module):
    """Backbone and the MLP head of MoCo-v2: Linear C-C, ReLU, Linear C-D.

    Args:
        backbone: module (N, 3, H, W) -> (N, C) with an attribute ``num_features`` = C.
        dim: embedding width D.
    """

    def __init__(self, backbone: nn.Module, dim: int):
        super().__init__()
        self.backbone = backbone
        self.feature_dim = int(backbone.num_features)
        self.head = nn.Sequential(
            nn.Linear(self.feature_dim, self.feature_dim), nn.ReLU(), nn.Linear(self.feature_dim, dim)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, 3, H, W) -> backbone features (N, C) and embeddings (N, D), both float32, L2-normalised."""
        features = self.backbone(images)
        embeddings = self.head(features)
        with torch.autocast(images.device.type, enabled=False):
            return F.normalize(features.float(), dim=1), F.normalize(embeddings.float(), dim=1)
