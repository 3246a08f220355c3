"""Optuna's trials of a search, derived from the trials' folders."""

from __future__ import annotations

from typing import Any

from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from orchestrator.controller.trials import proposed_values
from orchestrator.sampling.distributions import distributions
from orchestrator.state.run_dir import BASE_TRIAL_ID, RunDir
from orchestrator.state.search import Search
from search_spaces.schema import Recipe
from trials.records.trial_dir import Origin, TrialRecord
from trials.state import TrialState

CONSTRAINT = "can_be_trained"
EXPORTED = "exported"
BASE = int(BASE_TRIAL_ID)
WITHOUT_A_FOLDER = create_trial(state=OptunaState.FAIL)


class DerivedTrials:
    """Optuna's trials as the folders of a search say they are; `exported`: the trial that was exported, or None."""

    def __init__(self, run: RunDir, recipe: Recipe, exported: str | None = None) -> None:
        self._run, self._recipe = run, recipe
        self._distributions = distributions(recipe.space)
        self._search: Search | None = None
        self.exported = exported

    def derive(self, number: int, record: TrialRecord | None) -> FrozenTrial:
        """Return a trial as its folder says it is; `record` None: there is no folder, or it was set aside."""
        if number == BASE:
            return create_trial(state=OptunaState.FAIL, user_attrs={"name": "base"})
        if record is None:
            return WITHOUT_A_FOLDER
        is_exported = record.id == self.exported
        state = OptunaState.RUNNING
        if record.ending is not None:
            state = OptunaState.COMPLETE if is_exported else state_of(record.ending.kind, record.best_eval_loss)
        is_infeasible = record.state.is_infeasible and not is_exported
        return create_trial(
            state=state,
            # As `optuna.Study.tell` has it, the value of a pruned trial is its last intermediate value.
            value=record.best_eval_loss if state in (OptunaState.COMPLETE, OptunaState.PRUNED) else None,
            params=proposed_values(record.config.hyperparameters, self._recipe.space, self._read().shortened or 1.0),
            distributions=self._distributions,
            intermediate_values={point.tokens_seen: point.best_eval_loss for point in record.points},
            user_attrs=self._attributes(record),
            constraints=None if record.ending is None else {CONSTRAINT: float(is_infeasible)},
        )

    def _attributes(self, record: TrialRecord) -> dict[str, Any]:
        """Return a trial's attributes, without those that it doesn't have."""
        search, seen = self._read(), record.points[-1].tokens_seen if record.points else 0
        full = search.tokens_of(record.config)
        ended = {} if record.ending is None else {"ending": record.ending.kind.value, "reason": record.ending.reason}
        attrs = {
            "trial_id": record.id,
            "name": record.name if record.origin in (Origin.START, Origin.FINAL) else None,
            "tokens_seen": seen,
            "fraction": round(min(1.0, seen / full), 4),
            "score": record.score,
            **ended,
            EXPORTED: None if record.ending is None else record.id == self.exported,
        }
        return {key: value for key, value in attrs.items() if value is not None}

    def _read(self) -> Search:
        """Return the search; what is read of it doesn't change any more once a trial has begun."""
        if self._search is None or self._search.shortened is None:
            self._search = self._run.read_search()
        return self._search


def state_of(kind: TrialState, best_eval_loss: float | None) -> OptunaState:
    """Return Optuna's trial state for how a trial ended."""
    if (kind.is_complete or kind is TrialState.OUT_OF_TIME) and best_eval_loss is not None:
        return OptunaState.COMPLETE
    if kind is TrialState.FAILED:
        return OptunaState.FAIL
    return OptunaState.PRUNED
