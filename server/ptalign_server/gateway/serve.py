"""The gateway process: one gRPC server, the metrics port, a health socket and the worker."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.longrunning import operations_pb2_grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from ptalign_proto.v1 import library_pb2_grpc, safety_tuning_pb2_grpc
from ptalign_server import metrics, wire
from ptalign_server.catalogue import Catalogue
from ptalign_server.gateway.disk import publish_free, publish_used
from ptalign_server.gateway.identity import Gate
from ptalign_server.gateway.interceptor import Guard
from ptalign_server.gateway.library import Library
from ptalign_server.gateway.operations import Operations
from ptalign_server.gateway.ports import bind, taken
from ptalign_server.gateway.purge import finish_purges
from ptalign_server.gateway.retention import PAUSE_SECONDS, expire
from ptalign_server.gateway.tuning import SafetyTuning
from ptalign_server.gateway.watch import Feeds
from ptalign_server.gateway.workers import WorkerProcess
from ptalign_server.locks import hold_lock
from ptalign_server.settings import Settings, bare
from ptalign_server.store import Store
from ptalign_server.store.names import KEEP_SECONDS, Name
from ptalign_server.store.requests import forget_old

log = logging.getLogger("ptalign.server")
SERVICES = (
    "ptalign.v1.SafetyTuning",
    "ptalign.v1.Library",
    "google.longrunning.Operations",
)
ENGINE = "ptalign.engine"
"""Health name that follows the generation pool."""
GRACE_SECONDS = 10.0
LOCK_SECONDS = 3.0
"""How long a killed server of the same state folder may take to be gone."""
NAME_SECONDS = 40.0
"""How long the database may take to see that a server of our name is gone."""
FORGET_EVERY = 600
MEASURE_SECONDS = 30.0
WALK_EVERY = 20
OPTIONS = (
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    ("grpc.max_concurrent_streams", 4096),
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports in use."""

    grpc: int
    metrics: int
    page: int | None
    """None: the page is not served."""


async def serve(settings: Settings, ready: Callable[[Ports], None]) -> None:
    """Runs until SIGTERM or SIGINT, then drains.

    Args:
        ready: Called with the ports once calls are answered.
    """
    settings.make_folders()
    # Whatever its name: a second gateway would use the same sockets and metrics.
    held = hold_lock(settings.run_dir / "gateway.lock", LOCK_SECONDS)
    metrics.prepare(settings.run_dir / "metrics")
    gauges = metrics.Metrics()
    store = Store(settings, wire.freeze)
    name = Name(store.engine, settings.executor_id)
    name.take(NAME_SECONDS)
    store.claim_sets()
    finish_purges(store)
    gateway = Gateway(settings, store, gauges)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        ready(await gateway.start())
        keeping = asyncio.create_task(_keep(name, stop))
        await stop.wait()
        keeping.cancel()
    finally:  # of a start that failed, too: what it began would speak up after the loop's end
        await gateway.stop()
        name.close()
        store.close()
        held.close()


async def _keep(name: Name, stop: asyncio.Event) -> None:
    """Looks after the name, and ends the server where another has it."""
    while True:
        await asyncio.sleep(KEEP_SECONDS)
        try:
            if not await asyncio.to_thread(name.keep):
                log.error("this server ends: another has its name and runs its operations")
                stop.set()
                return
        except Exception:
            log.exception("this server's name could not be looked at; trying again")


def make_server(
    settings: Settings, store: Store, gauges: metrics.Metrics, healths: Any
) -> grpc.aio.Server:
    """A gRPC server with every service behind the interceptor; no port yet."""
    server = grpc.aio.server(interceptors=[Guard(Gate(settings), gauges)], options=OPTIONS)
    catalogue, feeds = Catalogue(settings), Feeds(store)
    catalogue.policies.read_all()
    catalogue.read_judges()
    tuning = SafetyTuning(settings, store, catalogue, feeds)
    safety_tuning_pb2_grpc.add_SafetyTuningServicer_to_server(tuning, server)
    library_pb2_grpc.add_LibraryServicer_to_server(Library(store, catalogue), server)
    operations_pb2_grpc.add_OperationsServicer_to_server(Operations(store, feeds), server)
    health_pb2_grpc.add_HealthServicer_to_server(healths, server)
    names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    return server


