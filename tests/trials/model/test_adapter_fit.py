"""An adapter that isn't its base model's is refused before weights are loaded, whatever PEFT would make of it."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from search_spaces.schema import Recipe
from trials import evaluate, generate
from trials.errors import ModelError
from trials.evaluation.evaluator import check_model
from trials.model.adapter_fit import refuse_missing

WEIGHTS = "adapter_model.safetensors"
Weights = dict[str, torch.Tensor]


def _save(folder: Path, base: str, *, tokens: int | None = None, pickled: bool = False, **settings: Any) -> Path:
    """An adapter as PEFT saves it, whose B isn't zero; `tokens` enlarges its base's embedding before."""
    model = AutoModelForCausalLM.from_pretrained(base)
    if tokens is not None:
        model.resize_token_embeddings(tokens, mean_resizing=False)
    config = LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **settings})
    adapted = get_peft_model(model, config)
    for name, value in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value.data, std=0.1)
    adapted.peft_config["default"].base_model_name_or_path = base
    adapted.save_pretrained(str(folder), safe_serialization=not pickled)
    return folder


@pytest.fixture(scope="module")
def saved(small_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save(tmp_path_factory.mktemp("fit") / "adapter", small_recipe.model.name)


@pytest.fixture
def adapter(saved: Path, tmp_path: Path) -> Path:
    """One of one's own, to be changed."""
    return Path(shutil.copytree(saved, tmp_path / "adapter"))


def _change(adapter: Path, change: Callable[[Weights], Weights]) -> None:
    save_file(change(load_file(adapter / WEIGHTS)), adapter / WEIGHTS)


def test_an_adapter_on_its_base_passes(saved: Path, small_recipe: Recipe) -> None:
    _, known = check_model(str(saved))
    assert known is not None
    assert (known.model, known.size) == (small_recipe.model.name, 1536)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"use_rslora": True, "target_modules": "all-linear"},
        {"modules_to_save": ["lm_head"]},
        {"init_lora_weights": "pissa"},
        {"layers_to_transform": [1, 2]},
        {"rank_pattern": {"q_proj": 2}},
        {"trainable_token_indices": [3, 4]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"pickled": True},
    ],
    ids=str,
)
def test_every_kind_of_lora_passes_that_peft_saves(
    settings: dict[str, Any], small_recipe: Recipe, tmp_path: Path
) -> None:
    check_model(str(_save(tmp_path, small_recipe.model.name, **settings)))


def test_dora_without_its_magnitudes(small_recipe: Recipe, tmp_path: Path) -> None:
    adapter = _save(tmp_path, small_recipe.model.name, use_dora=True)
    _change(adapter, lambda weights: {name: each for name, each in weights.items() if "magnitude" not in name})
    with pytest.raises(ModelError, match=r"it lacks 12 weights, such as .*lora_magnitude_vector"):
        check_model(str(adapter))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda weights: {
                n.replace(".model.layers.", ".model.language_model.layers."): v for n, v in weights.items()
            },
            r"not one of its 24 weights belongs to a layer of it",
        ),
        (
            lambda weights: {n: v for n, v in weights.items() if ".layers.5." not in n},
            r"it lacks 4 weights, such as .*layers\.5\.",
        ),
        (
            lambda weights: {**weights, **{n.replace("layers.5", "layers.6"): v.clone() for n, v in weights.items()}},
            r"only 24 of its 28 weights belong to a layer of it \(no layer for .*layers\.6\.",
        ),
        (
            lambda weights: {n: torch.cat([v, v], dim=1) if "lora_A" in n else v for n, v in weights.items()},
            r"q_proj\.lora_A\.default\.weight is 4 x 256, and on this base it would be 4 x 128",
        ),
        (lambda _: {}, r"hold nothing"),
    ],
)
def test_weights_that_belong_to_another_model(adapter: Path, change: Callable[[Weights], Weights], says: str) -> None:
    _change(adapter, change)
    with pytest.raises(ModelError, match=says):
        check_model(str(adapter))


def test_layers_that_the_base_does_not_have(adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["c_attn"]}))
    with pytest.raises(ModelError, match=r"doesn't fit the base model .*: Target modules \{'c_attn'\} not found"):
        check_model(str(adapter))


def test_a_base_whose_vocabulary_was_enlarged(small_recipe: Recipe, tmp_path: Path) -> None:
    adapter = _save(tmp_path, small_recipe.model.name, tokens=1540, modules_to_save=["embed_tokens", "lm_head"])
    with pytest.raises(ModelError, match=r"its model\.embed_tokens\.weight is of 1,540 tokens, and the base has 1,536"):
        check_model(str(adapter))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "but a Git LFS pointer to one"),
        (b"", "it's empty"),
        (None, r"has no weights: there is no adapter_model\.safetensors and no adapter_model\.bin"),
    ],
)
@pytest.mark.parametrize("command", [evaluate.main, generate.main])
def test_the_commands_say_it_in_one_message(
    adapter: Path,
    content: bytes | None,
    says: str,
    command: Callable[[list[str]], int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    if content is None:
        (adapter / WEIGHTS).unlink()
    else:
        (adapter / WEIGHTS).write_bytes(content)
    options = ["--prompt", "Who?"] if command is generate.main else ["--data", "rows.jsonl"]
    assert command([str(adapter), *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert says.replace("\\", "") in said


def test_a_configuration_that_is_a_pointer(adapter: Path) -> None:
    (adapter / "adapter_config.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ModelError, match=r"adapter_config\.json is no JSON file but a Git LFS pointer"):
        check_model(str(adapter))


def test_what_cannot_be_seen_beforehand_is_seen_as_it_is_loaded(adapter: Path, small_recipe: Recipe) -> None:
    """As with models whose weights PEFT renames."""
    _change(adapter, lambda weights: {name: each for name, each in weights.items() if ".layers.5." not in name})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        AutoPeftModelForCausalLM.from_pretrained(str(adapter))
    with pytest.raises(ModelError, match=r"doesn't fit the base model .*Found missing adapter keys.*layers\.5\."):
        refuse_missing(said, adapter, small_recipe.model)


def test_the_base_of_an_adapter_is_looked_at_too(adapter: Path, small_recipe: Recipe, tmp_path: Path) -> None:
    base = shutil.copytree(small_recipe.model.name, tmp_path / "base")
    (base / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))
    with pytest.raises(ModelError, match=r"model\.safetensors is no safetensors file but a Git LFS pointer"):
        check_model(str(adapter))


def test_a_base_that_is_gone(adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "/gone/model"}))
    with pytest.raises(ModelError, match="/gone/model"):
        check_model(str(adapter))
