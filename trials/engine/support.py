"""What the engine can train; every other configuration goes to TRL by itself. Loads no torch by being imported."""

from __future__ import annotations

import functools

from trials.config import TrialConfig
from trials.errors import ModelError, first_line

ARCHITECTURES = ("llama", "mistral")
"""`model_type` of the base models whose layers the engine computes itself."""


def why_not(config: TrialConfig) -> str | None:
    """Why the engine can't run this configuration, in a sentence; None if it can.

    Raises `ModelError` if the base model's config can't be read.
    """
    hyperparameters = config.hyperparameters
    if hyperparameters.use_dora:
        return "the engine has no DoRA"
    if hyperparameters.neftune_noise_alpha:
        return "the engine has no NEFTune noise"
    if "lm_head" in hyperparameters.target_modules:
        return "the engine has no adapter on lm_head"
    found = _model_type(config.model.name, config.model.revision)
    if found not in ARCHITECTURES:
        return f"the engine computes {' and '.join(ARCHITECTURES)} models, and this one is {found}"
    return None


@functools.lru_cache(maxsize=8)
def _model_type(name: str, revision: str | None) -> str:
    from transformers import AutoConfig

    try:
        return str(AutoConfig.from_pretrained(name, revision=revision).model_type)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"can't read the config of {name!r}: {first_line(error)}. Give a model folder, or a name on the hub."
        ) from error
