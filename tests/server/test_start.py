"""What an operator reads before and at the start: doctor, warnings, settings that are wrong."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from pydantic_settings import SettingsError
from typer.testing import CliRunner, Result

from ptalign.errors import DataDamaged, NotReady, PtalignError
from ptalign.nouns import ModelSpec
from ptalign_proto import __version__
from ptalign_server import wire
from ptalign_server.admin.doctor import (
    Finding,
    check_database,
    check_evaluation_data,
    check_model,
    check_policies,
    check_state,
    tried,
)
from ptalign_server.catalogue import Catalogue, write_models
from ptalign_server.cli import app
from ptalign_server.notices import notices
from ptalign_server.settings import EngineSettings, Settings
from ptalign_server.store import Store
from ptalign_server.store.artefacts import Artefacts
from ptalign_server.variables import explained, unknown
from ptalign_server.vault import KeyFile

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


def test_a_model_that_is_trained_in_another_type_than_it_is_served_in_is_named(
    tmp_path: Path,
) -> None:
    """The gpu profile serves bfloat16, and an entry is float32 unless told: 28 GB of a 7B model."""
    entry = ModelSpec(name="own", path=str(tmp_path), weights_digest="sha256:0")
    write_models(tmp_path / "models.yaml", {"own": entry})
    settings = Settings(state=tmp_path, profile="gpu")
    [found] = [f for f in check_model(settings) if f.what == "type of own"]
    [notice] = [n for n in notices(settings) if "own" in n]
    assert (found.ok, found.needed) == (False, False)
    for words in ("float32", "bfloat16", "--dtype bfloat16"):
        assert words in found.found + found.mend
        assert words in notice
    remote = settings.model_copy(
        update={"engine": EngineSettings(kind="remote", urls=("http://x",))}
    )
    alike = entry.model_copy(update={"dtype": "bfloat16"})
    for told, model in ((settings, alike), (remote, entry), (Settings(state=tmp_path), entry)):
        write_models(tmp_path / "models.yaml", {"own": model})
        assert not [f for f in check_model(told) if f.what == "type of own"]
        assert not [n for n in notices(told) if "own" in n]


def test_a_damaged_suites_file_is_named_and_stops_neither_doctor_nor_start(tmp_path: Path) -> None:
    (tmp_path / "suites.yaml").write_text("- {name: mine}")
    settings = Settings(state=tmp_path)
    with pytest.raises(DataDamaged, match=r"suites\.yaml"):
        _ = Catalogue(settings).suites
    (found,) = check_evaluation_data(settings)
    assert "suites.yaml" in found.found
    assert any("suites.yaml" in notice for notice in notices(settings))


def test_a_variable_that_nobody_reads_is_named_with_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {
        "PTALIGN_PROT": "1",
        "PTALIGN_ENGINE__KNID": "x",
        "PTALIGN_ENGINE_URLS": "[]",
        "PTALIGN_XQZ": "hush-1",
        "ptalign_port": "1",
        "OTHER_PORT": "1",
    }
    assert dict(unknown(asked)) == {
        "PTALIGN_PROT": "PTALIGN_PORT",
        "PTALIGN_ENGINE__KNID": "PTALIGN_ENGINE__KIND",
        "PTALIGN_ENGINE_URLS": "PTALIGN_ENGINE__URLS",
        "PTALIGN_XQZ": "",
    }
    monkeypatch.setenv("PTALIGN_PROT", "hush-1")
    said = [notice for notice in notices(Settings(state=tmp_path)) if "PTALIGN_PROT" in notice]
    assert len(said) == 1
    assert "Did you mean PTALIGN_PORT?" in said[0]
    assert "hush" not in said[0]


def test_no_variable_that_the_code_reads_is_taken_for_unknown() -> None:
    """Whoever adds a variable adds it to the settings or to OTHERS."""
    root = Path(__file__).parents[2]
    files = [
        file
        for folder in ("ptalign", "server", "client", "deploy", "examples")
        for file in (root / folder).rglob("*")
        if file.suffix in {".py", ".yaml", ".tpl"} or file.name == "Dockerfile"
    ]
    named = {n for file in files for n in re.findall(r"PTALIGN_[A-Z_]*[A-Z]", file.read_text())}
    assert "PTALIGN_FAILPOINTS_ONCE" in named
    named -= {"PTALIGN_ERROR", "PTALIGN_TLS", "PTALIGN_TEST"}  # a reason, and starts of names
    assert not list(unknown(dict.fromkeys(named, "")))


def test_a_suites_file_that_is_refused_says_which_entry_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "suites.yaml"
    file.write_text("- {name: a, measure: harm, file: x.csv, make: y}\n- {name: b}\n")
    done = command("suites", "add", str(file), PTALIGN_STATE=str(tmp_path / "state"))
    assert done.returncode == 2
    assert "0: suite a: set exactly one of" in done.stderr
    assert "1.measure: Field required" in done.stderr
    assert "Value error" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_suites_that_no_evaluation_could_ask_are_not_added(tmp_path: Path) -> None:
    file = tmp_path / "suites.yaml"
    for entry, words in (
        ("make: nosuch", "no generator is called 'nosuch'"),
        ("file: x.csv, columns: {prompt: q, language: l}", "no prompt has 'language'"),
    ):
        file.write_text(f"- {{name: own, measure: harm, {entry}}}\n")
        done = command("suites", "add", str(file), PTALIGN_STATE=str(tmp_path / "state"))
        assert done.returncode == 2
        assert words in done.stderr
        assert not (tmp_path / "state" / "suites.yaml").exists()


GOOD = "- {name: own, measure: harm, file: x.csv, columns: {prompt: q}}\n"


@pytest.mark.parametrize(
    ("text", "there", "words"),
    [
        (b"- {name: caf\xe9}\n", "", "cannot be read"),
        (b"- {name: own, licence: 2024-02-30}\n", "", "cannot be read"),
        (b"", "", "holds no suite"),
        (GOOD.encode(), "- {name: b}\n", "suites.yaml cannot be read: 0.measure: Field required"),
        (GOOD.encode(), "- {licence: 2024-02-30}\n", "suites.yaml cannot be read"),
    ],
)
def test_files_of_suites_that_hold_none_are_refused_in_one_line(
    tmp_path: Path, text: bytes, there: str, words: str
) -> None:
    """They ended in tracebacks, and one with an impossible date kept the server from starting."""
    (tmp_path / "new.yaml").write_bytes(text)
    own = tmp_path / "state" / "suites.yaml"
    own.parent.mkdir()
    own.write_text(there)
    done = command("suites", "add", str(tmp_path / "new.yaml"), PTALIGN_STATE=str(own.parent))
    assert done.returncode != 0
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert own.read_text() == there
    if there:
        assert any("suites" in line for line in notices(Settings(state=own.parent)))


def test_an_empty_suites_file_is_filled(tmp_path: Path) -> None:
    (tmp_path / "new.yaml").write_text(GOOD)
    own = tmp_path / "state" / "suites.yaml"
    own.parent.mkdir()
    own.write_text("")
    done = command("suites", "add", str(tmp_path / "new.yaml"), PTALIGN_STATE=str(own.parent))
    assert done.stdout == "added own\n"
    assert "own" in own.read_text()


def test_doctor_names_a_broken_policy_file(tmp_path: Path) -> None:
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "torn.yaml").write_text("name: torn")
    packs, torn = check_policies(Settings(state=tmp_path))
    assert packs.ok
    assert "tone-en" in packs.found
    assert not torn.ok
    assert "domains: Field required" in torn.found
    assert "torn.yaml" in torn.mend


def test_doctor_shows_brackets_and_does_not_fail_for_what_is_only_missed(tmp_path: Path) -> None:
    done = command("doctor", PTALIGN_STATE=str(tmp_path / "[cpu]"), PTALIGN_ENGINE__KIND="scripted")
    assert "[cpu]" in done.stdout
    assert "PTALIGN_EVAL_DATA" in done.stdout
    assert "evaluation data" in done.stdout


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PTALIGN_PORT", "abc", "must be a whole number, 0..65535, not 'abc'. "),
        ("PTALIGN_PORT", "99999", "must be a whole number, 0..65535, not '99999'. "),
        ("PTALIGN_PROFILE", "tpu", "must be one of cpu, gpu, not 'tpu'. "),
        ("PTALIGN_PAGE", "maybe", "must be true or false, not 'maybe'. "),
        ("PTALIGN_ENGINE__KIND", "x", "must be one of vllm, remote, scripted, not 'x'. "),
        ("PTALIGN_ENGINE__MAX_LORA_RANK", "ten", "one of 8, 16, 32, 64, 128, 256, not 'ten'. "),
        ("PTALIGN_LIMITS__ATTEMPTS", "0", "must be a whole number, at least 1, not '0'. "),
        ("PTALIGN_ENGINE__URLS", "http://me:hush-1@x", "must be JSON, and is not. "),
        ("PTALIGN_PORT", "postgresql://me:hush-1@x", "must be a whole number, 0..65535. "),
        ("ptalign_port", "abc", "must be a whole number"),
        ("PTALIGN_GATE__MAX_BENIGN_KL", "11", "must be a number, 0..10, not '11'. "),
        ("PTALIGN_GATE__MAX_UNSCORED", "nan", "must be a number, 0..1, not 'nan'. "),
        ("PTALIGN_GATE__MAX_HARM", "0.1", "no such setting. Write one of PTALIGN_GATE__MIN_HARM"),
        ("PTALIGN_GATE", "0.1", "PTALIGN_GATE: "),
        (
            "PTALIGN_AUTH__LOOPBACK_ROLES",
            '["reader","hush-1"]',
            "should be 'engineer', 'annotator'",
        ),
    ],
)
def test_a_wrong_variable_is_one_line_with_its_name_and_mend(
    name: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("PTALIGN_DATABASE", "postgresql://me:hush-2@x")
    with pytest.raises((ValidationError, SettingsError)) as caught:
        Settings()
    text = str(explained(caught.value))
    assert text.startswith(f"{name.upper()}: ")
    assert words in text
    assert "nset it" in text
    assert "\n" not in text
    assert "hush" not in text


@pytest.mark.parametrize("urls", [None, "[]"])
def test_remote_engines_without_a_url_are_refused(
    monkeypatch: pytest.MonkeyPatch, urls: str | None
) -> None:
    """Calls were accepted, and ended with no completion and no error."""
    monkeypatch.setenv("PTALIGN_ENGINE__KIND", "remote")
    if urls is not None:
        monkeypatch.setenv("PTALIGN_ENGINE__URLS", urls)
    with pytest.raises(ValidationError) as caught:
        Settings()
    text = str(explained(caught.value))
    assert text.startswith("PTALIGN_ENGINE__URLS: must name one server or more")
    assert text.endswith("or unset PTALIGN_ENGINE__KIND.")
    assert "\n" not in text


def test_urls_that_no_engine_uses_are_named(tmp_path: Path) -> None:
    urls = ("http://me:hush-1@x/v1",)
    settings = Settings(state=tmp_path, engine=EngineSettings(urls=urls))
    [notice] = [said for said in notices(settings) if "PTALIGN_ENGINE__URLS" in said]
    assert "PTALIGN_ENGINE__KIND is vllm" in notice
    assert "hush" not in notice
    remote = Settings(state=tmp_path, engine=EngineSettings(kind="remote", urls=urls))
    assert not [said for said in notices(remote) if "PTALIGN_ENGINE__URLS" in said]


@pytest.mark.parametrize("arguments", [["serve"], ["doctor"], ["health"], ["models", "list"]])
def test_every_command_says_what_is_wrong_with_the_settings(
    arguments: list[str], tmp_path: Path
) -> None:
    done = command(
        *arguments,
        PTALIGN_STATE=str(tmp_path),
        PTALIGN_PORT="abc",
        PTALIGN_LIMITS__FLOOR="3",
        PTALIGN_DATABASE="postgresql://me:hush-1@x",
    )
    assert done.returncode == 2
    port, floor = done.stderr.strip().splitlines()
    assert port.startswith("PTALIGN_PORT: ")
    assert floor.startswith("PTALIGN_LIMITS__FLOOR: ")
    assert "hush" not in done.stdout + done.stderr


def test_version_is_the_distributions() -> None:
    done = command("--version")
    assert done.stdout == f"ptalign-server {__version__}\n"
    assert "doctor" in command().stdout, "no arguments show the help"


def test_serve_says_where_everything_is_and_what_will_be_missed(tmp_path: Path) -> None:
    state = tmp_path / "state"
    (state / "policies").mkdir(parents=True)
    (state / "policies" / "torn.yaml").write_text("name: torn")
    settings = {
        "PTALIGN_STATE": str(state),
        "PTALIGN_ENGINE__KIND": "scripted",
        "PTALIGN_PROT": "1",
        **dict.fromkeys(("PTALIGN_PORT", "PTALIGN_PAGE_PORT", "PTALIGN_METRICS_PORT"), "0"),
    }
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PTALIGN_")}
    with (tmp_path / "log").open("w+") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "ptalign_server.cli", "serve"],
            env=kept | settings,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            assert server.stdout is not None
            first, page, gauges = (server.stdout.readline().strip() for _ in range(3))
            assert re.fullmatch(rf"serving on 127\.0\.0\.1:\d+, state in {state}", first)
            for line, start in ((page, "page on "), (gauges, "metrics on ")):
                assert line.startswith(start)
                reply = urllib.request.urlopen(line.removeprefix(start), timeout=10)
                assert reply.status == 200
        finally:
            server.terminate()
            server.wait(45)
        said = (tmp_path / "log").read_text()
    for words in ("PTALIGN_PROT is set", "no evaluation data", "torn.yaml cannot be used"):
        assert said.count(words) == 1, said


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("PTALIGN_PORT", "must be a whole number, 0..65535. "),
        ("PTALIGN_PAGE", "must be true or false. "),
        ("PTALIGN_PROFILE", "must be one of cpu, gpu. "),
        ("PTALIGN_ENGINE__MAX_LORA_RANK", "must be one of 8, 16, 32, 64, 128, 256. "),
    ],
)
def test_a_token_in_the_wrong_variable_is_not_printed(
    name: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor its start; the longest value that is shown has 12 characters."""
    for value, shown in (("pta_hush-hush-1", False), ("x" * 13, False), ("x" * 12, True)):
        monkeypatch.setenv(name, value)
        with pytest.raises(ValidationError) as caught:
            Settings()
        text = str(explained(caught.value))
        assert (value[:8] in text) == shown
        assert (says in text) != shown


