"""The optimisers of the multi-task recipes."""

from __future__ import annotations

import torch
from torch import nn

OPTIMIZERS = ("sgd", "adam")


def make_optimizer(
    model: nn.Module, kind: str, *, learning_rate: float, momentum: float = 0.9, weight_decay: float = 1e-4
) -> torch.optim.Optimizer:
    """An optimiser of the parameters that ask for a gradient; frozen ones stay as they are.

    Args:
        model: on its device, with ``requires_grad`` set as it is to be trained.
        kind: ``sgd`` (with momentum; ASTMT, RCM) or ``adam`` (MTI-Net).
        learning_rate: the first one; every step sets its own.
        momentum: of SGD.
        weight_decay: added to the gradient, in both.

    Raises:
        ValueError: another kind, or nothing to train.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("no parameter of the model asks for a gradient: nothing to train")
    if kind == "sgd":
        return torch.optim.SGD(parameters, learning_rate, momentum=momentum, weight_decay=weight_decay, foreach=True)
    if kind == "adam":
        return torch.optim.Adam(parameters, learning_rate, weight_decay=weight_decay, foreach=True)
    raise ValueError(f"kind='{kind}': must be one of {', '.join(OPTIMIZERS)}")
