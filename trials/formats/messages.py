"""Rows of format `messages`: conversations as chat services store them, of which every answer is learned.

A turn may be marked as mere context, as OpenAI's and Mistral's files do by `weight: 0`. A turn with anything else that
should be learned or shown is refused by name. Examples are a tool call, a thought beside the answer, or an image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trials.formats.bad_rows import BadRow
from trials.formats.conversations import (
    ASSISTANT,
    SYSTEM,
    USER,
    Example,
    Message,
    Row,
    checked_text,
    field_of,
    identity_of,
    kind_of,
)
from trials.formats.row_fields import MEDIA_FIELDS, TOOL_FIELDS, FieldCheck

LEARNED_MARKS = ("weight", "loss_weight", "train", "training", "trainable", "loss", "loss_mask")
"""Fields of a turn whose 0 or false means that its answer isn't learned, and 1 or true that it is."""
CONTEXT_MARK = "masked"
"""Field of a turn whose true means that its answer isn't learned."""

_THOUGHTS = "thoughts beside the answer aren't learned; write them into its content"
TURN_FIELDS = frozenset({"role", "content", *LEARNED_MARKS, CONTEXT_MARK})
REFUSED_IN_TURNS: Mapping[str, str] = {
    **TOOL_FIELDS,
    **MEDIA_FIELDS,
    **dict.fromkeys(("reasoning_content", "reasoning", "thinking", "thought"), _THOUGHTS),
    "tool_call_id": "tool calls aren't learned here",
    "name": "the model isn't told names",
    "prefix": "an answer is learned whole, also its beginning",
    "refusal": "only the content is learned; write the refusal there",
    "mask": "it's read differently by different programs; say weight: 0 for an answer that isn't learned",
}
_OTHER_ROLES = {
    **dict.fromkeys(("tool", "function", "ipython", "observation", "function_call"), "tool calls aren't learned here"),
    **dict.fromkeys(("human", "prompter"), "rename it to 'user'"),
    **dict.fromkeys(("gpt", "model", "bot", "chatbot", "ai"), "rename it to 'assistant'"),
    "developer": "rename it to 'system'",
}


def messages_example(row: Row, turn_fields: FieldCheck) -> Example:
    """Convert a chat row `{messages: [{role, content}, ...]}` that ends with the assistant. Raises `BadRow`.

    Turns after the last answer that is learned are left out, as nothing is learned from them.
    """
    turns = field_of(row, "messages")
    if not isinstance(turns, list) or not turns:
        raise BadRow(f"field 'messages' is {kind_of(turns)}, not a list of messages")
    messages = tuple(_message(turn, number, turn_fields) for number, turn in enumerate(turns, start=1))
    _refuse_order(messages)
    last = max((index for index, message in enumerate(messages) if _is_learned(message)), default=None)
    if last is None:
        raise BadRow("no answer of it is to be learned: all of the assistant's turns are marked as context")
    return Example(identity_of(row), messages[: last + 1])


def _is_learned(message: Message) -> bool:
    return message.role == ASSISTANT and message.is_learned


def _refuse_order(messages: tuple[Message, ...]) -> None:
    for number, (before, after) in enumerate(zip((None, *messages), messages, strict=False), start=1):
        if before is None and after.role == ASSISTANT:
            raise BadRow("message 1 is the assistant's, but a conversation begins with the user")
        if before is not None and after.role in {SYSTEM, before.role}:
            raise BadRow(
                f"message {number} is of role {after.role!r} after {before.role!r}; user and assistant alternate"
            )
        if before is not None and before.role == SYSTEM and after.role == ASSISTANT:
            raise BadRow(f"message {number} is the assistant's, but the user speaks first after the system message")
    if messages[-1].role != ASSISTANT:
        raise BadRow(f"the last message is of role {messages[-1].role!r}, so there's no answer to learn")


def _message(turn: Any, number: int, turn_fields: FieldCheck) -> Message:
    if not isinstance(turn, Mapping):
        raise BadRow(f"message {number} is {kind_of(turn)} without role and content")
    role = turn.get("role")
    if role is not None and role not in (USER, ASSISTANT, SYSTEM):
        remedy = f"; {_OTHER_ROLES[role]}" if isinstance(role, str) and role in _OTHER_ROLES else ""
        raise BadRow(f"message {number} is of role {role!r}, not one of system, user, assistant{remedy}")
    if len(turn) > 2 or "content" not in turn:
        turn_fields.check(turn, f"message {number}: field ")
    if role is None or "content" not in turn:
        fields = ", ".join(map(str, turn))
        raise BadRow(f"message {number} is {kind_of(turn)} without role and content (it has: {fields or 'nothing'})")
    content = checked_text(_joined(turn["content"], number), f"the content of message {number}")
    return Message(role, content, _mark(turn, role, number))


def _joined(content: Any, number: int) -> Any:
    """Return the content; the texts of a list of parts are joined by line breaks, as vLLM and others join them."""
    if not isinstance(content, list):
        return content
    return "\n".join(_texts(content, number))


def _texts(parts: list[Any], number: int) -> Iterator[str]:
    for part in parts:
        if isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
            yield part["text"]
            continue
        kind = part.get("type") if isinstance(part, Mapping) else kind_of(part)
        raise BadRow(f"message {number} holds a part of type {kind!r}; only text is learned here")


def _mark(turn: Mapping[str, Any], role: str, number: int) -> bool:
    """Return whether an answer is learned, by the fields of the turn that say so."""
    if len(turn) == 2:
        return True
    said = {name: _yes_or_no(turn[name], f"message {number}: {name}") for name in LEARNED_MARKS if name in turn}
    said = {name: value for name, value in said.items() if value is not None}
    if turn.get(CONTEXT_MARK) is not None:
        said[CONTEXT_MARK] = not _yes_or_no(turn[CONTEXT_MARK], f"message {number}: {CONTEXT_MARK}")
    if len(set(said.values())) > 1:
        raise BadRow(f"message {number}: {' and '.join(said)} contradict each other")
    if role != ASSISTANT and any(said.values()):
        raise BadRow(
            f"message {number}: {next(iter(said))} asks to learn a turn of the {role}; only answers are learned"
        )
    return all(said.values())


def _yes_or_no(value: Any, what: str) -> bool | None:
    if value is None:
        return None
    if value in (0, 1) and isinstance(value, bool | int | float):
        return bool(value)
    raise BadRow(f"{what} is {value!r}; an answer is learned (1) or context (0), and nothing between")
