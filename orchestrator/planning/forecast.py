"""Forecast of a search: trials, tokens, end, disk, energy and cost, from measured speed or from an estimate.

Loads no model and reads no clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta

from orchestrator.planning.disk_usage import disk_gib
from orchestrator.planning.export_reserve import expected_seconds
from orchestrator.planning.speed_cache import measured_speed, placement_of, speed_before
from orchestrator.planning.throughput import ThroughputModel
from orchestrator.planning.trial_length import final_seconds, shortened_length
from orchestrator.state.search import Placement, Search, SearchForecast
from search_spaces.schema import SearchSettings

# The scheduler decides from learning curves how far trials are trained, so these shares can't be computed beforehand.
# They are means over simulated searches of 6 to 50 full trials (benchmarks/simulator), on recorded curves and on
# misleading ones.
_MEAN_LENGTH = 0.42
"""Mean length to which a proposed configuration is trained, in full trials."""
_FULL_SHARE = 0.22
"""Share of proposed configurations that are trained to full length."""


@dataclass(frozen=True)
class _Remaining:
    """Time and slots that remain for training; durations of a full trial and of a start, in seconds."""

    seconds: float
    slots: int
    full_seconds: float
    start_seconds: float

    @property
    def slot_seconds(self) -> float:
        return self.seconds * self.slots


def forecast_search(search: Search, throughput: ThroughputModel | None, now: datetime) -> SearchForecast:
    """Forecast the rest of the search at the measured speed, or at the speed that is known beforehand.

    `throughput` None: nothing was measured.
    """
    speed = (measured_speed(throughput) if throughput is not None else None) or speed_before(search)
    placed, settings, deadline = placement_of(search), search.recipe.search, search.deadline
    left = max(0.0, deadline.training_seconds_left(now))
    trials = full = tokens = None
    ends = deadline.training_ends
    full_tokens = search.full_tokens
    if speed is not None:
        final = search.final_seconds
        if search.shortened is None and placed.slots:
            alone = speed.seconds_per_token / placed.slots_per_worker
            final = final_seconds(settings.final_share, full_tokens, alone, left)
            full_tokens = shortened_length(
                full_tokens, speed.seconds_per_token, left - final, placed.slots, settings.full_trials
            )
        searched = max(0.0, left - final)
        remaining = _Remaining(searched, placed.slots, full_tokens * speed.seconds_per_token, speed.start_seconds)
        trials, full = _counts(remaining, settings, len(search.recipe.start))
        busy = _busy_seconds(remaining, settings)
        tokens = int(min(busy * placed.slots / speed.seconds_per_token, trials * full_tokens))
        tokens += int(min(left, final) * placed.slots / speed.seconds_per_token)
        busy += min(left, final)
        ends = min(ends, now + timedelta(seconds=busy))
    ends += timedelta(seconds=expected_seconds(deadline.reserve_seconds))
    return SearchForecast(
        trials=trials,
        full_trials=full,
        full_tokens=full_tokens,
        tokens=tokens,
        seconds_per_token=None if speed is None else speed.seconds_per_token,
        source=None if speed is None else speed.source,
        made=now,
        slots=placed.slots,
        reserve_seconds=deadline.reserve_seconds,
        ends=ends,
        disk_gib=disk_gib(search, placed.slots, trials),
        **_dues(settings, (ends - deadline.started).total_seconds() / 3600 * gpu_count(search, placed)),
    )


def _dues(settings: SearchSettings, gpu_hours: float) -> dict[str, float | None]:
    price = settings.price_per_gpu_hour
    return {
        "energy_kwh": gpu_hours * settings.gpu_watts / 1000 if gpu_hours else None,
        "cost": gpu_hours * price if gpu_hours and price is not None else None,
    }


def _counts(remaining: _Remaining, settings: SearchSettings, starts: int) -> tuple[int, int]:
    """Return the configurations that are tried, and those trained to full length.

    Every one of the `starts` starting points is trained to full length, as time permits; of the others, a share is.
    """
    most = settings.trials or math.inf
    fitting = int(remaining.slot_seconds / (remaining.full_seconds + remaining.start_seconds))
    if fitting <= starts:
        return int(min(most, max(fitting, remaining.slot_seconds > 0))), int(min(most, fitting))
    left = remaining.slot_seconds - starts * (remaining.full_seconds + remaining.start_seconds)
    proposed = max(1, int(left / (_MEAN_LENGTH * remaining.full_seconds + 2 * remaining.start_seconds)))
    trials = min(most, starts + proposed)
    return int(trials), min(fitting, round(starts + (trials - starts) * _FULL_SHARE))


def _busy_seconds(remaining: _Remaining, settings: SearchSettings) -> float:
    """Return the seconds until training is over.

    It is the remaining time, unless the recipe limits the trials and all of them can be trained in full before.
    """
    if settings.trials is None:
        return remaining.seconds
    return min(
        remaining.seconds,
        settings.trials * (remaining.full_seconds + remaining.start_seconds) / max(1, remaining.slots),
    )


def gpu_count(search: Search, placed: Placement) -> int:
    """Return the GPUs that a search uses in this placement."""
    return placed.engines * search.gpus_per_trial
