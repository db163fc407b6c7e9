"""The service Library: resources, records, files, catalogues."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from google.protobuf import empty_pb2

from ptalign.judges import judge_names
from ptalign.nouns import digest_of
from ptalign_proto.v1 import library_pb2 as lib
from ptalign_proto.v1 import library_pb2_grpc as rpc
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_server.catalogue import Catalogue
from ptalign_server.gateway import imports, marking, merges, purge, reading
from ptalign_server.gateway.identity import caller
from ptalign_server.gateway.operations import page_size
from ptalign_server.gateway.release import newest_released
from ptalign_server.profiles import PROFILES
from ptalign_server.store import Store
from ptalign_server.wire import COLLECTIONS


class Library(rpc.LibraryServicer):  # type: ignore[misc]
    """Serves what the operations made; see the .proto for what each call means."""

    def __init__(self, store: Store, catalogue: Catalogue) -> None:
        self._store = store
        self._catalogue = catalogue

    async def GetInstructionSet(self, request: Any, context: Any) -> Any:
        return await self._get(request, "instructionSets")

    async def GetAnnotationSet(self, request: Any, context: Any) -> Any:
        return await self._get(request, "annotationSets")

    async def GetPairSet(self, request: Any, context: Any) -> Any:
        return await self._get(request, "pairSets")

    async def GetAdapter(self, request: Any, context: Any) -> Any:
        return await self._get(request, "adapters")

    async def GetEvaluation(self, request: Any, context: Any) -> Any:
        return await self._get(request, "evaluations")

    async def ListInstructionSets(self, request: Any, context: Any) -> Any:
        found, token = await self._list(request, "instructionSets")
        return lib.ListInstructionSetsResponse(instruction_sets=found, next_page_token=token)

    async def ListAnnotationSets(self, request: Any, context: Any) -> Any:
        found, token = await self._list(request, "annotationSets")
        return lib.ListAnnotationSetsResponse(annotation_sets=found, next_page_token=token)

    async def ListPairSets(self, request: Any, context: Any) -> Any:
        found, token = await self._list(request, "pairSets")
        return lib.ListPairSetsResponse(pair_sets=found, next_page_token=token)

    async def ListAdapters(self, request: Any, context: Any) -> Any:
        found, token = await self._list(request, "adapters")
        return lib.ListAdaptersResponse(adapters=found, next_page_token=token)

    async def ListEvaluations(self, request: Any, context: Any) -> Any:
        found, token = await self._list(request, "evaluations")
        return lib.ListEvaluationsResponse(evaluations=found, next_page_token=token)

    async def CreateAnnotationSet(
        self, request: lib.CreateAnnotationSetRequest, context: Any
    ) -> Any:
        name = await marking.annotate(request, caller(), self._store, self._catalogue)
        return await self._get(lib.GetResourceRequest(name=name), "annotationSets")

    async def StreamRecords(
        self, request: lib.StreamRecordsRequest, context: Any
    ) -> AsyncIterator[lib.Record]:
        async for record in reading.stream(request, caller(), self._store):
            yield record

    async def Download(
        self, request: lib.DownloadRequest, context: Any
    ) -> AsyncIterator[lib.DownloadChunk]:
        async for chunk in reading.download(request, caller(), self._store):
            yield chunk

    async def ImportSet(self, requests: Any, context: Any) -> lib.ImportSetResponse:
        return await imports.take_in(requests, caller(), self._store, self._catalogue)

    async def MergeSets(self, request: Any, context: Any) -> lib.MergeSetsResponse:
        return await merges.merge(request, caller(), self._store, self._catalogue)

    async def PurgeSet(self, request: Any, context: Any) -> empty_pb2.Empty:
        await purge.purge(request, caller(), self._store)
        return empty_pb2.Empty()

    async def ResolveAdapter(
        self, request: lib.ResolveAdapterRequest, context: Any
    ) -> lib.ResolveAdapterResponse:
        model = self._catalogue.model(request.model)
        await asyncio.to_thread(self._catalogue.policies.check, request.policy)
        tenant = caller().tenant
        adapter, evaluation = await asyncio.to_thread(
            newest_released, self._store, self._catalogue, tenant, model, request.policy
        )
        return lib.ResolveAdapterResponse(
            adapter=res.Adapter.FromString(adapter.body), evaluation=evaluation.name
        )

    async def GetCatalogue(self, request: Any, context: Any) -> lib.Catalogue:
        return await asyncio.to_thread(catalogue_message, self._catalogue)

    async def _get(self, request: lib.GetResourceRequest, collection: str) -> Any:
        found = await reading.look_up(self._store, request.name, collection, caller().tenant)
        return COLLECTIONS[collection].FromString(found.body)

    async def _list(
        self, request: lib.ListResourcesRequest, collection: str
    ) -> tuple[list[Any], str]:
        size, tenant = page_size(request.page_size), caller().tenant
        rows = await self._store.glances.read(
            lambda tables: tables.resources.page(
                tenant,
                collection,
                size + 1,
                before=request.page_token,
                model=request.model,
                policy=request.policy,
            ),
            size,
        )
        found = [COLLECTIONS[collection].FromString(row.body) for row in rows[:size]]
        return found, rows[size - 1].name if len(rows) > size else ""


def catalogue_message(catalogue: Catalogue) -> lib.Catalogue:
    """Names the caller may use, with the digest of what stands behind each."""
    entry = lib.CatalogueEntry
    return lib.Catalogue(
        models=[
            entry(name=m.name, digest=m.weights_digest, title=m.revision)
            for m in catalogue.models.values()
        ],
        policies=[
            entry(name=n, digest=p.digest, title=f"{len(p.topics)} topics, {p.locale}")
            for n, p in catalogue.policies.usable.items()
        ],
        suites=[
            entry(name=n, digest=s.digest, title=s.measure) for n, s in catalogue.suites.items()
        ],
        judges=[
            *(entry(name=name) for name in judge_names()),
            *(
                entry(name=own.id, digest=own.digest, title=f"{own.axis}, {own.family}")
                for own in catalogue.own_judges.entries.usable.values()
            ),
        ],
        gates=[
            entry(name=n, digest=digest_of(g.model_dump(mode="json")))
            for n, g in catalogue.gates.items()
        ],
        profiles=[entry(name=n) for n in PROFILES],
    )
