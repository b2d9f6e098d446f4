"""Keys of ``polyscene scenes``."""

from __future__ import annotations

from dataclasses import dataclass

from polyscene.runtime.config import option


@dataclass(frozen=True, kw_only=True)
class ScenesConfig:
    """The built-in data set."""

    count: int = option(600, help="images in all")
    size: tuple[int, int] = option((192, 256), help="height and width, pixels")
    seed: int = option(0, help="of rooms, cameras and lightings")
    workers: int = option(2, help="processes that draw")
