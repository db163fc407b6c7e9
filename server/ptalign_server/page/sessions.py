"""Session cookies and CSRF tokens: signed, short-lived, worthless once the token is removed."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass

LOCAL = "local"
"""Fingerprint of the visitor on loopback who needs no token."""
LIFETIME_SECONDS = 8 * 3600
MAX_ITEM_SECONDS = 300.0
"""An item open for longer was left alone: no more than this counts as work."""


@dataclass(frozen=True, slots=True)
class Session:
    """What a valid cookie says."""

    fingerprint: str
    """SHA-256 of the bearer token, or `LOCAL`."""
    expires: int
    nonce: str


class Sessions:
    """Makes and reads cookies without keeping any state, so that every replica can.

    Args:
        key: Signing key, the same in every replica.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def start(self, fingerprint: str) -> tuple[str, Session]:
        """A new session and its cookie."""
        session = Session(fingerprint, int(time.time()) + LIFETIME_SECONDS, secrets.token_hex(16))
        body = f"{session.fingerprint}.{session.expires}.{session.nonce}"
        return f"{body}.{self._sign('session', body)}", session

    def read(self, cookie: str) -> Session | None:
        """The session of a cookie; None when it was changed or has expired."""
        body, _, signature = cookie.rpartition(".")
        if not hmac.compare_digest(self._sign("session", body).encode(), signature.encode()):
            return None
        fingerprint, expires, nonce = body.split(".")
        session = Session(fingerprint, int(expires), nonce)
        return session if session.expires > time.time() else None

    def csrf(self, session: Session) -> str:
        """Token that every form of this session carries."""
        return self._sign("csrf", f"{session.fingerprint}.{session.nonce}")

    def csrf_holds(self, session: Session, token: str) -> bool:
        """Whether a form came from a page of this session."""
        return hmac.compare_digest(self.csrf(session).encode(), token.encode())

    def stamp(self, item: str) -> str:
        """When an item was shown, signed: the browser cannot make up its working time."""
        now = f"{time.time():.1f}"
        return f"{now}.{self._sign('stamp', item + now)}"

    def seconds(self, item: str, stamp: str) -> float:
        """Seconds since `stamp` was made for this item, at most `MAX_ITEM_SECONDS`; 0 if forged."""
        shown, _, signature = stamp.rpartition(".")
        if not hmac.compare_digest(self._sign("stamp", item + shown).encode(), signature.encode()):
            return 0.0
        return min(max(time.time() - float(shown), 0.0), MAX_ITEM_SECONDS)

    def _sign(self, use: str, text: str) -> str:
        return hmac.new(self._key, f"{use}\x1f{text}".encode(), hashlib.sha256).hexdigest()


def fingerprint(token: str) -> str:
    """What a cookie keeps of a bearer token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
