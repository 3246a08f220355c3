"""Study in memory through which a sampler is asked for new configurations.

It is not the study of RUN/study.db, which is for people: there a trial has the value that it was trained to, here the
one that makes it comparable with the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import TrialState as OptunaState
from optuna.trial import create_trial

from orchestrator.sampling.finished_trials import FinishedTrials
from orchestrator.surrogate.trial_view import TrialView

_MOST_REPEATED = 10
"""Number of times that a sampler is asked again because it proposed what was tried."""


class ProposalStudy:
    """Asks a sampler; trials are told to it as `finished`, and it is made anew where any of them has changed.

    `finished` None: the sampler knows the trials by itself, and the study only numbers them.
    """

    def __init__(
        self, space: Mapping[str, BaseDistribution], sampler: BaseSampler, finished: FinishedTrials | None
    ) -> None:
        self._space, self._sampler, self._finished = dict(space), sampler, finished
        self._study = self._new_study()
        self._tried: set[tuple[Any, ...]] = set()
        self._is_stale = False

    def observe(self, view: TrialView) -> None:
        """Record a new trial, or what has changed of one."""
        self._tried.add(self._key(view.values))
        if self._finished is not None:
            self._finished.observe(view)
            self._is_stale = True

    def ask(self, number: int) -> dict[str, Any]:
        """Return the configuration for the trial of this number; one that was tried only if the sampler insists."""
        self._fill(number)
        for _ in range(_MOST_REPEATED):
            found = self._ask(number)
            if self._key(found) not in self._tried:
                break
        self._tried.add(self._key(found))
        return found

    def begin(self, number: int, values: Mapping[str, Any]) -> None:
        """Let the trial of this number have the given configuration, as `Study.enqueue_trial` does."""
        self._fill(number)
        self._study.enqueue_trial(dict(values))
        self._ask(number)

    def _ask(self, number: int) -> dict[str, Any]:
        trial = self._study.ask(self._space)
        if self._finished is not None:
            stored = self._study.get_trials(deepcopy=False)[trial.number]
            self._finished.system_attrs[number] = dict(stored.system_attrs)
        return dict(trial.params)

    def _fill(self, number: int) -> None:
        """Make the study's next trial the one of this number."""
        if self._finished is not None and self._is_stale:
            self._study, self._is_stale = self._new_study(), False
            self._study.add_trials(self._finished.frozen(number))
        while len(self._study.get_trials(deepcopy=False)) < number:
            self._study.add_trial(create_trial(state=OptunaState.FAIL))

    def _new_study(self) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        return optuna.create_study(direction="minimize", sampler=self._sampler)

    def _key(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(values[name] for name in self._space)
