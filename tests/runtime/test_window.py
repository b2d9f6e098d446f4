"""Means between two readings."""

import pytest
import torch

from polyscene.runtime.window import WindowMean


def test_window_mean_restarts():
    window = WindowMean()
    window.add(torch.tensor([1.0, 2.0]))
    window.add(torch.tensor([3.0, 6.0]))
    assert window.take().tolist() == [2.0, 4.0]
    window.add(torch.tensor([5.0, 5.0]))
    assert window.take().tolist() == [5.0, 5.0]
    with pytest.raises(ValueError, match="no values"):
        window.take()
