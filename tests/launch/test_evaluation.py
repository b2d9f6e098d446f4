"""What all evaluation commands share: which backbones, which folder."""

from dataclasses import replace

import pytest
import torch

from polyscene.launch.evaluation import finish_evaluation, open_evaluation, open_subjects, random_weights
from polyscene.launch.evaluation_config import EvaluationConfig
from polyscene.runtime.errors import UserError
from polyscene.runtime.results import Evaluation, Metric, read_results
from polyscene.runtime.weights import weights_hash, write_weights


@pytest.fixture
def config(tmp_path):
    write_weights(random_weights("resnet18", 7), tmp_path / "backbone.safetensors")
    return EvaluationConfig(weights=str(tmp_path / "backbone.safetensors"), out=str(tmp_path / "out"))


def test_the_baseline_is_the_same_architecture_at_random(config):
    measured, baseline = open_subjects(config)
    assert (measured.name, baseline.name) == ("weights", "random")
    assert measured.weights.arch == baseline.weights.arch == "resnet18"
    assert weights_hash(measured.weights) == weights_hash(random_weights("resnet18", 7))
    assert weights_hash(baseline.weights) == weights_hash(random_weights("resnet18", config.seed))
    assert weights_hash(measured.weights) != weights_hash(baseline.weights)


def test_the_baseline_can_be_switched_off(config):
    assert [s.name for s in open_subjects(replace(config, baseline=None))] == ["weights"]


def test_random_weights_are_their_own_baseline(config):
    (subject,) = open_subjects(replace(config, weights="random", arch="resnet18", seed=3))
    assert weights_hash(subject.weights) == weights_hash(random_weights("resnet18", 3))


def test_random_weights_leave_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    random_weights("resnet18", 0)
    assert torch.equal(torch.rand(3), expected)


def test_another_architecture_is_refused(config):
    with pytest.raises(UserError, match="is not resnet50"):
        open_subjects(replace(config, arch="resnet50"))


def test_a_hash_sees_every_value():
    weights = random_weights("resnet18", 0)
    before = weights_hash(weights)
    weights.state["layer4.1.bn2.bias"][3] += 1e-6
    assert weights_hash(weights) != before


def test_a_finished_evaluation_is_not_repeated_and_another_is_refused(config, capsys):
    run = open_evaluation(config)
    finish_evaluation(run, Evaluation("probe", "kNN", "a", [Metric("x", "X")], {"x": 0.5}))
    assert read_results(run.path / "results.json").values == {"x": 0.5}
    assert open_evaluation(replace(config, workers=0)) is None
    assert "already finished" in capsys.readouterr().err
    with pytest.raises(UserError, match="seed: 0 -> 1"):
        open_evaluation(replace(config, seed=1))
    assert open_evaluation(replace(config, seed=1, overwrite=True)) is not None
    assert not (run.path / "results.json").exists()
