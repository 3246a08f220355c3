"""What rows carry beside what a format reads: refused by name where it would change what's learned, else named."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from trials.config import DataFormat
from trials.formats.bad_rows import BadRow
from trials.formats.row_fields import FORMAT_FIELDS, formats_of, nearest
from trials.formats.row_reader import RowReader

GOOD: dict[str, dict[str, Any]] = {
    "messages": {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]},
    "instruction": {"instruction": "Do.", "input": "It.", "output": "Done."},
    "prompt_completion": {"prompt": "Why?", "completion": "So."},
    "title_body": {"title": "T", "body": "B"},
    "text": {"text": "All of it."},
    "nli": {"premise": "A.", "hypothesis": "B.", "label": 1},
    "nli_cot": {"premise": "A.", "hypothesis": "B.", "thought_process": "step 1", "label": 1},
}
HARMLESS = {"id": "r1", "source": "web", "category": 5, "score": 0.5, "url": None}
SAYS_NOTHING = {
    "system": "", "history": [], "tools": None, "functions": [], "weight": 1, "loss_weight": "1.0", "train": True,
    "images": [], "chosen": None, "parallel_tool_calls": False,
}  # fmt: skip


def test_every_format_has_its_fields() -> None:
    assert set(GOOD) == set(FORMAT_FIELDS) == set(get_args(DataFormat))
    for data_format, row in GOOD.items():
        assert FORMAT_FIELDS[data_format].fit(row)


@pytest.mark.parametrize("data_format", GOOD)
def test_fields_that_change_nothing_are_left_out_and_named(data_format: str) -> None:
    reader = RowReader(data_format)
    assert reader({**GOOD[data_format], **HARMLESS}) == reader({**GOOD[data_format], "id": "r1"})
    assert reader.unread == ("source", "category", "score", "url")
    assert RowReader(data_format)({**GOOD[data_format], **SAYS_NOTHING}) is not None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "function"}]), ("functions", [{}]), ("tool_calls", [{}]), ("function_call", "auto"),
        ("weight", 0), ("weight", 0.5), ("weight", "2"), ("loss_weight", 0.0), ("sample_weight", 3), ("train", False),
        ("trainable", "false"), ("mask", [1, 0]), ("masked", True), ("loss", 0), ("images", ["a.png"]),
        ("audio", {"a": 1}),
        ("chosen", "yes"), ("rejected", "no"), ("chat_template_kwargs", {"enable_thinking": True}), ("Tools", [1]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("data_format", GOOD)
def test_fields_that_would_be_missed_are_refused_by_name(data_format: str, name: str, value: Any) -> None:
    with pytest.raises(BadRow, match=rf"field '{name}' isn't (used|read)"):
        RowReader(data_format)({**GOOD[data_format], name: value})


@pytest.mark.parametrize(
    ("data_format", "more", "message"),
    [
        ("messages", {"system": "Be brief."}, "'system' isn't used: give it as the first message"),
        ("instruction", {"system": "Be brief."}, "'system' isn't used: give it as the first message of a row"),
        ("instruction", {"history": [["Hi.", "Hello."]]}, "'history' isn't used: give the whole conversation as a row"),
        ("instruction", {"context": "Other."}, "fields 'context' and 'input' mean the same, but differ"),
        ("instruction", {"response": "Other."}, "fields 'response' and 'output' mean the same, but differ"),
        ("instruction", {"Context ": "x"}, "'Context ' isn't read, but 'context' is known. Rename it, or leave it out"),
        ("prompt_completion", {"label": False}, "'label' isn't used: preferences aren't learned here"),
        ("prompt_completion", {"label": "False"}, "'label' isn't used"),
        ("prompt_completion", {"system_prompt": "x"}, "'system_prompt' isn't used"),
        ("nli", {"history": ["x"]}, "'history' isn't used"),
        ("nli_cot", {"system": "x"}, "'system' isn't used"),
    ],
)  # fmt: skip
def test_each_format_has_its_own(data_format: str, more: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRow, match=message):
        RowReader(data_format)({**GOOD[data_format], **more})


def test_the_same_text_under_both_names_is_no_contradiction() -> None:
    row = {**GOOD["instruction"], "context": "It.", "response": "Done.", "label": 1}
    assert RowReader("instruction")(row) == RowReader("instruction")(GOOD["instruction"])
    empty = {"instruction": "Do.", "context": "", "input": "It.", "response": None, "output": "Done."}
    assert RowReader("instruction")(empty) == RowReader("instruction")(GOOD["instruction"])
    assert RowReader("prompt_completion")({**GOOD["prompt_completion"], "label": True}) is not None
    assert RowReader("prompt_completion")({**GOOD["prompt_completion"], "label": 0}) is not None


@pytest.mark.parametrize(
    ("data_format", "row", "message"),
    [
        ("prompt_completion", {"Prompt ": "x", "completion": "y"}, "field 'Prompt ' isn't read, but 'prompt' is known"),
        ("prompt_completion", {"promt": "x", "completion": "y"}, "field 'prompt' is missing .*; rename 'promt'"),
        ("prompt_completion", GOOD["instruction"], "'prompt' is missing .*; this is a row of format 'instruction'"),
        ("instruction", GOOD["nli"], "'instruction' is missing .*; this is a row of format 'nli'"),
        ("messages", {"conversations": []}, r"field 'messages' is missing \(the row has: conversations\)"),
    ],
)  # fmt: skip
def test_names_that_are_nearly_right_are_told(data_format: str, row: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRow, match=message):
        RowReader(data_format)(row)


def test_the_nearest_name_and_the_formats_of_a_row() -> None:
    assert nearest("prompt", ["Prompts", "id"]) == "Prompts"
    assert nearest("prompt", ["question"]) is None
    assert formats_of(GOOD["nli_cot"]) == ["nli", "nli_cot"]
    assert formats_of(["version", "data"]) == []


@pytest.mark.parametrize("data_format", [name for name in GOOD if name != "messages"])
@pytest.mark.parametrize("broken", ["half \ud83d", "\udc00", "a\0b"], ids=["high", "low", "nul"])
def test_half_a_character_is_refused_in_every_text(data_format: str, broken: str) -> None:
    row = GOOD[data_format]
    for name in (name for name, value in row.items() if isinstance(value, str)):
        with pytest.raises(BadRow, match=rf"field '{name}' holds (half a character \(the lone surrogate \\u|a NUL)"):
            RowReader(data_format)({**row, name: broken})
    found = RowReader(data_format)({**row, "id": "r\ud83d", "note": "x\ud83d"})
    assert found is not None
    assert found.id == "r\\ud83d"
