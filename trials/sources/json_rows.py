"""Rows of JSON files: one object a line, a list of objects, or one object that holds such a list.

A file of lines is read line by line by the standard library. A field that changes its type, or a broken line, must be
reported by line. Arrow would refuse the whole file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from trials.errors import DataError
from trials.formats.bad_rows import BadRow
from trials.formats.conversations import Row, kind_of
from trials.formats.row_fields import formats_of
from trials.sources.text_files import opened

LISTS = ("data", "rows", "examples", "train", "instances", "items", "records")
"""Fields of a file's one object that may hold its rows."""

_DECODER = json.JSONDecoder()


def json_rows(path: Path) -> Iterator[tuple[str, Row | BadRow]]:
    """Yield every row of a JSON file with its line, or with its number where rows and lines differ.

    Raises `DataError` if the file is neither lines nor a list nor an object.
    """
    values = _values(path)
    if values is not None:
        yield from ((f"row {number}", _object(value)) for number, value in enumerate(values, start=1))
        return
    with opened(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"line {number}", _json_line(line.rstrip("\r\n"))


def _values(path: Path) -> list[Any] | None:
    """Return the rows of a file that isn't one JSON value a line; None if it is."""
    with opened(path) as file:
        first, second = [*islice((line.strip() for line in file if line.strip()), 2), "", ""][:2]
    if first.startswith("[") and not (second and _is_json(first)):
        return _listed(path, "list")
    if not second and first.startswith("{") and _is_json(first):
        value = json.loads(first)
        return _rows_of(path, value) if _holds_rows(value) else None
    if first.startswith("{") and not _is_json(first) and not _is_json(second):
        return _listed(path, "object", only_if_whole=first != "{")
    return None


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _listed(path: Path, kind: str, *, only_if_whole: bool = False) -> list[Any] | None:
    """Return the rows of JSON over several lines: a list, an object, or several objects one after another.

    With `only_if_whole`, a file that is no JSON gives None. Otherwise it raises `DataError`.
    """
    with opened(path) as file:
        text = file.read()
    try:
        values = list(_decoded(text))
    except json.JSONDecodeError as error:
        if only_if_whole:
            return None
        raise DataError(f"{path} begins as a JSON {kind}, but line {error.lineno} is no JSON ({error.msg}).") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} begins as a JSON {kind}, but can't be read ({_reason(error)}).") from error
    return _rows_of(path, values[0]) if len(values) == 1 else values


def _decoded(text: str) -> Iterator[Any]:
    at = _after_space(text, 0)
    while at < len(text):
        value, at = _DECODER.raw_decode(text, at)
        yield value
        at = _after_space(text, at)
        if text.startswith(",", at) or (isinstance(value, list) and at < len(text)):
            raise json.JSONDecodeError("Extra data", text, at)


def _after_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _holds_rows(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(_lists(value)) and not formats_of(value)


def _lists(value: Mapping[str, Any]) -> list[str]:
    return [name for name in LISTS if _is_list_of_objects(value.get(name))]


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, Mapping) for row in value)


def _rows_of(path: Path, value: Any) -> list[Any]:
    """Return the rows of a file's only value: a list, an object with one list of rows, or an object that is a row."""
    if isinstance(value, list):
        return value
    found = _lists(value) if _holds_rows(value) else []
    if len(found) > 1:
        raise DataError(
            f"{path} is one JSON object with several lists of rows: {', '.join(found)}. "
            "Put each into a file of its own, as one list or one object a line."
        )
    rows: list[Any] = value[found[0]] if found else [value]
    return rows


def _json_line(line: str) -> Row | BadRow:
    try:
        return _object(json.loads(line))
    except json.JSONDecodeError as error:
        return BadRow(f"no JSON ({error.msg} at column {error.colno})")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        return BadRow(f"JSON that can't be read ({_reason(error)})")


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).split(";")[0]


def _object(value: Any) -> Row | BadRow:
    return value if isinstance(value, Mapping) else BadRow(f"a JSON {kind_of(value)}, not an object")
