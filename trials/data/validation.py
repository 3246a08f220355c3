"""Examples of a source: every row is checked first, and all faults are reported at once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b

from trials.data.template_check import TemplateCheck
from trials.errors import DataError
from trials.formats.bad_rows import BadRow, BadRows
from trials.formats.conversations import Example
from trials.formats.row_reader import RowReader
from trials.sources.readers import read_rows
from trials.sources.source import DataSource

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ValidatedRows:
    """Way to read a source: the reader of its rows, texts they mustn't contain, and the treatment of bad ones."""

    to_example: RowReader
    forbidden: tuple[str, ...]
    """Texts such as </s>, which begin or end a sequence."""
    drop_bad: bool
    format: str
    template: TemplateCheck | None = None
    """None: no template has to render the rows."""

    def examples(self, source: DataSource) -> Iterator[tuple[str, Example | BadRow | None]]:
        """Yield every row of a source: its place, and an example, a `BadRow`, or None if it isn't selected."""
        for place, row in read_rows(source):
            if isinstance(row, BadRow):
                yield place, row
                continue
            try:
                found = self.to_example(row)
                if found is not None:
                    self._refuse_specials(found)
                    if self.template is not None:
                        self.template.check(found)
                yield place, found
            except BadRow as problem:
                yield place, problem

    def good(self, source: DataSource) -> Iterator[Example]:
        """Return only the examples."""
        return (found for _, found in self.examples(source) if isinstance(found, Example))

    def _refuse_specials(self, example: Example) -> None:
        for number, message in enumerate(example.messages, start=1):
            for special in self.forbidden:
                if special in message.content:
                    what = "its completion" if number == len(example.messages) else "its prompt"
                    raise BadRow(
                        f"{what} contains {special!r}, which begins or ends a sequence. "
                        "Remove it from the text: it's added to every row"
                    )


@dataclass
class ValidationSummary:
    """Result of a source's check: ids and keys of its examples, in order, and how many rows were no examples."""

    ids: list[str] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    """Hashes of prompts, equal for equal prompts: a row that is answered twice must not be in two splits."""
    bad: int = 0
    left_out: int = 0
    """Good rows that `data.select` doesn't ask for."""
    unread: tuple[str, ...] = ()
    """Fields of the rows that nothing reads, and that change nothing."""


def check(source: DataSource, reading: ValidatedRows) -> ValidationSummary:
    """Read all rows. Raises `DataError` that names the bad ones, up to 20 faults, unless those are to be dropped."""
    checked, problems = ValidationSummary(), BadRows()
    for place, found in reading.examples(source):
        if found is None:
            checked.left_out += 1
        elif isinstance(found, BadRow):
            problems.add(place, found)
        else:
            checked.ids.append(found.id)
            checked.keys.append(_key(found))
    checked.bad, checked.unread = problems.count, reading.to_example.unread
    if problems.count:
        _say_what_is_bad(source, reading, problems)
    if not checked.ids:
        raise DataError(f"{source.text} has no rows{_of_which(checked)}. Give a source with one row or more.")
    return checked


def _of_which(checked: ValidationSummary) -> str:
    if not checked.bad and not checked.left_out:
        return ""
    return f" that can be used ({checked.bad} don't fit the format, {checked.left_out} aren't among those selected)"


def _key(example: Example) -> bytes:
    digest = blake2b(digest_size=12)
    for message in example.prompt or example.messages:
        digest.update(f"{message.role}\0{message.content}\0".encode())
    return digest.digest()


def _say_what_is_bad(source: DataSource, reading: ValidatedRows, problems: BadRows) -> None:
    found = f"{source.text}: {problems.count} row(s) can't be used as format '{reading.format}'"
    if not reading.drop_bad:
        raise DataError(f"{found}:\n{problems.listed()}\nMend or remove these rows, or set data.bad_rows to drop.")
    logger.warning("%s; they are dropped, as data.bad_rows says:\n%s", found, problems.listed())
