"""Sampler of a search: the one that the recipe names, asked within a decision, or beside decisions if it is slow."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from optuna.distributions import BaseDistribution

from orchestrator.sampling.finished_trials import FinishedTrials
from orchestrator.sampling.freeze_thaw_sampler import FreezeThawSampler
from orchestrator.sampling.proposal_study import ProposalStudy
from orchestrator.sampling.sampler_process import Begin, SamplerProcess
from orchestrator.sampling.samplers import FREEZE_THAW, make_sampler
from orchestrator.surrogate.model import MANY_SLOTS, Surrogate
from orchestrator.surrogate.trial_view import TrialView
from search_spaces.schema import SearchSettings

_SLOW = "gp"
_MOST_DEATHS = 3
_ROUNDS = 8
"""With many slots, a request asks for as many configurations as an eighth of the slots starts."""


class SearchSampler:
    """Proposes configurations of a space, one by one.

    `begun` is the number of trials before this session, whose sampler has another seed. If the sampler raises, ours
    proposes from then on, and `say` shows a sentence to people. `waits`: `propose` waits for a slow sampler, as
    simulations need it, whose time stands still meanwhile.
    """

    def __init__(
        self,
        settings: SearchSettings,
        space: Mapping[str, BaseDistribution],
        surrogate: Surrogate,
        say: Callable[[str], None],
        slots: int = 1,
        begun: int = 0,
        *,
        waits: bool = False,
    ) -> None:
        self._settings, self._space, self._surrogate = settings, space, surrogate
        self._say, self._slots, self._waits = say, slots, waits
        self._ours: FreezeThawSampler | None = None
        self._study: ProposalStudy | None = None
        self._process: SamplerProcess | None = None
        self._ready: deque[dict[str, Any]] = deque()
        self._asked: Future[list[dict[str, Any]]] | None = None
        self._deaths = 0
        """How often its process has died since the last proposal."""
        seed = settings.seed + begun
        if settings.sampler == FREEZE_THAW:
            self._use_ours()
        elif settings.sampler == _SLOW or slots >= MANY_SLOTS:
            self._process = SamplerProcess(Begin(settings, space, seed))
        else:
            self._study = ProposalStudy(space, make_sampler(settings, seed), FinishedTrials(space))

    def observe(self, view: TrialView) -> None:
        """Record a new trial, or what has changed of one."""
        if self._study is not None:
            self._study.observe(view)
        if self._process is not None:
            self._process.observe(view)

    def begin(self, number: int, values: Mapping[str, Any]) -> None:
        """Let the trial of this number have a configuration that nobody proposed."""
        if self._study is not None:
            self._study.begin(number, values)

    def propose(self, number: int) -> dict[str, Any] | None:
        """Return the configuration of the trial of this number; None: it is not ready yet."""
        try:
            return self._propose(number)
        except Exception as error:
            if self._ours is not None:
                raise
            name = self._settings.sampler
            self._say(f"search.sampler {name} raised {type(error).__name__}: {error}; freeze_thaw proposes from now on")
            self.close()
            self._use_ours()
            return self._propose(number)

    def _propose(self, number: int) -> dict[str, Any] | None:
        if self._study is not None:
            return self._study.ask(number)
        assert self._process is not None  # there is a study or a process
        if not self._ready and self._asked is None:
            count = 1 if self._slots < MANY_SLOTS else max(1, self._slots // _ROUNDS)
            self._asked = self._process.request(number, count)
        if self._asked is not None and (self._asked.done() or self._waits):
            self._ready.extend(self._answer(self._asked))
        return self._ready.popleft() if self._ready else None

    def _answer(self, asked: Future[list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """Return what the sampler proposed; nothing if its process has died, which is asked again a few times."""
        self._asked = None
        try:
            found = asked.result()
        except (EOFError, OSError):
            self._deaths += 1
            if self._deaths >= _MOST_DEATHS:
                raise
            return []
        self._deaths = 0
        return found

    def _use_ours(self) -> None:
        self._process = None
        self._ours = FreezeThawSampler(self._space, self._settings.seed, surrogate=self._surrogate)
        self._study = ProposalStudy(self._space, self._ours, None)

    def prepare(self) -> None:
        """Do deferred work, while no trial waits for a proposal."""
        if self._ours is not None:
            self._ours.prepare()

    def close(self) -> None:
        """End the sampler's process, if it has one."""
        if self._process is not None:
            self._process.close()
