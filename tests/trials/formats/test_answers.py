"""Labels are read from the first whole JSON object of an answer, and strictly."""

from __future__ import annotations

import pytest

from trials.formats.answers import first_object, parse_label


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ('{"thought_process": "x", "predicted_label": 1}', 1),
        ('Sure: {"predicted_label": 0} .', 0),
        ('{"predicted_label": "1"}', 1),
        ('{"predicted_label": "0"}', 0),
        ('{"thought_process": "a } in it", "predicted_label": 1} and on and on }', 1),
        ('{"predicted_label": 1}{"predicted_label": 0}', 1),
        ('{"thought_process": {"deep": [1, {}]}, "predicted_label": 0}', 0),
        ('{"predicted_label": 2}', None),
        ('{"predicted_label": "2"}', None),
        ('{"predicted_label": " 1"}', None),
        ('{"predicted_label": "yes"}', None),
        ('{"predicted_label": true}', None),
        ('{"predicted_label": 1.0}', None),
        ('{"predicted_label": null}', None),
        ('{"predicted_label": [1]}', None),
        ('{"thought_process": "x"}', None),
        ('{"thought_process": {"predicted_label": 1}}', None),
        ('{"thought_process": {"predicted_label": 1}', None),
        ("{oops} " + '{"predicted_label": 1}', None),
        ('[{"predicted_label": 1}]', 1),
        ('{"predicted_label": 1', None),
        ('"predicted_label": 1}', None),
        ("} {", None),
        ("1", None),
        ("", None),
    ],
)
def test_only_a_whole_json_object_with_an_allowed_label_has_one(answer: str, label: int | None) -> None:
    assert parse_label(answer) == label


@pytest.mark.parametrize("answer", ['{"a":' * 100_000, '{"predicted_label": ' + "1" * 5000 + "}", '{"a": "\n"}'])
def test_what_a_wild_model_writes_is_no_object_and_no_crash(answer: str) -> None:
    assert first_object(answer) is None
    assert parse_label(answer) is None
