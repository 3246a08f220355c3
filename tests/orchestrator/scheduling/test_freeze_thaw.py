import time
from dataclasses import replace

import numpy as np
import pytest
import scipy
from scipy.stats import norm

from orchestrator.scheduling.types import BudgetState, Idle, Resume, StartNew
from orchestrator.surrogate.model import log_expected_improvement
from orchestrator.surrogate.trial_view import TrialView
from search_spaces.schema import Range
from tests.support.policies import PolicyWithProposer
from trials.state import TrialState

SPACE = {"learning_rate": Range(low=1e-5, high=1e-2, log=True)}
BUDGET = BudgetState(
    seconds_left=1000.0, seconds=1600.0, slots=1, seconds_full=100.0, evaluation_point=1 / 9, seconds_start=1.0
)


def view(
    trial_id: str, rate: float, losses: tuple[float, ...], state: TrialState = TrialState.PAUSED, is_start: bool = False
) -> TrialView:
    points = tuple(((k + 1) / 9, loss) for k, loss in enumerate(losses))
    return TrialView(trial_id, {"learning_rate": rate}, points, 1.0, state, is_start, 0.0)


def curve(end: float) -> tuple[float, ...]:
    return tuple(end + 2.0 * np.exp(-k / 2) for k in range(9))


def a_budget() -> PolicyWithProposer:
    """Eight whole trials with a valley at a rate of 3e-4."""
    scheduler = PolicyWithProposer(SPACE)
    for number, rate in enumerate(10 ** np.linspace(-5, -2, 8)):
        scheduler.update(view(f"{number}", float(rate), curve(1.0 + (np.log10(rate) + 3.5) ** 2), TrialState.FINISHED))
    return scheduler


EARLY = replace(BUDGET, seconds_left=1500.0)
"""Less than half of the search is over."""


def test_a_starting_point_pauses_early_in_the_night_and_is_completed_in_the_second_half() -> None:
    scheduler = a_budget()
    scheduler.update(view("usual", 1e-5, (9.0,), TrialState.RUNNING, is_start=True))
    scheduler.update(view("other", 1e-5, (9.0,), TrialState.RUNNING))
    assert not scheduler.should_continue("usual", EARLY).goes_on
    assert scheduler.should_continue("usual", replace(EARLY, seconds_left=700.0)).goes_on
    assert not scheduler.should_continue("other", BUDGET).goes_on


def test_a_paused_starting_point_has_the_next_slot_once_it_is_due_and_is_never_given_up() -> None:
    scheduler = a_budget()
    scheduler.update(view("usual", 1e-5, (9.0,), is_start=True))
    scheduler.update(view("good", 3e-4, curve(0.7)[:4]))
    assert scheduler.choose_next(EARLY) == Resume("good")
    assert list(scheduler.evictable(0, EARLY)) == ["good"]
    late = replace(EARLY, seconds_left=700.0)
    assert scheduler.choose_next(late) == Resume("usual")
    scheduler.update(view("good", 3e-4, curve(0.7)[:5], TrialState.RUNNING))
    assert not scheduler.should_continue("good", late).goes_on
    scheduler.update(view("usual", 1e-5, (9.0,), TrialState.RUNNING, is_start=True))
    assert scheduler.should_continue("good", late).goes_on


def test_in_a_night_of_little_more_than_a_trial_the_starting_point_runs_to_its_end_at_once() -> None:
    scheduler = a_budget()
    scheduler.update(view("usual", 1e-5, (9.0,), TrialState.RUNNING, is_start=True))
    assert scheduler.should_continue("usual", replace(BUDGET, seconds_left=190.0, seconds=200.0)).goes_on


def test_several_starting_points_are_begun_in_time_for_all_of_them() -> None:
    scheduler = a_budget()
    for number in range(9):
        scheduler.update(view(f"start {number}", 1e-5, (9.0,), is_start=True))
    assert isinstance(scheduler.choose_next(EARLY), StartNew)
    assert scheduler.choose_next(replace(EARLY, seconds_left=900.0)) == Resume("start 0")
    assert isinstance(scheduler.choose_next(replace(EARLY, seconds_left=900.0, slots=3)), StartNew)


def test_the_promising_one_of_two_goes_on_and_is_resumed() -> None:
    scheduler = a_budget()
    good, bad = curve(0.7)[:4], curve(2.5)[:4]
    scheduler.update(view("bad", 2e-5, bad, TrialState.RUNNING))
    scheduler.update(view("good", 3e-4, good, TrialState.RUNNING))
    assert scheduler.should_continue("good", BUDGET).goes_on
    assert not scheduler.should_continue("bad", BUDGET).goes_on
    for name, rate, losses in (("bad", 2e-5, bad), ("good", 3e-4, good)):
        scheduler.update(view(name, rate, losses))
    assert scheduler.choose_next(BUDGET) == Resume("good")
    assert list(scheduler.evictable(1, BUDGET)) == ["bad"]


