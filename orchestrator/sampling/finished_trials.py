"""Trials as samplers know them that learn from finished trials only.

All are compared at one fraction of a full trial, the largest that enough trials have reached (BOHB, Falkner et al.,
arXiv 1807.01774). So a sampler learns from trials that are paused or were stopped, and never compares an early loss
with a late one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from orchestrator.surrogate.trial_view import TrialView
from trials.state import TrialState

_TOLERANCE = 1e-3
"""Of a full trial: optimizer steps don't end exactly at a number of tokens."""
_PLACEHOLDER = create_trial(state=OptunaState.FAIL)
"""Takes the number of a trial that a sampler isn't told: samplers skip failed trials."""


class FinishedTrials:
    """Trials of a search as finished ones, by number, which is the trial's id."""

    def __init__(self, space: Mapping[str, BaseDistribution]) -> None:
        self._space = space
        self._views: dict[int, TrialView] = {}
        self.system_attrs: dict[int, dict[str, Any]] = {}
        """What samplers keep with trials in a study, such as the state of CMA-ES."""

    def observe(self, view: TrialView) -> None:
        """Record a new trial, or what has changed of one."""
        self._views[int(view.trial_id)] = view

    @property
    def common_fraction(self) -> float:
        """The largest fraction of a full trial that one trial more than the space has dimensions has reached.

        With fewer trials, the largest that all of them have reached; 0.0: none was evaluated.
        """
        reached = sorted((_reached(view) for view in self._views.values() if view.points), reverse=True)
        if not reached:
            return 0.0
        return reached[min(len(reached), len(self._space) + 1) - 1]

    def frozen(self, count: int) -> list[FrozenTrial]:
        """Return the trials with numbers below `count`, for a study: complete, pruned, running or failed."""
        fraction = self.common_fraction
        losses = {number: _loss_at(view, fraction) for number, view in self._views.items()}
        worst = max((loss for loss in losses.values() if loss is not None), default=0.0)
        return [self._frozen(number, losses.get(number), worst) for number in range(count)]

    def _frozen(self, number: int, loss: float | None, worst: float) -> FrozenTrial:
        view = self._views.get(number)
        if view is None or view.state is TrialState.FAILED:
            return _PLACEHOLDER
        given: dict[str, Any] = {
            "params": dict(view.values),
            "distributions": dict(self._space),
            "system_attrs": self.system_attrs.get(number, {}),
        }
        if view.state.is_infeasible:
            # Of failed and of pruned trials without a value, most samplers would learn nothing.
            return create_trial(state=OptunaState.COMPLETE, value=worst, **given)
        if loss is not None:
            return create_trial(state=OptunaState.COMPLETE, value=loss, **given)
        if view.state is TrialState.RUNNING or not view.points:
            return create_trial(state=OptunaState.RUNNING, **given)
        steps = {round(1000 * at): value for at, value in view.points}
        return create_trial(state=OptunaState.PRUNED, value=view.points[-1][1], intermediate_values=steps, **given)


def _reached(view: TrialView) -> float:
    """Return the fraction at which a trial can be compared; a complete one that is shorter than others, at any."""
    return max(1.0, view.fraction) if view.state.is_complete else view.fraction


def _loss_at(view: TrialView, fraction: float) -> float | None:
    """Return a trial's lowest loss up to a fraction of a full trial; None: it has not been trained so far."""
    if not view.points or _reached(view) < fraction - _TOLERANCE:
        return None
    later = (loss for at, loss in view.points if at >= fraction - _TOLERANCE)
    return next(later, view.points[-1][1])
