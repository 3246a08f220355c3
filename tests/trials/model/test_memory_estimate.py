"""Memory predicted from a config alone, against what is really loaded and what was measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, MistralConfig, Qwen2Config

from search_spaces.loader import load_recipe
from tests.trials.engine.model.test_decoder import model_of
from trials.config import TrialConfig
from trials.engine.lora.adapter import parameter_count
from trials.engine.model.frozen_base import freeze
from trials.model.activation_policy import ActivationPolicy
from trials.model.architecture import ModelShape
from trials.model.memory_estimate import allowed_gib, base_bytes, estimate_memory, sizes_of
from trials.model.memory_plan import adapter_bytes, workspace_bytes

MISTRAL = ModelShape.of(MistralConfig(sliding_window=None))
"""As its 7B model has it."""
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def _config(**values: Any) -> TrialConfig:
    return load_recipe("nli_cot", (), environ={}).recipe.trial_config(values)


def test_sizes_are_those_of_the_model_that_is_loaded() -> None:
    model = model_of().to(torch.float32)
    frozen = freeze(model, torch.float32)
    sizes = sizes_of(ModelShape.of(model.config), 4, is_quantized=False)
    assert sizes == frozen.sizes
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert base_bytes(ModelShape.of(model.config), sizes) == pytest.approx(
        4 * parameters, rel=0.01
    )  # without the norms


@pytest.mark.parametrize("modules", [["q_proj"], ["k_proj", "down_proj"], LINEAR], ids=len)
def test_adapters_are_those_that_are_trained(modules: list[str]) -> None:
    model = model_of()
    frozen = freeze(model, torch.float32)
    config = _config(target_modules=modules, lora_rank=8)
    config = config.model_copy(update={"model": config.model.model_copy(update={"quantization": "none"})})
    need = estimate_memory(config, ModelShape.of(model.config), 100, itemsize=4)
    assert need is not None
    parameters = parameter_count(frozen.targets, config.hyperparameters)
    assert need.adapter_bytes == adapter_bytes(parameters, config.hyperparameters, 4)
    assert need.micro_step_bytes == workspace_bytes(
        frozen.sizes, (ActivationPolicy.RECOMPUTE_ALL,) * frozen.sizes.layers, 100
    )


def test_the_average_of_an_adapter_takes_four_bytes_a_parameter() -> None:
    plain, averaged = (estimate_memory(_config(adapter_average=share), MISTRAL, 2048) for share in (0.0, 0.2))
    assert plain is not None
    assert averaged is not None
    per_parameter = adapter_bytes(1, _config(adapter_average=0.0).hyperparameters, 2)
    assert averaged.adapter_bytes - plain.adapter_bytes == 4 * plain.adapter_bytes // per_parameter


def test_a_7b_model_in_4_bits_takes_what_was_measured() -> None:
    need = estimate_memory(_config(), MISTRAL, 2048)
    assert need is not None
    assert need.base_bytes / 2**30 == pytest.approx(3.86, abs=0.03)  # facts: measured on an H100
    assert need.gib < allowed_gib(24)


def test_more_of_anything_takes_more() -> None:
    def gib(longest: int = 2048, *, in_engine: bool = True, is_recomputed: bool = True, **values: Any) -> float:
        need = estimate_memory(_config(**values), MISTRAL, longest, in_engine=in_engine, is_recomputed=is_recomputed)
        assert need is not None
        return need.gib

    assert gib(4096) > gib()
    assert gib(lora_rank=64) > gib(lora_rank=8)
    assert gib(target_modules=LINEAR) > gib(target_modules=["q_proj"])
    assert gib(target_modules=[*LINEAR, "lm_head"]) > gib(target_modules=LINEAR)
    assert gib(optimizer="adamw_torch") > gib(optimizer="paged_adamw_8bit")
    assert gib(in_engine=False) > gib()
    assert gib(is_recomputed=False) > gib()
    assert gib(lora_rank=1024, target_modules=LINEAR) > allowed_gib(24)


def test_a_small_model_is_kept_as_matrix_products_take_it() -> None:
    small = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    ours, trl = (
        estimate_memory(_config(), ModelShape.of(small), 512, in_engine=in_engine) for in_engine in (True, False)
    )
    assert ours is not None
    assert trl is not None
    assert ours.base_bytes > 2 * trl.base_bytes


def test_of_other_models_nothing_is_known() -> None:
    assert estimate_memory(_config(), ModelShape.of(Qwen2Config()), 100) is None
