"""The client stays thin: what it imports, and that its wheel stands alone."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = [
    "torch",
    "vllm",
    "transformers",
    "ptalign",
    "ptalign_server",
    "pydantic",
    "sqlalchemy",
    "numpy",
]
WALL = f"""
import importlib.abc, sys
class Wall(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Wall())
"""


@pytest.mark.parametrize("module", ["ptalign_client", "ptalign_client.cli"])
def test_imports_without_anything_heavy(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{WALL}\nimport {module}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_help_needs_nothing_heavy() -> None:
    run = "import runpy; runpy.run_module('ptalign_client', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", f"{WALL}\n{run}", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "ptalign run loop.yaml" in done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client's wheel, built without a network from a copy of the two rooms."""
    out = tmp_path_factory.mktemp("wheel")
    flags = ["-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(out)]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *flags, "./client"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    return next(out.glob("*.whl"))


def test_wheel_carries_client_and_wire_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"ptalign_client", "ptalign_proto"}
    assert "ptalign_proto/v1/safety_tuning_pb2.py" in names
    assert "ptalign_client/py.typed" in names


def test_wheel_carries_the_text_of_its_licence(wheel: Path) -> None:
    """Whoever installs the client alone has no other copy, and the licence asks for one."""
    files = zipfile.ZipFile(wheel)
    [name] = [name for name in files.namelist() if name.endswith("licenses/LICENSE")]
    assert files.read(name) == (ROOT / "LICENSE").read_bytes()


def test_wheel_installs_alone_and_runs(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    install = subprocess.run(
        [home / "bin" / "python", "-m", "pip", "install", "-q", "--no-input", str(wheel)],
        capture_output=True,
        text=True,
    )
    if "NewConnectionError" in install.stderr:
        pytest.skip("needs a package index")
    assert install.returncode == 0, install.stderr
    env = {"PATH": os.defpath, "HOME": str(tmp_path)}
    shown = subprocess.run(
        [home / "bin" / "ptalign", "--help"], capture_output=True, text=True, env=env, cwd=tmp_path
    )
    assert shown.returncode == 0, shown.stderr
    assert "synthesize" in shown.stdout
    there = subprocess.run(
        [home / "bin" / "python", "-c", "import ptalign_client as p; print(p.Client)"],
        capture_output=True,
        text=True,
        env=env,
        cwd=tmp_path,
    )
    assert there.stdout.strip() == "<class 'ptalign_client.sync.Client'>", there.stderr
