"""When all GPUs of a machine train one trial together near the end; the controller acts on it.

Side by side, two GPUs get through more than together: no gradient has to travel, and small steps stay efficient. So
trials run apart for as long as that finishes the most promising one. Near the end it may not: a trial that is too slow
for the time that is left on one GPU can be complete in time on two. Then, and only then, it's worth the change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from orchestrator.controller.trials import Trial
from orchestrator.planning.placement import smallest_batch, trl_reason
from orchestrator.planning.speed_cache import assumed_scaling, measured_scaling
from orchestrator.planning.throughput import ThroughputModel
from orchestrator.scheduling.curve_model import Forecast
from orchestrator.state.regrouped import Consolidation
from orchestrator.state.run_dir import Placement, Search
from trials.schedule import full_tokens

_RESTART_SECONDS = 30.0
"""Of Ray, and of the processes that train together."""
_OPENING_FACTOR = 1.5
"""Loading the base model takes at most so many times as long as when the search began."""

_SPARE = 0.1
"""Of the time that is left: what it takes is known about so well."""


@dataclass(frozen=True)
class FinalistCandidate:
    """A trial that could go on, running or paused."""

    trial_id: str
    loss: float
    """Expected at its end, in nats."""
    seconds: float
    """To its end on one GPU that it has for itself."""


@dataclass(frozen=True)
class OnAllGpus:
    """What training it on all GPUs would come to."""

    ranks: int
    scaling: float
    """How many times as fast as on one GPU."""
    change_seconds: float
    """Until it trains there."""


def finalist(
    unfinished: Iterable[FinalistCandidate], best_complete: float | None, seconds_left: float, together: OnAllGpus
) -> FinalistCandidate | None:
    """The trial for whose sake all GPUs should work together from now on; None: trials go on side by side.

    It's the most promising one, if it's expected to beat all that are complete (`best_complete`, in nats), can't be
    complete in time on one GPU, and can on all of them.
    """
    best = min(unfinished, key=lambda each: each.loss, default=None)
    if best is None or (best_complete is not None and best.loss >= best_complete):
        return None
    if best.seconds <= seconds_left:
        return None
    needed = together.change_seconds + best.seconds / together.scaling
    return best if needed <= (1 - _SPARE) * seconds_left else None


def plan_consolidation(
    search: Search,
    trials: Iterable[Trial],
    forecast: Callable[[str], Forecast | None],
    throughput: ThroughputModel,
    seconds_left: float,
    now: str,
) -> Consolidation | None:
    """What is to be changed, at the time `now`, if it `is_near_the_end`; None: nothing."""
    placed, each = search.placement, throughput.seconds_per_token()
    assert placed is not None
    assert each is not None
    beside, ranks = placed.slots_per_engine, placed.most_ranks
    found = measured_scaling(search, ranks, beside / each)
    together = OnAllGpus(ranks, found or assumed_scaling(ranks), _change_seconds(search))
    trials = list(trials)
    complete = (trial.best_eval_loss for trial in trials if trial.ending is not None)
    best = min((loss for loss in complete if loss is not None), default=None)
    found_unfinished = [_unfinished(trial, search, forecast, throughput) for trial in trials if trial.ending is None]
    unfinished = [each for each in found_unfinished if each is not None]
    chosen = finalist(unfinished, best, seconds_left, together)
    if chosen is None:
        return None
    source = "measured" if found else "assumed, as it was never measured on this machine"
    reason = (
        f"trial {chosen.trial_id} looks most promising, and would take {chosen.seconds:.0f} s on one GPU, of which "
        f"{seconds_left:.0f} are left; on {ranks} together it's {together.scaling:.2f} times as fast ({source})"
    )
    return Consolidation(ranks, together.scaling * beside, chosen.trial_id, reason, now)


def is_near_the_end(search: Search, throughput: ThroughputModel, seconds_left: float) -> bool:
    """Whether a full trial takes longer on one GPU than what is left: before, there is nothing to be regrouped for."""
    placed, full = search.placement, throughput.seconds(None, search.full_tokens)
    if placed is None or full is None or not placed.engines:
        return False
    # Asked several times a second: what takes time comes last.
    return full / placed.slots_per_engine > seconds_left and _may_consolidate(search, placed)


def _may_consolidate(search: Search, placed: Placement) -> bool:
    allowed = search.recipe.search.consolidate
    if allowed is None:
        allowed = search.gpus_per_trial == 1
    is_apart = search.ranks == 1 and search.regrouped is None
    if not (allowed and is_apart and smallest_batch(search.recipe) >= placed.most_ranks > 1):
        return False
    return trl_reason(replace(search, ranks=placed.most_ranks)) is None


def _unfinished(
    trial: Trial, search: Search, forecast: Callable[[str], Forecast | None], throughput: ThroughputModel
) -> FinalistCandidate | None:
    """None: nothing is known of it yet."""
    curve_model, placed = forecast(trial.trial_id), search.placement
    if curve_model is None or placed is None or search.epoch is None:
        return None
    left = full_tokens(trial.config.hyperparameters, search.epoch) - trial.tokens_seen
    seconds = throughput.seconds(trial.config, max(0.0, left))
    return (
        None
        if seconds is None
        else FinalistCandidate(trial.trial_id, curve_model.mean, seconds / placed.slots_per_engine)
    )


def _change_seconds(search: Search) -> float:
    return _RESTART_SECONDS + _OPENING_FACTOR * (search.opening_seconds or 0.0)
