"""The base in 4 bits and the adapter on it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from trials.config import Hyperparameters, ModelSettings, TrialConfig
from trials.data.dataset import TrialData
from trials.errors import ModelError
from trials.model.loading import (
    attach_adapter,
    check_targets,
    empty_model,
    linear_names,
    load_base,
    load_tokenizer,
    named_targets,
)


def _adapted(config: TrialConfig, **hyperparameters: Any) -> PeftModel:
    return attach_adapter(load_base(config.model), Hyperparameters(epochs=1.0, **hyperparameters))


def _lora_layers(model: PeftModel) -> dict[str, LoraLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


@pytest.fixture(scope="module")
def base(small_config: TrialConfig) -> PreTrainedModel:
    return load_base(small_config.model)


def test_the_base_is_frozen_nf4_with_double_quantisation(base: PreTrainedModel) -> None:
    quantised = [module for module in base.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    assert len(quantised) == 7 * base.config.num_hidden_layers
    assert {module.weight.quant_state.quant_type for module in quantised} == {"nf4"}
    assert all(module.weight.quant_state.nested for module in quantised)
    assert {module.weight.dtype for module in quantised} == {torch.uint8}
    assert not any(parameter.requires_grad for parameter in base.parameters())


def test_quantisation_can_be_left_out(small_config: TrialConfig) -> None:
    whole = load_base(small_config.model.model_copy(update={"quantization": "none"}))
    assert not any(isinstance(module, bitsandbytes.nn.Linear4bit) for module in whole.modules())


def test_only_the_adapter_learns_and_it_starts_as_nothing(small_config: TrialConfig, small_data: TrialData) -> None:
    ids = torch.tensor([small_data.eval.rows[0].input_ids])
    model = _adapted(small_config).eval()
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning
    assert all("lora_" in name for name in learning)
    with torch.no_grad():
        adapted = model(input_ids=ids).logits
        with model.disable_adapter():
            plain = model(input_ids=ids).logits
    torch.testing.assert_close(adapted, plain, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("hyperparameters", "scaling"),
    [
        ({"lora_rank": 4, "lora_alpha": 16}, 4.0),
        ({"lora_rank": 8, "lora_alpha": 16}, 2.0),
        ({"lora_rank": 4, "lora_alpha": 32}, 8.0),
        ({"lora_rank": 4, "lora_alpha": 16, "use_rslora": True}, 16 / math.sqrt(4)),
    ],
)
def test_rank_alpha_and_rslora(small_config: TrialConfig, hyperparameters: dict[str, Any], scaling: float) -> None:
    layers = _lora_layers(_adapted(small_config, **hyperparameters)).values()
    assert {layer.r["default"] for layer in layers} == {hyperparameters["lora_rank"]}
    assert {layer.lora_A["default"].weight.shape[0] for layer in layers} == {hyperparameters["lora_rank"]}
    assert {layer.scaling["default"] for layer in layers} == {scaling}


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "v_proj"], ["up_proj", "down_proj", "o_proj"]])
def test_target_modules(small_config: TrialConfig, targets: list[str]) -> None:
    names = _lora_layers(_adapted(small_config, target_modules=targets))
    assert {name.rpartition(".")[2] for name in names} == set(targets)


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_dropout(small_config: TrialConfig, dropout: float) -> None:
    layers = _lora_layers(_adapted(small_config, lora_dropout=dropout)).values()
    assert {getattr(layer.lora_dropout["default"], "p", 0.0) for layer in layers} == {dropout}


@pytest.mark.parametrize("used", [True, False])
def test_dora(small_config: TrialConfig, used: bool) -> None:
    names = [name for name, p in _adapted(small_config, use_dora=used).named_parameters() if p.requires_grad]
    assert any("lora_magnitude_vector" in name for name in names) == used


def test_an_unknown_target_is_named_beside_the_known_ones(small_config: TrialConfig) -> None:
    with pytest.raises(ModelError, match=r"target_modules c_attn not in the base model\. Allowed: .*q_proj"):
        _adapted(small_config, target_modules=["q_proj", "c_attn"])


def test_linear_names(base: PreTrainedModel) -> None:
    assert {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"} <= linear_names(base)


@pytest.mark.parametrize("load", [load_base, load_tokenizer])
def test_a_model_that_is_not_there(load: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model in .*: there is no \w+\.json in it\. Give a folder"):
        load(ModelSettings(name=str(tmp_path)))
    with pytest.raises(ModelError, match=r"can't load the .* 'nobody/nothing': .* can reach\.$"):
        load(ModelSettings(name="nobody/nothing"))


def test_a_tokenizer_without_padding_pads_with_eos(small_config: TrialConfig, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(small_config.model)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(ModelSettings(name=str(tmp_path))).pad_token == tokenizer.eos_token


def test_the_adapter_remembers_the_revision_of_its_base(small_config: TrialConfig, tmp_path: Path) -> None:
    model = attach_adapter(load_base(small_config.model), small_config.hyperparameters, revision="1f2e")
    model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["revision"] == "1f2e"


def _config_only(folder: Path, **config: Any) -> ModelSettings:
    (folder / "config.json").write_text(json.dumps(config))
    return ModelSettings(name=str(folder))


def test_all_linear_is_what_peft_makes_of_it(small_config: TrialConfig, tmp_path: Path) -> None:
    """Of a model that the engine knows, and of one whose modules have to be looked at."""
    gpt = {"model_type": "gpt_neox", "num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2}
    for settings in (
        small_config.model,
        _config_only(tmp_path, **gpt, intermediate_size=32, vocab_size=64, rotary_pct=0.5),
    ):
        peft = get_peft_model(empty_model(settings), LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
        theirs = {name.rpartition(".")[2] for name in _lora_layers(peft)}
        names = named_targets(settings, ["all-linear"])
        assert set(names) == theirs
        assert len(names) == len(theirs)
        with pytest.raises(ModelError, match="target_modules c_attn not in the base model"):
            check_targets(settings, ["all-linear", "c_attn"])
    assert named_targets(small_config.model, ["v_proj", "all-linear", "lm_head"]) == (
        *("v_proj", "q_proj", "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"),
    )
