"""Bounds of numbers in configs, told in one line."""

from __future__ import annotations

from collections.abc import Iterable

from polyscene.runtime.errors import UserError


def check_at_least(rows: Iterable[tuple[str, float | None, float]]) -> None:
    """Refuse the first ``(key, value, least)`` whose value is below the least; None is no value.

    Raises:
        UserError: naming key, value and bound.
    """
    for key, value, least in rows:
        if value is not None and value < least:
            raise UserError(f"{key}={value} is too small; it must be at least {least}")


def check_above_zero(rows: Iterable[tuple[str, float | None]]) -> None:
    """Refuse the first ``(key, value)`` whose value is not above 0; None is no value.

    Raises:
        UserError: naming key and value.
    """
    for key, value in rows:
        if value is not None and value <= 0:
            raise UserError(f"{key}={value} must be greater than 0")
