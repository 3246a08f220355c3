"""Sampler that proposes what the freeze-thaw surrogate expects the largest improvement of, in Optuna's interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from orchestrator.sampling.candidates import Proposer
from orchestrator.surrogate.model import Surrogate
from orchestrator.surrogate.trial_view import TrialView
from trials.state import TrialState

_STATES = {
    OptunaState.RUNNING: TrialState.RUNNING,
    OptunaState.COMPLETE: TrialState.FINISHED,
    OptunaState.PRUNED: TrialState.PRUNED,
}


class FreezeThawSampler(BaseSampler):
    """Sampler for a fixed space. Of a minimised study it learns from intermediate values too, whatever the state.

    `full_steps` is the step of the last intermediate value of a trial that isn't pruned. With a `surrogate`, it
    proposes from that, which somebody else keeps up to date, and doesn't read the study's trials. The same seed,
    trial number and trials give the same proposal.
    """

    def __init__(
        self,
        space: Mapping[str, BaseDistribution],
        seed: int = 0,
        full_steps: int = 1,
        surrogate: Surrogate | None = None,
    ) -> None:
        self._space, self._seed, self._full_steps = dict(space), seed, full_steps
        self._reads_study = surrogate is None
        self._surrogate = surrogate or Surrogate(space)
        self._proposer = Proposer(self._surrogate, np.random.default_rng(seed))
        self._others = RandomSampler(seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the whole space: all of it is proposed together."""
        return self._space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return a configuration that has not been tried, if one is left."""
        if self._reads_study:
            self._observe(study, trial.number)
        # Not the sum of the two: the next seed would give the same configurations, one trial earlier.
        return self._proposer.propose([self._seed, trial.number])

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return a random value of a parameter that isn't in the space."""
        return self._others.sample_independent(study, trial, param_name, param_distribution)

    def prepare(self) -> None:
        """Do deferred work, while no trial waits for a proposal."""
        self._surrogate.refit()
        self._proposer.prepare()

    def _observe(self, study: Study, number: int) -> None:
        for trial in study.get_trials(deepcopy=False):
            if trial.number == number or trial.state not in _STATES or not self._space.keys() <= trial.params.keys():
                continue
            view = self._view(trial)
            if view != self._surrogate.views.get(view.trial_id):
                self._surrogate.observe(view)

    def _view(self, trial: FrozenTrial) -> TrialView:
        values = {name: trial.params[name] for name in self._space}
        losses = {step / self._full_steps: loss for step, loss in trial.intermediate_values.items()}
        if trial.state is OptunaState.COMPLETE and trial.value is not None:
            losses[1.0] = trial.value
        fractions = sorted(losses)
        lowest = np.minimum.accumulate([losses[each] for each in fractions]).tolist()
        points = tuple(zip(fractions, lowest, strict=True))
        return TrialView(f"{trial.number}", values, points, 1.0, _STATES[trial.state], is_start=False, noise=0.0)
