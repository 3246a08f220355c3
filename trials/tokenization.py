"""Examples as token ids: the chat template, exactly one BOS, exactly one EOS, and where the completion begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trials.errors import DataError
from trials.formats import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TokenizedRow:
    """One row as the model sees it. `input_ids` has the prompt, then the completion, EOS last."""

    id: str
    input_ids: tuple[int, ...]
    prompt_length: int

    @property
    def labels(self) -> list[int]:
        """Targets of the same length as `input_ids`: -100 on the prompt, so the loss is on the completion only."""
        return [-100] * self.prompt_length + list(self.input_ids[self.prompt_length :])

    @property
    def completion_tokens(self) -> int:
        """Tokens that carry loss, EOS included."""
        return len(self.input_ids) - self.prompt_length


def prompt_ids(prompt: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the user's turn, ready for the model to answer: one BOS where the tokenizer has one, no EOS."""
    text = _render([{"role": "user", "content": prompt}], tokenizer, add_generation_prompt=True)
    return _with_one_bos(_encode(text, tokenizer), tokenizer)


def tokenize(example: Example, tokenizer: PreTrainedTokenizerBase) -> TokenizedRow:
    """The example in the tokenizer's chat template. Raises `DataError` if its text holds a BOS or EOS of its own."""
    eos = _eos(tokenizer)
    _refuse_specials(example, tokenizer)
    start = prompt_ids(example.prompt, tokenizer)
    turns = [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": example.completion}]
    whole = _with_one_bos(_encode(_render(turns, tokenizer, add_generation_prompt=False), tokenizer), tokenizer)
    # Some templates render the prompt differently once it's answered; then the answer is tokenised by itself.
    answer = whole[len(start) :] if whole[: len(start)] == start else _encode(example.completion, tokenizer)
    answer = _with_one_eos(answer, eos)
    if answer.count(eos) != 1:
        raise DataError(
            f"row {example.id}: the chat template puts {tokenizer.eos_token!r} inside the answer, where it would end. "
            "Mend the template."
        )
    return TokenizedRow(example.id, (*start, *answer), prompt_length=len(start))


def _refuse_specials(example: Example, tokenizer: PreTrainedTokenizerBase) -> None:
    for field, text in (("prompt", example.prompt), ("completion", example.completion)):
        for special in (tokenizer.bos_token, tokenizer.eos_token):
            if special and special in text:
                raise DataError(
                    f"row {example.id}: its {field} contains {special!r}, which begins or ends a sequence. "
                    "Remove it from the text: it's added to every row."
                )


def _render(turns: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase, *, add_generation_prompt: bool) -> str:
    if tokenizer.chat_template is None:
        # Base models come without a template: the prompt, a line break, the completion.
        return turns[0]["content"] + "\n" + "".join(turn["content"] for turn in turns[1:])
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)
    return str(text)


def _encode(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _with_one_bos(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    bos = tokenizer.bos_token_id
    if bos is None:
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


def _eos(tokenizer: PreTrainedTokenizerBase) -> int:
    eos = tokenizer.eos_token_id
    if not isinstance(eos, int):
        raise DataError("the tokenizer has no end-of-sequence token; without one a model never learns to stop.")
    return eos
