"""Chains of dependent jobs on a real cluster."""

from pathlib import Path

import pytest
import yaml

from polyscene.launch.chain_record import read_chain_record
from polyscene.launch.cluster.job_record import read_state


@pytest.fixture
def cluster(cluster_file):
    return cluster_file(executor="slurm", time="10m", memory="5G", environment={"OMP_NUM_THREADS": 1}, max_requeues=0)


def end_all(slurm_cluster, out):
    """Wait for every job of a chain; step -> SLURM's word."""
    steps = read_chain_record(out).steps
    return {name: slurm_cluster.finish(step.job_id, 280) for name, step in steps.items() if step.state == "submitted"}


def test_the_demo_runs_to_the_report(slurm_cluster, cluster, polyscene, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["vars.root=demo", "vars.count=60", "vars.epochs=2", "vars.iterations=2", f"cluster={cluster}"]
    code, _, err = polyscene("chain", "chains/demo", *words)
    assert code == 0, err
    ends = end_all(slurm_cluster, Path("demo"))
    assert len(ends) == 8
    assert set(ends.values()) == {"COMPLETED"}, polyscene("jobs", "demo")[1]
    page = Path("demo/report.html").read_text(encoding="utf-8")
    for run in ("pretrain", "probe_knn", "retrieve", "rcm", "mti_net"):
        assert run in page
    code, _, err = polyscene("chain", "chains/demo", *words)
    assert code == 0
    assert err.startswith("finished already: scenes, pretrain, export, probe, retrieve, rcm, mti_net, report")


def test_a_failed_step_cancels_what_depends_on_it_and_the_chain_can_go_on(
    slurm_cluster, cluster, polyscene, photos, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    probe = (
        "probe probe/knn_folder weights=w.safetensors arch=resnet10t device=cpu cache=null workers=0 resize=37 crop=32"
    )
    steps = {
        "data": {"command": "scenes runs/scenes count=4 size=[48,64] workers=1"},
        "export": {"command": "export w.pth w.safetensors"},
        "probe": {
            "command": f"{probe} data.train={photos}/train data.test={photos}/val out=runs/probe",
            "after": ["export"],
        },
        "report": {"command": "report runs out=runs/report.html", "after": ["data", "probe"]},
    }
    Path("c.yaml").write_text(yaml.safe_dump({"out": "runs", "cluster": str(cluster), "steps": steps}))
    Path("w.pth").write_text("no weights")
    code, _, err = polyscene("chain", "c.yaml")
    assert code == 0, err
    ends = end_all(slurm_cluster, Path("runs"))
    assert ends == {"data": "COMPLETED", "export": "FAILED", "probe": "CANCELLED", "report": "CANCELLED"}
    _, out, err = polyscene("jobs", ".")
    assert err == ""
    rows = {line.split()[0]: line for line in out.splitlines()}
    why = read_state(Path("w-job")).message
    assert "w.pth" in why
    assert rows["w-job"].endswith(why)
    for run in ("runs/probe", "runs/report-job"):
        assert rows[run].split()[2] == "cancelled"
        assert rows[run].endswith(f"not started: 'export' failed: {why}")
    # The same command goes on, without what is finished.
    import torch
    from timm import create_model

    torch.save(create_model("resnet10t", num_classes=0).state_dict(), "w.pth")
    before = read_chain_record(Path("runs")).steps["data"].job_id
    code, _, err = polyscene("chain", "c.yaml")
    assert code == 0, err
    assert "finished already: data" in err
    assert before not in err
    assert end_all(slurm_cluster, Path("runs")) == {"export": "COMPLETED", "probe": "COMPLETED", "report": "COMPLETED"}
    assert Path("runs/report.html").is_file()
