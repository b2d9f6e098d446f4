"""``polyscene multitask``: from a backbone to a model of dense tasks, for one seed or several."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from polyscene.downstream.multitask.models.model_file import load_model
from polyscene.runtime.distributed import World, join_world
from polyscene.runtime.results import read_results

from .multitask_checks import check_values
from .multitask_config import MultitaskConfig
from .multitask_model import Ingredients, as_base, open_ingredients, open_weights
from .multitask_plan import check_processes, plan_schedule
from .multitask_results import Comparison, open_comparison, write_seed_results
from .multitask_run import open_directory, run_one


def multitask(config: MultitaskConfig) -> int:
    """Train and evaluate, or continue; returns the exit code.

    Raises:
        UserError: anything wrong with the config, the data, the weights or the run directory.
    """
    check_values(config)
    config = as_base(config)
    with join_world(config.device) as world:
        # Everything that can be refused is looked at before the run directory gets its config: a corrected command
        # must not be told that another config is there.
        check_processes(config, world.size)
        found = open_ingredients(config)
        plan_schedule(config, found.train)
        comparison = open_comparison(config, found)
        if config.seeds is None:
            return run_one(config, found, comparison, world, Path(config.out))
        return _run_seeds(config, found, comparison, world)


def _run_seeds(config: MultitaskConfig, found: Ingredients, comparison: Comparison, world: World) -> int:
    """One run after the other in OUT/seed-N, then their mean and deviation in OUT."""
    run = open_directory(config, world, may_differ=("seed", "seeds"))
    results = run.path / "results.json"
    if results.exists() and read_results(results).protocol.get("seeds") == list(config.seeds):
        run.log(f"'{run.path}' is already finished (seeds {list(config.seeds)}); overwrite=true starts afresh")
        return 0
    folders = []
    for seed in config.seeds:
        folder = run.path / f"seed-{seed}"
        one = dataclasses.replace(config, out=str(folder), seed=seed, seeds=None)
        run.log(f"seed {seed}: '{folder}'")
        # Random weights differ by seed, and so do the moments of their responses.
        moments_folder = folder if config.weights == "random" else run.path
        code = run_one(one, reopened(found, one), comparison, world, moments_folder)
        if code != 0:
            return code
        folders.append(folder)
    if world.is_main:
        write_seed_results(config, found, comparison, folders, run)
    world.barrier()
    return 0


def reopened(found: Ingredients, config: MultitaskConfig) -> Ingredients:
    """The ingredients of another seed: a base model that no run has changed, and its own weights if they are random."""
    base = None if found.base is None else load_model(config.model.base)
    weights = open_weights(config) if config.weights == "random" and base is None else found.weights
    return dataclasses.replace(found, base=base, weights=weights)
