"""Controller of a search: dispatches, pauses, resumes and ends trials as the scheduler decides.

Until `orchestrator.controller.calibration` is complete it decides what runs, then the scheduler does. Which trials are
retried, and when the search gives up, `orchestrator.controller.failure_policy` decides.

It does not import Ray: Ray Tune calls it through `orchestrator.execution.tune_adapters`, tests and simulations call it
directly. The trials' folders on disk hold all of its state, so after a crash a new controller continues from them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from orchestrator.controller.budget import SearchBudget
from orchestrator.controller.calibration import CalibrationPhase
from orchestrator.controller.consolidation import plan_consolidation
from orchestrator.controller.events import Event, Notice, TrialEnded, TrialEvaluated, TrialPaused, TrialStarted
from orchestrator.controller.failure_policy import QUIETLY, ExitKind, FailurePolicy, TrialExit
from orchestrator.controller.new_trials import FinalTrial, FinalTrials, NewTrial, NewTrials
from orchestrator.controller.study import StudyRecorder
from orchestrator.controller.trial_request import TrialRequest
from orchestrator.controller.trials import Trial, TrialTable, end_of, shared_scheduler, varies_length, view_of
from orchestrator.planning.export_reserve import grace_seconds
from orchestrator.planning.throughput import ThroughputModel
from orchestrator.planning.trial_configs import trial_config
from orchestrator.sampling.distributions import distributions
from orchestrator.sampling.search_sampler import SearchSampler
from orchestrator.scheduling.policy import SearchPolicy
from orchestrator.scheduling.types import BudgetState, Resume, StartNew
from orchestrator.state.run_dir import BASE_TRIAL_ID, RunDir
from orchestrator.state.search import Consolidation, Search
from orchestrator.state.trial_folders import ids_set_aside, sound_trials
from orchestrator.storage.run_storage import RunStorage
from orchestrator.surrogate.curve_model import Forecast
from orchestrator.surrogate.model import Surrogate
from orchestrator.surrogate.trial_view import TrialView
from trials.errors import RunFolderError
from trials.records.trial_dir import (
    Ending,
    EvalPoint,
    Origin,
    TrialDir,
    TrialRecord,
    read_row_losses,
)
from trials.state import TrialState
from trials.system.disk_full import is_disk_full

Wait = Literal["wait"]
Over = Literal["over"]


class SearchController:
    """Controller of one search. Its public methods may be called from any thread, but from one at a time.

    `slots` is the number of trials that run at the same time; `listener` receives every event. `storage` brings trials
    to their workers and back; None: the run folder is used where it is.
    `only`: the configurations that may be tried beside the recipe's own, each once; None: all of the space.
    `waits_for_sampler`: `suggest` waits for a slow sampler, instead of returning "wait", for a simulated clock.
    """

    def __init__(
        self,
        run: RunDir,
        search: Search,
        slots: int,
        listener: Callable[[Event], None],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        only: Sequence[Mapping[str, Any]] | None = None,
        storage: RunStorage | None = None,
        *,
        waits_for_sampler: bool = False,
    ) -> None:
        self._storage = storage or RunStorage()
        self._storage.prepare()
        self._run = run
        self._emit = listener
        self._now = now
        self._running: dict[str, datetime | None] = {}
        """Time of dispatch of each running trial; None: it has been evaluated since."""
        self._interrupted = threading.Event()
        self._failures = FailurePolicy(self._say)
        self._is_done = False
        self.consolidation: Consolidation | None = None
        """Consolidation that the next session carries out; once it is set, nothing more starts. None: not planned."""
        records = sound_trials(run.path, self._say)
        trained = [record for record in records if record.origin is not Origin.BASE]
        self._budget = SearchBudget(search, slots, records, now)
        self._calibration = CalibrationPhase(run, self._budget, records, self._failures, listener, self._record_base)
        self._study = StudyRecorder(run, search.recipe, records, self._say)
        self._new_trials = NewTrials(search.recipe, trained, ids_set_aside(run.path, records))
        self._table = TrialTable(run, trained, search.recipe.search.keep_adapters)
        space, settings = distributions(search.recipe.space), search.recipe.search
        own_end = self._end_of if varies_length(search.recipe.space) else None
        self._surrogate = Surrogate(space, only, own_end, shared_scheduler(search.recipe))
        self._surrogate.slots = slots
        self._policy = SearchPolicy(self._surrogate, settings)
        self._sampler = SearchSampler(
            settings, space, self._surrogate, self._say, slots, len(trained), waits=waits_for_sampler
        )
        placement = search.placement
        workers = placement.engines if placement is not None else slots
        self._final = FinalTrials(self._budget, self._table, self.forecast, workers)
        self._surrogate.curve_model.base_loss = self._calibration.base_eval_loss
        self._catch_up(trained)

    @property
    def search(self) -> Search:
        """The search as updated by the calibration, which sets the length of a full trial and the reserve."""
        return self._budget.search

    @property
    def should_stop(self) -> bool:
        """Whether all running trials must stop now: after an interrupt, or if too much of the reserve is used up."""
        grace = grace_seconds(self.search.deadline.reserve_seconds)
        return self._interrupted.is_set() or self._budget.seconds_left < -grace

    @property
    def throughput(self) -> ThroughputModel:
        """Throughput of trials, as measured so far."""
        return self._budget.throughput

    @property
    def gave_up(self) -> str | None:
        """Reason for which the search starts nothing more although there is time; None: it has not given up."""
        return self._failures.gave_up

    @property
    def was_interrupted(self) -> bool:
        """Whether a person stopped the search."""
        return self._interrupted.is_set()

    def interrupt(self) -> None:
        """Start nothing more; `should_stop` is true from now on. Safe to call from a signal handler."""
        self._interrupted.set()

    def suggest(self) -> TrialRequest | Wait | Over:
        """Return the next trial to run: the base model's evaluation, then the speed probe, then all others.

        "wait": no slot is free, or nothing can start yet. "over": this session starts nothing more.
        """
        is_over = self._budget.seconds_left <= 0 or self.consolidation is not None
        if is_over or self.was_interrupted or self.gave_up is not None:
            return "over"
        if len(self._running) >= self._budget.slots or self._failures.must_wait(self._now()):
            return "wait"
        if not self._calibration.is_complete:
            calibrating = self._calibration.suggest(self._running)
            return "wait" if calibrating is None else self._dispatch(calibrating)
        crashed = self._failures.next_crashed(self._running)
        if crashed is not None and (not self._final.are_due or self._is_final(crashed)):
            return self._resume(crashed)
        return self._fill_slot_finally() if self._final.are_due else self._fill_slot()

    def on_result(self, trial_id: str, point: EvalPoint) -> bool:
        """Record an evaluation; return whether the trial goes on. One that does not pauses."""
        self._storage.before_result(trial_id)
        if not self._calibration.is_complete:
            return self._calibration.on_result(trial_id, point)
        self._failures.record_result(trial_id)
        trial = self._table[trial_id]
        self._record_result(trial, point)
        self._emit(TrialEvaluated(trial_id, point))
        if self._is_final(trial_id):
            return not self._final.is_exhausted(trial)
        view, budget = self._view(trial), self._budget_state()
        if view.points[-1][0] > view.end - budget.evaluation_point / 2:
            return True  # it is complete; optimizer steps do not end exactly at a number of tokens
        reason = self._other_reason_to_pause()
        if reason is None:
            decision = self._policy.should_continue(trial_id, budget)
            reason = None if decision.goes_on else decision.reason
        if reason is not None:
            self._emit(TrialPaused(trial_id, reason))
        return reason is None

    def _other_reason_to_pause(self) -> str | None:
        """Return why a trial pauses whatever the scheduler would say of it; None: the scheduler decides."""
        if len(self._running) > self._budget.slots:
            return "fewer trials at once get as much done"
        if self.consolidation is not None:
            return f"all GPUs go to {self.consolidation.finalist}"
        if self._final.are_due:
            return "the best configuration is trained for longer from now on"
        return None

    def on_trouble(self, about: str, text: str) -> None:
        """Record a failure of reporting, such as of W&B; a notice is shown once per `about` and session."""
        self._failures.say_once(about, f"warning: {about}: {text} (said once; the trials' log.txt have the rest)")

    def on_trial_end(self, trial_id: str, left: TrialExit = QUIETLY) -> None:
        """Record that a trial does not run any more, and how it `left` the process that ran it."""
        self._storage.after_end(trial_id)
        self._running.pop(trial_id, None)
        if not self._calibration.is_complete:
            self._calibration.on_trial_end(trial_id, left)
            return
        trial = self._table[trial_id]
        trial.is_running = False
        try:
            self._table.reload(trial)
        except RunFolderError as error:
            self._lose(trial, error)
            return
        if trial.ending is None:
            trial.ending = self._failures.record_exit(trial_id, left, self._now())
            if trial.ending is None and left.how is ExitKind.PROXY_ERROR:
                self._unfinished.append(trial_id)
            if trial.ending is None and self._is_final(trial_id) and self._final.is_exhausted(trial):
                trial.ending = Ending(TrialState.EARLY_STOPPED, "its loss has stopped falling")
            if trial.ending is None and self.should_stop and not self.was_interrupted:
                trial.ending = Ending(TrialState.OUT_OF_TIME, "the time for training was over")
        if trial.ending is not None:
            self._end(trial, trial.ending)
        else:
            self._observe(trial)

    def forecast(self, trial_id: str) -> Forecast | None:
        """Predict the loss of a trial at its end; None before its first evaluation."""
        return self._policy.forecast(trial_id)

    def on_idle(self) -> None:
        """Do deferred work; to be called whenever no caller waits for an answer.

        Refits the models, bounds the number of paused trials, considers consolidation, and writes to the study. The
        study can wait: its content is in the trials' folders, from which it is completed after a crash.
        """
        if self._calibration.is_complete:
            self._policy.refit(self._budget_state())
            self._sampler.prepare()
            self._bound_paused()
            self._consider_consolidation()
        self._study.flush()
        self._storage.sync()

    def close(self) -> None:
        """Record the end of all running trials; if the search is over by itself, prune the paused ones too."""
        for trial_id in list(self._running):
            self.on_trial_end(trial_id)
        if self._is_done or (self._budget.seconds_left <= 0 and not self.was_interrupted):
            for trial in self._table:
                if trial.ending is None:
                    reason = f"paused at {trial.tokens_seen:,} tokens; other trials looked more promising until the end"
                    self._end(trial, Ending(TrialState.PRUNED, reason))
        self._sampler.close()
        self._study.flush(at_once=True)
        self._storage.close()

    def _fill_slot(self) -> TrialRequest | Wait | Over:
        while self._unfinished:
            trial_id = self._unfinished.popleft()
            if self._table[trial_id].ending is None:
                return self._resume(trial_id)
        choice = self._policy.choose_next(self._budget_state())
        if isinstance(choice, Resume):
            return self._resume(choice.trial_id)
        if isinstance(choice, StartNew):
            new = self._new_trials.next(self._sampler)
            return "wait" if new is None else self._begin_new(new)
        if self._running:
            return "wait"
        self._final.begin_early()
        return self._fill_slot_finally() if self._final.are_due else self._over()

    def _fill_slot_finally(self) -> TrialRequest | Wait | Over:
        cut_off = self._final.cut_off()
        if cut_off is not None:
            return self._resume(cut_off.trial_id)
        final = self._final.next()
        if final is not None:
            return self._begin_final(final)
        if self._running:
            return "wait"
        self._budget.finals_are_over = True
        return self._fill_slot()

    def _over(self) -> Over:
        self._is_done = True
        return "over"

    def _begin_final(self, final: FinalTrial) -> TrialRequest:
        return self._begin(Trial(self._new_trials.next_id(), Origin.FINAL, final.name, final.config))

    def _is_final(self, trial_id: str) -> bool:
        return self._table[trial_id].origin is Origin.FINAL

    def _begin_new(self, new: NewTrial) -> TrialRequest:
        config = trial_config(self.search, new.values, self._calibration.base_eval_loss)
        origin = Origin.PROPOSED if new.name is None else Origin.START
        return self._begin(Trial(new.trial_id, origin, new.name or "proposed", config))

    def _begin(self, trial: Trial) -> TrialRequest:
        self._table.add(trial)
        self._study.write_later(trial.trial_id)
        return self._run_trial(trial, resumes=False)

    def _resume(self, trial_id: str) -> TrialRequest | Wait | Over:
        trial = self._table[trial_id]
        before = trial.tokens_seen
        try:
            resumes = self._table.restore(trial)
        except (RunFolderError, OSError) as error:
            if is_disk_full(error):
                raise
            self._lose(trial, error)
            return self.suggest()
        if trial.tokens_seen != before:
            self._say(f"trial {trial_id} goes back to {trial.tokens_seen:,} tokens, its last checkpoint")
        return self._run_trial(trial, resumes=resumes)

    def _run_trial(self, trial: Trial, *, resumes: bool) -> TrialRequest:
        trial.is_running = True
        self._observe(trial)
        folder = self._run.trial(trial.trial_id)
        return self._dispatch(TrialRequest(trial.trial_id, trial.origin, trial.name, trial.config, folder, resumes))

    def _dispatch(self, request: TrialRequest) -> TrialRequest:
        request = replace(
            request,
            fingerprint=self.search.data.get("fingerprint"),
            stop_at=self._stop_at(request.origin).timestamp(),
            group=self._run.path.name,
        )
        if not (request.folder / "config.json").exists():
            TrialDir(request.folder).begin(request.config, request.origin, request.name, request.fingerprint)
        request = replace(request, remote=self._storage.before_start(request.folder, request.config.tracking))
        trial_id, full = request.trial_id, self._full_tokens(request)
        seen = self._table[trial_id].tokens_seen if trial_id in self._table else 0
        self._running[trial_id] = self._now()
        self._emit(TrialStarted(trial_id, request.origin, request.name, request.config, full, seen))
        return request

    def _stop_at(self, origin: Origin) -> datetime:
        """Return the time at which a trial ends by itself."""
        ends = self.search.deadline.training_ends
        return ends if origin is Origin.FINAL else ends - timedelta(seconds=self._budget.final_seconds)

    def _full_tokens(self, request: TrialRequest) -> int:
        return self.search.tokens_of(request.config) if request.origin is Origin.FINAL else self.search.full_tokens

    def _record_result(self, trial: Trial, point: EvalPoint) -> None:
        """Record an evaluation of a trial everywhere: budget, table, study and scheduler."""
        is_full = len(self._running) == self._budget.slots
        self._budget.observe_segment(trial, point, self._running.get(trial.trial_id), is_full=is_full)
        self._running[trial.trial_id] = None
        self._measure_slots()
        trial.points.append(point)
        if point.eval_loss <= point.best_eval_loss:
            self._table.record_rows(trial, read_row_losses(self._run.trial(trial.trial_id)))
        self._study.write_later(trial.trial_id)
        self._observe(trial)

    def _measure_slots(self) -> None:
        before = self.search
        said = self._budget.limit_slots()
        if self.search is not before:
            self._run.write_search(self.search)
        if said is not None:
            self._say(said)

    def _end(self, trial: Trial, ending: Ending) -> None:
        """End a trial for good, everywhere: on disk, in the study and in the scheduler."""
        record = self._table.end(trial, ending)
        self._study.write_later(trial.trial_id)
        self._observe(trial)
        self._failures.record_ending(record)
        assert record.ending is not None  # it was written above, if not before
        self._emit(TrialEnded(trial.trial_id, record.ending, record.best_eval_loss))

    def _lose(self, trial: Trial, error: Exception) -> None:
        """End a trial as failed because its folder was damaged, or cannot be restored to a checkpoint."""
        ending = self._table.lose(trial, error)
        self._failures.forget(trial.trial_id)
        self._observe(trial)
        self._study.write_later(trial.trial_id)
        self._emit(TrialEnded(trial.trial_id, ending, None))

    def _bound_paused(self) -> None:
        """Prune paused trials that were stopped, or beyond `keep_paused`: their checkpoints take disk space."""
        keep = self.search.recipe.search.keep_paused
        for trial_id, reason in self._policy.evictable(keep, self._budget_state()).items():
            trial = self._table[trial_id]
            self._end(trial, Ending(TrialState.PRUNED, f"paused at {trial.tokens_seen:,} tokens; {reason}"))

    def _consider_consolidation(self) -> None:
        if self.consolidation is None:
            self.consolidation = plan_consolidation(self._budget, self._table, self.forecast)
            if self.consolidation is not None:
                self._say(f"from now on {self.consolidation.ranks} GPUs train one trial: {self.consolidation.reason}")

    def _record_base(self, point: EvalPoint) -> None:
        self._study.write_later(BASE_TRIAL_ID)
        self._surrogate.curve_model.base_loss = point.eval_loss

    def _catch_up(self, trained: list[TrialRecord]) -> None:
        """Bring the scheduler up to date with the trials on disk, and queue those that were cut off."""
        for record in trained:
            self._observe(self._table[record.id])
        open_ones = [trial for trial in self._table if trial.ending is None]
        # The scheduler has no losses of a trial that was never evaluated, so those are resumed first.
        self._unfinished = deque(trial.trial_id for trial in open_ones if not trial.points)

    def _observe(self, trial: Trial) -> None:
        """Tell scheduler and sampler what has changed of a trial; a final one has another length than they know."""
        if trial.origin is Origin.FINAL:
            return
        view = self._view(trial)
        self._policy.update(view)
        self._sampler.observe(view)

    def _view(self, trial: Trial) -> TrialView:
        return view_of(trial, self.search, self.throughput)

    def _end_of(self, values: Mapping[str, Any]) -> float:
        return end_of(values, self.search)

    def _budget_state(self) -> BudgetState:
        return self._budget.state(may_start=self._new_trials.has_more)

    def _say(self, text: str) -> None:
        self._emit(Notice(text))
