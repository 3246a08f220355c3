"""Evaluation of a model on rows, from its loading on: losses, answers, and the same of its base."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from trials.config import DataSettings, ModelSettings
from trials.data.dataset import load_split
from trials.data.split import Split
from trials.data.tokenization import encode
from trials.errors import DataError, ModelError
from trials.evaluation.eval_loss import evaluate_rows
from trials.evaluation.generation import Sampling, generate
from trials.evaluation.result import Answers, EvalResult, EvalRows, EvalTask, rows_hash
from trials.formats.conversations import LABELLED, Example
from trials.metrics.row_losses import RowLosses, compare
from trials.metrics.task_scores import has_words, task_score
from trials.model.adapter_fit import check_fit, refuse_missing
from trials.model.loading import (
    check_base,
    keep_gradients_on_cpu,
    load_base,
    load_tokenizer,
    vocabulary,
    weight_arguments,
)
from trials.model.model_files import check_json_files
from trials.model.vocabulary import Vocabulary
from trials.records.adapter_dir import base_settings, cannot_load, is_adapter, tokenizer_settings
from trials.records.export_manifest import refuse_changed
from trials.system.oom import is_out_of_memory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """Model ready for evaluation: an adapter on its base, or a plain model."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    is_adapter: bool


@dataclass(frozen=True)
class LoadOptions:
    """Options of a command that override a trial's settings, or other models' defaults; None: no override."""

    quantization: str | None = None
    compute_dtype: str | None = None
    chat_template: str | None = None

    def over(self, settings: ModelSettings) -> ModelSettings:
        """Return the settings with these options applied."""
        return settings.model_copy(update={key: value for key, value in vars(self).items() if value is not None})


