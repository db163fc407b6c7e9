"""Our checkers of verifiable instructions against lm-eval's, on texts that keep and break them.

lm-eval is no dependency: install its files and what its checkers import, then run the marked test:

    pip install --no-deps lm-eval nltk langdetect immutabledict
    make test ARGS="-m slow -k parity"
"""

from __future__ import annotations

import json
import random
import re
import sys
import types
from collections import Counter
from collections.abc import Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import pytest

from ptalign.config import EvalConfig
from ptalign.suites import NO_DATA, build
from ptalign.suites.ifeval import CHECKERS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
DETECTED = ("change_case:english_capital", "change_case:english_lowercase")
"""The original asks a language detector, which guesses on short texts."""


@pytest.fixture
def originals(monkeypatch: pytest.MonkeyPatch) -> Any:
    """lm-eval's registry of checkers, without the rest of lm-eval and without nltk's data files.

    Their tokenisers stand in for the data: an untrained Punkt, and the splitter that word_tokenize
    applies to a sentence.
    """
    for module in ("nltk", "langdetect", "immutabledict"):
        pytest.importorskip(module)
    try:
        root = Path(str(metadata.distribution("lm_eval").locate_file("lm_eval")))
    except metadata.PackageNotFoundError:
        pytest.skip("lm_eval is not installed")
    nltk: Any = import_module("nltk")
    punkt: Any = import_module("nltk.tokenize.punkt")
    splitter: Any = import_module("nltk.tokenize.destructive")
    monkeypatch.setattr(nltk.data, "find", lambda *_: True)
    monkeypatch.setattr(nltk.data, "load", lambda *_: punkt.PunktSentenceTokenizer())
    monkeypatch.setattr(nltk, "word_tokenize", splitter.NLTKWordTokenizer().tokenize)
    for name, folder in (("lm_eval", root), ("lm_eval.tasks", root / "tasks")):
        package = types.ModuleType(name)
        package.__path__ = [str(folder)]
        monkeypatch.setitem(sys.modules, name, package)
    return import_module("lm_eval.tasks.ifeval.instructions_registry").INSTRUCTION_DICT


def paragraphs() -> list[str]:
    """Prose of this repository."""
    files = sorted((ROOT / "docs").glob("adr/*.md"))
    found = [text for file in files for text in file.read_text("utf-8").split("\n\n")]
    return [text for text in found if 40 < len(text) < 900 and not text.startswith(("|", "```"))]


def variants(text: str, given: dict[str, Any], rng: random.Random) -> Iterator[str]:
    """The text, and forms of it that keep one instruction or another, or nearly."""
    parts, words = text.split(". "), text.split()
    some = rng.randint(1, 6)
    yield from (text, text.lower(), text.upper(), f'"{text.strip()}"', text.replace(",", ""))
    yield "\n".join(f"* {part}" for part in parts[:some])
    yield " ".join(f"*{w}*" if i % 9 == 0 else w for i, w in enumerate(words))
    yield " ".join(w.upper() if i % 4 == 0 else w for i, w in enumerate(words))
    yield re.sub(r"(\w+ \w+) ", r"\1 [place] ", text, count=some)
    yield from (
        f"<<A title>>\n{text}",
        json.dumps({"text": text}),
        f"```json\n{json.dumps([text])}\n```",
    )
    yield from (
        f"{text}\n\nP.S. {text[:40]}",
        f"{text}\n******\n{text[::-1]}",
        f"{text}\n******\n{text}",
    )
    yield from ("\n\n***\n\n".join([text] * some), "\n\n".join([text] * some))
    yield from ("My answer is yes.", f"My answer is maybe. {text}")
    mark = given.get("section_spliter", "Section")
    yield "\n".join(f"{mark} {i}\n{part}" for i, part in enumerate(parts[:some], 1))
    for key in ("keywords", "forbidden_words"):
        yield " ".join([text, *given.get(key, ())])
    for key in ("keyword", "letter"):
        yield text + f" {given.get(key, '')}" * some
    yield from (
        f"{text} {given.get('end_phrase', '')}",
        f"{given.get('prompt_to_repeat', '')}\n{text}",
    )
    first = str(given.get("first_word", "The"))
    yield "\n\n".join(f"{first.capitalize()} {text}" for _ in range(some))
    yield f"{text}\n{given.get('postscript_marker', 'P.S.')} {text[:30]}"


def test_parity_with_lm_eval(originals: Any) -> None:
    (suite,) = build(["ifeval"], config=EvalConfig(samples=1000, usefulness_tokens=512))
    if suite.not_run == NO_DATA:
        pytest.skip("PTALIGN_EVAL_DATA has no ifeval_en_odd.jsonl")
    rng, texts = random.Random(0), paragraphs()
    same: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    for prompt in suite.prompts:
        for check in prompt.checks:
            name = check.name.removeprefix("en:")
            if str(check.arguments.get("letter", "a")).lower() not in "abcdefghijklmnopqrstuvwxyz":
                continue  # the original replaces such a letter by a random one
            original = originals[name](name)
            original.build_description(**check.arguments)
            if "prompt" in (original.get_instruction_args() or {}):
                original.build_description(prompt=prompt.instruction)
            for text in rng.sample(texts, 3):
                for reply in variants(text, check.arguments, rng):
                    ours = CHECKERS[name](reply, check.arguments)
                    asked[name] += 1
                    kept[name] += ours
                    same[name] += ours == bool(original.check_following(reply))
    shares = {name: same[name] / asked[name] for name in asked}
    print(f"{sum(same.values())} of {sum(asked.values())} alike;", shares)
    assert sum(same.values()) >= 0.995 * sum(asked.values())
    for name, share in shares.items():
        assert share >= (0.95 if name in DETECTED else 0.98), name
        assert 0 < kept[name] < asked[name], f"{name}: no text keeps it, or none breaks it"
