"""A search in seconds: the real controller, scheduler, planner and run folder, with simulated clock and trials.

Simulated is what happens on a GPU and how long it takes. All that a trial leaves on disk is written by the code of real
trials. Accidents end "processes" between any two evaluations, or the controller itself.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from benchmarks.simulator.landscapes import Curve, Landscape
from orchestrator.controller.controller import SearchController
from orchestrator.controller.events import Event
from orchestrator.controller.failure_policy import DIED, TrialExit
from orchestrator.controller.trial_request import TrialRequest
from orchestrator.state.run_dir import RunDir
from trials.metrics.row_losses import RowLosses
from trials.records.checkpoints import CheckpointWriter, LogState, choose_checkpoint
from trials.records.trial_dir import Ending, EvalPoint, Origin, TrialDir, read_trial
from trials.state import TrialState
from trials.system.timer import TrialTimer
from trials.training.early_stopping import divergence, patience_begins, patience_exhausted

T = TypeVar("T")

STEPS = 720_720
"""Optimizer steps of a simulated full trial; it has many divisors, so that fractions are whole numbers."""
_ROWS, _ROW_TOKENS = 8, 10
"""Eval rows, and completion tokens of each."""


@dataclass(frozen=True)
class Machine:
    """Durations on the simulated machine, in seconds, and what is imperfect about its trials."""

    full_trial: float
    """Mean full trial in its slot, evaluations included."""
    base: float = 20.0
    """Evaluation of the base model, its load included."""
    start: float = 1.0
    """Time from dispatching a trial to its first step."""
    slots_per_worker: int = 1
    shares: bool = False
    """Whether the trials on a worker share its speed, so that fewer of them are each faster."""
    restart: float = 30.0
    """Time from the controller's death to its return."""
    probe_speed: float = 1.0
    """Speed that the probe measures, relative to the mean trial's."""
    noise: float = 0.0
    """Standard deviation of an evaluation's loss around the curve, in nats per token."""
    short: float = 0.0
    """Largest share of a full trial's tokens by which a trial's last optimizer step ends short of them."""
    patience: bool = False
    """Whether a trial ends by its own `evaluation.patience`."""


@dataclass(frozen=True)
class Accident:
    """Death of a trial's process, an engine's, or the controller's own, `at` seconds after the search's beginning."""

    at: float
    kind: str
    """One of trial, engine and driver; the driver's process holds the controller."""
    slot: int = 0


@dataclass
class Slot:
    """Place for one trial at a time."""

    request: TrialRequest | None = None
    curve: Curve | None = None
    fraction: float = 0.0
    """Fraction trained so far, at `since`."""
    since: float = 0.0
    began: float = 0.0
    """Start of this segment, in seconds since the search's beginning."""
    seconds_before: float = 0.0
    """Seconds of the trial's earlier segments."""
    length: float = 1.0
    """Length of its trial, in full trials of the search."""
    segment: int = 0
    """Number of the segment: events of a segment that was broken off must not be taken for the next one's."""
    points: list[EvalPoint] = field(default_factory=list)
    """Evaluations of the trial so far."""


@dataclass
class Account:
    """Result of a search."""

    busy_seconds: float = 0.0
    """Training seconds of all slots together, from the first trial's start to the end of training."""
    first_start: float | None = None
    decisions: list[float] = field(default_factory=list)
    """Seconds that the controller took for each decision."""
    idle: list[float] = field(default_factory=list)
    """Seconds that `on_idle` took after each event."""
    down_seconds: float = 0.0
    """Seconds after the first trial's start in which a dead controller had not been replaced yet."""
    lost_fraction: float = 0.0
    """Full trials' worth of training that had to be done again."""
    exported: list[tuple[float, float]] = field(default_factory=list)
    """Pairs (seconds since the beginning, loss without noise) of every adapter that an export would have chosen."""
    trials: int = 0
    full_length: int = 0


