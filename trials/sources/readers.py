"""Rows of local files and of the hub, read one at a time, each with its place for messages.

Local files are read as they are now, without a cache. The hub goes through `datasets`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trials.errors import DataError
from trials.formats.bad_rows import BadRow
from trials.formats.conversations import Row
from trials.sources.csv_rows import csv_rows
from trials.sources.hub import refuse_other_commit
from trials.sources.json_rows import json_rows
from trials.sources.source import FORMS, SUFFIXES, DataSource
from trials.sources.text_files import refuse_other_kinds

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


def read_rows(source: DataSource) -> Iterator[tuple[str, Row | BadRow]]:
    """Return an iterator over all rows of a source, in order: the place (such as "line 3") and the row.

    A value that is no row is a `BadRow`, so that all of them can be named at once. Raises `DataError` if the source
    can't be read at all.
    """
    numbered = _numbered(source)
    return ((place, _with_id(place, row)) for place, row in islice(numbered, source.start, source.stop))


def refuse_absent(path: Path) -> None:
    """Raise `DataError` if there's no such file."""
    if not path.is_file():
        raise DataError(f"no data file {path}. Give {FORMS}.")


def _with_id(place: str, row: Row | BadRow) -> Row | BadRow:
    return row if isinstance(row, BadRow) else {"id": "-".join(place.split()[:2]), **row}


def _numbered(source: DataSource) -> Iterator[tuple[str, Row | BadRow]]:
    if source.path is None:
        # `datasets` would turn columns of CSV into numbers where it can, and NA into None.
        return csv_rows(_file_of_hub(source)) if source.split.endswith(".csv") else _counted(_from_hub(source))
    path = source.path
    refuse_absent(path)
    if path.suffix not in SUFFIXES:
        raise DataError(f"can't tell the kind of {path} from its name. Allowed are: {', '.join(SUFFIXES)}.")
    refuse_other_kinds(path)
    if path.suffix == ".csv":
        return csv_rows(path)
    return _counted(_parquet_rows(path)) if path.suffix == ".parquet" else json_rows(path)


def _counted(rows: Iterable[Row]) -> Iterator[tuple[str, Row]]:
    return ((f"row {number}", row) for number, row in enumerate(rows, start=1))


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset

    # Read directly: `load_dataset` keeps a copy of every file, which it finds again by the file's time.
    try:
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            yield from Dataset(file.read_row_group(group))
    except (pa.ArrowException, ValueError, OSError) as error:
        raise DataError(f"can't read {path}: {_cause(error)}. Mend the file.") from error


def _from_hub(source: DataSource) -> Dataset:
    from datasets import load_dataset

    is_file = "." in source.split
    options: dict[str, Any] = {"data_files": source.split} if is_file else {"name": source.config}
    split = "train" if is_file else source.split
    with _hub_errors(source):
        loaded = load_dataset(source.hub_name, split=split, revision=source.revision, **options)
    if getattr(loaded.info, "builder_name", None) == "csv":
        _say_that_csv_has_types(source.text, str(source.hub_name))
    refuse_other_commit(loaded, str(source.hub_name), source.revision)
    return loaded


@cache  # a source is read twice: to check it, and to tokenise it
def _say_that_csv_has_types(source: str, name: str) -> None:
    logger.warning(
        "%s is CSV that the library `datasets` reads: 007 becomes 7, and NA is nothing. To have all cells as text, "
        "name the file, as in %s:train.csv",
        source,
        name,
    )


def _file_of_hub(source: DataSource) -> Path:
    from huggingface_hub import hf_hub_download

    with _hub_errors(source):
        name = str(source.hub_name)
        return Path(hf_hub_download(name, source.split, repo_type="dataset", revision=source.revision))


@contextmanager
def _hub_errors(source: DataSource) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the hub's client raises whatever its HTTP library does
        raise DataError(
            f"can't load {source.text!r} from the hub: {_cause(error)}. "
            f"Give {FORMS}. For a gated data set, accept its terms on the hub and set HF_TOKEN."
        ) from error


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300].rstrip(".")