SEALED_FOLDER = "/proc/ptalign"
"""Where nobody can make a folder, root included."""


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("PTALIGN_PORT", "", "port {} on 127.0.0.1 is taken"),
        ("PTALIGN_METRICS_PORT", "", "port {} on 127.0.0.1 is taken"),
        ("PTALIGN_PAGE_PORT", "", "port {} on 127.0.0.1 is taken"),
        ("PTALIGN_DATABASE", "mysql://me:hush-1@x/y", "is no URL of a database"),
        ("PTALIGN_ARTEFACTS", "ftp://me:hush-1@x/y", "is no URL of an object store"),
        ("PTALIGN_STATE", f"{SEALED_FOLDER}/x", f"{SEALED_FOLDER}/x cannot be made"),
    ],
)
def test_serve_names_what_keeps_it_from_starting(
    name: str, value: str, says: str, tmp_path: Path
) -> None:
    """In one line; it was a traceback of another library, and more of them after the loop's end."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        settings = {
            "PTALIGN_STATE": str(tmp_path / "state"),
            "PTALIGN_ENGINE__KIND": "scripted",
            **dict.fromkeys(("PTALIGN_PORT", "PTALIGN_PAGE_PORT", "PTALIGN_METRICS_PORT"), "0"),
        }
        done = command("serve", **settings | {name: value or port})
    said = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert says.format(port) in said[-1]
    assert name in said[-1]
    assert "Traceback" not in done.stderr
    assert "hush" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "url",
    [
        "me:hush-1",
        "mysql+pymysql://me:hush-1@x/y",
        "postgresql://me:hush-1@x:no/y",
        "postgres://me:hush-1@x:no/y",
        "postgresql+psycopg2://me:hush-1@x/y",
        f"sqlite:///{SEALED_FOLDER}/a.db",
    ],
)
def test_a_database_that_there_cannot_be_is_told_without_its_password(
    url: str, tmp_path: Path
) -> None:
    with pytest.raises(PtalignError, match="PTALIGN_DATABASE") as caught:
        Store(Settings(state=tmp_path, database=url), wire.freeze)
    assert "hush" not in str(caught.value)
    [found] = check_database(Settings(state=tmp_path, database=url))
    assert not found.ok or url.startswith("sqlite")
    assert "hush" not in found.found


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    """`serve` ended in a traceback of SQLAlchemy's."""
    (tmp_path / "ptalign.db").write_bytes(b"another file of that name, " * 200)
    done = command("serve", PTALIGN_STATE=str(tmp_path), PTALIGN_ENGINE__KIND="scripted")
    assert done.returncode == 2, done.stderr
    assert "the file of the SQLite database is none, or its head is lost" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("url", ["s3//hush-1", "s3://", "/hush-1"])
