"""What a verb's job works with: its operation, its inputs and the way to report."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ptalign.engines.base import Engine
from ptalign.errors import Cancelled, DataDamaged, Unsupported
from ptalign.nouns import ModelSpec, Noun, Policy, Spent, digest_of
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_server import failpoints, wire
from ptalign_server.catalogue import Catalogue, template_digest
from ptalign_server.errors import SetPartial, UnknownName
from ptalign_server.gateway.weights import SHOWN, same_digest
from ptalign_server.metrics import Metrics
from ptalign_server.settings import Settings
from ptalign_server.store import Store
from ptalign_server.store.operations import Operation
from ptalign_server.store.records import SealedLog
from ptalign_server.store.resources import Resource
from ptalign_server.worker.engines import Pools
from ptalign_server.worker.reporter import Reporter

T = TypeVar("T", bound=Noun)


@dataclass(frozen=True)
class Room:
    """What all jobs of a worker share."""

    settings: Settings
    store: Store
    catalogue: Catalogue
    pools: Pools
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class Made:
    """What a job made: the noun to seal and its wire message, without `meta`."""

    noun: Noun
    message: Any
    config: Any
    parents: tuple[str, ...] = ()
    judges: tuple[str, ...] = ()
    partial: bool = False
    verdict: str = ""
    adapter: str = ""
    model: str = ""
    policy: tuple[str, str] = ("", "")
    """Name and digest of the policy, where the job read none."""
    shortage: str = ""
    """Why the set is below the operator's floor; it is sealed as partial and fails."""


@dataclass(frozen=True)
class Job:
    """One run of one operation."""

    operation: Operation
    request: Any
    room: Room
    reporter: Reporter
    should_stop: Callable[[], bool]
    policies: list[Policy] = field(default_factory=list)
    logs: list[SealedLog[Any]] = field(default_factory=list)
    models: dict[str, ModelSpec] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the resource it makes."""
        return wire.resource_name(self.operation)

    @property
    def folder(self) -> Path:
        """Working folder: checkpoints and drafts that hold no record text."""
        return self.room.store.work(self.operation.id)

    @contextmanager
    def engine(self, model: ModelSpec) -> Iterator[Engine]:
        """An engine of the model, for as long as the block lasts."""
        with self.room.pools.use(model, self.should_stop, self.reporter.waiting) as pool:
            yield failpoints.watch_engine(pool.engine(self.should_stop, self.reporter.waiting))

    def check(self) -> None:
        """Raises `Cancelled` when the operation was told to stop."""
        if self.should_stop():
            raise Cancelled("the operation was cancelled")

    def model(self, name: str) -> ModelSpec:
        """The model's entry, as the operation's first attempt kept it, or this job first read it.

        The operator may change the file meanwhile, and what is made bears the model it is made of.
        """
        if name not in self.models:
            kept = self._kept_model(name)
            self.models[name] = kept if kept is not None else self.room.catalogue.model(name)
        return self.models[name]

    def keep_model(self, name: str) -> ModelSpec:
        """The model to work with, in whatever attempt the one of the first.

        It is sealed beside the log, as the policy is: an entry that is changed meanwhile would
        relabel what was accepted so far, and one that is gone would lose it.

        Raises:
            UnknownName: No attempt has used it yet, and the catalogue has none of that name.
            Unsupported: The catalogue has other weights by now. The earlier ones may be gone, their
                path the others', and what both make would be neither's.
        """
        model = self.model(name)
        if self._kept_model(name) is None:
            self.room.store.sets.keep_model(self.operation.id, model)
            return model
        now = None
        with contextlib.suppress(UnknownName, DataDamaged):  # their weights are not said to differ
            now = self.room.catalogue.model(name)
        if now is not None and not same_digest(model.weights_digest, now):
            raise Unsupported(
                f"model {name} had weights {model.weights_digest[:SHOWN]} when this operation "
                f"began, and has {now.weights_digest[:SHOWN]} by now. It does not go on with "
                "others; what a set accepted so far is kept as partial. Call again, or ask the "
                "operator to put the old ones back first."
            )
        return model

    def _kept_model(self, name: str) -> ModelSpec | None:
        kept = self.room.store.sets.load_model(self.operation.id)
        return kept if kept is not None and kept.name == name else None

    def log(self, *kinds: type[Noun]) -> SealedLog[Any]:
        """The sealed log of what this operation accepts, open until `close`."""
        self.logs.append(self.room.store.sets.log(self.operation.id, *kinds))
        return self.logs[-1]

    def costs(self) -> SealedLog[Spent]:
        """The sealed log of what its drafts cost, open until `close`."""
        costs = self.room.store.sets.costs(self.operation.id)
        self.logs.append(costs)
        return costs

    def close(self) -> None:
        """Closes its files: a stage that was stopped may be held by its own traceback."""
        for log in self.logs:
            log.close()

    def resource(self, name: str) -> Resource:
        """A resource of this tenant."""
        return self.room.store.resources.get(name, self.operation.tenant)

    def load(self, name: str, kind: type[T], *, whole: bool = False) -> T:
        """The noun of a resource, checked against its digest."""
        found = self.resource(name)
        if whole and found.partial:
            raise SetPartial(f"{name} is partial. Finish it with parent={name} first.")
        return self.room.store.sets.load(name, kind, found.content)

    def parent(self, name: str) -> str:
        """``NAME@DIGEST`` of a resource."""
        return f"{name}@{self.resource(name).content}"

    def keep_policy(self, policy: Policy) -> Policy:
        """Remembers the policy in force, to be sealed with what the job makes."""
        self.policies.append(policy)
        return policy

    def policy_of(self, name: str) -> Policy:
        """The policy that a set was made under, as it was then."""
        policy = self.room.store.sets.load_policy(name)
        return self.keep_policy(policy)

    def meta(self, made: Made, digest: str) -> res.ResourceMeta:
        """What every resource says about itself."""
        model = self.model(made.model)
        policy, policy_digest = made.policy
        if self.policies:
            policy, policy_digest = self.policies[-1].name, self.policies[-1].digest
        return res.ResourceMeta(
            name=self.name,
            digest=digest,
            tenant=self.operation.tenant,
            create_time=wire.timestamp(self.operation.created),
            model=model.name,
            model_digest=model.weights_digest,
            policy=policy,
            policy_digest=policy_digest,
            parents=made.parents,
            config_digest=digest_of(made.config.model_dump(mode="json")),
            template_digest=template_digest(model),
            judges=made.judges,
            partial=made.partial,
            operation=wire.operation_name(self.operation.id),
            made_by=self.operation.identity,
        )
