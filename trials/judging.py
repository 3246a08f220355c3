"""How good a model is on the rows of a file: loss, labels, and the comparison with its base on the same rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trials.config import ModelSettings
from trials.data import Split
from trials.errors import ModelError
from trials.evaluation import evaluate_rows
from trials.generation import Sampling, generate, parse_label
from trials.losses import RowLosses, compare
from trials.model import (
    compute_dtype,
    device_map,
    first_line,
    keep_gradients_on_cpu,
    load_base,
    load_tokenizer,
    nf4_config,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Judged:
    """A model that can be judged: an adapter on its base, or a plain model."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    is_adapter: bool


def load_judged(path: str, quantization: str = "nf4", dtype: str = "auto") -> Judged:
    """Loads an adapter folder by `AutoPeftModelForCausalLM`, as its users do, or a model folder or hub name.

    Raises `ModelError` if it can't be loaded.
    """
    settings = ModelSettings(name=path, quantization=quantization, compute_dtype=dtype)  # type: ignore[arg-type]
    if not (Path(path) / "adapter_config.json").is_file():
        return Judged(load_base(settings), load_tokenizer(settings), is_adapter=False)
    from peft import AutoPeftModelForCausalLM

    number = compute_dtype(settings)
    arguments: dict[str, Any] = {"dtype": number, "device_map": device_map()}
    if quantization == "nf4":
        arguments["quantization_config"] = nf4_config(number)
    try:
        tokenizer_of = _tokenizer_of(path)
        model = AutoPeftModelForCausalLM.from_pretrained(path, **arguments)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"can't load the adapter {path!r}: {first_line(error)}. "
            "Its adapter_config.json must name a base model that this machine can reach."
        ) from error
    keep_gradients_on_cpu(model)
    return Judged(model, load_tokenizer(tokenizer_of), is_adapter=True)


def _tokenizer_of(adapter: str) -> ModelSettings:
    """An adapter folder that wasn't exported has no tokenizer: its base model's is meant."""
    if (Path(adapter) / "tokenizer_config.json").is_file():
        return ModelSettings(name=adapter)
    config = json.loads((Path(adapter) / "adapter_config.json").read_text())
    return ModelSettings(name=config["base_model_name_or_path"], revision=config.get("revision"))


def losses(judged: Judged, split: Split, batch_rows: int, *, base: bool = False) -> RowLosses:
    """Loss of every row; `base`: of the base model, with the adapter switched off."""
    with _as_base(judged, base):
        return evaluate_rows(judged.model, split.rows, batch_rows)


def answers(judged: Judged, split: Split, count: int | None = None, *, base: bool = False) -> list[str]:
    """Greedy answers to the first `count` rows, of at most twice the longest completion's tokens."""
    sampling = Sampling(max_new_tokens=2 * max(row.completion_tokens for row in split.rows))
    with _as_base(judged, base):
        return generate(judged.model, judged.tokenizer, [e.prompt for e in split.examples[:count]], sampling)


def _as_base(judged: Judged, base: bool) -> AbstractContextManager[None]:
    off: AbstractContextManager[None] = judged.model.disable_adapter() if base and judged.is_adapter else nullcontext()
    return off


def against_base(winner: RowLosses, base: RowLosses) -> dict[str, float]:
    """How much the loss fell against the base, nats per token, with its paired standard error."""
    gain = compare(winner, base)
    return {"base_eval_loss": base.mean, "difference": gain.difference, "standard_error": gain.standard_error}


def label_counts(given: Sequence[str], split: Split) -> dict[str, float]:
    """Share of right labels and of answers that hold none (those count as wrong)."""
    labels = [parse_label(answer) for answer in given]
    right = sum(label == example.label for label, example in zip(labels, split.examples, strict=True))
    unparsed = sum(label is None for label in labels)
    return {"accuracy": right / len(labels), "unparsed": unparsed / len(labels), "rows": len(labels)}


def samples(judged: Judged, split: Split, count: int) -> list[dict[str, str]]:
    """The first rows answered by the base and by the adapter, beside what was expected."""
    ours, bases = answers(judged, split, count), answers(judged, split, count, base=True)
    return [
        {"id": e.id, "prompt": e.prompt, "expected": e.completion, "base": base, "winner": answer}
        for e, base, answer in zip(split.examples[:count], bases, ours, strict=True)
    ]
