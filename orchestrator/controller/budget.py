"""Budget of a search: its deadline, the length of a full trial, and the throughput that says what fits into it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from orchestrator.controller.trials import Trial
from orchestrator.planning.placement import FEWEST_SLOTS
from orchestrator.planning.throughput import ThroughputModel
from orchestrator.planning.trial_configs import trial_config
from orchestrator.scheduling.types import BudgetState
from orchestrator.state.search import Search
from trials.records.trial_dir import EvalPoint, Origin, TrialRecord

_LEAST_GAIN = 1.25
"""Trials beside each other have to get so many times as much done as one alone; else there are fewer of them."""
_LEAST_SECONDS = 1.0
"""Lower limit of a full trial's time before any measurement, as the time left reaches 0 at the deadline."""


@dataclass
class _Segments:
    """Parts of trials between two evaluations: their number, and their tokens and seconds in all."""

    count: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        self.count, self.tokens, self.seconds = self.count + 1, self.tokens + tokens, self.seconds + seconds


class SearchBudget:
    """Search with its deadline and length of a full trial, which the calibration sets, and its measured throughput."""

    def __init__(self, search: Search, slots: int, records: Sequence[TrialRecord], now: Callable[[], datetime]) -> None:
        # A search from before lengths were measured has trials that are as long as the recipe says.
        begun = any(record.origin not in (Origin.BASE, Origin.PROBE) for record in records)
        self.search = replace(search, shortened=1.0) if begun and search.shortened is None else search
        self.slots = slots
        self.now = now
        self.throughput = ThroughputModel.from_records(records, search.regrouped)
        self._full = _Segments()
        self.finals_are_over = False
        """Whether no final trial can begin any more; all the time left is the search's then."""

    @property
    def seconds_left(self) -> float:
        """Seconds left for training; negative once the reserve has begun."""
        return self.search.deadline.training_seconds_left(self.now())

    @property
    def search_seconds_left(self) -> float:
        """Seconds left until final trials begin, or until the reserve does if there are none; negative after that."""
        return self.seconds_left - self.final_seconds

    @property
    def final_seconds(self) -> float:
        """Seconds at the end of training that are kept for final trials."""
        return 0.0 if self.finals_are_over else self.search.final_seconds

    @property
    def evaluation_point(self) -> float:
        """The fraction of a full trial from one evaluation to the next."""
        settings, epoch = self.search.recipe.evaluation, self.search.epoch
        if settings.every_rows is None or epoch is None:
            return 1 / settings.evaluations
        config = trial_config(self.search, {}, None)
        every_rows = config.evaluation.every_rows or settings.every_rows
        return min(1.0, every_rows * epoch.row_tokens / self.search.full_tokens)

    def observe_segment(
        self, trial: Trial, point: EvalPoint, dispatched: datetime | None, *, is_full: bool = False
    ) -> None:
        """Record the time that a trial took from its last evaluation to this one, not in `trial.points` yet.

        `dispatched` is when the trial was dispatched; None: it was evaluated since then already. `is_full`: all slots
        were at work.
        """
        last = trial.points[-1] if trial.points else None
        seconds = point.seconds - (last.seconds if last else 0.0)
        tokens = point.tokens_seen - (last.tokens_seen if last else 0)
        if self.throughput.observe(trial.config, tokens, seconds, point.ranks) and is_full:
            self._full.add(tokens, seconds)
        if dispatched is not None:
            self.throughput.observe_start((self.now() - dispatched).total_seconds() - seconds)

    def limit_slots(self) -> str | None:
        """Limit the trials at once to two a worker if more of them do not get clearly more done; return a sentence.

        None: nothing has changed. Every result of fewer trials comes sooner, and the next decisions know it. It is
        measured once, when as many evaluations as there are slots were reached with all of them at work. A number of
        concurrent trials that the recipe asks for stays.
        """
        search, placement = self.search, self.search.placement
        alone, asked = search.alone_seconds_per_token, search.recipe.search.concurrent_trials
        if asked is not None or placement is None or alone is None or search.slots_of_use is not None:
            return None
        beside = placement.slots_per_worker
        if beside <= FEWEST_SLOTS or self._full.count < self.slots:
            return None
        gain = beside * alone * self._full.tokens / self._full.seconds
        if gain >= _LEAST_GAIN:
            self.search = replace(search, slots_of_use=beside)
            return None
        self.slots = min(self.slots, FEWEST_SLOTS * placement.engines)
        fewer = replace(placement, slots=self.slots)
        self.search = replace(search, slots_of_use=FEWEST_SLOTS, placement=fewer)
        self.throughput.change_slots(fewer.slots_per_worker / beside)
        found = f"{beside} trials at once get {gain:.1f} times as much done as one"
        return f"{found}: from now on {FEWEST_SLOTS} run on a worker"

    def state(self, *, may_start: bool) -> BudgetState:
        """Return the budget as the scheduler needs it, without the time of final trials.

        Before any measurement a full trial takes all that is left.
        """
        full, seconds_left = self.throughput.seconds(None, self.search.full_tokens), self.search_seconds_left
        whole = (self.search.deadline.training_ends - self.search.deadline.started).total_seconds()
        return BudgetState(
            seconds_left=seconds_left,
            seconds=whole - self.final_seconds,
            slots=self.slots,
            seconds_full=max(seconds_left, _LEAST_SECONDS) if full is None else full,
            evaluation_point=self.evaluation_point,
            seconds_start=self.throughput.start_seconds,
            may_start=may_start,
        )
