"""Records of chains: found below a folder, and the steps that wait for another."""

from pathlib import Path

from chain_jobs import DIAMOND, Queue, queue_all

from polyscene.launch.chain_record import dependants, find_chain_records


def test_dependants():
    after = {"a": [], "b": ["a"], "c": [], "d": ["b", "c"], "e": ["c"]}
    assert dependants(after, "a") == ["b", "d"]
    assert dependants(after, "e") == []


def test_records_are_found_below_a_folder(chain_file, here):
    assert find_chain_records(here) == []
    queue_all(chain_file(DIAMOND), Queue())
    (found,) = find_chain_records(here)
    assert found.chain == "chain.yaml"
    Path("runs/chain.json").write_text("{")
    assert find_chain_records(here) == []
