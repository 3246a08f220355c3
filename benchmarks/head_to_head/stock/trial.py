"""One trial of the stock search: TRL's SFTTrainer with a PEFT adapter on a bitsandbytes NF4 base.

Nothing of it is held back: rows are tokenised beforehand by the code that all rivals share, the adapter stays in
float32, dropout, clipping and schedule are the recipe's, the micro-batch is the largest that fits and AdamW is fused.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.engine import jobs
from search_spaces.schema import Recipe
from trials.config import DataSettings, Hyperparameters, ModelSettings
from trials.schedule import full_length, largest_divisor
from trials.system.files import append_json_line, replace_folder, write_json

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel
    from trl import SFTConfig, SFTTrainer

    from trials.data.dataset import TrialData

EVAL_BATCH_ROWS = 16
_USUAL_SCHEDULES = {"cosine", "linear", "constant", "constant_with_warmup"}
POINT_FILE = "point.json"
"""Beside an adapter: the evaluation that it had."""


@dataclass(frozen=True)
class Fit:
    """What fits the machine, found before the wall clock starts (`benchmarks.head_to_head.stock.fit`)."""

    trials_at_once: int
    micro_batch_rows: int | None
    """Most rows of one forward pass; None: a whole batch."""
    gradient_checkpointing: bool
    base: str | None
    """Folder of the base model in 4 bits, so that no trial has to quantise it again; None: there is none."""
    gpu_memory_gib: float | None
    """GPU memory of all trials together; None: on the CPU."""


@dataclass(frozen=True)
class Request:
    """A stock search: the recipe, as JSON, and what fits."""

    recipe: dict[str, Any]
    fit: Fit

    def write(self, path: Path) -> None:
        """Write it for another process."""
        write_json(path, asdict(self))


def read_request(path: Path) -> tuple[Recipe, Fit]:
    """Read what `Request.write` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return Recipe.model_validate_json(json.dumps(content["recipe"])), Fit(**content["fit"])


@dataclass(frozen=True)
class Length:
    """Steps of a trial in all, and from one evaluation to the next."""

    steps: int
    every: int


