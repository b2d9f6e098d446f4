import os
import subprocess
import sys
import time

import pytest

from polyscene.launch.cluster.cluster_config import load_cluster
from polyscene.launch.cluster.command_line import parse_command
from polyscene.launch.cluster.snapshot import take_snapshot
from polyscene.launch.cluster.submission import batch_parameters, explain_refusal, frozen_words, submit_commands
from polyscene.runtime.config import load_config
from polyscene.runtime.errors import UserError
from polyscene.runtime.run import environment


def script(config, tmp_path, after=()):
    """The batch script that submitit writes."""
    from submitit.slurm.slurm import _make_sbatch_string

    parameters = batch_parameters(config, tmp_path / "runs.json", tmp_path / "code", "name", 2, after)
    return _make_sbatch_string("python job", tmp_path, **parameters)


def test_the_batch_script_says_what_the_cluster_file_says(cluster_file, tmp_path):
    keys = {
        "nodes": 4,
        "gpus_per_node": 8,
        "cpus_per_task": 12,
        "memory": "480G",
        "time": "24h",
        "partition": "gpu",
        "account": "lab",
        "qos": "high",
        "constraint": "a100|h100",
        "setup": ["module load cuda"],
        "environment": {"NCCL_DEBUG": "INFO now"},
        "sbatch": {"exclude": "node7", "--mail-type": "FAIL", "exclusive": True},
        "srun": ["--gpu-bind=single:1"],
    }
    text = script(load_cluster(cluster_file(**keys)), tmp_path, after=["17", "18_2"])
    lines = text.splitlines()
    for option in (
        "nodes=4",
        "ntasks-per-node=8",
        "gpus-per-node=8",
        "cpus-per-task=12",
        "mem=491520M",
        "time=1-00:00:00",
        "partition=gpu",
        "account=lab",
        "qos=high",
        "constraint='a100|h100'",
        "exclude=node7",
        "mail-type=FAIL",
        "exclusive",
        "requeue",
        "signal=USR2@120",
        "dependency=afterok:17:18_2",
        "kill-on-invalid-dep=yes",
        "open-mode=append",
    ):
        assert f"#SBATCH --{option}" in lines, option
    assert "module load cuda" in lines
    assert "export NCCL_DEBUG='INFO now'" in lines
    (srun,) = [line for line in lines if line.startswith("srun")]
    assert "--kill-on-bad-exit=1" in srun
    assert "--gpu-bind=single:1" in srun
    assert f"export PYTHONPATH={tmp_path / 'code'}" in text
    # The verdict uses srun's exit code: nothing may come between them.
    assert next(line for line in lines[lines.index(srun) + 1 :] if line and line[0] != "#").endswith("runs.json $?")


def test_the_script_is_valid_shell(cluster_file, tmp_path):
    text = script(load_cluster(cluster_file(environment={"A": "it's $HOME"})), tmp_path)
    file = tmp_path / "job.sh"
    file.write_text(text)
    assert subprocess.run(["bash", "-n", file], capture_output=True, text=True).stderr == ""


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (
            "sbatch: error: invalid partition specified: gpuu\n"
            "sbatch: error: Batch job submission failed: Invalid partition name specified\n",
            "partition=gpuu does not exist on this cluster; `sinfo` lists those that do",
        ),
        (
            "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)\n",
            "SLURM's controller does not answer (Batch job submission failed: Unable to contact slurm controller "
            "(connect failure)); try again later, or ask who runs the cluster",
        ),
        (
            "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified\n",
            "sbatch refused the job: Batch job submission failed: Invalid account or account/partition combination "
            "specified; see account in the cluster file",
        ),
        ("", "sbatch refused the job: no reason given"),
    ],
)
def test_refusals_of_sbatch_are_one_line(cluster_file, said, line):
    assert explain_refusal(said, load_cluster(cluster_file(partition="gpuu"))) == line


