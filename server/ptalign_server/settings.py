"""Settings of the server: environment variables with the prefix PTALIGN_, nested by ``__``.

No heavy imports: gateway, worker and command line read the same ones.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import stat
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from ptalign.config import GateConfig
from ptalign.errors import NotReady

Role = Literal["engineer", "annotator", "reader", "operator", "auditor", "backend"]
ROLES: tuple[Role, ...] = get_args(Role)


class AuthSettings(BaseModel):
    """Who may call. Off loopback, TLS and bearer tokens are required."""

    tls_cert: Path | None = None
    """Server certificate chain, PEM; read again when the file changes."""
    tls_key: Path | None = None
    client_ca: Path | None = None
    """When set, callers of gRPC must present a certificate signed by it (mutual TLS), beside their
    token. The page asks for none: browsers have a token's session."""
    loopback_roles: tuple[Role, ...] = ROLES
    """Roles of callers on loopback without a token: the person at this machine. Narrow it, or
    set `tokens_on_loopback`, where other people can log in."""
    tokens_on_loopback: bool = False


class LimitSettings(BaseModel):
    """Limits that an operator sets."""

    max_queued: int = Field(2000, ge=1)
    """Operations waiting at once; more are refused with RESOURCE_EXHAUSTED. Several servers on one
    PostgreSQL may each let in the rest of a group of 64 calls beyond it."""
    generations: int = Field(4, ge=1, le=64)
    """Operations that write (GenerateInstructions, SynthesizePairs) at once in one worker, and as
    many evaluations beside them."""
    trainings: int = Field(1, ge=1, le=16)
    """Align operations running at once in one worker. Where engines are remote, trainings and
    probes of evaluations together: so many hold a model in the device's memory at once. Beside
    local engines these take turns in any case."""
    turn_seconds: float = Field(300, ge=0)
    """How long a model may go on taking jobs on the one device while another model's wait for it,
    not counting what trainings take of it. Changing engines costs their start, so much less than
    that wastes the device."""
    floor: float = Field(0.25, ge=0, le=1)
    """Share of the count asked for below which a set fails instead of being called short."""
    engine_attempts: int = Field(5, ge=1, le=100)
    """Tries of one operation when the engine dies under it."""
    attempts: int = Field(25, ge=1)
    """Starts of one operation, after which it fails: it may be what kills the worker."""


class EngineSettings(BaseModel):
    """Where completions come from."""

    kind: Literal["vllm", "remote", "scripted"] = "vllm"
    """vllm: started and watched by the worker; remote: the URLs in `urls`; scripted: the engine
    for volume tests, no model at all."""
    urls: tuple[str, ...] = Field((), validate_default=True)
    """OpenAI-compatible base URLs of running servers: one or more of kind ``remote``, unused by the
    others."""
    model: str = ""
    """Catalogue entry whose weights the remote servers run: calls of other models are refused.
    Needed with `served_name` where the catalogue has more than one."""
    served_name: str = ""
    """Model name the remote servers answer to; the catalogue name unless set."""
    concurrency: int = Field(0, ge=0, le=4096)
    """Sequences one engine computes at once; 0: the profile's."""
    max_lora_rank: Annotated[Literal[8, 16, 32, 64, 128, 256], BeforeValidator(int)] = 16
    """Largest adapter rank the engine serves; memory grows with it."""
    delay_seconds: float = Field(0.0, ge=0)
    """Scripted engine only: time per completion."""

    @field_validator("urls")
    @classmethod
    def _some(cls, urls: tuple[str, ...], others: ValidationInfo) -> tuple[str, ...]:
        # Without any, calls would be accepted and end with nothing.
        if others.data.get("kind") == "remote" and not urls:
            raise ValueError(
                "must name one server or more, as PTALIGN_ENGINE__KIND is remote. Set it to "
                "'[\"http://127.0.0.1:8000/v1\"]', or so, or unset PTALIGN_ENGINE__KIND."
            )
        return urls


