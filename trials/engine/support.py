"""What the engine can train; every other configuration goes to TRL by itself. Loads no torch by being imported."""

from __future__ import annotations

import functools
from typing import Any

from trials.config import TrialConfig
from trials.errors import ModelError, first_line

ARCHITECTURES = ("llama", "mistral")
"""`model_type` of the base models whose layers the engine computes itself."""
HEAD_SIZES = (16, 32, 64, 128, 256)
"""Features of an attention head that the GPU's kernels know."""


def why_not(config: TrialConfig, processes: int = 1) -> str | None:
    """Why the engine can't run this configuration in so many processes a trial, in a sentence; None if it can.

    Raises `ModelError` if the base model's config can't be read.
    """
    hyperparameters = config.hyperparameters
    if hyperparameters.use_dora:
        return "the engine has no DoRA"
    if hyperparameters.neftune_noise_alpha:
        return "the engine has no NEFTune noise"
    if config.machine.fsdp and processes > 1:
        return "the engine holds the whole base in every process, and machine.fsdp asks to share it"
    if "lm_head" in hyperparameters.target_modules:
        return "the engine has no adapter on lm_head"
    return _why_not_model(model_config(config.model.name, config.model.revision), config.data.max_length_tokens)


def _why_not_model(model: Any, longest_row: int) -> str | None:
    if model.model_type not in ARCHITECTURES:
        return f"the engine computes {' and '.join(ARCHITECTURES)} models, and this one is {model.model_type}"
    size = getattr(model, "head_dim", None) or model.hidden_size // model.num_attention_heads
    if size not in HEAD_SIZES:
        return f"the engine computes attention heads of {', '.join(map(str, HEAD_SIZES))}, and this model's are {size}"
    if getattr(model, "attention_bias", False) or getattr(model, "mlp_bias", False) or model.hidden_act != "silu":
        return "the engine has layers without biases and with SiLU, and this model's are others"
    window = getattr(model, "sliding_window", None)
    if window is not None and longest_row > window:
        return f"the engine has no sliding window, and this model's is of {window} tokens, fewer than max_length_tokens"
    return None


@functools.lru_cache(maxsize=8)
def model_config(name: str, revision: str | None) -> Any:
    """The config of a base model, as transformers has it, without weights. Raises `ModelError` if it can't be read."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"can't read the config of {name!r}: {first_line(error)}. Give a model folder, or a name on the hub."
        ) from error
