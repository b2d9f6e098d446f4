"""``polyscene chain``: order, refusals, restarts, failures; with jobs that only write what commands leave."""

import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from polyscene.launch import chain_local, chain_slurm
from polyscene.launch.chain import new_record
from polyscene.launch.chain_config import load_chain, sort_steps
from polyscene.launch.chain_finished import finished_file, finished_steps, outdated_steps
from polyscene.launch.chain_record import dependants, find_chain_records, read_chain_record
from polyscene.launch.cluster import submission
from polyscene.launch.cluster.command_line import parse_command
from polyscene.launch.cluster.job_record import JobRecord, JobState, now, write_record, write_state
from polyscene.runtime.errors import UserError
from polyscene.runtime.results import Evaluation, Metric, write_results


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder with images and a weights file."""
    monkeypatch.chdir(tmp_path)
    Path("images/a").mkdir(parents=True)
    Path("images/a/1.jpg").touch()
    return tmp_path


@pytest.fixture
def chain_file(here):
    """``chain_file(steps, **keys)``: a chain of ``name: (command, *after)``."""

    def make(steps, **keys):
        steps = {name: {"command": command, "after": list(after)} for name, (command, *after) in steps.items()}
        Path("chain.yaml").write_text(yaml.safe_dump({"out": "runs", "steps": steps, **keys}))
        return "chain.yaml"

    return make


PROBE = "probe probe/knn_folder weights={} out={} data.train=images data.test=images"
DIAMOND = {
    "data": ("scenes runs/scenes count=4",),
    "left": (PROBE.format("random", "runs/left").replace("train=images", "train=runs/scenes/images/train"), "data"),
    "right": (PROBE.format("random", "runs/right").replace("test=images", "test=runs/scenes/images/val"), "data"),
    "end": ("report runs out=runs/report.html", "left", "right"),
}


def leave_results(words):
    """What a finished command leaves."""
    command = parse_command(words)
    command.output.parent.mkdir(parents=True, exist_ok=True)
    if command.name == "scenes":
        (command.output / "images" / "train").mkdir(parents=True, exist_ok=True)
        (command.output / "scenes.json").write_text("{}")
    elif command.name in ("report", "export", "tasks"):
        file = command.output if command.output.suffix else command.output / "model.safetensors"
        file.parent.mkdir(exist_ok=True)
        file.write_text("done")
    else:
        command.output.mkdir(exist_ok=True)
        write_results(command.output, Evaluation("probe", "t", "s", [Metric("m", "m")], {"m": 1.0}))


@pytest.fixture
def jobs(monkeypatch):
    """Jobs of this process: ``jobs.started`` are the commands; ``jobs.fail[run]`` says how one fails."""

    class Jobs:
        def __init__(self):
            self.started, self.fail, self.seconds, self.most, self._now = [], {}, 0.0, 0, 0

        def __call__(self, cluster, commands, **more):
            (words,) = commands
            run = parse_command(words).run
            self.started.append(run.name)
            job_id = str(os.getpid())
            run.mkdir(parents=True, exist_ok=True)
            (run / "job_state.json").unlink(missing_ok=True)
            record = JobRecord(run=run, job_id=job_id, executor="local", name="", command=list(words),
                               submitted=now(), cluster={}, logs=str(run / "jobs"), max_requeues=0)  # fmt: skip
            write_record(run, record)
            self._now += 1
            self.most = max(self.most, self._now)
            threading.Timer(self.seconds, self._end, (words, run, job_id)).start()
            return [record]

        def _end(self, words, run, job_id):
            message = self.fail.get(run.name)
            if message is None:
                leave_results(words)
            self._now -= 1
            state = "completed" if message in (None, "nothing") else "failed"
            write_state(run, JobState(state=state, job_id=job_id, message=message or ""))

    made = Jobs()
    monkeypatch.setattr(submission, "submit_commands", made)
    return made


# ---------------------------------------------------------------------------------------------- order and refusals


@given(st.lists(st.sets(st.integers(0, 11), max_size=4), min_size=1, max_size=12), st.randoms())
def test_every_step_comes_after_those_it_names(edges, random):
    # Edges to smaller numbers only cannot make a circle; names are shuffled so that the order has to be found.
    names = [f"s{i}" for i in range(len(edges))]
    after = {names[i]: [names[j] for j in others if j < i] for i, others in enumerate(edges)}
    shuffled = list(after)
    random.shuffle(shuffled)
    order = sort_steps({name: after[name] for name in shuffled}, "c.yaml")
    assert sorted(order) == sorted(names)
    assert all(order.index(other) < order.index(name) for name, others in after.items() for other in others)


def test_the_order_of_the_file_where_it_is_free():
    assert sort_steps({"c": [], "a": [], "b": ["a"]}, "f") == ["c", "a", "b"]


def test_dependants():
    after = {"a": [], "b": ["a"], "c": [], "d": ["b", "c"], "e": ["c"]}
    assert dependants(after, "a") == ["b", "d"]
    assert dependants(after, "e") == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["steps.left.after=dta"], "steps.left.after names 'dta', which is no step; did you mean 'data'?"),
        (["steps.data.after=end"], "steps wait for each other: data after end after left after data"),
        (["steps.left.after=left"], "steps wait for each other: left after left"),
        (["steps.left.after=[]"], "data.train: 'runs/scenes/images/train' is written by step 'data'; add 'data' to"),
        (["steps.end.after=left"], "report: 'runs' is written by step 'right'; add 'right' to its 'after'"),
        (["steps.right.command=" + PROBE.format("random", "runs/left")], "'left' and 'right' both write 'runs/left'"),
        (
            ["steps.right.command=" + PROBE.format("nowhere", "runs/r")],
            "weights: 'nowhere' does not exist, and no step",
        ),
        (["steps.left.command=probe probe/knn_folder kk=3"], "steps.left: probe/knn_folder: unknown key 'kk'"),
        (["steps.left.command=train x"], "steps.left: 'train' cannot be submitted"),
        (["steps.left.command=chain x"], "steps.left: 'chain' cannot be submitted"),
        (['steps.left.command="report \'runs"'], "steps.left: command: no closing quotation"),
        (["steps.left.command=''"], "steps.left: no command is named"),
        (["steps.left.comand=x"], "steps.left: unknown key 'comand'; did you mean 'command'?"),
        (["steps.lft.after=[]"], "steps.lft is not in the chain; did you mean 'steps.left'?"),
        (["vars.x=1"], "vars.x is not in the chain; it has: size"),
        (["cluster=cluster/nope"], "config file 'cluster/nope' does not exist"),
        (["steps.left.cluster=cluster/slurm_cpu"], "some steps run on SLURM and some on this machine (local, slurm)"),
        (["steps.left.cluster=cluster/slurm_8gpu", "cluster=cluster/slurm_cpu"], "probe runs as one process"),
        (["parallel=0"], "parallel=0"),
        (["paralel=2"], "unknown key 'paralel'; did you mean 'parallel'?"),
    ],
)
def test_refusals_are_one_line_before_anything_starts(chain_file, polyscene, jobs, changes, words):
    file = chain_file(DIAMOND, vars={"size": 3})
    code, out, err = polyscene("chain", file, *changes)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert words in err
    assert jobs.started == []
    assert not Path("runs").exists()


def test_files_that_are_no_chain(here, polyscene):
    for text, words in (
        ("out: runs", "'steps' is required"),
        ("out: runs\nsteps: {}", "steps is empty"),
        ("out: runs\nsteps: {a: report}", "steps.a is a section with the key command"),
        ("out: runs\nsteps: {a/b: {command: x}}", "step 'a/b': a name is made of letters"),
        ("out: runs\nsteps: {a: {}}", "steps.a: 'command' is required"),
        (
            "out: x\nvars:\n  root: ???\n  b: ???\nsteps: {}",
            "vars.root, vars.b must be given; add vars.root=VALUE",
        ),
        ("out: ${vars.rot}\nvars: {root: a}\nsteps: {}", "rot"),
    ):
        Path("c.yaml").write_text(text)
        code, _, err = polyscene("chain", "c.yaml")
        assert (code, err.count("\n")) == (2, 1), err
        assert words in err


def test_variables_words_and_lists_of_words(here):
    Path("c.yaml").write_text(
        "out: ${vars.root}/log\n"
        "vars:\n  root: ???\n  count: 4\n"
        "steps:\n"
        "  a: {command: 'polyscene scenes ${vars.root}/s count=${vars.count}'}\n"
        "  b: {command: [scenes, '${vars.root}/with space', 'size=[48, 64]'], after: a}\n"
    )
    chain = load_chain("c.yaml", ["vars.root=runs/x", "vars.count=7"])
    assert chain.out == Path("runs/x/log")
    assert [step.command.words for step in chain.steps] == [
        ("scenes", "runs/x/s", "count=7"),
        ("scenes", "runs/x/with space", "size=[48, 64]"),
    ]
    assert chain.steps[1].after == ("a",)


def test_a_chain_may_extend_another(chain_file):
    chain_file(DIAMOND)
    Path("mine.yaml").write_text("extends: chain.yaml\nparallel: 3\nsteps: {left: {cluster: cluster/local}}\n")
    chain = load_chain("mine.yaml")
    assert (chain.parallel, [step.name for step in chain.steps]) == (3, ["data", "left", "right", "end"])


def test_shipped_chains(here, polyscene):
    code, out, err = polyscene("chain", "chains/demo", "--dry-run", "vars.root=r")
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()[1:]] == [
        "scenes", "pretrain", "export", "probe", "retrieve", "rcm", "mti_net", "report",
    ]  # fmt: skip
    assert not Path("r").exists()
    data = [f"vars.{name}={here}/images" for name in ("coco", "voc2007", "voc2012", "nyud")]
    code, out, err = polyscene("chain", "chains/coco_to_nyud", "--dry-run", *data)
    assert code == 0, err
    places = {line.split()[0]: line for line in out.splitlines()[1:]}
    assert {"pretrain", "export", "svm", "retrieve", "rcm_segmentation", "rcm_depth", "report"} < places.keys()
    assert "slurm, 1 x 8 GPU" in places["pretrain"]
    assert "slurm, 1 x 1 CPU" in places["report"]
    code, _, err = polyscene("chain", "chains/coco_to_nyud", *data[1:])
    assert (code, err.strip().rpartition(": ")[2]) == (2, "vars.coco must be given; add vars.coco=VALUE")


def test_a_run_of_another_config_is_refused_at_once(chain_file, polyscene, jobs):
    file = chain_file(DIAMOND)
    Path("runs/left").mkdir(parents=True)
    config = parse_command(DIAMOND["left"][0].split()).config
    from polyscene.runtime.config import to_dict

    for changes, refused in (({"workers": 9}, False), ({"k": 3}, True)):
        Path("runs/left/config.yaml").write_text(json.dumps({**to_dict(config), **changes}))
        code, _, err = polyscene("chain", file, "--dry-run")
        assert code == (2 if refused else 0), err
    assert "steps.left: 'runs/left' holds a run with another config (k: 3 -> 20)" in err


# ---------------------------------------------------------------------------------------------- what is finished


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


# ---------------------------------------------------------------------------------------------- on this machine


def test_a_chain_runs_in_order_and_then_has_nothing_to_do(chain_file, polyscene, jobs):
    file = chain_file(DIAMOND)
    code, out, err = polyscene("chain", file)
    assert (code, out) == (0, ""), err
    assert jobs.started == ["scenes-job", "left", "right", "report-job"]
    assert jobs.most == 1
    assert err.splitlines()[-1] == "all steps are completed"
    assert {step.state for step in read_chain_record(Path("runs")).steps.values()} == {"completed"}
    code, _, err = polyscene("chain", file)
    assert (code, err) == (0, "finished already: data, left, right, end\n")
    assert len(jobs.started) == 4


def test_branches_side_by_side(chain_file, polyscene, jobs):
    jobs.seconds = 0.6
    assert polyscene("chain", chain_file(DIAMOND), "parallel=2")[0] == 0
    assert jobs.most == 2


def test_a_failed_step_cancels_those_after_it_and_no_others(chain_file, polyscene, jobs):
    file = chain_file({**DIAMOND, "later": ("export images/a/1.jpg runs/x.pth", "end")})
    jobs.fail["left"] = "no image can be read"
    code, _, err = polyscene("chain", file)
    assert code == 1
    assert jobs.started == ["scenes-job", "left", "right"]  # the other branch is not stopped
    lines = err.splitlines()
    assert "left: failed: no image can be read" in lines
    assert "cancelled, because 'left' failed: end, later" in lines
    record = read_chain_record(Path("runs"))
    assert {name: step.state for name, step in record.steps.items()} == {
        "data": "completed", "left": "failed", "right": "completed", "end": "cancelled", "later": "cancelled",
    }  # fmt: skip
    assert record.steps["later"].message == "'left' failed: no image can be read"
    _, out, _ = polyscene("jobs", "runs")
    told = [line for line in out.splitlines() if line.startswith("not started")]
    assert told == [f"not started: chain.yaml, {n}: 'left' failed: no image can be read" for n in ("end", "later")]
    # The same command goes on with what is not finished.
    jobs.fail.clear()
    jobs.started.clear()
    code, _, err = polyscene("chain", file)
    assert code == 0, err
    assert jobs.started == ["left", "report-job", "x-job"]


def test_a_step_that_leaves_nothing_has_failed(chain_file, polyscene, jobs):
    jobs.fail["scenes-job"] = "nothing"
    code, _, err = polyscene("chain", chain_file(DIAMOND))
    assert code == 1
    assert "data: failed: its process ended without an error, but 'runs/scenes' is not finished" in err
    assert jobs.started == ["scenes-job"]


def test_a_step_that_is_refused_at_its_turn(chain_file, polyscene, monkeypatch):
    def refuse(cluster, commands):
        raise UserError("'runs/scenes' is in use")

    monkeypatch.setattr(submission, "submit_commands", refuse)
    code, _, err = polyscene("chain", chain_file(DIAMOND))
    assert code == 1
    assert "data: failed: 'runs/scenes' is in use" in err
    assert "cancelled, because 'data' failed: left, right, end" in err


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


def test_ctrl_c_lets_steps_save_and_the_chain_can_go_on(chain_file, jobs, monkeypatch):
    jobs.seconds = 100.0
    chain = load_chain(chain_file(DIAMOND))
    record = new_record(chain, [])
    interrupted = []

    def stop(number):
        interrupted.append(number)
        write_state(Path("runs/scenes-job"), JobState(state="stopped", job_id=str(number)))

    def press(running):
        assert list(running) == ["data"]
        raise KeyboardInterrupt

    monkeypatch.setattr(chain_local, "interrupt", stop)
    Path("runs").mkdir()
    said = []
    with pytest.raises(KeyboardInterrupt):
        chain_local.run_locally(chain, record, jobs, said.append, show=press)
    for timer in threading.enumerate():
        if isinstance(timer, threading.Timer):
            timer.cancel()
    assert interrupted == [os.getpid()]
    assert said[-1] == "stopping: data"
    assert {step.state for step in read_chain_record(Path("runs")).steps.values()} == {"waiting"}


def test_a_step_that_a_killed_chain_left_running_is_waited_for(chain_file, jobs):
    chain = load_chain(chain_file(DIAMOND))
    step = chain.steps[0]
    jobs.seconds = 0.3
    jobs(step.cluster, [step.command.words])
    jobs.started.clear()
    record, said = new_record(chain, []), []
    assert chain_local.run_locally(chain, record, jobs, said.append)
    assert said[0] == f"data: is running already, as process {os.getpid()}"
    assert jobs.started == ["left", "right", "report-job"]


def test_executor_debug_runs_the_steps_in_this_process(chain_file, polyscene):
    Path("debug.yaml").write_text("executor: debug\nsnapshot: false\n")
    steps = {
        "data": ("scenes runs/scenes count=4 size=[48,64] workers=1",),
        "bad": ("export images/a/1.jpg runs/x.pth", "data"),
        "end": ("export runs/x.pth runs/y.pth", "bad"),
    }
    code, _, err = polyscene("chain", chain_file(steps, cluster="debug.yaml"))
    assert code == 1
    assert "data: completed" in err
    assert Path("runs/scenes/scenes.json").is_file()
    assert "bad: failed: images/a/1.jpg" in err
    assert "cancelled, because 'bad' failed: end" in err


# ---------------------------------------------------------------------------------------------- on SLURM


class Queue:
    """A cluster that notes what is queued, and refuses what it is told to."""

    def __init__(self, refuse=()):
        self.queued, self.refuse = [], refuse

    def __call__(self, cluster, commands, *, after=(), name=None):
        (words,) = commands
        run = parse_command(words).run
        if run.name in self.refuse:
            raise UserError("sbatch refused the job")
        job_id = str(100 + len(self.queued))
        self.queued.append((run.name, job_id, list(after), name))
        return [JobRecord(run=run, job_id=job_id, executor="slurm", name=name, command=list(words), submitted=now(),
                          cluster={}, logs="", max_requeues=0)]  # fmt: skip


def queue_all(file, queue, finished=()):
    chain = load_chain(file, ["cluster=cluster/slurm_cpu"])
    record = new_record(chain, finished)
    chain.out.mkdir(exist_ok=True)
    said = []
    chain_slurm.queue_steps(chain, record, queue, said.append)
    return record, said


def test_all_steps_are_queued_with_their_dependencies(chain_file):
    queue = Queue()
    record, said = queue_all(chain_file(DIAMOND), queue)
    assert queue.queued == [
        ("scenes-job", "100", [], "chain-data"),
        ("left", "101", ["100"], "chain-left"),
        ("right", "102", ["100"], "chain-right"),
        ("report-job", "103", ["101", "102"], "chain-end"),
    ]
    assert {step.state for step in record.steps.values()} == {"submitted"}
    assert read_chain_record(Path("runs")).steps["end"].job_id == "103"
    assert said[-1] == "end: job 103 after 101, 102; 'runs/report-job'"


def test_finished_steps_and_live_jobs_are_left_alone(chain_file, monkeypatch):
    file = chain_file(DIAMOND)
    left = Path("runs/left")
    left.mkdir(parents=True)
    record = JobRecord(run=left, job_id="77", executor="slurm", name="", command=["probe"], submitted=now(), cluster={},
                       logs="", max_requeues=0)  # fmt: skip
    write_record(left, record)
    from polyscene.launch.cluster import run_overview
    from polyscene.launch.cluster.queue_state import parse_queue

    monkeypatch.setattr(run_overview, "query_queue", lambda ids: parse_queue("77|RUNNING|0:10|n1|None"))
    queue = Queue()
    chained, said = queue_all(file, queue, finished=["data"])
    assert [entry[:3] for entry in queue.queued] == [("right", "100", []), ("report-job", "101", ["77", "100"])]
    assert chained.steps["left"].job_id == "77"
    assert "left: is running already, as job 77" in said


def test_a_refused_step_takes_the_others_out_of_the_queue(chain_file, monkeypatch):
    cancelled = []
    monkeypatch.setattr(chain_slurm, "cancel_slurm", cancelled.extend)
    queue = Queue(refuse=["right"])
    with pytest.raises(UserError, match="steps.right: sbatch refused the job"):
        queue_all(chain_file(DIAMOND), queue)
    assert cancelled == ["100", "101"]
    assert {step.state for step in read_chain_record(Path("runs")).steps.values()} == {"waiting"}


def test_jobs_names_the_step_that_failed(chain_file, polyscene, monkeypatch, here):
    record, _ = queue_all(chain_file(DIAMOND), Queue())
    for name, step in record.steps.items():
        run = Path(step.run)
        run.mkdir(parents=True, exist_ok=True)
        job = JobRecord(run=run, job_id=step.job_id, executor="slurm", name=name, command=step.command,
                        submitted=now(), cluster={}, logs=str(run / "jobs"), max_requeues=0)  # fmt: skip
        write_record(run, job)
    write_state(Path("runs/scenes-job"), JobState(state="completed", job_id="100"))
    write_state(Path("runs/left"), JobState(state="failed", job_id="101", message="no image"))
    write_state(Path("runs/right"), JobState(state="completed", job_id="102"))
    programs = here / "bin"
    programs.mkdir()
    (programs / "squeue").write_text("#!/bin/sh\necho '103|CANCELLED|0:00||DependencyNeverSatisfied'\n")
    (programs / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    code, out, _ = polyscene("jobs", "runs")
    assert code == 0
    row = next(line for line in out.splitlines() if line.startswith("runs/report-job"))
    assert "cancelled" in row
    assert row.endswith("not started: 'left' failed: no image")


def test_records_are_found_below_a_folder(chain_file, here):
    assert find_chain_records(here) == []
    queue_all(chain_file(DIAMOND), Queue())
    (found,) = find_chain_records(here)
    assert found.chain == "chain.yaml"
    Path("runs/chain.json").write_text("{")
    assert find_chain_records(here) == []
