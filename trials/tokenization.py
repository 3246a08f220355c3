"""Examples as token ids: the chat template, one BOS, an EOS after every answer, and which tokens are learned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trials.errors import DataError
from trials.formats import ASSISTANT, Example, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The target of a token that carries no loss, as in torch's cross-entropy."""


@dataclass(frozen=True)
class TokenizedRow:
    """One row as the model sees it; `labels` has the length of `input_ids`, and -100 where nothing is learned."""

    id: str
    input_ids: Sequence[int]
    labels: Sequence[int]

    @property
    def completion_tokens(self) -> int:
        """Tokens that carry loss, EOS included."""
        return sum(label != IGNORED for label in self.labels)


def prompt_ids(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a conversation so far, ready for the model to answer: one BOS where the tokenizer has one, no EOS."""
    text = _render(messages, tokenizer, is_open=True)
    return _with_one_bos(encode([text], tokenizer)[0], tokenizer)


def tokenize(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> list[TokenizedRow]:
    """Rows in the tokenizer's chat template, in which every answer of the assistant is learned with its EOS.

    Where a template renders earlier turns differently once they are answered, only the last answer is learned. A
    plain text is learned whole, BOS excepted. Raises `DataError` if the template can't render a row, or ends an answer
    too early.
    """
    eos = eos_id(tokenizer)
    texts = [list(_texts(example, tokenizer)) for example in examples]
    encoded = iter(encode([text for row in texts for text in row], tokenizer))
    return [
        _tokenized(example, [_with_one_bos(next(encoded), tokenizer) for _ in row], eos, tokenizer)
        for example, row in zip(examples, texts, strict=True)
    ]


def eos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the token that ends an answer. Raises `DataError` if there is none."""
    eos = tokenizer.eos_token_id
    if not isinstance(eos, int):
        raise DataError("the tokenizer has no end-of-sequence token; without one a model never learns to stop.")
    return eos


def _texts(example: Example, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """The whole row, then for every answer all that stands before it."""
    if not example.prompt:
        yield example.completion
        return
    try:
        yield _render(example.messages, tokenizer, is_open=False)
        for index, message in enumerate(example.messages):
            if message.role == ASSISTANT:
                yield _render(example.messages[:index], tokenizer, is_open=True)
    except _template_errors() as error:
        raise DataError(
            f"row {example.id}: the tokenizer's chat template can't render it ({error}). "
            "Mend the row, or set another model.chat_template."
        ) from error


def _tokenized(example: Example, ids: list[list[int]], eos: int, tokenizer: PreTrainedTokenizerBase) -> TokenizedRow:
    whole, *starts = ids
    if not example.prompt:
        whole = _with_one_eos(whole, eos)
        begins = int(whole[0] == tokenizer.bos_token_id)
        return TokenizedRow(example.id, whole, [IGNORED] * begins + whole[begins:])
    if any(whole[: len(start)] != start for start in starts):
        # The prompt must be what it is when the model is asked, so the last answer is put behind it by itself.
        starts = starts[-1:]
        whole = [*starts[0], *encode([example.completion], tokenizer)[0]]
    first = len(starts[-1])
    whole = [*whole[:first], *_with_one_eos(whole[first:], eos)]
    labels = _labels(example, whole, [len(start) for start in starts], eos)
    return TokenizedRow(example.id, whole, labels)


def _labels(example: Example, ids: list[int], starts: list[int], eos: int) -> list[int]:
    labels = [IGNORED] * len(ids)
    for start, limit in zip(starts, [*starts[1:], len(ids)], strict=True):
        if eos not in ids[start:limit]:
            raise DataError(
                f"row {example.id}: the chat template puts no end-of-sequence token after an answer, "
                "so the model would never learn to stop. Set another model.chat_template."
            )
        end = ids.index(eos, start) + 1
        if limit == len(ids) and end != limit:
            raise DataError(
                f"row {example.id}: the chat template puts the end-of-sequence token inside the answer, "
                "where it would end. Mend the template."
            )
        labels[start:end] = ids[start:end]
    return labels


def _render(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, is_open: bool) -> str:
    if tokenizer.chat_template is None:
        # Base models come without a template: the prompt, a line break, the completion and its end.
        after = {ASSISTANT: str(tokenizer.eos_token)}
        return "".join(message.content + after.get(message.role, "\n") for message in messages)
    turns = [{"role": message.role, "content": message.content} for message in messages]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=is_open))


def encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Ids of texts as they are: neither template nor BOS nor EOS is added."""
    return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]


def _with_one_bos(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    bos = tokenizer.bos_token_id
    # Where one token is both (GPT-2, Qwen), one at the beginning would be an answer's end.
    if bos is None or bos == tokenizer.eos_token_id:
        return ids
    start = 0
    while start < len(ids) and ids[start] == bos:
        start += 1
    return [bos, *ids[start:]]


def _with_one_eos(ids: list[int], eos: int) -> list[int]:
    # What a template puts after its last EOS (often a line break) is no part of the answer.
    end = len(ids)
    if eos in ids:
        end = len(ids) - ids[::-1].index(eos)
    while end > 0 and ids[end - 1] == eos:
        end -= 1
    return [*ids[:end], eos]


def _template_errors() -> tuple[type[Exception], ...]:
    from jinja2 import TemplateError

    return (TemplateError, TypeError, KeyError)
