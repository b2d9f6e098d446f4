"""Which step of a chain is to blame for those that were cancelled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .chain_record import ChainRecord
from .cluster.run_overview import RunOverview

# States of a step that ended and is not completed.
_GOOD = ("completed", "pending", "requeued", "running")
_NEVER = "DependencyNeverSatisfied"


def blame(record: ChainRecord, overviews: Mapping[Path, RunOverview]) -> dict[str, str]:
    """The steps that were cancelled because another failed, with which and why.

    Args:
        record: of the chain.
        overviews: run directory, resolved -> row.

    Returns:
        Name -> for example ``'pretrain' failed: loss is nan at step 12``.
    """
    causes: dict[str, str] = {}
    told: dict[str, str] = {}
    for name, step in record.steps.items():
        overview = overviews.get(Path(step.run).resolve())
        current = overview is not None and overview.record is not None and overview.record.job_id == step.job_id
        cause = next((causes[other] for other in step.after if other in causes), None)
        if cause is not None and _never_started(step.state, overview if current else None):
            causes[name] = told[name] = cause
        elif current and overview.state.rstrip("?") not in _GOOD:
            causes[name] = _why(name, overview)
        elif step.state == "failed":
            causes[name] = f"'{name}' failed: {step.message}"
    return told


def _never_started(state: str, overview: RunOverview | None) -> bool:
    if overview is None:
        return state == "cancelled"
    waits_for_ever = overview.state == "pending" and overview.reason == _NEVER
    return waits_for_ever or (overview.state in ("cancelled", "stopped") and overview.seconds is None)


def _why(name: str, overview: RunOverview) -> str:
    return f"'{name}' {overview.state}" + (f": {overview.error}" if overview.error else "")
