"""Properties of a base model that decide how it is trained, read from its config. Loads no torch on import."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from typing import Any

from trials.errors import ModelError, first_line

ARCHITECTURES = ("llama", "mistral")
"""`model_type` of the base models whose layers the engine computes itself."""
LINEAR_NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")
"""Last part of the names of their linear layers."""


@dataclass(frozen=True)
class ModelShape:
    """Shape of a base model, under transformers' names.

    For architectures outside `ARCHITECTURES` only `model_type` is used. search.json holds it, so that a search's own
    processes need no torch, without which transformers reads no config.
    """

    model_type: str
    num_hidden_layers: int = 0
    hidden_size: int = 0
    intermediate_size: int = 0
    num_attention_heads: int = 0
    num_key_value_heads: int = 0
    head_dim: int | None = None
    """None: `hidden_size` divided by the number of heads."""
    vocab_size: int = 0
    tie_word_embeddings: bool = False
    hidden_act: str | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = None
    """Tokens; None: every token attends to all before it."""

    @property
    def head_size(self) -> int:
        """Features of an attention head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @classmethod
    def of(cls, config: Any) -> ModelShape:
        """Return the shape that transformers' config of a model gives."""
        known = {field.name: getattr(config, field.name, None) for field in fields(cls)}
        return cls(**{name: value for name, value in known.items() if value is not None})


@functools.lru_cache(maxsize=8)
def model_shape(name: str, revision: str | None) -> ModelShape:
    """Return the shape of a base model, without its weights.

    Raises `ModelError` if its config can't be read.
    """
    from transformers import AutoConfig

    try:
        return ModelShape.of(AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"can't read the config of {name!r}: {first_line(error)}. Give a model folder, or a name on the hub."
        ) from error
