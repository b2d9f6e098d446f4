"""The two families of models by their options: on the last stages of one encoder, and on four scales."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import timm
from timm.models import is_model_in_modules

from polyscene.runtime.errors import UserError
from polyscene.runtime.weights import BackboneWeights

from ..mti_net.backbones import check_architecture as check_scales_of
from ..mti_net.build import MultiScaleOptions, build_multi_scale_model, empty_multi_scale_model
from ..rcm.moments import Moments
from .base import DenseModel
from .build import ModelOptions, build_model, empty_model

Options = ModelOptions | MultiScaleOptions

_FAMILIES: dict[str, type[Options]] = {"dilated": ModelOptions, "multi_scale": MultiScaleOptions}


def make_model(
    options: Options,
    weights: BackboneWeights,
    channels: Mapping[str, int],
    *,
    auxiliary: Mapping[str, int] | None = None,
    moments: Mapping[str, Moments] | None = None,
    seed: int = 0,
    image_level: Collection[str] = (),
) -> DenseModel:
    """Make a model of either family that starts from a pretrained backbone, on the CPU, in evaluation mode.

    Args:
        options: what kind of model.
        weights: the backbone.
        channels: task -> channels of its output; the tasks in their order.
        auxiliary: task that only a front end predicts -> channels of its output.
        moments: for Response Initialization (``options.needs_moments``).
        seed: of all initial values but the backbone's.
        image_level: those of the tasks of ``channels`` that have one output an image.

    Raises:
        UserError: what `build_model` and `build_multi_scale_model` refuse.
        ValueError: auxiliary tasks for a model of the first family.
    """
    if isinstance(options, MultiScaleOptions):
        return build_multi_scale_model(options, weights, channels, auxiliary, seed, image_level)
    if auxiliary:
        raise ValueError(f"{options.kind} models have no auxiliary tasks")
    return build_model(options, weights, channels, moments, seed, image_level)


def make_empty_model(
    options: Options,
    arch: str,
    channels: Mapping[str, int],
    *,
    auxiliary: Mapping[str, int] | None = None,
    seed: int = 0,
    image_level: Collection[str] = (),
) -> DenseModel:
    """A model with the shapes of :func:`make_model`, to load a state into; its values are useless.

    Raises:
        UserError, ValueError: as there.
    """
    if isinstance(options, MultiScaleOptions):
        return empty_multi_scale_model(options, arch, channels, auxiliary, seed, image_level)
    if auxiliary:
        raise ValueError(f"{options.kind} models have no auxiliary tasks")
    return empty_model(options, arch, channels, seed, image_level)


def check_architecture(options: Options, arch: str) -> None:
    """Refuse backbones that the family cannot use, before anything is built.

    Args:
        options: what kind of model.
        arch: timm name of the backbone.

    Raises:
        UserError: not a ResNet, or for models on four scales neither a ResNet nor an HRNet.
    """
    if isinstance(options, MultiScaleOptions):
        check_scales_of(arch)
    elif timm.is_model(arch) and not is_model_in_modules(arch, ["resnet"]):
        raise UserError(
            f"arch={arch} is not a ResNet, which model.kind={options.kind} with model.head={options.head} needs; use "
            "resnet18, or mti_net, pad_net or model.head=aggregation"
        )


def options_to_json(options: Options) -> dict[str, Any]:
    """Plain values that `options_from_json` reads."""
    family = next(name for name, kind in _FAMILIES.items() if isinstance(options, kind))
    return {"family": family, **dataclasses.asdict(options)}


def options_from_json(entries: Mapping[str, Any]) -> Options:
    """The options that `options_to_json` was called on.

    Raises:
        UserError: a value that cannot be.
        ValueError: an unknown family or option.
    """
    values = dict(entries)
    family = values.pop("family", None)
    if family not in _FAMILIES:
        raise ValueError(f"unknown family of models '{family}'")
    known = {item.name for item in dataclasses.fields(_FAMILIES[family])}
    if unknown := sorted(set(values) - known):
        raise ValueError(f"unknown option '{unknown[0]}'")
    return _FAMILIES[family](**values)
