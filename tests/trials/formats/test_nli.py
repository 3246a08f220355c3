"""Rows of natural language inference: four shapes with a thought, and the label alone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trials.formats.bad_rows import BadRow
from trials.formats.nli import Select, nli_cot_example, nli_example

PAIR = {"id": "r1", "premise": " Ann is tall. ", "hypothesis": "Ann is."}
ROW = {**PAIR, "thought_process": "step 1: yes.", "label": 1}
RIGHT = {**PAIR, "thought_process": "step 1: yes.", "predicted_label": 1, "true_label": 1, "correct": True}
WRONG = {**RIGHT, "predicted_label": 0, "correct": False}
MENDED = {**RIGHT, "error_analysis": "no", "improved_thought_process": "step 1: after all."}
STILL_WRONG = {**MENDED, "predicted_label": 0}


def _answer(row: dict[str, Any], select: Select = "all") -> Any:
    found = nli_cot_example(row, select)
    return None if found is None else json.loads(found.completion)


def test_the_prompt_holds_the_question_and_the_completion_is_json() -> None:
    found = nli_cot_example(ROW)
    assert found is not None
    assert found.prompt_text.startswith("Premise: Ann is tall.\nHypothesis: Ann is.\n\n")
    assert json.loads(found.completion) == {"thought_process": "step 1: yes.", "predicted_label": 1}
    assert list(json.loads(found.completion)) == ["thought_process", "predicted_label"]
    assert (found.id, found.label) == ("r1", 1)


def test_the_answer_is_not_in_the_prompt() -> None:
    rows = [nli_cot_example({**ROW, "label": label, "thought_process": f"step {label}"}) for label in (0, 1)]
    assert len({row.prompt for row in rows if row}) == 1


def test_text_stays_readable() -> None:
    found = nli_cot_example({**ROW, "thought_process": "Zoë"})
    assert found is not None
    assert "Zoë" in found.completion


def test_the_label_alone() -> None:
    found = nli_example({**PAIR, "label": 0})
    assert (json.loads(found.completion), found.label) == ({"predicted_label": 0}, 0)
    assert "thought_process" not in found.prompt_text


@pytest.mark.parametrize(
    ("select", "row", "thought"),
    [
        ("all", RIGHT, "step 1: yes."),
        ("all", WRONG, None),
        ("all", MENDED, "step 1: after all."),
        ("all", STILL_WRONG, None),
        ("correct", RIGHT, "step 1: yes."),
        ("correct", WRONG, None),
        ("correct", MENDED, None),
        ("reflected", RIGHT, None),
        ("reflected", MENDED, "step 1: after all."),
        ("reflected", STILL_WRONG, None),
    ],
)
def test_which_thoughts_are_learned(select: Select, row: dict[str, Any], thought: str | None) -> None:
    wanted = None if thought is None else {"thought_process": thought, "predicted_label": 1}
    assert _answer(row, select) == wanted


def test_a_column_that_is_empty_in_a_table_decides_nothing() -> None:
    assert _answer({**RIGHT, "improved_thought_process": None, "label": None}, "correct") is not None
    assert _answer({**ROW, "true_label": None, "text": None}) is not None


def test_a_finished_row_keeps_its_own_prompt() -> None:
    text = '<s>[INST] Premise: a\nHypothesis: b\n\nThink. [/INST] {"thought_process": "t", "predicted_label": 0} </s>'
    found = nli_cot_example({"id": 17, "text": text})
    assert found is not None
    assert (found.id, found.label) == ("17", 0)
    assert found.prompt_text == "Premise: a\nHypothesis: b\n\nThink."
    assert found.completion == '{"thought_process": "t", "predicted_label": 0}'


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 2}, r"field 'label' is 2, not one of 0, 1"),
        ({"label": True}, r"field 'label' is True, not one of 0, 1"),
        ({"label": "1"}, r"field 'label' is '1', not one of 0, 1"),
        ({"label": 1.0}, r"field 'label' is 1\.0, not one of 0, 1"),
        ({"label": None}, r"field 'label' is missing"),
        ({"premise": "  "}, r"field 'premise' is empty"),
        ({"thought_process": ""}, r"field 'thought_process' is empty"),
        ({"hypothesis": 5}, r"field 'hypothesis' is int, not text"),
        ({"true_label": 3, "predicted_label": 1}, r"field 'true_label' is 3"),
        ({"true_label": 1}, r"field 'predicted_label' is missing"),
        ({"premise": None, "text": "[INST] a [/INST] b"}, r"the answer in field 'text' is no JSON"),
        (
            {"premise": None, "text": "[INST] a [/INST] [1]"},
            r"the answer in field 'text' is a JSON list, not an object",
        ),
        (
            {"premise": None, "text": '[INST] a [/INST] {"b": 1}'},
            r"field 'predicted_label' is missing \(the row has: b",
        ),
    ],
)
def test_a_bad_field_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRow, match=message):
        nli_cot_example({**ROW, **change})


@pytest.mark.parametrize("field", ["premise", "hypothesis", "thought_process", "label"])
def test_a_missing_field_is_named_beside_those_that_are_there(field: str) -> None:
    row = {key: value for key, value in ROW.items() if key != field}
    with pytest.raises(BadRow, match=f"field '{field}' is missing \\(the row has: id, "):
        nli_cot_example(row)


@pytest.mark.parametrize("select", ["correct", "reflected"])
def test_a_selection_needs_to_know_what_the_model_said(select: Select) -> None:
    with pytest.raises(BadRow, match=f"data.select={select} needs rows with predicted_label and true_label"):
        nli_cot_example(ROW, select)
