"""An adapter's files, against those that PEFT writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from search_spaces.schema import Recipe
from trials.config import TrialConfig
from trials.model.adapter_files import WEIGHTS, read_weights, save_adapter
from trials.model.loading import attach_adapter, load_base


def _settings(path: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((path / "adapter_config.json").read_text())
    settings["target_modules"] = sorted(settings["target_modules"])  # a set, in whatever order
    return settings


def _adapted(recipe: Recipe, revision: str | None = None, **hyperparameters: Any) -> tuple[TrialConfig, PeftModel]:
    config = recipe.trial_config(hyperparameters)
    model = attach_adapter(load_base(config.model), config.hyperparameters, revision)
    config = config.model_copy(update={"model": config.model.model_copy(update={"revision": revision})})
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    return config, model


def _parameters(model: PeftModel) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize(
    ("revision", "values"),
    [
        (None, {"lora_rank": 3, "lora_alpha": 24.5}),
        ("abc", {"target_modules": ["down_proj", "k_proj"], "use_rslora": True, "lora_dropout": 0.0}),
    ],
)
def test_they_are_those_of_peft(
    small_recipe: Recipe, tmp_path: Path, revision: str | None, values: dict[str, Any]
) -> None:
    config, model = _adapted(small_recipe, revision, **values)
    model.save_pretrained(str(tmp_path / "theirs"), save_embedding_layers=False)
    save_adapter(_parameters(model), config, tmp_path / "ours")
    names = {path.name for path in (tmp_path / "theirs").iterdir()}
    assert {path.name for path in (tmp_path / "ours").iterdir()} == names - {"README.md"}
    assert _settings(tmp_path / "ours") == _settings(tmp_path / "theirs")
    ours, theirs = (tmp_path / name / "adapter_model.safetensors" for name in ("ours", "theirs"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_peft_loads_what_we_wrote_and_we_read_it_back(small_recipe: Recipe, tmp_path: Path) -> None:
    config, model = _adapted(small_recipe, lora_rank=4)
    expected = {name: value.detach().clone() for name, value in _parameters(model)}
    save_adapter(_parameters(model), config, tmp_path)
    loaded = PeftModel.from_pretrained(load_base(config.model), str(tmp_path), is_trainable=True)
    for found in (dict(_parameters(loaded)), read_weights(tmp_path / WEIGHTS)):
        assert set(found) == set(expected)
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_slices_of_one_buffer_are_saved_each_for_itself(small_recipe: Recipe, tmp_path: Path) -> None:
    config, model = _adapted(small_recipe, lora_rank=4)
    whole = torch.cat([value.detach().flatten() for _, value in _parameters(model)])
    sizes = [value.numel() for _, value in _parameters(model)]
    pieces = zip(_parameters(model), whole.split(sizes), strict=True)
    slices = [(name, torch.nn.Parameter(piece.view_as(value))) for (name, value), piece in pieces]
    save_adapter(slices, config, tmp_path / "slices")
    save_adapter(_parameters(model), config, tmp_path / "whole")
    assert (tmp_path / "slices/adapter_model.safetensors").read_bytes() == (
        tmp_path / "whole/adapter_model.safetensors"
    ).read_bytes()
