"""Loop and annotation files: an error names the file, the line, the field and the mend."""

from __future__ import annotations

from pathlib import Path

import pytest

from ptalign_client import ConfigError, LoopError
from ptalign_client.cli.annotations import read_annotations
from ptalign_client.cli.loopfile import open_loop

ROOT = Path(__file__).parents[2]
WHOLE = """\
model: tiny
policy: tone-en
instructions:
  count: 4
align:
  - name: A
    method: mle
  - {name: B, steps: 3, learning_rate: 5e-4}
evaluate:
  also: [A]
"""


def read(tmp_path: Path, text: str) -> LoopError:
    file = tmp_path / "loop.yaml"
    file.write_text(text)
    with pytest.raises(LoopError) as caught:
        open_loop(file)
    return caught.value


def test_whole_file(tmp_path: Path) -> None:
    (tmp_path / "loop.yaml").write_text(WHOLE)
    loop, _ = open_loop(tmp_path / "loop.yaml")
    assert (loop.model, loop.instructions.count, loop.instructions.twins) == ("tiny", 4, True)
    assert [(t.name, t.method) for t in loop.align] == [("A", "mle"), ("B", "pt_align")]
    assert loop.align[1].learning_rate == 5e-4
    assert loop.target == "B"
    assert loop.pairs.rounds is None


@pytest.mark.parametrize(
    "file", ["examples/loop.yaml", "deploy/demo/full.yaml", "deploy/demo/fast.yaml"]
)
def test_files_that_ship_are_well_formed(file: str) -> None:
    loop, _ = open_loop(ROOT / file)
    marks = read_annotations((ROOT / file).parent / loop.annotations)
    assert 0 < len(marks.items) < 50
    assert marks.policy == loop.policy
    assert marks.annotator_minutes > 0


@pytest.mark.parametrize(
    ("old", "new", "line", "field", "says"),
    [
        ("count: 4", "count: 0", 4, "instructions.count", "must be 1..20000, not 0"),
        ("count: 4", "count: many", 4, "instructions.count", "a whole number, not 'many'"),
        ("count: 4", "count: true", 4, "instructions.count", "a whole number, not True"),
        ("count: 4", "cuont: 4", 4, "instructions.cuont", "no such field"),
        ("model: tiny\n", "", 1, "model", "is missing"),
        ("method: mle", "method: sft", 7, "align[0].method", "'sft' is not one of pt_align"),
        ("steps: 3", "steps: 0", 8, "align[1].steps", "must be 1..10000, not 0"),
        (
            "align:",
            "pairs: {min_polarity: -0.25}\nalign:",
            5,
            "pairs.min_polarity",
            "must be 0..1, not -0.25",
        ),
        ("also: [A]", "also: [C]", 10, "evaluate.also[0]", "no adapter 'C'"),
        ("also: [A]", "also: A", 10, "evaluate.also", "must be a list"),
        ("name: A\n", "name: B\n", 6, "align", "two adapters are named 'B'"),
        ("method: mle", "{method: mle", 8, "", "not YAML"),
        ("policy: tone-en", "policy: tone-en\npolicy: x", 3, "policy", "stands twice"),
        ("method: mle", "method: mle\n    ut_weight: 2", 6, "align.A.ut_weight", "nothing to mle"),
        ("  count: 4", "  - 4", 4, "instructions", "must be a mapping of count, twins"),
    ],
)
def test_fault_is_named(
    tmp_path: Path, old: str, new: str, line: int, field: str, says: str
) -> None:
    assert old in WHOLE
    error = read(tmp_path, WHOLE.replace(old, new))
    assert (error.field, error.line) == (field, line)
    assert says in str(error)
    assert str(error).startswith(f"{tmp_path}/loop.yaml:{line}: ")


