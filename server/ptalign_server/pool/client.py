"""The few calls the supervisor makes of one engine: health, adapters, the canary's completions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx

from ptalign.errors import EngineFailed

logging.getLogger("httpx").setLevel(logging.WARNING)  # or each health check is a line


@dataclass(frozen=True)
class Sample:
    """Greedy tokens and their log-probabilities."""

    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]


class EngineClient:
    """Blocking HTTP to one engine's root address; `timeout_s` is for answers that take work."""

    def __init__(self, url: str, api_key: str = "", timeout_s: float = 600.0) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.url = url.rstrip("/").removesuffix("/v1")
        self._http = httpx.Client(
            base_url=self.url,
            # Servers close idle connections after 5 s: a health check that reuses one may lose
            # the race, three times in a row even, and look like a dead engine.
            limits=httpx.Limits(max_keepalive_connections=0),
            headers=headers,
            timeout=httpx.Timeout(timeout_s, connect=5),
            trust_env=False,
        )

    def close(self) -> None:
        self._http.close()

    def sickness(self, timeout_s: float = 30.0) -> str:
        """Why it cannot take requests, empty when it can; without /health its models are asked."""
        try:
            answer = self._http.get("/health", timeout=timeout_s)
            if answer.status_code == 404:
                answer = self._http.get("/v1/models", timeout=timeout_s)
        except httpx.HTTPError as error:
            return type(error).__name__
        return "" if answer.status_code == 200 else f"HTTP {answer.status_code}"

    def models(self) -> tuple[str, ...]:
        """Names it serves, adapters included."""
        return tuple(
            m["id"] for m in self._http.get("/v1/models").raise_for_status().json()["data"]
        )

    def load(self, name: str, folder: Path) -> bool:
        """Loads an adapter; False where the server does not do that at run time.

        Raises:
            EngineFailed: The engine refused this adapter.
        """
        answer = self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        if answer.status_code in (404, 405, 501):
            return False
        already = answer.status_code == 400 and "already" in answer.text
        if answer.status_code != 200 and not already:
            raise EngineFailed(
                f"adapter {name} was refused by the engine with HTTP {answer.status_code}"
            )
        return True

    def unload(self, name: str) -> None:
        """Unloads an adapter; one that is not there is fine."""
        self._post("/v1/unload_lora_adapter", {"lora_name": name})

    def sample(self, model: str, prompt: str, tokens: int) -> Sample:
        """A greedy completion with log-probabilities."""
        body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
        answer = self._post("/v1/completions", body | {"logprobs": 1, "ignore_eos": True})
        if answer.status_code != 200:
            raise EngineFailed(f"the engine answered a probe with HTTP {answer.status_code}")
        found = answer.json()["choices"][0]["logprobs"]
        return Sample(tuple(found["tokens"]), tuple(found["token_logprobs"]))

    def together(self, jobs: Sequence[tuple[str, str, int]]) -> list[Sample]:
        """Samples (model, prompt, tokens) at the same time, so that they share batches."""
        with ThreadPoolExecutor(len(jobs)) as threads:
            return list(threads.map(lambda job: self.sample(*job), jobs))

    def _post(self, path: str, body: dict[str, object]) -> httpx.Response:
        try:
            return self._http.post(path, json=body)
        except httpx.HTTPError as error:
            raise EngineFailed(f"the engine did not answer: {type(error).__name__}") from None
