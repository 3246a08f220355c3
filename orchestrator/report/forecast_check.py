"""The report's comparison of the search with its forecast, from the run folder alone."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from orchestrator.planning.forecast import gpu_count
from orchestrator.planning.throughput import ThroughputModel
from orchestrator.planning.trial_length import length_in_words
from orchestrator.report.data import ReportData
from orchestrator.report.tables import NOTHING
from orchestrator.state.search import Consolidation, SearchForecast
from orchestrator.state.timing import EXPORTED, end_seconds
from search_spaces.durations import format_duration
from trials.records.memory_report import read_memory_report
from trials.state import TrialState


@dataclass(frozen=True)
class ForecastRow:
    """Predicted and actual value of one quantity, as text."""

    what: str
    predicted: str
    actual: str


@dataclass(frozen=True)
class ForecastCheck:
    """Comparison of the forecast with the search.

    `sentences` say when the forecast was made, how long a full trial was, and when consolidation began.
    """

    sentences: tuple[str, ...]
    rows: tuple[ForecastRow, ...]


def forecast_check(data: ReportData) -> ForecastCheck | None:
    """Compare the forecast with the search; None without a readable forecast, as before the speed is measured."""
    prediction = data.search.prediction
    if prediction is None:
        return None
    rows = (make(data, prediction) for make in _ROWS)
    return ForecastCheck(tuple(_sentences(data, prediction)), tuple(row for row in rows if row is not None))


def _sentences(data: ReportData, prediction: SearchForecast) -> Iterator[str]:
    after = (prediction.made - data.search.deadline.started).total_seconds()
    yield f"Predicted {format_duration(after)} after the start, when the speed had been measured."
    search = data.search
    if search.epoch is not None and search.shortened:
        full = round(search.full_tokens / search.shortened)
        yield f"A full trial: {length_in_words(full, search.full_tokens, search.epoch.tokens)}."
    if search.final_seconds > 0:
        kept = format_duration(search.final_seconds)
        yield f"The last {kept} of training were kept for the best configuration, trained anew for longer."
    if search.regrouped is not None:
        yield _consolidation(data, search.regrouped)


def _consolidation(data: ReportData, to: Consolidation) -> str:
    since = (
        f"Since {datetime.fromisoformat(to.at):%H:%M:%S} UTC {to.ranks} GPUs trained each trial together: {to.reason}."
    )
    speedup = ThroughputModel.from_records(data.records, to).speedup
    if speedup is None or not any(point.ranks == to.ranks for record in data.trained for point in record.points):
        return since
    return f"{since} Trials then were {speedup:.2f} times as fast as before ({to.speedup:.2f} predicted)."


def _trials(data: ReportData, prediction: SearchForecast) -> ForecastRow:
    return ForecastRow("configurations tried", _count(prediction.trials), _count(len(data.compared)))


def _full_trials(data: ReportData, prediction: SearchForecast) -> ForecastRow:
    full = sum(r.state is TrialState.FINISHED for r in data.compared)
    return ForecastRow("trained at full length", _count(prediction.full_trials), _count(full))


def _tokens(data: ReportData, prediction: SearchForecast) -> ForecastRow:
    trained = sum(record.tokens_seen for record in data.trained)
    return ForecastRow("tokens trained in all", _count(prediction.tokens), _count(trained))


def _speed(data: ReportData, prediction: SearchForecast) -> ForecastRow:
    evaluated = [record for record in data.trained if record.points]
    seconds = sum(record.points[-1].seconds for record in evaluated)
    tokens = sum(record.tokens_seen for record in evaluated)
    predicted = None if prediction.seconds_per_token is None else round(1 / prediction.seconds_per_token)
    actual = round(tokens / seconds) if seconds else None
    return ForecastRow("tokens/s of a trial, evaluations included", _count(predicted), _count(actual))


def _finish(data: ReportData, prediction: SearchForecast) -> ForecastRow:
    deadline, exported = data.search.deadline, _exported(data)
    actual = "not yet" if exported is None else f"{exported:%H:%M:%S}"
    if exported is not None and exported > deadline.ends:
        actual += f", {format_duration((exported - deadline.ends).total_seconds())} late"
    return ForecastRow(f"export there (UTC; deadline {deadline.ends:%H:%M:%S})", f"{prediction.ends:%H:%M:%S}", actual)


def _reserve(data: ReportData, prediction: SearchForecast) -> ForecastRow:
    used = end_seconds(data.timing)
    actual = NOTHING if used is None else f"{format_duration(used)} used"
    return ForecastRow("reserve for export and report", f"{format_duration(prediction.reserve_seconds)} kept", actual)


def _memory(data: ReportData, _prediction: SearchForecast) -> ForecastRow | None:
    """Return the row of the trial that took most GPU memory; None if no trial has recorded its peak.

    The prediction is the one in that trial's folder.
    """
    uses = [use for record in data.trained if (use := read_memory_report(record.folder)) is not None]
    largest = max(uses, key=lambda use: use.peak_bytes or 0, default=None)
    if largest is None or largest.peak_bytes is None:
        return None
    predicted = NOTHING if largest.predicted_bytes is None else f"{largest.predicted_bytes / 2**30:.2f}"
    split = sum(not attempt.fits for use in uses for attempt in use.tried[:1])
    smaller = f"; {split} split smaller to fit" if split else ""
    return ForecastRow("GPU memory of the largest trial, GiB", predicted, f"{largest.peak_bytes / 2**30:.2f}{smaller}")


def _disk(data: ReportData, prediction: SearchForecast) -> ForecastRow:
    predicted = NOTHING if prediction.disk_gib is None else f"at most {prediction.disk_gib:.2f}"
    return ForecastRow("disk, GiB", predicted, f"{_bytes_below(data.path) / 2**30:.2f}")


def _energy(data: ReportData, prediction: SearchForecast) -> ForecastRow | None:
    hours = _gpu_hours(data)
    if prediction.energy_kwh is None:
        return None
    watts = data.search.recipe.search.gpu_watts
    what = f"energy, kWh at {watts:g} W per GPU"
    return ForecastRow(what, f"{prediction.energy_kwh:.2f}", f"{hours * watts / 1000:.2f}")


def _cost(data: ReportData, prediction: SearchForecast) -> ForecastRow | None:
    price = data.search.recipe.search.price_per_gpu_hour
    if prediction.cost is None or price is None:
        return None
    return ForecastRow(f"cost at {price:g} per GPU-hour", f"{prediction.cost:.2f}", f"{_gpu_hours(data) * price:.2f}")


_ROWS: tuple[Callable[[ReportData, SearchForecast], ForecastRow | None], ...] = (
    _trials,
    _full_trials,
    _tokens,
    _speed,
    _finish,
    _reserve,
    _memory,
    _disk,
    _energy,
    _cost,
)


def _count(number: int | None) -> str:
    return NOTHING if number is None else f"{number:,}"


def _exported(data: ReportData) -> datetime | None:
    """Return when the search's own export was complete; None: not yet.

    Without that time in timing.json, it is the time in the manifest, which may be that of a later export.
    """
    said = data.timing.get(EXPORTED) or (data.manifest or {}).get(EXPORTED)
    try:
        return None if said is None else datetime.fromisoformat(said)
    except (TypeError, ValueError):
        return None


def _gpu_hours(data: ReportData) -> float:
    until = _exported(data) or data.last_written
    hours = (until - data.search.deadline.started).total_seconds() / 3600
    placed = data.search.placement
    return hours * (gpu_count(data.search, placed) if placed is not None else 0)


def _bytes_below(folder: Path) -> int:
    """Return the bytes of all files below a folder; a file with several hard links counts once."""
    sizes = {}
    for path in folder.rglob("*"):
        try:
            found = path.lstat()
        except OSError:  # removed meanwhile
            continue
        if stat.S_ISREG(found.st_mode):
            sizes[found.st_dev, found.st_ino] = found.st_size
    return sum(sizes.values())
