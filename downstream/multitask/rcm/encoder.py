"""A ResNet encoder that is told with every call which task it works for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from polyscene.downstream.backbones import LAYERS, feature_maps
from polyscene.runtime.errors import UserError
from polyscene.runtime.weights import BackboneWeights

from .pairs import Pair, convolution_pairs
from .per_task import TaskModule, check_new_task

# What timm's blocks run before the shortcut is added, and the activation after it.
_BLOCKS = {
    BasicBlock: (("conv1", "bn1", "drop_block", "act1", "aa", "conv2", "bn2", "se", "drop_path"), "act2"),
    Bottleneck: (
        ("conv1", "bn1", "act1", "conv2", "bn2", "drop_block", "act2", "aa", "conv3", "bn3", "se", "drop_path"),
        "act3",
    ),
}

# A pair's place, its convolution and its BatchNorm -> what replaces the two (or they themselves, to be frozen).
Replace = Callable[[Pair, nn.Conv2d, nn.BatchNorm2d], tuple[nn.Module, nn.Module]]


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters of an encoder.

    Attributes:
        bank: frozen filters that all tasks share.
        other: other frozen parameters that all tasks share (affine BatchNorm parameters, squeeze-and-excitation).
        tasks: task -> kind -> trained parameters: ``modulators`` (the matrices ``W_t``, or adapters), ``gains``
            (row norms of Normalized Feature Fusion), ``convolutions`` (per-task copies), ``norms`` (BatchNorm).
    """

    bank: int
    other: int
    tasks: dict[str, dict[str, int]]

    def of_task(self, task: str) -> int:
        """All trained parameters of a task in the encoder."""
        return sum(self.tasks[task].values())


