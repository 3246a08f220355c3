"""Controller of a search: dispatches, pauses, resumes and ends trials as the scheduler decides.

It does not import Ray: Ray Tune calls it through `orchestrator.execution.tune_adapters`, tests and simulations call it
directly. The trials' folders on disk hold all of its state, so after a crash a new controller continues from them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

from orchestrator.controller.calibration import PROBE_ID, CalibrationPhase
from orchestrator.controller.consolidation import is_near_the_end, plan_consolidation
from orchestrator.controller.crash_tracker import MOST_DEATHS, CrashTracker
from orchestrator.controller.events import Event, Notice, TrialEnded, TrialEvaluated, TrialPaused, TrialStarted
from orchestrator.controller.proxy_errors import MOST_PROXY_ERRORS, QUIETLY, ExitKind, ProxyErrors, TrialExit
from orchestrator.controller.study import StudyRecorder, Suggestion, study_number, trial_id_of
from orchestrator.controller.study_writer import StudyWriter
from orchestrator.controller.trial_request import TrialRequest
from orchestrator.controller.trials import Trial, TrialTable, remove_adapters, view_of
from orchestrator.planning.export_reserve import grace_seconds
from orchestrator.planning.throughput import ThroughputModel
from orchestrator.planning.trial_configs import trial_config
from orchestrator.scheduling.scheduler import BudgetState, FreezeThawScheduler, Resume, StartNew, TrialView
from orchestrator.state.run_dir import BASE_TRIAL_ID, RunDir
from orchestrator.state.search import Consolidation, Search
from orchestrator.state.trial_folders import ids_set_aside, set_aside
from trials.console.logs import LOG_FILE
from trials.errors import RunFolderError, first_line
from trials.records.checkpoints import remove_checkpoints
from trials.records.rewind import restore_latest
from trials.records.trial_dir import (
    DamagedTrial,
    Ending,
    EndingKind,
    EvalPoint,
    Origin,
    TrialDir,
    TrialRecord,
    read_row_losses,
    read_trial,
)
from trials.system.disk_full import is_disk_full
from trials.system.files import recover_folder

MOST_FAILURES_IN_A_ROW = 5
"""Failed trials in a row after which the search gives up: configurations are then unlikely to be the cause."""

Wait = Literal["wait"]
Over = Literal["over"]


class SearchController:
    """Controller of one search. Its public methods may be called from any thread, but from one at a time.

    `slots` is the number of trials that run at the same time; `listener` receives every event.
    `only`: the configurations that may be tried beside the recipe's own, each once; None: all of the space.
    """

    def __init__(
        self,
        run: RunDir,
        search: Search,
        slots: int,
        listener: Callable[[Event], None],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        only: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        self._run = run
        self._slots = slots
        self._emit = listener
        self._now = now
        self._running: dict[str, datetime | None] = {}
        """Time of dispatch of each running trial; None: it has been evaluated since."""
        self._crash_tracker = CrashTracker()
        self._interrupted = threading.Event()
        self._failures_in_a_row = 0
        self._proxy_errors = ProxyErrors()
        self._troubles: set[str] = set()
        """Parts of the reporting whose failure a notice has been shown for."""
        self.gave_up: str | None = None
        """Reason for which the search starts nothing more although there is time; None: it has not given up."""
        self._is_done = False
        self.regrouped: Consolidation | None = None
        """Consolidation that the next session carries out; once it is set, nothing more starts. None: not planned."""
        records = self._sound_records()
        trained = [record for record in records if record.origin is not Origin.BASE]
        self._calibration = CalibrationPhase(run, search, slots, records)
        lost = ids_set_aside(run.path, records)
        self._writer = StudyWriter(run, search.recipe, records, lost, lambda text: self._emit(Notice(text)))
        self._table = TrialTable(trained, search.recipe.search.keep_adapters)
        self._scheduler = FreezeThawScheduler(search.recipe.space, search.recipe.search, only)
        if self._calibration.base_eval_loss is not None:
            self._scheduler.set_base_loss(self._calibration.base_eval_loss)
        self._catch_up(trained)

    @property
    def search(self) -> Search:
        """The search as updated by the calibration, which sets the length of a full trial and the reserve."""
        return self._calibration.search

    @property
    def should_stop(self) -> bool:
        """Whether all running trials must stop now: after an interrupt, or if too much of the reserve is used up."""
        return self._interrupted.is_set() or -self._seconds_left > grace_seconds(self.search.deadline.reserve_seconds)

    @property
    def throughput(self) -> ThroughputModel:
        """Throughput of trials, as measured so far."""
        return self._calibration.throughput

    @property
    def was_interrupted(self) -> bool:
        """Whether a person stopped the search."""
        return self._interrupted.is_set()

    @property
    def _study(self) -> StudyRecorder:
        return self._writer.study

    def interrupt(self) -> None:
        """Start nothing more; `should_stop` is true from now on. Safe to call from a signal handler."""
        self._interrupted.set()

    def suggest(self) -> TrialRequest | Wait | Over:
        """Return the next trial to run: the base model's evaluation, then the speed probe, then all others.

        "wait": no slot is free, or nothing can start yet. "over": this session starts nothing more.
        """
        if self._interrupted.is_set() or self.gave_up is not None or self._seconds_left <= 0:
            return "over"
        if self.regrouped is not None:
            return "over"
        if len(self._running) >= self._slots or self._proxy_errors.must_wait(self._now()):
            return "wait"
        if not self._calibration.is_complete:
            calibrating = self._calibration.next(self._running, self._now())
            return "wait" if calibrating is None else self._dispatch(TrialRequest(*calibrating))
        crashed = self._crash_tracker.next(self._running)
        return self._fill_slot() if crashed is None else self._resume(crashed)

    def on_result(self, trial_id: str, point: EvalPoint) -> bool:
        """Record an evaluation; return whether the trial goes on. One that does not pauses."""
        if trial_id in (BASE_TRIAL_ID, PROBE_ID):
            self._calibration_result(trial_id, point)
            return True  # proxy errors keep counting, because a calibration run that is cut off starts again
        self._proxy_errors.clear(trial_id)
        trial = self._table[trial_id]
        self._take(trial, point)
        self._emit(TrialEvaluated(trial_id, point))
        view, budget = self._view(trial), self._budget()
        if view.points[-1][0] > view.end - budget.evaluation_point / 2:
            return True  # it is complete; optimizer steps do not end exactly at a number of tokens
        if self.regrouped is not None:
            self._emit(TrialPaused(trial_id, f"all GPUs go to {self.regrouped.finalist}"))
            return False
        verdict = self._scheduler.should_continue(trial_id, budget)
        if not verdict.goes_on:
            self._emit(TrialPaused(trial_id, verdict.reason))
        return verdict.goes_on

    def on_trouble(self, about: str, text: str) -> None:
        """Record a failure of reporting, such as of W&B; a notice is shown once per `about` and session."""
        if about not in self._troubles:
            self._troubles.add(about)
            self._emit(Notice(f"warning: {about}: {text} (said once; the trials' log.txt have the rest)"))

    def on_trial_end(self, trial_id: str, left: TrialExit = QUIETLY) -> None:
        """Record that a trial does not run any more, and how it `left` the process that ran it."""
        self._running.pop(trial_id, None)
        if trial_id in (BASE_TRIAL_ID, PROBE_ID):
            self._end_calibration(trial_id, left)
            return
        trial = self._table[trial_id]
        trial.is_running = False
        try:
            record = read_trial(self._run.trial(trial_id))
        except RunFolderError as error:
            self._lose(trial, error)
            return
        self._table.replace(record)
        if record.ending is None and left.how is ExitKind.DEATH:
            self._note_death(trial, left.error)
        elif record.ending is None and left.how is ExitKind.PROXY_ERROR:
            self._record_proxy_error(trial, left.error)
        if record.ending is None and trial.ending is None and self.should_stop and not self.was_interrupted:
            self._end(trial, Ending(EndingKind.PRUNED, "the time for training was over"))
        elif trial.ending is not None:
            self._end(trial, trial.ending)
        else:
            self._scheduler.update(self._view(trial))

    def on_idle(self) -> None:
        """Do deferred work; to be called whenever no caller waits for an answer.

        Refits the models, bounds the number of paused trials, considers consolidation, and writes to the study. The
        study can wait: its content is in the trials' folders, from which it is completed after a crash.
        """
        if self._calibration.is_complete:
            self._scheduler.refit(self._budget())
            self._bound_paused()
            self._consider_consolidation()
        self._writer.flush()

    def close(self) -> None:
        """Record the end of all running trials; if the search is over by itself, prune the paused ones too."""
        for trial_id in list(self._running):
            self.on_trial_end(trial_id)
        if self._is_done or (self._seconds_left <= 0 and not self.was_interrupted):
            for trial in self._table:
                if trial.ending is None:
                    reason = f"paused at {trial.tokens_seen:,} tokens; other trials looked more promising until the end"
                    self._end(trial, Ending(EndingKind.PRUNED, reason))
        self._writer.flush(at_once=True)

    @property
    def _seconds_left(self) -> float:
        return self.search.deadline.training_seconds_left(self._now())

    def _fill_slot(self) -> TrialRequest | Wait | Over:
        if self._unbegun:
            return self._begin(self._unbegun.popleft())
        while self._unfinished:
            trial_id = self._unfinished.popleft()
            if self._table[trial_id].ending is None:
                return self._resume(trial_id)
        choice = self._scheduler.choose_next(self._budget())
        if isinstance(choice, Resume):
            return self._resume(choice.trial_id)
        if isinstance(choice, StartNew) and self._may_start:
            suggestion = self._study.ask(self._scheduler.propose)
            self._writer.write_later(lambda: self._study.begin(suggestion))
            return self._begin(suggestion)
        if self._running:
            return "wait"
        self._is_done = True
        return "over"

    @property
    def _may_start(self) -> bool:
        return self._study.has_more(self.search.recipe.search.trials)

    def _begin(self, suggestion: Suggestion) -> TrialRequest:
        config = trial_config(self.search, suggestion.values, self._calibration.base_eval_loss)
        origin = Origin.PROPOSED if suggestion.name is None else Origin.START
        trial = Trial(trial_id_of(suggestion.number), origin, suggestion.name or "proposed", config)
        self._table.add(trial)
        return self._run_trial(trial, resumes=False)

    def _resume(self, trial_id: str) -> TrialRequest | Wait | Over:
        trial = self._table[trial_id]
        before = trial.tokens_seen
        try:
            checkpoint = restore_latest(self._run.trial(trial_id))
            trial.points = list(read_trial(self._run.trial(trial_id)).points)
        except (RunFolderError, OSError) as error:
            if is_disk_full(error):
                raise
            self._lose(trial, error)
            return self.suggest()
        if trial.tokens_seen != before:
            self._emit(Notice(f"trial {trial_id} goes back to {trial.tokens_seen:,} tokens, its last checkpoint"))
        return self._run_trial(trial, resumes=checkpoint is not None)

    def _run_trial(self, trial: Trial, *, resumes: bool) -> TrialRequest:
        trial.is_running = True
        self._scheduler.update(self._view(trial))
        folder = self._run.trial(trial.trial_id)
        return self._dispatch(TrialRequest(trial.trial_id, trial.origin, trial.name, trial.config, folder, resumes))

    def _dispatch(self, request: TrialRequest) -> TrialRequest:
        request = replace(
            request,
            fingerprint=self.search.data.get("fingerprint"),
            stop_at=self.search.deadline.training_ends.timestamp(),
            group=self._run.path.name,
        )
        if not (request.folder / "config.json").exists():
            TrialDir(request.folder).begin(request.config, request.origin, request.name, request.fingerprint)
        trial_id, full = request.trial_id, self.search.full_tokens
        seen = self._table[trial_id].tokens_seen if trial_id in self._table else 0
        self._running[trial_id] = self._now()
        self._emit(TrialStarted(trial_id, request.origin, request.name, request.config, full, seen))
        return request

    def _take(self, trial: Trial, point: EvalPoint) -> None:
        """Record an evaluation of a trial everywhere: calibration, table, study and scheduler."""
        dispatched = self._running.get(trial.trial_id)
        self._running[trial.trial_id] = None
        waited = None if dispatched is None else (self._now() - dispatched).total_seconds()
        self._calibration.observe_segment(trial, point, waited)
        trial.points.append(point)
        self._crash_tracker.clear(trial.trial_id)
        if point.eval_loss <= point.best_eval_loss:
            self._table.record_rows(trial, read_row_losses(self._run.trial(trial.trial_id)))
        self._writer.write_later(lambda: self._study.report(study_number(trial.trial_id), point))
        self._scheduler.update(self._view(trial))

    def _end(self, trial: Trial, ending: Ending) -> None:
        """End a trial for good: write the ending, and remove its checkpoints and adapters that are not kept."""
        folder = self._run.trial(trial.trial_id)
        TrialDir(folder).end(ending)
        record = read_trial(folder)
        # Checkpoints would take half a gigabyte and more per trial (trials.records.checkpoints); only the adapter is
        # needed from now on.
        remove_checkpoints(folder)
        remove_adapters(folder.glob("before-*/adapter"))  # of segments that were trained again
        self._crash_tracker.clear(trial.trial_id)
        self._writer.write_later(lambda: self._writer.write(record))
        remove_adapters(self._table.end(record))
        self._scheduler.update(self._view(trial))
        self._count_failures(record)
        assert record.ending is not None  # it was written above, if not before
        self._emit(TrialEnded(trial.trial_id, record.ending, record.best_eval_loss))

    def _sound_records(self) -> list[TrialRecord]:
        """Return the usable trials; set the others aside, and emit a notice for every damaged file."""
        trials = self._run.path / "trials"
        trials.mkdir(exist_ok=True)
        for folder in trials.iterdir():
            recover_folder(folder / "adapter")
        found = self._run.read_trials()
        lost = [*found.damaged, *(_of_no_use(r) for r in found.records if r.origin is Origin.BASE and _has_no_rows(r))]
        for trial_id, path in set_aside(self._run.path, lost).items():
            reason = next(each.reason for each in lost if each.id == trial_id)
            self._emit(Notice(f"trial {trial_id} can't be used ({reason}), and is set aside: it's {path} now"))
        sound = [record for record in found.records if record.folder.exists()]
        for record in sound:
            for damage in record.all_damage():
                self._emit(Notice(f"trial {record.id}: {damage}"))
        return sound

    def _lose(self, trial: Trial, error: Exception) -> None:
        """End a trial as failed because its folder was damaged, or cannot be restored to a checkpoint; set it aside."""
        folder = self._run.trial(trial.trial_id)
        reason = f"its folder can't be used: {first_line(error)}"
        moved = set_aside(self._run.path, [DamagedTrial(trial.trial_id, folder, reason)] if folder.exists() else [])
        where = "".join(f"; what is left of it is {path}" for path in moved.values())
        trial.ending, trial.points = Ending(EndingKind.FAILED, reason + where), []
        self._crash_tracker.clear(trial.trial_id)
        self._scheduler.update(self._view(trial))
        number = study_number(trial.trial_id)
        self._writer.write_later(lambda: self._study.lose(number))
        self._emit(TrialEnded(trial.trial_id, trial.ending, None))

    def _note_death(self, trial: Trial, error: str) -> None:
        """Record that a trial's process died; the trial fails after `MOST_DEATHS` in a row.

        Before that it is retried, because another trial in the same process may have been the cause.
        """
        trial_id = trial.trial_id
        if self._crash_tracker.record_crash(trial_id):
            what = f"{error}, {MOST_DEATHS} times" if error else f"its process ended without a word {MOST_DEATHS} times"
            trial.ending = Ending(EndingKind.FAILED, f"{what} in a row; see ray/{trial_id}")
        elif error:
            self._emit(Notice(f"trial {trial_id} was cut off and goes on from its last checkpoint: {error}"))
        else:
            self._emit(Notice(f"the process of trial {trial_id} died; it goes on from its last checkpoint"))

    def _record_proxy_error(self, trial: Trial, error: str) -> None:
        """Record a proxy error: the trial is dispatched again soon, or pruned if it alone keeps having them."""
        if self._are_too_many_proxy_errors(trial.trial_id, error):
            failed = f"as what speaks for it failed {MOST_PROXY_ERRORS} times: {error}"
            reason = f"set aside through no fault of its own, {failed}"
            trial.ending = Ending(EndingKind.PRUNED, reason)
        else:
            self._unfinished.append(trial.trial_id)

    def _are_too_many_proxy_errors(self, trial_id: str, error: str) -> bool:
        """Record a proxy error; return whether the trial has had too many.

        After `MOST_PROXY_ERRORS` in a row over all trials the search gives up.
        """
        if self._proxy_errors.record(trial_id, error, self._now()):
            said = (
                f"what speaks for trial {trial_id} failed, which isn't the trial's doing, and it is run again: {error}"
            )
            self._emit(Notice(said))
        if self._proxy_errors.in_a_row >= MOST_PROXY_ERRORS:
            self._give_up(
                f"what speaks for trials failed {MOST_PROXY_ERRORS} times in a row, the last time with: {error}"
            )
            return False
        return self._proxy_errors.count(trial_id) >= MOST_PROXY_ERRORS

    def _bound_paused(self) -> None:
        """Prune paused trials beyond `keep_paused`, because their checkpoints take disk space."""
        for trial_id in self._scheduler.evictable(self.search.recipe.search.keep_paused, self._budget()):
            trial = self._table[trial_id]
            more = self.search.recipe.search.keep_paused
            reason = f"paused at {trial.tokens_seen:,} tokens; {more} other paused trials look more promising"
            self._end(trial, Ending(EndingKind.PRUNED, reason))

    def _consider_consolidation(self) -> None:
        left = self._seconds_left
        if self.regrouped is None and left > 0 and is_near_the_end(self.search, self.throughput, left):
            now = self._now().isoformat()
            forecast = self._scheduler.forecast
            self.regrouped = plan_consolidation(self.search, self._table, forecast, self.throughput, left, now)
            if self.regrouped is not None:
                self._emit(Notice(f"from now on {self.regrouped.ranks} GPUs train one trial: {self.regrouped.reason}"))

    def _count_failures(self, record: TrialRecord) -> None:
        failed = record.ending is not None and record.ending.kind is EndingKind.FAILED
        self._failures_in_a_row = self._failures_in_a_row + 1 if failed else 0
        if self._failures_in_a_row == MOST_FAILURES_IN_A_ROW and record.ending is not None:
            said = f"{MOST_FAILURES_IN_A_ROW} trials in a row failed, the last one, {record.id}, with"
            self._give_up(f"{said}: {_in_a_line(record.ending.reason)} (see {record.folder / LOG_FILE})")

    def _give_up(self, reason: str) -> None:
        if self.gave_up is None:
            self.gave_up = reason
            self._emit(Notice(f"{reason}. Nothing more is started"))

    def _calibration_result(self, trial_id: str, point: EvalPoint) -> None:
        self._calibration.on_result(trial_id, point)
        if trial_id == BASE_TRIAL_ID:
            self._writer.write_later(lambda: self._study.record_base(point.eval_loss, point.score))
            self._scheduler.set_base_loss(point.eval_loss)
        self._emit(TrialEvaluated(trial_id, point))

    def _end_calibration(self, trial_id: str, left: TrialExit) -> None:
        point = self._calibration.unheard_point(trial_id)
        if point is not None:
            self._calibration_result(trial_id, point)
        if left.how is ExitKind.PROXY_ERROR and self._calibration.is_cut_off(trial_id):
            self._are_too_many_proxy_errors(trial_id, left.error)
            return
        ending = self._calibration.on_trial_end(
            trial_id, self._now(), died=left.how is ExitKind.DEATH, error=left.error
        )
        if ending is None:
            self._emit(Notice(f"{trial_id} was cut off, and is done again"))
            return
        self._emit(TrialEnded(trial_id, ending, None))
        for sentence in self._calibration.findings():
            self._emit(Notice(sentence))
        if ending.kind is EndingKind.FAILED and trial_id == BASE_TRIAL_ID:
            self._give_up(f"the base model's evaluation failed with: {_in_a_line(ending.reason)}")

    def _catch_up(self, trained: list[TrialRecord]) -> None:
        """Bring study and scheduler up to date with the trials on disk, and queue those that were cut off."""
        for record in trained:
            self._writer.write_later(partial(self._writer.write, record))
            self._scheduler.update(self._view(self._table[record.id]))
        self._writer.flush()
        begun = {study_number(record.id) for record in trained}
        self._unbegun = deque(self._study.unbegun(begun))
        open_ones = [trial for trial in self._table if trial.ending is None]
        # The scheduler has no losses of a trial that was never evaluated, so those are resumed first.
        self._unfinished = deque(m.trial_id for m in open_ones if not m.points)

    def _view(self, trial: Trial) -> TrialView:
        return view_of(trial, self.search)

    def _budget(self) -> BudgetState:
        return self._calibration.budget_state(self._seconds_left, may_start=self._may_start)


def _in_a_line(reason: str) -> str:
    """Return the first line of an error's text, without a period, for use in a sentence."""
    return reason.strip().split("\n")[0].rstrip(".")


def _has_no_rows(record: TrialRecord) -> bool:
    return bool(record.points) and record.row_losses() is None


def _of_no_use(base: TrialRecord) -> DamagedTrial:
    """Return a base model's record without row losses as damaged, so that it is evaluated again.

    Without them no trial can be shown to be better than the base model.
    """
    return DamagedTrial(base.id, base.folder, "; ".join(map(str, base.all_damage())))
