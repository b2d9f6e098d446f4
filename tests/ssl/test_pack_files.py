"""Packs on the disk and in memory: written once, whatever dies, and gone when nobody needs them."""

import multiprocessing
import multiprocessing.connection
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polyscene.runtime.errors import UserError
from polyscene.runtime.run_lock import RunLock
from polyscene.ssl import pack_files
from polyscene.ssl.pack_files import (
    PACK_NAME,
    copy_pack,
    find_pack,
    memory_pack,
    open_or_write_pack,
    pack_folder,
    remove_leftovers,
)
from polyscene.ssl.packed_cache import ImagePack, write_pack
from polyscene.ssl.packing import pack_source
from polyscene.ssl.sources import open_source


def writer_of(source, identity="id", written=None):
    def write(file):
        if written is not None:
            written.append(1)
        pack_source(file, source, identity, 384, workers=0, progress=lambda done: None)

    return write


def silent(line):
    pass


def content_of(pack):
    return [pack.image(i).tobytes() for i in range(len(pack))]


def test_a_pack_is_written_once(source, tmp_path):
    written, said = [], []
    folder = tmp_path / "cache" / "one"
    first = open_or_write_pack(folder, "id", writer_of(source, "id", written), said.append)
    again = open_or_write_pack(folder, "id", writer_of(source, "id", written), said.append)
    assert len(written) == 1
    assert content_of(first) == content_of(again)
    assert os.listdir(folder) == [PACK_NAME]
    assert said == [f"packed images: '{folder / PACK_NAME}', 0.00 GiB"]
    assert find_pack(folder, "id")[0] is not None
    assert find_pack(tmp_path / "elsewhere", "id") == (None, "")


@pytest.mark.parametrize("harm", ["other", "head", "short"])
def test_a_pack_that_is_not_true_is_said_and_written_anew(source, tmp_path, harm):
    path = tmp_path / PACK_NAME
    before = "old" if harm == "other" else "id"
    expected = content_of(open_or_write_pack(tmp_path, before, writer_of(source, before), silent))
    content = bytearray(path.read_bytes())
    if harm == "head":
        content[60] ^= 4
    path.write_bytes(content[:-3] if harm == "short" else content)
    said = []
    assert find_pack(tmp_path, "id")[1]
    pack = open_or_write_pack(tmp_path, "id", writer_of(source), said.append)
    assert content_of(pack) == expected
    assert str(path) in said[0]
    assert "packed again" in said[0]
    assert find_pack(tmp_path, "id")[0] is not None


FORK = multiprocessing.get_context("fork")  # what it starts has imported everything already


def write_slowly(source, folder, log, pipe):
    """Open a pack, noting in a log that this process writes it; tells what it found through a pipe."""

    def write(file):
        with open(log, "a") as lines:
            lines.write("written\n")
        file.write(b"x" * 100_000)
        file.flush()
        pipe.send("writing")
        pipe.recv()
        file.seek(0)
        file.truncate()
        writer_of(source)(file)

    pack = open_or_write_pack(folder, "id", write, silent)
    pipe.send(len(pack))


def start(source, folder, log):
    here, there = FORK.Pipe()
    process = FORK.Process(target=write_slowly, args=(source, folder, log, there))
    process.start()
    there.close()
    return process, here


def test_of_processes_that_start_at_once_one_writes_and_all_get_it(source, tmp_path):
    started = [start(source, tmp_path / "pack", tmp_path / "log") for _ in range(4)]
    ready = multiprocessing.connection.wait([pipe for _, pipe in started], timeout=60)
    assert [pipe.recv() for pipe in ready] == ["writing"]
    time.sleep(0.3)
    assert multiprocessing.connection.wait([pipe for _, pipe in started], timeout=0) == [], "the others wait"
    ready[0].send("go on")
    assert [pipe.recv() for _, pipe in started] == [len(source)] * 4
    for process, _ in started:
        process.join(60)
        assert process.exitcode == 0
    assert (tmp_path / "log").read_text() == "written\n"
    assert os.listdir(tmp_path / "pack") == [PACK_NAME]


def test_a_writer_that_was_killed_is_followed_by_another(source, tmp_path):
    folder = tmp_path / "cache" / "pack"
    process, pipe = start(source, folder, tmp_path / "log")
    assert pipe.recv() == "writing"
    temporary = folder / f".{PACK_NAME}.tmp"
    assert temporary.stat().st_size == 100_000
    remove_leftovers(tmp_path / "cache")
    assert temporary.exists(), "its writer lives"
    process.kill()
    process.join(60)
    assert temporary.exists()
    assert not (folder / PACK_NAME).exists()
    pack = open_or_write_pack(folder, "id", writer_of(source), silent)
    assert len(pack) == len(source)
    assert os.listdir(folder) == [PACK_NAME]