def test_the_same_is_said_after_a_restart() -> None:
    policies = [a_budget(), a_budget()]
    for scheduler in policies:
        scheduler.update(view("a", 1e-4, (2.0, 1.5)))
        scheduler.update(view("b", 1e-3, (2.1, 1.4)))
    assert policies[0].choose_next(BUDGET) == policies[1].choose_next(BUDGET)
    assert policies[0].propose(3) == policies[1].propose(3)


def test_nothing_starts_when_the_time_is_over_or_nothing_may() -> None:
    scheduler = a_budget()
    assert isinstance(scheduler.choose_next(replace(BUDGET, seconds_left=0.5)), Idle)
    assert isinstance(scheduler.choose_next(replace(BUDGET, may_start=False)), Idle)
    assert isinstance(scheduler.choose_next(BUDGET), StartNew)
    scheduler.update(view("a", 1e-5, (9.0,)))
    assert scheduler.choose_next(replace(BUDGET, may_start=False)) == Resume("a")


def test_an_empty_night_begins_and_a_trial_without_a_loss_is_resumed() -> None:
    scheduler = PolicyWithProposer(SPACE)
    assert isinstance(scheduler.choose_next(BUDGET), StartNew)
    scheduler.update(view("cut off", 1e-4, ()))
    assert scheduler.choose_next(replace(BUDGET, may_start=False)) == Resume("cut off")
    assert scheduler.forecast("cut off") is None


def test_the_last_that_can_be_completed_is_where_none_is() -> None:
    scheduler = PolicyWithProposer(SPACE)
    scheduler.surrogate.curve_model.base_loss = 3.0
    scheduler.update(view("best", 3e-4, (1.0, 0.9, 0.8)))
    scheduler.update(view("far", 3e-5, (2.0, 1.9, 1.8, 1.7, 1.6)))
    scheduler.update(view("new", 1e-3, (0.95,), TrialState.RUNNING))
    late = replace(BUDGET, seconds_left=72.0)
    verdict = scheduler.should_continue("new", late)
    assert not verdict.goes_on
    assert "best has to be completed" in verdict.reason
    scheduler.update(view("new", 1e-3, (0.95,)))
    assert scheduler.choose_next(late) == Resume("best")


def test_a_forecast_is_in_nats_and_certain_at_the_end() -> None:
    scheduler = a_budget()
    scheduler.update(view("half", 3e-4, curve(1.0)[:4]))
    half, whole = scheduler.forecast("half"), scheduler.forecast("3")
    assert half is not None
    assert whole is not None
    assert half.mean == pytest.approx(curve(1.0)[-1], rel=0.2)
    assert whole.deviation < 0.5 * half.deviation


def test_the_expected_improvement_of_a_certain_gain_is_the_gain() -> None:
    found = np.exp(log_expected_improvement(0.0, np.array([-1.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0])))
    assert found == pytest.approx([1.0, 1 / np.sqrt(2 * np.pi), 0.0])


def test_small_expected_improvements_are_told_apart_and_continuous() -> None:
    z = np.array([0.5, -0.999, -1.001, -5.0, -30.0, -1e3, -9.99e3, -1.001e4, -1e6])
    found = log_expected_improvement(0.0, -z, np.ones(len(z)))
    assert np.all(np.isfinite(found))
    assert np.all(np.diff(found) < 0)
    exact = [scipy.integrate.quad(lambda u, z=each: u * norm.pdf(u - z), 0, np.inf)[0] for each in z[:4]]
    assert np.exp(found[:4]) == pytest.approx(exact, rel=1e-6)
    assert found[6] - found[7] == pytest.approx(0.5 * (1.001e4**2 - 9.99e3**2), rel=1e-4)


@pytest.mark.parametrize("known", [10_000])
def test_decisions_are_quick_however_many_trials_are_known(known: int) -> None:
    random = np.random.default_rng(0)
    scheduler = PolicyWithProposer(SPACE)
    budget = replace(BUDGET, slots=1000)
    for number in range(known):
        losses = tuple(1.0 + 2.0 / np.arange(1, 1 + random.integers(1, 10)) + random.random())
        scheduler.update(view(f"{number}", float(10 ** random.uniform(-5, -2)), losses))
    scheduler.choose_next(budget)
    taken = []
    for number in range(1000):
        scheduler.update(view(f"{number}", 1e-4, (3.0, 2.0), TrialState.RUNNING))
        begun = time.perf_counter()
        scheduler.should_continue(f"{number}", budget)
        taken.append(time.perf_counter() - begun)
        scheduler.update(view(f"{number}", 1e-4, (3.0, 2.0)))
        begun = time.perf_counter()
        scheduler.choose_next(budget)
        taken.append(time.perf_counter() - begun)
    # Five times what it takes on an idle core: other tests run beside this one.
    assert np.quantile(taken, 0.98) < 0.025
