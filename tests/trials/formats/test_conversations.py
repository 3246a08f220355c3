"""Rows of every format as conversations."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from trials.config import DataFormat
from trials.formats.bad_rows import BadRow
from trials.formats.conversations import TEXT_FORMATS, Example, Message, example
from trials.formats.row_fields import FORMAT_FIELDS
from trials.formats.row_reader import RowReader

USER_TURN, ANSWER = {"role": "user", "content": " Hi. "}, {"role": "assistant", "content": "Hello."}


def _read(data_format: str, row: dict[str, Any]) -> Example:
    found = RowReader(data_format)(row)
    assert found is not None
    return found


def test_every_format_of_the_settings_can_be_read() -> None:
    assert {*TEXT_FORMATS, "messages", "nli_cot", "nli"} == set(FORMAT_FIELDS) == set(get_args(DataFormat))
    assert all(callable(RowReader(data_format)) for data_format in get_args(DataFormat))


@pytest.mark.parametrize(
    ("data_format", "row", "prompt", "completion"),
    [
        ("prompt_completion", {"prompt": " Why? ", "completion": " So. "}, "Why?", "So."),
        ("title_body", {"title": "T", "body": "B\n\nC"}, "Write a title for this question.\n\nB\n\nC", "T"),
        ("instruction", {"instruction": "Do.", "context": "", "response": "Done."}, "Do.", "Done."),
        ("instruction", {"instruction": "Do.", "context": None, "response": "Done."}, "Do.", "Done."),
        ("instruction", {"instruction": "Do.", "context": float("nan"), "response": "Done."}, "Do.", "Done."),
        ("instruction", {"instruction": "Do.", "response": "Done."}, "Do.", "Done."),
        ("instruction", {"instruction": "Do.", "context": "It.", "response": "Done."}, "Do.\n\nContext:\nIt.", "Done."),
        ("instruction", {"instruction": "Do.", "input": "It.", "output": "Done."}, "Do.\n\nContext:\nIt.", "Done."),
        ("text", {"text": "<s>[INST] Why? [/INST] So. </s>"}, "Why?", "So."),
        ("text", {"text": "<s> <s>[INST]Why?[/INST]So.</s></s>"}, "Why?", "So."),
        ("messages", {"messages": [USER_TURN, ANSWER]}, "Hi.", "Hello."),
    ],
)
def test_a_question_and_its_answer(data_format: str, row: dict[str, Any], prompt: str, completion: str) -> None:
    assert _read(data_format, {"id": "r1", **row}) == example("r1", prompt, completion)


def test_no_context_never_reads_as_the_word_none() -> None:
    for missing in ({}, {"context": None}, {"context": ""}, {"context": float("nan")}):
        prompt = _read("instruction", {"instruction": "Do.", "response": "Done.", **missing}).prompt_text
        assert "None" not in prompt
        assert "nan" not in prompt
        assert "Context" not in prompt


def test_a_conversation_keeps_all_its_turns() -> None:
    system = {"role": "system", "content": "Be brief."}
    found = _read("messages", {"id": "r1", "messages": [system, USER_TURN, ANSWER, USER_TURN, ANSWER]})
    assert [message.role for message in found.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert found.prompt == found.messages[:-1]
    assert (found.prompt_text, found.completion) == ("Hi.", "Hello.")


def test_a_plain_text_has_no_prompt() -> None:
    found = _read("text", {"id": "r1", "text": "<s> All of it.</s>"})
    assert found == Example("r1", (Message("assistant", "All of it."),))
    assert (found.prompt, found.prompt_text) == ((), "")


@pytest.mark.parametrize(
    ("data_format", "row", "message"),
    [
        ("messages", {}, r"field 'messages' is missing \(the row has: id\)"),
        ("messages", {"messages": "Hi."}, r"field 'messages' is str, not a list of messages"),
        ("messages", {"messages": []}, r"field 'messages' is list, not a list of messages"),
        ("messages", {"messages": ["Hi."]}, r"message 1 is str without role and content"),
        ("messages", {"messages": [{"role": "user"}]}, r"message 1 is dict without role and content"),
        ("messages", {"messages": [{"role": "bot", "content": "Hi."}]}, r"message 1 is of role 'bot', not one of"),
        ("messages", {"messages": [{"role": "user", "content": " "}, ANSWER]}, r"content of message 1 is empty"),
        ("messages", {"messages": [{"role": "user", "content": None}, ANSWER]}, r"of message 1 is null, not text"),
        ("messages", {"messages": [ANSWER]}, r"message 1 is the assistant's, but a conversation begins with the user"),
        ("messages", {"messages": [USER_TURN, USER_TURN]}, r"message 2 is of role 'user' after 'user'"),
        (
            "messages",
            {"messages": [USER_TURN, ANSWER, {"role": "system", "content": "x"}]},
            r"message 3 is of role 'sy",
        ),
        ("messages", {"messages": [USER_TURN]}, r"the last message is of role 'user', so there's no answer to learn"),
        ("instruction", {"response": "x"}, r"field 'instruction' is missing \(the row has: id, response\)"),
        ("instruction", {"instruction": "x", "context": 5, "response": "x"}, r"field 'context' is int, not text"),
        ("instruction", {"instruction": "x", "response": ""}, r"field 'response' is empty"),
        ("prompt_completion", {"prompt": "x"}, r"field 'completion' is missing"),
        ("prompt_completion", {"prompt": ["x"], "completion": "x"}, r"field 'prompt' is list, not text"),
        ("title_body", {"title": "x", "body": None}, r"field 'body' is missing \(the row has: id, title\)"),
        ("text", {"text": " "}, r"field 'text' is empty"),
        ("text", {"text": "<s> </s>"}, r"field 'text' is empty"),
        ("instruction", {"instruction": "x"}, r"field 'response' is missing"),
        ("text", {"text": "[INST] Why?"}, r"field 'text' is no finished row: it isn't of the form \[INST\] prompt"),
        ("text", {"text": "[INST] Why? [/INST] </s>"}, r"field 'text' has no answer after \[/INST\]"),
        ("text", {"text": "[INST] [/INST] So."}, r"field 'text' has no prompt after \[INST\]"),
        ("text", {"text": "[INST] a [/INST] b [INST] c [/INST] d"}, r"more than one \[INST\]; give conversations in"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(data_format: str, row: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRow, match=message):
        RowReader(data_format)({"id": "r1", **row})
