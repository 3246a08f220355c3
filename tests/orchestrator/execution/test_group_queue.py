"""The queue of a group without Ray: proxy and ranks are threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as TookTooLong
from pathlib import Path
from typing import Any

import pytest

from orchestrator.controller.trial_request import TrialRequest
from orchestrator.execution import group_queue as queue_module
from orchestrator.execution.channel import Finished, LoggedMetrics
from orchestrator.execution.group_queue import GroupQueue
from tests.support.fake_search import point
from tests.support.waiting import wait_until
from trials.config import DataSettings, Hyperparameters, ModelSettings, TrialConfig
from trials.records.trial_dir import Origin

WAIT = 20
AT_ONCE = 0.3
OF_ITS_OWN = "Traceback (most recent call last):\n  ...\nValueError: no such row\n"
HEARD = (
    "Traceback (most recent call last):\n  ...\n"
    "trials.errors.PeerError: on another of the trial's GPUs: ValueError: no such row\n"
)


@pytest.fixture
def queue() -> Iterator[GroupQueue]:
    queue = GroupQueue(2)
    yield queue
    queue.close()


@pytest.fixture
def calls() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


def request(trial_id: str, segment: int = 1) -> TrialRequest:
    config = TrialConfig(
        model=ModelSettings(name="none"),
        data=DataSettings(train="", eval=""),
        hyperparameters=Hyperparameters(epochs=1.0),
        seed=1,
    )
    return TrialRequest(trial_id, Origin.PROPOSED, "proposed", config, Path("/none"), segment=str(segment))


def taken(queue: GroupQueue, number: int = 0) -> tuple[int, TrialRequest]:
    """The turn that both ranks are given."""
    first, second = queue.next_task(number), queue.next_task(number)
    assert first is not None
    assert first == second
    return first


def waits(future: Future[Any]) -> bool:
    try:
        future.result(AT_ONCE)
    except TookTooLong:
        return True
    return False


def end_by_both(queue: GroupQueue, number: int, *errors: str | None) -> None:
    for rank, error in enumerate(errors or (None, None)):
        queue.finish(number, rank, error)


def test_every_rank_takes_every_turn_in_order(queue: GroupQueue, calls: ThreadPoolExecutor) -> None:
    def serve(rank: int) -> list[str]:
        served, number = [], 0
        while (turn := queue.next_task(number)) is not None:
            number, given = turn
            served.append(given.trial_id)
            queue.finish(number, rank, None)
            number += 1
        return served

    ranks = [calls.submit(serve, rank) for rank in range(2)]
    for trial_id in ("0001", "0002", "0003"):
        queue.begin(request(trial_id))
    assert [queue.next_message(trial_id) for trial_id in ("0001", "0002", "0003")] == [Finished()] * 3
    assert all(waits(rank) for rank in ranks)  # for more
    queue.close()
    assert [rank.result(WAIT) for rank in ranks] == [["0001", "0002", "0003"]] * 2


def test_evaluations_are_answered_and_figures_are_not(queue: GroupQueue, calls: ThreadPoolExecutor) -> None:
    queue.begin(request("0001"))
    number, _ = taken(queue)
    queue.log(number, {"train/loss": 2.0})
    asked = calls.submit(queue.report, number, point(2.0, 100))
    assert queue.next_message("0001") == LoggedMetrics({"train/loss": 2.0})
    assert queue.next_message("0001") == point(2.0, 100)
    assert waits(asked)
    queue.resume("0001")
    assert asked.result(WAIT) is True


def test_a_turn_that_was_called_off_before_it_began_is_skipped(queue: GroupQueue) -> None:
    for trial_id in ("0001", "0002"):
        queue.begin(request(trial_id))
    queue.release("0001")
    assert taken(queue) == (1, request("0002"))
    assert queue.next_message("0001") == Finished()


def test_a_turn_that_one_rank_has_taken_is_given_to_the_other(queue: GroupQueue, calls: ThreadPoolExecutor) -> None:
    queue.begin(request("0001"))
    assert queue.next_task(0) == (0, request("0001"))
    released = calls.submit(queue.release, "0001")
    assert waits(released)
    assert queue.next_task(0) == (0, request("0001"))
    end_by_both(queue, 0)
    released.result(WAIT)


def test_a_trial_that_waits_for_its_word_is_told_to_stop(queue: GroupQueue, calls: ThreadPoolExecutor) -> None:
    queue.begin(request("0001"))
    number, _ = taken(queue)
    asked = calls.submit(queue.report, number, point(2.0, 100))
    assert queue.next_message("0001") == point(2.0, 100)
    released = calls.submit(queue.release, "0001")
    assert asked.result(WAIT) is False
    queue.wait_cancelled(number)
    assert waits(released)  # until nothing of it runs
    queue.finish(number, 0, None)
    assert waits(released)
    queue.finish(number, 1, None)
    released.result(WAIT)


def test_a_trial_at_work_hears_that_it_is_cancelled(queue: GroupQueue, calls: ThreadPoolExecutor) -> None:
    queue.begin(request("0001"))
    number, _ = taken(queue)
    called_off = calls.submit(queue.wait_cancelled, number)
    assert waits(called_off)
    released = calls.submit(queue.release, "0001")
    called_off.result(WAIT)
    assert queue.report(number, point(2.0, 100)) is False  # if it comes to an evaluation all the same
    end_by_both(queue, number)
    released.result(WAIT)


def test_what_asks_whether_it_is_cancelled_hears_of_the_end(queue: GroupQueue, calls: ThreadPoolExecutor) -> None:
    queue.begin(request("0001"))
    number, _ = taken(queue)
    called_off = calls.submit(queue.wait_cancelled, number)
    assert waits(called_off)
    end_by_both(queue, number)
    called_off.result(WAIT)


def test_a_finished_trial_is_released_at_once(queue: GroupQueue) -> None:
    queue.begin(request("0001"))
    number, _ = taken(queue)
    end_by_both(queue, number)
    queue.release("0001")
    queue.release("0001")
    queue.resume("0001")
    assert queue.next_message("0001") == Finished()


def test_a_trial_comes_again_while_its_earlier_turn_is_on_its_way_out(
    queue: GroupQueue, calls: ThreadPoolExecutor
) -> None:
    queue.begin(request("0001", segment=1))
    number, _ = taken(queue)
    called_off = calls.submit(queue.wait_cancelled, number)
    queue.begin(request("0001", segment=2))
    called_off.result(WAIT)
    again = calls.submit(queue.next_task, number + 1)
    end_by_both(queue, number, OF_ITS_OWN, HEARD)
    assert again.result(WAIT) == (1, request("0001", segment=2))
    asked = calls.submit(queue.report, 1, point(2.0, 100))
    assert queue.next_message("0001") == point(2.0, 100)  # nothing of what the earlier one said
    queue.resume("0001")
    assert asked.result(WAIT) is True


@pytest.mark.parametrize("errors", [(OF_ITS_OWN, HEARD), (HEARD, OF_ITS_OWN)], ids=["first", "second"])
def test_the_rank_s_own_error_is_said_and_not_what_the_other_heard(queue: GroupQueue, errors: tuple[str, str]) -> None:
    queue.begin(request("0001"))
    number, _ = taken(queue)
    end_by_both(queue, number, *errors)
    assert queue.next_message("0001") == Finished(OF_ITS_OWN)


def test_what_fails_on_one_alone_is_an_error(queue: GroupQueue) -> None:
    queue.begin(request("0001"))
    number, _ = taken(queue)
    end_by_both(queue, number, None, OF_ITS_OWN)
    assert queue.next_message("0001") == Finished(OF_ITS_OWN)


def test_a_rank_that_fails_alone_leaves_the_others_waiting(queue: GroupQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "_FAREWELL_SECONDS", 1.0)
    for rank in range(2):
        queue.heartbeat(rank, None)
    queue.begin(request("0001"))
    number, _ = taken(queue)
    queue.finish(number, 0, OF_ITS_OWN)
    assert queue.seconds_since_progress() is None  # the others may be on their way out
    assert wait_until(lambda: queue.seconds_since_progress() == float("inf"), WAIT)
    queue.finish(number, 1, HEARD)
    assert queue.seconds_since_progress() is None


def test_the_rank_that_is_silent_longest_counts(queue: GroupQueue) -> None:
    queue.heartbeat(0, 1.0)
    opening = queue.seconds_since_progress()
    assert opening is not None
    assert opening < 1.0  # not all of them are there yet
    queue.heartbeat(1, 60.0)
    silent = queue.seconds_since_progress()
    assert silent is not None
    assert silent >= 60.0
    time.sleep(0.2)
    later = queue.seconds_since_progress()
    assert later is not None
    assert later >= silent + 0.2  # also if it doesn't say so any more
    queue.heartbeat(1, None)
    working = queue.seconds_since_progress()
    assert working is not None
    assert working < 60.0
    queue.heartbeat(0, None)
    assert queue.seconds_since_progress() is None


def test_a_rank_that_had_nothing_to_do_and_is_not_heard_of_any_more_is_missed(
    queue: GroupQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_module, "_MISSING_SECONDS", 0.2)
    queue.heartbeat(0, None)
    queue.heartbeat(1, None)  # and is stopped
    assert wait_until(lambda: (queue.seconds_since_progress() or 0.0) > 0.4, WAIT)


def test_processes_that_never_come_are_missed(queue: GroupQueue) -> None:
    queue.heartbeat(0, None)
    first = queue.seconds_since_progress()
    assert first is not None
    assert wait_until(lambda: (queue.seconds_since_progress() or 0.0) > first, WAIT)


def test_a_trial_that_is_not_there_has_ended(queue: GroupQueue) -> None:
    assert queue.next_message("0009") == Finished()
    queue.resume("0009")
    queue.release("0009")


def test_a_closed_desk_sends_everybody_home(queue: GroupQueue, calls: ThreadPoolExecutor) -> None:
    waiting = [calls.submit(queue.next_task, 0) for _ in range(2)]
    assert all(waits(future) for future in waiting)
    queue.close()
    assert [future.result(WAIT) for future in waiting] == [None, None]
    queue.begin(request("0001"))
    assert queue.next_task(0) is None


def test_trials_come_and_go_from_many_threads(queue: GroupQueue, calls: ThreadPoolExecutor) -> None:
    """Turns that end, are called off and come again, at random moments: nobody waits for ever."""

    def serve(rank: int) -> int:
        number, served = 0, 0
        while (turn := queue.next_task(number)) is not None:
            number, _ = turn
            if rank == 0:
                queue.report(number, point(2.0, 100))
            queue.finish(number, rank, None)
            number, served = number + 1, served + 1
        return served

    def hold(trial_id: str) -> None:
        for segment in range(20):
            queue.begin(request(trial_id, segment))
            if segment % 3 and not isinstance(queue.next_message(trial_id), Finished):
                queue.resume(trial_id)
            queue.release(trial_id)

    ranks = [calls.submit(serve, rank) for rank in range(2)]
    proxies = [threading.Thread(target=hold, args=(trial_id,)) for trial_id in ("0001", "0002", "0003")]
    for proxy in proxies:
        proxy.start()
    for proxy in proxies:
        proxy.join(WAIT)
    assert not [proxy for proxy in proxies if proxy.is_alive()]
    queue.close()
    first, second = (rank.result(WAIT) for rank in ranks)
    assert first == second >= 1
