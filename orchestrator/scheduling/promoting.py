"""Schedulers that pause every trial at a rung, and promote the best: asynchronous successive halving, and Hyperband."""

from __future__ import annotations

import math

from orchestrator.scheduling.rungs import RungTable, rung_fractions
from orchestrator.scheduling.types import BudgetState, ContinueDecision, Idle, Next, Resume, StartNew
from orchestrator.surrogate.trial_view import TrialView
from trials.state import TrialState


class Bracket:
    """Trials of one asynchronous successive halving that promotes (Li et al., arXiv 1810.05934).

    Of the trials that have reached a rung, the best 1 / `factor` may go on to the next one.
    """

    def __init__(self, table: RungTable, factor: int) -> None:
        self._table, self._factor = table, factor
        self._cut_off: dict[str, None] = {}
        """Trials that are paused between two rungs, because their process died."""
        self.paused: dict[str, TrialView] = {}
        """All other paused trials."""
        self.trials: set[str] = set()

    def update(self, view: TrialView) -> None:
        """Record a trial of this bracket, or what has changed of it."""
        name = view.trial_id
        self.trials.add(name)
        self._table.record(view)
        self._cut_off.pop(name, None)
        self.paused.pop(name, None)
        if view.state is TrialState.PAUSED:
            if self._table.is_at(view):
                self.paused[name] = view
            else:
                self._cut_off[name] = None

    def goes_on(self, view: TrialView) -> bool:
        """Whether a trial may go on: it is between two rungs, or among the best at the one where it stands."""
        if not self._table.is_at(view):
            return True
        rung = self._table.highest(view.trial_id)
        assert rung is not None  # it stands at one
        return view.trial_id in self._best(rung)

    def next(self) -> str | None:
        """Return the trial to resume: one that was cut off, else the best of the highest rung that has one."""
        if self._cut_off:
            return next(iter(self._cut_off))
        for rung in reversed(range(len(self._table.fractions))):
            for name in self._best(rung):
                if name in self.paused and self._table.highest(name) == rung:
                    return name
        return None

    def _best(self, rung: int) -> list[str]:
        ranked = self._table.ranked(rung)
        return [name for _, name in ranked[: len(ranked) // self._factor]]


class Hyperband:
    """Hyperband (Li et al., JMLR 2018) in its asynchronous form: brackets that differ in their lowest rung.

    A new trial joins the bracket that has the fewest, relative to Hyperband's number of trials for each. With `most`
    1 there is one bracket, from the first evaluation on: asynchronous successive halving that promotes.
    """

    def __init__(self, factor: int, most: int | None = None) -> None:
        self._factor, self._most = factor, most
        self._brackets: list[Bracket] = []
        self._joined: dict[str, Bracket] = {}
        self._views: dict[str, TrialView] = {}

    def update(self, view: TrialView, old: TrialView | None) -> None:
        """Record a new trial, or what has changed of one since it was `old`."""
        self._views[view.trial_id] = view
        if self._brackets:
            self._bracket_of(view.trial_id).update(view)

    def should_continue(self, trial_id: str, budget: BudgetState) -> ContinueDecision:
        """Decide at an evaluation of a running trial whether it goes on or pauses."""
        self._open(budget)
        if self._bracket_of(trial_id).goes_on(self._views[trial_id]):
            return ContinueDecision(True, "it's among the best at its rung, or between two")
        return ContinueDecision(False, f"it isn't among the best 1/{self._factor} at its rung")

    def choose_next(self, budget: BudgetState) -> Next:
        """Choose a trial that was cut off, one to promote, or a new configuration; without these, the best paused."""
        self._open(budget)
        for bracket in self._brackets:
            found = bracket.next()
            if found is not None:
                return Resume(found)
        if budget.may_start:
            return StartNew()
        paused = self._paused()
        return Resume(paused[0]) if paused else Idle("nothing is paused, and no new configuration may start")

    def evictable(self, keep: int, budget: BudgetState) -> dict[str, str]:
        """Return the paused trials beyond the `keep` that are trained furthest, and of these have the lowest loss."""
        reason = f"{keep} other paused trials are trained further, or have lower losses"
        return dict.fromkeys(self._paused()[keep:], reason)

    def refit(self, budget: BudgetState) -> None:
        """Do nothing: there is no model."""

    def _paused(self) -> list[str]:
        """Return all paused trials, those that are trained furthest first, and of these the lowest loss first."""
        paused = [view for bracket in self._brackets for view in bracket.paused.values()]
        return [view.trial_id for view in sorted(paused, key=lambda view: (-view.fraction, view.points[-1][1]))]

    def _open(self, budget: BudgetState) -> None:
        """Make the brackets, whose number the first budget tells, and let all trials known so far join them."""
        if self._brackets:
            return
        most = max(1, len(rung_fractions(budget, self._factor)))
        for skipped in range(most if self._most is None else min(most, self._most)):
            table = RungTable(rung_fractions(budget, self._factor, skipped), budget.evaluation_point / 2)
            self._brackets.append(Bracket(table, self._factor))
        for view in self._views.values():
            self._bracket_of(view.trial_id).update(view)

    def _bracket_of(self, trial_id: str) -> Bracket:
        """Return the bracket of a trial; which one a new trial joins depends on the order of trials only."""
        if trial_id not in self._joined:
            most = len(self._brackets)
            shares = []
            for skipped, bracket in enumerate(self._brackets):
                left = most - skipped
                wanted = math.ceil((most + 1) / (left + 1) * self._factor**left)
                shares.append((len(bracket.trials) + 1) / wanted)
            self._joined[trial_id] = self._brackets[shares.index(min(shares))]
        return self._joined[trial_id]
