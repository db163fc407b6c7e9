"""What `serve` says once at its start: nothing is broken, but somebody would miss it later."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from ptalign.errors import DataDamaged, InvalidInput, PtalignError
from ptalign.nouns import ModelSpec
from ptalign.suites import check_spec
from ptalign_server.catalogue import Catalogue
from ptalign_server.profiles import profile
from ptalign_server.settings import Settings
from ptalign_server.variables import unknown

NO_PASS = "evaluations cannot PASS, they stay INCONCLUSIVE at best"
"""What an evaluation without its data costs."""
NO_DIGEST = "weights that are replaced under its path are taken for the earlier ones"
"""What a model without the digest of its weights costs."""


def notices(settings: Settings) -> Iterator[str]:
    """Warnings for the log, one line each."""
    yield from _unread_variables()
    yield from _unused_urls(settings)
    yield from _weights(settings)
    yield from _evaluation_data(settings)
    yield from _suites(settings)
    yield from _judges(settings)


def missing_data(settings: Settings) -> str:
    """Files that the default suites lack, with the suites: empty where nothing is missing.

    Raises:
        DataDamaged: The operator's suites cannot be read.
    """
    lacking = Catalogue(settings).without_data()
    return ", ".join(f"{file} (suite {suite})" for suite, file in lacking.items())


def two_types(settings: Settings, model: ModelSpec) -> tuple[str, str] | None:
    """That a model is trained in another type than it is served in, and the mend."""
    served = profile(settings.profile).engine.dtype
    if settings.engine.kind != "vllm" or model.dtype == served:
        return None
    found = (
        f"trainer and probe load its weights in {model.dtype}, as its entry says, and the "
        f"engine in {served}, as the profile {settings.profile} does"
    )
    mend = (
        f"Set dtype: {served} in its entry (models add --dtype {served}), unless you mean it: "
        "float32 takes twice the memory of bfloat16."
    )
    return found, mend


def _unread_variables() -> Iterator[str]:
    for name, nearest in unknown(os.environ):
        mend = f"Did you mean {nearest}?" if nearest else "Unset it, or correct its name."
        yield f"{name} is set, and no setting has this name: it is ignored. {mend}"


def _unused_urls(settings: Settings) -> Iterator[str]:
    engine = settings.engine
    if engine.urls and engine.kind != "remote":
        yield (
            f"PTALIGN_ENGINE__URLS is not used, as PTALIGN_ENGINE__KIND is {engine.kind}. Set the "
            "kind to remote, or unset the URLs."
        )


def _weights(settings: Settings) -> Iterator[str]:
    try:
        models = Catalogue(settings).models.values()
    except PtalignError as error:
        yield str(error)
        return
    for model in models:
        if not model.weights_digest:
            yield (
                f"model {model.name} has no weights_digest: {NO_DIGEST}. Give its entry what "
                f"`ptalign-server models digest {model.path}` prints."
            )
        if two := two_types(settings, model):
            yield f"model {model.name}: {two[0]}. {two[1]}"


def _evaluation_data(settings: Settings) -> Iterator[str]:
    try:
        missing = missing_data(settings)
    except PtalignError as error:
        yield str(error)
        return
    if missing:
        yield (
            f"no evaluation data: {missing}. {NO_PASS[0].upper()}{NO_PASS[1:]}. Set "
            "PTALIGN_EVAL_DATA to the folder of these files (docs/operations.md)."
        )


def _suites(settings: Settings) -> Iterator[str]:
    with suppress(DataDamaged):  # said with the evaluation data
        for spec in Catalogue(settings).suites.values():
            try:
                check_spec(spec)
            except InvalidInput as error:
                yield f"{error} Until then evaluations that name it are refused."


def _judges(settings: Settings) -> Iterator[str]:
    for entry in Catalogue(settings).own_judges.entries.usable.values():
        try:
            entry.api_key()
        except InvalidInput as error:
            yield f"{error.limit}. {error.mend} Until then evaluations that name it are refused."
