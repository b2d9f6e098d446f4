"""Weights that do not change."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .base import Balancer


class Fixed(Balancer):
    """The base weights, as they are; uniform weights if all of them are 1."""

    needs_losses: ClassVar[bool] = False

    def balance(self, losses: Tensor, gramian: Tensor | None, kpis: Tensor | None) -> Tensor:
        """Ones."""
        return torch.ones_like(self.base)
