"""Trials at once: as many as get clearly more done than fewer, as measured with all slots at work."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.simulator.simulator import Accident
from orchestrator.controller.events import Notice, TrialEnded, TrialPaused, TrialStarted
from orchestrator.planning.placement import FEWEST_SLOTS
from orchestrator.state.search import Placement
from tests.orchestrator.controller.test_final_trials import FULL_SECONDS, Played
from trials.records.trial_dir import Origin

EIGHT = Placement(engines=1, slots=8)
ANY = ("search.concurrent_trials=null", "search.sampler=random", "search.scheduler=none")  # which decide fast


def most_at_once(played: Played, after: float, lost_at: float = 0.0) -> int:
    """Return the most trials that ran at once from a time on, in seconds since the search's beginning.

    The controller died at `lost_at`, and with it what ran: no event says so.
    """
    running: dict[str, float] = {}
    most = 0
    for at, event in played.events:
        if isinstance(event, TrialStarted):
            running[event.trial_id] = at
            most = max(most, sum(began >= lost_at for began in running.values())) if at > after else most
        if isinstance(event, TrialPaused | TrialEnded):
            running.pop(event.trial_id, None)
    return most


def notices(played: Played) -> list[tuple[float, str]]:
    said = [(at, event.text) for at, event in played.events if isinstance(event, Notice)]
    return [(at, text) for at, text in said if "trials at once get" in text]


def test_where_trials_beside_each_other_are_slower_by_their_number_two_run_at_once(tmp_path: Path) -> None:
    played = Played(tmp_path / "run", *ANY, budget=6.0, placement=EIGHT, shares=True)
    ((at, text),) = notices(played)
    assert text == "8 trials at once get 1.0 times as much done as one: from now on 2 run on a worker"
    assert most_at_once(played, after=0.0) == 8
    assert at < 0.2 * played.seconds  # at about the eighth evaluation
    assert most_at_once(played, after=at + 0.2 * played.seconds) == FEWEST_SLOTS
    search = played.run.read_search()
    assert (search.slots_of_use, search.placement) == (2, Placement(engines=1, slots=2))
    # Each is four times as fast from then on, which the search knows: its final trial takes the time that it should.
    (final,) = played.final
    planned = played.simulated.controller.search.tokens_of(final.config) / 1.3
    assert final.tokens_seen == pytest.approx(planned, rel=0.05)


def test_where_they_are_not_slower_all_slots_stay(tmp_path: Path) -> None:
    # A simulated worker's slots don't share its speed, but the probe is as fast as all of them together.
    played = Played(tmp_path / "run", *ANY, "search.trials=16", budget=1.0, placement=EIGHT, probe_speed=1 / 8)
    assert notices(played) == []
    assert played.run.read_search().slots_of_use == 8
    assert most_at_once(played, after=0.0) == 8


def test_a_number_that_the_recipe_asks_for_stays(tmp_path: Path) -> None:
    asked = "search.concurrent_trials=8"
    played = Played(tmp_path / "run", *ANY, asked, "search.trials=12", budget=2.0, placement=EIGHT, shares=True)
    assert notices(played) == []
    assert played.run.read_search().slots_of_use is None


def test_it_is_measured_once_and_holds_after_a_restart(tmp_path: Path) -> None:
    crash = Accident(0.3 * 3 * FULL_SECONDS, "driver")
    played = Played(tmp_path / "run", *ANY, budget=3.0, placement=EIGHT, shares=True, accidents=[crash])
    assert len(notices(played)) == 1
    assert most_at_once(played, after=crash.at + 1.0, lost_at=crash.at) == FEWEST_SLOTS
    assert [record for record in played.records if record.origin is Origin.FINAL]


@pytest.mark.parametrize(("engines", "slots"), [(1, 2), (4, 4)])
def test_where_two_or_fewer_run_on_a_worker_nothing_is_measured(tmp_path: Path, engines: int, slots: int) -> None:
    played = Played(
        tmp_path / "run", *ANY, "search.trials=12", budget=2.0, placement=Placement(engines, slots), shares=True
    )
    assert notices(played) == []
