"""The shortest convex combination of vectors."""

from __future__ import annotations

import torch
from torch import Tensor

MOST_TASKS = 10

# Relative to every vector's squared length: makes the solution unique, equal weights for equal gradients among others.
# Errors of the squared length stay below it.
_RIDGE = 1e-10


def min_norm_weights(gramian: Tensor) -> Tensor:
    """Weights a >= 0, ``sum a = 1``, that minimise ``a^T gramian a``: exactly, on the device, without waiting for it.

    The solution is that of the equality-constrained problem on the tasks it uses. There are few tasks: this problem is
    solved for every set of them in one batch (2^T - 1 systems; Cholesky factors of the gradients' cosines, so that
    lengths may differ by any factor), and the best admissible solution is taken. Frank-Wolfe (Sener and Koltun, NeurIPS
    2018, algorithm 2) looks at a number on the host in every iteration and ends with an error of about 1 / iterations.

    Args:
        gramian: (T, T) positive semi-definite, T at most `MOST_TASKS`.

    Raises:
        ValueError: more tasks.
    """
    return min_norm_of(gramian, subsets(gramian.shape[0]).to(gramian.device))


def subsets(tasks: int) -> Tensor:
    """(2^T - 1, T) bool: all sets of tasks but the empty one.

    Raises:
        ValueError: more than `MOST_TASKS` tasks.
    """
    if tasks > MOST_TASKS:
        raise ValueError(f"{tasks} tasks; the exact solution is for at most {MOST_TASKS}")
    numbers = torch.arange(1, 2**tasks).unsqueeze(1)
    return (numbers >> torch.arange(tasks)) & 1 == 1


def min_norm_of(gramian: Tensor, members: Tensor) -> Tensor:
    """:func:`min_norm_weights` with the sets of tasks to be tried, (S, T) bool on the device of the gramian.

    Copying the sets to a GPU would wait for it: the caller keeps them there.
    """
    gramian = gramian.double()
    squares = gramian.diagonal()
    # A gradient of zero is the shortest combination; it must not divide by zero.
    least = (squares.max() * 1e-30).clamp(min=torch.finfo(torch.float64).tiny)
    inverse = squares.clamp(min=least).rsqrt()
    eye = torch.eye(len(gramian), dtype=torch.float64, device=gramian.device)
    cosines = torch.where(eye > 0, 1 + _RIDGE, gramian * inverse.unsqueeze(0) * inverse.unsqueeze(1))
    mask = members.double()
    systems = cosines * mask.unsqueeze(2) * mask.unsqueeze(1) + torch.diag_embed(1 - mask)
    factors, failed = torch.linalg.cholesky_ex(systems)
    right = (mask * inverse).unsqueeze(2)
    half = torch.linalg.solve_triangular(factors, right, upper=False)
    scaled = torch.linalg.solve_triangular(factors.mT, half, upper=True).squeeze(2)
    found = (scaled * mask * inverse).clamp(min=0)  # now admissible, whatever set it came from
    sums = found.sum(dim=1, keepdim=True)
    found = found / sums
    ridge = _RIDGE * torch.diag(squares.clamp(min=least))
    lengths = ((found @ (gramian + ridge)) * found).sum(dim=1)
    usable = (failed == 0) & lengths.isfinite()
    best = torch.where(usable, lengths, float("inf")).argmin().unsqueeze(0)
    return found.index_select(0, best).squeeze(0)
