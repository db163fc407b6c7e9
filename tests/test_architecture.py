"""The house: each room imports only what its arrows allow."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAGES = ("instructions", "pairs", "align", "evaluate")
HEAVY = ("torch", "vllm", "transformers", "peft", "sentence_transformers", "sklearn")


def imports(file: Path) -> Iterator[str]:
    """Every module that a file imports, at any depth of its code."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def sources(folder: str) -> list[Path]:
    return [p for p in (ROOT / folder).rglob("*.py") if "_pb2" not in p.name]


GUESTS = {"server/ptalign_server/pool/lora_cpu.py"}
"""A plugin: vLLM imports it, into its own processes."""


def top(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        (
            "ptalign",
            {
                "grpc",
                "google",
                "ptalign_server",
                "ptalign_client",
                "ptalign_proto",
                "dbos",
                "prometheus_client",
                "sqlalchemy",
            },
        ),
        (
            "client/ptalign_client",
            {"ptalign", "ptalign_server", "pydantic", "sqlalchemy", "dbos", *HEAVY},
        ),
        ("protos/ptalign_proto", {"ptalign", "ptalign_server", "ptalign_client", *HEAVY}),
        ("server/ptalign_server", {"ptalign_client", "vllm"}),
        ("server/ptalign_server/gateway", {"ptalign_client", "dbos", *HEAVY}),
    ],
)
def test_arrows_run_one_way(folder: str, forbidden: set[str]) -> None:
    files = [p for p in sources(folder) if str(p.relative_to(ROOT)) not in GUESTS]
    assert files, f"{folder} has no code"
    wrong = {
        f"{p.relative_to(ROOT)} -> {m}" for p in files for m in imports(p) if top(m) in forbidden
    }
    assert not wrong


def test_no_stage_imports_another_stage() -> None:
    for stage in STAGES:
        others = {f"ptalign.{other}" for other in STAGES if other != stage}
        found = others & set(imports(ROOT / "ptalign" / f"{stage}.py"))
        assert not found, f"{stage} imports {found}"


BLOCKED = """
import importlib.abc, sys
class Wall(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {blocked!r}:
            raise ImportError('blocked: ' + name)
sys.meta_path.insert(0, Wall())
import {module}
"""


@pytest.mark.parametrize(
    ("module", "blocked"),
    [
        (
            "ptalign_client, ptalign_client.cli",
            (*HEAVY, "ptalign", "ptalign_server", "pydantic", "sqlalchemy"),
        ),
        (
            "ptalign, ptalign.config, ptalign.instructions, ptalign.pairs, ptalign.evaluate",
            (*HEAVY, "grpc", "google", "dbos", "sqlalchemy", "ptalign_server", "jinja2"),
        ),
        ("ptalign_server.gateway, ptalign_server.gateway.serve", ("vllm", *HEAVY)),
        # Probes run `ptalign-server health` every few seconds.
        ("ptalign_server.cli", ("sqlalchemy", "obstore", "dbos", "vllm", *HEAVY)),
    ],
)
def test_room_imports_with_the_forbidden_blocked(module: str, blocked: tuple[str, ...]) -> None:
    code = BLOCKED.format(blocked=set(blocked), module=module)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_wall_works() -> None:
    """The test of the test: a blocked module that is imported is caught."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED.format(blocked={"json"}, module="json.tool")],
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "blocked: json" in done.stderr


def test_no_registry_host_and_no_machine_path_is_committed() -> None:
    """Hosts of package registries and paths of the builders' machines stay out of the tree."""
    words = [
        b"files.pythonhosted" + b".org",
        b"/root/" + b".",
        b"/work/" + b"main",
        b"/work/" + b"shared",
    ]
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("needs git and a checkout")
    names = [n for n in listed.stdout.decode().split("\0") if n and (ROOT / n).is_file()]
    wrong = [n for n in names for word in words if word in (ROOT / n).read_bytes()]
    assert not wrong
