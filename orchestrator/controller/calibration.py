"""Calibration before a search's first trial: the base model's evaluation, and a speed probe of a few steps.

The two decide the length of a full trial, the reserve for the export, and the forecast of what the search will bring.

RUN/trials/0000/   the base model's evaluation
RUN/probe/         the speed probe; removed once it has ended
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from orchestrator.controller.trials import Trial
from orchestrator.planning.export_reserve import export_work, measured_reserve
from orchestrator.planning.forecast import forecast_search
from orchestrator.planning.throughput import ThroughputModel
from orchestrator.planning.trial_configs import probe_config, trial_config
from orchestrator.planning.trial_length import length_in_words, shortened_length
from orchestrator.scheduling.scheduler import BudgetState
from orchestrator.state.run_dir import BASE_TRIAL_ID, RunDir
from orchestrator.state.search import Search
from search_spaces.durations import format_duration
from trials.config import TrialConfig
from trials.records.trial_dir import Ending, EndingKind, EvalPoint, Origin, TrialDir, TrialRecord, read_trial

PROBE_ID = "probe"
_MOST_TRIES = 3
"""Number of times that each of the two is attempted, if its process dies or it is cut off."""


class CalibrationPhase:
    """Runs the calibration, and keeps the search's length, reserve and throughput up to date afterwards."""

    def __init__(self, run: RunDir, search: Search, slots: int, records: Sequence[TrialRecord]) -> None:
        # A search from before lengths were measured has trials that are as long as the recipe says.
        begun = any(record.origin not in (Origin.BASE, Origin.PROBE) for record in records)
        self.search = replace(search, shortened=1.0) if begun and search.shortened is None else search
        self._run = run
        self._slots = slots
        self.throughput = ThroughputModel.from_records(records, search.regrouped)
        base = next((record for record in records if record.origin is Origin.BASE and record.points), None)
        self.base_eval_loss = None if base is None else base.best_eval_loss
        self._base_is_done = base is not None
        self._tries = {BASE_TRIAL_ID: 0, PROBE_ID: 0}
        self._began: datetime | None = None
        self._sentences: list[str] = []

    @property
    def is_complete(self) -> bool:
        """Whether trials can begin."""
        return self._base_is_done and self.search.shortened is not None

    def folder(self, trial_id: str) -> Path:
        """Return the folder of the base model's evaluation or of the speed probe."""
        return self._run.path / PROBE_ID if trial_id == PROBE_ID else self._run.trial(trial_id)

    def next(self, running: Collection[str], now: datetime) -> tuple[str, Origin, str, TrialConfig, Path] | None:
        """Return the first arguments of the next `TrialRequest`; None while anything is in `running`."""
        if running:
            return None
        self._began = now
        if not self._base_is_done:
            # The file exists if an earlier evaluation was cut off or failed.
            (self.folder(BASE_TRIAL_ID) / "ending.json").unlink(missing_ok=True)
            config = self.search.recipe.trial_config({})
            return BASE_TRIAL_ID, Origin.BASE, "base", config, self.folder(BASE_TRIAL_ID)
        assert self.base_eval_loss is not None  # it is set once the base model has been evaluated
        shutil.rmtree(self.folder(PROBE_ID), ignore_errors=True)
        config = probe_config(self.search, self.base_eval_loss)
        return PROBE_ID, Origin.PROBE, "probe", config, self.folder(PROBE_ID)

    def on_result(self, trial_id: str, point: EvalPoint) -> None:
        """Record an evaluation of the base model; the speed probe's is read from disk when it ends."""
        if trial_id == BASE_TRIAL_ID:
            self.base_eval_loss = point.eval_loss

    def unheard_point(self, trial_id: str) -> EvalPoint | None:
        """Return the base model's evaluation if it is on disk and was never reported; else None.

        That happens when its trial proxy, or Ray Tune's report, failed after the evaluation.
        """
        if trial_id != BASE_TRIAL_ID or self.base_eval_loss is not None:
            return None
        record = read_trial(self.folder(trial_id))
        is_done = record.ending is not None and record.ending.kind is EndingKind.FINISHED
        return record.points[-1] if is_done and record.points else None

    def is_cut_off(self, trial_id: str) -> bool:
        """Whether the calibration run has no ending on disk, so that it has to be repeated."""
        return read_trial(self.folder(trial_id)).ending is None

    def on_trial_end(self, trial_id: str, now: datetime, *, died: bool, error: str = "") -> Ending | None:
        """Record the end of a calibration run, and return how it ended; None: it was cut off, and is repeated."""
        record = read_trial(self.folder(trial_id))
        ending = record.ending
        if ending is None or (died and not record.points):
            self._tries[trial_id] += 1
            if self._tries[trial_id] < _MOST_TRIES:
                return None
            what = f"{error}, {_MOST_TRIES} times" if error else f"its process died {_MOST_TRIES} times"
            ending = Ending(EndingKind.FAILED, what)
            TrialDir(self.folder(trial_id)).end(ending)
        if trial_id == BASE_TRIAL_ID and not record.points:
            ending = Ending(EndingKind.FAILED, ending.reason)  # such as out of memory: no trial would fit either
        if trial_id == PROBE_ID:
            self._end_probe(record, ending, now)
        elif ending.kind is not EndingKind.FAILED:
            self._base_is_done = True
            self._measure_reserve(record, now)
            self._run.write_search(self.search)
        return ending

    def _end_probe(self, record: TrialRecord, ending: Ending, now: datetime) -> None:
        """Let trials begin. If the probe failed none is shortened: other trials may succeed, and measure the speed."""
        if record.points:
            self._measure_length(record, now)
        else:
            self.search = replace(self.search, shortened=1.0)
            self._sentences.append(f"the speed isn't measured beforehand, so no trial is shortened: {ending.reason}")
        shutil.rmtree(self.folder(PROBE_ID), ignore_errors=True)
        self._run.write_search(self.search)

    def findings(self) -> list[str]:
        """Return sentences on what was measured since the last call."""
        found, self._sentences = self._sentences, []
        return found

    def observe_segment(self, trial: Trial, point: EvalPoint, dispatched_seconds: float | None) -> None:
        """Record the time that a trial took from its last evaluation to this one, not in `trial.points` yet.

        `dispatched_seconds` have passed since the trial was dispatched; None: it was evaluated since then already.
        """
        last = trial.points[-1] if trial.points else None
        seconds = point.seconds - (last.seconds if last else 0.0)
        self.throughput.observe(
            trial.config, point.tokens_seen - (last.tokens_seen if last else 0), seconds, point.ranks
        )
        if dispatched_seconds is not None:
            self.throughput.observe_start(dispatched_seconds - seconds)

    def budget_state(self, seconds_left: float, *, may_start: bool) -> BudgetState:
        """Return the budget as the scheduler needs it; before any measurement a full trial takes all that is left."""
        full = self.throughput.seconds(None, self.search.full_tokens)
        return BudgetState(
            seconds_left=seconds_left,
            seconds=(self.search.deadline.training_ends - self.search.deadline.started).total_seconds(),
            slots=self._slots,
            seconds_full=seconds_left if full is None else full,
            evaluation_point=self._evaluation_point,
            seconds_start=self.throughput.start_seconds,
            may_start=may_start,
        )

    @property
    def _evaluation_point(self) -> float:
        """The fraction of a full trial from one evaluation to the next."""
        settings, epoch = self.search.recipe.evaluation, self.search.epoch
        if settings.every_rows is None or epoch is None:
            return 1 / settings.evaluations
        config = trial_config(self.search, {}, None)
        every_rows = config.evaluation.every_rows or settings.every_rows
        return min(1.0, every_rows * epoch.row_tokens / self.search.full_tokens)

    def _measure_reserve(self, base: TrialRecord, now: datetime) -> None:
        assert self._began is not None  # set when it was dispatched
        base_seconds = (now - self._began).total_seconds()
        self.search = replace(self.search, opening_seconds=base_seconds)
        if self.search.recipe.search.reserve is not None:
            return
        deadline = self.search.deadline
        budget = (deadline.ends - deadline.started).total_seconds()
        reserve = measured_reserve(base_seconds, base.points[-1].seconds, export_work(self.search, self._slots), budget)
        self.search = replace(self.search, deadline=deadline.with_reserve(reserve))
        self._sentences.append(
            f"{format_duration(reserve)} are kept for last evaluations, export and report, as measured"
        )

    def _measure_length(self, probe: TrialRecord, now: datetime) -> None:
        recipe, full = self.search.recipe, self.search.full_tokens
        each = self._seconds_per_token(probe)
        self.throughput.observe(probe.config, probe.tokens_seen, each * probe.tokens_seen)
        left = self.search.deadline.training_seconds_left(now)
        length = shortened_length(full, each, left, self._slots, recipe.search.full_trials)
        self.search = replace(self.search, shortened=length / full, full_tokens=length)
        self.search = replace(self.search, prediction=forecast_search(self.search, self.throughput, now))
        if length < full and self.search.epoch is not None:
            self._sentences.append(f"a full trial is {length_in_words(full, length, self.search.epoch.tokens)}")

    def _seconds_per_token(self, probe: TrialRecord) -> float:
        """Return the seconds per token of a trial that shares its engine with as many others as it has slots.

        Evaluations are included. The probe was alone in its engine, so its time is multiplied by the slots.
        """
        first, last = probe.points[0], probe.points[-1]
        trained = [point.tokens_seen / (point.tokens_per_second or 1.0) for point in (first, last)]
        tokens = last.tokens_seen - first.tokens_seen
        training = (trained[1] - trained[0]) / tokens if tokens else trained[1] / last.tokens_seen
        evaluation = max(0.0, last.seconds - first.seconds - (trained[1] - trained[0])) if tokens else 0.0
        placement = self.search.placement
        beside = placement.slots_per_engine if placement is not None and placement.engines else 1
        return beside * (training + evaluation / (self._evaluation_point * self.search.full_tokens))