@pytest.mark.parametrize(
    ("old", "new", "line", "field", "says"),
    [
        ("also: [A]", "also: [A, B]", 10, "evaluate.also[1]", "'B' is the target"),
        ("also: [A]", "also: [A, A]", 10, "evaluate.also[1]", "'A' is named twice"),
        ("also: [A]", f"also: [{'A, ' * 9}]", 10, "evaluate.also", "at most 8"),
        ("also: [A]", "suites: [attack, attack]", 10, "evaluate.suites[1]", "named twice"),
        ("also: [A]", "judges: [tone@1, tone]", 10, "evaluate.judges[1]", "'tone' is named twice"),
        (
            "also: [A]",
            "suites: [attack, held-out-plain]\n  held_out: 0",
            10,
            "evaluate.suites[1]",
            "held_out is 0",
        ),
        (
            "method: mle",
            "method: mle\n    ut_candidates: written",
            8,
            "align[0].ut_candidates",
            "nothing to mle",
        ),
        (
            "steps: 3",
            "without_anchors: true, anchors_per_step: 4",
            8,
            "align[1].anchors_per_step",
            "beside without_anchors",
        ),
        ("steps: 3", "protected_words: [a, '']", 8, "align[1].protected_words[1]", "1..64"),
        (
            "steps: 3",
            f"protected_words: [{'a, ' * 1001}]",
            8,
            "align[1].protected_words",
            "at most 1000",
        ),
        ("name: B", f"name: {'B' * 121}", 8, "align[1].name", "longer than 120"),
    ],
)
def test_what_a_later_stage_would_refuse_is_told_before_the_first(
    tmp_path: Path, old: str, new: str, line: int, field: str, says: str
) -> None:
    """`--check` called such files well-formed, and Align or Evaluate refused them hours later."""
    test_fault_is_named(tmp_path, old, new, line, field, says)


def test_near_miss_is_guessed(tmp_path: Path) -> None:
    error = read(tmp_path, WHOLE.replace("instructions:", "instruction:"))
    assert error.hint == "Did you mean instructions?"


def test_no_file_and_empty_file(tmp_path: Path) -> None:
    with pytest.raises(LoopError, match="No such file") as caught:
        open_loop(tmp_path / "nowhere.yaml")
    assert "examples/loop.yaml" in caught.value.hint
    assert "is empty" in str(read(tmp_path, "# nothing\n"))
    assert "must be a mapping" in str(read(tmp_path, "- a\n"))


def test_an_object_tag_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    error = read(tmp_path, WHOLE.replace("tiny", "!!python/object/apply:os.system ['true']"))
    assert error.line == 1


@pytest.mark.parametrize("name", ["m.yaml", "m.jsonl"])
def test_annotations_in_both_formats(tmp_path: Path, name: str) -> None:
    (tmp_path / "m.yaml").write_text("annotator_minutes: 3\nitems:\n- {instruction: i, good: g}\n")
    (tmp_path / "m.jsonl").write_text('{"instruction": "i", "good": "g"}\n\n')
    marks = read_annotations(tmp_path / name)
    assert [(item.instruction, item.good, item.bad) for item in marks.items] == [("i", "g", "")]


@pytest.mark.parametrize("mark", ["\u2028", "\x85"])
def test_an_annotation_ends_at_a_line_feed_alone(tmp_path: Path, mark: str) -> None:
    """Editors and web pages leave U+2028 in a text: the whole file was "not JSON"."""
    item = f'{{"instruction": "Mock{mark}my poem.", "good": "g"}}'
    (tmp_path / "m.jsonl").write_bytes(f"{item}\r\n\r\n{item}\n".encode())
    marks = read_annotations(tmp_path / "m.jsonl")
    assert [found.instruction for found in marks.items] == [f"Mock{mark}my poem."] * 2


def test_an_empty_policy_is_none(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("policy:\nitems: [{instruction: i, good: g}]")
    assert read_annotations(tmp_path / "m.yaml").policy == ""


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("m.jsonl", '{"instruction": "i"}', "line 1: good is missing"),
        ("m.jsonl", '{"instruction": "i", "good": "g", "bda": "b"}', "no such field: bda"),
        ("m.jsonl", "{", "m.jsonl:1: not JSON"),
        ("m.yaml", "items: 3", "needs a list under 'items'"),
        ("m.yaml", "a: [", "m.yaml:1: not YAML"),
        ("m.yaml", "items: [{instruction: 3, good: g}]", "items\\[0\\]: must be a mapping"),
        ("m.yaml", "annotator_minutes: soon\nitems: []", "annotator_minutes"),
        ("m.yaml", "annotater_minutes: 40\nitems: []", "no such field: annotater_minutes"),
    ],
)
def test_faulty_annotations(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=says):
        read_annotations(tmp_path / name)
