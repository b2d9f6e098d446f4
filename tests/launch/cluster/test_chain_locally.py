"""A chain of real jobs on this machine: a failure, its repair, and the report."""

from pathlib import Path

import torch
import yaml
from timm import create_model

from polyscene.launch.chain_record import read_chain_record


def test_a_failed_step_cancels_what_depends_on_it_and_the_chain_can_go_on(
    cluster_file, polyscene, photos, tmp_path, monkeypatch
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
            "after": "export",
        },
        "report": {"command": "report runs out=runs/report.html", "after": ["data", "probe"]},
    }
    cluster = cluster_file(executor="local", time="10m", environment={"OMP_NUM_THREADS": 1})
    chain = {"out": "runs", "cluster": str(cluster), "parallel": 2, "steps": steps}
    Path("c.yaml").write_text(yaml.safe_dump(chain))
    Path("w.pth").write_text("no weights")
    code, _, err = polyscene("chain", "c.yaml")
    assert code == 1
    why = read_chain_record(Path("runs")).steps["export"].message
    assert "w.pth" in why
    assert f"export: failed: {why}" in err.splitlines()
    assert "cancelled, because 'export' failed: probe, report" in err.splitlines()
    _, out, _ = polyscene("jobs", ".")
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert rows["w-job"].split()[2] == "failed"
    assert rows["w-job"].endswith(why)
    assert f"not started: c.yaml, report: 'export' failed: {why}" in out
    torch.save(create_model("resnet10t", num_classes=0).state_dict(), "w.pth")
    code, _, err = polyscene("chain", "c.yaml")
    assert code == 0, err
    assert err.startswith("finished already: data\n")
    assert Path("runs/report.html").is_file()
    assert polyscene("chain", "c.yaml")[2] == "finished already: data, export, probe, report\n"
