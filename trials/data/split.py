"""Tokenised rows of one split: written once as an Arrow file, memory-mapped by all readers.

`Dataset.from_generator` has a cache of its own, but it hides the error that names a row behind one that doesn't, raises
an error for a damaged entry instead of making it anew, and keeps each split in an entry of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from trials.data.tokenization import TokenizedRow
from trials.formats.conversations import Example, Message
from trials.schedule import Epoch
from trials.system.files import write_json

if TYPE_CHECKING:
    from datasets import Dataset, Features

T = TypeVar("T")
_WRITE_ROWS = 1000
_SHOWN_FIELDS = 10
_ASIDE = {
    "bad": "that don't fit the format",
    "left_out": "not selected",
    "not_sampled": "not sampled",
    "overlapping": "that stand in another split",
    "too_long": "too long",
}


@dataclass(frozen=True)
class Counts:
    """Counts of a source's rows: all that were `read`, the `rows` that are kept, and the others by reason."""

    read: int
    rows: int
    bad: int
    """Rows that don't fit the format."""
    left_out: int
    """Rows that `data.select` doesn't ask for."""
    not_sampled: int
    """Rows beyond the number or fraction that was asked for."""
    overlapping: int
    """Rows that are also in a split that is trained on, or in eval."""
    too_long: int
    """Rows longer than the maximum length."""
    shortened: int
    """Rows kept without their last turns or their question's end."""
    tokens: int
    completion_tokens: int
    longest: int
    unread: Sequence[str] = ()
    """Fields of the rows that the format doesn't read, and that change nothing."""

    def in_words(self) -> str:
        """Return, for people, how many rows of how many tokens there are, and why not more."""
        aside = [f"{getattr(self, key):,} {words}" for key, words in _ASIDE.items() if getattr(self, key)]
        without = f"; {self.read:,} read, without {', '.join(aside)}" if aside else ""
        shortened = f"; {self.shortened:,} of them shortened" if self.shortened else ""
        return (
            f"{self.rows:,} of {self.tokens:,} tokens, {self.completion_tokens:,} of them learned, the longest row has "
            f"{self.longest:,}{shortened}{without}"
        )

    def unread_in_words(self) -> str:
        """Return, for people, the columns that aren't used; empty if all are."""
        more = len(self.unread) - _SHOWN_FIELDS
        return ", ".join(self.unread[:_SHOWN_FIELDS]) + (f" and {more} more" if more > 0 else "")


class _LazyRows(Sequence[T], Generic[T]):
    """Reads one row of the file at each access."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self._made(self._dataset[i]) for i in range(*index.indices(len(self)))]
        return self._made(self._dataset[index])

    def __iter__(self) -> Iterator[T]:
        return (self._made(row) for row in self._dataset)

    def _made(self, row: dict[str, Any]) -> T:
        raise NotImplementedError


class _Rows(_LazyRows[TokenizedRow]):
    def _made(self, row: dict[str, Any]) -> TokenizedRow:
        return TokenizedRow(row["id"], row["input_ids"], row["labels"])


class _Examples(_LazyRows[Example]):
    def _made(self, row: dict[str, Any]) -> Example:
        messages = tuple(Message(*parts) for parts in json.loads(row["messages"]))
        return Example(row["id"], messages, row["label"])


class Split:
    """Rows as tokens and as text (same order, same length), and the counts of all rows of the source."""

    def __init__(self, file: Path, counts: Counts) -> None:
        from datasets import Dataset

        self.counts = counts
        self.dataset = Dataset.from_file(str(file))
        self.rows: Sequence[TokenizedRow] = _Rows(self.dataset.select_columns(["id", "input_ids", "labels"]))
        self.examples: Sequence[Example] = _Examples(self.dataset.select_columns(["id", "messages", "label"]))

    def __len__(self) -> int:
        return self.counts.rows

    @property
    def tokens(self) -> int:
        """Unpadded tokens of all rows."""
        return self.counts.tokens

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return self.counts.longest

    @property
    def epoch(self) -> Epoch:
        """One pass over all rows."""
        return Epoch(len(self), self.tokens)

    def longest_rows(self, tokens: int) -> list[TokenizedRow]:
        """Return the longest rows, the longest first, until they have `tokens` tokens together."""
        lengths = self.dataset.data.column("input_ids").combine_chunks().value_lengths().to_numpy()
        order = lengths.argsort(kind="stable")[::-1]
        count = int(lengths[order].cumsum().searchsorted(tokens)) + 1
        return [self.rows[int(index)] for index in order[:count]]

    @property
    def for_training(self) -> Dataset:
        """Columns `input_ids` and `labels`, as TRL takes them."""
        return self.dataset.select_columns(["input_ids", "labels"])


def open_split(folder: Path, name: str) -> Split:
    """Open a split that `write_split` and `write_counts` wrote."""
    counts = Counts(**json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))
    return Split(folder / f"{name}.arrow", counts)


def is_whole(folder: Path, names: Iterable[str]) -> bool:
    """Return whether all these splits can be read, with as many rows as were written."""
    try:
        return all(len(found.dataset) == len(found) for found in (open_split(folder, name) for name in names))
    except (OSError, ValueError, TypeError, KeyError):
        return False


def write_split(folder: Path, name: str, pairs: Iterable[tuple[Example, TokenizedRow]]) -> dict[str, int]:
    """Write the rows; return their number, their tokens, those that are learned, and the longest row's."""
    from datasets.arrow_writer import ArrowWriter

    found = {"rows": 0, "tokens": 0, "completion_tokens": 0, "longest": 0}
    with ArrowWriter(features=_features(), path=str(folder / f"{name}.arrow"), writer_batch_size=_WRITE_ROWS) as writer:
        for example, row in pairs:
            writer.write(_as_columns(example, row))
            found["rows"] += 1
            found["tokens"] += len(row.input_ids)
            found["completion_tokens"] += row.completion_tokens
            found["longest"] = max(found["longest"], len(row.input_ids))
        writer.finalize()
    return found


def write_counts(folder: Path, name: str, counts: Counts) -> None:
    """Write a split's counts, beside the rows that `write_split` wrote."""
    write_json(folder / f"{name}.json", asdict(counts))


def _as_columns(example: Example, row: TokenizedRow) -> dict[str, Any]:
    messages = json.dumps([message.parts for message in example.messages], ensure_ascii=False)
    return {
        "id": example.id,
        "messages": messages,
        "label": example.label,
        "input_ids": row.input_ids,
        "labels": row.labels,
    }


def _features() -> Features:
    from datasets import Features, List, Value

    return Features(
        {
            "id": Value("string"),
            "messages": Value("string"),
            "label": Value("int8"),
            "input_ids": List(Value("int32")),
            "labels": List(Value("int32")),
        }
    )
