"""Calibration before a search's first trial: the base model's evaluation, and a speed probe of a few steps.

The two decide the length of a full trial, the reserve for the export, and the forecast of what the search will bring.

RUN/trials/0000/   the base model's evaluation
RUN/probe/         the speed probe; removed once it has ended
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from orchestrator.controller.budget import SearchBudget
from orchestrator.controller.events import Event, Notice, TrialEnded, TrialEvaluated
from orchestrator.controller.failure_policy import ExitKind, FailurePolicy, TrialExit, in_a_line
from orchestrator.controller.trial_request import TrialRequest
from orchestrator.planning.export_reserve import export_work, measured_reserve
from orchestrator.planning.forecast import forecast_search
from orchestrator.planning.trial_configs import probe_config
from orchestrator.planning.trial_length import final_seconds, length_in_words, shortened_length
from orchestrator.state.run_dir import BASE_TRIAL_ID, RunDir
from search_spaces.durations import format_duration
from trials.records.trial_dir import Ending, EvalPoint, Origin, TrialDir, TrialRecord, read_trial
from trials.state import TrialState

PROBE_ID = "probe"
_MOST_TRIES = 3
"""Number of times that each of the two is attempted, if its process dies or it is cut off."""


class CalibrationPhase:
    """Decides what runs until trials can begin, and sets the budget's length of a full trial, reserve and forecast.

    `emit` receives its events, `on_base` the base model's evaluation.
    """

    def __init__(
        self,
        run: RunDir,
        budget: SearchBudget,
        records: Sequence[TrialRecord],
        failures: FailurePolicy,
        emit: Callable[[Event], None],
        on_base: Callable[[EvalPoint], None],
    ) -> None:
        self._run, self._budget, self._failures = run, budget, failures
        self._emit, self._on_base = emit, on_base
        base = next((record for record in records if record.origin is Origin.BASE and record.points), None)
        self.base_eval_loss = None if base is None else base.best_eval_loss
        """Loss of the base model in nats per completion token; None: it was not evaluated yet."""
        self._base_is_done = base is not None
        self._tries = {BASE_TRIAL_ID: 0, PROBE_ID: 0}
        self._began: datetime | None = None

    @property
    def is_complete(self) -> bool:
        """Whether trials can begin."""
        return self._base_is_done and self._budget.search.shortened is not None

    def folder(self, trial_id: str) -> Path:
        """Return the folder of the base model's evaluation or of the speed probe."""
        return self._run.path / PROBE_ID if trial_id == PROBE_ID else self._run.trial(trial_id)

    def suggest(self, running: Collection[str]) -> TrialRequest | None:
        """Return the base model's evaluation, then the speed probe; None while anything is in `running`."""
        if running:
            return None
        self._began = self._budget.now()
        if not self._base_is_done:
            folder = self.folder(BASE_TRIAL_ID)
            # The file exists if an earlier evaluation was cut off or failed.
            (folder / "ending.json").unlink(missing_ok=True)
            config = self._budget.search.recipe.trial_config({})
            return TrialRequest(BASE_TRIAL_ID, Origin.BASE, "base", config, folder)
        assert self.base_eval_loss is not None  # it is set once the base model has been evaluated
        folder = self.folder(PROBE_ID)
        shutil.rmtree(folder, ignore_errors=True)
        config = probe_config(self._budget.search, self.base_eval_loss)
        return TrialRequest(PROBE_ID, Origin.PROBE, "probe", config, folder)

    def on_result(self, trial_id: str, point: EvalPoint) -> bool:
        """Record an evaluation, and return True: both runs go on. The speed probe's is read from disk when it ends.

        Proxy errors keep counting, because a calibration run that is cut off starts again.
        """
        if trial_id == BASE_TRIAL_ID:
            self.base_eval_loss = point.eval_loss
            self._on_base(point)
        self._emit(TrialEvaluated(trial_id, point))
        return True

    def on_trial_end(self, trial_id: str, left: TrialExit) -> None:
        """Record the end of a calibration run. One that was cut off is repeated; without the base, the search ends."""
        record = read_trial(self.folder(trial_id))
        is_base = trial_id == BASE_TRIAL_ID
        if is_base and self.base_eval_loss is None and record.state is TrialState.FINISHED and record.points:
            # Its trial proxy, or Ray Tune's report, failed after the evaluation.
            self.on_result(trial_id, record.points[-1])
        if record.ending is None and left.how is ExitKind.PROXY_ERROR:
            self._failures.record_exit(trial_id, left, self._budget.now())
            return
        ending = self._ending(record, left)
        if ending is None:
            self._emit(Notice(f"{trial_id} was cut off, and is done again"))
            return
        findings = self._end_base(record, ending) if is_base else self._end_probe(record, ending)
        self._emit(TrialEnded(trial_id, ending, None))
        if findings:
            self._emit(Notice(findings))
        if is_base and ending.kind is TrialState.FAILED:
            self._failures.give_up(f"the base model's evaluation failed with: {in_a_line(ending.reason)}")

    def _ending(self, record: TrialRecord, left: TrialExit) -> Ending | None:
        """Return how a run ended; None: it was cut off, and is repeated."""
        ending = record.ending
        if ending is None or (left.how is ExitKind.DEATH and not record.points):
            self._tries[record.id] += 1
            if self._tries[record.id] < _MOST_TRIES:
                return None
            what = f"{left.error}, {_MOST_TRIES} times" if left.error else f"its process died {_MOST_TRIES} times"
            ending = Ending(TrialState.FAILED, what)
            TrialDir(record.folder).end(ending)
        if record.id == BASE_TRIAL_ID and not record.points:
            return Ending(TrialState.FAILED, ending.reason)  # such as out of memory: no trial would fit either
        return ending

    def _end_base(self, record: TrialRecord, ending: Ending) -> str | None:
        """Measure the reserve, unless the evaluation failed; return a sentence on it, or None if it was given."""
        if ending.kind is TrialState.FAILED:
            return None
        self._base_is_done = True
        found = self._measure_reserve(record)
        self._run.write_search(self._budget.search)
        return found

    def _end_probe(self, record: TrialRecord, ending: Ending) -> str | None:
        """Let trials begin; return a sentence on their length, or None if they are as long as the recipe says.

        If the probe failed none is shortened: other trials may succeed, and measure the speed.
        """
        if record.points:
            found = self._measure_length(record)
        else:
            self._budget.search = replace(self._budget.search, shortened=1.0)
            found = f"the speed isn't measured beforehand, so no trial is shortened: {ending.reason}"
        shutil.rmtree(record.folder, ignore_errors=True)
        self._run.write_search(self._budget.search)
        return found

    def _measure_reserve(self, base: TrialRecord) -> str | None:
        assert self._began is not None  # set when it was dispatched
        base_seconds = (self._budget.now() - self._began).total_seconds()
        search = self._budget.search = replace(self._budget.search, opening_seconds=base_seconds)
        if search.recipe.search.reserve is not None:
            return None
        deadline = search.deadline
        seconds = (deadline.ends - deadline.started).total_seconds()
        work = export_work(search, self._budget.slots)
        reserve = measured_reserve(base_seconds, base.points[-1].seconds, work, seconds)
        self._budget.search = replace(search, deadline=deadline.with_reserve(reserve))
        return f"{format_duration(reserve)} are kept for last evaluations, export and report, as measured"

    def _measure_length(self, probe: TrialRecord) -> str | None:
        budget, search = self._budget, self._budget.search
        full, settings, left = search.full_tokens, search.recipe.search, budget.seconds_left
        each, evaluation = _speed(probe)
        evaluations = evaluation / budget.evaluation_point
        final = final_seconds(settings.final_share, full, each, left)
        beside = self._beside
        length = shortened_length(
            full, beside * each, left - final, budget.slots, settings.full_trials, beside * evaluations
        )
        alone = each + evaluations / length
        budget.throughput.observe(probe.config, probe.tokens_seen, beside * alone * probe.tokens_seen)
        search = replace(
            search, shortened=length / full, full_tokens=length, final_seconds=final, alone_seconds_per_token=alone
        )
        forecast = forecast_search(search, budget.throughput, budget.now())
        budget.search = replace(search, prediction=forecast)
        said = []
        if length < full and search.epoch is not None:
            said.append(f"a full trial is {length_in_words(full, length, search.epoch.tokens)}")
        if final > 0:
            said.append(f"the last {format_duration(final)} of training are for the best configuration alone")
        return "; ".join(said) or None

    @property
    def _beside(self) -> int:
        """Trials that share a worker when all slots are at work."""
        placement = self._budget.search.placement
        return placement.slots_per_worker if placement is not None else 1


def _speed(probe: TrialRecord) -> tuple[float, float]:
    """Return the probe's seconds per trained token, and those of one evaluation. It was alone in its worker."""
    first, last = probe.points[0], probe.points[-1]
    trained = [point.tokens_seen / (point.tokens_per_second or 1.0) for point in (first, last)]
    tokens = last.tokens_seen - first.tokens_seen
    if not tokens:
        return trained[1] / last.tokens_seen, 0.0
    training = trained[1] - trained[0]
    return training / tokens, max(0.0, last.seconds - first.seconds - training)
