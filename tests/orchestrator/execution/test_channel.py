from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from orchestrator.execution.channel import Finished, LoggedMetrics, TrialChannel
from tests.support.fake_search import point


@pytest.fixture
def conversation() -> TrialChannel:
    return TrialChannel()


def test_a_trial_waits_for_the_answer_to_what_it_said(conversation: TrialChannel) -> None:
    with ThreadPoolExecutor(1) as trial:
        for goes_on in (True, False):
            asked: Future[bool] = trial.submit(conversation.report, point(1.5, 100))
            assert conversation.next_message() == point(1.5, 100)
            assert not asked.done()
            conversation.reply(goes_on=goes_on)
            assert asked.result(timeout=5) is goes_on


def test_nobody_answers_what_a_trial_logs(conversation: TrialChannel) -> None:
    conversation.log({"train/loss": 2.0})
    conversation.reply(goes_on=True)
    assert conversation.report(point(1.5, 100))
    assert [conversation.next_message() for _ in range(2)] == [LoggedMetrics({"train/loss": 2.0}), point(1.5, 100)]


def test_the_end_comes_after_what_was_said(conversation: TrialChannel) -> None:
    conversation.reply(goes_on=True)
    conversation.report(point(1.5, 100))
    conversation.finish("ValueError: a bad night")
    assert conversation.next_message() == point(1.5, 100)
    assert conversation.next_message() == Finished("ValueError: a bad night")


def test_broken_off_nobody_waits_again(conversation: TrialChannel) -> None:
    with ThreadPoolExecutor(2) as both:
        asked = both.submit(conversation.report, point(1.5, 100))
        assert conversation.next_message() == point(1.5, 100)
        heard = both.submit(conversation.next_message)
        conversation.close()
        assert asked.result(timeout=5) is False
        assert heard.result(timeout=5) == Finished()
    assert conversation.report(point(1.4, 200)) is False
