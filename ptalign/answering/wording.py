"""The fixed words around answers, by language: openers, leads, frames, demonstrations."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict

from ptalign.text.locales import language


class Shot(BaseModel):
    """One demonstration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    message: str
    answer: str


class Wording(BaseModel):
    """Everything the prompts and openers of one language need."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    message: str
    answer: str
    rule: str
    decline_tone: tuple[str, ...]
    decline_general: tuple[str, ...]
    leads_tone: tuple[str, ...]
    leads_general: tuple[str, ...]
    constraint_openers_positive: tuple[str, ...]
    constraint_openers_toxic: tuple[str, ...]
    frame_positive: str
    frame_twin: str
    frame_toxic: str
    general_rule_positive: str
    helpful: tuple[Shot, ...]
    helpful_general: tuple[Shot, ...]

    def start(self, tone: bool, turn: int) -> tuple[str, str]:
        """Opener and lead of the positive with this running number.

        Both rotate evenly. With each round of the openers the leads start one later, so that each
        opener meets each lead, however many there are of either.
        """
        openers = self.decline_tone if tone else self.decline_general
        leads = self.leads_tone if tone else self.leads_general
        past, place = divmod(turn, len(openers))
        return openers[place], leads[(place + past) % len(leads)]


@cache
def wording(locale: str) -> Wording:
    """The wording of a language; English where ptalign has none."""
    here = Path(__file__).parent
    path = here / f"wording-{language(locale)}.yaml"
    path = path if path.is_file() else here / "wording-en.yaml"
    return Wording.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