def trial_length(recipe: Recipe, hyperparameters: Hyperparameters, data: TrialData) -> Length:
    """Return the recipe's own length for a trial's batch, and as many evaluations as the recipe asks for."""
    steps = full_length(hyperparameters, data.train.epoch).steps
    return Length(steps, max(1, steps // recipe.evaluation.evaluations))


def load_rows(recipe: Recipe) -> tuple[Any, TrialData]:
    """Return tokenizer and rows, which all rivals read by the same code; a process reads them once."""
    return _rows_of(recipe.model, recipe.data)


@cache
def _rows_of(model: ModelSettings, data: DataSettings) -> tuple[Any, TrialData]:
    from trials.data.dataset import load_data
    from trials.model.loading import load_tokenizer

    tokenizer = load_tokenizer(model)
    return tokenizer, load_data(data, tokenizer)


def limit_memory(fit: Fit) -> None:
    """Allow this process its share of the GPU's memory."""
    if fit.gpu_memory_gib is not None:
        jobs.limit_memory(fit.gpu_memory_gib / fit.trials_at_once)


def load_model(recipe: Recipe, base: str | None) -> PreTrainedModel:
    """Load the base in NF4 with double quantisation; `base`: a folder where it is quantised already."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if on_gpu else torch.float32
    arguments: dict[str, Any] = {"dtype": dtype, "device_map": {"": 0} if on_gpu else None}
    if recipe.model.quantization == "nf4" and base is None:
        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    revision = recipe.model.revision if base is None else None
    model = AutoModelForCausalLM.from_pretrained(
        base or recipe.model.name, revision=revision, trust_remote_code=False, **arguments
    )
    model.name_or_path = recipe.model.name  # PEFT writes it into the adapter, and the judge loads that base
    loaded: PreTrainedModel = model
    return loaded


def make_trainer(
    recipe: Recipe, hyperparameters: Hyperparameters, fit: Fit, length: Length, folder: Path, callbacks: list[Any]
) -> SFTTrainer:
    """Return a trainer that is ready for `train()`."""
    import torch
    from trl import SFTTrainer

    from trials.model.loading import keep_gradients_on_cpu

    tokenizer, data = load_rows(recipe)
    trainer = SFTTrainer(
        model=load_model(recipe, fit.base),
        args=_arguments(hyperparameters, fit, length, folder, recipe.search.seed),
        train_dataset=data.train.for_training,
        eval_dataset=data.eval.for_training,
        processing_class=tokenizer,
        callbacks=callbacks,
        peft_config=_adapter(recipe, hyperparameters),
    )
    # TRL has made the adapter bfloat16 (trl 1.16), in which small learning rates train nothing.
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    if not torch.cuda.is_available():
        keep_gradients_on_cpu(trainer.model)  # else bitsandbytes ends training on some CPUs at the first evaluation
    return trainer


def _arguments(hyperparameters: Hyperparameters, fit: Fit, length: Length, folder: Path, seed: int) -> SFTConfig:
    import torch
    from trl import SFTConfig

    on_gpu, batch = torch.cuda.is_available(), hyperparameters.effective_batch
    rows = micro_batch(batch, fit.micro_batch_rows)
    return SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=rows,
        per_device_eval_batch_size=EVAL_BATCH_ROWS,
        gradient_accumulation_steps=batch // rows,
        gradient_checkpointing=fit.gradient_checkpointing,
        max_steps=length.steps,
        learning_rate=hyperparameters.learning_rate,
        lr_scheduler_type=usual_schedule(hyperparameters.scheduler),
        warmup_steps=int(hyperparameters.warmup_fraction * length.steps),
        weight_decay=hyperparameters.weight_decay,
        optim=_fused(hyperparameters.optimizer) if on_gpu else hyperparameters.optimizer,
        max_grad_norm=hyperparameters.max_grad_norm or 0.0,
        neftune_noise_alpha=hyperparameters.neftune_noise_alpha or None,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        use_liger_kernel=on_gpu and importlib.util.find_spec("liger_kernel") is not None,
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_pin_memory=on_gpu,
        eval_strategy="steps",
        eval_steps=length.every,
        save_strategy="no",
        logging_steps=max(1, length.every),
        report_to="none",
        disable_tqdm=True,
        seed=seed,
    )


def usual_schedule(name: str) -> str:
    """Return a schedule as its users know it: one of our own becomes the cosine that a user of TRL would take."""
    return name if name in _USUAL_SCHEDULES else "cosine"


def _fused(optimizer: str) -> str:
    return "adamw_torch_fused" if optimizer == "adamw_torch" else optimizer


def micro_batch(batch_rows: int, most: int | None) -> int:
    """Return the largest divisor of a batch that is at most `most`; None: the whole batch."""
    return largest_divisor(batch_rows, batch_rows if most is None else most)


def _adapter(recipe: Recipe, hyperparameters: Hyperparameters) -> LoraConfig:
    from trials.model.loading import lora_config, named_targets

    targets = named_targets(recipe.model, hyperparameters.target_modules)
    return lora_config(hyperparameters.model_copy(update={"target_modules": targets}))


Report = Callable[[dict[str, float]], None]


def train(recipe: Recipe, hyperparameters: Hyperparameters, fit: Fit, folder: Path, report: Report) -> None:
    """Train one trial; keep its best adapter and all its evaluations in `folder`, and report each evaluation."""
    import torch
    from transformers import TrainerCallback

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    _, data = load_rows(recipe)
    length = trial_length(recipe, hyperparameters, data)
    row_tokens, batch = data.train.epoch.row_tokens, hyperparameters.effective_batch
    began, best = time.monotonic(), [math.inf]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "hyperparameters.json", hyperparameters.model_dump(mode="json"))

    class KeepAndReport(TrainerCallback):  # type: ignore[misc]
        """Callback that writes an evaluation and its adapter, before Tune may end the trial."""

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, model: Any, **kwargs: Any) -> None:
            loss, step = float(metrics["eval_loss"]), int(state.global_step)
            point = {"step": step, "tokens_seen": round(step * batch * row_tokens), "eval_loss": loss}
            if math.isfinite(loss):
                if loss < best[0]:
                    best[0] = loss
                    _keep(model, point, folder)
                append_json_line(folder / "metrics.jsonl", {**point, "seconds": time.monotonic() - began})
            shown = loss if math.isfinite(loss) else 1e3
            report({"eval_loss": shown, "best_eval_loss": min(best[0], shown), "rows": step * batch})

    make_trainer(recipe, hyperparameters, fit, length, folder / "trainer", [KeepAndReport()]).train()


def _keep(model: Any, point: dict[str, Any], folder: Path) -> None:
    beside = folder / f"adapter-{os.getpid()}"
    shutil.rmtree(beside, ignore_errors=True)
    model.save_pretrained(beside)
    write_json(beside / POINT_FILE, point)
    replace_folder(beside, folder / "adapter")
