"""Whole runs on a real cluster of two nodes: the same weights as without a cluster, whatever happens on the way."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from polyscene.launch.cluster.job_record import read_record, read_state
from polyscene.launch.cluster.snapshot import take_snapshot
from polyscene.runtime.checkpoint import list_checkpoints, read_checkpoint
from polyscene.runtime.weights import read_weights

# Steps are short on a fast machine: enough of them that a signal still finds the run at work.
STEPS = 21
SMALL = ("model.backbone=resnet10t", "epochs=7", "checkpoint.every_steps=2")
ONE_THREAD = {"OMP_NUM_THREADS": 1}


@pytest.fixture
def two_nodes(cluster_file):
    return cluster_file(executor="slurm", nodes=2, time="10m", environment=ONE_THREAD)


@pytest.fixture
def one_node(cluster_file):
    return cluster_file(executor="slurm", time="10m", environment=ONE_THREAD)


@pytest.fixture
def start_run(polyscene, words):
    """``start_run(cluster, out, *more)``: submit a small pretraining; its job id."""

    def start(cluster, out, *more):
        code, _, errors = polyscene("submit", cluster, *words(out, *SMALL, *more))
        assert code == 0, errors
        return read_record(out).job_id

    return start


@pytest.fixture(scope="module")
def torchrun_result(request, tmp_path_factory):
    """``torchrun_result(words)``: weights and final state after the same run with two local processes, made once."""
    made = {}

    def run(make_words):
        if not made:
            out = tmp_path_factory.mktemp("torchrun") / "run"
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
            command += ["-m", "polyscene.launch.cli", *map(str, make_words(out, *SMALL))]
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=280, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
            assert done.returncode == 0, done.stdout + done.stderr
            made["out"] = out
        return made["out"]

    return run


def assert_same_run(one, other):
    """Bit for bit: the exported backbone, and everything in the final checkpoint."""
    first, second = read_weights(one).state, read_weights(other).state
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
    states = [read_checkpoint(list_checkpoints(out / "checkpoints")[-1]) for out in (one, other)]
    assert states[0]["step"] == states[1]["step"] == STEPS
    for part in ("model", "optimizer", "norm_statistics"):
        compare(states[0][part], states[1][part], part)


def compare(one, other, where):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            compare(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other)):
            compare(*pair, f"{where}.{index}")
    else:
        assert one == other, where


def logged_steps(out):
    try:
        lines = (out / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["step"] for line in lines if line.endswith("}")]
    except OSError:
        return []


def wait_for_step(out, step, seconds=150):
    end = time.monotonic() + seconds
    while step > max(logged_steps(out), default=0):
        assert time.monotonic() < end, log_of(out)
        time.sleep(0.03)


def log_of(out):
    texts = [f.read_text() for f in [*sorted((out / "jobs").glob("*_log.*")), out / "log.txt"] if f.exists()]
    return "\n".join(texts)[-6000:]


def rank_process(job_id, rank):
    """The process number of a rank of a job."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                variables = (entry / "environ").read_bytes().split(b"\0")
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            wanted = {f"SLURM_JOB_ID={job_id}".encode(), f"SLURM_PROCID={rank}".encode()}
            if wanted <= set(variables) and b"submitit.core._submit" in command and b"srun" not in command:
                return int(entry.name)
    raise AssertionError(f"rank {rank} of job {job_id} is not there")


def seconds_run(cluster, job):
    """Since when a job runs; 0 if it does not."""
    fields = cluster.job(job)
    hours, minutes, seconds = map(int, fields["RunTime"].split(":"))
    return hours * 3600 + minutes * 60 + seconds if fields["JobState"] == "RUNNING" else 0


def disturb(cluster, trouble, job):
    if trouble == "signalled":
        cluster.run("scancel", "--signal=USR2", job)
    elif trouble == "killed":
        os.kill(rank_process(job, 1), signal.SIGKILL)
    elif trouble == "requeued":
        cluster.run("scontrol", "requeue", job)
    else:  # "limited": the run sleeps until its time is nearly over
        os.kill(rank_process(job, 0), signal.SIGSTOP)


