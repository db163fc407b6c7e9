"""The policies that callers may name: what the core ships, and the operator's own files."""

from __future__ import annotations

import logging
from pathlib import Path

from ptalign.disk import changed_at
from ptalign.errors import DataDamaged, InvalidInput, PtalignError
from ptalign.nouns import Policy
from ptalign.policies import inline_policy, load_policy, policy_names
from ptalign.policies.schema import MAX_TEXT
from ptalign.text.locales import language
from ptalign.text.normalise import plain
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_server.errors import look_up

log = logging.getLogger("ptalign.server")
AWAY = -1
"""In place of the time of a file that could not be read."""


class PolicyFiles:
    """Policies by name. The operator's files are read again when they change.

    Args:
        folder: Of the operator's files; none has to be there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, tuple[int, Policy | PtalignError]] = {}

    @property
    def usable(self) -> dict[str, Policy]:
        """Policies that callers may name: the shipped packs, then the operator's own.

        A file that cannot be used is left out, and named in the log when it is read.
        """
        own = {path.stem: pack for path, pack in self._own().items()}
        packs = _shipped() | own
        return {name: pack for name, pack in packs.items() if isinstance(pack, Policy)}

    @property
    def broken(self) -> dict[Path, PtalignError]:
        """The operator's files that cannot be used, and why."""
        return {path: why for path, why in self._own().items() if isinstance(why, PtalignError)}

    def read_all(self) -> None:
        """Reads all policies now, so that a broken one is logged at the start and no call waits."""
        _shipped()
        self._own()

    def find(self, name: str) -> Policy:
        """The policy of this name.

        Raises:
            UnknownName: With the names that are known.
            InvalidInput: Its file cannot be used.
        """
        path = self._files().get(name)
        if path is None:
            return look_up("policy", name, self.usable)
        pack = self._pack(path)
        if isinstance(pack, Policy):
            return pack
        raise InvalidInput(
            "policy",
            f"the server's file {path.name} cannot be used ({str(pack).rstrip('.')})",
            "Name another policy, or ask the operator to correct the file.",
        )

    def check(self, name: str) -> None:
        """Raises `UnknownName` if there is no policy of this name; its file may be broken.

        For calls that need the name only: what was made under it is as good as before.
        """
        look_up("policy", name, dict.fromkeys([*policy_names(), *self._files()]))

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
        packs = list((_shipped() | own).values())
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

    def _files(self) -> dict[str, Path]:
        """The operator's files, by name."""
        return {path.stem: path for path in sorted(self._folder.glob("*.yaml"))}

    def _own(self) -> dict[Path, Policy | PtalignError]:
        """The operator's policies, or what is wrong with their files."""
        return {path: self._pack(path) for path in self._files().values()}

    def _pack(self, path: Path) -> Policy | PtalignError:
        """A policy file, read again when it changes; if it is broken, what is wrong with it."""
        stamp = changed_at(path)
        before = self._read.get(path)
        if before is not None and before[0] == stamp:
            return before[1]
        found = _read_pack(path)
        # One that could not be read now may be by the next call; one that is no policy stays none.
        self._read[path] = (AWAY if isinstance(found, PackAway) else stamp, found)
        again = isinstance(found, PackAway) and before is not None and before[0] == AWAY
        if isinstance(found, PtalignError) and not again:
            told = "policy file %s cannot be used, calls that name it are refused: %s"
            log.error(told, path, found)
        return found


def _shipped() -> dict[str, Policy]:
    return {name: load_policy(name) for name in policy_names()}


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
