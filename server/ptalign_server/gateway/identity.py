"""Who calls, and what they may call: a rule for every method, deny by default."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from ptalign_server.errors import PermissionDenied, Unauthenticated
from ptalign_server.settings import ROLES, Settings

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


class Tokens:
    """Bearer tokens, kept as SHA-256 hashes of 256 random bits; read again when changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = -1.0
        self._entries: list[tuple[str, Identity]] = []

    def find(self, token: str) -> Identity:
        """The token's identity.

        Raises:
            Unauthenticated: It is not known.
        """
        self._reload()
        digest = hashlib.sha256(token.encode()).hexdigest()
        found: Identity | None = None
        for known, identity in self._entries:  # no early exit: constant time over the list
            if hmac.compare_digest(known, digest):
                found = identity
        if found is None:
            raise Unauthenticated("the token is not known or was removed. Ask an operator for one.")
        return found

    def add(self, name: str, tenant: str, roles: Sequence[str]) -> str:
        """Makes a token; it is shown once and stored only as a hash."""
        token = "pta_" + secrets.token_urlsafe(32)
        entries = [e for e in self.entries() if e["name"] != name]
        digest = hashlib.sha256(token.encode()).hexdigest()
        entries.append({"name": name, "tenant": tenant, "roles": list(roles), "sha256": digest})
        self._write(entries)
        return token

    def remove(self, name: str) -> bool:
        """Removes a token by its name; whether there was one."""
        entries = self.entries()
        left = [e for e in entries if e["name"] != name]
        self._write(left)
        return len(left) < len(entries)

    def entries(self) -> list[dict[str, object]]:
        """What the file holds."""
        if not self._path.exists():
            return []
        loaded: list[dict[str, object]] = json.loads(self._path.read_text())
        return loaded

    def _write(self, entries: list[dict[str, object]]) -> None:
        partial = self._path.with_name(self._path.name + ".new")
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w") as stream:
            json.dump(entries, stream, indent=1)
        partial.replace(self._path)

    def _reload(self) -> None:
        stamp = self._path.stat().st_mtime_ns if self._path.exists() else 0.0
        if stamp == self._stamp:
            return
        self._entries = [
            (
                str(e["sha256"]),
                Identity(str(e["name"]), str(e["tenant"]), frozenset(e["roles"])),  # type: ignore[call-overload]
            )
            for e in self.entries()
        ]
        self._stamp = stamp
