from orchestrator.controller.crash_tracker import MOST_DEATHS, CrashTracker


def test_nobody_is_suspected_at_first() -> None:
    assert CrashTracker().next([]) is None


def test_they_go_on_one_at_a_time_in_the_order_of_their_deaths() -> None:
    crash_tracker = CrashTracker()
    for trial_id in ("0003", "0001", "0002"):
        assert not crash_tracker.record_crash(trial_id)
    assert crash_tracker.next(["0007"]) == "0003"
    assert crash_tracker.next(["0007", "0003"]) is None
    crash_tracker.clear("0003")
    assert crash_tracker.next(["0003"]) == "0001"


def test_dying_again_and_again_is_a_trial_s_own_doing() -> None:
    crash_tracker = CrashTracker()
    assert [crash_tracker.record_crash("0001") for _ in range(MOST_DEATHS)] == [False] * (MOST_DEATHS - 1) + [True]


def test_an_evaluation_clears_it() -> None:
    crash_tracker = CrashTracker()
    for _ in range(2 * MOST_DEATHS):
        assert not crash_tracker.record_crash("0001")
        crash_tracker.clear("0001")
    assert crash_tracker.next([]) is None