def resumed_at(out):
    """Steps at which the attempts after the first went on."""
    return [int(n) for n in re.findall(r"continuing at step (\d+)", (out / "log.txt").read_text())]


@pytest.mark.timeout(600)
def test_interrupted_runs_end_with_the_weights_of_an_undisturbed_one(
    slurm_cluster, two_nodes, one_node, cluster_file, start_run, torchrun_result, polyscene, words, tmp_path
):
    """One run of each kind of trouble, all at the same time on the same nodes, and one without any."""
    clusters = {
        "calm": two_nodes,
        "signalled": two_nodes,
        "killed": two_nodes,
        "requeued": one_node,
        "limited": cluster_file(executor="slurm", time="2m", signal_seconds=50, environment=ONE_THREAD),
    }
    jobs = {name: start_run(cluster, tmp_path / name) for name, cluster in clusters.items()}
    stopped_at = {}
    waiting = set(jobs) - {"calm"}
    end = time.monotonic() + 150
    while waiting:
        assert time.monotonic() < end, "\n".join(log_of(tmp_path / name) for name in waiting)
        for name in [name for name in waiting if max(logged_steps(tmp_path / name), default=0) >= 3]:
            disturb(slurm_cluster, name, jobs[name])
            stopped_at[name] = max(logged_steps(tmp_path / name))
            waiting.remove(name)
        time.sleep(0.02)
    alone, together = tmp_path / "alone", torchrun_result(words)
    assert polyscene(*words(alone, *SMALL))[0] == 0
    # SLURM looks at the limits every 30 seconds, and warns 50 to 80 seconds before the end of the two minutes.
    slurm_cluster.wait_for(lambda: not 0 < seconds_run(slurm_cluster, jobs["limited"]) < 75, 100, slurm_cluster.tail)
    with suppress(ProcessLookupError, AssertionError):  # it may have left already
        os.kill(rank_process(jobs["limited"], 0), signal.SIGCONT)
    ends = {name: slurm_cluster.finish(job, 240) for name, job in jobs.items()}
    for name, cluster in clusters.items():
        assert ends[name] == "COMPLETED", log_of(tmp_path / name)
        assert read_state(tmp_path / name).state == "completed"
        assert_same_run(tmp_path / name, together if cluster == two_nodes else alone)
        assert logged_steps(tmp_path / name) == list(range(1, STEPS + 1))
    assert resumed_at(tmp_path / "calm") == []
    for name, stopped in stopped_at.items():
        steps = resumed_at(tmp_path / name)
        assert steps[0] >= stopped - 2, f"{name}: more than one checkpoint interval was repeated"
        # On a slow machine two minutes may be over once more.
        assert len(steps) == 1 or name == "limited"
    # The log says what happened.
    logs = {name: (tmp_path / name / "log.txt").read_text() for name in jobs}
    assert "SIGUSR2: saved and queued again" in logs["signalled"]
    assert "SIGUSR2: saved and queued again" in logs["limited"]
    assert re.search(r"process 1 on n2: killed; queued again \(1 of 3\)", logs["killed"])
    assert read_state(tmp_path / "killed").failures == 1
    assert read_state(tmp_path / "signalled").failures == 0


@pytest.mark.timeout(600)
def test_a_node_that_dies_is_replaced(slurm_cluster, two_nodes, start_run, torchrun_result, words, tmp_path):
    out = tmp_path / "run"
    job = start_run(two_nodes, out)
    wait_for_step(out, 3)
    before = max(logged_steps(out))
    # The machine hangs: its daemon answers no more, and its process does not come to its next step.
    process = rank_process(job, 1)
    os.kill(process, signal.SIGSTOP)
    os.kill(slurm_cluster.nodes["n2"].pid, signal.SIGKILL)
    slurm_cluster.nodes["n2"].wait()
    slurm_cluster.wait_for(lambda: slurm_cluster.job(job)["Restarts"] == "1", 120, slurm_cluster.tail)
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    slurm_cluster.start_node("n2")
    assert slurm_cluster.finish(job, 200) == "COMPLETED", log_of(out)
    (step,) = resumed_at(out)
    assert step >= before - 2
    assert_same_run(out, torchrun_result(words))
    # SLURM saw it, and it is no fault of the run.
    assert (read_state(out).attempt, read_state(out).failures) == (1, 0)


