"""Steps that cannot run, or not in this order, are refused before anything starts."""

import json
from pathlib import Path

import pytest
from chain_jobs import DIAMOND, PROBE

from polyscene.launch.cluster.command_line import parse_command
from polyscene.runtime.config import to_dict


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["steps.left.after=[]"], "data.train: 'runs/scenes/images/train' is written by step 'data'; add 'data' to"),
        (["steps.end.after=left"], "report: 'runs' is written by step 'right'; add 'right' to its 'after'"),
        (["steps.right.command=" + PROBE.format("random", "runs/left")], "'left' and 'right' both write 'runs/left'"),
        (
            ["steps.right.command=" + PROBE.format("nowhere", "runs/r")],
            "weights: 'nowhere' does not exist, and no step",
        ),
        (["steps.left.cluster=cluster/slurm_cpu"], "some steps run on SLURM and some on this machine (local, slurm)"),
        (["steps.left.cluster=cluster/slurm_8gpu", "cluster=cluster/slurm_cpu"], "probe runs as one process"),
    ],
)
def test_refusals_are_one_line_before_anything_starts(refused, changes, words):
    assert words in refused(*changes)


def test_a_run_of_another_config_is_refused_at_once(chain_file, polyscene, jobs):
    file = chain_file(DIAMOND)
    Path("runs/left").mkdir(parents=True)
    config = parse_command(DIAMOND["left"][0].split()).config
    for changes, refused in (({"workers": 9}, False), ({"k": 3}, True)):
        Path("runs/left/config.yaml").write_text(json.dumps({**to_dict(config), **changes}))
        code, _, err = polyscene("chain", file, "--dry-run")
        assert code == (2 if refused else 0), err
    assert "steps.left: 'runs/left' holds a run with another config (k: 3 -> 20)" in err


@pytest.mark.parametrize("more", [(), ("data.cache=memory",)])
def test_a_pretraining_that_was_begun_goes_on(chain_file, polyscene, words, more):
    """What a real run keeps of its config is what the chain compares with."""
    command = words("runs/ssl", "model.backbone=resnet10t", *more)
    assert polyscene(*command, "max_steps=1")[0] == 0
    code, _, err = polyscene("chain", chain_file({"ssl": (" ".join(map(str, command)),)}), "--dry-run")
    assert code == 0, err
    other = chain_file({"ssl": (" ".join(map(str, [*command, "data.cache_side=96", "data.cache=disk"])),)})
    code, _, err = polyscene("chain", other, "--dry-run")
    assert code == 2
    assert "steps.ssl: 'runs/ssl' holds a run with another config (data.cache_side: " in err
