"""What docs/operations.md tells an operator to do, done."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import page_world as world
import pytest
import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ptalign.config import EvalConfig
from ptalign.errors import PtalignError
from ptalign.nouns import PairSet
from ptalign.suites import build
from ptalign_server.catalogue import Catalogue
from ptalign_server.cli import app
from ptalign_server.locks import hold_lock
from ptalign_server.manifest import Signer
from ptalign_server.settings import Settings
from ptalign_server.variables import OTHERS
from ptalign_server.vault import KeyFile

ROOT = Path(__file__).parents[2]
DOCS = ("docs/operations.md", "docs/security.md", "CONTRIBUTING.md", "CHANGELOG.md")
TEXT = (ROOT / DOCS[0]).read_text()


def block(first_line: str) -> str:
    """The fenced block of the document that starts with this line."""
    found = re.search(rf"```bash\n({re.escape(first_line)}\n.*?)```", TEXT, re.DOTALL)
    assert found, f"{DOCS[0]} has no block {first_line!r}"
    return found[1]


def admin(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ptalign_server.cli", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[tuple[Path, str, Any]]:
    """A running store with a pair set: its folder, the set's name, the store."""
    _, store = world.open_store(tmp_path)
    yield tmp_path / "state", world.add_pair_set(store, world.pairs(5)), store
    store.close()


def read(state: Path, name: str, **settings: Any) -> PairSet:
    _, store = world.open_store(state.parent, **settings)
    try:
        row = store.resources.get(name, "default")
        return store.sets.load(name, PairSet, row.content)
    finally:
        store.close()


def backup(state: Path, target: Path, pause: str = "1") -> None:
    script = block("# backup STATE TARGET").replace("sleep 1", f"sleep {pause}")
    subprocess.run(["sh", "-c", script, "backup", str(state), str(target)], check=True)


def test_a_copy_made_while_the_server_runs_restores(
    kept: tuple[Path, str, Any], tmp_path: Path
) -> None:
    state, name, _ = kept
    copy = tmp_path / "elsewhere" / "state"
    backup(state, copy)
    assert not (copy / "operator.key").exists(), "the key must not lie beside the data"
    (copy / "operator.key").write_bytes((state / "operator.key").read_bytes())
    (copy / "operator.key").chmod(0o600)
    assert len(read(copy, name).polarised) == 5
    assert admin("audit", "verify", PTALIGN_STATE=str(copy)).returncode == 0


def test_a_copy_made_during_a_training_is_whole(
    kept: tuple[Path, str, Any], tmp_path: Path
) -> None:
    """`cp` ended at the first checkpoint that was gone, before tokens, policies and catalogues."""
    state, copy = kept[0], tmp_path / "elsewhere" / "state"
    (state / "tokens.json").write_text("[]")
    runs = [state / "work" / f"run-{i}" for i in range(20)]
    for run in runs:
        (run / "step-0").mkdir(parents=True)
        (run / "step-0" / "manifest.json").write_text("{}")
        (run / "token_weights.json").write_text("{}")

    def train() -> None:
        """A new checkpoint of every run in the place of its old one, until cp has met it."""
        end = time.monotonic() + 60
        for step in range(1_000_000):
            for run in runs:
                (run / f"step-{step}").rename(run / f"step-{step + 1}")
            if (copy / "work").exists():
                end = min(end, time.monotonic() + 1)
            if time.monotonic() > end:
                return

    trainer = threading.Thread(target=train)
    trainer.start()
    try:
        backup(state, copy)
    finally:
        trainer.join()
    assert (copy / "tokens.json").read_text() == "[]"
    # Not the newest checkpoint: cp may end well before the trainer's last one.
    for run in runs:
        assert (copy / run.relative_to(state) / "token_weights.json").exists()


