"""Result of a check before the search: one line, with the remedy if something is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from trials.errors import InputError


class Severity(StrEnum):
    """Severity of a check result."""

    OK = "ok"
    WARNING = "warning"
    """The search can run, but something costs it time or may go wrong."""
    IMPOSSIBLE = "impossible"
    """The search can't run like this."""


@dataclass(frozen=True)
class CheckResult:
    """Result of one check: `text` is what was found, `remedy` what to do about it (empty: nothing)."""

    name: str
    level: Severity
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        """Return the result as one line."""
        said = f"{self.level.value}: {self.name}: {self.text}"
        return f"{said}. {self.remedy}" if self.remedy else said


def raise_if_blocked(findings: Sequence[CheckResult]) -> None:
    """Raise `InputError` if the search can't run, with every reason and its remedy."""
    reasons = [
        f"{found.name}: {found.text}. {found.remedy}" for found in findings if found.level is Severity.IMPOSSIBLE
    ]
    if reasons:
        raise InputError("the search can't run here:\n  " + "\n  ".join(reasons))
