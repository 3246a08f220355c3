"""Reads SmolLM2 from a GGUF file, as a model and a tokenizer that are like any other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trials.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def refuse_other_models(gguf: Path) -> None:
    """Raise `ModelError` unless it's a Llama with SmolLM's tokenizer: others split text otherwise."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ModelError('reading GGUF needs the package gguf. Run: pip install -e ".[smollm2]"') from error
    remedy = "Give the GGUF file of SmolLM2-135M-Instruct"
    try:
        fields = GGUFReader(gguf).fields
    except (OSError, ValueError, LookupError) as error:
        raise ModelError(f"{gguf} is no whole GGUF file ({error}). {remedy}.") from error
    for key, wanted in (("general.architecture", "llama"), ("tokenizer.ggml.pre", "smollm")):
        found = fields[key].contents() if key in fields else "missing"
        if found != wanted:
            raise ModelError(f"{gguf} isn't SmolLM2: its {key} is {found}, not {wanted}. {remedy}.")


def read_model(gguf: Path) -> PreTrainedModel:
    """Return the model with its dequantised weights, in an object of its own that can be saved and trained.

    A model that transformers loads from GGUF counts as quantised and refuses both.
    """
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
    )
    values: dict[str, Any] = loaded.config.to_dict()
    for key in ("quantization_config", "_model_name_or_path"):
        values.pop(key, None)
    # GGUF stores it in float32: 9.999999747378752e-06, which is 1e-05 again in the same float32 arithmetic.
    values["rms_norm_eps"] = float(f"{values['rms_norm_eps']:.6g}")
    model = AutoModelForCausalLM.from_config(
        type(loaded.config).from_dict(values), dtype=torch.float32, trust_remote_code=False
    )
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config = loaded.generation_config
    fresh: PreTrainedModel = model.eval()
    return fresh


def read_tokenizer(gguf: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer, with the splitting of digits that transformers drops when it reads GGUF (5.23).

    SmolLM's text is cut at every digit before anything else (`smollm` in llama.cpp); without that, white space in
    front of a number becomes other tokens than the model has learned.
    """
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        gguf.parent, gguf_file=gguf.name, trust_remote_code=False
    )
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer
