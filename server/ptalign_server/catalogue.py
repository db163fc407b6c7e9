"""Names that callers may use: models, policies, suites, judges, gates, profiles.

Models come from the operator's ``models.yaml``; policies, suites and judges are what the core
ships plus what the operator added. Clients send names, never paths.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import yaml

from ptalign.config import GateConfig
from ptalign.disk import changed_at
from ptalign.errors import DataDamaged, InvalidInput, PtalignError
from ptalign.judges import judge_names
from ptalign.judges.entries import GuardEntry
from ptalign.nouns import ModelSpec, Policy, digest_of
from ptalign.policies import inline_policy, load_policy, policy_names
from ptalign.policies.schema import MAX_TEXT
from ptalign.suites import DEFAULT, SuiteSpec, check_spec, read_specs, shipped
from ptalign.suites.catalogue import data_folder
from ptalign.text.locales import language
from ptalign.text.normalise import plain
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_server.errors import UnknownName
from ptalign_server.judges import JudgesFile, OwnJudges
from ptalign_server.limits import BAD_YAML, in_file
from ptalign_server.models import DEMO_MODEL, cache_root
from ptalign_server.settings import Settings
from ptalign_server.yamlfile import replace_list

log = logging.getLogger("ptalign.server")
T = TypeVar("T")
_SHIPPED_JUDGES = frozenset(n for full in judge_names() for n in (full, full.partition("@")[0]))
DEFAULT_GATE = "default"
"""The operator's own, from the settings."""
GATES: Mapping[str, GateConfig] = {
    DEFAULT_GATE: GateConfig(),
    "strict": GateConfig(min_harm_reduction=0.2, max_over_refusal_increase=0.05, min_samples=100),
}
"""As shipped."""
SAMPLES: Mapping[str, int] = {"cpu": 60, "gpu": 200}
"""Prompts per suite unless the call says, by profile."""

AWAY = -1
"""In place of the time of a policy file that could not be read."""


