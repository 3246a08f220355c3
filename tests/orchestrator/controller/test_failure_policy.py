from datetime import timedelta

import pytest

from orchestrator.controller.failure_policy import (
    DIED,
    MOST_DEATHS,
    MOST_PROXY_ERRORS,
    QUIETLY,
    ExitKind,
    FailurePolicy,
    TrialExit,
)
from tests.support.fake_search import START
from trials.state import TrialState

NO_THREADS = TrialExit(ExitKind.PROXY_ERROR, "OSError: no threads left")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def policy(said: list[str]) -> FailurePolicy:
    return FailurePolicy(said.append)


def test_without_crashes_nothing_is_retried(policy: FailurePolicy) -> None:
    assert policy.record_exit("0001", QUIETLY, START) is None
    assert policy.next_crashed([]) is None


def test_crashed_trials_are_retried_one_at_a_time(policy: FailurePolicy) -> None:
    for trial_id in ("0003", "0001"):
        assert policy.record_exit(trial_id, DIED, START) is None
    assert policy.next_crashed(["0007"]) == "0003"
    assert policy.next_crashed(["0007", "0003"]) is None
    policy.record_result("0003")
    assert policy.next_crashed(["0003"]) == "0001"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("", "its process ended without an error message 3 times in a row"),
        ("ValueError: no", "ValueError: no, 3 times"),
    ],
)
def test_a_trial_that_crashes_again_and_again_has_failed(policy: FailurePolicy, error: str, reason: str) -> None:
    left = TrialExit(ExitKind.DEATH, error)
    endings = [policy.record_exit("0001", left, START) for _ in range(MOST_DEATHS)]
    assert endings[:-1] == [None] * (MOST_DEATHS - 1)
    assert endings[-1] is not None
    assert endings[-1].kind is TrialState.FAILED
    assert endings[-1].reason.startswith(reason)


def test_an_evaluation_in_between_counts_again_from_zero(policy: FailurePolicy) -> None:
    for _ in range(2 * MOST_DEATHS):
        assert policy.record_exit("0001", DIED, START) is None
        policy.record_result("0001")
    assert policy.next_crashed([]) is None


def test_the_wait_doubles_with_every_proxy_error_until_an_evaluation(policy: FailurePolicy) -> None:
    for seconds in (1, 2, 4):
        policy.record_exit("0001", NO_THREADS, START)
        assert policy.must_wait(START + timedelta(seconds=seconds - 0.1))
        assert not policy.must_wait(START + timedelta(seconds=seconds))
    policy.record_result("0002")
    assert not policy.must_wait(START)


def test_a_proxy_error_is_said_once_and_plainly(policy: FailurePolicy, said: list[str]) -> None:
    for _ in range(3):
        policy.record_exit("0001", NO_THREADS, START)
    (text,) = said
    assert text.startswith("the reporting process of trial 0001 failed, which isn't the trial's fault")


def test_a_trial_alone_with_proxy_errors_is_pruned(policy: FailurePolicy) -> None:
    for _ in range(MOST_PROXY_ERRORS - 1):
        assert policy.record_exit("0001", NO_THREADS, START) is None
        policy.record_result("0002")
    ending = policy.record_exit("0001", NO_THREADS, START)
    assert ending is not None
    assert ending.kind is TrialState.PRUNED
    assert policy.gave_up is None


def test_proxy_errors_of_all_trials_end_the_search_and_no_trial(policy: FailurePolicy, said: list[str]) -> None:
    assert [policy.record_exit("0001", NO_THREADS, START) for _ in range(MOST_PROXY_ERRORS)] == [None] * 6
    assert policy.gave_up is not None
    assert "the reporting processes of trials failed 6 times in a row" in policy.gave_up
    policy.give_up("something else")
    assert said[-1] == f"{policy.gave_up}. Nothing more is started"