def test_a_sweep_is_one_array_with_a_cap(slurm_cluster, one_node, cluster_file, polyscene, words, tmp_path):
    cluster = cluster_file(executor="slurm", time="10m", environment=ONE_THREAD, array_parallelism=2)
    out = tmp_path / "sweep"
    swept = ("optim.lr=[0.01,0.03]", "seed=[0,1,2]", "max_steps=1", "--sweep")
    code, _, errors = polyscene("submit", cluster, *words(out, *SMALL, *swept))
    assert code == 0, errors
    runs = sorted(path for path in out.iterdir() if path.name.startswith("optim"))
    assert [run.name for run in runs] == [f"optim.lr={lr},seed={seed}" for lr in (0.01, 0.03) for seed in range(3)]
    records = [read_record(run) for run in runs]
    (array,) = {record.job_id.partition("_")[0] for record in records}
    most = 0
    end = time.monotonic() + 200
    while states := slurm_cluster.run("squeue", "--noheader", "--array", f"--jobs={array}", "--format=%T", check=False):
        most = max(most, states.split().count("RUNNING"))
        assert time.monotonic() < end, states
        time.sleep(0.3)
    assert most == 2
    code, table, errors = polyscene("jobs", "--table", out)
    assert code == 0, errors
    assert table.count("completed") == 6, table
    for run in runs:
        assert read_state(run).state == "completed", log_of(out)
        assert (run / "backbone.safetensors").exists()
    # Every combination trained something else.
    assert len({(run / "backbone.safetensors").read_bytes() for run in runs}) == 6


def test_editing_the_source_does_not_change_a_queued_job(slurm_cluster, cluster_file, tmp_path, monkeypatch):
    """The job waits, the source is broken, and the job runs; without a snapshot it does not."""
    checkout = take_snapshot(tmp_path / "checkout")
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    jobs = {}
    for snapshot in (True, False):
        cluster = cluster_file(executor="slurm", time="10m", snapshot=snapshot, sbatch={"hold": True}, max_requeues=0)
        out = tmp_path / f"scenes{snapshot}"
        command = [sys.executable, "-m", "polyscene.launch.cli", "submit", cluster, "scenes", out]
        command += ["count=4", "size=[48,64]", "workers=1"]
        done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        jobs[out] = read_record(tmp_path / f"{out.name}-job").job_id
    broken = checkout / "polyscene" / "launch" / "scenes.py"
    broken.write_text("raise RuntimeError('this is half-edited')\n")
    monkeypatch.setenv("PYTHONPATH", str(checkout))
    for job in jobs.values():
        slurm_cluster.run("scontrol", "release", job)
    safe, unsafe = jobs
    assert slurm_cluster.finish(jobs[safe]) == "COMPLETED", log_of(tmp_path / "scenesTrue-job")
    assert (safe / "NYUD_MT").is_dir()
    assert slurm_cluster.finish(jobs[unsafe]) == "FAILED"
    assert "this is half-edited" in read_state(tmp_path / "scenesFalse-job").message


def test_a_job_killed_by_memory_says_so_and_is_not_started_again(slurm_cluster, cluster_file, start_run, tmp_path):
    cluster = cluster_file(executor="slurm", time="10m", memory="150M", environment=ONE_THREAD)
    out = tmp_path / "run"
    assert slurm_cluster.finish(start_run(cluster, out)) in ("FAILED", "OUT_OF_MEMORY")
    state = read_state(out)
    assert (state.state, state.attempt) == ("failed", 0)
    assert state.message == "killed because it used more memory than the job has; raise memory"


