"""Reads data files: every row is checked, and all that is wrong is said at once, with file and line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trials.errors import DataError
from trials.formats import FORMATS, BadRow, Example

MAX_ROWS_NAMED = 20


def read_examples(path: Path, data_format: str, limit: int | None = None) -> list[Example]:
    """The rows of a JSON Lines file, in file order, at most `limit` of them.

    Raises `DataError` if the file is missing, unreadable or empty, or if any row is no JSON object or doesn't fit
    the format; the message names up to 20 such rows by line and counts the rest.
    """
    to_example = FORMATS[data_format]
    examples: list[Example] = []
    problems: list[str] = []
    for number, line in _lines(path):
        if limit is not None and len(examples) + len(problems) >= limit:
            break
        try:
            examples.append(_example(line, number, to_example))
        except BadRow as problem:
            problems.append(f"line {number}: {problem}")
    if problems:
        raise DataError(_describe(path, data_format, problems))
    if not examples:
        raise DataError(f"{path} has no rows. Give a JSON Lines file with one object a line.")
    return examples


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    if not path.is_file():
        raise DataError(f"no data file {path}. Give the path of a JSON Lines file that exists.")
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason}). Save it as JSON Lines in UTF-8.") from error
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror}. Check its permissions.") from error


def _example(line: str, number: int, to_example: Callable[[Mapping[str, Any]], Example]) -> Example:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadRow(f"no JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(row, dict):
        raise BadRow(f"a JSON {type(row).__name__}, not an object")
    return to_example({"id": f"line-{number}", **row})


def _describe(path: Path, data_format: str, problems: list[str]) -> str:
    shown = problems[:MAX_ROWS_NAMED]
    more = len(problems) - len(shown)
    lines = [f"{path}: {len(problems)} row(s) can't be used as format '{data_format}':", *(f"  {p}" for p in shown)]
    if more:
        lines.append(f"  ... and {more} more")
    lines.append("Mend or remove these rows.")
    return "\n".join(lines)
