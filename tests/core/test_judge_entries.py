"""Guard judges as an operator writes them down: every mistake has its line and its mend."""

from __future__ import annotations

import pytest

from ptalign.errors import InvalidInput
from ptalign.judges.entries import GuardEntry, read_entries

GOOD = """\
- name: kind-guard
  family: qwen3guard
  url: http://127.0.0.1:8000/v1
  model: guard-0.6b
"""


def broken(lines):
    """What is wrong with an entry that follows a good one."""
    found = read_entries(f"{GOOD}{lines}\n")
    assert list(found.usable) == ["kind-guard"]
    (one,) = found.broken
    return one


def entry(**changes):
    values = {"name": "g", "family": "qwen3guard", "url": "http://g", "model": "m"}
    return GuardEntry.model_validate(values | changes)


def test_an_entry_becomes_a_judge():
    made = read_entries(GOOD).usable["kind-guard"]
    judge = made.judge()
    assert judge.id == made.id
    assert made.id.startswith("kind-guard@harm-")
    assert (judge.axis, judge.locales) == ("harm", ())
    assert entry(locales=["en", "ja"]).judge().locales == ("en", "ja")
    assert entry(axis="refusal").id.startswith("g@refusal-")
    shield = {"family": "shieldgemma"}
    assert entry(**shield).id != entry(**shield, guideline="Be kind.").id


def test_an_empty_file_holds_no_judges_and_anything_else_must_be_a_list():
    assert not read_entries("").usable
    assert not read_entries("# nothing yet\n").broken
    with pytest.raises(TypeError, match="must be a list"):
        read_entries("name: x")


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ("- name: b\n  family: qwen3guard\n  url: http://g", "line 5, model: Field required"),
        (
            "- {name: b, family: gpt, url: 'http://g', model: m}",
            "line 5, family: no such family: write one of qwen3guard, granite",
        ),
        (
            "- name: b\n  family: llamaguard\n  url: http://g\n  model: m\n  axis: refusal",
            "line 9, axis: llamaguard does not tell refusal. It tells harm; refusal is told by: "
            "qwen3guard, wildguard",
        ),
        (
            "- name: b\n  family: granite\n  url: http://g\n  model: m\n  guideline: Be kind.",
            "line 9, guideline: granite takes none; drop it",
        ),
        (
            "- name: tone-lexical\n  family: granite\n  url: http://g\n  model: m",
            "line 5, name: a judge of ptalign has this name: choose another",
        ),
        (
            "- name: b\n  family: granite\n  model: m\n  url: guard:8000",
            "line 8, url: not an address: write it like http://127.0.0.1:8000/v1",
        ),
        (
            "- name: b\n  family: granite\n  url: http://g\n  model: m\n  timeout_s: 0",
            "line 9, timeout_s: Input should be greater than 0",
        ),
        (
            "- name: b\n  family: granite\n  url: http://g\n  model: m\n  locale: en",
            "line 9, locale: no such field; there are: name, family, url, model, axis",
        ),
        ("- just words", "line 5, "),
    ],
)
def test_a_mistake_is_named_with_its_line_and_the_others_stay_usable(lines, why):
    assert broken(lines).why.startswith(why)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("api_key: hush-1", "line 9, api_key: no such field; put the key into a variable"),
        ("api_key_env: hush-1", "line 9, api_key_env: not a variable's name: never the key itself"),
        ("api_key_env: PTALIGN_DATABASE", "line 9, api_key_env: PTALIGN_ is for the server's"),
        ("url: http://u:hush-1@g", "line 9, url: holds a login: put a key into a variable"),
        ("timeout_s: hush-1", "line 9, timeout_s: Input should be a valid number"),
    ],
)
def test_no_message_holds_a_key_in_the_wrong_place(line, why):
    url = "" if line.startswith("url") else "\n  url: http://g"
    pad = "\n  locales: [en]" if line.startswith("url") else ""
    one = broken(f"- name: b\n  family: granite{url}{pad}\n  model: m\n  {line}")
    assert one.why.startswith(why)
    assert "hush" not in one.why


def test_of_two_entries_of_one_name_neither_is_used():
    found = read_entries(GOOD + GOOD)
    assert not found.usable
    assert [one.line for one in found.broken] == [1, 5]
    assert "two entries have this name" in found.broken[1].why


def test_a_key_comes_from_the_environment_and_its_absence_names_the_variable():
    made = entry(api_key_env="GUARD_KEY")
    assert made.api_key({"GUARD_KEY": " k\n"}) == "k"
    assert entry().api_key({}) == ""
    with pytest.raises(InvalidInput, match="GUARD_KEY, which is not set"):
        made.api_key({"GUARD_KEY": " "})
    with pytest.raises(InvalidInput, match="GUARD_KEY, which is not plain text") as caught:
        made.judge({"GUARD_KEY": "a\nhush"})
    assert "hush" not in str(caught.value)
