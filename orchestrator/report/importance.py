"""Importance of hyperparameters by PED-ANOVA (Watanabe et al., arXiv 2304.10255), as Optuna implements it.

Few trials reach full length, and those are the good ones. All trials can only be compared by their loss at the first
comparison point. So importance is computed from that loss, if there are comparison points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution

from orchestrator.report.data import ReportData, hyperparameter
from orchestrator.report.tables import show
from orchestrator.sampling.distributions import distribution
from orchestrator.state.rungs import loss_at
from search_spaces.schema import Choices, Dimension
from trials.records.trial_dir import TrialRecord

LEAST_TRIALS = 8
_TOP_SHARE = 0.25


@dataclass(frozen=True)
class Importance:
    """Shares that add up to 1, largest first, and the loss that they refer to, in words."""

    shares: Mapping[str, float]
    trials: int
    about: str


def importance(data: ReportData) -> Importance | str:
    """Return each varied hyperparameter's share in reaching the best quarter of trials; a sentence if there is none."""
    space = data.search.recipe.space
    about, losses = _comparable_losses(data)
    if len(losses) < LEAST_TRIALS:
        return f"There are too few trials to tell: {len(losses)} have a {about}, and it takes {LEAST_TRIALS}."
    trials = [record for record in data.compared if record.id in losses]
    names = [name for name in space if len({show(hyperparameter(record, name)) for record in trials}) > 1]
    if len(names) < 2:
        return "There is nothing to weigh: the trials differ in fewer than two hyperparameters."
    study = _study(trials, losses, {name: space[name] for name in names})
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=_TOP_SHARE)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    if not sum(shares.values()) > 0:
        return "There is nothing to weigh: the best trials are spread over the whole space like all others."
    return Importance(shares, len(trials), about)


def _comparable_losses(data: ReportData) -> tuple[str, dict[str, float]]:
    """Return the name of the loss in words, and the loss of every trial that has it, by trial id."""
    if not data.rungs:
        ended = [record for record in data.compared if record.state.is_complete]
        return "loss at full length", {r.id: r.best_eval_loss for r in ended if r.best_eval_loss is not None}
    tokens = data.rungs[0]
    found = {record.id: loss_at(record.points, tokens) for record in data.compared}
    return f"loss at {tokens:,} tokens", {trial_id: loss for trial_id, loss in found.items() if loss is not None}


def _study(
    trials: list[TrialRecord], losses: Mapping[str, float], space: Mapping[str, Dimension]
) -> optuna.study.Study:
    """Return a study in memory, so that the run folder needs no study.db, and an existing one stays as it is."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize")
    distributions = {name: _distribution(name, dimension) for name, dimension in space.items()}
    for record in trials:
        values = {name: _value(hyperparameter(record, name), dimension) for name, dimension in space.items()}
        study.add_trial(optuna.trial.create_trial(params=values, distributions=distributions, value=losses[record.id]))
    return study


def _distribution(name: str, dimension: Dimension) -> BaseDistribution:
    if isinstance(dimension, Choices):
        return CategoricalDistribution([show(choice) for choice in dimension.choices])
    return distribution(name, dimension)


def _value(value: Any, dimension: Dimension) -> Any:
    """Return a choice as text, because the same value may be 16 in the recipe and 16.0 in the trial."""
    return show(value) if isinstance(dimension, Choices) else value
