"""Steps on SLURM: what is queued after what, left alone, and taken back."""

from pathlib import Path

import pytest
from chain_jobs import DIAMOND, Queue, queue_all

from polyscene.launch import chain_slurm
from polyscene.launch.chain_record import read_chain_record
from polyscene.launch.cluster import run_overview
from polyscene.launch.cluster.job_record import JobRecord, now, write_record
from polyscene.launch.cluster.queue_state import parse_queue
from polyscene.runtime.errors import UserError


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
