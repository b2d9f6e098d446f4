"""Checkpoints: atomic, verified, retained."""

import resource
import subprocess
import sys
import textwrap

import pytest
import torch

from polyscene.runtime.checkpoint import (
    checkpoint_path,
    list_checkpoints,
    read_checkpoint,
    restore_checkpoint,
    save_checkpoint,
    set_aside,
)
from polyscene.runtime.errors import UserError


def state(step):
    return {"step": step, "model": {"w": torch.full((300,), float(step))}, "name": "x"}


def save(folder, step, keep_last=2, keep_every_steps=None):
    return save_checkpoint(folder, step, state(step), keep_last=keep_last, keep_every_steps=keep_every_steps)


def test_round_trip_and_last(tmp_path):
    save(tmp_path, 5)
    path = save(tmp_path, 10)
    restored = restore_checkpoint(tmp_path)
    assert restored.path == path
    assert restored.state["step"] == 10
    assert torch.equal(restored.state["model"]["w"], state(10)["model"]["w"])
    assert (tmp_path / "last").read_text().strip() == path.name
    assert restored.damaged == []


def test_nothing_there(tmp_path):
    assert restore_checkpoint(tmp_path) is None
    assert restore_checkpoint(tmp_path / "absent") is None


def test_retention_keeps_the_newest_and_the_multiples(tmp_path):
    for step in range(1, 13):
        save(tmp_path, step, keep_last=2, keep_every_steps=5)
    assert [p.name for p in list_checkpoints(tmp_path)] == [f"step-{s:08d}.pt" for s in (5, 10, 11, 12)]


def damage_flip(path):
    data = bytearray(path.read_bytes())
    data[data.index(b"\x00\x00\x40\x41") if b"\x00\x00\x40\x41" in data else len(data) // 2] ^= 0x10
    path.write_bytes(data)


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


def damage_empty(path):
    path.write_bytes(b"")


def damage_text(path):
    path.write_text("hello")


@pytest.mark.parametrize("damage", [damage_flip, damage_truncate, damage_empty, damage_text])
def test_damaged_newest_falls_back_to_the_previous(tmp_path, damage):
    save(tmp_path, 11)
    newest = save(tmp_path, 12)
    damage(newest)
    restored = restore_checkpoint(tmp_path)
    assert restored.state["step"] == 11
    assert [p for p, _ in restored.damaged] == [newest]
    assert str(newest) in restored.damaged[0][1]
    set_aside(restored.damaged)
    assert newest.with_name(newest.name + ".damaged").exists()
    assert restore_checkpoint(tmp_path).damaged == []


def test_all_damaged_is_an_error_and_not_a_fresh_start(tmp_path):
    damage_empty(save(tmp_path, 1))
    with pytest.raises(UserError, match="no checkpoint in .* can be read"):
        restore_checkpoint(tmp_path)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    path = checkpoint_path(tmp_path, 3)
    torch.save({"step": 3, "model": Evil()}, path)
    with pytest.raises(UserError, match="not a readable checkpoint"):
        read_checkpoint(path)
    assert not (tmp_path / "owned").exists()


def test_full_disk_leaves_the_old_checkpoint(tmp_path):
    """A file-size limit makes the operating system fail the write as a full disk would."""
    script = f"""
        import resource, torch
        from pathlib import Path
        from polyscene.runtime.checkpoint import save_checkpoint
        from polyscene.runtime.errors import UserError
        folder = Path({str(tmp_path)!r})
        save_checkpoint(folder, 1, {{"step": 1, "w": torch.zeros(10)}}, keep_last=1, keep_every_steps=None)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, {resource.RLIM_INFINITY}))
        try:
            save_checkpoint(folder, 2, {{"step": 2, "w": torch.zeros(100_000)}}, keep_last=1, keep_every_steps=None)
        except UserError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True, timeout=120
    )
    assert "disk full while writing" in done.stdout, done.stdout + done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last", "step-00000001.pt"]
    assert restore_checkpoint(tmp_path).state["step"] == 1


def test_leftovers_of_a_killed_writer_do_not_count(tmp_path):
    save(tmp_path, 1)
    (tmp_path / ".step-00000002.pt.tmp").write_bytes(b"half")
    assert restore_checkpoint(tmp_path).state["step"] == 1
    save(tmp_path, 2)
    assert restore_checkpoint(tmp_path).state["step"] == 2
