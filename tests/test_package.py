"""The folder `ssl/` must never hide Python's TLS module, and the package must import from anywhere."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run_in_root(*arguments):
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    ).stdout


def test_an_interpreter_in_the_repository_root_has_tls():
    script = (
        "import ssl, socket; context = ssl.create_default_context(); "
        "a, b = socket.socketpair(); "
        "tls = context.wrap_socket(a, server_hostname='localhost', do_handshake_on_connect=False); "
        "print(type(tls).__name__, ssl.__file__.endswith('ssl.py'), ssl.OPENSSL_VERSION)"
    )
    assert run_in_root("-c", script).startswith("SSLSocket True ")


def test_a_handshake_works_in_the_repository_root():
    """Client and server in memory: the client must get as far as sending its hello."""
    script = (
        "import ssl; a, b = ssl.MemoryBIO(), ssl.MemoryBIO()\n"
        "tls = ssl.create_default_context().wrap_bio(a, b, server_hostname='localhost')\n"
        "try: tls.do_handshake()\n"
        "except ssl.SSLWantReadError: print(b.pending > 100)"
    )
    assert run_in_root("-c", script).strip() == "True"


@pytest.mark.parametrize("module", ["http.server", "pip"])
def test_standard_tools_start_in_the_repository_root(module):
    assert "usage" in run_in_root("-m", module, "--help").lower()


def test_the_package_imports_with_the_folder_beside_it():
    script = "import polyscene.ssl.moco.losses as m, ssl; print(m.__name__, hasattr(ssl, 'SSLContext'))"
    assert run_in_root("-c", script).strip() == "polyscene.ssl.moco.losses True"


def test_ssl_has_no_init():
    assert not (ROOT / "ssl" / "__init__.py").exists()


def test_the_command_line_starts_without_torch():
    script = "import sys, polyscene.launch.cli; print('torch' in sys.modules)"
    assert run_in_root("-c", script).strip() == "False"


def test_every_package_folder_is_listed():
    """A new folder that pyproject.toml forgets would be missing from wheels only."""
    import sys

    if sys.version_info < (3, 11):
        pytest.skip("tomllib needs Python 3.11")
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        "polyscene." + ".".join(p.parent.relative_to(ROOT).parts)
        for top in ("runtime", "ssl", "downstream", "launch", "configs")
        for p in (ROOT / top).rglob("*.py")
    }
    assert folders == set(settings["packages"])


def test_the_folder_called_ssl_does_not_hide_tls():
    code = "import ssl; ssl.create_default_context(); import polyscene.ssl.sources; print(ssl.OPENSSL_VERSION)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "SSL" in result.stdout
