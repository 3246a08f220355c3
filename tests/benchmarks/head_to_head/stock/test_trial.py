"""A trial of the stock search, trained for real: what it reports, keeps, and does not hold back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.head_to_head.stock.trial import (
    Fit,
    Length,
    Request,
    make_trainer,
    micro_batch,
    read_request,
    train,
    trial_length,
    usual_schedule,
)
from search_spaces.schema import Recipe
from trials.data.dataset import TrialData
from trials.system.files import read_json_lines

FIT = Fit(trials_at_once=2, micro_batch_rows=None, gradient_checkpointing=False, base=None, gpu_memory_gib=None)


@pytest.mark.parametrize(("batch", "most", "rows"), [(16, None, 16), (16, 5, 4), (12, 8, 6), (8, 32, 8), (7, 3, 1)])
def test_micro_batches_divide_the_batch(batch: int, most: int | None, rows: int) -> None:
    assert micro_batch(batch, most) == rows


@pytest.mark.parametrize(
    ("asked", "used"),
    [("cosine", "cosine"), ("linear", "linear"), ("constant", "constant"), ("inverse_sqrt", "cosine")],
)
def test_stock_has_schedules_that_its_users_know(asked: str, used: str) -> None:
    """Transformers' inverse_sqrt has another time scale than ours."""
    assert usual_schedule(asked) == used


def test_a_request_is_read_as_it_was_written(small_recipe: Recipe, tmp_path: Path) -> None:
    Request(small_recipe.model_dump(mode="json"), FIT).write(tmp_path / "request.json")
    recipe, fit = read_request(tmp_path / "request.json")
    assert fit == FIT
    assert recipe == small_recipe


def test_a_trial_is_as_long_as_the_recipe_says(small_recipe: Recipe, small_data: TrialData) -> None:
    length = trial_length(small_recipe, small_recipe.hyperparameters, small_data)
    tokens = length.steps * small_recipe.hyperparameters.effective_batch * small_data.train.epoch.row_tokens
    assert tokens == pytest.approx(3000, rel=0.1)
    assert length.every == length.steps // 3


def test_the_best_adapter_is_kept_and_every_evaluation_reported(small_recipe: Recipe, tmp_path: Path) -> None:
    reported: list[dict[str, float]] = []
    hyperparameters = small_recipe.hyperparameters_with({"learning_rate": 3e-3})
    train(small_recipe, hyperparameters, FIT, tmp_path / "trial", reported.append)
    points = read_json_lines(tmp_path / "trial" / "metrics.jsonl")
    assert [point["eval_loss"] for point in points] == [found["eval_loss"] for found in reported]
    assert points[-1]["eval_loss"] < points[0]["eval_loss"]
    best = json.loads((tmp_path / "trial" / "adapter" / "point.json").read_text())
    assert best["eval_loss"] == min(point["eval_loss"] for point in points) == reported[-1]["best_eval_loss"]
    adapter = json.loads((tmp_path / "trial" / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == small_recipe.model.name


def test_the_adapter_is_trained_in_float32(small_recipe: Recipe, tmp_path: Path) -> None:
    trainer = make_trainer(small_recipe, small_recipe.hyperparameters, FIT, Length(2, 1), tmp_path, [])
    kinds = {parameter.dtype for parameter in trainer.model.parameters() if parameter.requires_grad}
    assert kinds == {torch.float32}
