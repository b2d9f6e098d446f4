import pytest

from polyscene.launch.cluster.command_line import parse_command
from polyscene.launch.cluster.sweep import combination_name, common_folder, expand_sweep
from polyscene.runtime.errors import UserError


def test_every_combination_has_its_settings_and_folder(words, tmp_path):
    commands = expand_sweep(words(tmp_path / "out", "optim.lr=[0.1,0.3]", "seed=[0,1,2]"))
    lines = [parse_command(command) for command in commands]
    assert [(line.config.optim.lr, line.config.seed) for line in lines] == [
        (lr, seed) for lr in (0.1, 0.3) for seed in (0, 1, 2)
    ]
    assert [line.run.name for line in lines[:2]] == ["optim.lr=0.1,seed=0", "optim.lr=0.1,seed=1"]
    assert {line.run.parent for line in lines} == {tmp_path / "out"}
    # Nothing else differs.
    assert len({(line.config.epochs, line.config.data) for line in lines}) == 1


def test_a_key_that_is_a_list_is_swept_by_lists(words, tmp_path):
    fixed = words(tmp_path, "views.large.scale=[0.2,1.0]", "seed=[0,1]")
    assert len(expand_sweep(fixed)) == 2
    commands = expand_sweep(words(tmp_path, "views.large.scale=[[0.2,1.0],[0.5,1.0]]"))
    lines = [parse_command(command) for command in commands]
    assert [line.config.views.large.scale for line in lines] == [(0.2, 1.0), (0.5, 1.0)]
    assert [line.run.name for line in lines] == ["views.large.scale=0.2-1.0", "views.large.scale=0.5-1.0"]


def test_texts_and_null_are_swept(words, tmp_path):
    commands = expand_sweep(words(tmp_path, "views.constraint=[overlap,inside]", "views.max_iou=[null,0.5]"))
    lines = [parse_command(command) for command in commands]
    assert [(line.config.views.constraint, line.config.views.max_iou) for line in lines] == [
        ("overlap", None),
        ("overlap", 0.5),
        ("inside", None),
        ("inside", 0.5),
    ]


def test_folders_have_plain_and_short_names():
    assert combination_name({"weights": "runs/a b/x", "seed": 0}) == "weights=runs_a_b_x,seed=0"
    long = [{"weights": "x" * 300 + str(i)} for i in range(2)]
    names = [combination_name(chosen) for chosen in long]
    assert names[0] != names[1]
    assert all(len(name) < 200 for name in names)


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ((), "--sweep finds no list of values"),
        (("seed=[]",), "holds no value"),
        (("seed=[1,1]",), "holds a value twice"),
        (("out=[a,b]",), "out cannot be swept"),
        (("seed=[0,1]", "seed=[2,3]"), "seed is given twice"),
        (("optim.lr=[0.1,fast]",), "'optim.lr' must be number"),
    ],
)
def test_refusals(words, tmp_path, more, complaint):
    with pytest.raises(UserError, match=complaint):
        [parse_command(command) for command in expand_sweep(words(tmp_path / "out", *more))]


def test_commands_without_a_config_cannot_be_swept():
    with pytest.raises(UserError, match="needs a command with a CONFIG"):
        expand_sweep(["report", "runs/a", "title=[a,b]"])


def test_the_folder_above_runs(tmp_path):
    assert common_folder([tmp_path / "a"]) == tmp_path / "a"
    assert common_folder([tmp_path / "s" / "a", tmp_path / "s" / "b"]) == tmp_path / "s"
    assert common_folder([tmp_path / "s" / "a", tmp_path / "t" / "b"]) == tmp_path
    assert common_folder([tmp_path / "a", tmp_path / "s" / "t" / "b"]) == tmp_path
