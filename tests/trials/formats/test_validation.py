"""All rows are checked before anything else, and all that is wrong is said at once."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from trials.data.validation import ValidatedRows, check
from trials.errors import DataError
from trials.formats.bad_rows import MAX_FAULTS_NAMED
from trials.formats.row_reader import RowReader
from trials.sources.source import DataSource

ROW = {"premise": "Ann is tall.", "hypothesis": "Ann is.", "thought_process": "step 1: yes.", "label": 1}


def _file(path: Path, *lines: Any) -> DataSource:
    file = path / "rows.jsonl"
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return DataSource(path=file)


def _reading(*, drop_bad: bool = False) -> ValidatedRows:
    return ValidatedRows(RowReader("nli_cot"), ("<s>", "</s>"), drop_bad, "nli_cot")


def test_rows_come_in_file_order(tmp_path: Path) -> None:
    source = _file(tmp_path, {"id": "b", **ROW}, "", {"id": "a", **ROW}, ROW)
    assert [example.id for example in _reading().good(source)] == ["b", "a", "line-4"]
    assert check(source, _reading()).ids == ["b", "a", "line-4"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("rubbish", r"line 2: no JSON \(Expecting value at column 1\)"),
        ({"premise": "x"}, r"line 2: field 'label' is missing"),
        ({**ROW, "label": "1"}, r"line 2: field 'label' is '1', not one of 0, 1"),
        ({**ROW, "thought_process": "a </s> b"}, r"line 2: its completion contains '</s>', which begins or ends a seq"),
        ({**ROW, "premise": "a <s> b"}, r"line 2: its prompt contains '<s>'"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, line: Any, message: str) -> None:
    source = _file(tmp_path, ROW, line, ROW)
    with pytest.raises(DataError, match=rf"rows\.jsonl: 1 row\(s\) can't be used as format 'nli_cot':\n  {message}"):
        check(source, _reading())


def test_all_bad_rows_are_counted_and_the_first_faults_are_named(tmp_path: Path) -> None:
    lines = ["?" * number + "rubbish" for number in range(5)] + ['{"a"' + " " * n + "rubbish" for n in range(20)]
    with pytest.raises(DataError) as caught:
        check(_file(tmp_path, *lines, ROW), _reading())
    message = str(caught.value)
    assert f"{len(lines)} row(s) can't be used" in message
    assert message.count("no JSON") == MAX_FAULTS_NAMED
    assert "\n  line 1, line 2, line 3, line 4, line 5: no JSON (Expecting value at column 1)\n" in message
    assert "... and 1 more" in message


def test_rows_with_the_same_fault_are_named_together(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        check(_file(tmp_path, *["rubbish"] * 25, {**ROW, "label": 2}), _reading())
    assert str(caught.value).splitlines()[1:3] == [
        "  line 1, line 2, line 3, line 4, line 5 and 20 more: no JSON (Expecting value at column 1)",
        "  line 26: field 'label' is 2, not one of 0, 1",
    ]


def test_bad_rows_can_be_dropped_but_not_silently(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = _file(tmp_path, {"id": "a", **ROW}, "rubbish", {"id": "b", **ROW})
    with caplog.at_level(logging.WARNING, logger="trials.data.validation"):
        checked = check(source, _reading(drop_bad=True))
    assert (checked.ids, checked.bad) == (["a", "b"], 1)
    assert "line 2: no JSON" in caplog.text


def test_rows_of_the_same_prompt_have_the_same_key(tmp_path: Path) -> None:
    other = {**ROW, "thought_process": "step 1: no.", "label": 0}
    keys = check(_file(tmp_path, ROW, other, {**ROW, "premise": "Bob is tall."}), _reading()).keys
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize("lines", [[], ["", " "]])
def test_a_file_without_rows(tmp_path: Path, lines: list[str]) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl has no rows\. Give a source with one row or more"):
        check(_file(tmp_path, *lines), _reading())


def test_a_selection_that_leaves_nothing_says_so(tmp_path: Path) -> None:
    thought = {**ROW, "true_label": 1, "predicted_label": 0}
    reading = ValidatedRows(RowReader("nli_cot", "correct"), (), drop_bad=True, format="nli_cot")
    with pytest.raises(DataError, match=r"no rows that can be used \(1 don't fit the format, 1 aren't among those sel"):
        check(_file(tmp_path, thought, "rubbish"), reading)
