"""Rows that are too long: later turns go first, then the end of the question, and never a word of an answer."""

from __future__ import annotations

import copy
import random
from dataclasses import replace

import pytest
from transformers import PreTrainedTokenizerBase

from tests.trials.data.test_tokenization import MARKED, TEMPLATES, WITH_EOS
from trials.data.chat_template import chat_template
from trials.data.tokenization import TokenizedRow, tokenize
from trials.data.truncation import truncate
from trials.formats.conversations import ASSISTANT, Example, Message, example

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
    found = truncate(CHAT, _length(CHAT, zephyr) - 1, zephyr)
    assert found is not None
    assert found[0] == two_turns
    assert truncate(CHAT, _length(two_turns, zephyr), zephyr) == (two_turns, tokenize([two_turns], zephyr)[0])


@pytest.mark.parametrize("limit", [60, 90, 150, 200])
def test_then_the_end_of_the_question(zephyr: PreTrainedTokenizerBase, limit: int) -> None:
    row = example("r1", "Who is taller? " + "Ann is tall. Zoë is small. " * 30, "Ann is.")
    found = truncate(row, limit, zephyr)
    assert found is not None
    assert row.prompt_text.startswith(found[0].prompt_text)
    assert found[0].completion == row.completion
    assert limit - 12 <= len(found[1].input_ids) <= limit
    assert found[1] == tokenize([found[0]], zephyr)[0]


def test_an_answer_is_never_cut(zephyr: PreTrainedTokenizerBase) -> None:
    assert truncate(example("r1", "Who?", "Ann is tall. " * 30), 60, zephyr) is None
    assert truncate(Example("r1", (Message("assistant", "Ann is tall. " * 30),)), 60, zephyr) is None


THOUGHTS_GO = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] if loop.last else m['content'].split('Bob')[-1] }}"
)
THOUGHTS_GO += "{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
THOUGHTS_GO += "{% if add_generation_prompt %}<assistant>{% endif %}"


def _one_by_one(row: Example, limit: int, tokenizer: PreTrainedTokenizerBase) -> tuple[Example, TokenizedRow] | None:
    """The rule in so many words: the last turn is left out until the row fits, or one answer is left."""
    while True:
        found = tokenize([row], tokenizer)[0]
        if len(found.input_ids) <= limit:
            return row, found
        answers = [i for i, message in enumerate(row.messages) if message.role == ASSISTANT and message.is_learned]
        if len(answers) < 2:
            return None
        row = replace(row, messages=row.messages[: answers[-2] + 1])


def _chat(turns: int, seed: int) -> Example:
    drawn = random.Random(seed)
    messages = [
        Message(role, "Ann is taller than Bob. " * drawn.randint(1, 4), is_learned=drawn.random() < 0.8)
        for _ in range(turns)
        for role in ("user", "assistant")
    ]
    return Example("r1", (*messages[:-1], replace(messages[-1], is_learned=True)))


@pytest.mark.parametrize(
    "template",
    [chat_template("zephyr"), chat_template("mistral"), None, WITH_EOS, TEMPLATES["EOS and a line break"],
     TEMPLATES["another prompt once answered"], MARKED.replace("{{ m['content'] }}", "{{ m['content'] }}</s>")],
)  # fmt: skip
@pytest.mark.parametrize("seed", range(2))
def test_the_most_turns_that_fit_are_found_as_one_by_one(
    tokenizer: PreTrainedTokenizerBase, template: str | None, seed: int
) -> None:
    used = copy.deepcopy(tokenizer)
    used.chat_template = template
    chat = _chat(turns=7, seed=seed)
    if template == TEMPLATES["EOS and a line break"]:
        chat = replace(chat, messages=chat.messages[:2])  # it ends nothing but the last answer
    whole = len(tokenize([chat], used)[0].input_ids)
    for limit in range(10, whole + 2, 23):
        expected = _one_by_one(chat, limit, used)
        if expected is not None:
            assert truncate(chat, limit, used) == expected


def test_a_template_that_forgets_thoughts_still_gives_a_row_that_fits(tokenizer: PreTrainedTokenizerBase) -> None:
    used = copy.deepcopy(tokenizer)
    used.chat_template = THOUGHTS_GO
    chat = _chat(turns=9, seed=1)
    whole = len(tokenize([chat], used)[0].input_ids)
    for limit in range(60, whole + 2, 20):
        found = truncate(chat, limit, used)
        assert found is None or len(found[1].input_ids) <= limit


def test_turns_that_are_only_context_don_t_end_a_shortened_row(zephyr: PreTrainedTokenizerBase) -> None:
    marked = list(CHAT.messages)
    marked[3] = replace(marked[3], is_learned=False)
    found = truncate(Example("r1", tuple(marked)), _length(CHAT, zephyr) - 1, zephyr)
    assert found is not None
    assert found[0].messages == CHAT.messages[:2]


def test_many_turns_cost_few_tokens(zephyr: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = _chat(turns=100, seed=1)
    whole = len(tokenize([chat], zephyr)[0].input_ids)
    encoded, encode = [0], type(zephyr).__call__

    def counting(*args: object, **options: object) -> object:
        found = encode(*args, **options)  # type: ignore[arg-type]
        encoded[0] += sum(map(len, found["input_ids"]))
        return found

    monkeypatch.setattr(type(zephyr), "__call__", counting)
    found = truncate(chat, 300, zephyr)
    assert found is not None
    assert len(found[0].messages) > 4
    # Halves of halves, then rows of about 300 tokens. One by one it was a hundred times the whole and more.
    assert encoded[0] < 3 * whole
    tokenize([chat], zephyr)
    assert encoded[0] < 6 * whole
