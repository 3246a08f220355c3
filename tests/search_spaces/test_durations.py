"""Durations as people write them."""

from __future__ import annotations

import pytest

from search_spaces.durations import format_duration, parse_duration
from trials.errors import RecipeError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("9h", 32_400), ("90s", 90), ("1h30m", 5_400), ("1.5h", 5_400), ("1 h 30 m", 5_400), ("2D", 172_800), ("4m", 240)],
)
def test_units_are_added_up(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "9", "h", "-9h", "9h30", "9 hours", "9w", "1h,30m", "nan", "1e3s"])
def test_anything_else_is_no_duration(text: str) -> None:
    with pytest.raises(RecipeError, match=r"is no duration\. Write numbers with units d, h, m or s"):
        parse_duration(text)


def test_zero_and_forever_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"duration '0h' is zero\. Give a positive one"):
        parse_duration("0h")
    with pytest.raises(RecipeError, match="is longer than 1000 days"):
        parse_duration("99999999999d")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (-5, "0s"), (12.4, "12s"), (200, "3m20s"), (3_900, "1h05m"), (59.6, "1m00s")]
)
def test_the_short_form(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
