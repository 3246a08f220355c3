"""Generation of a model's answers: greedy or sampled, batched, left-padded, stopped when nothing more is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextStreamer

from trials.data.tokenization import prompt_ids
from trials.evaluation.eval_loss import batches_by_length, inference
from trials.formats.answers import first_object
from trials.formats.conversations import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Conversation = Sequence[Message]


@dataclass(frozen=True)
class Sampling:
    """Settings for choosing the next token. Temperature 0 is greedy: always the most likely token."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 50
    top_p: float = 0.95

    def arguments(self) -> dict[str, Any]:
        """Return the settings as arguments of transformers' `generate`."""
        if self.temperature == 0.0:
            # The unset values keep a model's own generation config from asking for sampling.
            return {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
        return {"do_sample": True, "temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}


class ObjectIsWhole(StoppingCriteria):  # type: ignore[misc]  # transformers has no types here
    """Criterion that ends a row once its answer holds a whole JSON object: what follows isn't read.

    An answer is decoded only if its newest token contains a closing brace.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> None:
        closing = [index for token, index in tokenizer.get_vocab().items() if "}" in token]
        self._closing = torch.tensor(closing, device=device)
        self._tokenizer = tokenizer
        self.prompt_length = 0
        """Tokens before the answer, including padding; the same for all rows of a batch."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Return which rows are done; transformers asks after every token."""
        done = torch.isin(input_ids[:, -1], self._closing)
        for row in done.nonzero().flatten().tolist():
            answer = self._tokenizer.decode(input_ids[row, self.prompt_length :], skip_special_tokens=True)
            done[row] = first_object(str(answer)) is not None
        return done


class _Printed(TextStreamer):  # type: ignore[misc]  # transformers has no types here
    """Streamer that prints one answer without the space with which many tokenizers begin it."""

    _has_begun = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print a word; transformers calls this for each."""
        text = text if self._has_begun else text.lstrip()
        self._has_begun = self._has_begun or bool(text)
        super().on_finalized_text(text, stream_end)


def generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    sampling: Sampling | None = None,
    batch_rows: int = 32,
    *,
    until_object: bool = False,
) -> list[str]:
    """Return the model's next turns in conversations, in their order, without special tokens.

    Conversations of similar length are answered together. The longest come first, so that a lack of memory shows at
    once. `until_object` ends every answer at its first whole JSON object.
    """
    sampling = sampling or Sampling()
    ids = [prompt_ids(conversation, tokenizer) for conversation in conversations]
    stop = ObjectIsWhole(tokenizer, model.device) if until_object else None
    answers = [""] * len(ids)
    with inference(model):
        for indices in reversed(list(batches_by_length([len(row) for row in ids], batch_rows))):
            batch = _batch(model, tokenizer, [ids[i] for i in indices], sampling, stop)
            for index, answer in zip(indices, batch, strict=True):
                answers[index] = answer
    return answers


def answer(
    model: Any, tokenizer: PreTrainedTokenizerBase, ids: list[int], sampling: Sampling, *, printed: bool = False
) -> str:
    """Return the answer to one prompt; `printed`: also print it word by word, and then a line break."""
    streamer = _Printed(tokenizer, skip_prompt=True, skip_special_tokens=True) if printed else None
    with inference(model):
        return _batch(model, tokenizer, [ids], sampling, streamer=streamer)[0]


def _batch(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[list[int]],
    sampling: Sampling,
    stop: ObjectIsWhole | None = None,
    streamer: TextStreamer | None = None,
) -> list[str]:
    longest = max(map(len, rows))
    pad = tokenizer.pad_token_id
    if stop is not None:
        stop.prompt_length = longest
    # Padding is on the left, because a model continues from the last position.
    input_ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device)
    output = model.generate(
        input_ids=input_ids,
        attention_mask=mask,
        max_new_tokens=sampling.max_new_tokens,
        pad_token_id=pad,
        eos_token_id=_ends(model, tokenizer),
        use_cache=True,
        stopping_criteria=StoppingCriteriaList([stop] if stop is not None else []),
        streamer=streamer,
        **sampling.arguments(),
    )
    texts: list[str] = tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)
    return [text.strip() for text in texts]


def _ends(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokenizer's EOS, and other ids that end a turn by the model's config (Llama 3 and Gemma have two)."""
    own = getattr(model.generation_config, "eos_token_id", None)
    return sorted({tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None})
