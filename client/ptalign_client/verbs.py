"""The four verbs, the operations they start, and a chat to look at what they made."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, get_args

from google.longrunning import operations_pb2

from ptalign_client import wire
from ptalign_client.base import Base, name_of, new_request_id
from ptalign_client.errors import invalid
from ptalign_client.nouns import (
    Adapter,
    Annotation,
    AnnotationSet,
    Budget,
    Candidates,
    ChatMessage,
    ChatPiece,
    Evaluation,
    GateSpec,
    InstructionSet,
    Lora,
    Method,
    PairSet,
    PolicySpec,
    Scorer,
    State,
    Target,
)
from ptalign_client.operation import AsyncOperation
from ptalign_proto.v1 import library_pb2
from ptalign_proto.v1 import safety_tuning_pb2 as pb


class Verbs(Base):
    """The calls of the service ``SafetyTuning``. Use `AsyncClient`.

    Every verb takes `dry_run` (validation and an estimate, no work: see `Progress.estimate`) and
    `request_id` (a UUID; one is made for each call unless given, so retries are safe within a
    call; give your own to make them safe across processes).
    """

    async def generate_instructions(
        self,
        *,
        model: str,
        policy: str | PolicySpec,
        count: int,
        seeds: Sequence[str] = (),
        excerpts: Sequence[str] = (),
        locale: str = "",
        twins: bool | None = None,
        topics: Sequence[str] = (),
        parent: str | InstructionSet = "",
        seed: int = 0,
        dry_run: bool = False,
        request_id: str = "",
    ) -> AsyncOperation[InstructionSet]:
        """Lets the model write safety-relevant instructions over the policy's topics.

        Args:
            model: Catalogue name.
            policy: Catalogue name, or a policy written here.
            count: Accepted harmful instructions wanted: 1..20000, beside those of `parent`.
            seeds: Instructions of your own: they come first, after the same checks, and are part
                of `count`; the model does not see them. `rejected` counts those left out.
            excerpts: Requests from chat logs (not the replies), up to 60 words each (150
                characters of Japanese), after the seeds and like them, one of each cluster; the
                server redacts them before it stores them. Placeholders of your own redaction must
                be in capitals, as ``[EMAIL]``.
            locale: BCP 47; the policy's unless set.
            twins: A benign twin for each, those of `parent` too; on unless set.
            topics: A subset of the policy's topic ids; all unless set.
            parent: An earlier set to extend: the new one holds its records too, but for those that
                the policy lists as never to be written. The policy must have their topics, with the
                same sides.
            seed: Which topics, tactics and openers come first: 0..4294967295. What the model writes
                is not seeded.
            dry_run: Validate and estimate only.
            request_id: A UUID of your own.
        """
        request = wire.build(
            pb.GenerateInstructionsRequest,
            request_id=request_id or new_request_id(),
            dry_run=dry_run,
            model=model,
            policy=policy if isinstance(policy, str) else None,
            policy_spec=_spec("policy", PolicySpec, policy),
            count=_natural("count", count, 1, 20_000),
            seeds=seeds,
            excerpts=excerpts,
            locale=locale,
            **({} if twins is None else {"twins": twins}),
            topics=topics,
            parent=name_of(parent, "parent"),
            seed=_natural("seed", seed),
        )
        return await self._start("GenerateInstructions", request)

    async def synthesize_pairs(
        self,
        *,
        model: str,
        instruction_set: str | InstructionSet,
        annotations: str | AnnotationSet | Sequence[Annotation] = (),
        rounds: int | None = None,
        min_polarity: float | None = None,
        parent: str | PairSet = "",
        anchors: int | None = None,
        seed: int = 0,
        dry_run: bool = False,
        request_id: str = "",
    ) -> AsyncOperation[PairSet]:
        """Lets the model answer each instruction twice, well and badly, refined by rounds.

        Args:
            model: Catalogue name.
            instruction_set: What `generate_instructions` made, with this model or another.
            annotations: An annotation set, or fewer than 50 annotations.
            rounds: 1..8; 2 unless set.
            min_polarity: judge(toxic) - judge(positive) at least: 0..1; 0.6 unless set. The
                parent's pairs below it are written anew.
            parent: An earlier pair set to refine: the new one holds its anchors too.
            anchors: Benign instructions with the model's own answers; 40 unless set.
            seed: Which opener each positive starts with, and where in the benign instructions the
                anchors begin: 0..4294967295. What the model writes is not seeded.
            dry_run: Validate and estimate only.
            request_id: A UUID of your own.
        """
        named = isinstance(annotations, str | AnnotationSet)
        request = wire.build(
            pb.SynthesizePairsRequest,
            request_id=request_id or new_request_id(),
            dry_run=dry_run,
            model=model,
            instruction_set=name_of(instruction_set, "instruction_set"),
            annotation_set=name_of(annotations) if named and annotations else None,
            annotations=_inline(annotations) if not named and annotations else None,
            rounds=_chosen("rounds", rounds, 1, 8),
            min_polarity=min_polarity,
            parent=name_of(parent, "parent"),
            anchors=None if anchors is None else _natural("anchors", anchors, 0, 2000),
            seed=_natural("seed", seed),
        )
        return await self._start("SynthesizePairs", request)

    async def align(
        self,
        *,
        model: str,
        pair_set: str | PairSet,
        method: Method = "pt_align",
        parent_adapter: str | Adapter = "",
        ut_weight: float | None = None,
        token_weighting: Scorer = "blend",
        flagged_share: float | None = None,
        ut_candidates: Candidates = "set",
        protected_words: Sequence[str] = (),
        lora: Lora | None = None,
        budget: Budget | None = None,
        guards: str = "",
        seed: int = 0,
        resume_from: str = "",
        dry_run: bool = False,
        request_id: str = "",
    ) -> AsyncOperation[Adapter]:
        """Trains an adapter: MLE on the good answers, fine-grained unlikelihood on the bad ones.

        Args:
            model: Catalogue name.
            pair_set: What `synthesize_pairs` made.
            method: ``pt_align``, ``ut_uniform``, ``mle``, ``dpo`` or ``npo``.
            parent_adapter: Train on from this one, in its shape: leave `lora` out.
            ut_weight: lambda, above 0; automatic unless set; ``pt_align`` and ``ut_uniform``.
            token_weighting: Which toxic tokens count, and how much.
            flagged_share: 0.05..0.25 of the toxic tokens; 0.2 unless set.
            ut_candidates: Which tokens unlikelihood suppresses: ``written``, only the flagged
                word at its own position, or ``set``, also the set's other harm words, at every
                position of a bad answer.
            protected_words: Words that are never suppressed.
            lora: Shape of the adapter.
            budget: Steps, batch, learning rate and the limit on benign KL.
            guards: ``abort`` (unless set) or ``record``.
            seed: Of the sampler and the adapter's start.
            resume_from: A cancelled or failed Align operation with the same inputs; `guards` may
                differ.
            dry_run: Validate and estimate only.
            request_id: A UUID of your own.
        """
        request = wire.build(
            pb.AlignRequest,
            request_id=request_id or new_request_id(),
            dry_run=dry_run,
            model=model,
            pair_set=name_of(pair_set, "pair_set"),
            parent_adapter=name_of(parent_adapter, "parent_adapter"),
            method=_method(method),
            ut_weight=ut_weight,
            token_weighting=token_weighting,
            flagged_share=flagged_share,
            ut_candidates=ut_candidates,
            protected_words=protected_words,
            lora=wire.sent("lora", Lora, lora) if lora else None,
            budget=wire.sent("budget", Budget, budget) if budget else None,
            guards=guards,
            seed=_natural("seed", seed),
            resume_from=resume_from,
        )
        return await self._start("Align", request)

    async def evaluate(
        self,
        *,
        target: Target | Adapter | str,
        baseline: Target | Adapter | str | None = None,
        suites: Sequence[str] = (),
        judges: Sequence[str] = (),
        gate: str | GateSpec | None = None,
        samples: int = 0,
        pair_set: str | PairSet = "",
        also: Sequence[Target | Adapter | str] = (),
        held_out: str | InstructionSet = "",
        seed: int = 0,
        dry_run: bool = False,
        request_id: str = "",
    ) -> AsyncOperation[Evaluation]:
        """Measures harm, over-refusal and usefulness before and after, on the same prompts.

        Args:
            target: What to judge: an adapter, its name (one more call asks for its model), or a
                model bare or with an adapter.
            baseline: What to compare it with; the bare model unless set.
            suites: Catalogue names; the default suites unless set: ``attack``, ``strong``,
                ``plain``, ``twins``, ``xstest-safe``, ``ordinary`` and ``ifeval``.
            judges: Catalogue names; the default judge of each axis unless one is named for it.
            gate: Catalogue name, or limits written here; the server's default unless set.
            samples: Prompts per suite at most; 60 on the CPU profile, 200 on the GPU one, unless
                set. ``twins`` and ``xstest-safe`` ask half of it, ``ifeval`` 85 %.
            pair_set: An additional pair set. Its requests are excluded from the prompts and its
                judges from grading. Benign KL is measured on it if the text of the adapter's own
                set is gone. Training sets are always excluded.
            also: Shown beside, e.g. an adapter trained by MLE only.
            held_out: An instruction set of the policy that nothing was trained on, whichever model
                wrote it: its requests are asked as the suites ``held-out-*``, beside the default
                ones; where `suites` are named, one of these must be among them.
            seed: Of the choice of prompts.
            dry_run: Validate and estimate only.
            request_id: A UUID of your own.
        """
        request = wire.build(
            pb.EvaluateRequest,
            request_id=request_id or new_request_id(),
            dry_run=dry_run,
            target=await self._target("target", target),
            baseline=await self._target("baseline", baseline) if baseline else None,
            suites=suites,
            judges=judges,
            gate=gate if isinstance(gate, str) else None,
            gate_spec=None if gate is None else _spec("gate", GateSpec, gate),
            samples=_natural("samples", samples, 1, 100_000),
            pair_set=name_of(pair_set, "pair_set"),
            also=await self._targets("also", also),
            held_out=name_of(held_out, "held_out"),
            seed=_natural("seed", seed),
        )
        return await self._start("Evaluate", request)

    def operation(self, name: str) -> AsyncOperation[Any]:
        """The handle of an operation that already runs, or ran. Sends nothing."""
        full = name if name.startswith("operations/") else f"operations/{name}"
        return AsyncOperation(self, full)

    async def operations(
        self, *, kind: str = "", state: State | str = "", page_size: int = 50
    ) -> AsyncGenerator[AsyncOperation[Any], None]:
        """All operations, newest first; pages are fetched as they are needed.

        Args:
            kind: Only this verb, e.g. ``Align``.
            state: Only this state, e.g. ``running``.
            page_size: Operations per call.
        """
        token = ""
        while True:
            page = await self._call(
                "operations",
                "ListOperations",
                operations_pb2.ListOperationsRequest(
                    filter=_filter(kind, str(state)), page_size=page_size, page_token=token
                ),
            )
            for item in page.operations:
                yield AsyncOperation(self, item.name, item)
            token = page.next_page_token
            if not token:
                return

    async def chat(
        self,
        messages: str | Sequence[ChatMessage],
        *,
        model: str,
        adapter: str | Adapter = "",
        compare: bool = False,
        max_tokens: int = 0,
    ) -> AsyncGenerator[ChatPiece, None]:
        """One chat turn, piece by piece. For looking, not for serving: nothing is stored.

        Args:
            messages: What the user says, or the turns so far.
            model: Catalogue name.
            adapter: Answer with this adapter; the bare model unless set.
            compare: The bare model answers beside the adapter.
            max_tokens: 256 unless set.
        """
        if isinstance(messages, str):
            messages = [ChatMessage(role="user", content=messages)]
        request = wire.build(
            pb.ChatRequest,
            model=model,
            adapter=name_of(adapter, "adapter"),
            messages=wire.all_sent("messages", ChatMessage, messages, "a text"),
            max_tokens=_natural("max_tokens", max_tokens, 1, 2048),
            compare=compare,
        )
        async with aclosing(self._transport.stream("tuning", "Chat", request)) as stream:
            async for message in stream:
                yield wire.to_noun(ChatPiece, message)

    async def _target(self, field: str, given: Target | Adapter | str) -> Any:
        """The message of what is evaluated; an adapter that was only named is looked up."""
        if isinstance(given, str):
            given = await self._adapter(field, given)
        if isinstance(given, Adapter):
            # Those beside are labelled by the server, which numbers what has the same method.
            label = "" if field.startswith("also") else given.method
            given = Target(model=given.model, adapter=given.name, label=label)
        return wire.sent(field, Target, given, "an Adapter, its name")

    async def _targets(self, field: str, given: Any) -> list[Any]:
        """The messages of a list of them; None is an empty list, as for the suites."""
        if given is None:
            return []
        if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
            raise invalid(field, "must be a list of adapters or targets. Send [...].")
        return [await self._target(f"{field}[{i}]", item) for i, item in enumerate(given)]

    async def _adapter(self, field: str, name: str) -> Adapter:
        if not name.startswith("adapters/"):
            raise invalid(
                field,
                f"{name[:80]!r} is not an adapter's name. Send adapters/ID, an Adapter, "
                "or Target(model=...) for a bare model.",
            )
        request = library_pb2.GetResourceRequest(name=name)
        return wire.to_noun(Adapter, await self._call("library", "GetAdapter", request))

    async def _start(self, method: str, request: Any) -> AsyncOperation[Any]:
        operation = await self._call("tuning", method, request)
        return AsyncOperation(self, operation.name, operation)


def _filter(kind: str, state: str) -> str:
    parts = [f'kind="{kind}"'] if kind else []
    parts += [f'state="{state.upper()}"'] if state else []
    return " AND ".join(parts)


def _natural(field: str, value: int, low: int = 0, high: int = 2**32 - 1) -> int:
    """The value, when the wire can carry it; the server checks the limits, which may move.

    Args:
        field: Its name in the call.
        value: What was passed; 0 is the server's default where `low` is 1.
        low: Lower limit, as words for the error.
        high: Upper limit, as words for the error.

    Raises:
        InvalidArgument: Not a whole number, a negative one, or one above 32 bits.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        found = "text" if isinstance(value, str) else type(value).__name__
        raise invalid(field, f"must be a whole number in {low}..{high}, not {found}")
    if not 0 <= value < 2**32:
        raise invalid(field, f"must be {low}..{high}, got {value}")
    return value


def _chosen(field: str, value: int | None, low: int, high: int) -> int:
    """The value for the wire, where 0 is the server's default, which here is None.

    Raises:
        InvalidArgument: See `_natural`; or 0, which means something else to who writes it.
    """
    if value is None:
        return 0
    if value == 0:
        raise invalid(field, f"must be {low}..{high}, got 0. Leave it out for the default")
    return _natural(field, value, low, high)


def _method(method: str) -> str:
    if method not in get_args(Method):
        known = ", ".join(get_args(Method))
        raise invalid("method", f"{method!r} is not a method. Send one of: {known}")
    return f"METHOD_{method.upper()}"


def _spec(field: str, kind: type, given: Any) -> Any:
    """The message of what is written in the call; None when it is a name."""
    return None if isinstance(given, str) else wire.sent(field, kind, given, "a name")


def _inline(annotations: Any) -> pb.Annotations:
    items = wire.all_sent("annotations", Annotation, annotations, "an AnnotationSet, its name")
    return pb.Annotations(items=items)
