"""Routes of the annotation page. Works without scripts; htmx swaps the board in place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates

from ptalign.errors import InvalidInput, PtalignError
from ptalign.nouns import MAX_ANNOTATIONS
from ptalign.sealed import SealedText
from ptalign_server.errors import NotFound
from ptalign_server.page.guard import Guard, Headers, Pass, Refused
from ptalign_server.page.library import AnnotationLibrary, Board, Full, Item, Mark
from ptalign_server.page.sessions import Sessions
from ptalign_server.settings import bracketed

HERE = Path(__file__).parent
MAX_TEXT = 8_000
"""Characters of a rewritten answer; the API's limit."""


def create_app(
    library: AnnotationLibrary,
    count: Callable[[PtalignError], None] = lambda _: None,
    host: str = "localhost",
) -> Starlette:
    """The page as an ASGI application.

    Args:
        library: Where pair sets come from and marks go.
        count: Told every error that the page shows.
        host: Where the page listens, as set.
    """
    guard = Guard(library, Sessions(library.secret()))
    page = Page(library, guard, count)
    middleware = [Middleware(Headers)]
    if library.local() is not None:
        # A page of another site must not reach a server without login by a name of its own.
        hosts = ["localhost", "127.0.0.1", "[::1]", bracketed(host)]
        middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=hosts))
    return Starlette(
        routes=[
            Route("/", page.home),
            Route("/login", page.login, methods=["GET", "POST"]),
            Route("/logout", page.logout, methods=["POST"]),
            Route("/sets/{id}", page.board),
            Route("/sets/{id}/reveal", page.reveal, methods=["POST"]),
            Route("/sets/{id}/mark", page.mark, methods=["POST"]),
            Route("/sets/{id}/skip", page.skip, methods=["POST"]),
            Route("/sets/{id}/undo", page.undo, methods=["POST"]),
            Route("/sets/{id}/finish", page.finish, methods=["POST"]),
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ],
        middleware=middleware,
        exception_handlers={
            Refused: page.refused,  # type: ignore[dict-item]
            PtalignError: page.failed,  # type: ignore[dict-item]
        },
    )