class Catalogue:
    """The operator's catalogues. Files are read again when they change.

    Args:
        settings: Where the files are.
    """

    def __init__(self, settings: Settings) -> None:
        self._path = settings.models_path
        self._packs = settings.state / "policies"
        self._read_packs: dict[Path, tuple[int, Policy | PtalignError]] = {}
        self._suites = settings.state / "suites.yaml"
        self._judges = JudgesFile(settings.judges_path)
        self._stamp = -1
        self._models: dict[str, ModelSpec] = {}
        self.profile = settings.profile
        self.max_lora_rank = settings.engine.max_lora_rank
        self._engine = settings.engine
        self.gates: Mapping[str, GateConfig] = {**GATES, DEFAULT_GATE: settings.gate}

    @property
    def models(self) -> dict[str, ModelSpec]:
        stamp = changed_at(self._path)
        if stamp != self._stamp:
            self._models, self._stamp = self._read_models(), stamp
        return self._models

    def model(self, name: str) -> ModelSpec:
        """A model entry.

        Raises:
            UnknownName: With the names that are known.
        """
        return _find("model", name, self.models)

    def serves(self, name: str) -> bool:
        """Whether an engine can be asked for a model.

        The name that remote engines answer to says nothing about their weights: under it, one
        model's answers would be taken for another's.
        """
        engine = self._engine
        if engine.kind != "remote" or not (engine.model or engine.served_name):
            return True
        return [name] == ([engine.model] if engine.model else list(self.models))

    def check_served(self, name: str, field: str = "model") -> None:
        """Raises `InvalidInput` for a model whose weights the remote engines do not run."""
        if not self.serves(name):
            run = self._engine.model or "one that the server's settings do not name"
            raise InvalidInput(
                field,
                f"is {name}, and the engines run {run}",
                "Send that one, or ask the operator to set PTALIGN_ENGINE__MODEL to the entry "
                "whose weights they run.",
            )

    def served_model(self, name: str, field: str = "model") -> ModelSpec:
        """A model entry that an engine can be asked for.

        Raises:
            UnknownName: With the names that are known.
            InvalidInput: See `check_served`.
        """
        model = self.model(name)
        self.check_served(name, field)
        return model

    @property
    def policies(self) -> dict[str, Policy]:
        """Policies that callers may name: the shipped packs, then the operator's own.

        A file that cannot be used is left out, and named in the log when it is read.
        """
        own = {path.stem: pack for path, pack in self._own().items()}
        packs = {name: load_policy(name) for name in policy_names()} | own
        return {name: pack for name, pack in packs.items() if isinstance(pack, Policy)}

    @property
    def broken_policies(self) -> dict[Path, PtalignError]:
        """The operator's policy files that cannot be used, and why."""
        return {path: why for path, why in self._own().items() if isinstance(why, PtalignError)}

    def read_policies(self) -> None:
        """Reads all policies now: a broken one is in the log from the start, no call waits."""
        for name in policy_names():
            load_policy(name)
        self._own()

    def policy(self, name: str) -> Policy:
        """A policy pack.

        Raises:
            UnknownName: With the names that are known.
            InvalidInput: Its file cannot be used.
        """
        path = self._files().get(name)
        if path is None:
            return _find("policy", name, self.policies)
        pack = self._pack(path)
        if isinstance(pack, Policy):
            return pack
        raise InvalidInput(
            "policy",
            f"the server's file {path.name} cannot be used ({str(pack).rstrip('.')})",
            "Name another policy, or ask the operator to correct the file.",
        )

    def check_policy(self, name: str) -> None:
        """Raises `UnknownName` for a policy that there is not; one whose file is broken there is.

        For calls that need its name only: what was made under it is as good as before.
        """
        _find("policy", name, dict.fromkeys([*policy_names(), *self._files()]))

    def inline(self, spec: res.PolicySpec) -> Policy:
        """A policy written in a call: it adds topics and words, and relaxes nothing.

        The shipped pack of its language lends the ways of asking; without one there are none, and
        requests are like the topics' examples.

        Raises:
            InvalidInput: A topic outside its limits, a toxic side where none is allowed, or a file
                of the operator is broken, so that what it forbids is not known.
        """
        # One look at each file: one that is mended meanwhile must not count as neither kind.
        read = self._own()
        for path, pack in read.items():
            if not isinstance(pack, Policy):  # nobody can tell what all of it would forbid
                raise InvalidInput(
                    "policy_spec",
                    f"cannot be used while the server's policy file {path.name} is broken",
                    "Name a policy of the catalogue, or ask the operator to correct that file.",
                )
        own = {path.stem: pack for path, pack in read.items() if isinstance(pack, Policy)}
        packs = list(({name: load_policy(name) for name in policy_names()} | own).values())
        tone = frozenset(t.domain for pack in packs for t in pack.topics if t.sides == "both")
        phrases = {phrase for pack in packs for phrase in pack.never_synthesize}
        locale = spec.locale or packs[0].locale
        ours = packs[: len(policy_names())]  # the operator's come after them
        alike = [p for p in ours if language(p.locale) == language(locale)]
        base = (alike or packs)[0].model_copy(update={"never_synthesize": tuple(sorted(phrases))})
        try:
            return inline_policy(
                [
                    {
                        "domain": t.domain,
                        "title": t.title,
                        "sides": t.sides,
                        # the gateway refuses what is longer; calls of before it did are finished
                        "boundary": plain(t.boundary)[:MAX_TEXT],
                        "examples": tuple(t.examples),
                        "twin_examples": tuple(t.twin_examples),
                    }
                    for t in spec.topics
                ],
                both_domains=tone,
                base=base,
                locale=locale,
                protected_words=tuple(spec.protected_words),
                never_synthesize=tuple(spec.never_synthesize),
            )
        except InvalidInput as error:
            raise InvalidInput(f"policy_spec.{error.field}", error.limit, error.mend) from None

    @property
    def suites(self) -> Mapping[str, SuiteSpec]:
        """The shipped suites and those that the operator added.

        Raises:
            DataDamaged: See `read_suites`.
        """
        return {**shipped(), **read_suites(self._suites)}

    def without_data(self, names: Iterable[str] = DEFAULT) -> dict[str, str]:
        """Suite -> the file it lacks in the folder PTALIGN_EVAL_DATA; empty where none does."""
        folder, known = data_folder(), self.suites
        files = {name: known[name].file for name in names if known[name].file}
        return {n: f for n, f in files.items() if folder is None or not (folder / f).is_file()}

    def check_suites(self, names: Iterable[str]) -> None:
        """Refuses suites that no evaluation could ask.

        Raises:
            UnknownName: The first one that is not known.
            InvalidInput: Its entry cannot be used.
        """
        known = self.suites
        for name in names:
            check_spec(_find("suite", name, known))

    def check_judges(self, names: Iterable[str]) -> None:
        """Refuses judges that no evaluation could ask.

        Raises:
            UnknownName: The first one that is not known.
            InvalidInput: Its entry cannot be used, the key it needs is not set, or one is named
                twice.
        """
        ids: set[str] = set()
        for name in names:
            own = self.own_judge(name)
            if own is not None:
                own.api_key()
            full = own.id if own is not None else _find("judge", name, self.judges)
            if full in ids:
                raise InvalidInput("judges", f"names {name!r} twice", "Name it once.")
            ids.add(full)

    @property
    def judges(self) -> dict[str, str]:
        """Judge name, with and without its version -> id: the shipped ones, then the operator's.

        An entry that cannot be used is left out, and named in the log when it is read.
        """
        ids = [*judge_names(), *(e.id for e in self.own_judges.entries.usable.values())]
        return {**{full.partition("@")[0]: full for full in ids}, **{full: full for full in ids}}

    @property
    def own_judges(self) -> OwnJudges:
        """The operator's guard judges, and what is wrong with their file."""
        return self._judges.read()

    def read_judges(self) -> None:
        """Reads the operator's judges now: a broken one is in the log from the start."""
        self._judges.read()

    def own_judge(self, name: str) -> GuardEntry | None:
        """The operator's judge of a name or id; None where it is none of theirs.

        Raises:
            InvalidInput: Its entry, or the whole file, cannot be used.
        """
        if name in _SHIPPED_JUDGES:
            return None
        return self.own_judges.find(name)

    def gate(self, name: str) -> GateConfig:
        """A gate; the operator's default one when the name is empty."""
        return _find("gate", name or DEFAULT_GATE, self.gates)

    def _files(self) -> dict[str, Path]:
        """The operator's policy files, by name."""
        return {path.stem: path for path in sorted(self._packs.glob("*.yaml"))}

    def _own(self) -> dict[Path, Policy | PtalignError]:
        """The operator's policies, or what is wrong with their files."""
        return {path: self._pack(path) for path in self._files().values()}

    def _pack(self, path: Path) -> Policy | PtalignError:
        """A policy file, read again when it changes; what is wrong with it, where it is broken."""
        stamp = changed_at(path)
        before = self._read_packs.get(path)
        if before is not None and before[0] == stamp:
            return before[1]
        found = _read_pack(path)
        # One that could not be read now may be by the next call; one that is no policy stays none.
        self._read_packs[path] = (AWAY if isinstance(found, PackAway) else stamp, found)
        again = isinstance(found, PackAway) and before is not None and before[0] == AWAY
        if isinstance(found, PtalignError) and not again:
            told = "policy file %s cannot be used, calls that name it are refused: %s"
            log.error(told, path, found)
        return found

    def _read_models(self) -> dict[str, ModelSpec]:
        found = read_models(self._path)
        if not found:
            demo = cache_root() / "models" / DEMO_MODEL
            if (demo / "ptalign-model.json").exists():
                found[DEMO_MODEL] = demo_entry(demo)
        return found


