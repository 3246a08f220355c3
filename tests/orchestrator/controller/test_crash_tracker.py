from orchestrator.controller.crash_tracker import MOST_DEATHS, CrashTracker


def test_nobody_is_suspected_at_first() -> None:
    assert CrashTracker().next([]) is None


def test_they_go_on_one_at_a_time_in_the_order_of_their_deaths() -> None:
    suspects = CrashTracker()
    for trial_id in ("0003", "0001", "0002"):
        assert not suspects.record_crash(trial_id)
    assert suspects.next(["0007"]) == "0003"
    assert suspects.next(["0007", "0003"]) is None
    suspects.clear("0003")
    assert suspects.next(["0003"]) == "0001"


def test_dying_again_and_again_is_a_trial_s_own_doing() -> None:
    suspects = CrashTracker()
    assert [suspects.record_crash("0001") for _ in range(MOST_DEATHS)] == [False] * (MOST_DEATHS - 1) + [True]


def test_an_evaluation_clears_it() -> None:
    suspects = CrashTracker()
    for _ in range(2 * MOST_DEATHS):
        assert not suspects.record_crash("0001")
        suspects.clear("0001")
    assert suspects.next([]) is None
