"""Config files, overrides, and errors that name the key."""

from dataclasses import FrozenInstanceError, dataclass
from typing import Literal

import pytest

from polyscene.runtime.config import (
    build,
    config_hash,
    describe,
    differences,
    load_config,
    option,
    parse_words,
    section,
    to_dict,
    to_yaml,
)
from polyscene.runtime.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Optim:
    lr: float = option(0.1, help="learning rate")
    momentum: float = option(0.9, help="momentum")


@dataclass(frozen=True, kw_only=True)
class Model:
    backbone: str = option("resnet18", help="arch")
    momentum: float = option(0.99, help="ema")


@dataclass(frozen=True, kw_only=True)
class Config:
    out: str = option(help="run directory")
    mode: Literal["fast", "good"] = option("good", help="mode")
    steps: int | None = option(None, help="steps")
    size: tuple[int, int] = option((2, 3), help="size")
    names: tuple[str, ...] = option(("a",), help="names")
    verbose: bool = option(False, help="talk")
    optim: Optim = section(Optim, help="optimiser")
    model: Model = section(Model, help="model")


def write(path, text):
    path.write_text(text)
    return path


def test_defaults_file_and_words_in_that_order(tmp_path):
    file = write(tmp_path / "c.yaml", "out: runs/x\noptim: {lr: 0.5}\nsize: [4, 5]\n")
    config = load_config(Config, file, ["optim.lr=1e-4", "steps=7", "names=[b, c]", "verbose=true"])
    assert config.out == "runs/x"
    assert (config.optim.lr, config.optim.momentum) == (1e-4, 0.9)
    assert (config.size, config.steps, config.names, config.verbose) == ((4, 5), 7, ("b", "c"), True)
    with pytest.raises(FrozenInstanceError):
        config.out = "y"


def test_extends_a_chain_and_merges_sections(tmp_path):
    write(tmp_path / "a.yaml", "out: a\noptim: {lr: 1, momentum: 0.5}\nmode: fast\n")
    write(tmp_path / "b.yaml", "extends: a\noptim: {lr: 2}\n")
    (tmp_path / "deep").mkdir()
    file = write(tmp_path / "deep" / "c.yaml", "extends: ../b.yaml\nout: c\n")
    config = load_config(Config, file)
    assert (config.out, config.mode, config.optim.lr, config.optim.momentum) == ("c", "fast", 2.0, 0.5)


def test_extends_in_a_circle_is_refused(tmp_path):
    write(tmp_path / "a.yaml", "extends: b\n")
    with pytest.raises(UserError, match="round in a circle"):
        load_config(Config, write(tmp_path / "b.yaml", "extends: a\n"))


def test_dump_reads_back_equal(tmp_path):
    config = build(Config, {"out": "x", "size": [7, 8], "optim": {"lr": 1e-5}}, source="test")
    assert load_config(Config, write(tmp_path / "c.yaml", to_yaml(config))) == config


def test_interpolation(tmp_path):
    file = write(tmp_path / "c.yaml", "out: runs/${model.backbone}\n")
    assert load_config(Config, file, ["model.backbone=resnet50"]).out == "runs/resnet50"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("mdoel.backbone=x", "unknown key 'mdoel'; did you mean 'model.backbone'"),
        ("model.bakbone=x", "unknown key 'model.bakbone'; did you mean 'model.backbone'"),
        ("momentum=0.5", "did you mean 'optim.momentum' or 'model.momentum'"),
        ("zzz=1", "--help lists the valid keys"),
        ("optim.lr=quick", "'optim.lr' must be number, not 'quick'"),
        ("optim.lr=.nan", "'optim.lr' must be number"),
        ("steps=1.5", r"'steps' must be integer \| null, not '1.5'"),
        ("steps=true", r"'steps' must be integer \| null, not 'true'"),
        ("mode=best", r"'mode' must be fast \| good, not 'best'"),
        ("size=[1]", r"'size' must be \[integer, integer\], not '\[1\]'"),
        ("optim=3", "'optim' is a section of keys"),
        ("out.name=3", "'out' holds the value"),
        ("verbose", "'verbose' is not of the form key=value"),
        ("size=[1", "cannot read the value"),
    ],
)
def test_wrong_words_name_the_key(tmp_path, word, message):
    file = write(tmp_path / "c.yaml", "out: x\n")
    with pytest.raises(UserError, match=message) as error:
        load_config(Config, file, [word])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["out: [1\n", "- a\n- b\n", "out: ${nowhere}\n", "just text\n"])
def test_broken_files_name_the_file(tmp_path, text):
    with pytest.raises(UserError, match=r"c\.yaml") as error:
        load_config(Config, write(tmp_path / "c.yaml", text))
    assert "\n" not in str(error.value)


def test_required_key(tmp_path):
    for text in ("mode: fast\n", 'out: "???"\n'):
        with pytest.raises(UserError, match=r"'out' is required \(run directory\); add out=VALUE"):
            load_config(Config, write(tmp_path / "c.yaml", text))


def test_missing_config_suggests_a_shipped_one():
    with pytest.raises(UserError, match="did you mean 'pretrain/coco_knn_800ep'"):
        load_config(Config, "configs/pretrain/coco_knn_800.yaml")


def test_numeric_folder_names_are_text():
    assert build(Config, {"out": 2017}, source="t").out == "2017"


def test_describe_lists_every_key():
    rows = {key: (kind, default, text) for key, kind, default, text in describe(Config)}
    assert rows["out"] == ("text", "required", "run directory")
    assert rows["optim.lr"] == ("number", "0.1", "learning rate")
    assert rows["size"] == ("[integer, integer]", "[2, 3]", "size")
    assert rows["steps"] == ("integer | null", "null", "steps")
    assert len(rows) == 10


def test_differences_and_hash():
    old = to_dict(build(Config, {"out": "x"}, source="t"))
    new = to_dict(build(Config, {"out": "y", "optim": {"lr": 0.2}, "steps": 4}, source="t"))
    assert differences(old, new, ignore=("out",)) == ["optim.lr: 0.1 -> 0.2", "steps: None -> 4"]
    assert differences(old, new, ignore=("out", "optim", "steps")) == []
    assert config_hash(old) == config_hash(dict(reversed(old.items())))
    assert config_hash(old) != config_hash(new)


def test_words_alone():
    assert parse_words(["a.b=1", "a.c=[x]"]) == {"a": {"b": 1, "c": ["x"]}}
