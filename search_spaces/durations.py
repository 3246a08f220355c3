"""Durations as people write them: 9h, 4m, 90s, 1h30m."""

from __future__ import annotations

import re

from trials.errors import RecipeError

_UNIT_SECONDS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_LONGEST_SECONDS = 1_000 * 86_400
_WHOLE = re.compile(r"(\d+(?:\.\d+)?[dhms])+")
_PART = re.compile(r"(\d+(?:\.\d+)?)([dhms])")


def parse_duration(text: str) -> float:
    """Return seconds. Raises `RecipeError` for all but positive numbers with units d, h, m or s, up to 1,000 days."""
    compact = text.replace(" ", "").lower()
    if not _WHOLE.fullmatch(compact):
        raise RecipeError(f"{text!r} is no duration. Write numbers with units d, h, m or s, such as 9h, 90s or 1h30m.")
    seconds = sum(float(number) * _UNIT_SECONDS[unit] for number, unit in _PART.findall(compact))
    if seconds > _LONGEST_SECONDS:
        raise RecipeError(f"duration {text!r} is longer than {_LONGEST_SECONDS // 86_400} days. Give a shorter one.")
    if seconds <= 0:
        raise RecipeError(f"duration {text!r} is zero. Give a positive one, such as 9h.")
    return seconds


def format_duration(seconds: float) -> str:
    """Return a short form for users: 1h05m, 3m20s, 12s; negative durations are shown as 0s."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, rest_seconds = divmod(rest, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest_seconds:02d}s" if minutes else f"{rest_seconds}s"
