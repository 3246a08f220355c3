"""Rows of the chain-of-thought NLI format as prompt and completion."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trials.formats import FORMATS, BadRow, nli_example

ROW = {"id": "r1", "premise": " Ann is tall. ", "hypothesis": "Ann is.", "thought_process": "step 1: yes.", "label": 1}


def test_the_prompt_holds_the_question_and_the_completion_is_json() -> None:
    example = nli_example(ROW)
    assert example.prompt.startswith("Premise: Ann is tall.\nHypothesis: Ann is.\n\n")
    assert json.loads(example.completion) == {"thought_process": "step 1: yes.", "predicted_label": 1}
    assert (example.id, example.label) == ("r1", 1)


def test_the_answer_is_not_in_the_prompt() -> None:
    prompts = {nli_example({**ROW, "label": label, "thought_process": f"step {label}"}).prompt for label in (0, 1)}
    assert len(prompts) == 1


def test_the_thought_comes_before_the_label() -> None:
    assert list(json.loads(nli_example(ROW).completion)) == ["thought_process", "predicted_label"]


def test_text_stays_readable() -> None:
    assert "Zoë" in nli_example({**ROW, "thought_process": "Zoë"}).completion


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 2}, r"field 'label' is 2, not one of 0, 1"),
        ({"label": True}, r"field 'label' is True, not one of 0, 1"),
        ({"label": "1"}, r"field 'label' is '1', not one of 0, 1"),
        ({"label": 1.0}, r"field 'label' is 1\.0, not one of 0, 1"),
        ({"label": None}, r"field 'label' is None"),
        ({"premise": "  "}, r"field 'premise' is empty"),
        ({"thought_process": ""}, r"field 'thought_process' is empty"),
        ({"hypothesis": 5}, r"field 'hypothesis' is int, not text"),
    ],
)
def test_a_bad_field_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRow, match=message):
        nli_example({**ROW, **change})


@pytest.mark.parametrize("field", ["premise", "hypothesis", "thought_process", "label"])
def test_a_missing_field_is_named_beside_those_that_are_there(field: str) -> None:
    row = {key: value for key, value in ROW.items() if key != field}
    with pytest.raises(BadRow, match=f"field '{field}' is missing \\(the row has: id, "):
        nli_example(row)


def test_every_format_has_an_entry_in_the_settings() -> None:
    from typing import get_args

    from trials.config import DataFormat

    assert set(get_args(DataFormat)) == set(FORMATS)
