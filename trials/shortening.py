"""Makes rows fit by whole turns and by the end of a prompt; an answer is never cut."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from trials.formats import ASSISTANT, USER, Example, Message
from trials.tokenization import TokenizedRow, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def shorten(example: Example, limit: int, tokenizer: PreTrainedTokenizerBase) -> tuple[Example, TokenizedRow] | None:
    """The example within `limit` tokens; None if even its first answer alone doesn't fit.

    Later turns of a conversation are left out first, then the end of its only question.
    """
    row = tokenize([example], tokenizer)[0]
    while len(row.input_ids) > limit:
        over = len(row.input_ids) - limit
        shorter = _without_last_turn(example) or _with_shorter_question(example, over, tokenizer)
        if shorter is None:
            return None
        example, row = shorter, tokenize([shorter], tokenizer)[0]
    return example, row


def _without_last_turn(example: Example) -> Example | None:
    answers = [index for index, message in enumerate(example.messages) if message.role == ASSISTANT]
    if len(answers) < 2:
        return None
    return replace(example, messages=example.messages[: answers[-2] + 1])


def _with_shorter_question(example: Example, over: int, tokenizer: PreTrainedTokenizerBase) -> Example | None:
    if not example.prompt or example.prompt[-1].role != USER:
        return None
    text = example.prompt_text
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    if len(offsets) <= over:
        return None
    kept = text[: offsets[len(offsets) - over][0]].rstrip()
    if not kept:
        return None
    messages = (*example.prompt[:-1], Message(USER, kept), example.messages[-1])
    return replace(example, messages=messages)
