"""``polyscene jobs`` on a real cluster that has no accounting."""

import time

import pytest

from polyscene.launch.cluster.job_record import read_record

LIVE = {"pending", "running"}


@pytest.fixture
def cluster(cluster_file):
    return cluster_file(executor="slurm", time="10m", environment={"OMP_NUM_THREADS": 1}, array_parallelism=3)


@pytest.fixture
def rows(polyscene):
    """``rows(folder)``: run -> cells of its row."""

    def read(folder):
        code, out, err = polyscene("jobs", folder)
        assert (code, err) == (0, "")
        head, *lines = (line.split() for line in out.splitlines())
        assert head[:3] == ["run", "job", "state"]
        return {line[0].rpartition("/")[2]: line for line in lines}

    return read


def test_a_sweep_from_the_queue_to_the_table(slurm_cluster, cluster, polyscene, rows, photos, tmp_path):
    out = tmp_path / "sweep"
    words = ["probe", "probe/knn_folder", "weights=random", "arch=resnet10t", "device=cpu", "cache=null", "workers=0"]
    words += [f"data.train={photos / 'train'}", f"data.test={photos / 'val'}", "resize=37", "crop=32", f"out={out}"]
    code, _, err = polyscene("submit", cluster, *words, "k=[1,3]", "seed=[0,1,2]", "--sweep")
    assert code == 0, err
    names = {f"k={k},seed={seed}" for k in (1, 3) for seed in (0, 1, 2)}
    first = rows(out)
    assert first.keys() == names
    array = {line[1].partition("_")[0] for line in first.values()}
    assert len(array) == 1
    assert {line[1].partition("_")[2] for line in first.values()} == set("012345")
    assert {line[2] for line in first.values()} <= LIVE
    for name in names:
        slurm_cluster.finish(read_record(out / name).job_id)
    last = rows(out)
    assert {line[2] for line in last.values()} == {"completed"}
    assert {line[3] for line in last.values()} <= {"n1", "n2"}
    code, table, _ = polyscene("jobs", out, "--table")
    title, head, *lines = table.splitlines()
    assert (code, title) == (0, "probe")
    assert head.split() == ["run", "seed", "k", "state", "accuracy"]
    assert len(lines) == 6
    assert {tuple(line.split()[1:4]) for line in lines} == {
        (str(s), str(k), "completed") for k in (1, 3) for s in range(3)
    }
    assert all(line.endswith("%") for line in lines)


def test_follow_until_the_end_and_cancel_before_it(slurm_cluster, cluster, polyscene, rows, words, tmp_path):
    small = ("model.backbone=resnet10t", "checkpoint.every_steps=1000")
    short, long = tmp_path / "short", tmp_path / "long"
    assert polyscene("submit", cluster, *words(long, *small, "epochs=100000"))[0] == 0
    assert polyscene("submit", cluster, *words(short, *small, "max_steps=3"))[0] == 0
    code, out, err = polyscene("jobs", "--follow", short)
    assert (code, err) == (0, ""), out
    lines = out.splitlines()
    assert lines[-1] == f"-- '{short}' completed"
    assert sum("step 3/3" in line for line in lines) == 1  # although it is printed and noted
    end = time.monotonic() + 120
    while (row := rows(tmp_path)["long"])[2] != "running" or "/300000" not in " ".join(row):
        assert time.monotonic() < end, row
        time.sleep(0.5)
    assert row[3] in ("n1", "n2")
    code, out, err = polyscene("jobs", "--cancel", long)
    assert (code, err) == (0, "")
    assert f"job {row[1]} was running" in out
    slurm_cluster.finish(row[1])
    assert rows(tmp_path)["long"][2] in ("stopped", "cancelled")
    assert polyscene("jobs", "--follow", long)[0] == 1
    assert polyscene("jobs", "--cancel", long)[0] == 2
    assert list((long / "checkpoints").glob("step-*.pt"))  # it had the time to save
