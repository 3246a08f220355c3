from typing import Any

import pytest
import yaml

from orchestrator.model_card import model_card
from search_spaces.recipe import load_recipe
from search_spaces.schema import Recipe


@pytest.fixture
def manifest(small_recipe: Recipe) -> dict[str, Any]:
    return {
        "trial": "0007",
        "trials": 12,
        "eval_loss": 0.5,
        "base_eval_loss": 3.25,
        "gain": {"difference": 2.75, "standard_error": 0.01},
        "starting_points": [
            {"trial": "0001", "name": "usual", "eval_loss": 1.0, "difference": 0.5, "standard_error": 0.1}
        ],
        "verified": {"eval_loss": 0.50001, "difference": 1e-5, "tolerance": 1e-3},
        "test": {"rows": 8, "eval_loss": 0.6, "base_eval_loss": 3.3, "difference": 2.7, "standard_error": 0.2},
        "config": small_recipe.trial_config({"lora_rank": 8}).model_dump(mode="json"),
        "base_model": {"name": "some/base", "revision": None},
    }


def test_the_card_has_losses_of_base_starting_points_and_winner(manifest: dict[str, Any], small_recipe: Recipe) -> None:
    card = model_card(manifest, small_recipe)
    assert "| winner | 0.5000 |  |" in card
    assert "| base | 3.2500 | 2.7500 ± 0.0100 (paired standard error) |" in card
    assert "| starting point `usual` (trial 0001) | 1.0000 | 0.5000 ± 0.1000 (paired standard error) |" in card
    assert "On 8 test rows that the search never looked at: winner 0.6000, base 3.3000" in card
    assert "| lora_rank | 8 |" in card


def test_its_front_matter_is_yaml(manifest: dict[str, Any], small_recipe: Recipe) -> None:
    front = yaml.safe_load(model_card(manifest, small_recipe).split("---")[1])
    assert front["base_model"] == "some/base"
    assert front["library_name"] == "peft"


def test_it_says_how_to_load_it(manifest: dict[str, Any], small_recipe: Recipe) -> None:
    quantised = model_card(manifest, small_recipe)
    code = quantised.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert "BitsAndBytesConfig" in code
    plain = load_recipe("demo", ["quantization=none"], environ={}).recipe
    code = model_card({**manifest, "test": None}, plain).split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert "BitsAndBytesConfig" not in code
