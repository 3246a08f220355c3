"""Configurations that the engine can train; all others go to TRL automatically. Importing this loads no torch."""

from __future__ import annotations

from trials.config import TrialConfig
from trials.model.architecture import ARCHITECTURES, ModelShape, model_shape

HEAD_SIZES = (16, 32, 64, 128, 256)
"""Sizes of an attention head that the GPU kernels support."""


def unsupported_reason(config: TrialConfig, processes: int = 1, base: ModelShape | None = None) -> str | None:
    """Return why the engine can't run this configuration, as a phrase; None if it can.

    `processes` is the number of processes a trial. `base` is the shape of the base model; None: its config is read.

    Raises:
        ModelError: If that config can't be read.
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
    base = base or model_shape(config.model.name, config.model.revision)
    return _why_not_model(base, config.data.max_length_tokens)


def _why_not_model(base: ModelShape, longest_row: int) -> str | None:
    if base.model_type not in ARCHITECTURES:
        return f"the engine computes {' and '.join(ARCHITECTURES)} models, and this one is {base.model_type}"
    size, window = base.head_size, base.sliding_window
    if size not in HEAD_SIZES:
        return f"the engine computes attention heads of {', '.join(map(str, HEAD_SIZES))}, and this model's are {size}"
    if base.attention_bias or base.mlp_bias or base.hidden_act != "silu":
        return "the engine has layers without biases and with SiLU, and this model's are others"
    if window is not None and longest_row > window:
        return f"the engine has no sliding window, and this model's is of {window} tokens, fewer than max_length_tokens"
    return None
