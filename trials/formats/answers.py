"""Parsing of labelled answers: the first whole JSON object, and its label. Needs no torch."""

from __future__ import annotations

import json
from typing import Any

from trials.formats.conversations import NLI_LABELS

_DECODER = json.JSONDecoder()
# The guides' models write the label with and without quotes.
_LABELS: dict[Any, int] = {str(label): label for label in NLI_LABELS}


def first_object(text: str) -> dict[str, Any] | None:
    """Return the JSON object that begins at the first `{`, whatever stands before and after; None if it isn't whole."""
    start = text.find("{")
    if start < 0:
        return None
    try:
        found, _ = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):  # no JSON, an endless number, thousands of brackets
        return None
    return found if isinstance(found, dict) else None


def parse_label(answer: str) -> int | None:
    """Return the label that an answer predicts; None if it predicts none, which counts as wrong.

    The label is `predicted_label` in the answer's first whole JSON object: 0 or 1, as a number or that digit in quotes.
    Neither true nor 1.0 nor "yes" is a label.
    """
    label = (first_object(answer) or {}).get("predicted_label")
    if isinstance(label, str):
        return _LABELS.get(label)
    return label if type(label) is int and label in NLI_LABELS else None
