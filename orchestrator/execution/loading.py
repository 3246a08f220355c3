"""Loads tokenizer and rows of a search, once per process."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from trials.config import DataSettings, ModelSettings
from trials.data.dataset import TrialData, load_data
from trials.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@functools.lru_cache(maxsize=1)
def load_rows(
    model: ModelSettings, data: DataSettings, fingerprint: str | None
) -> tuple[PreTrainedTokenizerBase, TrialData]:
    """Return tokenizer and rows, the same for all trials of a search; to be called by one thread at a time.

    `fingerprint` None: it is not compared. Raises `DataError` if the rows are not those that the search began with.
    """
    from trials.model.loading import load_tokenizer

    tokenizer = load_tokenizer(model)
    loaded = load_data(data, tokenizer)
    if fingerprint is not None and loaded.fingerprint != fingerprint:
        raise DataError("the data or the tokenizer has changed since the search began. Restore it, and resume.")
    return tokenizer, loaded