class TaskEncoder(nn.Module):
    """The chosen stages of a ResNet as a list of feature maps, for one of several tasks at a time.

    The counterpart of :class:`polyscene.downstream.backbones.FeatureMaps` with tasks: some modules have a part for
    every task, everything else is frozen. It starts without tasks.

    Attributes:
        body: a timm ResNet whose convolutions and BatchNorms may have been replaced by ``TaskModule``.
        pairs: where its convolutions and BatchNorms are.
        layers, channels, strides: of the feature maps, as in ``FeatureMaps``.
    """

    def __init__(self, body: ResNet, pairs: Sequence[Pair], layers: Sequence[str], strides: Sequence[int]):
        super().__init__()
        self.body = body
        self.pairs = tuple(pairs)
        self.layers, self.strides = tuple(layers), tuple(strides)
        widths = {info["module"]: info["num_chs"] for info in body.feature_info}
        self.channels = tuple(widths[layer] for layer in layers)
        self._tasks: list[str] = []

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order in which they were added."""
        return tuple(self._tasks)

    def forward(self, images: Tensor, task: str) -> list[Tensor]:
        """Normalised images (N, 3, H, W) -> one (N, C, ceil(H / stride), ceil(W / stride)) map per chosen stage.

        Raises:
            UserError: no such task.
        """
        self._check_present(task)
        x = images
        for name in ("conv1", "bn1", "act1", "maxpool"):
            x = _run(getattr(self.body, name), x, task)
        maps = []
        for layer in LAYERS[: LAYERS.index(self.layers[-1]) + 1]:
            x = _run(getattr(self.body, layer), x, task)
            if layer in self.layers:
                maps.append(x)
        return maps

    def add_task(self, task: str, copy_from: str | None = None) -> None:
        """Add a task; it starts from the initial state (the pretrained network), or as a copy of another task.

        Raises:
            UserError: the name is taken or cannot be used, or there is no task ``copy_from``.
        """
        check_new_task(task, self._tasks)
        if copy_from is not None:
            self._check_present(copy_from)
        for module in self._task_modules():
            module.add_task(task, copy_from)
        self._tasks.append(task)

    def remove_task(self, task: str) -> None:
        """Remove a task with all its parameters.

        Raises:
            UserError: no such task.
        """
        self._check_present(task)
        for module in self._task_modules():
            module.remove_task(task)
        self._tasks.remove(task)

    def train_only(self, tasks: Iterable[str]) -> None:
        """Ask for gradients of these tasks' parameters, and of no others.

        Raises:
            UserError: no such task.
        """
        chosen = list(tasks)
        for task in chosen:
            self._check_present(task)
        self.requires_grad_(False)
        for module in self._task_modules():
            for task in chosen:
                module.tasks[task].requires_grad_(True)

    def task_parameters(self, task: str) -> Iterator[nn.Parameter]:
        """The task's own parameters, for its optimiser.

        Raises:
            UserError: no such task.
        """
        self._check_present(task)
        for module in self._task_modules():
            yield from module.tasks[task].parameters()

    def parameter_counts(self) -> ParameterCounts:
        """Count what is shared and what each task owns. The stored start values of new tasks are not counted."""
        bank = other = 0
        in_pairs: set[int] = set()
        for pair in self.pairs:
            convolution, norm = self.body.get_submodule(pair.convolution), self.body.get_submodule(pair.norm)
            in_pairs.update(id(parameter) for module in (convolution, norm) for parameter in module.parameters())
            if not isinstance(convolution, TaskModule):
                bank += convolution.weight.numel()
            elif hasattr(convolution, "bank"):
                bank += convolution.bank.numel()
            if isinstance(norm, FrozenBatchNorm2d):
                other += norm.weight.numel() + norm.bias.numel()
        other += sum(parameter.numel() for parameter in self.body.parameters() if id(parameter) not in in_pairs)
        tasks: dict[str, dict[str, int]] = {task: {} for task in self._tasks}
        for module in self._task_modules():
            for task, counts in tasks.items():
                for kind, number in module.parameter_counts(task).items():
                    counts[kind] = counts.get(kind, 0) + number
        return ParameterCounts(bank, other, tasks)

    def _task_modules(self) -> list[TaskModule]:
        return [module for module in self.modules() if isinstance(module, TaskModule)]

    def _check_present(self, task: str) -> None:
        if task not in self._tasks:
            raise UserError(f"task '{task}' is not in this model, which has: {', '.join(self._tasks) or 'none'}")


def build_encoder(
    weights: BackboneWeights, *, layers: Sequence[str], output_stride: int, replace: Replace
) -> TaskEncoder:
    """Make an encoder without tasks from a ResNet's weights, in evaluation mode, on the CPU.

    What ``replace`` leaves as it is gets frozen: convolutions without gradients, BatchNorms with fixed statistics
    even in training mode.

    Args:
        weights, layers, output_stride: see :func:`polyscene.downstream.backbones.feature_maps`.
        replace: called for every convolution with its BatchNorm.

    Raises:
        UserError: weights that ``feature_maps`` or ``convolution_pairs`` refuse.
        ValueError: unknown stage or output stride.
    """
    features = feature_maps(weights, layers=layers, output_stride=output_stride)
    body = features.body
    pairs = convolution_pairs(body)
    last = LAYERS.index(features.layers[-1])
    for unused in LAYERS[last + 1 :]:
        # Its parameters would be trained without ever getting a gradient.
        setattr(body, unused, nn.Identity())
        pairs = [pair for pair in pairs if not pair.convolution.startswith(f"{unused}.")]
    body.requires_grad_(False)
    for pair in pairs:
        convolution, norm = body.get_submodule(pair.convolution), body.get_submodule(pair.norm)
        new_convolution, new_norm = replace(pair, convolution, norm)
        if new_norm is norm:
            new_norm = _frozen(norm)
        body.set_submodule(pair.convolution, new_convolution)
        body.set_submodule(pair.norm, new_norm)
    return TaskEncoder(body, pairs, features.layers, features.strides).eval()


def _frozen(norm: nn.BatchNorm2d) -> FrozenBatchNorm2d:
    frozen = FrozenBatchNorm2d(norm.num_features, norm.eps)
    frozen.load_state_dict(copy.deepcopy(norm.state_dict()))
    return frozen


def _run(module: nn.Module, x: Tensor, task: str) -> Tensor:
    """Run a part of a ResNet, telling its task modules the task."""
    if isinstance(module, TaskModule):
        return module(x, task)
    if isinstance(module, nn.Sequential):
        for child in module:
            x = _run(child, x, task)
        return x
    if type(module) not in _BLOCKS:
        return module(x)
    path, activation = _BLOCKS[type(module)]
    shortcut = x if module.downsample is None else _run(module.downsample, x, task)
    for name in path:
        step = getattr(module, name)
        if step is not None:
            x = _run(step, x, task)
    return getattr(module, activation)(x + shortcut)
