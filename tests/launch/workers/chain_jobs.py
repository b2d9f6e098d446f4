"""A chain of four steps, and jobs for it that only write what commands leave."""

import os
import threading

from polyscene.launch import chain_slurm
from polyscene.launch.chain import new_record
from polyscene.launch.chain_config import load_chain
from polyscene.launch.cluster.command_line import parse_command
from polyscene.launch.cluster.job_record import JobRecord, JobState, now, write_record, write_state
from polyscene.runtime.errors import UserError
from polyscene.runtime.results import Evaluation, Metric, write_results

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


class Jobs:
    """Jobs of this process: ``started`` are the commands; ``fail[run]`` says how one fails."""

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
    """Queue the steps of a chain file; its record, and what was said."""
    chain = load_chain(file, ["cluster=cluster/slurm_cpu"])
    record = new_record(chain, finished)
    chain.out.mkdir(exist_ok=True)
    said = []
    chain_slurm.queue_steps(chain, record, queue, said.append)
    return record, said
