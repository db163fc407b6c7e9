"""The library: everything the operations made, and the operator's catalogues."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

from ptalign_client import wire
from ptalign_client.base import Base, as_path, name_of, names_of, new_request_id
from ptalign_client.download import OnBytes, fetch, inside
from ptalign_client.errors import invalid
from ptalign_client.nouns import (
    Adapter,
    Annotation,
    AnnotationSet,
    Catalogue,
    Evaluation,
    Imported,
    InstructionSet,
    PairSet,
    Record,
    Resolved,
    Resource,
    View,
)
from ptalign_proto.v1 import library_pb2 as pb

R = TypeVar("R", bound=Resource)
IMPORT_BATCH = 200
"""Records per message of an import."""

KINDS: dict[str, type[Resource]] = {
    "instructionSets": InstructionSet,
    "annotationSets": AnnotationSet,
    "pairSets": PairSet,
    "adapters": Adapter,
    "evaluations": Evaluation,
}
"""First part of a resource's name to its noun."""


class Library(Base):
    """The calls of the service ``Library``. Use `AsyncClient`."""

    async def get(self, name: str) -> Resource:
        """Any resource by its name; the name says which kind it is.

        Raises:
            NotFound: No such resource, or not the caller's.
            InvalidArgument: Not a resource's name.
        """
        return await self._get(_kind_of(name), name)

    async def get_instruction_set(self, name: str) -> InstructionSet:
        """One instruction set."""
        return await self._get(InstructionSet, name)

    async def get_annotation_set(self, name: str) -> AnnotationSet:
        """One annotation set."""
        return await self._get(AnnotationSet, name)

    async def get_pair_set(self, name: str) -> PairSet:
        """One pair set."""
        return await self._get(PairSet, name)

    async def get_adapter(self, name: str) -> Adapter:
        """One adapter."""
        return await self._get(Adapter, name)

    async def get_evaluation(self, name: str) -> Evaluation:
        """One evaluation."""
        return await self._get(Evaluation, name)

    def instruction_sets(
        self, *, model: str = "", policy: str = "", page_size: int = 50
    ) -> AsyncGenerator[InstructionSet, None]:
        """All instruction sets, newest first; pages are fetched as they are needed."""
        return self._list(InstructionSet, model, policy, page_size)

    def annotation_sets(
        self, *, model: str = "", policy: str = "", page_size: int = 50
    ) -> AsyncGenerator[AnnotationSet, None]:
        """All annotation sets, newest first."""
        return self._list(AnnotationSet, model, policy, page_size)

    def pair_sets(
        self, *, model: str = "", policy: str = "", page_size: int = 50
    ) -> AsyncGenerator[PairSet, None]:
        """All pair sets, newest first."""
        return self._list(PairSet, model, policy, page_size)

    def adapters(
        self, *, model: str = "", policy: str = "", page_size: int = 50
    ) -> AsyncGenerator[Adapter, None]:
        """All adapters, newest first."""
        return self._list(Adapter, model, policy, page_size)

    def evaluations(
        self, *, model: str = "", policy: str = "", page_size: int = 50
    ) -> AsyncGenerator[Evaluation, None]:
        """All evaluations, newest first."""
        return self._list(Evaluation, model, policy, page_size)

    async def records(
        self,
        name: str | Resource,
        *,
        view: View = "safe",
        purpose: str = "",
        offset: int = 0,
        limit: int = 0,
    ) -> AsyncGenerator[Record, None]:
        """The records of a set in order, or the words that an adapter suppresses.

        Resumed where a connection drops.

        Args:
            name: An instruction set, pair set, annotation set or adapter.
            view: ``safe`` shows harmful instructions and toxic answers as length and hash;
                ``full`` needs the role and a purpose, and leaves an audit record.
            purpose: Why the text is read; required by ``full``.
            offset: Records to skip.
            limit: Records at most; 0: all.
        """
        given = 0

        def rest() -> pb.StreamRecordsRequest:
            return pb.StreamRecordsRequest(
                name=name_of(name),
                view=f"RECORD_VIEW_{view.upper()}",
                purpose=purpose,
                offset=offset + given,
                limit=limit - given if limit else 0,
            )

        async with aclosing(self._stream("library", "StreamRecords", rest)) as messages:
            async for message in messages:
                given += 1
                yield wire.to_noun(Record, message)
                if given == limit:
                    return

    async def download(
        self,
        name: str | Resource,
        part: str,
        to: str | Path,
        *,
        purpose: str = "",
        on_bytes: OnBytes | None = None,
    ) -> Path:
        """Fetches one file of a resource, verified by sha256; a partial file is continued.

        Args:
            name: E.g. an adapter or an evaluation.
            part: E.g. ``adapter_model.safetensors``, ``report.html``, ``export.jsonl``.
            to: The file to write; a folder keeps the part's name.
            purpose: Why harmful text is exported; required where there is some.
            on_bytes: Called with bytes here and bytes in all.

        Raises:
            DownloadDamaged: The bytes do not have the sha256 the server named.
            NotFound: No such resource or part.
        """
        target = as_path(to)
        if target.is_dir():
            target = target / Path(part).name
        return await fetch(self, name_of(name), part, target, purpose, on_bytes)

    async def download_all(
        self, resource: Adapter | Evaluation, to: str | Path
    ) -> tuple[Path, ...]:
        """Fetches every file of an adapter or evaluation into a folder."""
        folder = as_path(to)
        folder.mkdir(parents=True, exist_ok=True)
        fetched = [
            await self.download(resource, f.part, inside(folder, f.part)) for f in resource.files
        ]
        return tuple(fetched)

    async def export(
        self,
        name: str | Resource,
        to: str | Path,
        *,
        format: Literal["jsonl", "parquet"] = "jsonl",
        purpose: str = "",
        on_bytes: OnBytes | None = None,
    ) -> Path:
        """Writes a set in the conversational and preference layouts that TRL reads."""
        part = f"export.{format}"
        return await self.download(name, part, to, purpose=purpose, on_bytes=on_bytes)

    async def import_set(
        self,
        records: Iterable[Record] | Callable[[], Iterable[Record]],
        *,
        kind: Literal["instructionSets", "pairSets"],
        model: str,
        policy: str,
        request_id: str = "",
    ) -> Imported:
        """Makes a set from records of your own.

        Checked are kinds, lengths, topics and their sides, repeats, the never-synthesize list and
        twins that decline. No judge reads the answers: whether they are good and bad is your part.

        Args:
            records: The records, or a function that opens them anew for each retry, so that a
                large file never stands in memory.
            kind: What the set is.
            model: Catalogue name.
            policy: Catalogue name.
            request_id: A UUID of your own.
        """
        header = wire.build(
            pb.ImportHeader,
            request_id=request_id or new_request_id(),
            kind=kind,
            model=model,
            policy=policy,
        )
        opened = records if callable(records) else tuple(records).__iter__

        def messages() -> Iterator[pb.ImportSetRequest]:
            yield pb.ImportSetRequest(header=header)
            rest = enumerate(opened())
            while batch := [
                wire.sent(f"records[{i}]", Record, r) for i, r in islice(rest, IMPORT_BATCH)
            ]:
                yield pb.ImportSetRequest(records=batch)

        made = await self._call("library", "ImportSet", messages)
        return wire.to_noun(Imported, made)

    async def merge(self, names: Sequence[str | Resource], *, request_id: str = "") -> Imported:
        """One set out of 2..50 instruction sets of one language, or pair sets, of one model."""
        request = pb.MergeSetsRequest(
            request_id=request_id or new_request_id(), names=names_of(names, "names")
        )
        return wire.to_noun(Imported, await self._call("library", "MergeSets", request))

    async def purge(self, name: str | Resource, *, reason: str, request_id: str = "") -> None:
        """Destroys a set's record text for good. Counts, digests and the audit record stay."""
        request = wire.build(
            pb.PurgeSetRequest,
            request_id=request_id or new_request_id(),
            name=name_of(name),
            reason=reason,
        )
        await self._call("library", "PurgeSet", request)

    async def annotate(
        self,
        items: Sequence[Annotation],
        *,
        model: str,
        policy: str,
        annotator_minutes: float = 0.0,
        request_id: str = "",
    ) -> AnnotationSet:
        """Keeps fewer than 50 annotations as a set that `synthesize_pairs` takes.

        Args:
            items: The marks.
            model: Catalogue name.
            policy: Catalogue name.
            annotator_minutes: What they cost, for the report.
            request_id: A UUID of your own.
        """
        request = wire.build(
            pb.CreateAnnotationSetRequest,
            request_id=request_id or new_request_id(),
            model=model,
            policy=policy,
            items=wire.all_sent("items", Annotation, items),
            annotator_minutes=annotator_minutes,
        )
        made = await self._call("library", "CreateAnnotationSet", request)
        return wire.to_noun(AnnotationSet, made)

    async def resolve_adapter(self, *, model: str, policy: str) -> Resolved:
        """The newest adapter for a model and policy that PASSed and has not FAILed since.

        One that the operator withdrew is passed over.

        Raises:
            NotFound: `reason` RESOURCE_NOT_FOUND: none has passed, or none passes any more: serve
                the bare model, or nothing. UNKNOWN_NAME: the model or policy; see `known`.
        """
        request = wire.build(pb.ResolveAdapterRequest, model=model, policy=policy)
        return wire.to_noun(Resolved, await self._call("library", "ResolveAdapter", request))

    async def catalogue(self) -> Catalogue:
        """Names the caller may use: models, policies, suites, judges, gates, profiles."""
        found = await self._call("library", "GetCatalogue", pb.GetCatalogueRequest())
        return wire.to_noun(Catalogue, found)

    async def _get(self, kind: type[R], name: str) -> R:
        request = pb.GetResourceRequest(name=name_of(name))
        return wire.to_noun(kind, await self._call("library", f"Get{kind.__name__}", request))

    async def _list(
        self, kind: type[R], model: str, policy: str, page_size: int
    ) -> AsyncGenerator[R, None]:
        token = ""
        while True:
            request = wire.build(
                pb.ListResourcesRequest,
                page_size=page_size,
                page_token=token,
                model=model,
                policy=policy,
            )
            page = await self._call("library", f"List{kind.__name__}s", request)
            items = next(f.name for f in page.DESCRIPTOR.fields if f.name != "next_page_token")
            for item in getattr(page, items):
                yield wire.to_noun(kind, item)
            token = page.next_page_token
            if not token:
                return


def _kind_of(name: str) -> type[Resource]:
    kind = KINDS.get(name_of(name).partition("/")[0])
    if kind is None:
        raise invalid("name", f"{name!r} is not a resource; names start with {', '.join(KINDS)}")
    return kind
