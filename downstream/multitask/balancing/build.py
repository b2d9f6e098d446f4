"""Strategies by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from polyscene.runtime.errors import UserError

from .base import Balancer
from .dtp import DynamicTaskPriority
from .dwa import DynamicWeightAverage
from .fixed import Fixed
from .gradnorm import GradNorm
from .mgda import MGDA
from .similar_losses import SimilarLosses
from .uncertainty import Uncertainty

BALANCERS = ("fixed", "uniform", "uncertainty", "gradnorm", "dwa", "dtp", "mgda", "similar_losses")


def make_balancer(
    name: str,
    tasks: Sequence[str],
    weights: Mapping[str, float] | None = None,
    *,
    uncertainty_rate: float = 0.01,
    classification: Collection[str] = (),
    gradnorm_alpha: float = 1.0,
    gradnorm_rate: float = 0.025,
    dwa_period: int = 1,
    dwa_temperature: float = 2.0,
    dtp_focus: float | Mapping[str, float] = 1.0,
    dtp_smoothing: float = 0.1,
    mgda_normalize: str = "none",
    mgda_total: float = 1.0,
    mgda_solver: str = "exact",
    measure_iterations: int = 100,
    measure_repeat: bool = False,
    keep_sum: bool = False,
) -> Balancer:
    """Make a strategy, on the CPU. Arguments of other strategies have no effect.

    Args:
        name: one of `BALANCERS`.
        tasks: names, auxiliary ones too, in the order in which losses will come.
        weights: task -> fixed weight; 1 where absent. ``fixed`` uses them as they are, ``uniform`` not at all; the
            others balance the losses times these, see :class:`.base.Balancer`; for ``similar_losses`` they are the
            tasks' importance.
        uncertainty_rate: learning rate of the noise.
        classification: tasks that uncertainty weighting treats as a softmax.
        gradnorm_alpha: 1 in the thesis, 1.5 on NYUD in the paper.
        gradnorm_rate: learning rate of GradNorm's weights.
        dwa_period: steps between two looks of DWA; the paper's: those of an epoch.
        dwa_temperature: softness of DWA.
        dtp_focus: gamma of DTP, of all tasks or by name.
        dtp_smoothing: weight of the newest KPI; 1 in the thesis.
        mgda_normalize: ``none``, ``l2``, ``loss`` or ``loss+``.
        mgda_total: sum of MGDA's weights.
        mgda_solver: ``exact`` or ``torchjd``.
        measure_iterations: of ``similar_losses``.
        measure_repeat: whether ``similar_losses`` measures again and again.
        keep_sum: scale the weights of ``similar_losses`` to a sum of T.

    Raises:
        UserError: an unknown name or a value out of range.
    """
    if name == "fixed":
        return Fixed(tasks, weights)
    if name == "uniform":
        return Fixed(tasks)
    if name == "uncertainty":
        return Uncertainty(tasks, weights, classification=classification, learning_rate=uncertainty_rate)
    if name == "gradnorm":
        return GradNorm(tasks, weights, alpha=gradnorm_alpha, learning_rate=gradnorm_rate)
    if name == "dwa":
        return DynamicWeightAverage(tasks, weights, period=dwa_period, temperature=dwa_temperature)
    if name == "dtp":
        return DynamicTaskPriority(tasks, weights, focus=dtp_focus, smoothing=dtp_smoothing)
    if name == "mgda":
        return MGDA(tasks, weights, normalize=mgda_normalize, total=mgda_total, solver=mgda_solver)
    if name == "similar_losses":
        return SimilarLosses(tasks, weights, iterations=measure_iterations, repeat=measure_repeat, keep_sum=keep_sum)
    raise UserError(f"balancing={name}: choose one of {', '.join(BALANCERS)}")
