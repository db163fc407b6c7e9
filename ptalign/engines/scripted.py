"""An engine without a model: answers by rule, at once or with a set latency.

It ships with the product for volume tests and for tests of your own code: the same requests give
the same answers, so a run repeats. `plausible` writes text that passes the filters of all four
stages; give a script of your own for anything else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ptalign.engines.base import Completion, Request
from ptalign.engines.openai import never
from ptalign.engines.script import plausible, share_of
from ptalign.errors import Cancelled

Script = Callable[[Request], str]
"""The text of the answer to a request, without its prefill."""


@dataclass
class ScriptedEngine:
    """Completes requests by a script, in the order they were sent.

    Requests past `concurrency` wait, as with a real engine: with latency L and concurrency c,
    c requests finish every L seconds. Failures are spread by the request's text, so the same
    request always fails or never does.
    """

    script: Script = plausible
    model: str = "scripted"
    latency_s: float = 0.0
    """Seconds one request takes."""
    failure_rate: float = 0.0
    """Share of the requests that come back as errors, 0..1."""
    concurrency: int = 32
    should_stop: Callable[[], bool] = never
    served: int = 0
    """Requests completed so far."""

    def stream(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Completions in the order of the requests; see `Engine.stream`.

        Raises:
            Cancelled: `should_stop` said so.
        """
        source = iter(requests)
        flight: list[tuple[float, Request]] = []
        while True:
            while len(flight) < self.concurrency:
                request = next(source, None)
                if request is None:
                    break
                flight.append((time.monotonic() + self.latency_s, request))
            if not flight:
                return
            due, request = flight.pop(0)
            self._wait(due)
            self.served += 1
            yield self.complete(request)

    def complete(self, request: Request) -> Completion:
        """The completion of one request, at once."""
        if self.failure_rate and share_of(request, "fail") < self.failure_rate:
            return Completion(key=request.key, text="", finish="error", error="scripted failure")
        text = self.script(request)
        for stop in request.stop:
            text = text.split(stop, 1)[0]
        words = text.split(" ")
        cut = len(words) > request.max_tokens
        text = " ".join(words[: request.max_tokens])
        made = min(len(words), request.max_tokens)
        asked = request.prompt or " ".join(m.content for m in request.messages)
        return Completion(
            key=request.key,
            text=text,
            finish="length" if cut else "stop",
            prompt_tokens=len(asked.split()),
            completion_tokens=made,
            token_ids=tuple(range(made)) if request.logprobs else (),
            logprobs=(-0.5,) * made if request.logprobs else (),
        )

    def _wait(self, due: float) -> None:
        while True:
            if self.should_stop():
                raise Cancelled("the engine was told to stop")
            left = due - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, 0.1))


if __name__ == "__main__":
    from ptalign.engines.scripted_server import main

    main()
