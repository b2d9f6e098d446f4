"""A real SLURM cluster for the tests that need one: two nodes on this machine, in a temporary directory."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")

CONFIG = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=1500
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
MpiDefault=none
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
SlurmdTimeout=5
SlurmctldTimeout=10
MessageTimeout=30
KillWait=5
TCPTimeout=10
InactiveLimit=0
MinJobAge=300
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port1} CPUs=4 RealMemory=16000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port2} CPUs=4 RealMemory=16000
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


class SlurmCluster:
    """Daemons, and the client commands that tests use. ``folder`` must be short: sockets have short names."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.config = self.folder / "slurm.conf"
        self._stack = ExitStack()

    @property
    def environment(self):
        return {"SLURM_CONF": str(self.config), "OMP_NUM_THREADS": "1"}

    def start(self):
        for name in ("state", "spool-n1", "spool-n2"):
            (self.folder / name).mkdir(parents=True)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        ports = free_ports(3)
        self.config.write_text(
            CONFIG.format(
                folder=self.folder,
                host=socket.gethostname().partition(".")[0],
                user=getpass.getuser(),
                port=ports[0],
                port1=ports[1],
                port2=ports[2],
            )
        )
        self._daemon(
            "munged",
            "munged",
            "--foreground",
            "--force",
            *(
                f"--{option}={self.folder}/munge.{suffix}"
                for option, suffix in (
                    ("key-file", "key"),
                    ("socket", "socket"),
                    ("pid-file", "pid"),
                    ("log-file", "log"),
                    ("seed-file", "seed"),
                )
            ),
        )
        wait_for(lambda: (self.folder / "munge.socket").exists(), 10, "munged has no socket")
        self._daemon("slurmctld", "slurmctld", "-D", "-f", str(self.config))
        self.nodes = {}
        for node in ("n1", "n2"):
            self.start_node(node)
        wait_for(lambda: self.node_states() == {"n1": "idle", "n2": "idle"}, 60, "the nodes do not come up")

    def start_node(self, node):
        self.nodes[node] = self._daemon(f"slurmd-{node}", "slurmd", "-D", "-N", node, "-f", str(self.config))

    def _daemon(self, name, *command):
        with open(self.folder / f"{name}.out", "a") as log:
            process = subprocess.Popen(command, env=self._env(), stdout=log, stderr=log, cwd=self.folder)
        self._stack.callback(end, process)
        return process

    def stop(self):
        """End jobs, then the daemons, the last one started first; then what they started and left."""
        try:
            subprocess.run(
                ["scancel", "--signal=KILL", "--full", "--user", str(os.getuid())],
                env=self._env(),
                capture_output=True,
                timeout=10,
            )
            subprocess.run(["scancel", "--user", str(os.getuid())], env=self._env(), capture_output=True, timeout=10)
            wait_for(lambda: not self.run("squeue", "--noheader").strip(), 15, "jobs stay")
        except (subprocess.SubprocessError, AssertionError):
            pass
        self._stack.close()
        for pid in self.left_processes():
            os.kill(pid, signal.SIGKILL)

    def left_processes(self):
        """Processes with our configuration in their environment: daemons and everything that they started."""
        mark = f"SLURM_CONF={self.config}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    if mark in (entry / "environ").read_bytes().split(b"\0"):
                        found.append(int(entry.name))
                except OSError:
                    continue
        return found

    def _env(self):
        return {**os.environ, **self.environment}

    def run(self, *command, check=True):
        """Output of a client command."""
        answer = subprocess.run(command, env=self._env(), capture_output=True, text=True, timeout=60)
        assert not check or answer.returncode == 0, answer.stderr
        return answer.stdout

    def node_states(self):
        lines = self.run("sinfo", "--noheader", "--Node", "--format=%N %T", check=False).split()
        return dict(zip(lines[::2], lines[1::2]))

    def job(self, job_id):
        """The fields of ``scontrol show job``; empty once the job is forgotten."""
        answer = self.run("scontrol", "--oneliner", "show", "job", str(job_id), check=False)
        return dict(field.partition("=")[::2] for field in answer.split())

    def release(self, job_id):
        """Start a requeued job now: SLURM lets it wait for two minutes."""
        self.run("scontrol", "update", f"jobid={job_id}", "StartTime=now", check=False)

    def finish(self, job_id, seconds=120):
        """Wait for the end of a job through all its attempts; its last state."""
        end = time.monotonic() + seconds
        state = {}
        while time.monotonic() < end:
            state = self.job(job_id)
            if state.get("JobState") in (None, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"):
                return state.get("JobState")
            # Also those that other tests, or this one later, wait for.
            for line in self.run("squeue", "--noheader", "--states=PENDING", "--format=%i %r").splitlines():
                number, _, reason = line.strip().partition(" ")
                if reason == "BeginTime":
                    self.release(number)
            time.sleep(0.5)
        raise AssertionError(f"job {job_id} is still {state}; {self.tail()}")

    wait_for = staticmethod(lambda *arguments: wait_for(*arguments))
    free_ports = staticmethod(lambda count: free_ports(count))

    def tail(self):
        return "\n".join((self.folder / "slurmctld.log").read_text().splitlines()[-30:])


def missing_programs():
    """Programs of the Debian packages that are not installed."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return [program for program in PROGRAMS if shutil.which(program, path=path) is None]


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_for(condition, seconds, complaint):
    """Poll until ``condition()`` holds; an assertion fails after ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, complaint() if callable(complaint) else complaint
        time.sleep(0.2)


def end(process):
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def slurm_daemons():
    """Two nodes, for the whole session; everything that was started is ended."""
    # Minutes of real daemons, time limits and killed nodes: asked for by `make test-cluster`, not part of every run.
    if os.environ.get("POLYSCENE_CLUSTER_TESTS") != "1":
        pytest.skip("needs a SLURM cluster of its own: make test-cluster starts one")
    missing = missing_programs()
    if missing:
        pytest.skip(f"SLURM's programs are not installed ({', '.join(missing)}): make slurm installs them")
    # Sockets have short names: pytest's own folders are too deep for them.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    cluster = SlurmCluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def slurm_cluster(slurm_daemons, monkeypatch):
    """The cluster, with its clients talking to it from this test."""
    for name, value in slurm_daemons.environment.items():
        monkeypatch.setenv(name, value)
    return slurm_daemons


@pytest.fixture(scope="session")
def cluster_file(tmp_path_factory):
    """``cluster_file(key=value, ...)``: a cluster file with these keys."""
    folder = tmp_path_factory.mktemp("clusters")

    def write(**keys):
        file = folder / f"{len(list(folder.iterdir()))}.yaml"
        file.write_text(yaml.safe_dump(keys))
        return file

    return write
