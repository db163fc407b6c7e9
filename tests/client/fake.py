"""The service of the wire, in memory, with faults that a test asks for.

It keeps the promises the client relies on: the same request id gives the same operation, events
have gapless sequences, downloads start at any offset. It does no work.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections import defaultdict
from collections.abc import AsyncIterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from google.longrunning import operations_pb2 as lro
from google.longrunning import operations_pb2_grpc as lro_grpc
from google.protobuf import any_pb2, duration_pb2, empty_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from ptalign_proto.v1 import library_pb2 as lib
from ptalign_proto.v1 import library_pb2_grpc, safety_tuning_pb2_grpc
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_proto.v1 import safety_tuning_pb2 as pb

CHUNK = 1000
Code = grpc.StatusCode


@dataclass
class Fault:
    """What goes wrong in one call.

    Attributes:
        code: Status the caller gets.
        committed: Whether the work is done before the caller sees the error.
        after: Of streams: messages that still arrive.
        details: Messages in the status.
    """

    code: grpc.StatusCode = Code.UNAVAILABLE
    committed: bool = False
    after: int = 0
    message: str = "planned fault"
    details: tuple[Any, ...] = ()


def info(reason: str, **metadata: str) -> error_details_pb2.ErrorInfo:
    return error_details_pb2.ErrorInfo(reason=reason, domain="ptalign", metadata=metadata)


def retry_in(seconds: float) -> error_details_pb2.RetryInfo:
    delay = duration_pb2.Duration(nanos=int(seconds * 1e9) % 10**9, seconds=int(seconds))
    return error_details_pb2.RetryInfo(retry_delay=delay)


def violation(field: str, description: str) -> error_details_pb2.BadRequest:
    one = error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
    return error_details_pb2.BadRequest(field_violations=[one])


def packed(message: Any) -> any_pb2.Any:
    box = any_pb2.Any()
    box.Pack(message)
    return box


@dataclass
class Job:
    """One operation: its events so far, and those to come."""

    name: str
    kind: str
    request: Any
    metadata: type
    result: Any
    steps: int = 4
    shown: int = 1
    cancelled: bool = False
    error: status_pb2.Status | None = None
    extra: dict[str, float] = field(default_factory=dict)
    people: dict[str, str] = field(default_factory=dict)
    """submitted_by, cancelled_by."""
    phases: tuple[str, ...] = ()
    """They take turns, instead of a phase per step."""

    def snapshot(self, sequence: int) -> lro.Operation:
        done = sequence >= self.steps or (self.cancelled and sequence >= self.shown)
        state = pb.OPERATION_STATE_RUNNING
        if done:
            state = pb.OPERATION_STATE_SUCCEEDED
            state = pb.OPERATION_STATE_FAILED if self.error else state
            state = pb.OPERATION_STATE_CANCELLED if self.cancelled else state
        progress = pb.OperationProgress(
            operation=self.name,
            kind=self.kind,
            state=state,
            phase="finished" if done else f"working, step {sequence}",
            done=10 * sequence,
            total=10 * self.steps,
            attempt=1,
            eta_seconds=float(self.steps - sequence),
            counts={"accepted": 10 * sequence, "rejected.duplicate": sequence},
            **self.people,
        )
        progress.create_time.GetCurrentTime()
        if self.phases and not done:
            progress.phase = self.phases[sequence % len(self.phases)]
        if self.kind == "Align" and not done:
            progress.phase = "training"
        if done:
            progress.resource = self.result.meta.name
        operation = lro.Operation(name=self.name, done=done)
        extra = self.extra if self.metadata is pb.AlignMetadata else {}
        operation.metadata.Pack(self.metadata(progress=progress, **extra))
        if done and self.cancelled:
            operation.error.CopyFrom(
                status_pb2.Status(
                    code=1, message="cancelled by the caller", details=[packed(info("CANCELLED"))]
                )
            )
        elif done and self.error:
            operation.error.CopyFrom(self.error)
        elif done:
            operation.response.Pack(self.result)
        return operation


class Service(
    safety_tuning_pb2_grpc.SafetyTuningServicer,
    library_pb2_grpc.LibraryServicer,
    lro_grpc.OperationsServicer,
):
    """All three services over dictionaries."""

    def __init__(self) -> None:
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.calls: list[tuple[str, Any]] = []
        self.identities: list[dict[str, str]] = []
        self.jobs: dict[str, Job] = {}
        self.by_request: dict[str, str] = {}
        self.resources: dict[str, Any] = {}
        self.files: dict[tuple[str, str], bytes] = {}
        self.records: dict[str, list[lib.Record]] = {}
        self.pace = 0.0
        """Seconds between events."""
        self.steps = 4
        self.damage = b""
        """Downloads start with these bytes instead of their own."""
        self.in_flight = 0
        self.most_in_flight = 0

    # Faults

    async def _enter(self, method: str, request: Any, context: Any) -> Fault | None:
        """Notes the call; fails it when planned, unless it is to be committed first."""
        self.calls.append((method, request))
        self.identities.append(dict(context.invocation_metadata() or ()))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.pace)
        finally:
            self.in_flight -= 1
        fault = self.faults[method].pop(0) if self.faults[method] else None
        if fault and not fault.committed and not fault.after:
            await self._fail(fault, context)
        return fault

    async def _fail(self, fault: Fault, context: Any) -> None:
        status = status_pb2.Status(code=fault.code.value[0], message=fault.message)
        status.details.extend(packed(d) for d in fault.details)
        await context.abort_with_status(rpc_status.to_status(status))

    def called(self, method: str) -> list[Any]:
        return [request for name, request in self.calls if name == method]

    # SafetyTuning

    async def _verb(
        self, kind: str, metadata: type, result: Any, request: Any, context: Any
    ) -> Any:
        dry = request.dry_run  # has faults of its own, and is no call of the verb
        fault = await self._enter(f"{kind} dry run" if dry else kind, request, context)
        if dry:
            return self._dry(kind, metadata, type(result))
        name = self.by_request.get(request.request_id)
        if name is None:
            name = f"operations/{len(self.jobs) + 1}"
            self.by_request[request.request_id] = name
            folder = {"InstructionSet": "instructionSets", "PairSet": "pairSets"}
            kind_name = type(result).__name__
            prefix = folder.get(kind_name, kind_name.lower() + "s")
            result.meta.name = f"{prefix}/{len(self.jobs) + 1}"
            result.meta.model = getattr(request, "model", "") or request.target.model
            result.meta.operation = name
            result.meta.create_time.GetCurrentTime()
            self.resources[result.meta.name] = result
            extra = {"loss_mle": 1.5, "loss_ut": 0.25, "ut_weight": 2.0, "tokens_ut": 12}
            self.jobs[name] = Job(
                name, kind, request, metadata, result, steps=self.steps, extra=extra
            )
            self._fill(self.jobs[name])
        if fault:
            await self._fail(fault, context)
        return self.jobs[name].snapshot(0)

    def _dry(self, kind: str, metadata: type, resource: type) -> lro.Operation:
        progress = pb.OperationProgress(kind=kind, state=pb.OPERATION_STATE_SUCCEEDED)
        progress.estimate.seconds = 42.0
        progress.estimate.memory_bytes = 3 * 2**30
        operation = lro.Operation(name="operations/dry", done=True)
        operation.metadata.Pack(metadata(progress=progress))
        operation.response.Pack(resource())  # empty, as the server answers
        return operation

    def _fill(self, job: Job) -> None:
        """Files of what is made, so that downloads have something to verify."""
        parts: dict[str, bytes] = {}
        if job.kind == "Align":
            parts = {
                "adapter_config.json": b'{"r": 16}',
                "adapter_model.safetensors": bytes(range(256)) * 40,
            }
        if job.kind == "Evaluate":
            parts = {"report.json": REPORT, "report.html": b"<h1>report</h1>"}
        for part, content in parts.items():
            self.add_file(job.result, part, content)

    def add_file(self, resource: Any, part: str, content: bytes) -> None:
        self.files[resource.meta.name, part] = content
        resource.files.add(part=part, size=len(content), sha256=hashlib.sha256(content).hexdigest())

    async def GenerateInstructions(self, request: Any, context: Any) -> Any:
        made = res.InstructionSet(harmful=request.count, twins=request.count, rejected={"dup": 3})
        kind = pb.GenerateInstructionsMetadata
        return await self._verb("GenerateInstructions", kind, made, request, context)

    async def SynthesizePairs(self, request: Any, context: Any) -> Any:
        made = res.PairSet(pairs=20, anchors=8, annotations_used=3, rounds=2)
        kind = pb.SynthesizePairsMetadata
        return await self._verb("SynthesizePairs", kind, made, request, context)

    async def Align(self, request: Any, context: Any) -> Any:
        made = res.Adapter(method=request.method, tokens_mle=900, tokens_ut=120, ut_weight=2.0)
        return await self._verb("Align", pb.AlignMetadata, made, request, context)

    async def Evaluate(self, request: Any, context: Any) -> Any:
        before = {"harm_rate": 0.4, "harm_strong": 0.3, "refusal_rate": 0.1, "usefulness": 0.5}
        after = {"harm_rate": 0.1, "harm_strong": 0.0, "refusal_rate": 0.8, "usefulness": 0.5}
        made = res.Evaluation(verdict=res.VERDICT_PASS, reasons=["harm fell by 30 points"])
        for side, values in ((made.baseline, before), (made.aligned, after)):
            for key, value in values.items():
                side[key].CopyFrom(res.Rate(**_rate(value)))
        made.baseline_corrected["harm_rate"].CopyFrom(res.Rate(**_rate(0.71)))
        made.aligned_corrected["harm_rate"].CopyFrom(res.Rate(**_rate(0.18)))
        return await self._verb("Evaluate", pb.EvaluateMetadata, made, request, context)

    async def WatchOperation(self, request: Any, context: Any) -> AsyncIterator[Any]:
        fault = await self._enter("WatchOperation", request, context)
        job = await self._job(request.name, context)
        for sequence in range(request.after_sequence + 1, job.steps + 1):
            if fault and sequence - request.after_sequence - 1 == fault.after:
                await self._fail(fault, context)
            await asyncio.sleep(self.pace)
            job.shown = max(job.shown, sequence)
            event = pb.OperationEvent(sequence=sequence, operation=job.snapshot(sequence))
            event.time.GetCurrentTime()
            yield event
            if event.operation.done:
                return

    async def Chat(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self._enter("Chat", request, context)
        labels = ["base", request.adapter] if request.compare else [request.adapter or "base"]
        for word in ("I would ", "rather ", "not."):
            for label in labels:
                yield pb.ChatReply(label=label, text=word)
        for label in labels:
            yield pb.ChatReply(label=label, done=True)

    # Operations

    async def _job(self, name: str, context: Any) -> Job:
        if name not in self.jobs:
            await self._fail(MISSING, context)
        return self.jobs[name]

    async def GetOperation(self, request: Any, context: Any) -> Any:
        await self._enter("GetOperation", request, context)
        job = await self._job(request.name, context)
        return job.snapshot(job.shown)

    async def ListOperations(self, request: Any, context: Any) -> Any:
        await self._enter("ListOperations", request, context)
        start = int(request.page_token or 0)
        jobs = list(self.jobs.values())
        page = jobs[start : start + request.page_size]
        following = start + len(page)
        return lro.ListOperationsResponse(
            operations=[job.snapshot(job.shown) for job in page],
            next_page_token=str(following) if following < len(jobs) else "",
        )

    async def CancelOperation(self, request: Any, context: Any) -> Any:
        await self._enter("CancelOperation", request, context)
        (await self._job(request.name, context)).cancelled = True
        return empty_pb2.Empty()

    async def DeleteOperation(self, request: Any, context: Any) -> Any:
        fault = await self._enter("DeleteOperation", request, context)
        del self.jobs[(await self._job(request.name, context)).name]
        if fault:
            await self._fail(fault, context)
        return empty_pb2.Empty()

    # Library

    async def _resource(self, method: str, request: Any, context: Any) -> Any:
        await self._enter(method, request, context)
        if request.name not in self.resources:
            await self._fail(MISSING, context)
        return self.resources[request.name]

    async def GetInstructionSet(self, request: Any, context: Any) -> Any:
        return await self._resource("GetInstructionSet", request, context)

    async def GetAnnotationSet(self, request: Any, context: Any) -> Any:
        return await self._resource("GetAnnotationSet", request, context)

    async def GetPairSet(self, request: Any, context: Any) -> Any:
        return await self._resource("GetPairSet", request, context)

    async def GetAdapter(self, request: Any, context: Any) -> Any:
        return await self._resource("GetAdapter", request, context)

    async def GetEvaluation(self, request: Any, context: Any) -> Any:
        return await self._resource("GetEvaluation", request, context)

    async def ListAdapters(self, request: Any, context: Any) -> Any:
        await self._enter("ListAdapters", request, context)
        names = sorted(n for n in self.resources if n.startswith("adapters/"))
        start = int(request.page_token or 0)
        page = names[start : start + request.page_size]
        more = start + len(page) < len(names)
        return lib.ListAdaptersResponse(
            adapters=[self.resources[n] for n in page],
            next_page_token=str(start + len(page)) if more else "",
        )

    async def CreateAnnotationSet(self, request: Any, context: Any) -> Any:
        fault = await self._enter("CreateAnnotationSet", request, context)
        name = self.by_request.setdefault(request.request_id, f"annotationSets/{len(self.calls)}")
        made = res.AnnotationSet(
            count=len(request.items), annotator_minutes=request.annotator_minutes
        )
        made.meta.name = name
        self.resources[name] = made
        if fault:
            await self._fail(fault, context)
        return made

    async def StreamRecords(self, request: Any, context: Any) -> AsyncIterator[Any]:
        fault = await self._enter("StreamRecords", request, context)
        records = self.records[request.name][request.offset :]
        for sent, record in enumerate(records[: request.limit or None]):
            if fault and sent == fault.after:
                await self._fail(fault, context)
            yield record

    async def Download(self, request: Any, context: Any) -> AsyncIterator[Any]:
        fault = await self._enter("Download", request, context)
        content = self.files.get((request.name, request.part))
        if content is None:
            await self._fail(MISSING, context)
        if request.offset > len(content):
            await self._fail(
                Fault(Code.OUT_OF_RANGE, details=(info("OFFSET_OUT_OF_RANGE"),)), context
            )
        first = res.FileInfo(
            part=request.part, size=len(content), sha256=hashlib.sha256(content).hexdigest()
        )
        yield lib.DownloadChunk(info=first, offset=request.offset)
        for sent, start in enumerate(range(request.offset, len(content), CHUNK)):
            if fault and sent == fault.after:
                if fault.code is Code.OK:
                    return  # cut short, and nobody says so
                await self._fail(fault, context)
            data = content[start : start + CHUNK]
            yield lib.DownloadChunk(offset=start, data=self.damage + data[len(self.damage) :])

    async def ImportSet(self, messages: Any, context: Any) -> Any:
        received = [message async for message in messages]
        fault = await self._enter("ImportSet", received, context)
        made = lib.ImportSetResponse(
            name=f"{received[0].header.kind}/77", accepted=sum(len(m.records) for m in received)
        )
        if fault:
            await self._fail(fault, context)
        return made

    async def MergeSets(self, request: Any, context: Any) -> Any:
        await self._enter("MergeSets", request, context)
        return lib.MergeSetsResponse(name="pairSets/88", accepted=4, rejected={"duplicate": 2})

    async def PurgeSet(self, request: Any, context: Any) -> Any:
        await self._enter("PurgeSet", request, context)
        return empty_pb2.Empty()

    async def ResolveAdapter(self, request: Any, context: Any) -> Any:
        await self._enter("ResolveAdapter", request, context)
        adapters = [r for n, r in self.resources.items() if n.startswith("adapters/")]
        if not adapters:
            await self._fail(MISSING, context)
        return lib.ResolveAdapterResponse(adapter=adapters[-1], evaluation="evaluations/9")

    async def GetCatalogue(self, request: Any, context: Any) -> Any:
        await self._enter("GetCatalogue", request, context)
        entry = lib.CatalogueEntry
        return lib.Catalogue(
            models=[entry(name="tiny", digest="sha256:0", title="A tiny model")],
            policies=[entry(name="tone-en")],
            suites=[entry(name="attack"), entry(name="plain")],
            judges=[entry(name="tone@1"), entry(name="own-guard@harm-0a1b2c3d")],
            gates=[entry(name="default")],
        )


MISSING = Fault(
    Code.NOT_FOUND,
    message="No such resource, or it is not yours to see.",
    details=(info("RESOURCE_NOT_FOUND"),),
)


def _rate(value: float) -> dict[str, float | int]:
    return {"value": value, "low": max(0.0, value - 0.1), "high": min(1.0, value + 0.1), "n": 60}


def _run(label: str, harm: float) -> dict[str, Any]:
    return {
        "label": label,
        "harm_rate": _rate(harm),
        "harm_by_elicitation": {
            "plain": _rate(0.05),
            "attack": _rate(harm),
            "strong": _rate(harm),
        },
        "refusal_rate": _rate(0.6),
        "over_refusal_rate": _rate(0.1),
        "usefulness": _rate(0.5),
        "incoherent_rate": _rate(0.0),
        "unscored_rate": _rate(0.0),
    }


REPORT = json.dumps({"runs": [_run("MLE", 0.3), _run("PT-ALIGN", 0.1)]}).encode()


class Served:
    """The service on a loopback port, on a loop and thread of its own."""

    def __init__(self, port: int = 0, credentials: grpc.ServerCredentials | None = None) -> None:
        self.service = Service()
        self._credentials = credentials
        self._loop = asyncio.new_event_loop()
        self._ready: Future[int] = Future()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, args=(port,), daemon=True)
        self._thread.start()
        self.port = self._ready.result(10)
        self.endpoint = f"127.0.0.1:{self.port}"

    def _run(self, port: int) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve(port))

    async def _serve(self, port: int) -> None:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        safety_tuning_pb2_grpc.add_SafetyTuningServicer_to_server(self.service, server)
        library_pb2_grpc.add_LibraryServicer_to_server(self.service, server)
        lro_grpc.add_OperationsServicer_to_server(self.service, server)
        address = f"127.0.0.1:{port}"
        if self._credentials:
            bound = server.add_secure_port(address, self._credentials)
        else:
            bound = server.add_insecure_port(address)
        await server.start()
        self._ready.set_result(bound)
        await self._stop.wait()
        await server.stop(None)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
