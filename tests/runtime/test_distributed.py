import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from datetime import timedelta

import pytest
import torch

from polyscene.runtime.distributed import choose_device, join_world, meet

RANK = """
import os, sys, torch
from polyscene.runtime.distributed import join_world
with join_world("cpu") as world:
    mean = world.mean(torch.tensor(float(world.rank)))
    print(world.rank, world.size, int(2 * mean), world.gather_objects(world.rank))
"""


def test_processes_meet_through_a_file(tmp_path):
    """No port is agreed on before, and a file that an earlier attempt left is another file."""
    (tmp_path / "17.0_rendezvous.json").write_text('{"hosts": ["nowhere.invalid"], "port": 9}')
    processes = []
    for rank in range(2):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MASTER_")}
        environment |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
        environment["POLYSCENE_RENDEZVOUS"] = str(tmp_path / "17.1_rendezvous.json")
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", RANK], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    said = [process.communicate(timeout=120) for process in processes]
    assert [out.strip() for out, _ in said] == ["0 2 1 [0, 1]", "1 2 1 [0, 1]"], said
    place = json.loads((tmp_path / "17.1_rendezvous.json").read_text())
    assert place["hosts"]
    assert place["port"] > 0


def test_two_runs_on_one_machine_have_different_ports(tmp_path):
    stores = [meet(tmp_path / f"{name}.json", 0, 2, timedelta(seconds=10)) for name in "ab"]
    ports = [json.loads((tmp_path / f"{name}.json").read_text())["port"] for name in "ab"]
    assert ports == [store.port for store in stores]
    assert ports[0] != ports[1]


def test_the_name_that_answers_is_used(tmp_path):
    """A name of the cluster that nobody resolves stands before the one that works."""
    file = tmp_path / "r.json"
    store = meet(file, 0, 2, timedelta(seconds=10))
    file.write_text(json.dumps({"hosts": ["node.invalid", "127.0.0.1"], "port": store.port}))
    found = []
    thread = threading.Thread(target=lambda: found.append(meet(file, 1, 2, timedelta(seconds=10))))
    thread.start()
    thread.join(20)
    found[0].set("key", "value")
    assert store.get("key") == b"value"


def test_a_rank_that_finds_nobody_says_where_it_looked(tmp_path):
    file = tmp_path / "r.json"
    with pytest.raises(ConnectionError, match="rank 1 did not find rank 0 within"):
        meet(file, 1, 2, timedelta(seconds=0.2))
    file.write_text(json.dumps({"hosts": ["127.0.0.1"], "port": 1}))
    with pytest.raises(ConnectionError, match=r"127.0.0.1, port 1 do not answer"):
        meet(file, 1, 2, timedelta(seconds=0.2))


@pytest.mark.parametrize(("device", "error", "left"), [("cuda", False, 1), ("cuda", True, 0), ("cpu", True, 1)])
def test_nccl_is_left_together_or_not_at_all(monkeypatch, device, error, left):
    """Leaving it waits for the other processes: one that fails would hang with its message unsaid."""
    for name, value in (("WORLD_SIZE", 2), ("RANK", 1), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", 1)):
        monkeypatch.setenv(name, str(value))
    backends, calls = [], []
    monkeypatch.setattr("polyscene.runtime.distributed.choose_device", lambda *_: torch.device(device))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, timeout: backends.append(backend))
    monkeypatch.setattr(torch.distributed, "new_group", lambda backend, timeout: backends.append(backend))
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: calls.append("left"))
    with suppress(ZeroDivisionError), join_world(device):
        assert not calls
        assert 1 / (not error)
    assert backends == ["nccl" if device == "cuda" else "gloo", "gloo"]
    assert len(calls) == left


@pytest.mark.parametrize(("visible", "local_rank", "index"), [(8, 5, 5), (1, 5, 0), (4, 0, 0)])
def test_a_device_for_every_process(monkeypatch, visible, local_rank, index):
    """All GPUs of the node are visible, or each process only sees its own."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    assert choose_device("auto", local_rank) == torch.device("cuda", index)
