import json

import pytest

from polyscene.launch.cluster.job_end import (
    Outcome,
    Place,
    conclude,
    decide,
    last_attempt,
    marker,
    read_outcomes,
    saved_progress,
    write_outcome,
)
from polyscene.launch.cluster.job_record import JobState, read_state, write_state

DONE, STOPPED = Outcome("completed"), Outcome("stopped", "SIGUSR2")
TERMINATED = Outcome("cancelled", "SIGTERM, outside of a step", 75)
CRASHED = Outcome("crashed", "RuntimeError: Connection closed by peer", 1)
REFUSED = Outcome("refused", "data.root=x has no images", 2)
KILLED = "srun: error: n2: task 1: Killed\nsrun: Terminating StepId=3.0\n"
MEMORY = "slurmstepd: error: Detected 1 oom_kill event in StepId=3.0. Some of the step tasks have been OOM Killed.\n"


def judge(outcomes, exit_code=0, printed="", *, failures=0, progress=True, max_requeues=2, job_state="RUNNING"):
    return decide(
        outcomes,
        exit_code,
        printed,
        failures=failures,
        progress=progress,
        max_requeues=max_requeues,
        job_state=job_state,
    )


def test_completed():
    assert judge({0: DONE, 1: DONE}).state == "completed"
    # Even if the time limit or a cancellation came meanwhile.
    assert judge({0: DONE}, job_state="CANCELLED").state == "completed"
    # A process may be killed on its way out; but without rank 0 nothing is known.
    assert judge({0: DONE}, 140).state == "completed"
    assert judge({1: DONE}, 140).state == "requeued"


def test_a_refusal_is_final_and_is_what_is_told():
    decision = judge({0: CRASHED, 1: REFUSED}, 2)
    assert (decision.state, decision.message) == ("failed", "data.root=x has no images")


def test_a_stop_with_progress_never_counts():
    decision = judge({0: STOPPED, 1: STOPPED}, failures=2)
    assert (decision.state, decision.failures) == ("requeued", 2)
    # The others lose their partner when a process has to leave within a step.
    assert judge({0: STOPPED, 1: CRASHED}, 75, failures=2).state == "requeued"


def test_a_stop_without_progress_counts():
    decisions = [judge({0: STOPPED}, progress=False, failures=n) for n in (0, 1, 2)]
    assert [(d.state, d.failures) for d in decisions] == [("requeued", 1), ("requeued", 2), ("failed", 3)]
    assert "SIGUSR2: stopped before anything was saved; not started again after 3 failures" in decisions[2].message


def test_a_killed_process_is_named_rather_than_its_partner():
    decision = judge({0: CRASHED}, 137, KILLED)
    assert (decision.state, decision.failures) == ("requeued", 1)
    assert decision.message == "process 1 on n2: killed; queued again (1 of 2)"


def test_srun_ends_the_partners_of_a_killed_process_with_sigterm():
    decision = judge({0: TERMINATED}, 137, KILLED)
    assert (decision.state, decision.failures) == ("requeued", 1)
    assert decision.message == "process 1 on n2: killed; queued again (1 of 2)"
    # Asked to leave, and one was too slow; or SIGTERM was the request, and one had no handler yet.
    assert judge({0: STOPPED}, 137, KILLED).failures == 0
    terminated = KILLED.replace("Killed", "Terminated")
    assert judge({0: TERMINATED}, 143, terminated).failures == 0
    assert judge({}, 143, terminated).message == "process 1 on n2: terminated; queued again (1 of 2)"


def test_crashes_end_at_some_time():
    assert judge({0: CRASHED}, 1, failures=2).state == "failed"
    assert judge({0: CRASHED}, 1, max_requeues=0).state == "failed"
    assert judge({}, 9, "").message.startswith("its processes ended with status 9 and said nothing")


