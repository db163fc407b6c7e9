"""Who calls, and what they may call: a rule for every method, deny by default."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from ptalign.disk import put_in_place
from ptalign.errors import DataDamaged, NotReady, PtalignError
from ptalign_server.errors import PermissionDenied, Unauthenticated
from ptalign_server.locks import locked_folder
from ptalign_server.settings import ROLES, Settings

log = logging.getLogger("ptalign.server")
TUNING = "/ptalign.v1.SafetyTuning/"
LIBRARY = "/ptalign.v1.Library/"
OPERATIONS = "/google.longrunning.Operations/"

ENGINEER = frozenset({"engineer"})
STARTS = frozenset({"engineer", "backend"})
WATCHES = frozenset({"engineer", "backend", "operator", "auditor"})
STOPS = frozenset({"engineer", "operator"})
LOOKS = frozenset({"engineer", "annotator", "operator", "auditor"})
ANYONE = frozenset(ROLES)
PUBLIC: frozenset[str] = frozenset()
"""No identity needed: health and reflection."""

RULES: Mapping[str, frozenset[str]] = {
    TUNING + "GenerateInstructions": STARTS,
    TUNING + "SynthesizePairs": ENGINEER,
    TUNING + "Align": ENGINEER,
    TUNING + "Evaluate": ENGINEER,
    TUNING + "WatchOperation": WATCHES,
    TUNING + "Chat": ENGINEER,
    OPERATIONS + "ListOperations": WATCHES,
    OPERATIONS + "GetOperation": WATCHES,
    OPERATIONS + "WaitOperation": WATCHES,
    OPERATIONS + "CancelOperation": STOPS,
    OPERATIONS + "DeleteOperation": STOPS,
    LIBRARY + "GetInstructionSet": LOOKS,
    LIBRARY + "ListInstructionSets": LOOKS,
    LIBRARY + "GetAnnotationSet": LOOKS,
    LIBRARY + "ListAnnotationSets": LOOKS,
    LIBRARY + "CreateAnnotationSet": frozenset({"engineer", "annotator"}),
    LIBRARY + "GetPairSet": LOOKS,
    LIBRARY + "ListPairSets": LOOKS,
    LIBRARY + "GetAdapter": LOOKS | {"backend"},
    LIBRARY + "ListAdapters": LOOKS | {"backend"},
    LIBRARY + "GetEvaluation": LOOKS | {"backend"},
    LIBRARY + "ListEvaluations": LOOKS | {"backend"},
    LIBRARY + "StreamRecords": frozenset({"engineer", "annotator", "reader"}),
    LIBRARY + "Download": frozenset({"engineer", "reader", "auditor", "backend"}),
    LIBRARY + "ImportSet": ENGINEER,
    LIBRARY + "MergeSets": ENGINEER,
    LIBRARY + "PurgeSet": frozenset({"operator"}),
    LIBRARY + "ResolveAdapter": frozenset({"engineer", "backend"}),
    LIBRARY + "GetCatalogue": ANYONE,
    "/grpc.health.v1.Health/Check": PUBLIC,
    "/grpc.health.v1.Health/Watch": PUBLIC,
    "/grpc.health.v1.Health/List": PUBLIC,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": PUBLIC,
}


@dataclass(frozen=True, slots=True)
class Identity:
    """The caller: tenant and roles come from here, never from a request."""

    name: str
    tenant: str
    roles: frozenset[str]

    def require(self, role: str, purpose: str) -> None:
        """Raises `PermissionDenied` unless the caller has the role."""
        if role not in self.roles:
            raise PermissionDenied(f"{purpose} needs the role {role}. Ask an operator for it.")


_caller: ContextVar[Identity] = ContextVar("ptalign_caller")


def caller() -> Identity:
    """Identity of the call being served."""
    return _caller.get()


class Gate:
    """Finds the identity of a call and holds it against the method's rule."""

    def __init__(self, settings: Settings) -> None:
        auth = settings.auth
        self._tokens = Tokens(settings.tokens_path)
        self._loopback = settings.loopback and not auth.tokens_on_loopback
        self._local = Identity("local", "default", frozenset(auth.loopback_roles))

    def admit(self, method: str, metadata: Sequence[tuple[str, str | bytes]]) -> None:
        """Sets `caller` for this call.

        Raises:
            Unauthenticated: No token, or one that is not known.
            PermissionDenied: No role that the method needs.
        """
        rule = RULES.get(method)
        if rule == PUBLIC:
            return
        identity = self._identify(metadata)
        if rule is None or not rule & identity.roles:
            needed = " or ".join(sorted(rule or ())) or "a role nobody has"
            short = method.rpartition("/")[2]
            raise PermissionDenied(f"{short} needs the role {needed}. Ask an operator for it.")
        _caller.set(identity)

    def _identify(self, metadata: Sequence[tuple[str, str | bytes]]) -> Identity:
        header = next((value for key, value in metadata if key == "authorization"), "")
        text = header.decode("utf-8", "replace") if isinstance(header, bytes) else header
        if text.lower().startswith("bearer "):
            return self._tokens.find(text[7:].strip())
        if self._loopback:
            return self._local
        raise Unauthenticated(
            "this server needs a token. Send the metadata 'authorization: Bearer TOKEN'; an "
            "operator makes one with: ptalign-server tokens add NAME --role engineer"
        )