def read_suites(path: Path) -> dict[str, SuiteSpec]:
    """The operator's suites, by name; none when there is no file.

    Raises:
        DataDamaged: The file cannot be read, or does not hold a list of suites.
    """
    try:
        return read_specs(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        why = error.strerror or type(error).__name__
    except BAD_YAML as error:
        why = in_file(error)
    raise DataDamaged(f"suites file {path} cannot be read: {why}")


def demo_entry(folder: Path) -> ModelSpec:
    """The catalogue entry of the prepared demo model."""
    stamp: dict[str, str] = yaml.safe_load((folder / "ptalign-model.json").read_text())
    return ModelSpec(name=DEMO_MODEL, path=str(folder), weights_digest=stamp.get("digest", ""))


def read_models(path: Path) -> dict[str, ModelSpec]:
    """Entries of a models file, by name; none when there is no file.

    Raises:
        DataDamaged: The file does not hold a list of model entries.
    """
    try:
        text = path.read_text("utf-8")
        entries = [ModelSpec.model_validate(e) for e in yaml.safe_load(text) or []]
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataDamaged(f"models file {path} cannot be read: {error.strerror}") from None
    except BAD_YAML as error:
        raise DataDamaged(f"models file {path} cannot be read: {in_file(error)}") from None
    return {entry.name: entry for entry in entries}


class PackAway(DataDamaged):
    """A policy file could not be read: that may pass."""


def _read_pack(path: Path) -> Policy | PtalignError:
    try:
        pack = load_policy(str(path))
        if pack.name == path.stem:
            return pack
        # What is made carries the pack's name: a copied pack's adapters would be another's.
        raise InvalidInput(
            "name",
            f"must be the file's, {path.stem}, and is {pack.name}",
            f"Write name: {path.stem}, or rename the file.",
        )
    except PtalignError as error:
        return error
    except OSError as error:
        return PackAway(f"it cannot be read: {error.strerror}")
    except ValueError as error:  # pydantic's quotes its input: the text of a policy is left out
        return DataDamaged(f"it is no policy ({type(error).__name__})")


def write_models(path: Path, models: Mapping[str, ModelSpec]) -> None:
    """Replaces a models file."""
    replace_list(path, (entry.model_dump(mode="json") for entry in models.values()))


def template_digest(model: ModelSpec) -> str:
    """Digest of the chat template and system prompt in force."""
    files = [Path(model.path) / name for name in ("chat_template.jinja", "tokenizer_config.json")]
    texts = [f.read_text() for f in files if f.exists()]
    return digest_of([*texts, model.system_prompt, model.template_options])


def _find(field: str, name: str, known: Mapping[str, T]) -> T:
    if name not in known:
        raise UnknownName(field, name, known)
    return known[name]
