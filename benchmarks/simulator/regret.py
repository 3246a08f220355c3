"""Searches on recorded or modelled curves, ours and stock, with the same time for training."""

from __future__ import annotations

import heapq
import itertools
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.simulator.recorded_curves import RecordedCurves, best_final, demo_space
from benchmarks.simulator.simulator import Curve, Landscape, Machine, SimulatedSearch
from benchmarks.simulator.stock_searchers import Stock, StockSearch
from benchmarks.simulator.synthetic_curves import ModelledCurves
from orchestrator.state.deadline import Deadline
from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Placement, Search
from search_spaces.loader import load_recipe
from search_spaces.schema import Recipe
from trials.config import Hyperparameters

OURS = "ours"
STRATEGIES = (OURS, *(kind.value for kind in Stock))
FULL_SECONDS = 600.0
"""Seconds of a full trial."""
EVALUATIONS = 9
_MACHINE = Machine(full_trial=FULL_SECONDS, base=20.0, start=1.0)
_RESERVE = 30.0
_STARTED = datetime(2026, 1, 1, 22, 0, tzinfo=UTC)
_TOKENS = {"rows": 900, "tokens": 100_000}
_IN_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Played:
    """One strategy's search: its losses in nats per token, and their times in full trials' worth of training."""

    strategy: str
    landscape: str
    budget: float
    seed: int
    slots: int
    best: tuple[tuple[float, float], ...]
    """Pairs (time, loss) of every loss that is lower than all before it."""
    best_possible: float
    """Lowest loss that the landscape has."""
    trials: int
    full_length: int

    @property
    def regret(self) -> float:
        """Excess loss of the adapter that it would export, in nats per token; infinite if there is none."""
        return self.best[-1][1] - self.best_possible if self.best else float("inf")

    def reached(self, loss: float) -> float:
        """Return the time of the first loss as low as `loss`; infinite if there was none."""
        return next((time for time, had in self.best if had <= loss), float("inf"))


def play(strategy: str, landscape: str, budget: float, seed: int, slots: int = 1) -> Played:
    """Play one search of `budget` full trials' worth of training, on all slots together."""
    curves = RecordedCurves(seed) if landscape == "recorded" else ModelledCurves(seed)
    player = _play_ours if strategy == OURS else _play_stock
    history, trials, full = player(strategy, curves, budget, seed, slots)
    possible = best_final() if isinstance(curves, RecordedCurves) else curves.lowest
    return Played(strategy, landscape, budget, seed, slots, tuple(history), possible, trials, full)


_History = list[tuple[float, float]]


def _play_ours(_strategy: str, curves: Landscape, budget: float, seed: int, slots: int) -> tuple[_History, int, int]:
    settings = [f"search.seed={seed}", "search.trials=null", "search.full_trials=null", f"search.reserve={_RESERVE:g}s"]
    recipe = load_recipe("demo", settings, environ={}).recipe
    before = _MACHINE.base + _MACHINE.start + FULL_SECONDS / 50  # the base's evaluation and the speed probe
    seconds = budget * FULL_SECONDS / slots + _RESERVE + before
    deadline = Deadline(_STARTED, _STARTED + timedelta(seconds=seconds), _RESERVE)
    search = Search(recipe, {}, deadline, 0, 100_000, {"train": _TOKENS}, placement=Placement(1, slots))
    folder = Path(tempfile.mkdtemp(dir=_IN_MEMORY if _IN_MEMORY.is_dir() else None))
    try:
        (folder / "trials").mkdir()
        run = RunDir(folder)
        run.write_search(search)
        only = curves.beside(recipe) if isinstance(curves, RecordedCurves) else None
        account = SimulatedSearch(run, curves, _MACHINE, slots, only=only).play()
        assert account.first_start is not None  # there is time for a trial in every budget
        best = [((at - account.first_start) * slots / FULL_SECONDS, loss) for at, loss in account.best]
        return best, account.trials, account.full_length
    finally:
        shutil.rmtree(folder)


def _play_stock(strategy: str, curves: Landscape, budget: float, seed: int, slots: int) -> tuple[_History, int, int]:
    """Play a search as Ray Tune runs it: a free slot gets the next trial, until time is over."""
    recipe = load_recipe("demo", [], environ={}).recipe
    starts = [recipe.start_values(name) for name in recipe.start]
    snap = curves.nearest if isinstance(curves, RecordedCurves) else None
    stock = StockSearch(Stock(strategy), demo_space(), seed, EVALUATIONS, start=starts, snap=snap)
    return _Replay(stock, recipe, curves, budget * FULL_SECONDS / slots).play(slots)


class _Replay:
    """Trials of a stock search on a simulated clock."""

    def __init__(self, stock: StockSearch, recipe: Recipe, curves: Landscape, ends: float) -> None:
        self._stock = stock
        self._recipe = recipe
        self._curves = curves
        self._ends = ends
        self._order = itertools.count()
        self._queue: list[tuple[float, int, Callable[[float], None]]] = []
        self._history: _History = []
        self._slots = 1
        self._trials = self._full = 0

    def play(self, slots: int) -> tuple[_History, int, int]:
        """Play until the time is over; trials that run then lose what they trained since their last report."""
        self._slots = slots
        for _ in range(slots):
            self._at(0.0, self._begin)
        while self._queue and self._queue[0][0] <= self._ends:
            at, _, happens = heapq.heappop(self._queue)
            happens(at)
        return self._history, self._trials, self._full

    def _at(self, at: float, happens: Callable[[float], None]) -> None:
        heapq.heappush(self._queue, (at, next(self._order), happens))

    def _begin(self, now: float) -> None:
        if isinstance(self._curves, RecordedCurves) and self._curves.is_used_up:
            return
        trial_id, values = self._stock.next()
        self._trials += 1
        curve = self._curves.curve(trial_id, self._hyperparameters(values))
        self._next(trial_id, curve, 1, now + _MACHINE.start)

    def _next(self, trial_id: str, curve: Curve, evaluation: int, now: float) -> None:
        breaks = curve.ends_at <= evaluation / EVALUATIONS and curve.ends_at < 1.0
        until = curve.ends_at if breaks else evaluation / EVALUATIONS
        seconds = (until - (evaluation - 1) / EVALUATIONS) * FULL_SECONDS * curve.slowness
        if breaks:
            self._at(now + max(0.0, seconds), lambda at: self._break_off(trial_id, at))
        else:
            self._at(now + seconds, lambda at: self._evaluate(trial_id, curve, evaluation, at))

    def _break_off(self, trial_id: str, now: float) -> None:
        self._stock.on_end(trial_id, failed=True)
        self._begin(now)

    def _evaluate(self, trial_id: str, curve: Curve, evaluation: int, now: float) -> None:
        best = min(curve.loss(k / EVALUATIONS) for k in range(1, evaluation + 1))
        if not self._history or best < self._history[-1][1]:
            self._history.append((now * self._slots / FULL_SECONDS, best))
        if self._stock.on_eval(trial_id, evaluation, best):
            self._next(trial_id, curve, evaluation + 1, now)
            return
        self._full += evaluation == EVALUATIONS
        self._stock.on_end(trial_id)
        self._begin(now)

    def _hyperparameters(self, values: dict[str, object]) -> Hyperparameters:
        return self._recipe.hyperparameters_with(values)
