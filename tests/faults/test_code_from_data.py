"""Nothing that comes from outside is unpickled or evaluated: by the source, and while it runs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("ptalign", "server/ptalign_server", "client/ptalign_client", "protos/ptalign_proto")
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "jsonpickle"}
CALLS = {"eval", "exec", "compile", "__import__"}
METHODS = {"torch.load", "yaml.load", "yaml.unsafe_load", "np.load", "numpy.load"}
METHODS |= {"builtins.eval", "builtins.exec", "os.system"}
OPTIONS = {"trust_remote_code", "allow_pickle", "shell"}


def finds(source: str) -> Iterator[str]:
    """Names of what could turn data into code."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
            yield from (n for n in names if n.split(".")[0] in MODULES)
        if isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Name) and function.id in CALLS:
                yield function.id
            if isinstance(function, ast.Attribute) and ast.unparse(function) in METHODS:
                yield ast.unparse(function)
            for option in node.keywords:
                value = option.value
                on = not (isinstance(value, ast.Constant) and value.value in (False, None))
                if option.arg in OPTIONS and on:
                    yield f"{option.arg}="


def test_the_source_turns_no_data_into_code() -> None:
    found = {
        f"{file.relative_to(ROOT)}: {what}"
        for room in ROOMS
        for file in (ROOT / room).rglob("*.py")
        for what in finds(file.read_text())
    }
    assert not found


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "eval(x)",
        "torch.load(f)",
        "yaml.load(f)",
        "AutoModel.from_pretrained(p, trust_remote_code=True)",
        "np.load(f, allow_pickle=yes)",
        "subprocess.run(c, shell=True)",
    ],
)
def test_the_gate_sees_what_it_should(line: str) -> None:
    assert list(finds(line))


def run(code: str) -> subprocess.CompletedProcess[str]:
    before = "from ptalign_server.hardening import refuse_unpickling; refuse_unpickling()\n"
    return subprocess.run([sys.executable, "-c", before + code], capture_output=True, text=True)


@pytest.mark.parametrize("module", ["pickle", "_pickle"])
def test_a_pickle_is_refused_while_it_runs(module: str) -> None:
    code = f"import {module} as p; p.loads(b'cposix\\nsystem\\n(S\"touch /tmp/owned\"\\ntR.')"
    assert "refused to unpickle posix.system" in run(code).stderr


def test_the_python_unpickler_is_refused_too() -> None:
    code = "import io, pickle; pickle._Unpickler(io.BytesIO(b'cposix\\nsystem\\n.')).load()"
    assert "refused to unpickle posix.system" in run(code).stderr


def test_torch_load_is_refused_beyond_tensors() -> None:
    code = (
        "import io, pickle, torch, collections\n"
        "data = io.BytesIO(); torch.save({'a': collections.Counter}, data); data.seek(0)\n"
        "torch.load(data, weights_only=False)"
    )
    assert "refused to unpickle collections.Counter" in run(code).stderr


def test_the_listed_exception_still_works() -> None:
    code = "from profanity_check import predict_prob; print(predict_prob(['hello']).shape)"
    found = run(code)
    assert found.stdout.strip() == "(1,)", found.stderr[-500:]


def test_gateway_and_worker_set_the_hook() -> None:
    for file in ("cli.py", "worker/__main__.py"):
        assert "    refuse_unpickling()\n" in (ROOT / "server/ptalign_server" / file).read_text()
