"""Two of the first trials are never paused: those with the slowest and the fastest learning rate."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.scheduling.types import Resume
from search_spaces.schema import Range
from tests.support.policies import PolicyWithProposer
from tests.support.views import BUDGET, view
from trials.state import TrialState

SPACE = {"learning_rate": Range(low=1e-5, high=1e-2, log=True)}
ROOMY = replace(BUDGET, seconds=800.0, seconds_left=700.0)
RATES = (1e-4, 1e-5, 1e-3, 3e-4)
REASON = "its whole curve shows what early losses are worth"


def policy() -> PolicyWithProposer:
    """Four trials, each worse than the one before."""
    found = PolicyWithProposer(SPACE)
    for number, rate in enumerate(RATES, 1):
        found.update(view(number, float(number), rate=rate, state=TrialState.PAUSED))
    return found


def goes_on(found: PolicyWithProposer, number: int, budget: object = ROOMY) -> bool:
    found.update(view(number, float(number), rate=RATES[number - 1]))
    decision = found.should_continue(f"{number:04d}", budget)  # type: ignore[arg-type]
    return decision.goes_on and decision.reason == REASON


def test_the_slowest_and_the_fastest_of_the_first_four_go_on() -> None:
    assert [goes_on(policy(), number) for number in (1, 2, 3, 4)] == [False, True, True, False]


def test_later_trials_are_compared_like_all_others() -> None:
    found = policy()
    found.update(view(5, 9.0, rate=1e-2))
    assert not found.should_continue("0005", ROOMY).goes_on


def test_in_a_search_without_time_for_eight_none_is_kept() -> None:
    short = replace(ROOMY, seconds=799.0)
    assert not any(goes_on(policy(), number, short) for number in (1, 2, 3, 4))
    assert goes_on(policy(), 2, replace(short, slots=2))


def test_one_that_was_cut_off_is_resumed_before_anything_else() -> None:
    found = policy()
    found.update(view(2, 2.0, rate=1e-5))
    found.update(view(3, 3.0, 2.9, rate=1e-3, state=TrialState.PAUSED))
    assert found.choose_next(ROOMY) == Resume("0003")


def test_what_diverged_is_no_evidence_and_the_next_one_is() -> None:
    found = policy()
    found.update(view(3, 3.0, rate=1e-3, state=TrialState.DIVERGED))
    assert goes_on(found, 4)
    found.update(view(4, *[1.0] * 9, rate=3e-4, state=TrialState.FINISHED))
    assert not goes_on(found, 1)


def test_what_cannot_be_completed_in_time_is_compared_like_all_others() -> None:
    found = policy()
    assert not goes_on(found, 2, replace(ROOMY, seconds_left=80.0))
