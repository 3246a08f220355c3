"""The names of the CoT-NLI guide's config files: what each may hold, and which of our settings it is.

`batch_size` is rows of one forward pass on one GPU, `eval_steps` and the like count optimizer steps.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trials.config import ALL_LINEAR

DISTRIBUTED_GPUS = 2
"""Number of GPUs that `distributed_training = True` stands for: the guide's preset is for two."""


@dataclass(frozen=True)
class ValueRule:
    """Rule for the values of a name: in words, and as a test."""

    words: str
    holds: Callable[[Any], bool]

    def or_none(self) -> ValueRule:
        """Return this rule with None allowed too."""
        return ValueRule(f"{self.words}, or None", lambda value: value is None or self.holds(value))


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_list_of_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(name, str) for name in value)


TEXT = ValueRule("text", lambda value: isinstance(value, str))
FLAG = ValueRule("True or False", lambda value: isinstance(value, bool))
COUNT = ValueRule("a whole number of at least 1", lambda value: _is_whole(value, 1))
INDEX = ValueRule("a whole number of at least 0", lambda value: _is_whole(value, 0))
NUMBER = ValueRule("a number", _is_number)
LIST = ValueRule("a list of names", _is_list_of_names)
TARGETS = ValueRule(f"{LIST.words}, or '{ALL_LINEAR}'", lambda value: value == ALL_LINEAR or LIST.holds(value))
ANYTHING = ValueRule("anything", lambda _: True)

# One name, one setting of ours, the same value.
_SAME: Mapping[str, tuple[ValueRule, str]] = {
    "model_id": (TEXT, "model.name"),
    "train_data": (TEXT, "data.train"),
    "eval_data": (TEXT, "data.eval"),
    "max_train_samples": (COUNT.or_none(), "data.train_rows"),
    "max_eval_samples": (COUNT.or_none(), "data.eval_rows"),
    "max_seq_length": (COUNT, "data.max_length_tokens"),
    "seed": (INDEX, "search.seed"),
    "lora_r": (COUNT, "hyperparameters.lora_rank"),
    "lora_alpha": (NUMBER, "hyperparameters.lora_alpha"),
    "lora_dropout": (NUMBER, "hyperparameters.lora_dropout"),
    "target_modules": (TARGETS, "hyperparameters.target_modules"),
    "num_epochs": (NUMBER, "hyperparameters.epochs"),
    "learning_rate": (NUMBER, "hyperparameters.learning_rate"),
    "lr_scheduler": (TEXT, "hyperparameters.scheduler"),
    "warmup_ratio": (NUMBER, "hyperparameters.warmup_fraction"),
    "weight_decay": (NUMBER, "hyperparameters.weight_decay"),
    "max_grad_norm": (NUMBER.or_none(), "hyperparameters.max_grad_norm"),
    "optimizer": (TEXT, "hyperparameters.optimizer"),
    "optim": (TEXT, "hyperparameters.optimizer"),
    "gradient_checkpointing": (FLAG, "machine.gradient_checkpointing"),
    "use_wandb": (FLAG, "tracking.wandb"),
    "wandb_run_id": (TEXT.or_none(), "tracking.run_id"),
    "save_total_limit": (COUNT.or_none(), "machine.keep_checkpoints"),
}
# Names without a counterpart here: the loss is logged all the time, and rows are never packed.
_IDLE: Mapping[str, ValueRule] = {
    "logging_steps": ANYTHING,
    "use_packing": FLAG,
    "resume_from_checkpoint": TEXT.or_none(),
}
NAMES: Mapping[str, ValueRule] = {
    **{name: kind for name, (kind, _) in _SAME.items()},
    **_IDLE,
    "batch_size": COUNT,
    "grad_accumulation_steps": COUNT,
    "eval_steps": COUNT,
    "save_steps": COUNT,
    "distributed_training": FLAG,
    "wandb_project": TEXT.or_none(),
    "wandb_name": TEXT.or_none(),
    "wandb_run_name": TEXT.or_none(),
    "gpu_id": INDEX,
    "output_dir": TEXT,
}
"""All names that a config file may set."""

