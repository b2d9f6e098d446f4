import numpy as np
import pytest
import torch
from PIL import Image


def make_photo(height: int, width: int, seed: int) -> torch.Tensor:
    """A (3, H, W) uint8 picture with the memory of a decoded one: smooth coloured areas, edges, and some noise."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    pixels = np.array(coarse.resize((width, height), Image.BICUBIC)).astype(np.float64)
    pixels += generator.normal(0, 6, pixels.shape)
    pixels[height // 3 : height // 2, width // 4 : width // 2] = generator.integers(0, 256, 3)
    return torch.from_numpy(pixels.clip(0, 255).astype(np.uint8)).permute(2, 0, 1)


@pytest.fixture(scope="session")
def photo():
    return make_photo


@pytest.fixture(scope="session")
def photos():
    """Five square pictures as one (5, 3, 80, 80) float32 batch of whole numbers."""
    return torch.stack([make_photo(80, 80, seed) for seed in range(5)]).float().contiguous()
