"""Examples as token ids: the chat template, one BOS, an EOS after every answer, and which tokens are learned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trials.errors import DataError, first_line
from trials.formats.conversations import ASSISTANT, Example, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The target of a token that carries no loss, as in torch's cross-entropy."""
MANY_ANSWERS = 4
"""Most answers of a conversation that is tokenised in a batch.

Longer ones are tokenised one by one and piece by piece, at a cost that grows with their length.
"""


class NotRendered(DataError):
    """The chat template can't render a conversation."""

    def __init__(self, cause: str, row: str = "") -> None:
        """Take the template's message as `cause`; `row` is a prefix that names the row."""
        self.cause = cause
        self.reason = f"the tokenizer's chat template can't render it ({cause})"
        super().__init__(f"{row}{self.reason}. Mend the row, or set another model.chat_template.")


@dataclass(frozen=True)
class TokenizedRow:
    """One row as model input; `labels` has the length of `input_ids`, and -100 where nothing is learned."""

    id: str
    input_ids: Sequence[int]
    labels: Sequence[int]

    @property
    def completion_tokens(self) -> int:
        """Tokens that carry loss, EOS included."""
        return sum(label != IGNORED for label in self.labels)


def prompt_ids(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of a conversation so far, ready for an answer: one BOS if the tokenizer has one, no EOS."""
    text = render(messages, tokenizer, is_open=True)
    return _with_one_bos(encode([text], tokenizer)[0], tokenizer)


def tokenize(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> list[TokenizedRow]:
    """Tokenise examples in the tokenizer's chat template; every answer of the assistant is learned with its EOS.

    An answer that is mere context isn't learned. If a template renders earlier turns differently once they are
    answered, only the last answer is learned. A plain text is learned whole, BOS excepted. Raises `NotRendered` if the
    template can't render a row, `DataError` if it ends an answer too early or never.
    """
    eos = eos_id(tokenizer)
    few = [example for example in examples if answers_of(example) <= MANY_ANSWERS]
    texts = [list(_texts(example, tokenizer)) for example in few]
    encoded = iter(encode([text for row in texts for text in row], tokenizer))
    rows = iter(
        [
            _tokenized(example, [_with_one_bos(next(encoded), tokenizer) for _ in row], eos, tokenizer)
            for example, row in zip(few, texts, strict=True)
        ]
    )
    return [
        next(rows) if answers_of(example) <= MANY_ANSWERS else _tokenized_by_pieces(example, eos, tokenizer)
        for example in examples
    ]


def answers_of(example: Example) -> int:
    """Return how many turns are the assistant's."""
    return sum(message.role == ASSISTANT for message in example.messages)


def closed_length(example: Example, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the tokens of a conversation that its template renders once, at a cost that grows with its length.

    It's the length of the row that `tokenize` makes, unless earlier turns are rendered differently once answered.
    """
    text = render(example.messages, tokenizer, is_open=False)
    return len(_with_one_eos(_with_one_bos(encode([text], tokenizer)[0], tokenizer), eos_id(tokenizer)))


def _tokenized_by_pieces(example: Example, eos: int, tokenizer: PreTrainedTokenizerBase) -> TokenizedRow:
    texts = list(_texts(example, tokenizer))
    ids = [_with_one_bos(found, tokenizer) for found in encode_alike(texts, tokenizer)]
    return _tokenized(example, ids, eos, tokenizer)


def eos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the token that ends an answer. Raises `DataError` if there is none."""
    eos = tokenizer.eos_token_id
    if not isinstance(eos, int):
        raise DataError("the tokenizer has no end-of-sequence token; without one a model never learns to stop.")
    return eos


def _texts(example: Example, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Yield the whole row, then for every answer all that stands before it."""
    if not example.prompt:
        yield example.completion
        return
    try:
        yield render(example.messages, tokenizer, is_open=False)
        for index, message in enumerate(example.messages):
            if message.role == ASSISTANT:
                yield render(example.messages[:index], tokenizer, is_open=True)
    except NotRendered as error:
        raise NotRendered(error.cause, f"row {example.id}: ") from error


def _tokenized(example: Example, ids: list[list[int]], eos: int, tokenizer: PreTrainedTokenizerBase) -> TokenizedRow:
    whole, *starts = ids
    if not example.prompt:
        whole = _with_one_eos(whole, eos)
        begins = int(whole[0] == tokenizer.bos_token_id)
        return TokenizedRow(example.id, whole, [IGNORED] * begins + whole[begins:])
    if any(whole[: len(start)] != start for start in starts):
        # The prompt must be tokenised as at inference, so the last answer is tokenised by itself and put behind it.
        starts = starts[-1:]
        whole = [*starts[0], *encode([example.completion], tokenizer)[0]]
    first = len(starts[-1])
    whole = [*whole[:first], *_with_one_eos(whole[first:], eos)]
    answers = [message for message in example.messages if message.role == ASSISTANT]
    learned = [message.is_learned for message in answers[-len(starts) :]]
    labels = _labels(example, whole, list(zip(map(len, starts), learned, strict=True)), eos)
    return TokenizedRow(example.id, whole, labels)


def _labels(example: Example, ids: list[int], answers: list[tuple[int, bool]], eos: int) -> list[int]:
    """Return the targets; `answers` are the positions at which answers begin, and whether they are learned."""
    labels = [IGNORED] * len(ids)
    limits = [*(start for start, _ in answers[1:]), len(ids)]
    for (start, is_learned), limit in zip(answers, limits, strict=True):
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
        if is_learned:
            labels[start:end] = ids[start:end]
    return labels


def render(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, is_open: bool) -> str:
    """Return a conversation as the chat template writes it; `is_open`: ready for an answer. Raises `NotRendered`."""
    if tokenizer.chat_template is None:
        # Base models come without a template: the prompt, a line break, the completion and its end.
        after = {ASSISTANT: str(tokenizer.eos_token)}
        return "".join(message.content + after.get(message.role, "\n") for message in messages)
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=is_open))
        text.encode()  # a tokenizer takes no half of a character, which a template can write by an escape
    except Exception as error:  # a template is a program, and can raise anything
        raise NotRendered(first_line(error)) from error
    return text


def encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the ids of texts as they are: neither template nor BOS nor EOS is added."""
    # Tokenizers of transformers 5.23 raise IndexError for no texts.
    return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if texts else []


def encode_alike(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the same ids as `encode`, for texts that begin alike; each piece is encoded once.

    The first text must hold nearly all of the others. Tokenizers cut texts at special tokens before all else, so the
    text between two EOS can be encoded by itself. If the first text's ids show that this doesn't hold, all texts are
    encoded whole.
    """
    eos, eos_id = str(tokenizer.eos_token), tokenizer.eos_token_id
    cut = [text.split(eos) for text in texts]
    # The EOS before a piece tells the tokenizer that it isn't at a text's beginning, where some add a space.
    pieces = list(dict.fromkeys(eos + piece for first, *rest in cut for piece in rest))
    beginnings = list(dict.fromkeys(first for first, *_ in cut))
    ids = dict(zip((*beginnings, *pieces), encode([*beginnings, *pieces], tokenizer), strict=True))
    found = [[*ids[first], *(token for piece in rest for token in ids[eos + piece])] for first, *rest in cut]
    if any(ids[piece][:1] != [eos_id] for piece in pieces) or found[0] != encode(texts[:1], tokenizer)[0]:
        return encode(texts, tokenizer)
    return found


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
    # Tokens that a template puts after its last EOS (often a line break) are no part of the answer.
    end = len(ids)
    if eos in ids:
        end = len(ids) - ids[::-1].index(eos)
    while end > 0 and ids[end - 1] == eos:
        end -= 1
    return [*ids[:end], eos]