def test_without_slurm_nothing_is_started(cluster_file, polyscene, words, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, errors = polyscene("submit", cluster_file(executor="slurm"), *words(tmp_path / "run"))
    assert code == 2
    (line,) = errors.strip().splitlines()
    assert line.startswith("error: executor=slurm, but 'sbatch' is not found on this machine")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["optim.lr=-1"], "optim.lr=-1.0"),
        (["data.root=/nowhere"], "data.root=/nowhere does not exist"),
        (["device=cuda"], "device=cuda"),
        (["batch_size=9"], "batch_size=9 is not a multiple"),
    ],
)
def test_everything_is_checked_before_anything_is_queued(cluster_file, polyscene, words, tmp_path, more, complaint):
    out = tmp_path / "run"
    code, said, errors = polyscene("submit", cluster_file(executor="local", tasks_per_node=2), *words(out, *more))
    assert (code, said) == (2, "")
    assert complaint in errors
    assert not out.exists()


def test_what_comes_after_another_job_may_read_what_is_not_there_yet(cluster_file, words, tmp_path):
    cluster = load_cluster(cluster_file(executor="local"))
    with pytest.raises(UserError, match="knows no dependencies"):
        submit_commands(cluster, [words(tmp_path / "run")], after=["17"])


def test_two_commands_do_not_share_a_folder(cluster_file, words, tmp_path):
    cluster = load_cluster(cluster_file(executor="local"))
    with pytest.raises(UserError, match="two commands write to"):
        submit_commands(cluster, [words(tmp_path / "run"), words(tmp_path / "run")])


def test_the_settings_are_frozen(words, tmp_path):
    line = parse_command(words(tmp_path / "run", "optim.lr=0.125"))
    name, file = frozen_words(line, tmp_path / "frozen.yaml")
    assert name == "pretrain"
    assert load_config(type(line.config), file) == line.config


def test_submitting_is_quick_and_does_without_torch(cluster_file, words, tmp_path):
    """The job itself is a shell line that ends at once; what is timed is everything that the user waits for."""
    cluster = cluster_file(executor="local", setup=["exit 0"])
    code = (
        "import sys; from polyscene.launch.cli import main\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules, 'numpy' in sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, "submit", cluster, *words(tmp_path / "run")]
    start = os.times()
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)
    spent = os.times()
    assert done.returncode == 0, done.stderr
    assert done.stderr.split()[-2] == "False"
    # Processor time: others may use the machine.
    assert (spent.children_user + spent.children_system) - (start.children_user + start.children_system) < 2


def test_a_snapshot_is_what_python_imports_wherever_it_runs(tmp_path):
    """Also before an installed or an editable package, and in the folder of the sources."""
    code = take_snapshot(tmp_path / "code")
    (code / "polyscene" / "runtime" / "errors.py").write_text("marker = 'copy'\nclass UserError(Exception): pass\n")
    script = (
        "import polyscene.runtime.errors as e, polyscene.ssl.moco, polyscene.configs, polyscene.launch, ssl\n"
        "print(e.marker, polyscene.launch.__path__[0], polyscene.ssl.moco.__path__[0], ssl.__name__)"
    )
    variables = {**os.environ, "PYTHONPATH": str(code)}
    for folder in (tmp_path, os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(__file__))))):
        done = subprocess.run([sys.executable, "-c", script], env=variables, cwd=folder, capture_output=True, text=True)
        marker, launch, moco, _ = done.stdout.split()
        assert marker == "copy"
        assert launch == str(code / "polyscene" / "launch")
        assert moco == str(code / "polyscene" / "ssl" / "moco")


def test_a_snapshot_replaces_an_earlier_one(tmp_path):
    code = take_snapshot(tmp_path / "code")
    assert (code / "polyscene" / "COMMIT").read_text().strip() == environment()["commit"]
    (code / "polyscene" / "old.py").touch()
    start = time.monotonic()
    take_snapshot(tmp_path / "code")
    assert time.monotonic() - start < 20
    assert not (code / "polyscene" / "old.py").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["code"]
    assert not list(code.rglob("__pycache__"))


def test_without_submitit_nothing_is_written(cluster_file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install submitit"):
        submit_commands(load_cluster(cluster_file(executor="local")), [["scenes", str(tmp_path / "out")]])
    assert not (tmp_path / "out").exists()
