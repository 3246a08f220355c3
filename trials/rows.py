"""Reads rows from local files and from the hub, one at a time, each with its place for messages.

JSON is read by the standard library line by line, because a file in which one field changes its type, or one line is
broken, must be reported by line and not refused as a whole (as Arrow does). CSV and the hub go through `datasets`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trials.errors import DataError
from trials.formats import BadRow, Row, kind_of
from trials.hub import refuse_other_commit
from trials.source import FORMS, SUFFIXES, Source

if TYPE_CHECKING:
    from datasets import Dataset

_BATCH_ROWS = 1000


def rows_of(source: Source) -> Iterator[tuple[str, Row | BadRow]]:
    """Every row of a source, in order, as its place (such as "line 3") and what stands there.

    What is no row is given as a `BadRow`, so that all of them can be named at once. Raises `DataError` if the source
    can't be read at all.
    """
    numbered = _numbered(source)
    return ((place, _with_id(place, row)) for place, row in islice(numbered, source.start, source.stop))


def refuse_absent(path: Path) -> None:
    """Raises `DataError` if there's no such file."""
    if not path.is_file():
        raise DataError(f"no data file {path}. Give {FORMS}.")


def _with_id(place: str, row: Row | BadRow) -> Row | BadRow:
    return row if isinstance(row, BadRow) else {"id": place.replace(" ", "-"), **row}


def _numbered(source: Source) -> Iterator[tuple[str, Row | BadRow]]:
    if source.path is None:
        return _numbered_from_one(_from_hub(source))
    path = source.path
    refuse_absent(path)
    if path.suffix in {".jsonl", ".json"}:
        return _json_rows(path)
    if path.suffix in {".csv", ".parquet"}:
        return _numbered_from_one(_table_rows(path))
    raise DataError(f"can't tell the kind of {path} from its name. Allowed are: {', '.join(SUFFIXES)}.")


def _json_rows(path: Path) -> Iterator[tuple[str, Row | BadRow]]:
    try:
        with path.open(encoding="utf-8") as file:
            beginning = file.read(1000).lstrip()
            file.seek(0)
            if beginning.startswith("["):
                yield from ((f"row {n}", _object(value)) for n, value in enumerate(_whole(path), start=1))
                return
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"line {number}", _json_line(line.rstrip("\r\n"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason}). Save it in UTF-8.") from error
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror}. Check its permissions.") from error


def _whole(path: Path) -> list[Any]:
    try:
        values: list[Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} begins as a JSON list, but line {error.lineno} is no JSON ({error.msg}).") from error
    return values


def _json_line(line: str) -> Row | BadRow:
    try:
        return _object(json.loads(line))
    except json.JSONDecodeError as error:
        return BadRow(f"no JSON ({error.msg} at column {error.colno})")


def _object(value: Any) -> Row | BadRow:
    return value if isinstance(value, Mapping) else BadRow(f"a JSON {kind_of(value)}, not an object")


def _numbered_from_one(rows: Iterable[Row]) -> Iterator[tuple[str, Row | BadRow]]:
    return ((f"row {number}", row) for number, row in enumerate(rows, start=1))


def _table_rows(path: Path) -> Iterator[Row]:
    """The rows of the file as it is now: nothing of it comes from, or goes to, the cache of `datasets`.

    That knows a file by its path and time stamp (datasets 5.2), and gives the old rows of one that was replaced under
    the same time stamp.
    """
    from datasets.exceptions import DatasetGenerationError

    try:
        yield from _parquet_rows(path) if path.suffix == ".parquet" else _csv_rows(path)
    except (DatasetGenerationError, ValueError, OSError) as error:
        raise DataError(f"can't read {path}: {_cause(error)}. Mend the file.") from error


def _csv_rows(path: Path) -> Iterator[Row]:
    from datasets import load_dataset

    # Pandas reads a cell that says None or NA as missing; here it's what somebody wrote.
    yield from load_dataset("csv", data_files=str(path), split="train", streaming=True, keep_default_na=False)


def _parquet_rows(path: Path) -> Iterator[Row]:
    from pyarrow.parquet import ParquetFile

    with path.open("rb") as file:
        for batch in ParquetFile(file).iter_batches(batch_size=_BATCH_ROWS):
            yield from batch.to_pylist()


def _from_hub(source: Source) -> Dataset:
    from datasets import load_dataset

    is_file = "." in source.split
    options: dict[str, Any] = {"data_files": source.split} if is_file else {"name": source.config}
    split = "train" if is_file else source.split
    try:
        loaded = load_dataset(source.hub_name, split=split, revision=source.revision, **options)
    except Exception as error:  # the hub's client raises whatever its HTTP library does
        raise DataError(
            f"can't load {source.text!r} from the hub: {_cause(error)}. "
            f"Give {FORMS}. For a gated data set, accept its terms on the hub and set HF_TOKEN."
        ) from error
    refuse_other_commit(loaded, str(source.hub_name), source.revision)
    return loaded


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300].rstrip(".")
