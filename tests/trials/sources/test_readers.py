"""Data files as rows: every kind, each row with its place, and what is no row said as such."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from trials.errors import DataError
from trials.formats.bad_rows import BadRow
from trials.formats.row_reader import RowReader
from trials.sources.readers import read_rows
from trials.sources.source import parse_source

ROWS = [
    {"id": "a", "prompt": "None", "n": 1},
    {"id": "b", "prompt": 'x, "y"\nz', "n": 2},
    {"id": "c", "prompt": "", "n": 3},
]


def _jsonl(file: Path) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")


def _table(file: Path) -> None:
    dataset = Dataset.from_list(ROWS)
    dataset.to_csv(file, index=False) if file.suffix == ".csv" else dataset.to_parquet(file)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "rows.jsonl": _jsonl,
    "lines.json": _jsonl,
    "list.json": lambda file: file.write_text(json.dumps(ROWS, indent=2)),
    "rows.csv": _table,
    "rows.parquet": _table,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    found = list(read_rows(parse_source(str(tmp_path / name))))
    # CSV has no types: every cell is text.
    expected = [{**row, "n": str(row["n"])} for row in ROWS] if name == "rows.csv" else ROWS
    assert [row for _, row in found] == expected
    assert [place.split()[1] for place, _ in found] == ["1", "2", "3"]
    sliced = read_rows(parse_source(f"{tmp_path / name}[1:2]"))
    assert [row["id"] for _, row in sliced if not isinstance(row, BadRow)] == ["b"]


def test_a_row_without_an_id_gets_its_place_and_empty_lines_are_nothing(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n\n   \n{"a": 2}\n')
    assert [
        (p, r["id"]) for p, r in read_rows(parse_source(str(tmp_path / "rows.jsonl"))) if not isinstance(r, BadRow)
    ] == [
        ("line 1", "line-1"),
        ("line 4", "line-4"),
    ]


def test_a_field_that_changes_its_type_matters_only_to_who_reads_it(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a": "x"}\n{"a": [1, {"b": null}]}\n')
    assert (
        len([row for _, row in read_rows(parse_source(str(tmp_path / "rows.jsonl"))) if not isinstance(row, BadRow)])
        == 3
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("rubbish", "no JSON (Expecting value at column 1)"),
        ('{"premise": "cut', "no JSON (Unterminated string starting at at column 13)"),
        ("[1, 2]", "a JSON list, not an object"),
        ("null", "a JSON null, not an object"),
    ],
)
def test_what_is_no_row_is_given_as_such_and_the_next_one_is_read(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "rows.jsonl").write_text(f'{{"a": 1}}\n{line}\n{{"a": 2}}\n')
    found = list(read_rows(parse_source(str(tmp_path / "rows.jsonl"))))
    assert [isinstance(row, BadRow) for _, row in found] == [False, True, False]
    assert (found[1][0], str(found[1][1])) == ("line 2", message)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.jsonl", None, r"no data file .*absent\.jsonl\. Give a file that ends in"),
        ("rows.txt", b"x", r"can't tell the kind of .*rows\.txt from its name\. Allowed are: \.jsonl, \.json, \.csv"),
        ("latin.jsonl", '{"a": "Zoë"}'.encode("latin-1"), r"latin\.jsonl is not UTF-8 text .* in line 1\)\. Save it"),
        ("list.json", b'[{"a": 1},\n rubbish]', r"list\.json begins as a JSON list, but line 2 is no JSON \(Expecting"),
        ("rows.csv", b'a,b\n1,2\n1,"2\n3,4\n', r"rows\.csv: a quote in the row of line 3 is never closed"),
        ("rows.csv", b"a,b,a\n1,2,3\n", r"rows\.csv: column 'a' stands in the header more than once"),
        ("rows.parquet", b"rubbish", r"can't read .*rows\.parquet: .*Mend the file"),
    ],
)
def test_a_file_that_can_t_be_read_is_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_rows(parse_source(str(tmp_path / name))))


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_was_replaced_under_the_same_time_stamp_is_read_anew(tmp_path: Path, name: str) -> None:
    def prompts() -> list[str]:
        return [row["prompt"] for _, row in read_rows(parse_source(str(file))) if not isinstance(row, BadRow)]

    file = tmp_path / name
    WRITERS[name](file)
    os.utime(file, (1, 1))
    assert prompts() == [row["prompt"] for row in ROWS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "ROWS", [{"id": "d", "prompt": "new", "n": 4}])
        WRITERS[name](file)
    os.utime(file, (1, 1))
    assert prompts() == ["new"]


def test_every_kind_of_parquet_column(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "prompt": pa.array(["a", "b"]).dictionary_encode(),
        "completion": pa.array([7, 8]),
        "share": pa.array([0.5, None]),
        "large": pa.array(["x", None], pa.large_string()),
        "turns": pa.array([[{"role": "user", "weight": None}], []]),
    }
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet", row_group_size=1)
    found = [row for _, row in read_rows(parse_source(str(tmp_path / "rows.parquet")))]
    assert found == [
        {"id": "row-1", **{name: values.to_pylist()[0] for name, values in columns.items()}},
        {"id": "row-2", **{name: values.to_pylist()[1] for name, values in columns.items()}},
    ]
    with pytest.raises(BadRow, match="field 'completion' is int, not text; make it text: \"7\""):
        RowReader("prompt_completion")(found[0])


def test_a_column_of_json_in_parquet_is_read_as_datasets_writes_it(tmp_path: Path) -> None:
    turns = [[{"role": "user", "content": "x", "more": {"a": 1}}], [{"role": "user", "content": ["y"]}]]
    Dataset.from_dict({"messages": turns}, on_mixed_types="use_json").to_parquet(tmp_path / "rows.parquet")
    found = [
        row["messages"] for _, row in read_rows(parse_source(str(tmp_path / "rows.parquet"))) if isinstance(row, dict)
    ]
    assert found == turns
