"""Parameters and FLOPs against a count by hooks."""

import pytest
import torch
from torch import nn

from polyscene.downstream.multitask.models.build import ModelOptions, build_model
from polyscene.downstream.multitask.resources import measure_resources

CHANNELS = {"depth": 1, "segmentation": 5}
SIZE = (33, 48)


@pytest.mark.parametrize("kind", ["multi_task", "frozen", "task_norms", "single"])
def test_counts(weights, kind):
    options = ModelOptions(kind, head_width=16)
    model = build_model(options, weights("resnet18"), CHANNELS)
    found = measure_resources(model, SIZE)
    assert found.size == SIZE
    assert found.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found.parameters == found.shared + sum(found.tasks.values())
    body = sum(
        value.numel()
        for name, value in weights("resnet18").state.items()
        if "running" not in name and "num_batches" not in name and not name.startswith("fc")
    )
    heads = {task: sum(p.numel() for p in model.heads.tasks[task].parameters()) for task in CHANNELS}
    if kind in ("multi_task", "frozen"):
        assert found.shared == body
        assert found.tasks == heads
    if kind == "single":
        assert found.shared == 0
        assert found.tasks == {task: body + head for task, head in heads.items()}
    assert model.place().type == "cpu"


@pytest.mark.parametrize("kind", ["multi_task", "single"])
def test_operations_equal_a_count_of_every_convolution(weights, kind):
    model = build_model(ModelOptions(kind, head_width=16), weights("resnet18"), CHANNELS).eval()
    total = 0

    def count(module, inputs, output):
        nonlocal total
        total += 2 * output.numel() * module.weight[0].numel()

    hooks = [module.register_forward_hook(count) for module in model.modules() if isinstance(module, nn.Conv2d)]
    with torch.no_grad():
        model(torch.zeros(1, 3, *SIZE))
    for hook in hooks:
        hook.remove()
    assert measure_resources(model, SIZE).flops == total


def test_rcm_runs_the_encoder_for_every_task(weights):
    options = ModelOptions("rcm", head_width=16, response_init=False)
    both = measure_resources(build_model(options, weights("resnet18"), CHANNELS), SIZE)
    one = measure_resources(build_model(options, weights("resnet18"), {"depth": 1}), SIZE)
    assert both.flops > 1.9 * one.flops
    assert both.shared == one.shared
    assert both.tasks["depth"] == one.tasks["depth"]
    modulators = 1_397_000
    assert both.tasks["depth"] > modulators
