"""Scripts as modules, and what is the same about all of them."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def load_script():
    """Function: name of a script -> its module.

    The folder is on the path until the tests of a file are done, because some scripts import their siblings late;
    then it goes, as do all modules that came from it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield importlib.import_module
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "").parent == FOLDER:
            del sys.modules[name]


@pytest.fixture(autouse=True)
def threads():
    """Scripts set the number of threads; the next test gets the one there was, and the same random numbers."""
    before, state = torch.get_num_threads(), torch.get_rng_state()
    yield
    torch.set_num_threads(before)
    torch.set_rng_state(state)


@pytest.fixture
def run_main(tmp_path, capsys):
    """Function: module, words, keys that must be there -> what was printed, and what was written."""

    def run(module, words, keys=()):
        out = tmp_path / "results" / "numbers.json"
        words = [*words, "--out", str(out)]
        module.main(words)
        shown, found = capsys.readouterr().out, json.loads(out.read_text())
        assert shown.endswith(f"written: {out}\n")
        assert found["command"] == " ".join(["python", f"benchmarks/{Path(module.__file__).name}", *words])
        assert {"date", "processor", "cores", *keys} <= set(found)
        assert found["environment"]["torch"] == torch.__version__.split("+")[0]
        assert {"python", "torchvision", "commit"} <= set(found["environment"])
        return shown, found

    return run


@pytest.fixture
def refusal(capsys):
    """Function: parser, words that it must refuse with exit code 2 -> what it says."""

    def refuse(parse, words):
        with pytest.raises(SystemExit) as stopped:
            parse(words)
        assert stopped.value.code == 2
        return capsys.readouterr().err

    return refuse
