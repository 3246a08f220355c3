"""Decides whether all GPUs of a machine train one trial together near the end of a search (consolidation).

Two GPUs have a higher throughput on separate trials than on one: no gradients are exchanged, and small steps stay
efficient. So no trial spans GPUs as long as the most promising one can be completed in time. Near the end, one GPU may
be too slow for that while two are not. Only then is consolidation worth its cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from orchestrator.controller.budget import SearchBudget
from orchestrator.controller.trials import Trial
from orchestrator.planning.placement import smallest_batch, trl_reason
from orchestrator.planning.speed_cache import assumed_scaling, measured_scaling
from orchestrator.planning.throughput import ThroughputModel
from orchestrator.state.search import Consolidation, Placement, Search
from orchestrator.surrogate.curve_model import Forecast
from trials.schedule import full_tokens

_RESTART_SECONDS = 30.0
"""Seconds to restart Ray and start the worker group."""
_OPENING_FACTOR = 1.5
"""Upper limit on the time to load the base model, relative to `Search.opening_seconds`."""

_SPARE = 0.1
"""Share of the time left that is kept as a margin: the relative error of the time estimate is about as large."""


@dataclass(frozen=True)
class FinalistCandidate:
    """An incomplete trial, running or paused, that could become the finalist."""

    trial_id: str
    loss: float
    """Predicted loss at its end, in nats."""
    seconds: float
    """Seconds to its end on one GPU without other trials on it."""


@dataclass(frozen=True)
class OnAllGpus:
    """Estimate for training one trial on all GPUs of a machine."""

    ranks: int
    scaling: float
    """Speedup over one GPU."""
    change_seconds: float
    """Seconds until the trial trains on all of them."""


def finalist(
    unfinished: Iterable[FinalistCandidate], best_loss: float, seconds_left: float, together: OnAllGpus
) -> FinalistCandidate | None:
    """Return the trial that all GPUs should train together from now on; None: trials go on separately.

    It is the trial with the lowest predicted loss, on three conditions. That loss is below `best_loss`, the lowest loss
    of ended trials in nats. The trial cannot be completed in time on one GPU. It can on all of them.
    """
    best = min(unfinished, key=lambda each: each.loss, default=None)
    if best is None or best.loss >= best_loss or best.seconds <= seconds_left:
        return None
    needed = together.change_seconds + best.seconds / together.scaling
    return best if needed <= (1 - _SPARE) * seconds_left else None


def plan_consolidation(
    budget: SearchBudget, trials: Iterable[Trial], forecast: Callable[[str], Forecast | None]
) -> Consolidation | None:
    """Return the consolidation to carry out; None: it is not near the end, or there is none worth it."""
    search, throughput, seconds_left = budget.search, budget.throughput, budget.seconds_left
    placed, each = search.placement, throughput.seconds_per_token()
    if placed is None or each is None or not _is_near_the_end(budget, placed, each):
        return None
    if search.final_seconds > 0:  # every GPU trains a final trial then
        return None
    beside, ranks = placed.slots_per_worker, placed.most_ranks
    found = measured_scaling(search, ranks, beside / each)
    together = OnAllGpus(ranks, found or assumed_scaling(ranks), _change_seconds(search))
    trials = list(trials)
    # However a trial has ended, its best adapter can be exported (`orchestrator.state.selection`): the loss of a pruned
    # or diverged one has to be beaten too.
    losses = (trial.best_eval_loss for trial in trials if trial.state.is_terminal)
    best_loss = min((loss for loss in losses if loss is not None), default=math.inf)
    candidates = (_candidate(trial, search, forecast, throughput) for trial in trials if not trial.state.is_terminal)
    chosen = finalist([each for each in candidates if each is not None], best_loss, seconds_left, together)
    if chosen is None:
        return None
    source = "measured" if found else "assumed, as it was never measured on this machine"
    reason = (
        f"trial {chosen.trial_id} looks most promising, and would take {chosen.seconds:.0f} s on one GPU, of which "
        f"{seconds_left:.0f} are left; on {ranks} together it's {together.scaling:.2f} times as fast ({source})"
    )
    return Consolidation(ranks, together.scaling * beside, chosen.trial_id, reason, budget.now().isoformat())


def _is_near_the_end(budget: SearchBudget, placed: Placement, seconds_per_token: float) -> bool:
    """Whether a full trial on one GPU takes longer than the time left, and consolidation is allowed and possible."""
    if budget.seconds_left <= 0:
        return False
    full = seconds_per_token * budget.search.full_tokens / placed.slots_per_worker
    # Called several times a second, so the expensive check comes last.
    return full > budget.seconds_left and _may_consolidate(budget.search, placed)


def _may_consolidate(search: Search, placed: Placement) -> bool:
    allowed = search.recipe.search.regroup
    if allowed is None:
        allowed = search.gpus_per_trial == 1
    is_apart = search.ranks == 1 and search.regrouped is None
    if not (allowed and is_apart and smallest_batch(search.recipe) >= placed.most_ranks > 1):
        return False
    return trl_reason(replace(search, ranks=placed.most_ranks)) is None


def _candidate(
    trial: Trial, search: Search, forecast: Callable[[str], Forecast | None], throughput: ThroughputModel
) -> FinalistCandidate | None:
    """Return a trial as a candidate; None: it has no prediction, or no throughput was measured yet."""
    curve_model, placed = forecast(trial.trial_id), search.placement
    if curve_model is None or placed is None or search.epoch is None:
        return None
    left = full_tokens(trial.config.hyperparameters, search.epoch) - trial.tokens_seen
    seconds = throughput.seconds(trial.config, max(0.0, left))
    return (
        None
        if seconds is None
        else FinalistCandidate(trial.trial_id, curve_model.mean, seconds / placed.slots_per_worker)
    )


def _change_seconds(search: Search) -> float:
    return _RESTART_SECONDS + _OPENING_FACTOR * (search.opening_seconds or 0.0)
