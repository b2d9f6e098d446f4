"""What a chain file says: order, variables, words, and the line that refuses what it must not say."""

from pathlib import Path

import pytest
from chain_jobs import DIAMOND
from hypothesis import given
from hypothesis import strategies as st

from polyscene.launch.chain_config import load_chain, sort_steps


@given(st.lists(st.sets(st.integers(0, 11), max_size=4), min_size=1, max_size=12), st.randoms())
def test_every_step_comes_after_those_it_names(edges, random):
    # Edges to smaller numbers only cannot make a circle; names are shuffled so that the order has to be found.
    names = [f"s{i}" for i in range(len(edges))]
    after = {names[i]: [names[j] for j in others if j < i] for i, others in enumerate(edges)}
    shuffled = list(after)
    random.shuffle(shuffled)
    order = sort_steps({name: after[name] for name in shuffled}, "c.yaml")
    assert sorted(order) == sorted(names)
    assert all(order.index(other) < order.index(name) for name, others in after.items() for other in others)


def test_the_order_of_the_file_where_it_is_free():
    assert sort_steps({"c": [], "a": [], "b": ["a"]}, "f") == ["c", "a", "b"]


def test_variables_words_and_lists_of_words(here):
    Path("c.yaml").write_text(
        "out: ${vars.root}/log\n"
        "vars:\n  root: ???\n  count: 4\n"
        "steps:\n"
        "  a: {command: 'polyscene scenes ${vars.root}/s count=${vars.count}'}\n"
        "  b: {command: [scenes, '${vars.root}/with space', 'size=[48, 64]'], after: a}\n"
    )
    chain = load_chain("c.yaml", ["vars.root=runs/x", "vars.count=7"])
    assert chain.out == Path("runs/x/log")
    assert [step.command.words for step in chain.steps] == [
        ("scenes", "runs/x/s", "count=7"),
        ("scenes", "runs/x/with space", "size=[48, 64]"),
    ]
    assert chain.steps[1].after == ("a",)


def test_a_chain_may_extend_another(chain_file):
    chain_file(DIAMOND)
    Path("mine.yaml").write_text("extends: chain.yaml\nparallel: 3\nsteps: {left: {cluster: cluster/local}}\n")
    chain = load_chain("mine.yaml")
    assert (chain.parallel, [step.name for step in chain.steps]) == (3, ["data", "left", "right", "end"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["steps.left.after=dta"], "steps.left.after names 'dta', which is no step; did you mean 'data'?"),
        (["steps.data.after=end"], "steps wait for each other: data after end after left after data"),
        (["steps.left.after=left"], "steps wait for each other: left after left"),
        (["steps.left.command=probe probe/knn_folder kk=3"], "steps.left: probe/knn_folder: unknown key 'kk'"),
        (["steps.left.command=train x"], "steps.left: 'train' cannot be submitted"),
        (["steps.left.command=chain x"], "steps.left: 'chain' cannot be submitted"),
        (['steps.left.command="report \'runs"'], "steps.left: command: no closing quotation"),
        (["steps.left.command=''"], "steps.left: no command is named"),
        (["steps.left.comand=x"], "steps.left: unknown key 'comand'; did you mean 'command'?"),
        (["steps.lft.after=[]"], "steps.lft is not in the chain; did you mean 'steps.left'?"),
        (["vars.x=1"], "vars.x is not in the chain; it has: size"),
        (["cluster=cluster/nope"], "config file 'cluster/nope' does not exist"),
        (["parallel=0"], "parallel=0"),
        (["paralel=2"], "unknown key 'paralel'; did you mean 'parallel'?"),
    ],
)
def test_refusals_are_one_line_before_anything_starts(refused, changes, words):
    assert words in refused(*changes)


def test_files_that_are_no_chain(here, polyscene):
    for text, words in (
        ("out: runs", "'steps' is required"),
        ("out: runs\nsteps: {}", "steps is empty"),
        ("out: runs\nsteps: {a: report}", "steps.a is a section with the key command"),
        ("out: runs\nsteps: {a/b: {command: x}}", "step 'a/b': a name is made of letters"),
        ("out: runs\nsteps: {a: {}}", "steps.a: 'command' is required"),
        (
            "out: x\nvars:\n  root: ???\n  b: ???\nsteps: {}",
            "vars.root, vars.b must be given; add vars.root=VALUE",
        ),
        ("out: ${vars.rot}\nvars: {root: a}\nsteps: {}", "rot"),
    ):
        Path("c.yaml").write_text(text)
        code, _, err = polyscene("chain", "c.yaml")
        assert (code, err.count("\n")) == (2, 1), err
        assert words in err
