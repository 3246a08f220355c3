from typing import Any

import pytest
import yaml

from orchestrator.export.model_card import model_card
from search_spaces.loader import load_recipe
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
            {
                "trial": "0001",
                "name": "usual",
                "eval_loss": 1.0,
                "tokens_seen": 5000,
                "difference": 0.5,
                "standard_error": 0.1,
            }
        ],
        "points": [{"tokens_seen": 30_000, "eval_loss": 0.5}],
        "verified": {"eval_loss": 0.50001, "difference": 1e-5, "tolerance": 1e-3},
        "test": {"rows": 8, "eval_loss": 0.6, "base_eval_loss": 3.3, "difference": 2.7, "standard_error": 0.2},
        "config": small_recipe.trial_config({"lora_rank": 8}).model_dump(mode="json"),
        "base_model": {"name": "some/base", "revision": None},
    }


def test_the_card_has_losses_of_base_starting_points_and_winner(manifest: dict[str, Any], small_recipe: Recipe) -> None:
    card = model_card(manifest, small_recipe)
    assert "| winner | 30,000 | 0.5000 |  |" in card
    assert "| base | 0 | 3.2500 | 2.7500 ± 0.0100 (paired standard error) |" in card
    assert "| starting point `usual` (trial 0001) | 5,000 | 1.0000 | 0.5000 ± 0.1000 (paired standard error) |" in card
    assert "On 8 test rows that the search never looked at: winner 0.6000, base 3.3000" in card
    assert "| lora_rank | 8 |" in card


@pytest.mark.parametrize("base", ["some/base", "/of: one/#7 'é' {{ it }}", "1e5"])
def test_its_front_matter_is_yaml(manifest: dict[str, Any], small_recipe: Recipe, base: str) -> None:
    manifest["base_model"]["name"] = base
    card = model_card(manifest, small_recipe)
    assert card.startswith("---\n")
    front = yaml.safe_load(card.split("---\n")[1])
    assert front == {"base_model": base, "library_name": "peft", "tags": ["qlora", "lora", "peft"]}
    assert f"Base model: `{base}`, revision newest" in card


def test_it_says_how_to_load_it(manifest: dict[str, Any], small_recipe: Recipe) -> None:
    quantised = model_card(manifest, small_recipe)
    code = quantised.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert "BitsAndBytesConfig" in code
    plain = load_recipe("demo", ["quantization=none"], environ={}).recipe
    code = model_card({**manifest, "test": None}, plain).split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert "BitsAndBytesConfig" not in code


def test_scores_are_in_the_card_where_there_are_any(manifest: dict[str, Any], small_recipe: Recipe) -> None:
    assert "## Scores" not in model_card({**manifest, "scores": None}, small_recipe)
    interval = {"value": 0.9, "low": 0.769, "high": 0.9604}
    margin = {"value": 0.8, "low": 0.6, "high": 0.9}
    base = {"trial": "0000", "origin": "base", "name": "base", **interval, "tokens_seen": 0, "is_clear": True}
    start = {**base, "trial": "0001", "origin": "start", "name": "usual", "tokens_seen": 5000, "is_clear": False}
    others = [{**base, "winner_is_better_by": margin}, {**start, "winner_is_better_by": margin}]
    winner = {**interval, "tokens_seen": 3000, "of_exported_weights": False}
    scores = {"measure": "accuracy", "rows": 40, "winner": winner, "others": others}
    card = model_card({**manifest, "scores": scores}, small_recipe)
    assert "Greedy answers to the first 40 eval rows, with 95 % intervals; it decided nothing." in card
    assert "The winner's score is of its weights after so many tokens; the exported ones have a lower loss." in card
    assert "| what | accuracy | training tokens | the winner is better by |" in card
    assert "| winner | 90.0 % (76.9 to 96.0) | 3,000 |  |" in card
    assert "| base | 90.0 % (76.9 to 96.0) | 0 | 80.0 points (60.0 to 90.0), clear |" in card
    assert (
        "| starting point `usual` (trial 0001) | 90.0 % (76.9 to 96.0) | 5,000 | 80.0 points (60.0 to 90.0), " in card
    )
    assert "cannot be told apart |" in card
    text = {**scores, "measure": "rouge_l", "winner": {**winner, "of_exported_weights": True}, "others": []}
    card = model_card({**manifest, "scores": text}, small_recipe)
    assert "| winner | 0.9000 (0.7690 to 0.9604) | 3,000 |  |" in card
    assert "so many tokens" not in card
