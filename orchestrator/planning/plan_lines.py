"""Lines of the plan about the forecast: reserve, speed, evaluation points, memory, disk, energy and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.planning.memory_bounds import MemoryBound, MemoryLimit, memory_bounds, memory_limit
from orchestrator.planning.trial_length import length_in_words, shortened_evaluation
from orchestrator.state.search import Search, SearchForecast
from search_spaces.durations import format_duration
from trials.schedule import Epoch, evaluation_tokens

_SHOWN_POINTS = 12


def forecast_lines(search: Search, full_tokens: int, epoch: Epoch, prediction: SearchForecast) -> list[str]:
    """Return all lines about the forecast. `full_tokens` is the length of a full trial that the recipe asks for."""
    return [
        reserve_line(search),
        *speed_lines(prediction, full_tokens, epoch),
        evaluation_points_line(search, full_tokens, prediction, epoch),
        *memory_lines(search),
        *cost_lines(search, prediction),
    ]


def reserve_line(search: Search) -> str:
    """Return the line about the reserve, and whether it may still change."""
    kept = format_duration(search.deadline.reserve_seconds)
    said = f"the last {kept} are kept for verification, export and report"
    if search.recipe.search.reserve is not None or search.shortened is not None:
        return said
    return f"{said}, until the base model's evaluation has shown how long they take"


def speed_lines(prediction: SearchForecast, full_tokens: int, epoch: Epoch) -> list[str]:
    """Return the lines about speed, number and length of trials, and when the export will be complete."""
    ends = f"the export is there at about {prediction.ends:%H:%M:%S} UTC"
    if prediction.seconds_per_token is None:
        return [f"speed: unknown until it's measured, in the first minutes; then the plan is made; {ends}"]
    each = 1 / prediction.seconds_per_token
    takes = format_duration(prediction.full_tokens * prediction.seconds_per_token)
    return [
        f"speed: {each:,.0f} tokens/s in each of {prediction.slots} trials at once, evaluations included, "
        f"{prediction.source}",
        f"a full trial takes {takes}: {length_in_words(full_tokens, prediction.full_tokens, epoch.tokens)}",
        f"predicted: {counts_in_words(prediction)}; {ends}",
    ]


def counts_in_words(prediction: SearchForecast) -> str:
    """Return the predicted number of trials, of full-length trials, and of tokens as a phrase."""
    if prediction.trials is None:
        return "an unknown number of trials"
    return (
        f"about {prediction.trials} configurations, {prediction.full_trials} of them at full length, "
        f"{prediction.tokens:,} tokens in all"
    )


def evaluation_points_line(search: Search, full_tokens: int, prediction: SearchForecast, epoch: Epoch) -> str:
    """Return the line with the evaluation points in tokens, at which trials may pause."""
    settings = shortened_evaluation(search.recipe.evaluation, prediction.full_tokens / full_tokens)
    at = evaluation_tokens(prediction.full_tokens, settings, epoch)
    shown = ", ".join(f"{tokens:,}" for tokens in at[:_SHOWN_POINTS])
    more = f", and so on, {len(at)} in all" if len(at) > _SHOWN_POINTS else ""
    return f"trials are evaluated, and may pause, at {shown} tokens{more}"


def memory_lines(search: Search) -> list[str]:
    """Return the lines about minimum memory at the extremes of the space, and about those that don't fit."""
    found = memory_bounds(search)
    if not found:
        return ["memory: can't be predicted for this base model; every configuration is tried before it's trained"]
    low, high = found[0], found[-1]
    extent = f"{low.need.gib:.1f} GiB{_values(low)}"
    if high.need.gib - low.need.gib > 0.05:
        extent += f" to {high.need.gib:.1f} GiB{_values(high)}"
    if not search.gpus_per_trial:
        return [f"memory of one trial, on the CPU: at least {extent}"]
    limit = memory_limit(search)
    too_large = [bound for bound in found if bound.need.gib > limit.gib]
    fits = "all corners of the space fit" if not too_large else "these don't fit, and end as out of memory:"
    return [
        f"memory of one trial: at least {extent}; {limit.gib:.1f} GiB are allowed ({limit.reason}): {fits}",
        *_too_large(too_large, limit),
    ]


def cost_lines(search: Search, prediction: SearchForecast) -> list[str]:
    """Return the lines about disk, energy and cost, as far as they are known."""
    settings = search.recipe.search
    lines = []
    if prediction.disk_gib is not None:
        kept = f"{settings.keep_adapters} adapters are kept, and at most {settings.keep_paused} paused trials"
        lines.append(f"disk: at most {prediction.disk_gib:.2f} GiB ({kept})")
    if prediction.energy_kwh is not None:
        lines.append(f"energy: {prediction.energy_kwh:.1f} kWh at {settings.gpu_watts:g} W per GPU (search.gpu_watts)")
    if prediction.cost is not None:
        lines.append(f"cost: {prediction.cost:.2f} at {settings.price_per_gpu_hour:g} per GPU-hour")
    return lines


def _too_large(found: Sequence[MemoryBound], limit: MemoryLimit) -> list[str]:
    return [
        f"  {_settings(bound.values) or 'every configuration'}: {bound.need.gib:.1f} GiB, "
        f"{bound.need.gib - limit.gib:.1f} too many: base model {bound.need.base_bytes / 2**30:.1f}, adapter with "
        f"optimizer {bound.need.adapter_bytes / 2**30:.1f}, one row {bound.need.micro_step_bytes / 2**30:.1f}"
        for bound in found
    ]


def _values(bound: MemoryBound) -> str:
    return f" ({_settings(bound.values)})" if bound.values else ""


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_shown(value)}" for name, value in values.items())


def _shown(value: Any) -> str:
    return "+".join(value) if isinstance(value, list | tuple) else str(value)
