"""The .proto files: what a released client sends and reads stays as it is."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "protos"))

import generate  # noqa: E402


def _lint(folder: Path, monkeypatch: pytest.MonkeyPatch, old: str = "", new: str = "") -> None:
    """`make lint` on a copy in which something was changed."""
    copy = folder / "protos"
    shutil.copytree(ROOT / "protos", copy)
    shutil.copy(ROOT / "buf.yaml", folder)
    for file in copy.rglob("*.proto"):
        file.write_text(file.read_text().replace(old, new))
    monkeypatch.setattr(generate, "HERE", copy)
    generate.lint(folder)


def test_this_release_breaks_no_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(generate.RELEASES.glob("*.binpb"))
    _lint(tmp_path, monkeypatch)


def test_a_broken_field_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="breaking"):
        _lint(tmp_path, monkeypatch, "uint32 samples = 9;", "uint64 samples = 9;")
    assert 'name "samples"' in capfd.readouterr().out