def test_a_cancelled_job_does_not_come_back_and_sigterm_alone_does_not_end_one(
    slurm_cluster, cluster_file, polyscene, words, tmp_path
):
    """SIGTERM comes with a cancellation, and before a preemption, after which the job is to go on.

    Here to the first task of an array, whose bare number would also stand for the second.
    """
    cluster = cluster_file(executor="slurm", time="10m", environment=ONE_THREAD, array_parallelism=1)
    code, _, errors = polyscene("submit", cluster, *words(tmp_path / "sweep", *SMALL, "seed=[0,1]", "--sweep"))
    assert code == 0, errors
    out, other = tmp_path / "sweep" / "seed=0", tmp_path / "sweep" / "seed=1"
    job = read_record(out).job_id
    wait_for_step(out, 2)
    slurm_cluster.run("scancel", "--signal=TERM", job)
    slurm_cluster.wait_for(lambda: read_state(out).state == "requeued", 60, lambda: log_of(out))
    assert read_state(out).message == "SIGTERM: saved and queued again"
    slurm_cluster.wait_for(lambda: slurm_cluster.job(job)["JobState"] == "PENDING", 30, slurm_cluster.tail)
    # The second has its turn; then the first goes on.
    slurm_cluster.wait_for(lambda: read_state(other) is not None, 30, slurm_cluster.tail)
    slurm_cluster.run("scancel", read_record(other).job_id)
    assert slurm_cluster.finish(read_record(other).job_id) == "CANCELLED"
    slurm_cluster.release(job)
    slurm_cluster.wait_for(lambda: read_state(out).attempt == 1, 60, lambda: log_of(out))
    wait_for_step(out, max(logged_steps(out)) + 1)
    slurm_cluster.run("scancel", job)
    assert slurm_cluster.finish(job) == "CANCELLED"
    # Nothing comes back by itself.
    for run in (out, other):
        assert slurm_cluster.job(read_record(run).job_id)["JobState"] == "CANCELLED"
        assert read_state(run).state != "requeued"


def test_a_wrong_partition_is_one_line(slurm_cluster, cluster_file, polyscene, words, tmp_path):
    cluster = cluster_file(executor="slurm", partition="gpuu")
    code, _, errors = polyscene("submit", cluster, *words(tmp_path / "run"))
    assert code == 2
    assert errors.strip().splitlines() == [
        "error: partition=gpuu does not exist on this cluster; `sinfo` lists those that do"
    ]


def test_a_run_directory_with_a_job_is_refused(slurm_cluster, cluster_file, polyscene, start_run, words, tmp_path):
    cluster = cluster_file(executor="slurm", sbatch={"hold": True})
    job = start_run(cluster, tmp_path / "run")
    code, _, errors = polyscene("submit", cluster, *words(tmp_path / "run", *SMALL))
    assert code == 2
    assert f"belongs to job {job}, which waits or runs" in errors
    slurm_cluster.run("scancel", job)


def test_an_unreachable_controller_is_one_line(slurm_cluster, cluster_file, polyscene, words, tmp_path, monkeypatch):
    lost = tmp_path / "slurm.conf"
    lines = slurm_cluster.config.read_text().replace("MessageTimeout=30", "MessageTimeout=1").splitlines()
    port = slurm_cluster.free_ports(1)[0]
    lost.write_text(
        "\n".join(f"SlurmctldPort={port}" if line.startswith("SlurmctldPort") else line for line in lines) + "\n"
    )
    monkeypatch.setenv("SLURM_CONF", str(lost))
    code, _, errors = polyscene("submit", cluster_file(executor="slurm"), *words(tmp_path / "run"))
    assert code == 2
    (said,) = errors.strip().splitlines()
    assert said.startswith("error: SLURM's controller does not answer (")