@pytest.fixture(scope="module")
def demo() -> Any:
    spec = importlib.util.spec_from_file_location("demo_run", ROOT / "deploy" / "demo" / "run.py")
    assert spec
    assert spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_a_second_demo_leaves_what_was_gone_on_with(demo: Any, tmp_path: Path) -> None:
    """README says to serve demo-out/state; the next demo removed it, under a server that ran."""

    def kept() -> list[Path]:
        return sorted(tmp_path.glob("demo-out.2*"))

    def ended(seconds: float) -> None:
        """A demo whose state was last written so long after its end."""
        (out / "state").mkdir(parents=True, exist_ok=True)
        (out / "state" / "ptalign.db").write_text("marks")
        (out / demo.ENDED).touch()
        os.utime(out / "state" / "ptalign.db", (1000 + seconds, 1000 + seconds))
        os.utime(out / demo.ENDED, (1000, 1000))

    out = tmp_path / "demo-out"
    demo.put_aside(out)  # nothing there
    ended(-1)
    settings = Settings(state=out / "state")
    settings.make_folders()
    with (
        hold_lock(settings.run_dir / "gateway.lock", 0.0),
        pytest.raises(SystemExit, match="Stop it"),
    ):
        demo.put_aside(out)
    demo.put_aside(out)
    assert not out.exists()
    assert kept() == []
    ended(60)
    demo.put_aside(out)
    [folder] = kept()
    assert (folder / "state" / "ptalign.db").read_text() == "marks"
    assert not out.exists()


@pytest.mark.parametrize("there", ["", "exit 0", "exit 1"])
def test_a_set_up_that_was_cut_short_is_made_anew(tmp_path: Path, there: str) -> None:
    """A virtual environment without pip ended every later `make`."""
    (line,) = [li for li in (ROOT / "Makefile").read_text().splitlines() if "-m venv" in li]
    script = line.strip().removesuffix("\\").replace("$(BIN)", "./bin")
    made = tmp_path / "made"
    maker = tmp_path / "python"
    maker.write_text(f"#!/bin/sh\necho $@ > {made}\n")
    maker.chmod(0o755)
    if there:
        python = tmp_path / "bin" / "python"
        python.parent.mkdir()
        python.write_text(f"#!/bin/sh\n{there}\n")
        python.chmod(0o755)
    script = script.replace("$(PYTHON)", "./python").replace("$(VENV)", "venv")
    subprocess.run(["sh", "-c", script], cwd=tmp_path, check=True)
    assert made.exists() == (there != "exit 0")
    if made.exists():
        assert made.read_text() == "-m venv --clear venv\n"


def test_a_copy_that_stays_incomplete_is_an_error(
    kept: tuple[Path, str, Any], tmp_path: Path
) -> None:
    state, copy = kept[0], tmp_path / "elsewhere" / "state"
    (state / "work" / "run").mkdir(parents=True)
    (copy / "work").mkdir(parents=True)
    (copy / "work" / "run").write_text("in the way")
    with pytest.raises(subprocess.CalledProcessError):
        backup(state, copy, pause="0")


def test_a_copy_without_its_key_tells_nothing(kept: tuple[Path, str, Any], tmp_path: Path) -> None:
    state, name, _ = kept
    copy = tmp_path / "elsewhere" / "state"
    backup(state, copy)
    for file in copy.rglob("*"):
        if file.is_file():
            assert world.BAD.encode() not in file.read_bytes(), file
    with pytest.raises(PtalignError, match=r"is missing\. Restore it"):
        read(copy, name)
    KeyFile.create(copy / "operator.key")
    with pytest.raises(PtalignError, match="operator key"):
        read(copy, name)  # a fresh key does not fit


def test_the_rotation_of_a_mounted_key_never_leaves_a_server_without_one(
    kept: tuple[Path, str, Any], tmp_path: Path
) -> None:
    """The three steps of the document, with files for the secret."""
    state, name, store = kept
    old, new, secret = state / "operator.key", tmp_path / "new.key", tmp_path / "secret.key"
    assert admin("keys", "create", PTALIGN_KEY_FILE=str(new)).returncode == 0
    secret.write_bytes(new.read_bytes() + old.read_bytes())
    secret.chmod(0o600)
    assert len(read(state, name, key_file=secret).polarised) == 5
    fresh = world.add_pair_set(store, world.pairs(2, "c"))  # a server that still has the old key
    where = {"PTALIGN_STATE": str(state), "PTALIGN_KEY_FILE": str(secret)}
    done = admin("keys", "rewrap", **where)
    assert done.returncode == 0, done.stderr
    new.chmod(0o600)
    assert len(read(state, name, key_file=new).polarised) == 5
    assert len(read(state, fresh, key_file=new).polarised) == 2
    with pytest.raises(PtalignError):
        read(state, name, key_file=old)


