"""Conversion of each data format's rows into one conversation that ends with the answer to learn.

A format maps a row (the object of one JSON line, one line of a table) to an `Example`. Chat template, BOS and EOS
belong to the tokenizer and are added in `trials.data.tokenization`. Nothing here depends on tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trials.formats.bad_rows import BadRow, printable
from trials.formats.row_fields import FORMAT_FIELDS, formats_of, nearest
from trials.formats.texts import fault_in

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"
NLI_LABELS = (0, 1)
LABELLED = ("nli_cot", "nli")
"""Formats whose answers hold a label."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; its role is system, user or assistant."""

    role: str
    content: str
    is_learned: bool = True
    """False for an answer of the assistant that is only context. Turns of others are never learned."""

    @property
    def parts(self) -> tuple[str | bool, ...]:
        """The message as it's written and hashed; `is_learned` is included only if it's False."""
        return (self.role, self.content) if self.is_learned else (self.role, self.content, False)


@dataclass(frozen=True)
class Example:
    """One row as a conversation. The last message is the assistant's: the answer to learn.

    A plain text is one message of the assistant alone: all of it is learned. `label` is None if the task has none.
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
        """The user's last turn; empty for a plain text."""
        return next((message.content for message in reversed(self.prompt) if message.role == USER), "")

    @property
    def completion(self) -> str:
        """The answer."""
        return self.messages[-1].content


def example(identity: str, prompt: str, completion: str, label: int | None = None) -> Example:
    """Return a conversation of one question and its answer."""
    return Example(identity, (Message(USER, prompt), Message(ASSISTANT, completion)), label)


def instruction_example(row: Row) -> Example:
    """Convert a row `{instruction, context, response}`; without a context the prompt has none. Raises `BadRow`.

    Alpaca's names `input` and `output` are understood too.
    """
    context = _optional_text(row, _one_of(row, "context", "input"))
    prompt = text_of(row, "instruction")
    if context:
        prompt += f"\n\nContext:\n{context}"
    answer = _one_of(row, "response", "output")
    return example(identity_of(row), prompt, text_of(row, answer))


def prompt_completion_example(row: Row) -> Example:
    """Convert a row `{prompt, completion}`. Raises `BadRow`."""
    return example(identity_of(row), text_of(row, "prompt"), text_of(row, "completion"))


def title_body_example(row: Row) -> Example:
    """Convert a question `{title, body}`: the title is learned from the body. Raises `BadRow`."""
    # The request stands first, because a body that is too long loses its end.
    prompt = f"Write a title for this question.\n\n{text_of(row, 'body')}"
    return example(identity_of(row), prompt, text_of(row, "title"))


def text_example(row: Row) -> Example:
    """Convert a row `{text}`: plain text, all learned; or a finished `[INST] ... [/INST] ...` row. Raises `BadRow`."""
    text = without_specials(text_of(row, "text"))
    if not text:
        raise BadRow("field 'text' is empty")
    if text.startswith("[INST]"):
        return finished_example(row)
    return Example(identity_of(row), (Message(ASSISTANT, text),))


def finished_example(row: Row) -> Example:
    """Take apart a row whose `text` is finished, `<s>[INST] ... [/INST] ... </s>`. Raises `BadRow`.

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
    """Return the text without special tokens that some templates write as text: `<s>` before it, `</s>` after it."""
    text = text.strip()
    while text.startswith("<s>"):
        text = text.removeprefix("<s>").lstrip()
    while text.endswith("</s>"):
        text = text.removesuffix("</s>").rstrip()
    return text


def identity_of(row: Row) -> str:
    """Return the row's own id as printable text; empty if it has none."""
    return printable(str(row.get("id", "")))


def field_of(row: Row, name: str) -> Any:
    """Return a field's value. Raises `BadRow` if the row lacks it."""
    if row.get(name) is None:
        fields = [key for key, value in row.items() if value is not None]
        raise BadRow(
            f"field '{name}' is missing (the row has: {', '.join(fields) or 'no fields'}){_hint(name, fields)}"
        )
    return row[name]


def _hint(name: str, fields: Sequence[str]) -> str:
    """Return a hint on a missing field: its likely name in the row, or the format that the row is in."""
    others = formats_of(fields)
    if any(name in FORMAT_FIELDS[other].read for other in others):
        return ""  # the row fits the format, in another of its shapes
    if others:
        return f"; this is a row of format {others[0]!r}"
    found = nearest(name, fields)
    return f"; rename {found!r} to {name!r}" if found is not None else ""


def text_of(row: Row, name: str) -> str:
    """Return a field's text, without white space around it. Raises `BadRow` if it's missing, empty or no text."""
    return checked_text(field_of(row, name), f"field '{name}'")


def json_answer(thought_process: str | None, label: int) -> str:
    """Return an answer as one JSON object, thought first, label last. `thought_process` None: the label alone."""
    thought = {} if thought_process is None else {"thought_process": thought_process}
    return json.dumps({**thought, "predicted_label": label}, ensure_ascii=False)


def _one_of(row: Row, name: str, other: str) -> str:
    """Return which of two names for one field the row uses. Raises `BadRow` if both have values, and not the same."""
    values = [row.get(key) for key in (name, other)]
    if all(value not in (None, "") for value in values) and values[0] != values[1]:
        raise BadRow(f"fields {name!r} and {other!r} mean the same, but differ. Leave one of them out")
    return other if values[0] in (None, "") and other in row else name


def _optional_text(row: Row, name: str) -> str:
    value = row.get(name)
    if value is None or (isinstance(value, float) and math.isnan(value)):  # an empty cell of a table
        return ""
    if isinstance(value, str) and not value.strip():
        return ""
    return checked_text(value, f"field '{name}'")


def checked_text(value: Any, what: str) -> str:
    """Return text without white space around it.

    Raises `BadRow` if it's no text, empty, or holds what no tokenizer takes.
    """
    if not isinstance(value, str):
        as_text = f'; make it text: "{str(value).lower()}"' if isinstance(value, int | float) else ""
        raise BadRow(f"{what} is {kind_of(value)}, not text{as_text}")
    text = value.strip()
    if not text:
        raise BadRow(f"{what} is empty")
    fault = fault_in(text)
    if fault is not None:
        raise BadRow(f"{what} holds {fault}")
    return text


def kind_of(value: Any) -> str:
    """Return the name of a value's type, for messages."""
    return "null" if value is None else type(value).__name__


TEXT_FORMATS: Mapping[str, Callable[[Row], Example]] = {
    "instruction": instruction_example,
    "prompt_completion": prompt_completion_example,
    "title_body": title_body_example,
    "text": text_example,
}
"""The formats with one question or none, and no label."""
