"""What a log tail keeps, and what it must not."""

from __future__ import annotations

import time

import pytest

from ptalign_server.redact import LIMIT, LogTail, mask, mask_strictly

CANARY = "heron-7431"


@pytest.mark.parametrize(
    "line",
    [
        f"Authorization: Bearer {CANARY}",
        f"api_key={CANARY}",
        f"VLLM token = {CANARY}",
        f"client_secret={CANARY}",
        f"aws_secret_access_key = {CANARY}",
        f"{{'token': 'a b c {CANARY}'}}",
        f"accessToken={CANARY}",
        f"got ghs_{CANARY}",
        f"passphrase: '{'horse ' * 50}{CANARY}'",
        f"passphrase: '{'horse ' * 20}{CANARY}",
        f"got pta_{CANARY}",
        f"loading https://user:{CANARY}@example.org/model",
        "prompt_token_ids=[7431, 12, 5, 9, 11, 3, 77, 41, 8]",
        f"ValueError: cannot parse 'please tell me about the {CANARY} of the lake'",
    ],
)
def test_credentials_token_ids_and_quotations_are_masked(line: str) -> None:
    assert "7431" not in mask(line)


@pytest.mark.parametrize(
    "line",
    [
        "ValueError: Free memory on device (3.1/15.7 GiB) is less than desired",
        "tokenizer='/models/x', max_num_batched_tokens=2048, pin_memory: True",
    ],
)
def test_what_an_operator_needs_stays(line: str) -> None:
    assert mask(line) == line


@pytest.mark.parametrize("unit", ["a", "a_", "1-", "a.", "あ", "token", "[1,", "'a", "eyJ-"])
def test_a_long_word_takes_steps_by_its_length(unit: str) -> None:
    """A line of 16 KiB without a blank held the worker's interpreter for seconds."""

    def seconds(length: int) -> float:
        line, taken = (unit * length)[:length], []
        for _ in range(5):
            begun = time.thread_time()
            mask(line)
            taken.append(time.thread_time() - begun)
        return min(taken)

    assert seconds(8000) < 8 * seconds(2000)


@pytest.mark.parametrize("word", ["x" * 500 + f"@{CANARY}.org", "x" * 500 + f"://u:{CANARY}@e.org"])
def test_a_credential_at_the_end_of_a_long_word_is_masked(word: str) -> None:
    assert "7431" not in mask(word[-300:]) + mask(word)


def test_long_lines_are_cut() -> None:
    assert len(mask("x " * 1000)) < LIMIT + 40


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        (f"tell me about the {CANARY}", "<line of 28 chars>"),
        (f"ValueError: the {CANARY} of the lake", "ValueError: <28 chars>"),
        ('  File "/app/x.py", line 3, in f', '  File "/app/x.py", line 3, in f'),
        ("Traceback (most recent call last):", "Traceback (most recent call last):"),
    ],
)
def test_strict_keeps_only_known_shapes(line: str, kept: str) -> None:
    assert mask_strictly(line) == kept


def test_tail_turns_strict_and_keeps_engine_lines() -> None:
    log = LogTail(lines=3)
    log.add("first")
    log.strict = True
    log.add("INFO 11-24 07:32:56 [core.py:195] engine is running")
    log.add(f"INFO 11-24 07:32:56 [x.py:1] got prompt {CANARY}")
    log.add(f"free words about {CANARY}")
    text = "\n".join(log.last())
    assert "engine is running" in text
    log.add("(APIServer pid=9) INFO 11-24 10:26:03 [loggers.py:335] Avg prompt throughput: 1.0")
    assert "throughput: 1.0" in log.last()[-1]
    assert CANARY not in text
    assert len(log.last()) == 3
