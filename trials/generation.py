"""Answers of a model: greedy or sampled, batched, left-padded; and the label that an NLI answer holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from trials.evaluation import batches_by_length, inference
from trials.formats import NLI_LABELS
from trials.tokenization import prompt_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 is greedy: always the likeliest."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 50
    top_p: float = 0.95

    def arguments(self) -> dict[str, Any]:
        """As transformers' `generate` takes them."""
        if self.temperature == 0.0:
            # The unset values keep a model's own generation config from asking for sampling.
            return {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
        return {"do_sample": True, "temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}


def generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    sampling: Sampling | None = None,
    batch_rows: int = 32,
) -> list[str]:
    """The model's answers to chat prompts, in order, without special tokens."""
    sampling = sampling or Sampling()
    ids = [prompt_ids(prompt, tokenizer) for prompt in prompts]
    answers = [""] * len(ids)
    with inference(model):
        for indices in batches_by_length([len(row) for row in ids], batch_rows):
            batch = _batch(model, tokenizer, [ids[i] for i in indices], sampling)
            for index, answer in zip(indices, batch, strict=True):
                answers[index] = answer
    return answers


def _batch(model: Any, tokenizer: PreTrainedTokenizerBase, rows: Sequence[list[int]], sampling: Sampling) -> list[str]:
    longest = max(map(len, rows))
    pad = tokenizer.pad_token_id
    # Padding stands on the left: a model goes on from the last position.
    input_ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device)
    output = model.generate(
        input_ids=input_ids,
        attention_mask=mask,
        max_new_tokens=sampling.max_new_tokens,
        pad_token_id=pad,
        eos_token_id=tokenizer.eos_token_id,
        use_cache=True,
        **sampling.arguments(),
    )
    texts: list[str] = tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)
    return [text.strip() for text in texts]


def parse_label(answer: str) -> int | None:
    """The predicted label of an NLI answer; None if it's no JSON object with an allowed label."""
    start, end = answer.find("{"), answer.rfind("}")
    if start < 0 or end < start:
        return None
    try:
        label = json.loads(answer[start : end + 1]).get("predicted_label")
    except json.JSONDecodeError:
        return None
    return label if type(label) is int and label in NLI_LABELS else None
