"""Reader of one format's rows: makes examples of them, and collects the fields that it doesn't read."""

from __future__ import annotations

from trials.formats.conversations import TEXT_FORMATS, Example, Row
from trials.formats.messages import REFUSED_IN_TURNS, TURN_FIELDS, messages_example
from trials.formats.nli import Select, nli_cot_example, nli_example
from trials.formats.row_fields import FORMAT_FIELDS, FieldCheck


class RowReader:
    """Reads the rows of one source in one format."""

    def __init__(self, data_format: str, select: Select = "all") -> None:
        fields = FORMAT_FIELDS[data_format]
        self._format = data_format
        self._select = select
        self._row_fields = FieldCheck(fields.read, fields.refused)
        self._turn_fields = FieldCheck(TURN_FIELDS, REFUSED_IN_TURNS)

    def __call__(self, row: Row) -> Example | None:
        """Return the example; None if the row is good, but not among the selected ones. Raises `BadRow`."""
        self._row_fields.check(row)
        if self._format == "messages":
            return messages_example(row, self._turn_fields)
        if self._format == "nli_cot":
            return nli_cot_example(row, self._select)
        return nli_example(row) if self._format == "nli" else TEXT_FORMATS[self._format](row)

    @property
    def unread(self) -> tuple[str, ...]:
        """Fields that the rows so far carry and that change nothing, in their order."""
        return (*self._row_fields.unread, *(f"messages.{name}" for name in self._turn_fields.unread))
