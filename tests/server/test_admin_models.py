"""`ptalign-server models add`: what an entry holds, and what replacing it keeps."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from running import at_once
from typer.testing import CliRunner, Result

from ptalign.errors import InvalidInput
from ptalign_server.admin import audit
from ptalign_server.admin import models as commands
from ptalign_server.admin.doctor import check_model
from ptalign_server.admin.models import app
from ptalign_server.catalogue import read_models, write_models
from ptalign_server.notices import notices
from ptalign_server.settings import Settings

Add = Callable[..., Result]


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Add:
    monkeypatch.setenv("PTALIGN_STATE", str(tmp_path / "state"))
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer_config.json", "model.safetensors"):
        (folder / name).write_text("{}")
    return lambda *words: CliRunner().invoke(app, ["add", "tiny", str(folder), *words])


def entry(tmp_path: Path) -> dict[str, Any]:
    [found] = [
        e
        for e in yaml.safe_load((tmp_path / "state" / "models.yaml").read_text())
        if e["name"] == "tiny"
    ]
    return dict(found)


def test_template_options_are_part_of_the_entry(add: Add, tmp_path: Path) -> None:
    made = add(
        *("--template-option", "enable_thinking=false", "--template-option", 'tone="plain"'),
        *("--system-prompt", "Be brief."),
    )
    assert made.exit_code == 0, made.output
    assert "kept" not in made.output
    assert entry(tmp_path)["template_options"] == {"enable_thinking": False, "tone": "plain"}


def test_replacing_keeps_what_is_not_given_and_says_so(add: Add, tmp_path: Path) -> None:
    first = ("--locale", "ja", "--dtype", "bfloat16", "--system-prompt", "Be brief.")
    add(*first, "--template-option", "a=1", "--template-option", "b=2")
    again = add("--revision", "r2")
    assert again.exit_code == 0, again.output
    found = entry(tmp_path)
    assert (found["revision"], found["dtype"], found["locales"]) == ("r2", "bfloat16", ["ja"])
    assert (found["system_prompt"], found["template_options"]) == ("Be brief.", {"a": 1, "b": 2})
    assert 'kept system_prompt: "Be brief."' in again.output
    assert 'kept template_options: {"a": 1, "b": 2}' in again.output
    assert "kept revision" not in again.output
    add("--template-option", "a=", "--template-option", "c=[3]", "--system-prompt", "")
    found = entry(tmp_path)
    assert (found["system_prompt"], found["template_options"]) == ("", {"b": 2, "c": [3]})


def test_a_model_that_is_added_while_another_is_hashed_stays(
    add: Add, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file was read before the weights, which take minutes, and written back after them."""
    add("--system-prompt", "Be brief.")
    settings = Settings(state=tmp_path / "state")

    def meanwhile(_: Path) -> str:
        models = read_models(settings.models_path)
        other = models["tiny"].model_copy(update={"name": "other"})
        brief = models["tiny"].model_copy(update={"system_prompt": "Be kind."})
        write_models(settings.models_path, {"tiny": brief, "other": other})
        return "sha256:1"

    monkeypatch.setattr(commands, "weights_digest", meanwhile)
    done = add("--revision", "r2")
    assert done.exit_code == 0, done.output
    found = read_models(settings.models_path)
    assert found.keys() == {"tiny", "other"}
    tiny = found["tiny"]
    assert (tiny.revision, tiny.system_prompt, tiny.weights_digest) == (
        "r2",
        "Be kind.",
        "sha256:1",
    )


def test_models_that_are_added_together_are_all_there(
    add: Add, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add()
    read = commands.read_models

    def one(name: str) -> None:
        commands.add(name, tmp_path / "model")

    at_once(monkeypatch, commands, "read_models", one)
    assert read(tmp_path / "state" / "models.yaml").keys() >= set("abcd")


def test_what_does_not_fit_is_said_before_the_weights_are_hashed(
    add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    monkeypatch.setattr(commands, "weights_digest", hashed.append)
    for words in (("--dtype", "int3"), ("--template-option", "thinking")):
        assert isinstance(add(*words).exception, InvalidInput)
    assert not hashed


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--template-option", "thinking"), "KEY=JSON"),
        (("--template-option", "mode=fast"), "Quote text: 'mode=\"fast\"'"),
        (("--dtype", "int3"), "dtype"),
    ],
)
def test_what_does_not_fit_is_named(
    add: Add, tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    failed = add(*words)
    assert isinstance(failed.exception, InvalidInput)
    assert says in str(failed.exception)
    assert not (tmp_path / "state" / "models.yaml").exists()


def test_the_digest_of_a_folder_is_that_of_its_entry(add: Add, tmp_path: Path) -> None:
    """The chart's catalogue is written by hand: nothing printed a digest without changing one."""
    asked = CliRunner().invoke(app, ["digest", str(tmp_path / "model")])
    assert asked.exit_code == 0, asked.output
    assert not (tmp_path / "state").exists()
    add()
    assert asked.output.strip() == entry(tmp_path)["weights_digest"]
    failed = CliRunner().invoke(app, ["digest", str(tmp_path)])
    assert "has no config.json" in str(failed.exception)


def test_an_entry_without_a_digest_is_named(add: Add, tmp_path: Path) -> None:
    """With it empty, adapters of earlier weights were served on new ones and nothing warned."""
    settings = Settings(state=tmp_path / "state")
    add()
    assert not [n for n in notices(settings) if "tiny" in n]
    assert all(f.ok for f in check_model(settings))
    path = settings.models_path
    found = yaml.safe_load(path.read_text())
    for item in found:
        item.pop("weights_digest", None)
    path.write_text(yaml.safe_dump(found))
    [notice] = [n for n in notices(settings) if "tiny" in n]
    [finding] = [f for f in check_model(settings) if not f.ok and "tiny" in f.what]
    command = f"ptalign-server models digest {tmp_path / 'model'}"
    assert command in notice
    assert command in finding.mend
    assert not finding.needed


def test_a_damaged_models_file_is_said_among_the_notices(tmp_path: Path) -> None:
    settings = Settings(state=tmp_path)
    settings.models_path.write_text("name: no list")
    assert any("models file" in notice for notice in notices(settings))


def test_what_is_no_list_of_models_is_a_finding_of_the_doctor(tmp_path: Path) -> None:
    """It ended the doctor with one line, and nothing else was looked at."""
    settings = Settings(state=tmp_path)
    settings.models_path.write_text("foo: bar")
    [found] = check_model(settings)
    assert not found.ok
    assert "cannot be read" in found.found
    assert str(settings.models_path) in found.mend


def test_a_conversion_that_fails_has_said_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """After its one line came a traceback of the call."""
    failed = subprocess.CompletedProcess([], 3)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    result = CliRunner().invoke(app, ["prepare"])
    assert result.exit_code == 3
    assert isinstance(result.exception, SystemExit)


@pytest.mark.parametrize("words", [["verify"], ["list"]])
def test_a_folder_where_no_server_has_run_is_not_in_order(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a restore to another place, the check made an empty service and passed it."""
    monkeypatch.setenv("PTALIGN_STATE", str(tmp_path / "wrong"))
    result = CliRunner().invoke(audit.app, words)
    assert isinstance(result.exception, InvalidInput)
    assert result.exception.field == "PTALIGN_STATE"
    assert not (tmp_path / "wrong").exists()
