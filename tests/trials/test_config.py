"""What one trial is: strict, frozen, and the same after a trip through JSON."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from trials.config import EvaluationSettings, Hyperparameters, Machine, TrialConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rate": 0.0}, "greater than 0"),
        ({"learning_rate": float("nan")}, "finite"),
        ({"learning_rate": "1e-4"}, "valid number"),
        ({"lora_rank": True}, "valid integer"),
        ({"lora_rank": 8.0}, "valid integer"),
        ({"lora_dropout": 1.0}, "less than 1"),
        ({"lora_alpha": 0}, "greater than 0"),
        ({"use_dora": 1}, "valid boolean"),
        ({"target_modules": []}, "at least 1"),
        ({"scheduler": "cosin"}, "'cosine'"),
        ({"optimizer": "sgd"}, "adamw_torch"),
        ({"loraplus_ratio": 0.5}, "greater than or equal to 1"),
        ({"warmup_fraction": 1.0}, "less than 1"),
        ({"effective_batch": 0}, "greater than or equal to 1"),
        ({"learning_rat": 1e-4}, "Extra inputs"),
    ],
)
def test_a_value_out_of_bounds_or_of_another_type_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Hyperparameters(epochs=1.0, **values)


@pytest.mark.parametrize("length", [{}, {"epochs": 1.0, "train_tokens": 1000}])
def test_exactly_one_length(length: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="give exactly one of epochs, train_tokens and rows_seen"):
        Hyperparameters(**length)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Machine().micro_batch_tokens = 1  # type: ignore[misc]


def test_a_divergence_factor_of_one_would_end_every_trial() -> None:
    with pytest.raises(ValidationError, match="greater than 1"):
        EvaluationSettings(divergence_factor=1.0)


def test_json_and_back_is_the_same_config(small_config: TrialConfig) -> None:
    assert TrialConfig.model_validate_json(small_config.model_dump_json()) == small_config
