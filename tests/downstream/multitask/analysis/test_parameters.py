"""Growth of real models against the paper's numbers and against counting their tensors."""

import pytest

from polyscene.downstream.multitask.analysis.parameters import TITLES, parameter_growth
from polyscene.downstream.multitask.models.build import KINDS, ModelOptions, empty_model
from polyscene.downstream.multitask.mti_net.build import INTERACTING
from polyscene.runtime.errors import UserError

ENCODER = 11_176_512  # ResNet-18 without classifier
BANK = 10_994_880


@pytest.fixture(scope="module")
def grown():
    return parameter_growth(ModelOptions("rcm", head="aspp", head_width=8), "resnet18", 3)


@pytest.mark.parametrize(
    ("kind", "shared", "of_task"),
    [
        ("single", 0, ENCODER),
        ("multi_task", ENCODER, 0),
        ("frozen", ENCODER, 0),
        ("task_norms", ENCODER - 9_600, 9_600),
        ("task_convolutions", 9_600, ENCODER - 9_600),
        ("series_adapters", BANK, 1_396_736 + 2 * 3_904 + 172_032 + 9_600),
        ("parallel_adapters", BANK, 1_220_800 + 172_032 + 9_600),
        # 17 modulators, their row norms, the copies of the shortcuts, BatchNorms.
        ("rcm", BANK, 1_396_736 + 3_904 + 172_032 + 9_600),
    ],
)
def test_growth_of_resnet18(grown, kind, shared, of_task):
    found = grown[kind]
    assert found.shared == shared
    assert sum(found.of_task.values()) == of_task
    assert found.encoder == (shared + of_task, shared + 2 * of_task, shared + 3 * of_task)
    assert found.heads == (found.heads[0], 2 * found.heads[0], 3 * found.heads[0])


def test_all_kinds_are_there(grown):
    assert list(grown) == list(KINDS)
    assert list(TITLES) == [*KINDS, *INTERACTING]


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_the_parameters_that_the_model_holds(kind):
    """Counted again from the state dict; frozen BatchNorms keep theirs as buffers."""
    options = ModelOptions("rcm", head="aspp", head_width=8, reparameterize="all")
    found = parameter_growth(options, "resnet10t", 2, kinds=[kind])[kind]
    own = ModelOptions(kind, head="aspp", head_width=8, reparameterize="all")
    model = empty_model(own, "resnet10t", {"a": 1, "b": 1})
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    held = {
        key: value.numel()
        for key, value in model.state_dict().items()
        if key.split(".")[-1] not in statistics and "initial" not in key.split(".")
    }
    assert sum(n for key, n in held.items() if key.startswith("encoder.")) == found.encoder[1]
    assert sum(n for key, n in held.items() if key.startswith("heads.")) == found.heads[1]


def test_a_reduced_rank_is_for_rcm_alone():
    options = ModelOptions("rcm", head="aspp", head_width=8, rank=0.5)
    kinds = ("rcm", "parallel_adapters")
    found = parameter_growth(options, "resnet10t", 1, kinds)
    whole = parameter_growth(ModelOptions("rcm", head="aspp", head_width=8), "resnet10t", 1, kinds)
    assert 2 * found["rcm"].of_task["modulators"] == whole["rcm"].of_task["modulators"]
    assert found["parallel_adapters"] == whole["parallel_adapters"]


def test_refusals():
    options = ModelOptions("rcm", head="aspp", head_width=8)
    with pytest.raises(UserError, match="tasks=0"):
        parameter_growth(options, "resnet18", 0)
    with pytest.raises(UserError, match="convnext_atto"):
        parameter_growth(options, "convnext_atto", 1)
