"""The end of a search, by the real controller: its best configuration is trained anew for as long as fits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from benchmarks.simulator.annealing import Lengths
from benchmarks.simulator.landscapes import Curve
from benchmarks.simulator.simulator import Accident, Machine, SimulatedSearch
from orchestrator.controller.events import Event, TrialStarted
from orchestrator.controller.new_trials import FinalTrials
from orchestrator.planning.trial_length import final_seconds
from orchestrator.report.data import read_report_data
from orchestrator.report.headline import headline
from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Placement
from search_spaces.loader import load_recipe
from tests.support.fake_search import make_run, make_search
from trials.config import LENGTHS, Hyperparameters, TrialConfig
from trials.records.trial_dir import Origin, TrialRecord
from trials.schedule import full_tokens
from trials.state import TrialState

RECIPE_TOKENS = 100_000
FULL_SECONDS = 300.0
MACHINE = Machine(full_trial=FULL_SECONDS, base=10.0, start=0.5, restart=20.0)
RESERVE = 60.0
ONE = Placement(engines=1, slots=1)
LANDSCAPE = Lengths(2)


class Played:
    """A simulated search whose budget is so many trials as long as the recipe says, on all slots together."""

    def __init__(
        self,
        path: Path,
        *settings: str,
        budget: float = 3.0,
        placement: Placement = ONE,
        accidents: Sequence[Accident] = (),
        landscape: Lengths = LANDSCAPE,
        shares: bool = False,
        probe_speed: float = 1.0,
    ) -> None:
        length = [f"train_tokens={RECIPE_TOKENS}", "rows_seen=null", "epochs=null", "search.trials=null"]
        recipe = load_recipe("demo", [*length, *settings], environ={}).recipe
        self.seconds = budget * FULL_SECONDS / placement.engines
        search = make_search(recipe, self.seconds + RESERVE, reserve_seconds=RESERVE)
        # `make_search` begins in the middle of its time; this one at its beginning.
        deadline = replace(search.deadline, started=search.deadline.ends - timedelta(seconds=self.seconds + RESERVE))
        rows = {"train": {"rows": 900, "tokens": RECIPE_TOKENS}}
        search = replace(search, deadline=deadline, full_tokens=RECIPE_TOKENS, data=rows, placement=placement)
        self.run: RunDir = make_run(path, search)
        self.events: list[tuple[float, Event]] = []
        beside = placement.slots_per_worker
        machine = replace(MACHINE, slots_per_worker=beside, shares=shares, probe_speed=probe_speed)
        if shares:  # a full trial takes so long alone
            machine = replace(machine, full_trial=beside * FULL_SECONDS)
        self.simulated = SimulatedSearch(self.run, landscape, machine, placement.slots, accidents, listener=self._note)
        self.simulated.play()
        self.records = [record for record in self.run.records() if record.origin is not Origin.BASE]
        self.final = [record for record in self.records if record.origin is Origin.FINAL]
        self.others = [record for record in self.records if record.origin is not Origin.FINAL]

    def _note(self, event: Event) -> None:
        self.events.append((self.simulated.seconds if hasattr(self, "simulated") else 0.0, event))

    def started(self, which: Callable[[TrialStarted], bool] = lambda _: True) -> list[tuple[float, TrialStarted]]:
        return [(at, each) for at, each in self.events if isinstance(each, TrialStarted) and which(each)]


def without_length(config: TrialConfig) -> dict[str, object]:
    """Return what a final trial has in common with the trial whose configuration it has."""
    own = (*LENGTHS, "learning_rate", "scheduler", "adapter_average", "inverse_sqrt_steps")
    return {name: value for name, value in config.hyperparameters.model_dump().items() if name not in own}


def best_of(records: Sequence[TrialRecord]) -> TrialRecord:
    return min(records, key=lambda record: record.best_eval_loss or math.inf)


def tokens_of(played: Played, record: TrialRecord) -> int:
    epoch = played.run.read_search().epoch
    assert epoch is not None
    return full_tokens(record.config.hyperparameters, epoch)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    return Played(tmp_path_factory.mktemp("played") / "run")


def test_the_best_configuration_is_trained_anew_in_the_last_half(played: Played) -> None:
    (final,) = played.final
    source = next(record for record in played.others if final.name == f"{record.id} for longer")
    assert without_length(final.config) == without_length(source.config)
    # The one that looks best, which needn't be complete.
    assert (source.best_eval_loss or math.inf) < (best_of(played.others).best_eval_loss or math.inf) + 0.05
    ((at, _),) = played.started(lambda event: event.origin is Origin.FINAL)
    assert 0.45 * played.seconds < at < 0.6 * played.seconds
    assert final.points[0].tokens_seen <= tokens_of(played, final) / 8  # from its beginning


def test_it_is_trained_until_the_time_is_over(played: Played) -> None:
    (final,) = played.final
    assert final.state is TrialState.FINISHED
    full = played.run.read_search().full_tokens
    # Six of the search's fit into the other half. It was planned for more, so that no time is left.
    assert 5.7 * full < final.tokens_seen < 6 * full < tokens_of(played, final)
    assert played.simulated.seconds == pytest.approx(played.seconds, abs=1.0)
    assert final.ending is not None
    assert final.ending.reason == "trained until the time was over"


def test_its_schedule_has_no_end_and_its_average_is_kept(played: Played) -> None:
    (final,) = played.final
    assert final.config.hyperparameters.is_open_ended
    assert final.config.hyperparameters.adapter_average == 0.2
    assert {record.config.hyperparameters.scheduler for record in played.others} == {"cosine"}


def test_its_rate_is_lower_by_a_power_of_its_length(played: Played) -> None:
    (final,) = played.final
    source = next(record for record in played.others if final.name == f"{record.id} for longer")
    times = final.tokens_seen / tokens_of(played, source)
    rates = [record.config.hyperparameters.learning_rate for record in (final, source)]
    assert rates[0] / rates[1] == pytest.approx(times**-0.32, rel=0.02)


def test_its_rate_stays_up_for_a_share_of_its_steps(played: Played, tmp_path: Path) -> None:
    (final,) = played.final
    rows = tokens_of(played, final) * 900 / RECIPE_TOKENS
    steps = rows / final.config.hyperparameters.effective_batch
    assert steps < 400
    assert final.config.hyperparameters.inverse_sqrt_steps == 100  # the fewest
    many = Played(tmp_path / "run", "space.effective_batch=null", "hyperparameters.effective_batch=1")
    (final,) = many.final
    steps = tokens_of(many, final) * 900 / RECIPE_TOKENS
    assert final.config.hyperparameters.inverse_sqrt_steps == pytest.approx(0.25 * steps / 1.3, rel=0.03)


def test_what_the_search_learns_from_is_of_one_length(played: Played) -> None:
    surrogate = played.simulated.controller._surrogate
    assert set(surrogate.views) == {record.id for record in played.others}


def test_the_report_says_that_the_winner_was_trained_for_longer(played: Played) -> None:
    data = read_report_data(played.run)
    (final,) = played.final
    assert data.best is not None
    assert data.best.trial.id == final.id
    start = next(record for record in played.others if record.origin is Origin.START)
    longer = f"which was trained for {start.tokens_seen:,} tokens and the winner for {final.tokens_seen:,}"
    assert longer in headline(data)
    assert final.id not in {record.id for record in data.compared}


def test_with_a_share_of_0_there_is_none(tmp_path: Path) -> None:
    played = Played(tmp_path / "run", "search.final_share=0", budget=1.5)
    assert played.final == []
    assert played.started()[-1][0] > 0.7 * played.seconds


@pytest.mark.parametrize("kind", ["trial", "driver"])
def test_one_that_is_cut_off_goes_on_from_its_checkpoint(tmp_path: Path, kind: str) -> None:
    played = Played(tmp_path / "run", accidents=[Accident(0.8 * 3 * FULL_SECONDS, kind)])
    (final,) = played.final
    assert final.points[-1].tokens_seen > 0.5 * tokens_of(played, final)
    steps = [point.step for point in final.points]
    assert steps == sorted(set(steps))
    assert len(played.started(lambda event: event.trial_id == final.id)) == 2
    assert played.started(lambda event: event.trial_id == final.id)[-1][1].tokens_seen > 0


def test_where_nothing_else_is_left_to_try_it_begins_at_once(tmp_path: Path) -> None:
    played = Played(tmp_path / "run", "search.trials=3", budget=20.0)
    assert len(played.others) == 3
    at = min(at for at, _ in played.started(lambda event: event.origin is Origin.FINAL))
    assert at < 0.2 * played.seconds


def test_one_whose_loss_falls_has_all_the_time_for_final_trials(tmp_path: Path) -> None:
    played = Played(tmp_path / "run", "search.trials=3", budget=20.0)
    (final,) = played.final
    assert tokens_of(played, final) == pytest.approx(1.3 * 9 * RECIPE_TOKENS, rel=0.05)
    assert final.state is TrialState.FINISHED


def test_one_whose_loss_has_stopped_falling_ends_and_the_next_best_configuration_follows(tmp_path: Path) -> None:
    # This landscape overfits fast rates.
    played = Played(tmp_path / "run", "search.trials=3", "learning_rate=6e-3", "space.learning_rate=null", budget=20.0)
    first, second = played.final[:2]
    assert first.state is TrialState.EARLY_STOPPED
    assert first.ending is not None
    assert first.ending.reason == "its loss has stopped falling"
    assert first.points[-1].eval_loss > (first.best_eval_loss or math.inf)
    assert RECIPE_TOKENS < first.tokens_seen < 2 * RECIPE_TOKENS < tokens_of(played, first)
    assert second.name == f"{first.name}, at half the rate"
    assert without_length(second.config) == without_length(first.config)
    # What the first left is the second's.
    assert tokens_of(played, second) > 0.8 * tokens_of(played, first)


def test_every_worker_has_one_and_it_is_alone_there(tmp_path: Path) -> None:
    placement = Placement(engines=2, slots=8)
    played = Played(tmp_path / "run", budget=4.0, placement=placement, shares=True)
    assert len(played.final) == 2
    assert all(each.state is TrialState.FINISHED for each in played.final)
    one, other = played.final
    assert other.name == f"{one.name}, at half the rate"
    rates = [record.config.hyperparameters.learning_rate for record in (one, other)]
    assert rates[1] / rates[0] == pytest.approx(0.5, rel=0.1)
    first = min(at for at, _ in played.started(lambda event: event.origin is Origin.FINAL))
    assert not [event for at, event in played.started() if at > first and event.origin is not Origin.FINAL]


class LongerDiverges(Lengths):
    """Every trial diverges at once that is longer than the recipe says."""

    def curve(self, trial_id: str, hyperparameters: Hyperparameters) -> Curve:
        curve = super().curve(trial_id, hyperparameters)
        if (hyperparameters.train_tokens or 0) <= 1.1 * RECIPE_TOKENS:
            return curve
        return replace(curve, ending=TrialState.DIVERGED, ends_at=0.02)


def test_time_that_final_trials_leave_is_the_search_s(tmp_path: Path) -> None:
    played = Played(tmp_path / "run", "search.full_trials=null", budget=8.0, landscape=LongerDiverges(2))
    assert played.final
    assert all(each.state is TrialState.DIVERGED for each in played.final)
    last, _ = played.started(lambda event: event.origin is Origin.FINAL)[-1]
    assert [event for at, event in played.started() if at > last and event.origin is not Origin.FINAL]
    assert played.simulated.seconds > 0.9 * played.seconds


def test_seconds_are_kept_for_it_as_far_as_they_are_of_use() -> None:
    assert final_seconds(0.5, 1000, 0.01, 20.0) == 10.0
    assert final_seconds(0.5, 1000, 0.01, 1000.0) == 9 * 10.0
    assert final_seconds(0.5, 1000, 0.01, -5.0) == 0.0
    assert final_seconds(0.0, 1000, 0.01, 20.0) == 0.0


def test_none_begins_that_would_be_hardly_longer(played: Played) -> None:
    controller = played.simulated.controller
    late = FinalTrials(controller._budget, controller._table, controller.forecast, workers=2)
    assert late.next() is None  # the time is over


def next_final(played: Played, evaluated_share: float) -> TrialConfig:
    """Return the final trial that began next in the middle of a search, if its evaluations took this share so far."""
    controller = played.simulated.controller
    budget, table = controller._budget, [each for each in controller._table if each.origin is not Origin.FINAL]
    for trial in table:
        trial.points = [
            replace(point, tokens_per_second=point.tokens_seen / point.seconds / (1 - evaluated_share))
            for point in trial.points
        ]
    budget.now = lambda: budget.search.deadline.started + timedelta(seconds=0.5 * played.seconds)
    final = FinalTrials(budget, table, controller.forecast, workers=1).next()  # type: ignore[arg-type]  # it's read only
    assert final is not None
    return final.config


@pytest.mark.parametrize(("evaluated_share", "least", "most"), [(0.0, 52, 52), (0.2, 20, 52), (0.5, 12, 15)])
def test_its_evaluations_take_a_tenth_of_its_time(
    tmp_path: Path, evaluated_share: float, least: int, most: int
) -> None:
    played = Played(tmp_path / "run", "evaluations=9")
    config = next_final(played, evaluated_share)
    assert least <= config.evaluation.evaluations <= most
    # Training has what evaluations leave of the half, at a speed that is higher by their share.
    full = full_tokens(config.hyperparameters, played.run.read_search().epoch)  # type: ignore[arg-type]
    assert full == pytest.approx(1.3 * 0.9 * 3 * 0.5 * RECIPE_TOKENS / (1 - evaluated_share), rel=0.12)
