"""ASGI middleware of a remote engine: it loads only adapters it pulled and checked itself.

The pool asks an engine to load an adapter by name and by a path on the pool's own disk. In a pod
of its own the engine has no such path: the middleware takes the name, brings the files from the
object store, compares them with the digest in the name and puts its own path into the request.
Whatever path the caller sent is ignored, and vLLM's other routes, one of which loads adapters too,
are not found (see `engine_paths`): nobody on the network can point an engine at a file.

    python -m vllm.entrypoints.openai.api_server --middleware ptalign_server.pull.PullAdapters ...
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import uuid
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from ptalign.errors import DataDamaged, NotReady, PtalignError, Unsupported
from ptalign_server.engine_paths import LOAD, EnginePaths
from ptalign_server.pool.adapters import check_adapter, make_adapter
from ptalign_server.pool.supervisor import ZERO
from ptalign_server.settings import Settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

NAME = re.compile(r"adapters-([0-9a-f]{8,40})-([0-9a-f]{64})")
"""Served name of an adapter: its id in the library and its whole digest, see `check_adapter`."""
PARTS = ("adapter_config.json", "adapter_model.safetensors")
CANARY = re.compile(r"ptalign-canary-[0-9a-f]{8}")
"""Each pool has a canary of its own name; all are the same bytes."""
MAX_BODY = 64 * 1024
MAX_RANK = 256
KEPT = 24
"""Pulled adapters on an engine's disk: more than all jobs on it use at once, 4.8 GB at 200 MB."""


class PullAdapters:
    """Rewrites requests to load an adapter; others pass where `EnginePaths` knows their path."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = EnginePaths(app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != LOAD:
            await self._app(scope, receive, send)
            return
        try:
            wanted = json.loads(await _body(receive))
            folder = await run_in_threadpool(
                self._pulled.folder, str(wanted["lora_name"]), _model(scope)
            )
        except (PtalignError, ValueError, KeyError, TypeError) as error:
            await JSONResponse({"error": {"message": str(error)}}, 400)(scope, receive, send)
            return
        await self._app(*_replaced(scope, receive, wanted | {"lora_path": str(folder)}), send)

    @cached_property
    def _pulled(self) -> PulledAdapters:
        settings = Settings()
        return PulledAdapters(settings.artefacts, settings.state / "adapters")


class PulledAdapters:
    """Pulled adapters on the engine's disk, the `KEPT` newest, each checked against its name.

    Args:
        url: Object store of the library's artefacts.
        root: Where they are kept; may be emptied at any time.
    """

    def __init__(self, url: str, root: Path) -> None:
        self._url = url
        self._root = root
        self._lock = threading.Lock()

    def folder(self, name: str, model: Path) -> Path:
        """The folder of an adapter, pulled if it is not here.

        Args:
            name: Served name.
            model: Folder of the engine's model.

        Raises:
            Unsupported: The name is not one the pool makes.
            NotReady: The object store does not hold its files.
            DataDamaged: The files are not those that the name's digest stands for.
        """
        # What a pool proves an engine with is made here: the same bytes as there.
        if name == ZERO:
            return make_adapter(model, self._root / "zero", scale=0.0)
        if CANARY.fullmatch(name):
            return make_adapter(model, self._root / "canary", scale=4.0)
        found = NAME.fullmatch(name)
        if found is None:
            raise Unsupported(f"adapter name {name[:120]!r} does not come from a ptalign pool")
        target = self._root / name
        if not self._renewed(target):
            self._pull(found[1], found[2], target)
            self._trim()
        return target

    def _renewed(self, target: Path) -> bool:
        """Whether an adapter is here; it is the newest then."""
        with self._lock:
            there = target.exists()
            if there:
                os.utime(target)
            return there

    def _trim(self) -> None:
        """Removes what was not asked for the longest: a full disk gets the engine evicted."""
        with self._lock:
            pulled = [path for path in self._root.iterdir() if NAME.fullmatch(path.name)]
            pulled.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
            for old in pulled[KEPT:]:
                shutil.rmtree(old, ignore_errors=True)

    def _pull(self, adapter_id: str, digest: str, target: Path) -> None:
        partial = target.with_name(f"{target.name}.partial-{uuid.uuid4().hex[:8]}")
        partial.mkdir(parents=True)
        try:
            for part in PARTS:
                self._fetch(f"adapters/{adapter_id}/{part}", partial / part)
            if check_adapter(partial, MAX_RANK) != digest:
                raise DataDamaged(
                    f"adapter {adapter_id} in the object store is not what was asked for"
                )
            partial.rename(target)
        except OSError:
            if not target.exists():  # another request was quicker
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _fetch(self, key: str, path: Path) -> None:
        import obstore
        from obstore.store import from_url

        try:
            stream = obstore.get(from_url(self._url), key)
            with path.open("wb") as file:
                for chunk in stream:
                    file.write(bytes(chunk))
        except FileNotFoundError:
            raise NotReady(f"the object store holds no {key}") from None


def _model(scope: Scope) -> Path:
    """Folder of the model that this vLLM server runs."""
    return Path(scope["app"].state.openai_serving_models.base_model_paths[0].model_path)


async def _body(receive: Receive) -> bytes:
    """The request's body.

    Raises:
        ValueError: It is too large.
    """
    data, more = b"", True
    while more:
        message = await receive()
        data += message.get("body", b"")
        more = message.get("more_body", False)
        if len(data) > MAX_BODY:
            raise ValueError(f"the request is larger than {MAX_BODY} bytes")
    return data


def _replaced(scope: Scope, receive: Receive, content: dict[str, Any]) -> tuple[Scope, Receive]:
    """The same request with another JSON body."""
    data = json.dumps(content).encode()
    headers = [(k, v) for k, v in scope["headers"] if k != b"content-length"]
    headers.append((b"content-length", str(len(data)).encode()))
    sent = False

    async def replay() -> Any:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": data, "more_body": False}

    return {**scope, "headers": headers}, replay
