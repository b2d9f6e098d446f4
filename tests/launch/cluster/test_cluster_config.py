import pytest

from polyscene.launch.cluster.cluster_config import format_time, load_cluster, parse_memory, parse_time
from polyscene.runtime.errors import UserError

SHIPPED = ("local", "slurm_1gpu", "slurm_8gpu", "slurm_4x8gpu", "slurm_cpu")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_are_valid(name):
    config = load_cluster(f"cluster/{name}")
    assert config.warning_seconds < config.time_seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("24:00:00", 86400),
        ("0:00:30", 30),
        ("1-12:00:00", 129600),
        ("2-06", 194400),
        ("2-06:30", 196200),
        ("24h", 86400),
        ("90m", 5400),
        ("1d 12h 30m", 131400),
    ],
)
def test_times(text, seconds):
    assert parse_time(text) == seconds
    assert parse_time(format_time(seconds)) == seconds


@pytest.mark.parametrize("text", ["", "soon", "1:2", "-3h", "3x", "١h"])
def test_other_times_are_refused(text):
    with pytest.raises(UserError, match="is no time"):
        parse_time(text)


def test_yaml_makes_a_number_of_an_unquoted_time(cluster_file, tmp_path):
    """24:00:00 is 86400 to YAML, and 86400 minutes to sbatch: two months."""
    file = tmp_path / "cluster.yaml"
    file.write_text("time: 24:00:00\n")
    with pytest.raises(UserError, match=r"time=86400 is a number without a unit .* in quotes, or 24h"):
        load_cluster(file)


@pytest.mark.parametrize(
    ("text", "megabytes"), [("64G", 65536), ("500M", 500), ("500", 500), ("1T", 1048576), ("2048K", 2)]
)
def test_memory(text, megabytes):
    assert parse_memory(text) == megabytes


def test_the_warning_of_a_short_job_leaves_time_to_work(cluster_file):
    assert load_cluster(cluster_file(time="24h")).warning_seconds == 120
    assert load_cluster(cluster_file(time="90s")).warning_seconds == 30


def test_one_process_for_each_gpu(cluster_file):
    config = load_cluster(cluster_file(nodes=4, gpus_per_node=8))
    assert (config.tasks, config.processes) == (8, 32)
    assert load_cluster(cluster_file(nodes=2)).processes == 2


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"nodes": 0}, "nodes=0 is too small"),
        ({"gpus_per_node": 8, "tasks_per_node": 4}, "every GPU has one process"),
        ({"executor": "local", "nodes": 2}, "nodes=2 with executor=local"),
        ({"executor": "debug", "gpus_per_node": 2}, "executor=debug is one process, not 2"),
        ({"memory": "lots"}, "memory=lots is no amount"),
        ({"time": "1m", "signal_seconds": 60}, "signal_seconds=60 is not less than time=1m"),
        ({"sbatch": {"partition": "gpu"}}, "sbatch.partition: not as an option of sbatch; use the key partition"),
        ({"sbatch": {"--output": "x"}}, "polyscene sets it"),
        ({"sbatch": {"exclusive": False}}, "write a text or a number"),
        ({"environment": {"A B": 1}}, "environment.A B=1"),
        ({"partitoin": "gpu"}, "did you mean 'partition'"),
    ],
)
def test_refusals_name_file_and_key(cluster_file, keys, complaint):
    file = cluster_file(**keys)
    with pytest.raises(UserError) as refusal:
        load_cluster(file)
    assert complaint in str(refusal.value)
    assert str(file) in str(refusal.value)
