"""Splits of a few rows, really written and really memory-mapped."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trials.data.split import Counts, Split, open_split, write_counts, write_split
from trials.data.tokenization import TokenizedRow
from trials.formats.conversations import Example


def make_split(pairs: Iterable[tuple[Example, TokenizedRow]]) -> Split:
    """A split of these rows; its file is gone when nobody has it open any more."""
    with tempfile.TemporaryDirectory() as folder:
        counts: dict[str, Any] = dict(write_split(Path(folder), "rows", pairs))
        none: dict[str, Any] = dict.fromkeys(
            ("bad", "left_out", "not_sampled", "overlapping", "too_long", "shortened"), 0
        )
        write_counts(Path(folder), "rows", Counts(read=counts["rows"], **counts, **none))
        return open_split(Path(folder), "rows")


def first_rows(split: Split, rows: int) -> Split:
    """The top of a split."""
    return make_split(zip(split.examples[:rows], split.rows[:rows], strict=True))