def test_rotation_on_one_machine_keeps_everything_readable(kept: tuple[Path, str, Any]) -> None:
    state, name, _ = kept
    before = (state / "operator.key").read_text()
    assert admin("keys", "rotate", PTALIGN_STATE=str(state)).returncode == 0
    assert (state / "operator.key").read_text() != before
    assert len(read(state, name).polarised) == 5


def test_the_signers_key_is_shown_and_checks_a_manifest(kept: tuple[Path, str, Any]) -> None:
    """As docs/security.md says, by whoever has the files; a rotation does not change it."""
    state, _, store = kept
    manifest = json.loads(Signer(store.vault).sign("adapters/1", []))
    assert admin("keys", "rotate", PTALIGN_STATE=str(state)).returncode == 0
    done = admin("keys", "signer", PTALIGN_STATE=str(state))
    assert done.stdout == manifest["key"] + "\n", done.stderr
    signed = {part: manifest[part] for part in ("files", "name", "version")}
    text = json.dumps(signed, sort_keys=True, separators=(",", ":")).encode()
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(done.stdout))
    key.verify(base64.b64decode(manifest["signature"]), text)


@pytest.mark.parametrize("word", ["rotate", "rewrap"])
def test_no_key_is_changed_for_a_folder_where_no_server_has_run(tmp_path: Path, word: str) -> None:
    """An empty service was made there, its one key wrapped, and the key of all others dropped."""
    file = tmp_path / "prod.key"
    KeyFile.create(file)
    before = file.read_bytes()
    wrong = tmp_path / "wrong"
    done = admin("keys", word, PTALIGN_STATE=str(wrong), PTALIGN_KEY_FILE=str(file))
    assert (done.returncode, done.stdout) == (2, "")
    assert "where no server has run" in done.stderr
    assert file.read_bytes() == before
    assert not (wrong / "ptalign.db").exists()


