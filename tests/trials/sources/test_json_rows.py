"""JSON files as people save them: lines, lists, indented, in other encodings, under the other's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trials.errors import DataError
from trials.formats.bad_rows import BadRow
from trials.sources.readers import read_rows
from trials.sources.source import DataSource

ROWS = [{"prompt": "Say hello", "completion": "Hello, Zoë!"}, {"prompt": "Say bye", "completion": "Bye!"}]
CHAT = {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]}
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def _rows(path: Path, name: str, content: str | bytes, encoding: str = "utf-8") -> list[Any]:
    (path / name).write_bytes(content if isinstance(content, bytes) else content.encode(encoding, "surrogatepass"))
    found = [row for _, row in read_rows(DataSource(path=path / name))]
    return [row if isinstance(row, BadRow) else {key: row[key] for key in row if key != "id"} for row in found]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
@pytest.mark.parametrize(
    "content",
    [
        LINES,
        LINES.replace("\n", "\r\n"),
        LINES.replace("\n", "\r"),
        LINES.rstrip(),
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        "".join(json.dumps(row, indent=2) + "\n" for row in ROWS),
        json.dumps({"version": "1.1", "data": ROWS}),
        json.dumps({"version": "1.1", "data": ROWS}, indent=2),
        json.dumps({"rows": ROWS}, indent=2),
        json.dumps({"train": ROWS, "test": []}, indent=2),
        json.dumps({"about": "a\nb", "examples": ROWS}, indent=None, separators=(",\n", ": ")),
    ],
    ids=["LF", "CRLF", "CR", "no last break", "list", "indented list", "indented objects", "data", "indented data",
         "rows", "train", "examples"],
)  # fmt: skip
def test_rows_are_found_in_every_shape(tmp_path: Path, name: str, content: str) -> None:
    assert _rows(tmp_path, name, content) == ROWS


@pytest.mark.parametrize("content", [LINES, json.dumps(ROWS, indent=2, ensure_ascii=False)])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_rows_are_found_in_every_encoding(tmp_path: Path, content: str, encoding: str) -> None:
    for ends in ("\n", "\r\n"):
        assert _rows(tmp_path, "rows.jsonl", content.replace("\n", ends), encoding) == ROWS


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    "row", [ROWS[0], CHAT, {**ROWS[0], "examples": [{"a": 1}]}], ids=["text", "chat", "with a list"]
)
def test_one_object_that_is_itself_a_row(tmp_path: Path, row: dict[str, Any], indent: int | None) -> None:
    assert _rows(tmp_path, "row.json", json.dumps(row, indent=indent)) == [row]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps({"train": ROWS, "data": ROWS}), r"rows\.json is one JSON object with several lists of rows: d"),
        ('{\n  "prompt": "x",\n  rubbish\n}', r"rows\.json begins as a JSON object, but line 3 is no JSON"),
        ('[\n {"prompt": "x"},\n', r"rows\.json begins as a JSON list, but line 3 is no JSON"),
        ("[" * 100_000, r"rows\.json begins as a JSON list, but can't be read \(nested too deeply\)"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1\n", r"rows\.json is only a Git LFS pointer\. Fetch"),
        (b"\x1f\x8b\x08rest", r"rows\.json is compressed \(gzip\)\. Unpack it first"),
        (b"PAR1rest", r"rows\.json is Parquet\. Give it a name that ends in \.parquet"),
        (b'{"a": "\xe9"}\n', r"rows\.json is not UTF-8 text \(.* in line 1\)\. Save it in UTF-8"),
    ],
)  # fmt: skip
def test_a_file_as_a_whole_is_refused_once(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _rows(tmp_path, "rows.json", content)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"a": ' + "[" * 100_000, "JSON that can't be read (nested too deeply)"),
        ('{"a": ' + "9" * 5000 + "}", "JSON that can't be read (Exceeds the limit"),
        ("[1, 2]", "a JSON list, not an object"),
        ('{"premise": "cut', "no JSON (Unterminated string"),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_broken_line_costs_itself_wherever_it_stands(tmp_path: Path, line: str, reason: str, place: int) -> None:
    lines = [json.dumps(row) for row in ROWS]
    lines.insert(place, line)
    found = _rows(tmp_path, "rows.jsonl", "\n".join(lines))
    assert [row for row in found if not isinstance(row, BadRow)] == ROWS
    assert str(found[place]).startswith(reason)


def test_a_list_of_no_objects_is_named_row_by_row(tmp_path: Path) -> None:
    assert [str(row) for row in _rows(tmp_path, "rows.json", "[1, [2]]")] == [
        "a JSON int, not an object", "a JSON list, not an object",
    ]  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_half_a_character_costs_its_row_and_not_the_file(tmp_path: Path, encoding: str) -> None:
    halved = '{"prompt": "half \ud83d", "completion": "x"}\n'
    assert _rows(tmp_path, "rows.jsonl", halved + LINES, encoding)[1:] == ROWS
    assert _rows(tmp_path, "rows.jsonl", halved + LINES, encoding)[0]["prompt"] == "half \ud83d"
