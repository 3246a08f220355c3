"""Shortening of rows by whole turns and by the end of a prompt; an answer is never cut."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace
from typing import TYPE_CHECKING

from trials.data.tokenization import TokenizedRow, closed_length, tokenize
from trials.formats.conversations import ASSISTANT, USER, Example, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def truncate(example: Example, limit: int, tokenizer: PreTrainedTokenizerBase) -> tuple[Example, TokenizedRow] | None:
    """Return the example within `limit` tokens, and its row; None if even its first answer alone doesn't fit.

    Later turns of a conversation are left out first, then the end of its only question. Costs about as much as
    tokenising the whole once, however many turns are too many.
    """
    beginnings = _Beginnings(example, tokenizer)
    found = beginnings.longest(limit)
    if found is not None:
        return found
    first, row = beginnings.exactly(1)
    while len(row.input_ids) > limit:
        shorter = _with_shorter_question(first, len(row.input_ids) - limit, tokenizer)
        if shorter is None:
            return None
        first, row = shorter, tokenize([shorter], tokenizer)[0]
    return first, row


class _Beginnings:
    """The beginnings of a conversation that end with an answer to learn, by their number of such answers."""

    def __init__(self, example: Example, tokenizer: PreTrainedTokenizerBase) -> None:
        self._example = example
        self._tokenizer = tokenizer
        self._ends = [
            index
            for index, message in enumerate(example.messages, start=1)
            if message.role == ASSISTANT and message.is_learned
        ]

    def exactly(self, answers: int) -> tuple[Example, TokenizedRow]:
        """Return the beginning with so many answers to learn, and its row."""
        found = self._cut(self._ends[answers - 1])
        return found, tokenize([found], self._tokenizer)[0]

    def longest(self, limit: int) -> tuple[Example, TokenizedRow] | None:
        """Return the beginning with the most turns within `limit` tokens; None if the first answer is beyond it."""
        # The search uses a length that is cheap and nearly always right. The rows themselves then correct it; they are
        # hardly longer than the limit.
        answers = bisect_right(self._ends, limit, key=lambda end: closed_length(self._cut(end), self._tokenizer))
        best = None
        for more in range(max(answers, 1), len(self._ends) + 1):
            found = self.exactly(more)
            if len(found[1].input_ids) > limit:
                break
            best = found
        for fewer in range(answers - 1, 0, -1) if best is None else ():
            found = self.exactly(fewer)
            if len(found[1].input_ids) <= limit:
                return found
        return best

    def _cut(self, end: int) -> Example:
        if end == len(self._example.messages):
            return self._example
        return replace(self._example, messages=self._example.messages[:end])


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
