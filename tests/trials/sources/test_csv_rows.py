"""CSV files as people save them: every cell is text, and what is wrong with a row or the header is said."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from trials.errors import DataError
from trials.formats.bad_rows import BadRow
from trials.sources.readers import read_rows
from trials.sources.source import DataSource


def _rows(path: Path, content: str | bytes, encoding: str = "utf-8") -> list[Any]:
    file = path / "rows.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return [row for _, row in read_rows(DataSource(path=file))]


def _cells(path: Path, content: str | bytes, encoding: str = "utf-8") -> list[dict[str, Any]]:
    return [{key: row[key] for key in row if key != "id"} for row in _rows(path, content, encoding)]


TEXT = 'prompt,completion\r\nWhich agent?,007\r\n"A ""poem"",\r\nplease",NA\r\nÄ?,None\r\nx,null\r\ny,\r\n'
ROWS = [
    {"prompt": "Which agent?", "completion": "007"},
    {"prompt": 'A "poem",\r\nplease', "completion": "NA"},
    {"prompt": "Ä?", "completion": "None"},
    {"prompt": "x", "completion": "null"},
    {"prompt": "y", "completion": ""},
]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_every_cell_is_text_in_every_encoding(tmp_path: Path, encoding: str) -> None:
    assert _cells(tmp_path, TEXT, encoding) == ROWS


def test_a_column_doesn_t_change_its_type_where_words_come_late(tmp_path: Path) -> None:
    numbers = "".join(f"How much is {n}?,{n:03}\n" for n in range(10_040))
    found = _cells(tmp_path, f"prompt,completion\n{numbers}And a?,I don't know\n")
    assert (found[7]["completion"], found[-1]["completion"]) == ("007", "I don't know")
    assert len(found) == 10_041


def test_labels_are_numbers_as_in_other_files(tmp_path: Path) -> None:
    found = _cells(tmp_path, "premise,label,true_label,predicted_label\na,1,0,yes\n0,01,1.0,0\n")
    assert found[0] == {"premise": "a", "label": 1, "true_label": 0, "predicted_label": "yes"}
    assert found[1] == {"premise": "0", "label": "01", "true_label": "1.0", "predicted_label": 0}


@pytest.mark.parametrize(("delimiter", "shown"), [(";", "';'"), ("\t", r"'\t'"), ("|", "'|'")])
def test_other_delimiters_are_read_and_said(
    tmp_path: Path, delimiter: str, shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="trials.sources.csv_rows"):
        found = _cells(tmp_path, f"prompt{delimiter}completion\nHi, you{delimiter}1,5\n")
        assert _cells(tmp_path, f"prompt{delimiter}completion\nHi, you{delimiter}1,5\n") == found
    assert found == [{"prompt": "Hi, you", "completion": "1,5"}]
    assert caplog.text.count(f"its columns are separated by {shown}, not by commas") == 1


def test_rows_have_their_lines_and_those_with_too_many_or_too_few_cells_are_bad(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('\na,b\n1,"2\n3"\n\n,\n4,5,6\n7\n"8"x,9\n10,11\n')
    found = list(read_rows(DataSource(path=tmp_path / "rows.csv")))
    assert [place for place, _ in found] == [
        "row 1 (line 3)", "row 2 (line 7)", "row 3 (line 8)", "row 4 (line 9)", "row 5 (line 10)",
    ]  # fmt: skip
    assert [isinstance(row, BadRow) for _, row in found] == [False, True, True, True, False]
    assert str(found[1][1]) == "it has 3 cell(s), and the header has 2; quote cells that hold separators"
    assert str(found[2][1]).startswith("it has 1 cell(s), and the header has 2")
    assert str(found[3][1]).startswith("no CSV (',' expected after '\"')")
    assert found[4][1] == {"id": "row-5", "a": "10", "b": "11"}


def test_cells_may_be_long_and_columns_without_a_name_get_one(tmp_path: Path) -> None:
    long = "word " * 100_000
    assert _cells(tmp_path, f",text,,\n0,{long},,\n") == [
        {"column 1": "0", "text": long, "column 3": "", "column 4": ""}
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b,a\n1,2,3\n", r"rows\.csv: column 'a' stands in the header more than once\. Rename or remove the others"),
        ('a,b\n1,2\n3,"4\n5,6\n', r"rows\.csv: a quote in the row of line 3 is never closed\. Mend the file"),
        ('"a"x,b\n1,2\n', r"rows\.csv: the first line is no CSV .* It must name the columns"),
        ("a,b\nZoë,1\n".encode("latin-1"), r"rows\.csv is not UTF-8 text \(.* in line 2\)\. Save it in UTF-8"),
        (b"PK\x03\x04rest", r"rows\.csv is a ZIP archive or an Excel workbook\. Unpack it, or save it as CSV in UTF-8"),
    ],
)
def test_a_file_that_can_t_be_read_is_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _rows(tmp_path, content)


@pytest.mark.parametrize("content", ["", "\n\n", "a,b\n", "a,b\n,\n\n"])
def test_a_file_without_rows_has_none(tmp_path: Path, content: str) -> None:
    assert _rows(tmp_path, content) == []
