"""How the rows of each data format become one prompt and one completion.

A format maps a row (the object of one JSON line) to an `Example`. The chat template, BOS and EOS belong to the
tokenizer and are added in `trials.tokenization`; nothing here knows about tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

NLI_LABELS = (0, 1)

NLI_INSTRUCTION = (
    "Does the premise entail the hypothesis? Reason in steps, then answer in JSON: "
    '{"thought_process": "...", "predicted_label": 0 or 1}'
)


class BadRow(ValueError):
    """A row doesn't fit its format; the message names the field and the reason."""


@dataclass(frozen=True)
class Example:
    """One row as text: what the user says, what the model should answer, and the label where the task has one."""

    id: str
    prompt: str
    completion: str
    label: int | None = None


def nli_prompt(premise: str, hypothesis: str) -> str:
    """The user's turn of a chain-of-thought NLI row."""
    return f"Premise: {premise}\nHypothesis: {hypothesis}\n\n{NLI_INSTRUCTION}"


def nli_completion(thought_process: str, label: int) -> str:
    """The assistant's turn of a chain-of-thought NLI row: one JSON object, thought first, label last."""
    return json.dumps({"thought_process": thought_process, "predicted_label": label}, ensure_ascii=False)


def nli_example(row: Mapping[str, Any]) -> Example:
    """An NLI row `{id, premise, hypothesis, thought_process, label}` as an example. Raises `BadRow`."""
    label = _field(row, "label")
    if type(label) is not int or label not in NLI_LABELS:  # True == 1, but is no label
        raise BadRow(f"field 'label' is {label!r}, not one of {', '.join(map(str, NLI_LABELS))}")
    return Example(
        id=str(row.get("id", "")),
        prompt=nli_prompt(_text(row, "premise"), _text(row, "hypothesis")),
        completion=nli_completion(_text(row, "thought_process"), label),
        label=label,
    )


FORMATS: Mapping[str, Callable[[Mapping[str, Any]], Example]] = {"nli_cot": nli_example}


def _field(row: Mapping[str, Any], name: str) -> Any:
    if name not in row:
        raise BadRow(f"field '{name}' is missing (the row has: {', '.join(row) or 'no fields'})")
    return row[name]


def _text(row: Mapping[str, Any], name: str) -> str:
    value = _field(row, name)
    if not isinstance(value, str):
        raise BadRow(f"field '{name}' is {type(value).__name__}, not text")
    if not value.strip():
        raise BadRow(f"field '{name}' is empty")
    return value.strip()
