"""The frozen rows of a search: read, checked, tokenised once; the same for every trial."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trials.config import DataSettings
from trials.data.cache import cached_dir, fingerprint
from trials.data.fitting import LengthFilter
from trials.data.split import Counts, Split, is_whole, open_split, write_counts, write_split
from trials.data.template_check import TemplateCheck
from trials.data.tokenization import eos_id
from trials.data.validation import ValidatedRows, ValidationSummary, check
from trials.errors import DataError
from trials.formats.row_reader import RowReader
from trials.sources.source import DataSource, parse_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRAIN, EVAL, TEST = "train", "eval", "test"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrialData:
    """Splits of a search: trials train on `train` and are evaluated on `eval`; they never see `test`, if given."""

    train: Split
    eval: Split
    test: Split | None
    fingerprint: str
    """Hash of the content of all rows and of how they were tokenised."""


def load_data(settings: DataSettings, tokenizer: PreTrainedTokenizerBase) -> TrialData:
    """Read, check and tokenise all rows, or open what an earlier call left in the cache.

    Raises `DataError` for anything that can't be used.
    """
    names = {TRAIN: settings.train, EVAL: settings.eval, TEST: settings.test}
    sources = {name: parse_source(text) for name, text in names.items() if text is not None}
    key, folder = _tokenised(sources, settings, tokenizer)
    splits = {name: _comparable(name, open_split(folder, name), sources[name]) for name in sources}
    return TrialData(splits[TRAIN], splits[EVAL], splits.get(TEST), fingerprint=key)


def load_split(settings: DataSettings, tokenizer: PreTrainedTokenizerBase) -> Split:
    """Return the rows of `settings.eval` alone, `eval_rows` of them. Raises `DataError` as `load_data` does."""
    _, folder = _tokenised({EVAL: parse_source(settings.eval)}, settings, tokenizer)
    return open_split(folder, EVAL)


def _tokenised(
    sources: Mapping[str, DataSource], settings: DataSettings, tokenizer: PreTrainedTokenizerBase
) -> tuple[str, Path]:
    """Return the rows' fingerprint, and the folder that holds them."""
    if settings.format == "messages" and tokenizer.chat_template is None:
        raise DataError(
            "the base model has no chat template, and conversations need one. Set model.chat_template to zephyr, to "
            "mistral or to a Jinja file."
        )
    key = fingerprint(settings, sources, tokenizer)
    with _all_cores():
        building = _DatasetBuilder(sources, settings, tokenizer)
        return key, cached_dir(key, building.write, lambda folder: is_whole(folder, sources))


@contextmanager
def _all_cores() -> Iterator[None]:
    """Let the tokenizer use all cores; the command lines switch that off, as it warns when a process forks later."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        yield
    finally:
        os.environ.pop("TOKENIZERS_PARALLELISM")
        if before is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = before


class _DatasetBuilder:
    """Makes tokenised rows on disk from sources: check all, sample, refuse overlap, tokenise."""

    def __init__(
        self, sources: Mapping[str, DataSource], settings: DataSettings, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self._sources = sources
        self._settings = settings
        self._tokenizer = tokenizer
        eos_id(tokenizer)
        forbidden = (tokenizer.bos_token, tokenizer.eos_token)
        self._forbidden = tuple(str(text) for text in forbidden if text)

    def write(self, folder: Path) -> None:
        """Write all splits. Nothing is tokenised before all rows of all sources have been checked."""
        checked = {name: check(source, self._reading(name)) for name, source in self._sources.items()}
        sampled = {name: self._sample(name, len(found.ids)) for name, found in checked.items()}
        used = {name: indices - self._overlapping(name, checked, sampled) for name, indices in sampled.items()}
        for name, source in self._sources.items():
            self._write_split(folder, name, source, checked[name], sampled[name], used[name])

    def _reading(self, name: str) -> ValidatedRows:
        # `data.select` is for training rows; the rows that all trials are evaluated on stay the same.
        select = self._settings.select if name == TRAIN else "all"
        return ValidatedRows(
            to_example=RowReader(self._settings.format, select),
            template=TemplateCheck(self._tokenizer),
            forbidden=self._forbidden,
            drop_bad=self._settings.bad_rows == "drop",
            format=self._settings.format,
        )

    def _sample(self, name: str, available: int) -> frozenset[int]:
        wanted = getattr(self._settings, f"{name}_rows")
        if isinstance(wanted, float):
            wanted = max(1, int(wanted * available))
        if wanted is None or wanted >= available:
            return frozenset(range(available))
        if self._settings.subset_seed is None:
            return frozenset(range(wanted))
        return frozenset(random.Random(self._settings.subset_seed).sample(range(available), wanted))

    def _overlapping(
        self, name: str, checked: Mapping[str, ValidationSummary], sampled: Mapping[str, frozenset[int]]
    ) -> frozenset[int]:
        """Return the rows of a held-out split that are also in one before it: eval after train, test after both."""
        found: set[int] = set()
        keys = checked[name].keys
        for before in list(self._sources)[: list(self._sources).index(name)]:
            seen = {checked[before].keys[i] for i in sampled[before]}
            shared = [i for i in sorted(sampled[name]) if keys[i] in seen]
            if shared:
                self._refuse_overlap(name, before, [checked[name].ids[i] for i in shared], len(sampled[name]))
            found.update(shared)
        return frozenset(found)

    def _refuse_overlap(self, name: str, before: str, shared: Sequence[str], of: int) -> None:
        said = (
            f"{len(shared)} of {of} rows of {self._sources[name].text} are also rows of {self._sources[before].text} "
            f"(first: {', '.join(shared[:5])})"
        )
        if self._settings.overlap == "fail":
            raise DataError(
                f"{said}. A loss on rows that were trained on proves nothing: remove them, or set data.overlap to drop."
            )
        logger.warning("%s; they are left out there, as data.overlap says", said)

    def _write_split(
        self,
        folder: Path,
        name: str,
        source: DataSource,
        checked: ValidationSummary,
        sampled: frozenset[int],
        used: frozenset[int],
    ) -> None:
        fitting = LengthFilter(self._settings, self._tokenizer)
        good = (example for i, example in enumerate(self._reading(name).good(source)) if i in used)
        written = write_split(folder, name, fitting.fit(good))
        fitting.report(source, kept=written["rows"], used=len(used))
        counts = Counts(
            read=len(checked.ids) + checked.bad + checked.left_out,
            bad=checked.bad + fitting.not_rendered,
            left_out=checked.left_out,
            not_sampled=len(checked.ids) - len(sampled),
            overlapping=len(sampled) - len(used),
            too_long=fitting.too_long,
            shortened=fitting.shortened,
            unread=checked.unread,
            **written,
        )
        write_counts(folder, name, counts)


def _comparable(name: str, split: Split, source: DataSource) -> Split:
    if name != TRAIN and len(split) < 2:
        raise DataError(
            f"{source.text}: only one row can be used, and comparing two models needs at least two. Add rows."
        )
    return split
