"""The operator's own files, broken and changing while the server runs: policies and suites."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ptalign.errors import InvalidInput, PtalignError
from ptalign.nouns import Policy
from ptalign.policies import load_policy
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_server.catalogue import Catalogue
from ptalign_server.settings import Settings

POLICY = "tone-en"
TONE = next(t.domain for t in load_policy(POLICY).topics if t.sides == "both")
PACK = """
name: mine
never_synthesize: [green teapot]
domains:
  - domain: work
    topics: [{id: slow-print, title: the printer is slow}]
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = Settings(state=tmp_path / "state")
    made.make_folders()
    return made


@pytest.fixture
def mine(settings: Settings) -> Path:
    """Where the policy `mine` of the operator lies."""
    return settings.state / "policies" / "mine.yaml"


def write(path: Path, text: str) -> None:
    """Changes a file, and its time even where the clock is coarse."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(text)
    os.utime(path, ns=(before + 10**9, before + 10**9))


def teapot() -> res.PolicySpec:
    """An inline policy that asks for what PACK forbids."""
    return res.PolicySpec(topics=[res.TopicSpec(domain=TONE, title="a green teapot", sides="both")])


@pytest.mark.parametrize(
    "text",
    [
        "name: mine\nnever_synthesise: [green teapot]",
        "name: mine\nnever_synthesize:",
        "name: mine\nnever_synthesize: green teapot",
        "name: mine\nnever_synthesize: [no, green teapot]",
        "name: mine\nnever_synthesize: ['']",
        "name: mine\nnever_synthesize: [{green: teapot}]",
        "policy: {name: mine, never_synthesize: [green teapot]}",
        "name: mine\nconstraints: {never_synthesize: [green teapot]}",
        "name: mine\ndomains: [{domain: work, never_synthesize: [green teapot]}]",
        "name: mine\ndomains: {domain: work, topics: {never_synthesize: [green teapot]}}",
        "name: mine\ndomains: &all [*all, {never_synthesize: [green teapot]}]",
        "",
    ],
)
def test_a_misspelt_or_misplaced_list_of_a_broken_policy_refuses_inline_ones(
    settings: Settings, mine: Path, text: str
) -> None:
    mine.write_text(text)
    with pytest.raises(InvalidInput, match=r"what the server's policy file mine\.yaml forbids"):
        Catalogue(settings).inline(teapot())


@pytest.mark.parametrize("text", ["name: mine", PACK.replace("green", "red") + "version: 5"])
def test_a_broken_policy_that_surely_forbids_something_else_refuses_nothing_inline(
    settings: Settings, mine: Path, text: str
) -> None:
    mine.write_text(text)
    catalogue = Catalogue(settings)
    assert list(catalogue.broken_policies) == [mine]
    assert catalogue.inline(teapot()).topics


def test_a_policy_that_is_mended_while_an_inline_one_is_checked_still_forbids(
    settings: Settings, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine.write_text(PACK + "version: 5")
    catalogue, read = Catalogue(settings), Catalogue._pack

    def mended_behind(self: Catalogue, path: Path) -> Policy | PtalignError:
        pack = read(self, path)
        write(path, PACK)
        return pack

    monkeypatch.setattr(Catalogue, "_pack", mended_behind)
    with pytest.raises(InvalidInput, match="never allowed"):
        catalogue.inline(teapot())