def test_an_object_store_that_there_cannot_be_is_told(url: str, tmp_path: Path) -> None:
    with pytest.raises(PtalignError, match="PTALIGN_ARTEFACTS") as caught:
        Artefacts(tmp_path, url, tmp_path)
    assert "hush" not in str(caught.value)


def test_a_run_folder_of_somebody_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name in /tmp can be told beforehand: sockets in it would be another user's."""
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    settings = Settings(state=tmp_path / ("a" * 80))
    assert settings.run_dir.parent == tmp_path
    settings.make_folders()
    settings.make_folders()  # its own is no matter
    settings.run_dir.chmod(0o777)
    with pytest.raises(NotReady, match="made by another user, or others may write to it"):
        settings.make_folders()
    settings.run_dir.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    settings.run_dir.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotReady, match="Remove it"):
        settings.make_folders()


@pytest.mark.parametrize("closed", ["models.yaml", "suites.yaml", "operator.key"])
def test_doctor_says_what_it_may_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    """Run as another user it ended in a traceback, and called a key ok that nobody could read."""
    KeyFile.create(tmp_path / "operator.key")
    read = Path.read_text

    def refuse(self: Path, *args: Any, **kwargs: Any) -> str:
        if self.name == closed:
            raise PermissionError(13, "Permission denied", str(self))
        return read(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", refuse)
    settings = Settings(state=tmp_path)
    checks = (check_model, check_state, check_evaluation_data)
    found = [finding for check in checks for finding in tried(check, settings)]
    said = [f for f in found if f"{closed} cannot be read: Permission denied" in f.found]
    assert len(said) == 1
    assert not said[0].ok


def test_a_check_that_may_not_look_is_a_finding() -> None:
    def check_places(_: Settings) -> Iterator[Finding]:
        yield Finding("a place", True, "there")
        raise PermissionError(13, "Permission denied", "/x/models.yaml")

    first, second = tried(check_places, Settings())
    assert first.ok
    assert not second.ok
    assert second.what == "places"
    assert second.found == "/x/models.yaml: Permission denied"


def test_a_key_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """Not a traceback: one that is there already, a place that takes none, a mounted one."""
    file = tmp_path / "operator.key"

    def keys(word: str, path: str = str(file)) -> Result:
        where = {"PTALIGN_STATE": str(tmp_path / "state"), "PTALIGN_KEY_FILE": path}
        return CliRunner().invoke(app, ["keys", word], env=where)

    assert keys("create").exit_code == 0
    Store(Settings(state=tmp_path / "state", key_file=file), wire.freeze).close()
    before = file.read_bytes()
    (tmp_path / "operator.key.new" / "x").mkdir(parents=True)  # as on a mount nothing can be put
    for done, says in (
        (keys("create"), "no key is ever overwritten"),
        (keys("create", f"{SEALED_FOLDER}/operator.key"), "cannot be made"),
        (keys("rotate"), "keys rewrap"),
    ):
        assert isinstance(done.exception, PtalignError)  # which the command shows as one line
        assert says in str(done.exception)
        assert "PTALIGN_KEY_FILE" in str(done.exception)
    assert file.read_bytes() == before
