"""What a check before the search has found: one line, with the remedy where something is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from trials.errors import InputError


class Severity(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    """The search runs, but something costs it time, or may go wrong."""
    IMPOSSIBLE = "impossible"
    """The search can't run like this."""


@dataclass(frozen=True)
class CheckResult:
    """`text` is what was found, `remedy` what to do about it; empty where nothing has to be done."""

    name: str
    level: Severity
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        """One line."""
        said = f"{self.level.value}: {self.name}: {self.text}"
        return f"{said}. {self.remedy}" if self.remedy else said


def raise_if_blocked(findings: Sequence[CheckResult]) -> None:
    """Raises `InputError` if the search can't run, with every reason and its remedy."""
    reasons = [
        f"{found.name}: {found.text}. {found.remedy}" for found in findings if found.level is Severity.IMPOSSIBLE
    ]
    if reasons:
        raise InputError("the search can't run here:\n  " + "\n  ".join(reasons))
