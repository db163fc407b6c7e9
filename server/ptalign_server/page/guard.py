"""Who may see the page, and what every answer carries."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ptalign_server.page.library import AnnotationLibrary, Visitor
from ptalign_server.page.sessions import LIFETIME_SECONDS, LOCAL, Session, Sessions, fingerprint

ROLE = "annotator"
MAX_FORM_BYTES = 256 * 1024
"""Two answers of 8000 characters, of which each is up to twelve bytes of a form."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


class Refused(Exception):
    """The visitor may not do this.

    Attributes:
        login: Whether logging in would help.
    """

    def __init__(self, text: str, *, login: bool = False) -> None:
        super().__init__(text)
        self.login = login


@dataclass(frozen=True, slots=True)
class Pass:
    """An admitted visitor."""

    visitor: Visitor
    csrf: str
    cookie: str = ""
    """Set when the session began with this request."""


class Guard:
    """Sessions, roles and CSRF tokens."""

    def __init__(self, library: AnnotationLibrary, sessions: Sessions) -> None:
        self._library = library
        self.sessions = sessions

    async def admit(self, request: Request) -> Pass:
        """The visitor of a request.

        Raises:
            Refused: No session, no role, a form from elsewhere or one that is too large.
        """
        session, cookie = self._session(request)
        visitor = await run_in_threadpool(self._visitor, session)
        if request.method == "POST":
            form = await self.form(request)
            if not self.sessions.csrf_holds(session, str(form.get("csrf", ""))):
                raise Refused("This form is out of date. Load the page again.")
        return Pass(visitor, self.sessions.csrf(session), cookie)

    async def form(self, request: Request) -> FormData:
        """The fields of a form of a reasonable size."""
        length = request.headers.get("content-length", "")
        if not length.isdecimal() or int(length) > MAX_FORM_BYTES:
            raise Refused("The form is too large.")
        return await request.form(max_files=0, max_fields=20)

    def enter(self, token: str) -> tuple[str, str]:
        """Cookie for a token, or what is wrong with it."""
        found = fingerprint(token.strip())
        visitor = self._library.visitor(found)
        if visitor is None:
            return "", "This token is not known. Ask an operator for one."
        if ROLE not in visitor.roles:
            return "", f"This token lacks the role {ROLE}. Ask an operator for it."
        cookie, _ = self.sessions.start(found)
        return cookie, ""

    def set_cookie(self, request: Request, answer: Response, cookie: str) -> None:
        """Gives the session to the browser, out of reach of scripts and other sites."""
        secure = request.url.scheme == "https"
        answer.set_cookie(
            _name(secure),
            cookie,
            max_age=LIFETIME_SECONDS,
            httponly=True,
            samesite="strict",
            secure=secure,
        )

    def drop_cookie(self, request: Request, answer: Response) -> None:
        """Takes the session from the browser."""
        secure = request.url.scheme == "https"
        answer.delete_cookie(_name(secure), httponly=True, samesite="strict", secure=secure)

    def _session(self, request: Request) -> tuple[Session, str]:
        secure = request.url.scheme == "https"
        session = self.sessions.read(request.cookies.get(_name(secure), ""))
        if session is not None:
            return session, ""
        if self._library.local() is None:
            raise Refused("Log in first.", login=True)
        cookie, session = self.sessions.start(LOCAL)
        return session, cookie

    def _visitor(self, session: Session) -> Visitor:
        local = session.fingerprint == LOCAL
        visitor = self._library.local() if local else self._library.visitor(session.fingerprint)
        if visitor is None:
            raise Refused("The token was removed.", login=True)
        if ROLE not in visitor.roles:
            raise Refused(f"The page needs the role {ROLE}. Ask an operator for it.")
        return visitor


class Headers:
    """ASGI middleware: no caching, no framing, no script or style from elsewhere."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = POLICY
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                if not scope["path"].startswith("/static/"):
                    headers["Cache-Control"] = "no-store"
            await send(message)

        await self._app(scope, receive, sending)


def _name(secure: bool) -> str:
    """The ``__Host-`` prefix keeps sibling domains from planting a cookie; it needs TLS."""
    return "__Host-ptalign" if secure else "ptalign"
