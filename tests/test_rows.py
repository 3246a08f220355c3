"""Data files: every row checked, and all that is wrong said at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trials.errors import DataError
from trials.rows import MAX_ROWS_NAMED, read_examples

ROW = {"premise": "Ann is tall.", "hypothesis": "Ann is.", "thought_process": "step 1: yes.", "label": 1}


def _file(path: Path, *lines: Any) -> Path:
    file = path / "rows.jsonl"
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return file


def test_rows_come_in_file_order_and_empty_lines_are_nothing(tmp_path: Path) -> None:
    file = _file(tmp_path, {"id": "b", **ROW}, "", "   ", {"id": "a", **ROW}, ROW)
    assert [example.id for example in read_examples(file, "nli_cot")] == ["b", "a", "line-5"]


def test_a_limit_takes_rows_from_the_top_and_reads_no_further(tmp_path: Path) -> None:
    file = _file(tmp_path, {"id": "a", **ROW}, {"id": "b", **ROW}, "rubbish")
    assert [example.id for example in read_examples(file, "nli_cot", limit=2)] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("rubbish", r"line 2: no JSON \(Expecting value at column 1\)"),
        ('{"premise": "cut', r"line 2: no JSON \(Unterminated string"),
        ([1, 2], r"line 2: a JSON list, not an object"),
        ("null", r"line 2: a JSON NoneType, not an object"),
        ({"premise": "x"}, r"line 2: field 'label' is missing"),
        ({**ROW, "label": "1"}, r"line 2: field 'label' is '1', not one of 0, 1"),
        ({**ROW, "thought_process": " "}, r"line 2: field 'thought_process' is empty"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, line: Any, message: str) -> None:
    file = _file(tmp_path, ROW, line, ROW)
    with pytest.raises(DataError, match=rf"rows\.jsonl: 1 row\(s\) can't be used as format 'nli_cot':\n  {message}"):
        read_examples(file, "nli_cot")


def test_all_bad_rows_are_counted_and_the_first_are_named(tmp_path: Path) -> None:
    file = _file(tmp_path, *["rubbish"] * (MAX_ROWS_NAMED + 5), ROW)
    with pytest.raises(DataError) as caught:
        read_examples(file, "nli_cot")
    message = str(caught.value)
    assert f"{MAX_ROWS_NAMED + 5} row(s) can't be used" in message
    assert message.count("no JSON") == MAX_ROWS_NAMED
    assert "... and 5 more" in message


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_file_without_rows(tmp_path: Path, content: str) -> None:
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(DataError, match=r"rows\.jsonl has no rows\. Give a JSON Lines file"):
        read_examples(tmp_path / "rows.jsonl", "nli_cot")


def test_no_file_a_folder_and_another_encoding(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data file .*absent\.jsonl\. Give the path"):
        read_examples(tmp_path / "absent.jsonl", "nli_cot")
    with pytest.raises(DataError, match="no data file"):
        read_examples(tmp_path, "nli_cot")
    (tmp_path / "latin.jsonl").write_bytes(json.dumps({**ROW, "premise": "Zoë"}, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.jsonl is not UTF-8 text .* Save it as JSON Lines in UTF-8"):
        read_examples(tmp_path / "latin.jsonl", "nli_cot")