class Settings(BaseSettings):
    """Everything `ptalign-server serve` can be told."""

    model_config = SettingsConfigDict(
        env_prefix="PTALIGN_", env_nested_delimiter="__", extra="ignore", frozen=True
    )

    state: Path = Path(".ptalign")
    """Folder of the database, sealed sets, keys and artefacts."""
    database: str = ""
    """SQLAlchemy URL; SQLite in the state folder unless set (PostgreSQL for replicas)."""
    artefacts: str = ""
    """Object store URL (s3://, gs://, az://); a folder in the state folder unless set."""
    cache_gb: float = Field(10, gt=0)
    """Adapters brought from the object store that stay in ``cache`` of the state folder: of more,
    the longest unused go, but for those that operations under way, or the last hour, had use of."""
    key_file: Path | None = None
    """Operator's key; ``operator.key`` in the state folder unless set."""
    key_command: str = ""
    """Command that prints the operator's keys as a key file holds them, instead of a file (a KMS,
    a secret store). Split as by a shell, run without one; the keys stay in memory."""
    models_file: Path | None = None
    """Catalogue of models; ``models.yaml`` in the state folder unless set."""
    tokens_file: Path | None = None
    """Hashes of the bearer tokens; ``tokens.json`` in the state folder unless set."""
    host: str = "127.0.0.1"
    port: int = Field(50051, ge=0, le=65535)
    metrics_host: str = "127.0.0.1"
    metrics_port: int = Field(9464, ge=0, le=65535)
    retention_days: float = Field(30, ge=0)
    """Age at which the record text of sets is destroyed (see `ptalign-server hold`); 0: never."""
    page: bool = True
    """Whether the annotation page is served."""
    page_host: str = "127.0.0.1"
    page_port: int = Field(8080, ge=0, le=65535)
    profile: Literal["cpu", "gpu"] = "cpu"
    executor_id: str = "local"
    """Stable name of this replica: a pod's name in a StatefulSet. Jobs belong to the name of the
    server that runs them, so each server of one PostgreSQL needs its own, the same at each start;
    a second server of one name does not start."""
    application_version: str = "1"
    """Version of the durable jobs; a change leaves running jobs to the old version."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    auth: AuthSettings = AuthSettings()
    limits: LimitSettings = LimitSettings()
    engine: EngineSettings = EngineSettings()
    gate: GateConfig = GateConfig()
    """The gate `default`: what Evaluate asks where the call names none. A call's own gate decides
    its own verdict, looser or not, and the report names it; to release an adapter it must be at
    least as strict as this one, limit by limit, so no caller loosens what is served. A change
    counts for what was evaluated before, too. Limits that are left out keep ptalign's."""

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{(self.state / 'ptalign.db').absolute()}"

    @property
    def jobs_url(self) -> str:
        """Database of the durable job library: one of its own beside SQLite."""
        return self.database or f"sqlite:///{(self.state / 'jobs.db').absolute()}"

    @property
    def embedded(self) -> bool:
        """Whether this is the one-machine default on SQLite."""
        return self.database_url.startswith("sqlite")

    @property
    def key_path(self) -> Path:
        return self.key_file or self.state / "operator.key"

    @property
    def models_path(self) -> Path:
        return self.models_file or self.state / "models.yaml"

    @property
    def judges_path(self) -> Path:
        return self.state / "judges.yaml"

    @property
    def tokens_path(self) -> Path:
        return self.tokens_file or self.state / "tokens.json"

    @cached_property
    def run_dir(self) -> Path:
        """Folder of sockets: short, since a socket's path holds 107 bytes at most."""
        folder = (self.state / "run").absolute()
        if len(str(folder)) > 70:
            tag = hashlib.sha256(str(folder).encode()).hexdigest()[:12]
            folder = Path(tempfile.gettempdir()) / f"ptalign-{os.getuid()}-{tag}"
        return folder

    @property
    def health_socket(self) -> Path:
        return self.run_dir / "health.sock"

    @property
    def worker_socket(self) -> Path:
        return self.run_dir / "worker.sock"

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the gRPC port."""
        return is_loopback(self.host)

    def make_folders(self) -> None:
        """Creates the state folders, for this user only.

        Raises:
            NotReady: One cannot be made.
        """
        inner = (self.state / name for name in ("", "sets", "work", "artefacts", "policies"))
        for folder in (*inner, self.run_dir):
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise NotReady(
                    f"the folder {folder} cannot be made: {error.strerror}. Set PTALIGN_STATE to a "
                    "folder of this user's."
                ) from None
        there = self.run_dir.lstat()
        own = stat.S_ISDIR(there.st_mode) and there.st_uid == os.getuid()
        if self.run_dir.parent != self.state.absolute() and (not own or there.st_mode & 0o077):
            # Whoever knows the state folder's name can tell its own, and its place is everybody's.
            raise NotReady(
                f"the folder {self.run_dir} was made by another user, or others may write to it: "
                "sockets in it could be theirs. Remove it, or set PTALIGN_STATE to a folder with a "
                "shorter path."
            )


def address(host: str, port: int) -> str:
    """``host:port``."""
    return f"{bracketed(host)}:{port}"


def bracketed(host: str) -> str:
    """The host as URLs take it: an IPv6 address in brackets, which it may be set without."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def bare(host: str) -> str:
    """The host without the brackets that an IPv6 address may be set with, as sockets take it."""
    return host.strip("[]")


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(bare(host)).is_loopback
    except ValueError:
        return False
