"""What an operator reads before and at the start: doctor, warnings, settings that are wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ptalign.errors import DataDamaged
from ptalign_server.admin.doctor import check_evaluation_data
from ptalign_server.catalogue import Catalogue
from ptalign_server.notices import notices
from ptalign_server.settings import Settings

FILES = ("xstest_prompts.csv", "ifeval_en_odd.jsonl")


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`ptalign-server` with these variables and no other PTALIGN_ ones."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PTALIGN_")}
    return subprocess.run(
        [sys.executable, "-m", "ptalign_server.cli", *arguments],
        env=kept | {"COLUMNS": "400"} | environment,
        capture_output=True,
        text=True,
    )


def test_missing_evaluation_data_is_said_before_an_evaluation_is_wasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(state=tmp_path / "state")
    monkeypatch.delenv("PTALIGN_EVAL_DATA", raising=False)
    (found,) = check_evaluation_data(settings)
    (notice,) = notices(settings)
    assert (found.ok, found.needed) == (False, False)
    for words in (*FILES, "PTALIGN_EVAL_DATA", "INCONCLUSIVE"):
        assert words in found.found + found.mend
        assert words in notice
    monkeypatch.setenv("PTALIGN_EVAL_DATA", str(tmp_path))
    (tmp_path / FILES[0]).touch()
    (found,) = check_evaluation_data(settings)
    assert FILES[0] not in found.found
    assert FILES[1] in found.found
    (tmp_path / FILES[1]).touch()
    assert not list(notices(settings))
    (found,) = check_evaluation_data(settings)
    assert found.ok


def test_a_damaged_suites_file_is_named_and_stops_neither_doctor_nor_start(tmp_path: Path) -> None:
    (tmp_path / "suites.yaml").write_text("- {name: mine}")
    settings = Settings(state=tmp_path)
    with pytest.raises(DataDamaged, match=r"suites\.yaml"):
        _ = Catalogue(settings).suites
    (found,) = check_evaluation_data(settings)
    assert "suites.yaml" in found.found
    assert any("suites.yaml" in notice for notice in notices(settings))


def test_doctor_shows_brackets_and_does_not_fail_for_what_is_only_missed(tmp_path: Path) -> None:
    done = command("doctor", PTALIGN_STATE=str(tmp_path / "[cpu]"), PTALIGN_ENGINE__KIND="scripted")
    assert "[cpu]" in done.stdout
    assert "PTALIGN_EVAL_DATA" in done.stdout
    assert "evaluation data" in done.stdout
