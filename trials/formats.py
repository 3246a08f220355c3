"""How the rows of each data format become one conversation that ends with the answer to learn.

A format maps a row (the object of one JSON line, one line of a table) to an `Example`. Chat template, BOS and EOS
belong to the tokenizer and are added in `trials.tokenization`; nothing here knows about tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"
NLI_LABELS = (0, 1)
LABELLED = ("nli_cot", "nli")
"""Formats whose answers hold a label."""

Row = Mapping[str, Any]


class BadRow(ValueError):
    """A row doesn't fit its format; the message names the field and the reason."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; its role is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Example:
    """One row as a conversation. The last message is the assistant's: the answer to learn.

    A plain text is one message of the assistant alone: all of it is learned. `label` where the task has one.
    """

    id: str
    messages: tuple[Message, ...]
    label: int | None = None

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Everything before the answer; nothing for a plain text."""
        return self.messages[:-1]

    @property
    def prompt_text(self) -> str:
        """What the user said last; empty for a plain text."""
        return next((message.content for message in reversed(self.prompt) if message.role == USER), "")

    @property
    def completion(self) -> str:
        """The answer."""
        return self.messages[-1].content


def example(identity: str, prompt: str, completion: str, label: int | None = None) -> Example:
    """A conversation of one question and its answer."""
    return Example(identity, (Message(USER, prompt), Message(ASSISTANT, completion)), label)


def messages_example(row: Row) -> Example:
    """A chat row `{messages: [{role, content}, ...]}` that ends with the assistant. Raises `BadRow`."""
    turns = field_of(row, "messages")
    if not isinstance(turns, list) or not turns:
        raise BadRow(f"field 'messages' is {kind_of(turns)}, not a list of messages")
    messages = tuple(_message(turn, number) for number, turn in enumerate(turns, start=1))
    for number, (before, after) in enumerate(zip((None, *messages), messages, strict=False), start=1):
        if before is None and after.role == ASSISTANT:
            raise BadRow("message 1 is the assistant's, but a conversation begins with the user")
        if before is not None and after.role in {SYSTEM, before.role}:
            raise BadRow(
                f"message {number} is of role {after.role!r} after {before.role!r}; user and assistant alternate"
            )
    if messages[-1].role != ASSISTANT:
        raise BadRow(f"the last message is of role {messages[-1].role!r}, so there's no answer to learn")
    return Example(identity_of(row), messages)


def instruction_example(row: Row) -> Example:
    """An instruction row `{instruction, context, response}`; without a context the prompt has none. Raises `BadRow`.

    Alpaca's names `input` and `output` are understood too.
    """
    context = _optional_text(row, "context" if "context" in row else "input")
    prompt = text_of(row, "instruction")
    if context:
        prompt += f"\n\nContext:\n{context}"
    answer = "output" if "output" in row and "response" not in row else "response"
    return example(identity_of(row), prompt, text_of(row, answer))


def prompt_completion_example(row: Row) -> Example:
    """A row `{prompt, completion}`. Raises `BadRow`."""
    return example(identity_of(row), text_of(row, "prompt"), text_of(row, "completion"))


def title_body_example(row: Row) -> Example:
    """A question `{title, body}`: the title is learned from the body. Raises `BadRow`."""
    # What is asked for stands first: a body that is too long loses its end.
    prompt = f"Write a title for this question.\n\n{text_of(row, 'body')}"
    return example(identity_of(row), prompt, text_of(row, "title"))


def text_example(row: Row) -> Example:
    """A row `{text}`: plain text, all of it learned; or a finished `[INST] ... [/INST] ...` row. Raises `BadRow`."""
    text = without_specials(text_of(row, "text"))
    if not text:
        raise BadRow("field 'text' is empty")
    if text.startswith("[INST]"):
        return finished_example(row)
    return Example(identity_of(row), (Message(ASSISTANT, text),))


def finished_example(row: Row) -> Example:
    """A row whose `text` is finished, `<s>[INST] ... [/INST] ... </s>`, taken apart again. Raises `BadRow`.

    Its BOS and EOS are left out: the tokenizer adds its own, and rows of the guides had two.
    """
    prompt, found, completion = without_specials(text_of(row, "text")).partition("[/INST]")
    if not found or not prompt.startswith("[INST]"):
        raise BadRow("field 'text' is no finished row: it isn't of the form [INST] prompt [/INST] answer")
    if "[INST]" in completion:
        raise BadRow("field 'text' has more than one [INST]; give conversations in format 'messages'")
    prompt, completion = prompt.removeprefix("[INST]").strip(), completion.strip()
    if not prompt or not completion:
        raise BadRow(f"field 'text' has no {'answer after [/INST]' if prompt else 'prompt after [INST]'}")
    return example(identity_of(row), prompt, completion)


def without_specials(text: str) -> str:
    """The text without what some templates write as text: `<s>` before it, `</s>` after it."""
    text = text.strip()
    while text.startswith("<s>"):
        text = text.removeprefix("<s>").lstrip()
    while text.endswith("</s>"):
        text = text.removesuffix("</s>").rstrip()
    return text


def identity_of(row: Row) -> str:
    """The row's own id, in words that a message can use."""
    return str(row.get("id", ""))


def field_of(row: Row, name: str) -> Any:
    """A field's value. Raises `BadRow` if the row hasn't got it."""
    if row.get(name) is None:
        fields = ", ".join(key for key, value in row.items() if value is not None)
        raise BadRow(f"field '{name}' is missing (the row has: {fields or 'no fields'})")
    return row[name]


def text_of(row: Row, name: str) -> str:
    """A field's text, without white space around it. Raises `BadRow` if it's missing, empty or no text."""
    return _checked_text(field_of(row, name), f"field '{name}'")


def json_answer(thought_process: str | None, label: int) -> str:
    """One JSON object, thought first, label last."""
    thought = {} if thought_process is None else {"thought_process": thought_process}
    return json.dumps({**thought, "predicted_label": label}, ensure_ascii=False)


def _optional_text(row: Row, name: str) -> str:
    value = row.get(name)
    if value is None or (isinstance(value, float) and math.isnan(value)):  # an empty cell of a table
        return ""
    if not isinstance(value, str):
        raise BadRow(f"field '{name}' is {kind_of(value)}, not text")
    return value.strip()


def _message(turn: Any, number: int) -> Message:
    if not isinstance(turn, Mapping) or "role" not in turn or "content" not in turn:
        raise BadRow(f"message {number} is {kind_of(turn)} without role and content")
    if turn["role"] not in {USER, ASSISTANT, SYSTEM}:
        raise BadRow(f"message {number} is of role {turn['role']!r}, not one of system, user, assistant")
    return Message(turn["role"], _checked_text(turn["content"], f"the content of message {number}"))


def _checked_text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"{what} is {kind_of(value)}, not text")
    if not value.strip():
        raise BadRow(f"{what} is empty")
    return value.strip()


def kind_of(value: Any) -> str:
    """What a value is, for messages."""
    return "null" if value is None else type(value).__name__


TEXT_FORMATS: Mapping[str, Callable[[Row], Example]] = {
    "messages": messages_example,
    "instruction": instruction_example,
    "prompt_completion": prompt_completion_example,
    "title_body": title_body_example,
    "text": text_example,
}
