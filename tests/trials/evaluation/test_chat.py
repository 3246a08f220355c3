"""A conversation: what was said before counts, and what doesn't fit any more is forgotten from its beginning."""

from __future__ import annotations

import logging

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trials.config import TrialConfig
from trials.errors import InputError
from trials.evaluation.chat import Chat
from trials.evaluation.generation import Sampling, generate
from trials.formats.conversations import ASSISTANT, SYSTEM, USER, Message
from trials.model.loading import load_base, load_tokenizer

SHORT = Sampling(max_new_tokens=8)


@pytest.fixture(scope="module")
def base(small_config: TrialConfig) -> PreTrainedModel:
    return load_base(small_config.model)


def test_every_answer_goes_by_all_that_was_said(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    chat = Chat(base, tokenizer, SHORT)
    first, second = chat.ask("Ada has 3 willows."), chat.ask("Why?")
    said = (Message(USER, "Ada has 3 willows."), Message(ASSISTANT, first), Message(USER, "Why?"))
    assert chat.messages == (*said, Message(ASSISTANT, second))
    assert generate(base, tokenizer, [said], SHORT) == [second]
    assert Chat(base, tokenizer, SHORT).ask("Why?") != second


def test_a_system_message_stands_before_everything(base: PreTrainedModel, small_config: TrialConfig) -> None:
    tokenizer = load_tokenizer(small_config.model.model_copy(update={"chat_template": "zephyr"}))
    chat = Chat(base, tokenizer, SHORT, system="You are a pirate.")
    answer = chat.ask("Is it so?")
    told = (Message(SYSTEM, "You are a pirate."), Message(USER, "Is it so?"))
    assert generate(base, tokenizer, [told], SHORT) == [answer]
    assert chat.messages[:2] == told


def test_a_template_without_system_messages_says_so(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(InputError, match=r"can't render the conversation .* Leave --system out, or give another"):
        Chat(base, tokenizer, SHORT, system="You are a pirate.").ask("Is it so?")


def test_the_oldest_questions_are_forgotten_when_there_is_no_room(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(base.config, "max_position_embeddings", 80)
    chat = Chat(base, tokenizer, SHORT)
    with caplog.at_level(logging.WARNING):
        for number in range(8):
            chat.ask(f"Ada has {number} willows and Nora has none.")
    questions = [message.content for message in chat.messages if message.role == USER]
    assert questions[-1] == "Ada has 7 willows and Nora has none."
    assert 1 <= len(questions) < 8
    assert "its oldest question is forgotten" in caplog.text