class SimulatedSearch:
    """Runs one search from its beginning to the end of its training."""

    def __init__(
        self,
        run: RunDir,
        landscape: Landscape,
        machine: Machine,
        slots: int,
        accidents: Sequence[Accident] = (),
        listener: Callable[[Event], None] = lambda _: None,
        timer: Callable[[], float] | None = None,
    ) -> None:
        self._run = run
        self._landscape = landscape
        self._machine = machine
        self._listener = listener
        self._timer = timer
        self._began = run.read_search().deadline.started
        self._seconds = 0.0
        self._slots = [Slot() for _ in range(slots)]
        self._order = itertools.count()
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._best_loss = float("inf")
        self._seed = run.read_search().recipe.search.seed
        self.account = Account()
        self.controller = self._new_controller()
        for accident in accidents:
            self._at(accident.at, self._accident(accident))

    @property
    def seconds(self) -> float:
        """Seconds since the search's beginning."""
        return self._seconds

    def now(self) -> datetime:
        """Return the simulated time."""
        return self._began + timedelta(seconds=self._seconds)

    def play(self) -> Account:
        """Play until nothing runs and nothing more is to be done."""
        while True:
            is_over = self._fill_slots()
            if is_over and not any(slot.request for slot in self._slots):
                break
            if not self._queue:
                break
            at, _, happens = heapq.heappop(self._queue)
            self._seconds = max(self._seconds, at)
            happens()
            self._idle()
        self.controller.close()
        return self.account

    @property
    def _full_seconds(self) -> float:
        """Seconds of a mean full trial, of the length that trials have in that search."""
        return self._machine.full_trial * (self.controller.search.shortened or 1.0)

    @property
    def _training_ends(self) -> float:
        return (self.controller.search.deadline.training_ends - self._began).total_seconds()

    def _new_controller(self) -> SearchController:
        search, slots = self._run.read_search(), len(self._slots)
        if search.slots_of_use is not None and search.placement is not None:  # measured before a restart
            slots = search.placement.slots
        return SearchController(self._run, search, slots, self._listener, self.now, waits_for_sampler=True)

    def _at(self, seconds: float, happens: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (seconds, next(self._order), happens))

    def _fill_slots(self) -> bool:
        """Dispatch what the controller suggests; return whether the search is over."""
        for slot in self._slots:
            if slot.request is not None:
                continue
            answer = self._timed(self.controller.suggest)
            if not isinstance(answer, TrialRequest):
                return answer == "over"
            self._start(slot, answer)
        return False

    def _timed(self, decide: Callable[[], T]) -> T:
        if self._timer is None:
            return decide()
        began = self._timer()
        answer = decide()
        self.account.decisions.append(self._timer() - began)
        return answer

    def _idle(self) -> None:
        """Do deferred work between two events, as the tuner does; trials don't wait for it."""
        if self._timer is None:
            self.controller.on_idle()
            return
        began = self._timer()
        self.controller.on_idle()
        self.account.idle.append(self._timer() - began)

    def _start(self, slot: Slot, request: TrialRequest) -> None:
        slot.request, slot.began, slot.segment = request, self._seconds, slot.segment + 1
        slot.since = self._seconds + self._machine.start
        slot.fraction, slot.seconds_before, slot.points = 0.0, 0.0, []
        if request.origin is Origin.BASE:
            self._at(self._seconds + self._machine.base, self._unless_gone(slot, lambda: self._base_is_evaluated(slot)))
            return
        if request.resumes:
            progress = choose_checkpoint(request.folder, None).progress
            slot.fraction, slot.seconds_before = progress.step / STEPS, progress.seconds
            slot.points = [point for point in read_trial(request.folder).points if point.step <= progress.step]
        slot.curve = self._landscape.curve(request.trial_id, request.config.hyperparameters)
        slot.length = self._length(request)
        if request.origin is Origin.PROBE:
            self._probe(slot)
            return
        if self.account.first_start is None:
            self.account.first_start = self._seconds
        self.account.trials += not request.resumes
        self._plan_next(slot)

    def _length(self, request: TrialRequest) -> float:
        """Return the length of a trial, in full trials of the search."""
        search = self.controller.search
        return search.tokens_of(request.config) / search.full_tokens if request.origin is Origin.FINAL else 1.0

    def _plan_next(self, slot: Slot) -> None:
        """Schedule the next event in a slot: an evaluation, its trial's breaking off, or the end of training."""
        assert slot.request is not None and slot.curve is not None  # noqa: PT018
        every = 1 / slot.request.config.evaluation.evaluations
        target = min(1.0, (int(slot.fraction / every + 1e-9) + 1) * every)
        breaks = slot.curve.ending is not TrialState.FINISHED and slot.curve.ends_at <= target
        target = max(slot.fraction, slot.curve.ends_at) if breaks else target
        seconds = (target - slot.fraction) * self._whole_seconds(slot)
        ends = slot.request.stop_at - self._began.timestamp()
        if slot.since + seconds > ends:
            self._at(max(self._seconds, ends), self._unless_gone(slot, lambda: self._time_is_over(slot)))
        elif breaks:
            self._at(slot.since + seconds, self._unless_gone(slot, lambda: self._break_off(slot)))
        else:
            self._at(slot.since + seconds, self._unless_gone(slot, lambda: self._evaluate(slot, target)))

    def _whole_seconds(self, slot: Slot) -> float:
        """Return the seconds that all of a slot's trial takes, at the speed that it has now."""
        assert slot.curve is not None
        return self._full_seconds * slot.curve.slowness * slot.length * self._share(slot)

    def _share(self, slot: Slot) -> float:
        """Return the time that a trial takes relative to one on a worker all of whose slots are at work."""
        if not self._machine.shares:
            return 1.0
        assert slot.request is not None
        beside, placement = self._machine.slots_per_worker, self.controller.search.placement
        assert placement is not None
        return (1 if slot.request.origin is Origin.FINAL else placement.slots_per_worker) / beside

    def _unless_gone(self, slot: Slot, happens: Callable[[], None]) -> Callable[[], None]:
        segment = slot.segment

        def check() -> None:
            if slot.segment == segment and slot.request is not None:
                happens()

        return check

    def _evaluate(self, slot: Slot, fraction: float) -> None:
        """Record an evaluation, and end, pause or go on, in the order of `trials.training.evaluation_loop`."""
        request = slot.request
        assert request is not None
        point = self._record(slot, fraction)
        settings = request.config.evaluation
        ending = divergence(point.eval_loss, self._landscape.base_loss, settings.divergence_factor)
        if ending is None:
            if fraction < 1.0:
                self._checkpoint(slot, point)
            goes_on = self._timed(lambda: self.controller.on_result(request.trial_id, point))
            if fraction >= 1.0:
                ending = Ending(TrialState.FINISHED, "trained for all its steps")
                self.account.full_length += 1
            elif not goes_on:
                self._leave(slot)
                return
            elif self._machine.patience:
                begins = patience_begins(request.config.hyperparameters, STEPS)
                ending = patience_exhausted(slot.points, settings, begins)
        if ending is not None:
            TrialDir(request.folder).end(ending)
            self._leave(slot)
            return
        slot.fraction, slot.since = fraction, self._seconds
        self._plan_next(slot)

    def _record(self, slot: Slot, fraction: float) -> EvalPoint:
        assert slot.request is not None and slot.curve is not None  # noqa: PT018
        step, full = round(fraction * STEPS), self.controller.search.full_tokens * slot.length
        losses = self._row_losses(slot, step)
        point = EvalPoint(
            step=step,
            tokens_seen=min(round(fraction * full), round(self._last_tokens(slot.request.trial_id) * slot.length)),
            eval_loss=losses.mean,
            best_eval_loss=min([losses.mean, *(point.eval_loss for point in slot.points)]),
            seconds=slot.seconds_before + self._seconds - slot.began,
            tokens_per_second=full / self._whole_seconds(slot),
        )
        slot.points.append(point)
        TrialDir(slot.request.folder).record(point, losses, _save_adapter)
        if losses.mean < self._best_loss:
            self._best_loss = losses.mean
            self.account.exported.append((self._seconds, slot.curve.loss(fraction)))
        return point

    def _last_tokens(self, trial_id: str) -> int:
        """Return the tokens after a trial's last optimizer step, which depend on the rows that it drew."""
        share = random.Random(f"{self._seed} {trial_id} tokens").random()
        return round(self.controller.search.full_tokens * (1 - self._machine.short * share))

    def _row_losses(self, slot: Slot, step: int) -> RowLosses:
        """Return noisy row losses, the same for every call with a trial and step.

        The rows scatter such that the standard error of their mean is the machine's noise.
        """
        assert slot.request is not None and slot.curve is not None  # noqa: PT018
        lot = random.Random(f"{self._seed} {slot.request.trial_id} {step}")
        scatter = self._machine.noise * math.sqrt(_ROWS)
        loss = slot.curve.loss(step / STEPS)
        return RowLosses([_ROW_TOKENS * (loss + lot.gauss(0, scatter)) for _ in range(_ROWS)], [_ROW_TOKENS] * _ROWS)

    def _checkpoint(self, slot: Slot, point: EvalPoint) -> None:
        assert slot.request is not None
        watch = TrialTimer(point.seconds, point.seconds)
        writer = CheckpointWriter(TrialDir(slot.request.folder), watch, self._landscape.base_loss, keep=1)

        def save() -> None:
            made = writer.unfinished / f"checkpoint-{point.step}"
            made.mkdir(parents=True)
            _save_adapter(made)

        writer.write(point.step, LogState(point.step, 0.0), save)

    def _leave(self, slot: Slot, *, died: bool = False) -> None:
        request = slot.request
        assert request is not None
        slot.request = None
        if request.origin not in (Origin.BASE, Origin.PROBE):
            self.account.busy_seconds += max(0.0, self._seconds - slot.began - self._machine.start)
        self._timed(lambda: self.controller.on_trial_end(request.trial_id, DIED if died else TrialExit()))

    def _base_is_evaluated(self, slot: Slot) -> None:
        assert slot.request is not None
        loss = self._landscape.base_loss
        point = EvalPoint(0, 0, loss, loss, seconds=0.3 * self._machine.base)
        folder = TrialDir(slot.request.folder)
        folder.record(point, _rows(loss), None)
        self.controller.on_result(slot.request.trial_id, point)
        folder.end(Ending(TrialState.FINISHED, "the base model is evaluated, not trained"))
        self._leave(slot)

    def _probe(self, slot: Slot) -> None:
        """Record two evaluations, after a hundredth of a full trial each."""
        assert slot.request is not None and slot.curve is not None  # noqa: PT018
        full = self.controller.search.full_tokens
        rate = self._machine.probe_speed * full / (self._machine.full_trial / self._machine.slots_per_worker)
        folder = TrialDir(slot.request.folder)
        loss = self._landscape.base_loss
        for tokens in (full // 100, 2 * (full // 100)):
            point = EvalPoint(tokens, tokens, loss, loss, seconds=tokens / rate, tokens_per_second=rate)
            folder.record(point, _rows(loss), _save_adapter)

        def ends() -> None:
            folder.end(Ending(TrialState.FINISHED, "trained for all its steps"))
            self._leave(slot)

        self._at(slot.since + 2 * (full // 100) / rate, self._unless_gone(slot, ends))

    def _break_off(self, slot: Slot) -> None:
        assert slot.request is not None and slot.curve is not None  # noqa: PT018
        TrialDir(slot.request.folder).end(Ending(slot.curve.ending, f"as the landscape has it: {slot.curve.ending}"))
        self._leave(slot)

    def _time_is_over(self, slot: Slot) -> None:
        """Evaluate a running trial once more, and end it."""
        assert slot.request is not None and slot.curve is not None  # noqa: PT018
        trained = max(0.0, self._seconds - slot.since) / self._whole_seconds(slot)
        fraction = min(1.0, slot.fraction + trained)
        if fraction > slot.fraction:
            point = self._record(slot, fraction)
            self.controller.on_result(slot.request.trial_id, point)
        ending = Ending(TrialState.OUT_OF_TIME, "the time for training was over")
        if slot.request.origin is Origin.FINAL:
            ending = Ending(TrialState.FINISHED, "trained until the time was over")
        TrialDir(slot.request.folder).end(ending)
        self._leave(slot)

    def _accident(self, accident: Accident) -> Callable[[], None]:
        return {
            "trial": lambda: self._kill([self._slots[accident.slot % len(self._slots)]]),
            "engine": lambda: self._kill(self._engine_of(accident.slot % len(self._slots))),
            "driver": self._kill_driver,
        }[accident.kind]

    def _engine_of(self, index: int) -> list[Slot]:
        size = self._machine.slots_per_worker
        return self._slots[index // size * size : (index // size + 1) * size]

    def _kill(self, slots: Sequence[Slot]) -> None:
        for slot in slots:
            if slot.request is not None:
                self._note_loss(slot)
                self._leave(slot, died=True)

    def _note_loss(self, slot: Slot) -> None:
        if slot.curve is not None and slot.since < self._seconds:
            self.account.lost_fraction += (self._seconds - slot.since) / (self._full_seconds * slot.curve.slowness)

    def _kill_driver(self) -> None:
        """Lose everything but the run folder; the search is resumed a while later."""
        for slot in self._slots:
            if slot.request is not None:
                self._note_loss(slot)
                if slot.request.origin not in (Origin.BASE, Origin.PROBE):
                    self.account.busy_seconds += max(0.0, self._seconds - slot.began - self._machine.start)
                slot.request = None
        if self.account.first_start is not None:
            self.account.down_seconds += max(0.0, min(self._machine.restart, self._training_ends - self._seconds))
        self._seconds += self._machine.restart
        self.controller = self._new_controller()


def _rows(loss: float) -> RowLosses:
    return RowLosses([_ROW_TOKENS * loss] * _ROWS, [_ROW_TOKENS] * _ROWS)


def _save_adapter(path: Path) -> None:
    (path / "adapter_config.json").write_text("{}", encoding="utf-8")
    (path / "adapter_model.safetensors").write_bytes(b"weights")
