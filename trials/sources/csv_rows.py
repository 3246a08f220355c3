"""Rows of CSV files. Every cell is text as it stands in the file: CSV has no types, and NA, None and null are words."""

from __future__ import annotations

import csv
import logging
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from trials.errors import DataError
from trials.formats.bad_rows import BadRow
from trials.formats.conversations import Row
from trials.sources.text_files import opened

_OTHER_DELIMITERS = (";", "\t", "|")
_LABELS = ("label", "true_label", "predicted_label")
"""Columns whose cells 0 and 1 are numbers, as the NLI formats want them."""
_NUMBERS = {"0": 0, "1": 1}

logger = logging.getLogger(__name__)


def csv_rows(path: Path) -> Iterator[tuple[str, Row | BadRow]]:
    """Yield every row of a CSV file with its number and its line; empty rows are left out.

    Cells are separated by commas or, if the header says so, by semicolons, tabs or |. Raises `DataError` if the header
    can't be used or a quote is never closed.
    """
    # The limit is the module's, for all readers; its default of 128 KiB is less than one long text.
    csv.field_size_limit(sys.maxsize)
    with opened(path, newline="") as file:
        blank, first = _beginning(file)
        reader = csv.reader(chain([*blank, first], file), delimiter=_delimiter(path, first), strict=True)
        names = _names(path, reader)
        yield from _rows(path, reader, names)


def _beginning(file: TextIO) -> tuple[list[str], str]:
    """Return the blank lines at the top of a file, and the first line that isn't blank."""
    blank: list[str] = []
    for line in file:
        if line.strip():
            return blank, line
        blank.append(line)
    return blank, ""


def _delimiter(path: Path, first: str) -> str:
    counts = {delimiter: len(_cells(first, delimiter)) for delimiter in (",", *_OTHER_DELIMITERS)}
    found = max(_OTHER_DELIMITERS, key=lambda delimiter: counts[delimiter])
    if counts[","] > 1 or counts[found] == 1:
        return ","
    _say_once(path, found)
    return found


@cache  # a source is read twice: to check it, and to tokenise it
def _say_once(path: Path, delimiter: str) -> None:
    logger.warning("%s: its columns are separated by %r, not by commas, and it's read so", path, delimiter)


def _cells(line: str, delimiter: str) -> Sequence[str]:
    return next(csv.reader([line], delimiter=delimiter), [])


def _names(path: Path, reader: Iterator[list[str]]) -> tuple[str, ...]:
    try:
        header = next((cells for cells in reader if cells), [])
    except csv.Error as error:
        raise DataError(f"{path}: the first line is no CSV ({error}). It must name the columns.") from error
    twice = [name for name, count in Counter(header).items() if name and count > 1]
    if twice:
        raise DataError(
            f"{path}: column {twice[0]!r} stands in the header more than once. Rename or remove the others."
        )
    # Pandas writes its row numbers under an empty name, and Excel empty columns at the end.
    return tuple(name or f"column {number}" for number, name in enumerate(header, start=1))


def _rows(path: Path, reader: Any, names: tuple[str, ...]) -> Iterator[tuple[str, Row | BadRow]]:
    number, line = 0, reader.line_num
    while True:
        begins = line + 1
        cells: list[str] | BadRow
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error):
                raise DataError(
                    f"{path}: a quote in the row of line {begins} is never closed. Mend the file."
                ) from error
            cells = BadRow(f"no CSV ({error}); quotes inside a quoted cell are doubled")
        line = reader.line_num
        if isinstance(cells, BadRow) or any(cells):
            number += 1
            yield f"row {number} (line {begins})", _row(cells, names)


def _row(cells: list[str] | BadRow, names: tuple[str, ...]) -> Row | BadRow:
    if isinstance(cells, BadRow):
        return cells
    if len(cells) != len(names):
        return BadRow(f"it has {len(cells)} cell(s), and the header has {len(names)}; quote cells that hold separators")
    row: dict[str, object] = dict(zip(names, cells, strict=True))
    for name in _LABELS:
        if name in row:
            row[name] = _NUMBERS.get(str(row[name]), row[name])
    return row
