"""The frozen rows of a search: read, checked, tokenised; the same for every trial."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trials.config import DataSettings
from trials.errors import DataError
from trials.formats import Example
from trials.rows import read_examples
from trials.tokenization import TokenizedRow, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """Rows of one file: as text and as tokens (same order, same length), and how many were too long."""

    examples: tuple[Example, ...]
    rows: tuple[TokenizedRow, ...]
    dropped: int

    @property
    def tokens(self) -> int:
        """Unpadded tokens of all rows."""
        return sum(len(row.input_ids) for row in self.rows)

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(len(row.input_ids) for row in self.rows)


@dataclass(frozen=True)
class TrialData:
    """What trials train on (`train`), are judged by (`eval`), and never see (`test`)."""

    train: Split
    eval: Split
    test: Split | None


def load_data(settings: DataSettings, tokenizer: PreTrainedTokenizerBase) -> TrialData:
    """Reads, checks and tokenises all files. Raises `DataError` for anything that can't be used."""
    train = read_examples(Path(settings.train), settings.format)
    evaluation = read_examples(Path(settings.eval), settings.format, settings.eval_rows)
    _refuse_overlap(train, evaluation, settings.train, settings.eval)
    test = None
    if settings.test is not None:
        examples = read_examples(Path(settings.test), settings.format, settings.test_rows)
        _refuse_overlap(train, examples, settings.train, settings.test)
        _refuse_overlap(evaluation, examples, settings.eval, settings.test)
        test = _comparable(tokenize_split(examples, settings.test, settings, tokenizer), settings.test)
    return TrialData(
        train=tokenize_split(train, settings.train, settings, tokenizer),
        eval=_comparable(tokenize_split(evaluation, settings.eval, settings, tokenizer), settings.eval),
        test=test,
    )


def tokenize_split(
    examples: list[Example], name: str, settings: DataSettings, tokenizer: PreTrainedTokenizerBase
) -> Split:
    """Tokenised rows of one file. Rows over the maximum length are dropped or refused, never cut."""
    limit = settings.max_length_tokens
    pairs = [(example, tokenize(example, tokenizer)) for example in examples]
    kept = [(example, row) for example, row in pairs if len(row.input_ids) <= limit]
    dropped = len(pairs) - len(kept)
    if dropped:
        longest = max(len(row.input_ids) for _, row in pairs)
        found = f"{name}: {dropped} of {len(pairs)} rows are longer than data.max_length_tokens={limit} "
        found += f"(the longest has {longest})"
        if settings.too_long == "fail" or not kept:
            raise DataError(f"{found}. Raise data.max_length_tokens, or set data.too_long to drop.")
        logger.warning("%s; they are dropped, as data.too_long says", found)
    return Split(tuple(e for e, _ in kept), tuple(r for _, r in kept), dropped)


def _comparable(split: Split, name: str) -> Split:
    if len(split.rows) < 2:
        raise DataError(f"{name}: only one row can be used, and comparing two models needs at least two. Add rows.")
    return split


def _refuse_overlap(seen: list[Example], held_out: list[Example], seen_name: str, held_out_name: str) -> None:
    prompts = {example.prompt for example in seen}
    shared = [example.id for example in held_out if example.prompt in prompts]
    if shared:
        raise DataError(
            f"{len(shared)} of {len(held_out)} rows of {held_out_name} are also rows of {seen_name} "
            f"(first: {', '.join(shared[:5])}). A loss on rows that were trained on proves nothing: remove them."
        )
