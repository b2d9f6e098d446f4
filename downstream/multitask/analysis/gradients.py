"""Do tasks pull the shared encoder the same way? Figure 3 of the RCM paper.

The paper takes the gradients of every task on minibatches of the training set and compares the tasks by
Representation Similarity Analysis at several depths. A task that finds the same minibatches alike as another one, by
the gradients that they cause, is similar to it: 1. Beside that stands what is meant by interference itself: the cosine
between two tasks' gradients of the same minibatch, which is negative where one task's step undoes the other's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polyscene.downstream.backbones import LAYERS
from polyscene.runtime.errors import RunFailed, UserError
from polyscene.runtime.features import normalise

from ..data.transforms import Batch
from ..models.base import DenseModel
from ..rcm.state import task_of
from ..tasks.spec import TaskSpec
from .rsa import cosines, dissimilarities, similarity

DEPTHS = ("stem", *LAYERS)


@dataclass(frozen=True)
class GradientSimilarity:
    """How similar the gradients of the tasks are.

    Attributes:
        tasks: N names.
        depths: D parts of the encoder, first to last.
        of: ``shared``: gradients of the parameters that all tasks train; ``own``: of each task's own.
        rsa: (D, N, N) Spearman's correlation of the dissimilarities between minibatches.
        cosine: (D, N, N) mean cosine of gradients of the same minibatch; None for ``own``.
        batches: K minibatches.
    """

    tasks: tuple[str, ...]
    depths: tuple[str, ...]
    of: str
    rsa: Tensor
    cosine: Tensor | None
    batches: int


def gradient_similarity(
    model: DenseModel,
    batches: Iterable[Batch],
    specs: Mapping[str, TaskSpec],
    *,
    device: torch.device,
    precision: str = "fp32",
    values: int | None = 262_144,
    chunk: int | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> GradientSimilarity:
    """Compare the tasks' gradients on the same minibatches, in evaluation mode; the model stays as it is.

    Args:
        model: with at least two tasks, on ``device``.
        batches: K >= 3 minibatches with the targets of all tasks of ``specs``.
        specs: the tasks to be compared.
        device: where to compute.
        precision: ``fp32`` or ``bf16`` (autocast).
        values: entries of the gradient that are compared at every depth, drawn once; None: all. A correlation over
            262,144 entries is within 0.002 of that over all, and a minibatch takes a megabyte a task and depth.
        chunk: images per backward pass; None: the whole minibatch. The minibatch's gradient is their mean.
        seed: of the draw.
        progress: called with the number of minibatches done.

    Raises:
        UserError: fewer than two tasks or three minibatches, or an encoder in which nothing is trained.
        RunFailed: a gradient is not finite.
    """
    tasks = tuple(specs)
    groups = comparable_parameters(model, tasks)
    of = "shared" if _trains_together(model) else "own"
    depths = tuple(groups[tasks[0]])
    chosen = {depth: _draw(groups[tasks[0]][depth], values, seed + i) for i, depth in enumerate(depths)}
    found: dict[str, dict[str, list[Tensor]]] = {depth: {task: [] for task in tasks} for depth in depths}
    was_training = model.training
    model.eval()
    try:
        with _asking(groups.values()):
            for done, batch in enumerate(batches, start=1):
                for task, parts in _gradients(model, batch.to(device), specs, groups, precision, chunk).items():
                    for depth, vector in parts.items():
                        kept = vector[chosen[depth].to(vector.device)].float().cpu()
                        if not kept.isfinite().all():
                            raise RunFailed(f"the gradient of task '{task}' is not finite; use precision=fp32")
                        found[depth][task].append(kept)
                if progress is not None:
                    progress(done)
    finally:
        model.train(was_training)
    count = len(found[depths[0]][tasks[0]])
    if count < 3:
        raise UserError(f"{count} minibatches are too few to compare gradients; take at least 3")
    stacked = [[torch.stack(found[depth][task]) for task in tasks] for depth in depths]
    rsa = torch.stack([similarity([dissimilarities(vectors) for vectors in row]) for row in stacked])
    cosine = torch.stack([_mean_cosines(row) for row in stacked]) if of == "shared" else None
    return GradientSimilarity(tasks, depths, of, rsa, cosine, count)


def comparable_parameters(model: DenseModel, tasks: Sequence[str]) -> dict[str, dict[str, list[nn.Parameter]]]:
    """Task -> depth -> the parameters whose gradients are compared.

    Raises:
        UserError: fewer than two tasks, or one that trains nothing in the encoder.
    """
    if len(tasks) < 2:
        raise UserError(f"gradients of {len(tasks)} task cannot be compared; use a run of two or more tasks")
    return {task: encoder_parameters(model, task) for task in tasks}


def encoder_parameters(model: DenseModel, task: str) -> dict[str, list[nn.Parameter]]:
    """The encoder's parameters that the task trains, by depth: those that all tasks share, else its own.

    Returns:
        ``stem``, ``layer1`` ... ``layer4`` -> parameters in a fixed order; depths without any are left out.

    Raises:
        UserError: the task trains nothing there.
    """
    body = model.encoder.body
    shared = _trains_together(model)
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in body.named_parameters():
        if task_of(name) != (None if shared else task) or "initial" in name.split("."):
            continue
        first = name.split(".")[0]
        groups.setdefault(first if first in LAYERS else "stem", []).append(parameter)
    if not groups:
        raise UserError(f"task '{task}' trains nothing in this encoder, so that there are no gradients to compare")
    return groups


def _trains_together(model: DenseModel) -> bool:
    return model.parameter_counts().shared_trained > 0


@contextmanager
def _asking(groups: Iterable[Mapping[str, Sequence[nn.Parameter]]]) -> Iterator[None]:
    """Within, these parameters ask for gradients; afterwards, as before."""
    parameters = [parameter for group in groups for part in group.values() for parameter in part]
    before = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, asked in zip(parameters, before):
            parameter.requires_grad_(asked)


def _gradients(
    model: DenseModel,
    batch: Batch,
    specs: Mapping[str, TaskSpec],
    groups: Mapping[str, Mapping[str, Sequence[nn.Parameter]]],
    precision: str,
    chunk: int | None,
) -> dict[str, dict[str, Tensor]]:
    """Task -> depth -> gradient (P,) of the task's loss on the minibatch."""
    total = len(batch.images)
    sums: dict[str, dict[str, Tensor]] = {task: {} for task in specs}
    for start in range(0, total, chunk or total):
        part = slice(start, start + (chunk or total))
        images = normalise(batch.images[part]).contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            outputs = model(images, list(specs)).final
        for i, (task, spec) in enumerate(specs.items()):
            target = batch.targets[task]
            loss = spec.loss(outputs[task], target.values[part], target.valid[part]) * (len(images) / total)
            wanted = [parameter for each in groups[task].values() for parameter in each]
            given = torch.autograd.grad(loss, wanted, retain_graph=i + 1 < len(specs), allow_unused=True)
            vectors = iter(
                torch.zeros_like(parameter).flatten() if gradient is None else gradient.detach().flatten()
                for parameter, gradient in zip(wanted, given)
            )
            for depth, parameters in groups[task].items():
                vector = torch.cat([next(vectors) for _ in parameters])
                sums[task][depth] = sums[task][depth] + vector if depth in sums[task] else vector
    return sums


def _draw(parameters: Sequence[nn.Parameter], values: int | None, seed: int) -> Tensor:
    """Which entries of the concatenated gradient are compared, sorted."""
    total = sum(parameter.numel() for parameter in parameters)
    if values is None or values >= total:
        return torch.arange(total)
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:values].sort().values


def _mean_cosines(vectors: Sequence[Tensor]) -> Tensor:
    count = len(vectors)
    result = torch.eye(count, dtype=torch.float64)
    for i in range(count):
        for j in range(i):
            result[i, j] = result[j, i] = cosines(vectors[i], vectors[j]).mean()
    return result