class Entry(BaseModel):
    """A line of the tokens file."""

    name: str
    tenant: str
    roles: tuple[str, ...]
    sha256: str


_FILE = TypeAdapter(list[Entry])


class Tokens:
    """Bearer tokens, kept as SHA-256 hashes of 256 random bits; read again when changed.

    A changed file that cannot be used is logged once, and those known before stay in use.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: tuple[tuple[int, ...], list[Entry]] = ((), [])  # state of the file, content
        self._away: tuple[int, ...] = ()  # its state where it could not be read, and that was said

    def find(self, token: str) -> Identity:
        """The token's identity.

        Raises:
            Unauthenticated: It is not known.
        """
        found = self.holder(hashlib.sha256(token.encode()).hexdigest())
        if found is None:
            raise Unauthenticated("the token is not known or was removed. Ask an operator for one.")
        return found

    def holder(self, digest: str) -> Identity | None:
        """Who holds the token of this hash."""
        found: Identity | None = None
        for entry in self._current():  # no early exit: constant time over the list
            if hmac.compare_digest(entry.sha256.encode(), digest.encode()):
                found = Identity(entry.name, entry.tenant, frozenset(entry.roles))
        return found

    def add(self, name: str, tenant: str, roles: Sequence[str]) -> str:
        """Makes a token in place of the tenant's older one of the name.

        It is shown once and stored only as a hash.
        """
        token = "pta_" + secrets.token_urlsafe(32)
        digest = hashlib.sha256(token.encode()).hexdigest()
        made = Entry(name=name, tenant=tenant, roles=tuple(roles), sha256=digest)
        with locked_folder(self._path.parent):
            left = [e for e in self.entries() if (e.name, e.tenant) != (name, tenant)]
            self._write([*left, made])
        return token

    def remove(self, name: str, tenant: str) -> bool:
        """Removes a tenant's token by its name; whether there was one."""
        with locked_folder(self._path.parent):
            entries = self.entries()
            left = [e for e in entries if (e.name, e.tenant) != (name, tenant)]
            if len(left) < len(entries):
                self._write(left)
        return len(left) < len(entries)

    def entries(self) -> list[Entry]:
        """What the file holds.

        Raises:
            NotReady: It cannot be read.
            DataDamaged: It is no list of tokens.
        """
        try:
            return _FILE.validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise NotReady(
                f"{self._path} cannot be read: {error.strerror}. It must belong to the user that "
                "the server runs as."
            ) from None
        except ValidationError:
            raise DataDamaged(
                f"{self._path} is no list of tokens. Correct it, or restore it from a backup."
            ) from None

    def _write(self, entries: list[Entry]) -> None:
        partial = self._path.with_name(self._path.name + ".new")
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as stream:
            stream.write(_FILE.dump_json(entries, indent=1))
        # A token that was removed stays removed after a power cut.
        put_in_place(partial, self._path)

    def _current(self) -> list[Entry]:
        try:
            found = self._path.stat()
            state: tuple[int, ...] = (
                found.st_ino,
                found.st_size,
                found.st_mtime_ns,
                found.st_ctime_ns,
            )
        except OSError as error:
            state = (error.errno or 0,)
        before, entries = self._known
        if state != before:
            try:
                entries, self._away = self.entries(), ()
            except PtalignError as error:
                passes = isinstance(error, NotReady)
                if not (passes and state == self._away):
                    log.error("%s The tokens known before stay in use.", error)
                if passes:  # the next call looks again
                    self._away = state
                    return entries
            self._known = (state, entries)
        return entries
