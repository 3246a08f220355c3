"""Rows that are too long: later turns go first, then the end of the question, and never a word of an answer."""

from __future__ import annotations

import copy

import pytest
from transformers import PreTrainedTokenizerBase

from trials.formats import Example, Message, example
from trials.shortening import shorten
from trials.templates import chat_template
from trials.tokenization import tokenize

CHAT = Example(
    "r1",
    tuple(
        Message(role, f"{role} says that Ann is taller than Bob {number}.")
        for number in range(3)
        for role in ("user", "assistant")
    ),
)


@pytest.fixture(scope="module")
def zephyr(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    used = copy.deepcopy(tokenizer)
    used.chat_template = chat_template("zephyr")
    return used


def _length(row: Example, tokenizer: PreTrainedTokenizerBase) -> int:
    return len(tokenize([row], tokenizer)[0].input_ids)


def test_later_turns_go_first(zephyr: PreTrainedTokenizerBase) -> None:
    two_turns = Example("r1", CHAT.messages[:4])
    found = shorten(CHAT, _length(CHAT, zephyr) - 1, zephyr)
    assert found is not None
    assert found[0] == two_turns
    assert shorten(CHAT, _length(two_turns, zephyr), zephyr) == (two_turns, tokenize([two_turns], zephyr)[0])


@pytest.mark.parametrize("limit", [60, 90, 150, 200])
def test_then_the_end_of_the_question(zephyr: PreTrainedTokenizerBase, limit: int) -> None:
    row = example("r1", "Who is taller? " + "Ann is tall. Zoë is small. " * 30, "Ann is.")
    found = shorten(row, limit, zephyr)
    assert found is not None
    assert row.prompt_text.startswith(found[0].prompt_text)
    assert found[0].completion == row.completion
    assert limit - 12 <= len(found[1].input_ids) <= limit
    assert found[1] == tokenize([found[0]], zephyr)[0]


def test_an_answer_is_never_cut(zephyr: PreTrainedTokenizerBase) -> None:
    assert shorten(example("r1", "Who?", "Ann is tall. " * 30), 60, zephyr) is None
    assert shorten(Example("r1", (Message("assistant", "Ann is tall. " * 30),)), 60, zephyr) is None