@pytest.mark.parametrize(
    "printed",
    [
        MEMORY,
        "slurmstepd: error: Step 3.0 exceeded memory limit (5 > 4), being killed",
        "srun: error: n1: task 0: Out Of Memory",
    ],
)
def test_memory(printed):
    decision = judge({}, 137, printed)
    assert decision.state == "failed"
    assert "raise memory" in decision.message


@pytest.mark.parametrize(
    ("job_state", "state"),
    [("CANCELLED", "stopped"), ("TIMEOUT", "stopped"), ("PENDING", "requeued"), ("", "requeued")],
)
def test_slurm_has_the_last_word(job_state, state):
    assert judge({0: STOPPED}, job_state=job_state).state == state


def test_outcomes_belong_to_an_attempt(tmp_path):
    first, second = Place(tmp_path, "17_3", 0), Place(tmp_path, "17_3", 1)
    write_outcome(first, 0, CRASHED)
    write_outcome(second, 0, STOPPED)
    write_outcome(second, 11, DONE)
    second.outcome(2).write_text("{")
    assert read_outcomes(first) == {0: CRASHED}
    assert read_outcomes(second) == {0: STOPPED, 11: DONE}


def test_saved_progress_counts_checkpoints_of_the_run_and_its_seeds(tmp_path):
    assert saved_progress(tmp_path) == 0
    for name in (
        "checkpoints/step-00000020.pt",
        "checkpoints/step-00000100.pt",
        "checkpoints/step-00000200.pt.damaged",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert saved_progress(tmp_path) == 100
    (tmp_path / "seed-1" / "checkpoints").mkdir(parents=True)
    (tmp_path / "seed-1" / "checkpoints" / "step-00000007.pt").touch()
    assert saved_progress(tmp_path) == 107
    (tmp_path / "seed-1" / "results.json").touch()
    assert saved_progress(tmp_path) == 108


def test_the_verdict_is_written_and_the_notes_removed(tmp_path):
    logs = tmp_path / "jobs"
    logs.mkdir()
    place = Place(logs, "17", 1)
    write_state(tmp_path, JobState(state="running", job_id="17", attempt=1, nodes=["n1"], failures=1, saved=4))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-00000006.pt").touch()
    write_outcome(place, 0, STOPPED)
    place.rendezvous.write_text("{}")
    decision = conclude(tmp_path, place, 0, "", max_requeues=3, job_state="RUNNING")
    assert decision.state == "requeued"
    state = read_state(tmp_path)
    assert (state.state, state.attempt, state.failures, state.nodes) == ("requeued", 1, 1, ["n1"])
    assert "job 17, attempt 1: SIGUSR2: saved and queued again" in (tmp_path / "log.txt").read_text()
    assert list(logs.iterdir()) == []


def test_failures_of_attempts_that_never_spoke_add_up(tmp_path):
    (tmp_path / "jobs").mkdir()
    for attempt in range(3):
        place = Place(tmp_path / "jobs", "17", attempt)
        decision = conclude(tmp_path, place, 1, "", max_requeues=2, job_state="RUNNING")
    assert (decision.state, decision.failures) == ("failed", 3)
    # Another job in the same folder starts from nothing.
    decision = conclude(tmp_path, Place(tmp_path / "jobs", "18", 0), 1, "", max_requeues=2, job_state="RUNNING")
    assert decision.failures == 1


def test_only_the_last_attempt_of_a_log_counts(tmp_path):
    log = tmp_path / "17_0_log.err"
    assert last_attempt(log) == ""
    log.write_text(f"{marker('0')}\n{MEMORY}{marker('1')}\nfine\n")
    assert "oom" not in last_attempt(log)
    assert "fine" in last_attempt(log)


def test_outcomes_are_plain_json(tmp_path):
    place = Place(tmp_path, "1", 0)
    write_outcome(place, 0, REFUSED)
    assert json.loads(place.outcome(0).read_text()) == {
        "kind": "refused",
        "message": "data.root=x has no images",
        "exit_code": 2,
    }
