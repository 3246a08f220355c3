"""Chat rows of other services: marks of turns that aren't learned, parts, and all that nobody here learns."""

from __future__ import annotations

from typing import Any

import pytest

from trials.formats.bad_rows import BadRow
from trials.formats.conversations import Example, Message
from trials.formats.row_reader import RowReader

WRONG, RIGHT = {"role": "assistant", "content": "Lyon."}, {"role": "assistant", "content": "Paris."}
ASKED, AGAIN = {"role": "user", "content": "Capital of France?"}, {"role": "user", "content": "No. Again?"}


def _read(*turns: dict[str, Any]) -> Example:
    found = RowReader("messages")({"id": "r1", "messages": list(turns)})
    assert found is not None
    return found


@pytest.mark.parametrize(
    "mark",
    [
        {"weight": 0}, {"weight": 0.0}, {"train": False}, {"training": False}, {"trainable": 0}, {"loss": False},
        {"loss_weight": 0}, {"loss_mask": 0}, {"masked": True}, {"weight": 0, "train": False},
    ],
)  # fmt: skip
def test_an_answer_that_is_only_context(mark: dict[str, Any]) -> None:
    found = _read(ASKED, {**WRONG, **mark}, AGAIN, RIGHT)
    assert [message.is_learned for message in found.messages] == [True, False, True, True]
    assert found.completion == "Paris."
    assert found.messages[1] == Message("assistant", "Lyon.", is_learned=False)


@pytest.mark.parametrize(
    "mark", [{"weight": 1}, {"weight": None}, {"train": True}, {"masked": False}, {"tool_calls": []}]
)
def test_what_is_done_anyway_may_be_said(mark: dict[str, Any]) -> None:
    assert _read(ASKED, {**WRONG, **mark}, AGAIN, RIGHT) == _read(ASKED, WRONG, AGAIN, RIGHT)


def test_nothing_is_learned_of_what_comes_after_the_last_answer_to_learn() -> None:
    assert _read(ASKED, RIGHT, AGAIN, {**WRONG, "weight": 0}) == _read(ASKED, RIGHT)
    with pytest.raises(BadRow, match="no answer of it is to be learned"):
        _read(ASKED, {**WRONG, "weight": 0})


def test_parts_of_text_are_joined_line_by_line() -> None:
    parts = [{"type": "text", "text": "Capital"}, {"type": "text", "text": "of France?"}]
    assert _read({**ASKED, "content": parts}, RIGHT).prompt_text == "Capital\nof France?"


def test_fields_of_turns_that_change_nothing_are_named_once() -> None:
    reader = RowReader("messages")
    reader({"messages": [{**ASKED, "timestamp": 5}, {**RIGHT, "timestamp": 6, "tokens": 3}], "source": "x"})
    assert reader.unread == ("source", "messages.timestamp", "messages.tokens")


CALL = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([ASKED, {**RIGHT, "tool_calls": CALL}], "message 2: field 'tool_calls' isn't used: tool calls aren't"),
        ([ASKED, {"role": "assistant", "content": None, "tool_calls": CALL}], "2: field 'tool_calls' isn't used"),
        ([ASKED, {"role": "assistant", "tool_calls": CALL}], "2: field 'tool_calls' isn't used"),
        ([ASKED, {**RIGHT, "function_call": {"name": "f"}}], "message 2: field 'function_call' isn't used"),
        ([ASKED, {"role": "tool", "content": "5", "tool_call_id": "c1"}, RIGHT], "is of role 'tool', .*; tool calls"),
        ([ASKED, {"role": "function", "name": "f", "content": "5"}, RIGHT], "of role 'function', .*; tool calls"),
        ([ASKED, {"role": "ipython", "content": "5"}, RIGHT], "is of role 'ipython', .*; tool calls aren't"),
        ([{"role": "developer", "content": "x"}, ASKED, RIGHT], "of role 'developer', .*; rename it to 'system'"),
        ([{"role": ["user"], "content": "x"}, RIGHT], r"of role \['user'\], not one of system, user, assistant"),
        ([{"from": "human", "value": "x"}, RIGHT], r"message 1 is dict without role .* \(it has: from, value\)"),
        ([{**ASKED, "name": "Ann"}, RIGHT], "message 1: field 'name' isn't used: the model isn't told names"),
        ([ASKED, {**RIGHT, "prefix": True}], "message 2: field 'prefix' isn't used"),
        ([ASKED, {**RIGHT, "refusal": "I won't."}], "message 2: field 'refusal' isn't used"),
        ([ASKED, {**RIGHT, "audio": {"id": "a"}}], "message 2: field 'audio' isn't used"),
        ([ASKED, {**RIGHT, "reasoning_content": "Hm."}], "message 2: field 'reasoning_content' isn't used: thoughts"),
        ([ASKED, {**RIGHT, "thinking": "Hm."}], "message 2: field 'thinking' isn't used"),
        ([ASKED, {**RIGHT, "mask": 1}], "message 2: field 'mask' isn't used: it's read differently"),
        ([ASKED, {**RIGHT, "Weight": 0}], "message 2: field 'Weight' isn't read, but 'weight' is known"),
        ([ASKED, {**RIGHT, "weight": 0.5}], r"message 2: weight is 0\.5; an answer is learned \(1\) or context \(0\)"),
        ([ASKED, {**RIGHT, "weight": 2}], "message 2: weight is 2;"),
        ([ASKED, {**RIGHT, "train": "no"}], "message 2: train is 'no';"),
        ([ASKED, {**RIGHT, "weight": 0, "train": True}], "message 2: weight and train contradict each other"),
        ([{**ASKED, "train": True}, RIGHT], "1: train asks to learn a turn of the user"),
        ([{**ASKED, "content": [{"type": "image_url", "image_url": {}}]}, RIGHT], "a part of type 'image_url'"),
        ([{**ASKED, "content": ["x"]}, RIGHT], "message 1 holds a part of type 'str'; only text is learned here"),
        ([ASKED, {**RIGHT, "content": "half \ud83d"}], "the content of message 2 holds half a character"),
        ([{"role": "system", "content": "x"}, RIGHT], "message 2 is the assistant's, but the user speaks first"),
    ],
)  # fmt: skip
def test_what_nobody_here_learns_is_refused_by_name(turns: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(BadRow, match=message):
        _read(*turns)