def load_model(path: str, choices: LoadOptions | None = None) -> LoadedModel:
    """Load an adapter folder by `AutoPeftModelForCausalLM`, as its users do, or a model folder or hub name.

    A trial's own `adapter/` is loaded on its base as the trial loaded that. Raises `ModelError` if it can't be loaded.
    """
    choices = choices or LoadOptions()
    tokenizer, _ = check_model(path, choices)
    if not is_adapter(path):
        return LoadedModel(load_base(choices.over(ModelSettings(name=path))), tokenizer, is_adapter=False)
    from peft import AutoPeftModelForCausalLM

    base = base_settings(path)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            arguments = weight_arguments(choices.over(base))
            model = AutoPeftModelForCausalLM.from_pretrained(path, **arguments, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise cannot_load(path, error) from error
    refuse_missing(said, Path(path), base)
    keep_gradients_on_cpu(model)
    return LoadedModel(model, tokenizer, is_adapter=True)


def check_model(path: str, choices: LoadOptions | None = None) -> tuple[PreTrainedTokenizerBase, Vocabulary | None]:
    """Return the tokenizer of an adapter or a model, and the tokens that the model knows; None: unknown.

    Raises `ModelError` for every fault that shows without loading weights. First of these is an export whose files are
    no longer the verified ones.
    """
    choices = choices or LoadOptions()
    refuse_changed(path)
    if not is_adapter(path):
        settings = choices.over(ModelSettings(name=path))
        tokenizer = _tokenizer_of(path, choices)
        check_base(settings)
        return tokenizer, vocabulary(settings)
    check_json_files(Path(path))
    base = base_settings(path)
    tokenizer = _tokenizer_of(path, choices)
    check_base(base)
    has_own = (Path(path) / "tokenizer_config.json").is_file()
    try:
        known = check_fit(Path(path), base, len(tokenizer) if has_own else None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise cannot_load(path, error) from error
    return tokenizer, vocabulary(base) if known is None else Vocabulary(path, known)


def _tokenizer_of(path: str, choices: LoadOptions) -> PreTrainedTokenizerBase:
    return load_tokenizer(choices.over(tokenizer_settings(path)))


@dataclass(frozen=True)
class EvalJob:
    """Evaluation that is ready to run: its rows are checked and tokenised, its weights are not loaded yet."""

    path: str
    choices: LoadOptions
    task: EvalTask
    split: Split
    rows: EvalRows

    def evaluate(self) -> EvalResult:
        """Load the model and evaluate it."""
        return evaluate(load_model(self.path, self.choices), self.path, self.split, self.task)

    def evaluate_with_base(self) -> tuple[EvalResult, EvalResult]:
        """Load the adapter and evaluate it, then its base."""
        loaded = load_model(self.path, self.choices)
        ours = evaluate(loaded, self.path, self.split, self.task)
        return ours, evaluate(loaded, "base", self.split, self.task, base=True)


def prepare(path: str, choices: LoadOptions, task: EvalTask, settings: DataSettings) -> EvalJob:
    """Check all that can be checked without weights. Raises `ModelError` or `DataError`.

    Fewer than two rows are refused, because an interval needs two.
    """
    tokenizer, known = check_model(path, choices)
    split = load_split(settings, tokenizer)
    if len(split) < 2:
        raise DataError(f"{task.data}: only one row can be used, and an interval needs at least two. Give more.")
    if known is not None:
        known.refuse_rows({"the": split}, tokenizer)
    return EvalJob(path, choices, task, split, _rows(path, task, split))


def evaluate(loaded: LoadedModel, name: str, split: Split, task: EvalTask, *, base: bool = False) -> EvalResult:
    """Return the losses of all rows, and answers if asked for; `base`: of the base, with the adapter switched off.

    Raises `ModelError` if a loss isn't finite, because all results would depend on it.
    """
    found = losses(loaded, split, task.batch_rows, base=base)
    broken = sum(not math.isfinite(loss) for loss in found.loss_sums)
    if broken:
        raise ModelError(f"{name} has no finite loss on {broken} of {len(split)} rows: its weights are broken.")
    given = None
    if task.answers:
        logger.info("%s: eval loss %.4f; now it answers %d rows, which takes longer", name, found.mean, len(split))
        given = _answer_all(loaded, split, task, base=base)
    return EvalResult(_rows(name, task, split), task.format, found, given)


def _rows(name: str, task: EvalTask, split: Split) -> EvalRows:
    return EvalRows(name, task.data, len(split), rows_hash(split.examples))


def losses(loaded: LoadedModel, split: Split, batch_rows: int, *, base: bool = False) -> RowLosses:
    """Return the loss of every row; `base`: of the base model, with the adapter switched off."""
    with _as_base(loaded, base):
        return evaluate_rows(loaded.model, split.rows, batch_rows)


def _answer_all(loaded: LoadedModel, split: Split, task: EvalTask, *, base: bool) -> Answers:
    examples, labelled = list(split.examples), task.format in LABELLED
    texts = answers(loaded, examples, task.max_new_tokens, base=base, until_object=labelled, batch_rows=task.batch_rows)
    return Answers(
        texts=tuple(texts),
        tokens=_lengths(loaded.tokenizer, texts),
        reference_tokens=_lengths(loaded.tokenizer, (e.completion for e in examples)),
        labels=tuple(e.label for e in examples if e.label is not None) if labelled else None,
        scores=task_score(task.format, texts, examples),
        wordless_references=sum(not has_words(e.completion) for e in examples),
    )


def answers(
    loaded: LoadedModel,
    examples: Sequence[Example],
    max_new_tokens: int | None = None,
    *,
    base: bool = False,
    until_object: bool = False,
    batch_rows: int = 32,
) -> list[str]:
    """Return greedy answers to the examples' questions.

    `max_new_tokens` None: about twice the longest reference. `base`: answers of the base model, with the adapter
    switched off. `until_object` and `batch_rows` are those of `trials.evaluation.generation.generate`.
    """
    limit = max_new_tokens or 2 * (max(_lengths(loaded.tokenizer, (e.completion for e in examples))) + 1)
    asked = [example.prompt for example in examples]
    with _as_base(loaded, base):
        return generate(loaded.model, loaded.tokenizer, asked, Sampling(limit), batch_rows, until_object=until_object)


def _lengths(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> tuple[int, ...]:
    """Return the tokens of each text, without BOS and EOS."""
    return tuple(map(len, encode(list(texts), tokenizer)))


def _as_base(loaded: LoadedModel, base: bool) -> AbstractContextManager[None]:
    off: AbstractContextManager[None] = loaded.model.disable_adapter() if base and loaded.is_adapter else nullcontext()
    return off


def against_base(winner: RowLosses, base: RowLosses) -> dict[str, float]:
    """Return the drop in loss against the base, in nats per token, with its paired standard error."""
    gain = compare(winner, base)
    return {"base_eval_loss": base.mean, "difference": gain.difference, "standard_error": gain.standard_error}


def samples(loaded: LoadedModel, split: Split, count: int) -> list[dict[str, str]]:
    """Return the base's and the adapter's answers to the first rows, beside the expected answers."""
    shown = split.examples[:count]
    ours, bases = answers(loaded, shown), answers(loaded, shown, base=True)
    return [
        {"id": e.id, "prompt": e.prompt_text, "expected": e.completion, "base": base, "winner": answer}
        for e, base, answer in zip(shown, bases, ours, strict=True)
    ]
