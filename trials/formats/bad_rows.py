"""Rows that can't be used: the error that says why, and the list of all of them for a message."""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_FAULTS_NAMED = 20
MAX_PLACES_NAMED = 5
_MAX_CHARACTERS = 300


class BadRow(ValueError):
    """A row doesn't fit its format; the message names the field and the reason."""


@dataclass
class BadRows:
    """The bad rows of a source, grouped by fault. A fault has its number of rows and the first places."""

    count: int = 0
    _places: dict[str, list[str]] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)

    def add(self, place: str, problem: BadRow) -> None:
        """Record one row. Beyond the first 20 faults, rows are only counted."""
        self.count += 1
        fault = _short(printable(str(problem)))
        if fault not in self._counts and len(self._counts) >= MAX_FAULTS_NAMED:
            return
        self._counts[fault] = self._counts.get(fault, 0) + 1
        places = self._places.setdefault(fault, [])
        if len(places) < MAX_PLACES_NAMED:
            places.append(place)

    def listed(self) -> str:
        """Return one line for every fault, and how many rows aren't named."""
        lines = [f"  {self._where(fault)}: {fault}" for fault in self._counts]
        rest = self.count - sum(self._counts.values())
        return "\n".join([*lines, *([f"  ... and {rest} more"] if rest else [])])

    def _where(self, fault: str) -> str:
        places, count = self._places[fault], self._counts[fault]
        more = f" and {count - len(places)} more" if count > len(places) else ""
        return f"{', '.join(places)}{more}"


def _short(text: str) -> str:
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}..."


def printable(text: str) -> str:
    """Return the text with halves of characters, which no file takes, written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()
