"""Fields of a row that each data format reads, and fields that it refuses.

A format reads some fields. Others are known to change what should be learned, such as a weight, tools or a history. A
row with a value in such a field is refused, and the field is named. All others, such as an id or a score, change
nothing: they aren't read, and `--plan` names them once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from typing import Any

from trials.formats.bad_rows import BadRow

_NO_TOOLS = "tool calls aren't learned here"
_NO_WEIGHTS = "rows have no weight here, all are learned alike"
_NO_PREFERENCES = "preferences aren't learned here, only answers"
_NO_MEDIA = "only text is learned here"
_AS_TURN = "give it as the first message of a row of format 'messages'"
_ALL_ROWS = "all rows are learned whole"

TOOL_FIELDS = dict.fromkeys(
    ("tools", "functions", "tool_calls", "function_call", "tool_choice", "parallel_tool_calls"), _NO_TOOLS
)
MEDIA_FIELDS = dict.fromkeys(("image", "images", "audio", "audios", "video", "videos"), _NO_MEDIA)
_OF_EVERY_ROW = {
    **TOOL_FIELDS,
    **MEDIA_FIELDS,
    **dict.fromkeys(("weight", "loss_weight", "sample_weight", "loss_scale"), _NO_WEIGHTS),
    **dict.fromkeys(("chosen", "rejected"), _NO_PREFERENCES),
    **dict.fromkeys(("mask", "masked", "loss", "loss_mask", "train", "training", "trainable"), _ALL_ROWS),
    "chat_template_kwargs": "the chat template gets no settings of a row",
}
_OF_QUESTIONS = {
    "system": _AS_TURN,
    "system_prompt": _AS_TURN,
    "history": "give the whole conversation as a row of format 'messages'",
}

_YES = frozenset({"1", "1.0", "true"})
_NO = frozenset({"", "0", "0.0", "false", "none", "null"})
_TRUE_CHANGES_NOTHING = frozenset(
    {"weight", "loss_weight", "sample_weight", "loss_scale", "train", "training", "trainable", "loss", "loss_mask"}
)
"""Fields whose 1 or true asks for what is done anyway. For other fields, 0 or false does."""
_ONLY_FALSE_COUNTS = frozenset({"label"})
"""Fields that ask for a change only if they are false: other data sets' labels are classes, which change nothing."""
_MAX_REMEMBERED = 1000


@dataclass(frozen=True)
class Fields:
    """Fields of one format: `shapes` are sets of required ones, `optional` are read too, `refused` has reasons."""

    shapes: tuple[frozenset[str], ...]
    optional: frozenset[str] = frozenset()
    refused: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def read(self) -> frozenset[str]:
        """All fields that the format ever reads."""
        return frozenset({"id"}).union(self.optional, *self.shapes)

    def fit(self, names: Collection[str]) -> bool:
        """Return whether a row of these fields has all that one of the format's shapes requires."""
        return any(shape.issubset(names) for shape in self.shapes)


def _fields(*shapes: str, optional: str = "", refused: Mapping[str, str] | None = None) -> Fields:
    wanted = tuple(frozenset(shape.split()) for shape in shapes)
    return Fields(wanted, frozenset(optional.split()), {**_OF_EVERY_ROW, **(refused or {})})


_NLI_MODEL = "premise hypothesis thought_process predicted_label true_label"

FORMAT_FIELDS: Mapping[str, Fields] = {
    "messages": _fields(
        "messages", refused={"system": "give it as the first message", "system_prompt": "give it as the first message"}
    ),
    "instruction": _fields(
        "instruction response", "instruction output", optional="context input", refused=_OF_QUESTIONS
    ),
    "prompt_completion": _fields(
        "prompt completion", refused={**_OF_QUESTIONS, "label": f"{_NO_PREFERENCES}, and this one isn't wanted"}
    ),
    "title_body": _fields("title body", refused=_OF_QUESTIONS),
    "text": _fields("text"),
    "nli": _fields("premise hypothesis label", refused=_OF_QUESTIONS),
    "nli_cot": _fields(
        "premise hypothesis thought_process label",
        "text",
        _NLI_MODEL,
        optional="improved_thought_process",
        refused={"system": _AS_TURN, "system_prompt": _AS_TURN},
    ),
}
"""Fields by `data.format`.

The CoT-NLI guide's thoughts carry a `chat_history`, of which the thought is the last answer.
"""


def is_empty(value: Any) -> bool:
    """Return whether a field has no content at all."""
    return value is None or (isinstance(value, str | list | tuple | Mapping) and not value)


def changes_nothing(name: str, value: Any) -> bool:
    """Return whether a refused field's value asks for no change: empty, null, or a weight of 1."""
    if is_empty(value):
        return True
    said = str(value).strip().casefold()
    if name in _ONLY_FALSE_COUNTS:
        return said != "false"
    return said in _YES if name in _TRUE_CHANGES_NOTHING else said in _NO


def plain(name: str) -> str:
    """Return a name without differences in spelling: case, spaces, dashes."""
    return "".join(character for character in name.casefold() if character.isalnum())


def nearest(name: str, names: Collection[str]) -> str | None:
    """Return the name most like this one: equal but for case and spaces, or nearly; None if there is none."""
    by_plain = {plain(known): known for known in names}
    found = get_close_matches(plain(name), by_plain, n=1, cutoff=0.8)
    return by_plain[found[0]] if found else None


def formats_of(names: Collection[str]) -> list[str]:
    """Return the formats whose required fields are all there."""
    return [data_format for data_format, fields in FORMAT_FIELDS.items() if fields.fit(names)]


class FieldCheck:
    """Refuses rows, or turns of a conversation, with fields that would be missed, and collects unread ones."""

    def __init__(self, read: Collection[str], refused: Mapping[str, str]) -> None:
        self._read = frozenset(read)
        self._refused = refused
        self._known = {plain(name): name for name in (*refused, *(name for name in read if name != "id"))}
        self._shapes: dict[tuple[str, ...], tuple[tuple[str, str, Callable[[str, Any], bool]], ...]] = {}
        self.unread: dict[str, None] = {}
        """Names of fields that change nothing, in the order of the rows."""

    def check(self, row: Mapping[str, Any], what: str = "field ") -> None:
        """Raise `BadRow` for the first field that has a meaning and isn't read."""
        # Nearly all rows of a source have the same fields, so each set of names is checked once.
        names = tuple(row)
        questionable = self._shapes.get(names)
        if questionable is None:
            if len(self._shapes) >= _MAX_REMEMBERED:  # rows that hold data in their fields' names
                self._shapes.clear()
            questionable = self._shapes[names] = self._questionable(names)
        for name, reason, is_harmless in questionable:
            if not is_harmless(name, row[name]):
                raise BadRow(f"{what}{name!r} {reason}")

    def _questionable(self, names: tuple[str, ...]) -> tuple[tuple[str, str, Callable[[str, Any], bool]], ...]:
        found: list[tuple[str, str, Callable[[str, Any], bool]]] = []
        for name in names:
            known = self._known.get(plain(name))
            if name in self._read:
                continue
            if name in self._refused:
                reason = f"isn't used: {self._refused[name]}. Remove the row, or the field if it changes nothing"
                found.append((name, reason, changes_nothing))
            elif known is not None:
                reason = f"isn't read, but {known!r} is known. Rename it, or leave it out"
                found.append((name, reason, lambda _, value: is_empty(value)))
            elif len(self.unread) < _MAX_REMEMBERED:
                self.unread[name] = None
        return tuple(found)