def test_no_signers_key_is_made_where_no_server_has_run(tmp_path: Path) -> None:
    done = admin("keys", "signer", PTALIGN_STATE=str(tmp_path / "none"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "where no server has run" in done.stderr


def test_the_server_refuses_to_listen_off_loopback_without_tls(tmp_path: Path) -> None:
    where = {"PTALIGN_STATE": str(tmp_path), "PTALIGN_HOST": "0.0.0.0", "PTALIGN_PORT": "0"}
    done = admin("serve", **where)
    assert done.returncode != 0
    assert "PTALIGN_AUTH__TLS_CERT" in done.stderr


@pytest.mark.parametrize("document", DOCS)
def test_variables_and_files_that_documents_name_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    for name in set(re.findall(r"PTALIGN_[A-Z_]+[A-Z]", text)) - OTHERS:
        model: Any = Settings
        for part in name.removeprefix("PTALIGN_").lower().split("__"):
            assert part in model.model_fields, f"{document} names {name}"
            model = model.model_fields[part].annotation
    places = r"(?<![\w/.])((?:deploy|docs|tests|server|client|ptalign|protos|gateway)/[\w./-]*\w)"
    for path in set(re.findall(places, text)):
        found = [ROOT / path, ROOT / "server" / "ptalign_server" / path]
        assert any(p.exists() for p in found), f"{document} names {path}"


def test_the_policy_of_the_document_can_be_called_by_its_file_name(tmp_path: Path) -> None:
    found = re.search(r"```yaml\n(name: billing\n.*?)```", TEXT, re.DOTALL)
    assert found
    settings = Settings(state=tmp_path)
    settings.make_folders()
    (tmp_path / "policies" / "billing.yaml").write_text(found[1])
    (topic,) = Catalogue(settings).policies.find("billing").topics
    assert topic.id == "late-fee"


def test_ifeval_as_published_and_its_odd_keys_make_the_suite(tmp_path: Path) -> None:
    """No page said where the files are from without which no evaluation PASSes."""
    keys = (1000, 1001, 102)
    row = {"prompt": "?", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    published = "".join(json.dumps({"key": key, **row, "prompt": f"{key}?"}) + "\n" for key in keys)
    (tmp_path / "input_data.jsonl").write_text(published)
    (line,) = re.findall(r"^grep .*input_data.jsonl > .*$", TEXT, re.MULTILINE)
    subprocess.run(line, shell=True, cwd=tmp_path, check=True)
    (odd,) = build(["ifeval"], config=EvalConfig(), data=tmp_path)
    assert [p.instruction for p in odd.prompts] == ["1001?"]
    (tmp_path / "ifeval_en_odd.jsonl").write_text(published)
    (whole,) = build(["ifeval"], config=EvalConfig(), data=tmp_path)
    assert sorted(p.instruction for p in whole.prompts) == ["1000?", "1001?", "102?"]


def test_commands_that_documents_name_exist() -> None:
    group = typer.main.get_command(app)
    for document in DOCS:
        text = (ROOT / document).read_text()
        for words in set(re.findall(r"ptalign-server ([a-z]+(?: [a-z]+)?)", text)):
            first, _, second = words.partition(" ")
            command = group.commands.get(first)  # type: ignore[attr-defined]
            assert command is not None, f"{document} names ptalign-server {words}"
            if hasattr(command, "commands") and second:
                assert second in command.commands, f"{document} names ptalign-server {words}"


def test_roles_of_the_document_are_the_servers() -> None:
    from ptalign_server.settings import ROLES

    text = (ROOT / "docs" / "security.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(ROLES)


def test_the_commands_of_one_machine_share_a_state_folder() -> None:
    """Model and token were put into ./.ptalign, and the server looked into another folder."""
    shell = 'ptalign-server() { echo "$1 in $PTALIGN_STATE, $PTALIGN_PROFILE"; }\n'
    for start in ("cd ptalign ", "export PTALIGN_HOST="):
        first = next(line for line in TEXT.splitlines() if line.startswith(start))
        shell += "".join(
            f"{line}\n"
            for line in block(first).splitlines()
            if line.startswith("export ") or "ptalign-server" in line
        )
    bare = {name: value for name, value in os.environ.items() if not name.startswith("PTALIGN_")}
    done = subprocess.run(["bash", "-ec", shell], env=bare, capture_output=True, text=True)
    asked = [line.partition(" ") for line in done.stdout.splitlines()]
    assert [word for word, _, _ in asked] == ["doctor", "models", "serve", "tokens"]
    assert {where for _, _, where in asked} == {"in /var/lib/ptalign, gpu"}


def make(*words: str) -> subprocess.CompletedProcess[str]:
    """A target, with a Python that makes no virtual environment."""
    # `make test` tells the makes below it what it was told.
    told = {"ENGINE", "MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "MAKELEVEL"}
    bare = {name: value for name, value in os.environ.items() if name not in told}
    call = ["make", "-C", str(ROOT), "PYTHON=false", *words]
    return subprocess.run(call, env=bare, capture_output=True, text=True)


@pytest.mark.parametrize("engine", ["cpu", "gpu"])
def test_make_goes_on_with_the_engine_that_is_installed(tmp_path: Path, engine: str) -> None:
    """`make serve` of a GPU machine installed the CPU's engine over it."""
    (tmp_path / f".installed-{engine}").touch()
    other = {"cpu": "gpu", "gpu": "cpu"}[engine]
    done = make("-n", "serve", f"VENV={tmp_path}")
    assert "ptalign-server serve" in done.stdout
    assert "[install" not in done.stdout, "installs again"
    done = make("-n", "serve", f"VENV={tmp_path}", f"ENGINE={engine}")
    assert "[install" not in done.stdout
    done = make("install", f"VENV={tmp_path}", f"ENGINE={other}")
    assert done.returncode
    assert "has the other engine" in done.stderr
    assert "[install" not in done.stdout
    assert (tmp_path / f".installed-{engine}").exists()


def test_the_first_install_is_the_cpus_unless_told(tmp_path: Path) -> None:
    assert "requirements/cpu.txt" in make("-n", "install", f"VENV={tmp_path}").stdout
    told = make("-n", "install", f"VENV={tmp_path}", "ENGINE=gpu").stdout
    assert "requirements/gpu.txt" in told
    assert "+cpu" not in told


def test_targets_that_documents_name_exist() -> None:
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCS:
        for words in re.findall(
            r"(?m)(?:^|`)make ([a-z]+(?:-[a-z]+)*)", (ROOT / document).read_text()
        ):
            assert words in known, f"{document} names make {words}"