GUIDE_DEFAULT: Mapping[str, Any] = {
    "model_id": "mistralai/Mistral-7B-v0.3",
    "train_data": "data/finetune/train_ft.jsonl",
    "eval_data": "data/finetune/dev_ft.jsonl",
    "output_dir": "models/mistral-7b-nli-cot",
    "seed": 42,
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "num_epochs": 2,
    "max_seq_length": 512,
    "batch_size": 16,
    "grad_accumulation_steps": 2,
    "learning_rate": 2e-4,
    "lr_scheduler": "cosine",
    "warmup_ratio": 0.03,
    "weight_decay": 0.01,
    "max_grad_norm": None,
    "logging_steps": 25,
    "eval_steps": 250,
    "save_steps": 250,
    "save_total_limit": 2,
    "wandb_project": "mistral_thinking_nli",
    "wandb_run_name": None,
    "wandb_run_id": None,
    "use_packing": False,
    "gradient_checkpointing": True,
    "use_wandb": True,
    "resume_from_checkpoint": None,
    "gpu_id": 0,
    "distributed_training": False,
}
"""The values of `train/configs/default.py` in the guide's repository (j-d0g/mistral-7b-nli)."""


def idle_names(given: Mapping[str, Any]) -> list[str]:
    """Return those of the names that have no effect here."""
    return [name for name in given if name in _IDLE]


def nearest_name(name: str, cutoff: float = 0.6) -> str | None:
    """Return the known name that is most like this one; None if none is."""
    near = difflib.get_close_matches(name.lower(), NAMES, n=1, cutoff=cutoff)
    return near[0] if near else None


def problem_with(name: str, value: Any) -> str | None:
    """Say what is wrong with a name or its value, and what to do; None if nothing is."""
    kind = NAMES.get(name)
    if kind is None:
        near = nearest_name(name)
        known = f"the nearest known one is {near!r}" if near else f"known are: {', '.join(sorted(NAMES))}"
        return f"unknown name {name!r}; {known}. Mend it, or let it begin with an underscore if it's a helper."
    if not kind.holds(value):
        return f"{name} = {value!r} is not allowed: give {kind.words}."
    if name == "use_packing" and value:
        return "use_packing = True is not allowed: rows are never packed here, so that none sees another. Set it False."
    if name == "resume_from_checkpoint" and value is not None:
        return (
            f"{name} = {value!r} is not allowed: a trial goes on in its own folder, with its own settings. Set it to "
            "None, and give that folder: python -m trials.train --resume DIR [--checkpoint STEP]."
        )
    return None


def translate(given: Mapping[str, Any]) -> dict[str, tuple[Any, tuple[str, ...]]]:
    """Return recipe settings under their dotted keys, each with the guide's names that it was made of.

    The values must have no problems. A missing factor, such as the accumulation steps of a lone `batch_size`, is the
    guide's default.
    """
    found: dict[str, tuple[Any, tuple[str, ...]]] = {
        key: (given[name], (name,)) for name, (_, key) in _SAME.items() if name in given
    }
    if "num_epochs" in given:  # a trial has one length
        found["hyperparameters.train_tokens"] = found["hyperparameters.rows_seen"] = (None, ("num_epochs",))
    if given.get("wandb_project") is not None:
        found["tracking.project"] = (given["wandb_project"], ("wandb_project",))
    run_names = [name for name in ("wandb_name", "wandb_run_name") if name in given]
    if run_names:
        used = next((name for name in run_names if given[name]), run_names[0])
        found["tracking.run_name"] = (given[used] or None, (used,))
    if "batch_size" in given:
        found["machine.micro_batch_rows"] = (given["batch_size"], ("batch_size",))
    return {**found, **_of_batch(given)}


def _of_batch(given: Mapping[str, Any]) -> dict[str, tuple[Any, tuple[str, ...]]]:
    complete = {**GUIDE_DEFAULT, **given}
    distributed = ("distributed_training",) if complete["distributed_training"] else ()
    factors = ("batch_size", "grad_accumulation_steps", *distributed)
    batch = complete["batch_size"] * complete["grad_accumulation_steps"] * (DISTRIBUTED_GPUS if distributed else 1)
    found: dict[str, tuple[Any, tuple[str, ...]]] = {}
    if any(name in given for name in factors):
        found["hyperparameters.effective_batch"] = (batch, factors)
    for name, key in (("eval_steps", "evaluation.every_rows"), ("save_steps", "machine.checkpoint_every_rows")):
        if name in given:
            found[key] = (given[name] * batch, (name, *factors))
    return found
