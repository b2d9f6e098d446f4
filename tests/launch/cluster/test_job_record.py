from pathlib import Path

from polyscene.launch.cluster.job_record import (
    JobRecord,
    JobState,
    find_runs,
    read_record,
    read_state,
    write_record,
    write_state,
)


def record(run):
    return JobRecord(
        run=Path(run),
        job_id="17_3",
        executor="slurm",
        name="pretrain-a",
        command=["pretrain", "x.yaml", "out=runs/a"],
        submitted="2025-01-01T00:00:00+00:00",
        cluster={"nodes": 2},
        logs=f"{run}/jobs",
        max_requeues=3,
    )


def test_what_is_written_is_read(tmp_path):
    write_record(tmp_path, record(tmp_path))
    assert read_record(tmp_path) == record(tmp_path)
    state = JobState(state="requeued", job_id="17_3", attempt=2, nodes=["n1"], message="SIGUSR2", failures=1, saved=40)
    write_state(tmp_path, state)
    assert read_state(tmp_path) == state


def test_missing_and_damaged_files_are_nothing(tmp_path):
    assert read_record(tmp_path) is None
    assert read_state(tmp_path) is None
    for text in ("", "{", "[]", "{}", '{"job_id": 3}'):
        (tmp_path / "job.json").write_text(text)
        (tmp_path / "job_state.json").write_text(text)
        assert read_record(tmp_path) is None
        assert read_state(tmp_path) is None


def test_fields_of_a_later_version_are_passed_over(tmp_path):
    (tmp_path / "job_state.json").write_text('{"state": "running", "weather": "fine"}')
    assert read_state(tmp_path) == JobState(state="running")


def test_runs_are_found_but_not_within_what_belongs_to_a_run(tmp_path):
    for place in ("a", "sweep/x", "sweep/y", "a/seed-0"):
        (tmp_path / place).mkdir(parents=True)
        write_record(tmp_path / place, record(tmp_path / place))
    for place in ("a/code", "a/checkpoints", "sweep/jobs", ".hidden"):
        (tmp_path / place).mkdir(parents=True)
        write_record(tmp_path / place, record(tmp_path / place))
    assert find_runs(tmp_path) == [tmp_path / p for p in ("a", "a/seed-0", "sweep/x", "sweep/y")]
    assert find_runs(tmp_path / "a") == [tmp_path / "a", tmp_path / "a" / "seed-0"]