class Gateway:
    """The servers and loops of the gateway process."""

    def __init__(self, settings: Settings, store: Store, gauges: metrics.Metrics) -> None:
        self._settings = settings
        self._store = store
        self._metrics = gauges
        self._health = health.aio.HealthServicer()
        self._worker = WorkerProcess(gauges)
        self._server = make_server(settings, store, gauges, self._health)
        self._probe = grpc.aio.server()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = threading.Event()
        self._stop_metrics: Callable[[], None] = lambda: None
        self._stop_page: Callable[[], Awaitable[None]] | None = None

    async def start(self) -> Ports:
        """Binds every port, then starts the worker."""
        port = bind(self._server, self._settings)
        socket = self._settings.health_socket
        socket.unlink(missing_ok=True)
        self._probe.add_insecure_port(f"unix:{socket}")
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._probe)
        await self._set_health(health_pb2.HealthCheckResponse.SERVING, *SERVICES, "")
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING, ENGINE)
        await self._server.start()
        await self._probe.start()
        metrics_port, self._stop_metrics = self._serve_metrics()
        page_port = None
        if self._settings.page:
            page_port, self._stop_page = await self._serve_page()
        self._worker.start()
        self._tasks = [
            asyncio.create_task(self._follow_engine()),
            asyncio.create_task(self._count()),
            asyncio.create_task(self._expire()),
            asyncio.create_task(self._measure()),
        ]
        return Ports(port, metrics_port, page_port)

    async def stop(self) -> None:
        """Not serving at once; calls in flight finish; the worker checkpoints and ends."""
        self._stopping.set()
        await self._health.enter_graceful_shutdown()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(self._server.stop(GRACE_SECONDS), self._worker.stop())
        if self._stop_page is not None:
            await self._stop_page()
        await self._probe.stop(0)
        self._stop_metrics()
        self._settings.health_socket.unlink(missing_ok=True)

    def _serve_metrics(self) -> tuple[int, Callable[[], None]]:
        from prometheus_client import start_http_server

        settings = self._settings
        try:
            server, _ = start_http_server(
                settings.metrics_port, bare(settings.metrics_host), registry=metrics.registry()
            )
        except OSError:
            raise taken(settings.metrics_host, settings.metrics_port, "METRICS_") from None
        return int(server.server_port), server.shutdown

    async def _serve_page(self) -> tuple[int, Callable[[], Awaitable[None]]]:
        from ptalign_server.page import create_app
        from ptalign_server.page.listen import listen
        from ptalign_server.page.shelf import AnnotationShelf

        settings = self._settings
        shelf = AnnotationShelf(settings, self._store)
        app = create_app(shelf, self._metrics.failed, settings.page_host)
        return await listen(app, settings.page_host, settings.page_port, settings.auth)

    async def _follow_engine(self) -> None:
        """`ptalign.engine` serves while the worker says that an engine takes requests."""
        import httpx  # slow to import, and not needed to serve

        transport = httpx.AsyncHTTPTransport(uds=str(self._settings.worker_socket), verify=False)
        async with httpx.AsyncClient(transport=transport, timeout=2.0) as client:
            while True:
                try:
                    up = bool((await client.get("http://worker/status")).json()["ready"])
                except (httpx.HTTPError, KeyError, ValueError):
                    up = False
                status = health_pb2.HealthCheckResponse
                await self._set_health(status.SERVING if up else status.NOT_SERVING, ENGINE)
                await asyncio.sleep(1.0)

    async def _expire(self) -> None:
        """Retention, now and then."""
        # A gauge that was never set is in no scrape: retention that fails from the start on, or
        # since a restart, would alert nobody.
        self._metrics.retention_success.set(0)
        while True:
            try:
                await asyncio.to_thread(
                    expire,
                    self._store,
                    self._settings,
                    gauges=self._metrics,
                    should_stop=self._stopping.is_set,
                )
            except Exception:
                log.exception("retention failed; trying again")
            await asyncio.sleep(PAUSE_SECONDS)

    async def _measure(self) -> None:
        """What is free on disk, and less often what fills it."""
        for turn in itertools.count():
            try:
                await asyncio.to_thread(publish_free, self._metrics, self._settings.state)
                if turn % WALK_EVERY == 0:
                    await asyncio.to_thread(
                        publish_used, self._metrics, self._settings.state, self._stopping.is_set
                    )
            except Exception:
                log.exception("the state folder's disk could not be measured; trying again")
            await asyncio.sleep(MEASURE_SECONDS)

    async def _count(self) -> None:
        """Operations by kind and state, and how many wait; old request ids go on the way."""
        for turn in itertools.count():
            if turn % FORGET_EVERY == 0:
                self._store.write(forget_old)
            try:
                found = await asyncio.to_thread(self._store.operations.counts)
            except Exception:
                log.exception("counting operations failed")
            else:
                publish_counts(self._metrics, found)
            await asyncio.sleep(1.0)

    async def _set_health(self, status: Any, *services: str) -> None:
        for service in services:
            await self._health.set(service, status)


def publish_counts(gauges: metrics.Metrics, found: dict[tuple[str, str], int]) -> None:
    """Every kind and state, zeros too, so that a gauge that empties is seen to."""
    from ptalign_server.store.operations import STATES, WAITING

    for kind in wire.KINDS:
        for state in STATES:
            gauges.operations.labels(kind, state).set(found.get((kind, state), 0))
        waiting = sum(found.get((kind, state), 0) for state in WAITING)
        gauges.queue_depth.labels(kind).set(waiting)


def quiet_environment() -> None:
    """No library of ours reports home."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
