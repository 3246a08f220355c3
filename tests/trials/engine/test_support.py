from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trials.config import TrialConfig
from trials.engine.support import unsupported_reason
from trials.errors import ModelError


def changed(config: TrialConfig, **values: Any) -> TrialConfig:
    return config.model_copy(update={"hyperparameters": config.hyperparameters.model_copy(update=values)})


def on_model(config: TrialConfig, name: Path) -> TrialConfig:
    return config.model_copy(update={"model": config.model.model_copy(update={"name": str(name)})})


def test_the_usual_configuration_is_for_the_engine(small_config: TrialConfig) -> None:
    usual = changed(small_config, use_rslora=True, loraplus_ratio=4.0, target_modules=("q_proj", "down_proj"))
    assert unsupported_reason(usual) is None


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"use_dora": True}, "no DoRA"),
        ({"neftune_noise_alpha": 5.0}, "no NEFTune"),
        ({"target_modules": ("q_proj", "lm_head")}, "no adapter on lm_head"),
    ],
)
def test_what_it_cannot_do_is_said(small_config: TrialConfig, values: dict[str, Any], reason: str) -> None:
    assert reason in str(unsupported_reason(changed(small_config, **values)))


def test_a_base_that_processes_share_is_another_s(small_config: TrialConfig) -> None:
    machine = small_config.machine.model_copy(update={"fsdp": True})
    shared = small_config.model_copy(update={"machine": machine})
    assert unsupported_reason(shared) is None
    assert "machine.fsdp asks to share it" in str(unsupported_reason(shared, processes=2))
    assert unsupported_reason(small_config, processes=2) is None


@pytest.mark.parametrize(("kind", "allowed"), [("llama", True), ("gpt_neox", False)])
def test_the_base_model_decides_as_well(tmp_path: Path, small_config: TrialConfig, kind: str, allowed: bool) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    reason = unsupported_reason(on_model(small_config, tmp_path))
    assert (reason is None) is allowed
    assert allowed or str(reason).endswith("this one is gpt_neox")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"hidden_size": 3200, "num_attention_heads": 32}, "this model's are 100"),
        ({"hidden_size": 3200, "num_attention_heads": 32, "head_dim": 128}, None),
        ({"mlp_bias": True}, "biases"),
        ({"hidden_act": "gelu"}, "SiLU"),
    ],
)
def test_layers_that_it_does_not_compute_are_another_s(
    tmp_path: Path, small_config: TrialConfig, values: dict[str, Any], reason: str | None
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **values}))
    found = unsupported_reason(on_model(small_config, tmp_path))
    assert found is None if reason is None else reason in str(found)


@pytest.mark.parametrize(("window", "allowed"), [(None, True), (4096, True), (512, False)])
def test_rows_longer_than_a_sliding_window_are_another_s(
    tmp_path: Path, small_config: TrialConfig, window: int | None, allowed: bool
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mistral", "sliding_window": window}))
    data = small_config.data.model_copy(update={"max_length_tokens": 2048})
    found = unsupported_reason(on_model(small_config.model_copy(update={"data": data}), tmp_path))
    assert (found is None) is allowed
    assert allowed or "512 tokens" in str(found)


def test_a_model_that_is_not_there_is_an_error_of_ours(tmp_path: Path, small_config: TrialConfig) -> None:
    with pytest.raises(ModelError, match="can't read the config of"):
        unsupported_reason(on_model(small_config, tmp_path / "nothing"))
