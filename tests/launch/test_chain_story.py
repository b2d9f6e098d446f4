"""The failed step that is to blame for those that never started."""

import os
from pathlib import Path

from chain_jobs import DIAMOND, Queue, queue_all

from polyscene.launch.cluster.job_record import JobRecord, JobState, now, write_record, write_state


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