class Page:
    """The handlers."""

    def __init__(
        self, library: AnnotationLibrary, guard: Guard, count: Callable[[PtalignError], None]
    ) -> None:
        self._library = library
        self._guard = guard
        self._count = count
        self._templates = Jinja2Templates(HERE / "templates")

    async def home(self, request: Request) -> Response:
        """Pair sets that can be annotated."""
        entry = await self._guard.admit(request)
        queues = await run_in_threadpool(self._library.queues, entry.visitor)
        return self._render(request, "home.html", entry, queues=queues, limit=MAX_ANNOTATIONS)

    async def login(self, request: Request) -> Response:
        """Asks for a token and turns it into a session."""
        if request.method == "GET":
            return self._render(request, "login.html", None, problem="")
        # There is no session yet that a CSRF token could stand for.
        if request.headers.get("sec-fetch-site", "none") not in {"same-origin", "none"}:
            raise Refused("This form came from another site. Load the page again.")
        form = await self._guard.form(request)
        cookie, problem = await run_in_threadpool(self._guard.enter, str(form.get("token", "")))
        if problem:
            return self._render(request, "login.html", None, status=403, problem=problem)
        answer = RedirectResponse("/", status_code=303)
        self._guard.set_cookie(request, answer, cookie)
        return answer

    async def logout(self, request: Request) -> Response:
        """Ends the session."""
        await self._guard.admit(request)
        answer = RedirectResponse("/login", status_code=303)
        self._guard.drop_cookie(request, answer)
        return answer

    async def board(self, request: Request) -> Response:
        """The next item of a pair set, hidden."""
        entry = await self._guard.admit(request)
        return await self._board(request, entry)

    async def reveal(self, request: Request) -> Response:
        """Shows an item's text, after the look is on record."""
        entry, form = await self._posted(request)
        pair_set, wanted = _pair_set(request), str(form.get("item", ""))
        board = await run_in_threadpool(self._library.annotation_items, entry.visitor, pair_set)
        item = _find(board, wanted)
        await run_in_threadpool(self._library.record_reveal, entry.visitor, pair_set, item.id)
        return self._show(request, entry, board, item, revealed=True)

    async def mark(self, request: Request) -> Response:
        """Keeps a mark and shows the next item."""
        entry, form = await self._posted(request)
        mark = _mark(form, self._guard.sessions)
        notice = {"good": "Marked as right.", "bad": "Marked as wrong.", "edit": "Edit kept."}
        try:
            await run_in_threadpool(
                self._library.add_annotation, entry.visitor, _pair_set(request), mark
            )
        except Full:
            if mark.verdict == "edit":  # what was written stays on the page
                limit = f"are {MAX_ANNOTATIONS} by now: this one is not counted"
                raise InvalidInput("marks", limit, "Take one back, then send it again.") from None
            return await self._board(request, entry, notice="The limit was reached: not counted.")
        return await self._board(request, entry, notice=notice[mark.verdict])

    async def skip(self, request: Request) -> Response:
        """Shows the next item; this one comes again after all others."""
        entry, form = await self._posted(request)
        later = Mark(str(form.get("item", "")), "skipped")
        await run_in_threadpool(
            self._library.add_annotation, entry.visitor, _pair_set(request), later
        )
        return await self._board(request, entry, notice="Skipped.")

    async def undo(self, request: Request) -> Response:
        """Takes the visitor's last mark back and shows that item again."""
        entry, form = await self._posted(request)
        pair_set, item = _pair_set(request), str(form.get("item", ""))
        withdrawn = Mark(item, "withdrawn")
        await run_in_threadpool(self._library.add_annotation, entry.visitor, pair_set, withdrawn)
        return await self._board(request, entry, first=item, notice="Taken back.")

    async def finish(self, request: Request) -> Response:
        """Seals the marks into an annotation set."""
        entry, _ = await self._posted(request)
        pair_set = _pair_set(request)
        try:
            name = await run_in_threadpool(self._library.hand_over, entry.visitor, pair_set)
        except InvalidInput as error:
            return await self._board(request, entry, notice=f"{error.limit}. {error.mend}")
        board = await run_in_threadpool(self._library.annotation_items, entry.visitor, pair_set)
        return self._render(request, "finished.html", entry, name=name, queue=board.queue)

    async def refused(self, request: Request, error: Refused) -> Response:
        """No session, no role or no CSRF token."""
        if error.login:
            if "hx-request" in request.headers:
                return Response(status_code=204, headers={"HX-Redirect": "/login"})
            return RedirectResponse("/login", status_code=303)
        return self._render(request, "problem.html", None, status=403, problem=str(error))

    async def failed(self, request: Request, error: PtalignError) -> Response:
        """Errors made on purpose say what to do; all others stay a bare 500."""
        self._count(error)
        status = 404 if isinstance(error, NotFound) else 409
        return self._render(request, "problem.html", None, status=status, problem=str(error))

    async def _posted(self, request: Request) -> tuple[Pass, FormData]:
        entry = await self._guard.admit(request)
        return entry, await self._guard.form(request)

    async def _board(
        self, request: Request, entry: Pass, *, first: str = "", notice: str = ""
    ) -> Response:
        pair_set = _pair_set(request)
        board = await run_in_threadpool(self._library.annotation_items, entry.visitor, pair_set)
        full = board.queue.marked >= MAX_ANNOTATIONS
        open_items = [i for i in board.items if i.free or not full]
        item = _choose(open_items, first)
        return self._show(request, entry, board, item, revealed=False, notice=notice)

    def _show(
        self,
        request: Request,
        entry: Pass,
        board: Board,
        item: Item | None,
        *,
        revealed: bool,
        notice: str = "",
    ) -> Response:
        fragment = "hx-request" in request.headers
        return self._render(
            request,
            "board.html" if fragment else "annotate.html",
            entry,
            board=board,
            queue=board.queue,
            item=item,
            revealed=revealed,
            notice=notice,
            limit=MAX_ANNOTATIONS,
            stamp=self._guard.sessions.stamp(item.id) if item else "",
        )

    def _render(
        self,
        request: Request,
        template: str,
        entry: Pass | None,
        *,
        status: int = 200,
        **values: Any,
    ) -> Response:
        context = {"csrf": entry.csrf if entry else "", "visitor": entry.visitor if entry else None}
        answer = self._templates.TemplateResponse(
            request, template, {**context, **values}, status_code=status
        )
        if entry and entry.cookie:
            self._guard.set_cookie(request, answer, entry.cookie)
        return answer


def _pair_set(request: Request) -> str:
    return f"pairSets/{request.path_params['id']}"


def _find(board: Board, wanted: str) -> Item:
    for item in board.items:
        if item.id == wanted:
            return item
    raise NotFound


def _choose(items: list[Item], first: str) -> Item | None:
    """The item asked for, or the first one."""
    return next((item for item in items if item.id == first), items[0] if items else None)


def _mark(form: FormData, sessions: Sessions) -> Mark:
    """The mark of a form.

    Raises:
        InvalidInput: An unknown verdict, or a rewritten answer outside its limits.
    """
    item, verdict = str(form.get("item", "")), str(form.get("verdict", ""))
    seconds = sessions.seconds(item, str(form.get("stamp", "")))
    if verdict == "good":
        return Mark(item, "good", seconds=seconds)
    if verdict == "bad":
        return Mark(item, "bad", seconds=seconds)
    if verdict != "edit":
        raise InvalidInput("verdict", "is not good, bad or edit", "Use the buttons of the page.")
    good = _written(form, "good")
    bad = SealedText(_written(form, "bad")) if "bad" in form else None
    return Mark(item, "edit", good, bad, seconds)


def _written(form: FormData, field: str) -> str:
    # A form that no script sends has the line ends of Windows: an answer left as it was is no edit.
    text = str(form.get(field, "")).replace("\r\n", "\n").strip()
    if not text or len(text) > MAX_TEXT:
        limit = f"needs 1 to {MAX_TEXT} characters, not {len(text)}"
        raise InvalidInput(field, limit, "Write it, or mark the pair as wrong.")
    return text
