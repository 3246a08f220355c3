"""Tokenised examples, every row within the maximum length."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from trials.config import DataSettings
from trials.data.tokenization import MANY_ANSWERS, NotRendered, TokenizedRow, answers_of, tokenize
from trials.data.truncation import truncate
from trials.errors import DataError
from trials.formats.conversations import Example
from trials.sources.source import DataSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH_ROWS = 1000

logger = logging.getLogger(__name__)


class LengthFilter:
    """Tokenises examples, and keeps every row within the maximum length."""

    def __init__(self, settings: DataSettings, tokenizer: PreTrainedTokenizerBase) -> None:
        self._settings = settings
        self._tokenizer = tokenizer
        self.too_long = 0
        self.shortened = 0
        self.not_rendered = 0
        """Rows that the chat template refused, where bad rows are dropped."""
        self._longest = 0

    def fit(self, examples: Iterator[Example]) -> Iterator[tuple[Example, TokenizedRow]]:
        """Yield the rows that fit, or were shortened to fit."""
        while batch := list(islice(examples, _BATCH_ROWS)):
            for example, row in self._tokenized(batch):
                found = self._fitting(example, row)
                if found is not None:
                    yield found

    def report(self, source: DataSource, *, kept: int, used: int) -> None:
        """Log the dropped rows. Raises `DataError` if rows that are too long may not be dropped, or nothing is left."""
        if self.not_rendered:
            logger.warning("%s: the chat template refuses what %d row(s) say", source.text, self.not_rendered)
        if not self.too_long:
            return
        limit = self._settings.max_length_tokens
        said = f"{source.text}: {self.too_long} of {used} rows are longer than data.max_length_tokens={limit} "
        said += f"(the longest has {self._longest})"
        if self._settings.too_long == "fail" or not kept:
            raise DataError(f"{said}. Raise data.max_length_tokens, or set data.too_long to drop or shorten.")
        logger.warning("%s; they are dropped, as data.too_long says", said)

    def _tokenized(self, examples: Sequence[Example]) -> Iterator[tuple[Example, TokenizedRow | None]]:
        """Yield every example with its row; None for a long conversation, which is tokenised when it's shortened."""
        at_once = [example for example in examples if not self._waits(example)]
        try:
            rows = iter(tokenize(at_once, self._tokenizer))
        except NotRendered:
            yield from self._rendered(examples)
            return
        for example in examples:
            yield example, None if self._waits(example) else next(rows)

    def _rendered(self, examples: Sequence[Example]) -> Iterator[tuple[Example, TokenizedRow | None]]:
        for example in examples:
            try:
                yield example, tokenize([example], self._tokenizer)[0]
            except NotRendered as error:
                if self._settings.bad_rows != "drop":
                    raise
                self.not_rendered += 1
                logger.warning("%s It's dropped, as data.bad_rows says.", error)

    def _waits(self, example: Example) -> bool:
        return self._settings.too_long == "shorten" and answers_of(example) > MANY_ANSWERS

    def _fitting(self, example: Example, row: TokenizedRow | None) -> tuple[Example, TokenizedRow] | None:
        if row is not None:
            self._longest = max(self._longest, len(row.input_ids))
            if len(row.input_ids) <= self._settings.max_length_tokens:
                return example, row
        if self._settings.too_long == "shorten":
            found = truncate(example, self._settings.max_length_tokens, self._tokenizer)
            if found is not None:
                self.shortened += found[0] is not example
                return found
        self.too_long += 1
        return None
