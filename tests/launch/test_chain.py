"""``polyscene chain`` as a whole: a chain until nothing is left to do, and those that are shipped."""

from pathlib import Path

from chain_jobs import DIAMOND

from polyscene.launch.chain_record import read_chain_record


def test_a_chain_runs_in_order_and_then_has_nothing_to_do(chain_file, polyscene, jobs):
    file = chain_file(DIAMOND)
    code, out, err = polyscene("chain", file)
    assert (code, out) == (0, ""), err
    assert jobs.started == ["scenes-job", "left", "right", "report-job"]
    assert jobs.most == 1
    assert err.splitlines()[-1] == "all steps are completed"
    assert {step.state for step in read_chain_record(Path("runs")).steps.values()} == {"completed"}
    code, _, err = polyscene("chain", file)
    assert (code, err) == (0, "finished already: data, left, right, end\n")
    assert len(jobs.started) == 4


def test_shipped_chains(here, polyscene):
    code, out, err = polyscene("chain", "chains/demo", "--dry-run", "vars.root=r")
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()[1:]] == [
        "scenes", "pretrain", "export", "probe", "retrieve", "rcm", "mti_net", "report",
    ]  # fmt: skip
    assert not Path("r").exists()
    data = [f"vars.{name}={here}/images" for name in ("coco", "voc2007", "voc2012", "nyud")]
    code, out, err = polyscene("chain", "chains/coco_to_nyud", "--dry-run", *data)
    assert code == 0, err
    places = {line.split()[0]: line for line in out.splitlines()[1:]}
    assert {"pretrain", "export", "svm", "retrieve", "rcm_segmentation", "rcm_depth", "report"} < places.keys()
    assert "slurm, 1 x 8 GPU" in places["pretrain"]
    assert "slurm, 1 x 1 CPU" in places["report"]
    code, _, err = polyscene("chain", "chains/coco_to_nyud", *data[1:])
    assert (code, err.strip().rpartition(": ")[2]) == (2, "vars.coco must be given; add vars.coco=VALUE")
