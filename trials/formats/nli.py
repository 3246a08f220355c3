"""Rows of natural language inference: with a chain of thought, finished, with reflections, or with the label alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal

from trials.formats.bad_rows import BadRow
from trials.formats.conversations import (
    NLI_LABELS,
    Example,
    Row,
    example,
    field_of,
    finished_example,
    identity_of,
    json_answer,
    kind_of,
    text_of,
)

Select = Literal["all", "correct", "reflected"]

NLI_INSTRUCTION = (
    "Does the premise entail the hypothesis? Reason in steps, then answer in JSON: "
    '{"thought_process": "...", "predicted_label": 0 or 1}'
)
LABEL_INSTRUCTION = 'Does the premise entail the hypothesis? Answer in JSON: {"predicted_label": 0 or 1}'


def nli_prompt(premise: str, hypothesis: str, instruction: str = NLI_INSTRUCTION) -> str:
    """Return the user's turn of an NLI row."""
    return f"Premise: {premise}\nHypothesis: {hypothesis}\n\n{instruction}"


def nli_example(row: Row) -> Example:
    """Convert a row `{premise, hypothesis, label}`, to be answered by the label alone. Raises `BadRow`."""
    label = _label(row, "label")
    return example(identity_of(row), _prompt(row, LABEL_INSTRUCTION), json_answer(None, label), label)


def nli_cot_example(row: Row, select: Select = "all") -> Example | None:
    """Convert a row with a chain of thought, in one of four shapes; None if it isn't learned. Raises `BadRow`.

    The shapes are `{premise, hypothesis, thought_process, label}` and a finished `{text}`. A third is a model's
    thought, with `predicted_label` and `true_label`. The fourth is a reflection on a wrong thought, which has
    `improved_thought_process` too. A thought or a reflection that missed the true label teaches the wrong answer, so
    it's never learned.
    """
    if row.get("improved_thought_process") is not None:
        return _thought(row, "improved_thought_process") if select != "correct" else None
    if row.get("true_label") is not None:
        return _thought(row, "thought_process") if select != "reflected" else None
    if select != "all":
        raise BadRow(f"data.select={select} needs rows with predicted_label and true_label; this one has no true_label")
    if row.get("text") is not None and row.get("premise") is None:
        return _finished(row)
    label = _label(row, "label")
    return example(identity_of(row), _prompt(row), json_answer(text_of(row, "thought_process"), label), label)


def _thought(row: Row, field: str) -> Example | None:
    label, thought = _label(row, "true_label"), text_of(row, field)
    if _label(row, "predicted_label") != label:
        return None
    return example(identity_of(row), _prompt(row), json_answer(thought, label), label)


def _finished(row: Row) -> Example:
    found = finished_example(row)
    try:
        answer = json.loads(found.completion)
    except json.JSONDecodeError as error:
        raise BadRow(f"the answer in field 'text' is no JSON ({error.msg} at column {error.colno} of it)") from error
    if not isinstance(answer, Mapping):
        raise BadRow(f"the answer in field 'text' is a JSON {kind_of(answer)}, not an object")
    return example(found.id, found.prompt_text, found.completion, _label(answer, "predicted_label"))


def _prompt(row: Row, instruction: str = NLI_INSTRUCTION) -> str:
    return nli_prompt(text_of(row, "premise"), text_of(row, "hypothesis"), instruction)


def _label(row: Row, field: str) -> int:
    label = field_of(row, field)
    if type(label) is not int or label not in NLI_LABELS:  # True == 1, but is no label
        raise BadRow(f"field '{field}' is {label!r}, not one of {', '.join(map(str, NLI_LABELS))}")
    return label
