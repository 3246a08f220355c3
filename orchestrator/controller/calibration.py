"""What comes before a search's first trial: the base model's evaluation, and a few steps that measure the speed.

From them: how long a full trial is in this search, what has to be kept for the export, and what the search will bring.
trials/0000/  the base model       probe/  the steps that measure the speed; nothing else is done with them
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
from orchestrator.state.run_dir import BASE_TRIAL_ID, RunDir, Search
from search_spaces.durations import format_duration
from trials.config import TrialConfig
from trials.records.trial_dir import Ending, EndingKind, EvalPoint, Origin, TrialDir, TrialRecord, read_trial

PROBE_ID = "probe"
_MOST_TRIES = 3
"""Of a preliminary whose process dies."""


class CalibrationPhase:
    """What is known before trials begin, and kept up to date while they run."""

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
        """Of one of the two."""
        return self._run.path / PROBE_ID if trial_id == PROBE_ID else self._run.trial(trial_id)

    def next(self, running: Collection[str], now: datetime) -> tuple[str, Origin, str, TrialConfig, Path] | None:
        """The first arguments of a `TrialRequest` for the next one; None while it runs."""
        if running:
            return None
        self._began = now
        if not self._base_is_done:
            # It can be there already, if its evaluation was cut off or failed.
            (self.folder(BASE_TRIAL_ID) / "ending.json").unlink(missing_ok=True)
            config = self.search.recipe.trial_config({})
            return BASE_TRIAL_ID, Origin.BASE, "base", config, self.folder(BASE_TRIAL_ID)
        assert self.base_eval_loss is not None  # a base that is done has been evaluated
        shutil.rmtree(self.folder(PROBE_ID), ignore_errors=True)
        config = probe_config(self.search, self.base_eval_loss)
        return PROBE_ID, Origin.PROBE, "probe", config, self.folder(PROBE_ID)

    def on_result(self, trial_id: str, point: EvalPoint) -> None:
        """An evaluation of one of the two."""
        if trial_id == BASE_TRIAL_ID:
            self.base_eval_loss = point.eval_loss

    def unheard_point(self, trial_id: str) -> EvalPoint | None:
        """The base model's evaluation, where it's on disk and nobody said so: what speaks for it failed meanwhile."""
        if trial_id != BASE_TRIAL_ID or self.base_eval_loss is not None:
            return None
        record = read_trial(self.folder(trial_id))
        is_done = record.ending is not None and record.ending.kind is EndingKind.FINISHED
        return record.points[-1] if is_done and record.points else None

    def is_cut_off(self, trial_id: str) -> bool:
        """Whether it has to be done again."""
        return read_trial(self.folder(trial_id)).ending is None

    def on_trial_end(self, trial_id: str, now: datetime, *, died: bool, error: str = "") -> Ending | None:
        """How it ended; None: it was cut off, and comes again."""
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
            ending = Ending(EndingKind.FAILED, ending.reason)  # out of memory, for instance: no trial will fit either
        if trial_id == PROBE_ID:
            self._end_probe(record, ending, now)
        elif ending.kind is not EndingKind.FAILED:
            self._base_is_done = True
            self._measure_reserve(record, now)
            self._run.write_search(self.search)
        return ending

    def _end_probe(self, record: TrialRecord, ending: Ending, now: datetime) -> None:
        """Trials may begin, also where this one failed: others may not, and show how fast they are."""
        if record.points:
            self._measure_length(record, now)
        else:
            self.search = replace(self.search, shortened=1.0)
            self._sentences.append(f"the speed isn't measured beforehand, so no trial is shortened: {ending.reason}")
        shutil.rmtree(self.folder(PROBE_ID), ignore_errors=True)
        self._run.write_search(self.search)

    def findings(self) -> list[str]:
        """What was found out since the last time, in sentences."""
        found, self._sentences = self._sentences, []
        return found

    def observe_segment(self, trial: Trial, point: EvalPoint, dispatched_seconds: float | None) -> None:
        """Takes in what a trial took from its last evaluation to this one, which isn't in `member.points` yet.

        `handed_out_seconds` have passed since the trial was handed out, where this is its first evaluation since then.
        """
        last = trial.points[-1] if trial.points else None
        seconds = point.seconds - (last.seconds if last else 0.0)
        self.throughput.observe(
            trial.config, point.tokens_seen - (last.tokens_seen if last else 0), seconds, point.ranks
        )
        if dispatched_seconds is not None:
            self.throughput.observe_start(dispatched_seconds - seconds)

    def budget_state(self, seconds_left: float, *, may_start: bool) -> BudgetState:
        """What is left of it, as the policy wants to know it."""
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
        assert self._began is not None  # it was handed out
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
        self.search = replace(self.search, prediction=forecast_search(self.search, self.throughput, now).to_json())
        if length < full and self.search.epoch is not None:
            self._sentences.append(f"a full trial is {length_in_words(full, length, self.search.epoch.tokens)}")

    def _seconds_per_token(self, probe: TrialRecord) -> float:
        """Of a trial among as many as there'll be, evaluations included; the probe was alone in its engine."""
        first, last = probe.points[0], probe.points[-1]
        trained = [point.tokens_seen / (point.tokens_per_second or 1.0) for point in (first, last)]
        tokens = last.tokens_seen - first.tokens_seen
        training = (trained[1] - trained[0]) / tokens if tokens else trained[1] / last.tokens_seen
        evaluation = max(0.0, last.seconds - first.seconds - (trained[1] - trained[0])) if tokens else 0.0
        placement = self.search.placement
        beside = placement.slots_per_engine if placement is not None and placement.engines else 1
        return beside * (training + evaluation / (self._evaluation_point * self.search.full_tokens))
