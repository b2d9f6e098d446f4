"""Which steps have done their work, and which have done it with something older."""

import json
import os
import shutil
import time
from pathlib import Path

import torch
from chain_jobs import DIAMOND, leave_results
from safetensors.torch import save_file

from polyscene.launch.chain_config import load_chain
from polyscene.launch.chain_finished import finished_file, finished_steps, outdated_steps
from polyscene.launch.cluster.command_line import parse_command
from polyscene.launch.cluster.job_record import JobRecord, JobState, now, write_record, write_state
from polyscene.runtime.results import Evaluation, Metric, write_results


def test_what_says_that_a_command_is_finished(here):
    for words in (
        ["scenes", "s"],
        ["probe", "probe/knn_folder", "weights=random", "out=p", "data.train=images", "data.test=images"],
        ["export", "p", "w.pth"],
        ["report", "p"],
        ["tasks", "merge", "m", "a", "b"],
        ["tasks", "remove", "m", "depth", "less.safetensors"],
    ):
        command = parse_command(words)
        assert finished_file(command) is None
        leave_results(words)
        assert finished_file(command).is_file()


def test_a_pretraining_is_finished_at_the_end_of_its_schedule(here):
    words = ["pretrain", "pretrain/quickstart", "out=p", "data.root=images", "epochs=20"]
    Path("p").mkdir()

    def finished(step, epochs, *more):
        save_file({"x": torch.zeros(1)}, "p/backbone.safetensors", metadata={"step": str(step), "epochs": str(epochs)})
        return finished_file(parse_command([*words, *more])) is not None

    assert finished(60, 20)
    assert not finished(30, 10)
    assert finished(30, 10, "max_steps=30")
    assert not finished(30, 10, "max_steps=31")
    assert finished(60, 20, "max_steps=90")
    Path("p/backbone.safetensors").write_bytes(b"half")
    assert finished_file(parse_command(words)) is None


def test_a_transfer_is_finished_with_results_of_the_whole_training(here):
    words = ["multitask", "multitask/scenes/demo", "out=m", "weights=random", "arch=resnet18"]
    Path("m").mkdir()

    def finished(steps, *more):
        metadata = {"metadata": json.dumps({"steps": str(steps)})}
        save_file({"x": torch.zeros(1)}, "m/model.safetensors", metadata=metadata)
        return finished_file(parse_command([*words, *more])) is not None

    assert not finished(60)
    evaluation = Evaluation("multitask", "t", "s", [Metric("m", "m")], {"m": 1.0}, protocol={"seeds": [0, 1]})
    write_results(Path("m"), evaluation)
    assert finished(60)
    assert not finished(59)
    assert finished(9, "max_steps=9")
    assert finished(0, "seeds=[0,1]")
    assert not finished(60, "seeds=[0,1,2]")
    assert finished(0, "iterations=0", "model.base=x")
    line = {"step": 8, "loss": 1.0, "epoch": 2.0}
    Path("m/config.yaml").write_text("epochs: 4\nbatch_size: 8\n")
    Path("m/metrics.jsonl").write_text(json.dumps(line) + "\n")
    by_epochs = ("iterations=null", "epochs=4")
    assert [finished(15, *by_epochs), finished(16, *by_epochs)] == [False, True]


def test_predictions_are_finished_when_their_job_said_so(here):
    words = ["predict", "m", "images", "out=o"]
    command = parse_command(words)
    Path("o").mkdir()
    command.run.mkdir()
    record = JobRecord(run=command.run, job_id="7", executor="slurm", name="", command=words, submitted=now(),
                       cluster={}, logs="", max_requeues=0)  # fmt: skip
    write_record(command.run, record)
    for state, job_id, done in (("running", "7", False), ("completed", "6", False), ("completed", "7", True)):
        write_state(command.run, JobState(state=state, job_id=job_id))
        assert (finished_file(command) is not None) == done
    assert finished_file(parse_command([*words, "count=3"])) is None


def test_pages_are_made_anew_and_older_results_are_named(chain_file, polyscene, jobs):
    file = chain_file(DIAMOND)
    assert polyscene("chain", file)[0] == 0
    jobs.started.clear()
    shutil.rmtree("runs/left")
    assert polyscene("chain", file)[0] == 0
    assert jobs.started == ["left", "report-job"]
    Path("runs/scenes/scenes.json").unlink()
    chain = load_chain(file)
    finished = finished_steps(chain)
    assert list(finished) == ["left", "right", "end"]
    assert outdated_steps(chain, finished) == ["left", "right", "end"]
    _, _, err = polyscene("chain", file, "--dry-run")
    assert "warning: 'left' is finished, but a step before it is not" in err
    # A result that is newer than the page.
    Path("runs/scenes/scenes.json").touch()
    os.utime("runs/right/results.json", (time.time() + 10,) * 2)
    assert "end" not in finished_steps(chain)