def test_what_killed_writers_of_other_packs_left_is_deleted(tmp_path):
    for name in ("dead", "living"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f".{PACK_NAME}.tmp").touch()
    (tmp_path / "dead" / PACK_NAME).touch()
    command = [sys.executable, "-c", HOLD, str(tmp_path / "living")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        remove_leftovers(tmp_path)
        assert os.listdir(tmp_path / "dead") == [PACK_NAME]
        assert (tmp_path / "living" / f".{PACK_NAME}.tmp").exists()
        holder.communicate("done\n", timeout=60)


HOLD = """
import sys
from pathlib import Path
from polyscene.runtime.run_lock import RunLock
RunLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
sys.stdin.readline()
"""


def fill_the_disk(source, folder, pipe):
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    try:
        open_or_write_pack(folder, "id", writer_of(source), silent)
    except UserError as error:
        pipe.send(str(error))


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    (tmp_path / "data").mkdir()
    for i in range(3):
        Image.new("RGB", (90, 90), (i, 0, 0)).save(tmp_path / "data" / f"{i}.png")
    here, there = FORK.Pipe()
    process = FORK.Process(
        target=fill_the_disk, args=(open_source("folder", tmp_path / "data"), tmp_path / "pack", there)
    )
    process.start()
    there.close()
    message = here.recv()
    process.join(60)
    assert message.startswith(f"disk full while writing '{tmp_path / 'pack' / PACK_NAME}'")
    assert "\n" not in message
    assert os.listdir(tmp_path / "pack") == []


def test_an_error_of_the_writer_is_its_own_and_leaves_nothing(source, tmp_path):
    def write(file):
        file.write(b"something")
        raise UserError("a worker died")

    with pytest.raises(UserError, match="^a worker died$"):
        open_or_write_pack(tmp_path, "id", write, silent)
    assert not any(name.endswith(".tmp") or name == PACK_NAME for name in os.listdir(tmp_path))
    assert len(open_or_write_pack(tmp_path, "id", writer_of(source), silent)) == len(source), "the lock was given back"


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write to '.*file/pack': .*another data\.cache_dir"):
        open_or_write_pack(tmp_path / "file" / "pack", "id", lambda file: None, silent)


def test_a_lock_whose_folder_goes_away_is_not_waited_for(tmp_path, monkeypatch):
    def vanish(lock):
        lock.file.parent.rmdir()
        raise UserError("no such folder")

    monkeypatch.setattr(RunLock, "acquire", vanish)
    with pytest.raises(UserError, match="no such folder"):
        open_or_write_pack(tmp_path / "pack", "id", lambda file: None, silent)


def test_a_pack_of_somebody_elses_can_be_read(source, tmp_path, monkeypatch):
    expected = content_of(open_or_write_pack(tmp_path, "id", writer_of(source), silent))

    def refuse(folder):
        raise UserError("not writable")

    monkeypatch.setattr(pack_files, "_make_folder", refuse)
    assert content_of(open_or_write_pack(tmp_path, "id", writer_of(source), silent)) == expected


def test_the_folder_of_a_pack_names_images_and_side(source, tmp_path):
    folder = pack_folder(tmp_path, source, 384)
    assert folder == pack_folder(tmp_path, open_source("folder", source.root), 384)
    assert folder.name == f"folder-{source.fingerprint()}-384"
    assert folder != pack_folder(tmp_path, source, 320)
    assert folder != pack_folder(tmp_path, open_source("folder", source.root, subset=5), 384)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")
def test_a_pack_in_memory_is_seen_by_other_processes_and_disappears(source):
    before = os.listdir("/dev/shm")
    with memory_pack("id", writer_of(source), verify=False) as pack:
        expected = content_of(pack)
        assert len(pack) == len(source)
        assert os.listdir("/dev/shm") == before, "nothing that could be left behind"
        code = "import sys; from polyscene.ssl.packed_cache import ImagePack; p = ImagePack(sys.argv[1], 'id')"
        code += "; print([p.image(i).tobytes() for i in range(len(p))] == eval(sys.stdin.read()))"
        done = subprocess.run(
            [sys.executable, "-c", code, pack.path], input=repr(expected), capture_output=True, text=True, check=True
        )
        assert done.stdout == "True\n"
    assert not Path(pack.path).exists()
    assert content_of(pack) == expected, "who has it still sees it"


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")
def test_no_room_in_memory(monkeypatch):
    def write(file):
        raise OSError(28, "No space left on device")

    opened = set(os.listdir("/proc/self/fd"))
    with (
        pytest.raises(UserError, match=r"no room .* in memory .*data\.cache=disk"),
        memory_pack("i", write, verify=True),
    ):
        pass
    assert set(os.listdir("/proc/self/fd")) == opened
    monkeypatch.delattr(os, "memfd_create")
    with pytest.raises(UserError, match="on Linux only"), memory_pack("i", write, verify=False):
        pass


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")
def test_a_pack_copied_into_memory(source, tmp_path):
    on_disk = open_or_write_pack(tmp_path, "id", writer_of(source), silent)
    with memory_pack("id", lambda file: copy_pack(on_disk, file), verify=True) as pack:
        assert content_of(pack) == content_of(on_disk)


def test_waiting_is_said_once(source, tmp_path):
    said = []
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"

        def say(line):
            if not said:
                holder.stdin.write("done\n")  # the holder leaves as soon as somebody waits
                holder.stdin.flush()
                time.sleep(0.2)
            said.append(line)

        open_or_write_pack(tmp_path, "id", lambda file: write_pack(file, [], "id"), say)
        assert f"process {holder.pid} on" in said[0]
    assert len(said) == 2
    assert said[1].startswith("packed images")
    assert np.array_equal(ImagePack(tmp_path / PACK_NAME, "id").sizes, np.zeros((0, 2)))
