"""Model files: what comes back is what was written, and anything else is one clear line."""

import dataclasses
import json

import pytest
import safetensors.torch
import torch

from polyscene.downstream.multitask.models.build import ModelOptions
from polyscene.downstream.multitask.models.model_file import SavedModel, load_model, save_model
from polyscene.runtime.errors import UserError

OPTIONS = ModelOptions("rcm", head_width=8, response_init=False)


@pytest.fixture
def records(record):
    return {"edges": record("edges", 1), "normals": record("normals", 3)}


@pytest.fixture
def saved(make, records, tmp_path):
    """A small file, of the kind whose state is smallest."""
    path = tmp_path / "model.safetensors"
    options = dataclasses.replace(OPTIONS, kind="frozen")
    save_model(path, SavedModel(make("frozen"), "resnet10t", options, records, {"steps": "7"}))
    return path


def rewritten(path, change_header=None, change_state=None):
    """Write the file again with parts changed."""
    with safetensors.safe_open(path, framework="pt") as file:
        header, state = dict(file.metadata()), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    (change_header or (lambda header: None))(header)
    (change_state or (lambda state: None))(state)
    safetensors.torch.save_file(state, path, metadata=header)
    return path


@pytest.mark.parametrize("kind", ["rcm", "multi_task", "single"])
def test_what_was_written_comes_back(make, records, images, disturb, tmp_path, kind):
    model = make(kind, seed=5).train()
    disturb(model, "normals")
    options = dataclasses.replace(OPTIONS, kind=kind)
    save_model(tmp_path / "model.safetensors", SavedModel(model, "resnet10t", options, records, {"step": "10"}))
    loaded = load_model(tmp_path)  # the run directory
    assert (loaded.arch, loaded.options, loaded.metadata) == ("resnet10t", options, {"step": "10"})
    assert loaded.tasks == records
    assert list(loaded.tasks) == list(loaded.model.tasks) == ["edges", "normals"]
    assert not loaded.model.training
    assert loaded.model.head_seed == 5
    state = model.state_dict()
    assert loaded.model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in loaded.model.state_dict().items())
    with torch.no_grad():
        expected, found = model.eval()(images[:1]).final, loaded.model(images[:1]).final
    assert all(torch.equal(found[task], expected[task]) for task in expected)
    # Written again, the file has the same bytes; the order of the records given does not matter.
    again = dict(reversed(records.items()))
    save_model(tmp_path / "again.safetensors", dataclasses.replace(loaded, tasks=again))
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_records_must_be_those_of_the_model(make, record, tmp_path):
    for records in ({"edges": record("edges", 1)}, {"edges": record("edges", 1), "normals": record("normals", 2)}):
        with pytest.raises(ValueError, match="records"):
            save_model(tmp_path / "m", SavedModel(make("frozen"), "resnet10t", OPTIONS, records))
    assert not list(tmp_path.iterdir())


def damaged_channels(header):
    tasks = json.loads(header["tasks"])
    tasks[0]["channels"] = 2
    header["tasks"] = json.dumps(tasks)


def renamed(state):
    state["heads.tasks.edges.other"] = state.pop("heads.tasks.edges.prediction.bias")


def poisoned(state):
    state["heads.tasks.edges.prediction.bias"] = torch.tensor([float("nan")])


@pytest.mark.parametrize(
    ("header", "state", "said"),
    [
        (lambda h: h.clear(), None, "is no polyscene multi-task model"),
        (lambda h: h.update(content="something"), None, "is no polyscene multi-task model"),
        (lambda h: h.update(version="2"), None, r"another version of polyscene \(2\)"),
        (lambda h: h.pop("arch"), None, "header is damaged"),
        (lambda h: h.update(tasks="[1]"), None, "task"),
        (lambda h: h.update(tasks="{"), None, "header is damaged"),
        (lambda h: h.update(head_seed="x"), None, "header is damaged"),
        (lambda h: h.update(options=h["options"].replace("frozen", "thawed")), None, "model.kind=thawed"),
        (lambda h: h.update(options=h["options"].replace("head_width", "width")), None, "unknown option 'width'"),
        (
            lambda h: h.update(options=h["options"].replace("dilated", "folded")),
            None,
            "unknown family of models 'folded'",
        ),
        (lambda h: h.update(auxiliary=h["tasks"]), None, "header is damaged.*no auxiliary tasks"),
        (lambda h: h.update(options=h["options"].replace('"head_width": 8', '"head_width": 9')), None, "do not fit"),
        (lambda h: h.update(arch="resnet18"), None, "do not fit"),
        (lambda h: h.update(arch="resnet19"), None, "does not know this network"),
        (lambda h: h.update(arch="mobilenetv3_small_050"), None, "not a ResNet"),
        (damaged_channels, None, r"do not fit its header: 2 .* heads.tasks.edges.prediction"),
        (None, renamed, "do not fit its header: 2 missing, unexpected"),
        (None, poisoned, "hold NaN"),
    ],
)
def test_other_contents_are_one_line(saved, header, state, said):
    rewritten(saved, header, state)
    with pytest.raises(UserError, match=said) as error:
        load_model(saved)
    assert "\n" not in str(error.value)
    assert str(saved) in str(error.value)


def test_damaged_files_are_one_line(saved, tmp_path):
    content = saved.read_bytes()
    cases = {
        "short": content[: len(content) // 2],
        "header": content[:100],
        "empty": b"",
        "text": b"hello " * 50,
    }
    for name, data in cases.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(UserError, match="damaged or no safetensors file") as error:
            load_model(path)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no such file"):
        load_model(tmp_path / "absent")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"folder/model.safetensors: no such file; .*polyscene multitask"):
        load_model(tmp_path / "folder")
