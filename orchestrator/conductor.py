"""Drives a search: what runs next, what goes on, what ends. The one place that acts on what the rules say.

It knows nothing of Ray: `orchestrator.tuner` lets Ray Tune ask it, tests and simulations can ask it as well.
"""

from __future__ import annotations

import shutil
import statistics
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from orchestrator.events import Event, Message, TrialEnded, TrialEvaluated, TrialStarted
from orchestrator.halving import RungVerdict, judge, rungs_from_records
from orchestrator.ranking import base_of, expendable_adapters
from orchestrator.run_folder import BASE_TRIAL_ID, RunFolder, Search
from orchestrator.study import Study
from trials.checkpoints import remove_checkpoints
from trials.config import TrialConfig
from trials.files import settle_folder
from trials.records import Ending, EndingKind, EvalPoint, Origin, TrialFolder, TrialRecord, read_trial

MOST_FAILURES_IN_A_ROW = 5
"""After so many the cause is not the configurations, and the night would go on failing."""

Wait = Literal["wait"]
Over = Literal["over"]


@dataclass(frozen=True)
class Assignment:
    """One trial to run: where, with what."""

    trial_id: str
    origin: Origin
    name: str
    config: TrialConfig


class Conductor:
    """The state of a running search. Its public methods may be called from any one thread at a time."""

    def __init__(
        self,
        run: RunFolder,
        search: Search,
        slots: int,
        listener: Callable[[Event], None],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._run = run
        self._search = search
        self._slots = slots
        self._emit = listener
        self._now = now
        self._running: dict[str, Assignment] = {}
        self._interrupted = threading.Event()
        self._failures_in_a_row = 0
        self._beside_the_last_death: set[str] = set()
        self._gave_up = False
        for folder in (run.path / "trials").iterdir():
            settle_folder(folder / "adapter")
        records = run.records()
        base = base_of(records)
        self._base_eval_loss = base.best_eval_loss if base else None
        trained = [record for record in records if record.origin is not Origin.BASE]
        self._losses_at_rungs = rungs_from_records(trained, search.rungs)
        self._first_eval_seconds = {record.id: record.points[0].seconds for record in trained if record.points}
        self._study = Study(run.study_url, search.recipe)

    @property
    def must_stop(self) -> bool:
        """Whether everything that runs has to end now: interrupted, or half of the reserve is gone already."""
        late = -self._search.deadline.training_seconds_left(self._now())
        return self._interrupted.is_set() or late > self._search.deadline.reserve_seconds / 2

    @property
    def was_interrupted(self) -> bool:
        """Whether a person stopped the search."""
        return self._interrupted.is_set()

    def interrupt(self) -> None:
        """Starts nothing more; `must_stop` is true from now on. Safe to call from a signal handler."""
        self._interrupted.set()

    def next_trial(self) -> Assignment | Wait | Over:
        """The next trial to run. The base model comes first, then starting points, then what the study proposes."""
        if self._is_over():
            return "over"
        if len(self._running) >= self._slots:
            return "wait"
        if self._base_eval_loss is None and BASE_TRIAL_ID not in self._running:
            return self._begin(Assignment(BASE_TRIAL_ID, Origin.BASE, "base", self._search.recipe.trial_config({})))
        if not self._study.has_more(self._search.recipe.search.trials):
            return "over"
        suggestion = self._study.ask()
        config = self._search.recipe.trial_config(suggestion.values)
        # Nobody goes back to an earlier checkpoint in a search: each trial keeps its newest, unless more are asked for.
        machine = config.machine.model_copy(update={"keep_checkpoints": config.machine.keep_checkpoints or 1})
        update: dict[str, Any] = {"base_eval_loss": self._base_eval_loss, "machine": machine}
        if config.evaluation.score_rows is not None:
            update["score_at_tokens"] = tuple(self._search.rungs)
        config = config.model_copy(update=update)
        origin = Origin.PROPOSED if suggestion.name is None else Origin.START
        return self._begin(Assignment(trial_id(suggestion.number), origin, suggestion.name or "proposed", config))

    def on_eval(self, trial_id: str, point: EvalPoint) -> bool:
        """Takes in an evaluation; True: the trial goes on. A trial that is stopped here gets its ending here."""
        running = self._running[trial_id]
        if running.origin is Origin.BASE:
            self._base_eval_loss = point.eval_loss
            self._study.record_base(point.eval_loss, point.score)
            self._emit(TrialEvaluated(trial_id, point, ()))
            return True
        self._first_eval_seconds.setdefault(trial_id, point.seconds)
        self._study.report(study_number(trial_id), point)
        verdicts = self._judge_rungs(trial_id, point)
        self._emit(TrialEvaluated(trial_id, point, verdicts))
        failed = next((verdict for verdict in verdicts if not verdict.passes), None)
        # A starting point is what the winner has to be shown better than, so it's never cut short.
        if failed is None or running.origin is Origin.START:
            return True
        TrialFolder(self._run.trial(trial_id)).end(Ending(EndingKind.PRUNED, str(failed)))
        return False

    def on_end(self, trial_id: str, *, died: bool = False) -> None:
        """Takes in that a trial is over, however it ended; `died`: its process is gone without a word."""
        running = self._running.pop(trial_id)
        folder = self._run.trial(trial_id)
        without_a_word = died and read_trial(folder).ending is None
        if died:
            TrialFolder(folder).end(Ending(EndingKind.FAILED, f"its process ended without a word; see ray/{trial_id}"))
        elif self.must_stop and not self.was_interrupted:
            TrialFolder(folder).end(Ending(EndingKind.PRUNED, "the time for training was over"))
        record = read_trial(folder)
        if record.ending is not None:
            # They would take half a gigabyte and more of every trial (trials.checkpoints); what counts is its adapter.
            remove_checkpoints(folder)
        if running.origin is not Origin.BASE:
            self._tell_study(record)
        if not (without_a_word and self._is_same_accident(trial_id)):
            self._count_failures(record)
        self._emit(TrialEnded(trial_id, record.ending, record.best_eval_loss))
        for expendable in expendable_adapters(self._run.records(), self._search.recipe.search.keep_adapters):
            shutil.rmtree(expendable.adapter)

    def close(self) -> None:
        """Tells the study of all that still runs: these trials are tried again when the search is resumed."""
        for trial_id in list(self._running):
            self.on_end(trial_id)

    def _tell_study(self, record: TrialRecord) -> None:
        number = study_number(record.id)
        for point in record.points:
            self._study.report(number, point)  # the last one of a trial that diverged was not asked about
        self._study.tell(number, record.ending.kind if record.ending else None, record.best_eval_loss)

    def _is_same_accident(self, trial_id: str) -> bool:
        """Whether a death was counted already: the trials of an engine whose process ends all die with it."""
        if trial_id in self._beside_the_last_death:
            return True
        self._beside_the_last_death = set(self._running)
        return False

    def _count_failures(self, record: TrialRecord) -> None:
        failed = record.ending is not None and record.ending.kind is EndingKind.FAILED
        self._failures_in_a_row = self._failures_in_a_row + 1 if failed else 0
        if failed and (record.origin is Origin.BASE or self._failures_in_a_row == MOST_FAILURES_IN_A_ROW):
            what = "the base model" if record.origin is Origin.BASE else f"{MOST_FAILURES_IN_A_ROW} trials in a row"
            self._emit(Message(f"{what} failed, so nothing more is started; see {record.folder / 'ending.json'}"))
            self._gave_up = True

    def _begin(self, assignment: Assignment) -> Assignment:
        folder = self._run.trial(assignment.trial_id)
        # Only the base model can be there already, if its evaluation was cut off or failed.
        (folder / "ending.json").unlink(missing_ok=True)
        if not (folder / "config.json").exists():
            rows = self._search.data.get("fingerprint")
            TrialFolder(folder).begin(assignment.config, assignment.origin, assignment.name, rows)
        self._running[assignment.trial_id] = assignment
        self._emit(TrialStarted(assignment.trial_id, assignment.origin, assignment.name, assignment.config))
        return assignment

    def _judge_rungs(self, trial_id: str, point: EvalPoint) -> tuple[RungVerdict, ...]:
        verdicts = []
        for tokens, losses in self._losses_at_rungs.items():
            if point.tokens_seen >= tokens and trial_id not in losses:
                losses[trial_id] = point.best_eval_loss
                factor = self._search.recipe.search.reduction_factor
                verdicts.append(judge(losses, trial_id, tokens, factor))
        return tuple(verdicts)

    def _is_over(self) -> bool:
        """Also over when a trial that starts now can't be expected to reach its first evaluation."""
        expected = statistics.median(self._first_eval_seconds.values()) if self._first_eval_seconds else 0.0
        left = self._search.deadline.training_seconds_left(self._now())
        return self._interrupted.is_set() or self._gave_up or left <= expected


def trial_id(number: int) -> str:
    """The folder name of the study's trial with this number; 0000 is the base model's, which isn't in the study."""
    return f"{number + 1:04d}"


def study_number(trial_id: str) -> int:
    """The study's number of a trial."""
    return int(trial_id) - 1
