"""The controller against a simple model of a search: whatever happens in whatever order, these rules hold."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from orchestrator.controller.calibration import PROBE_ID
from orchestrator.controller.controller import SearchController
from orchestrator.controller.events import Event, TrialEnded, TrialEvaluated, TrialStarted
from orchestrator.controller.failure_policy import DIED, TrialExit
from orchestrator.controller.trial_request import TrialRequest
from search_spaces.loader import load_recipe
from tests.conftest import SMALL
from tests.support.checkpoint_dirs import write_checkpoint
from tests.support.fake_search import BASE_LOSS, Clock, make_run, make_search, point, record, run_base
from trials.records.trial_dir import Ending, Origin, TrialDir, TrialRecord, read_trial
from trials.state import TrialState

MEMORY = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
SLOTS, TRIALS, FULL_TOKENS, TOKENS_PER_SECOND = 2, 6, 900, 100.0
LOSSES = st.sampled_from([0.8, 1.5, 2.0, 2.9, 3.5])
BAD = (TrialState.DIVERGED, TrialState.OUT_OF_MEMORY, TrialState.FAILED)
RUNS = precondition(lambda self: bool(self.running))


class Searches(RuleBasedStateMachine):
    """A model of a search (what runs, its evaluations, what is over) beside the controller that is tested."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY))
        recipe = load_recipe("demo", [*SMALL, f"search.trials={TRIALS}"], environ={}).recipe
        self.search = make_search(recipe, seconds=400, reserve_seconds=60)
        self.run = make_run(self.folder / "run", self.search)
        self.clock = Clock()
        self.running: dict[str, TrialRequest] = {}
        self.seen: dict[str, list[float]] = {}
        """Losses of every trial that was handed out, as they are on disk."""
        self.tokens: dict[str, int] = {}
        self.over: set[str] = set()
        self.interrupted = False

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @initialize(is_measured=st.sampled_from([True, True, False]))
    def begin(self, *, is_measured: bool) -> None:
        self.start()
        if is_measured:
            run_base(self.run, self.controller)
            self.seen = {"0000": [BASE_LOSS]}

    def start(self) -> None:
        self.controller = SearchController(self.run, self.run.read_search(), SLOTS, self.hear, now=self.clock)

    def hear(self, event: Event) -> None:
        """All that is said is on disk before."""
        if isinstance(event, TrialStarted):
            assert (self.on_disk(event.trial_id) / "config.json").is_file()
        if isinstance(event, TrialEvaluated):
            assert read_trial(self.on_disk(event.trial_id)).points[-1].eval_loss == event.point.eval_loss
        if isinstance(event, TrialEnded):
            assert event.trial_id == PROBE_ID or (self.on_disk(event.trial_id) / "ending.json").is_file()
            assert event.trial_id not in self.running or event.trial_id in self.leaving
            self.over.add(event.trial_id)

    leaving: frozenset[str] = frozenset()

    def on_disk(self, trial_id: str) -> Path:
        return self.controller._calibration.folder(trial_id) if trial_id == PROBE_ID else self.run.trial(trial_id)

    @property
    def time_is_up(self) -> bool:
        return self.controller.search.deadline.training_seconds_left(self.clock()) <= 0

    @rule()
    def ask(self) -> None:
        self.hand_out()

    @rule()
    def fill_all_slots(self) -> None:
        while self.hand_out():
            pass

    def hand_out(self) -> bool:
        answer = self.controller.suggest()
        self.controller.on_idle()
        if not isinstance(answer, TrialRequest):
            assert answer == "over" or self.running, "it waits for nothing"
            return False
        trial_id = answer.trial_id
        assert not self.interrupted
        assert not self.time_is_up
        assert len(self.running) < SLOTS
        assert trial_id not in self.running
        assert trial_id not in self.over
        assert (answer.folder / "config.json").is_file()
        assert answer.resumes <= (trial_id in self.seen)
        self.running[trial_id] = answer
        losses = [p.eval_loss for p in read_trial(answer.folder).points]
        before = self.seen.get(trial_id, [])
        assert losses == before[: len(losses)], "it goes on from what it did, or from a part of it"
        self.seen[trial_id] = losses
        self.tokens[trial_id] = max((p.tokens_seen for p in read_trial(answer.folder).points), default=0)
        trained = [name for name in self.seen if name.isdecimal() and name != "0000"]
        assert len(trained) <= TRIALS
        assert sorted(trained) == [f"{n:04d}" for n in range(1, len(trained) + 1)]
        return True

    @RUNS
    @rule(data=st.data(), loss=LOSSES, share=st.sampled_from([0.1, 0.4, 1.0]), saves=st.booleans())
    def evaluate(self, data: st.DataObject, loss: float, share: float, *, saves: bool) -> None:
        request = self.running[data.draw(st.sampled_from(sorted(self.running)))]
        trial_id, is_base = request.trial_id, request.origin is Origin.BASE
        if is_base and self.seen[trial_id]:
            return
        step = 0 if is_base else 100 * max(1, round(share * FULL_TOKENS / 100))
        tokens = min(FULL_TOKENS, self.tokens[trial_id] + step)
        if tokens == self.tokens[trial_id] and not is_base:
            return
        seconds = (tokens - self.tokens[trial_id]) / TOKENS_PER_SECOND
        self.clock.forward(seconds)
        best = min([loss, *self.seen[trial_id]])
        found = replace(
            point(loss, tokens, best=best, seconds=tokens / TOKENS_PER_SECOND), tokens_per_second=TOKENS_PER_SECOND
        )
        record(TrialDir(request.folder), found, base=is_base)
        self.seen[trial_id].append(loss)
        self.tokens[trial_id] = tokens
        goes_on = self.controller.on_result(trial_id, found)
        self.controller.on_idle()
        assert goes_on or not is_base
        assert goes_on or tokens < FULL_TOKENS, "a complete trial is never stopped"
        if (saves or not goes_on) and not is_base:
            write_checkpoint(request.folder, found.step)
        if not goes_on:
            self.leave(trial_id)

    @RUNS
    @rule(data=st.data(), kind=st.sampled_from([TrialState.FINISHED, TrialState.FINISHED, *BAD]))
    def end(self, data: st.DataObject, kind: TrialState) -> None:
        trial_id = data.draw(st.sampled_from(sorted(self.running)))
        if kind is TrialState.FINISHED and not self.seen[trial_id]:
            return
        TrialDir(self.on_disk(trial_id)).end(Ending(kind, "made up"))
        self.leave(trial_id)
        assert trial_id in self.over or trial_id == "0000"

    @RUNS
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        self.leave(data.draw(st.sampled_from(sorted(self.running))), died=True)

    def leave(self, trial_id: str, *, died: bool = False) -> None:
        self.leaving = frozenset([trial_id])
        self.controller.on_trial_end(trial_id, DIED if died else TrialExit())
        self.controller.on_idle()
        self.leaving = frozenset()
        del self.running[trial_id]

    @rule(seconds=st.sampled_from([1.0, 30.0, 30.0, 200.0]))
    def wait(self, seconds: float) -> None:
        self.clock.forward(seconds)
        self.controller.on_idle()

    @rule(luck=st.integers(0, 5))
    def interrupt(self, luck: int) -> None:
        if luck == 0:
            self.controller.interrupt()
            self.interrupted = True
            assert self.controller.should_stop

    @rule()
    def begin_again_after_a_crash(self) -> None:
        before = {found.id: (found.points, found.ending, found.config) for found in self.run.records()}
        paused = self.views()
        self.running.clear()
        self.interrupted = False
        self.start()
        self.controller.on_idle()
        assert {found.id: (found.points, found.ending, found.config) for found in self.run.records()} == before
        assert self.views() == paused

    def views(self) -> dict[str, tuple[object, ...]]:
        """What the controller knows of every trained trial."""
        members = self.controller._table
        return {m.trial_id: (m.origin, m.name, m.config, tuple(m.points), m.ending) for m in members}

    @invariant()
    def what_is_known_is_on_disk(self) -> None:
        records: dict[str, TrialRecord] = {found.id: found for found in self.run.records()}
        for trial_id in self.over - {PROBE_ID}:
            assert records[trial_id].ending is not None, trial_id
        for trial_id, losses in self.seen.items():
            if trial_id in records:
                assert [p.eval_loss for p in records[trial_id].points] == losses, trial_id
        assert set(self.controller._running) == set(self.running)


Searches.TestCase.settings = settings(
    max_examples=settings.default.max_examples // 5, stateful_step_count=30, phases=[Phase.explicit, Phase.generate]
)
TestSearches = Searches.TestCase
