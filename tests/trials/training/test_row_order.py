"""The rows of every optimizer step, against those that TRL's trainer really takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase, TrainerCallback

from search_spaces.schema import Recipe
from tests.support.small_splits import first_rows
from trials.data.dataset import TrialData
from trials.data.split import Split
from trials.model.loading import attach_adapter, load_base
from trials.records.trial_dir import TrialDir
from trials.schedule import TrialLength
from trials.training.row_order import RowOrder
from trials.trl.trainer import EvaluationTimes, build_trainer

Ids = tuple[int, ...]


class _Steps(TrainerCallback):  # type: ignore[misc]
    """The rows that reached the model since the last optimizer step, by their tokens."""

    def __init__(self) -> None:
        self.steps: list[list[Ids]] = [[]]

    def see(self, batch: dict[str, torch.Tensor]) -> None:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            self.steps[-1].append(tuple(ids[mask.bool()].tolist()))

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.steps.append([])


def _seen(
    recipe: Recipe, split: Split, tokenizer: PreTrainedTokenizerBase, folder: Path, case: dict[str, int]
) -> list[list[Ids]]:
    config = recipe.trial_config({"effective_batch": case["batch"], "target_modules": ["q_proj"], "lora_rank": 1})
    machine = config.machine.model_copy(update={"micro_batch_rows": case["micro"]})
    config = config.model_copy(update={"machine": machine, "seed": case["seed"]})
    model = attach_adapter(load_base(config.model), config.hyperparameters)
    times, length = EvaluationTimes([10**9], lambda: False), TrialLength(case["steps"], 10**9)
    trainer = build_trainer(model, tokenizer, split, config, length, lambda *_: False, times, TrialDir(folder))
    recorded = _Steps()
    trainer.add_callback(recorded)
    model.register_forward_pre_hook(lambda _module, _args, batch: recorded.see(batch), with_kwargs=True)
    trainer.train()
    return recorded.steps[:-1]


@pytest.mark.parametrize(
    "case",
    [
        {"rows": 12, "batch": 4, "micro": 4, "steps": 7, "seed": 0},
        {"rows": 14, "batch": 4, "micro": 2, "steps": 9, "seed": 3},  # two rows are left for an epoch's last step
        {"rows": 7, "batch": 6, "micro": 3, "steps": 5, "seed": 1},
        {"rows": 5, "batch": 8, "micro": 2, "steps": 3, "seed": 2},  # an epoch is one short step
    ],
    ids=str,
)
def test_they_are_those_of_the_trainer(
    small_recipe: Recipe,
    small_data: TrialData,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    case: dict[str, int],
) -> None:
    split = first_rows(small_data.train, case["rows"])
    ids = [tuple(row.input_ids) for row in split.rows]
    assert len(set(ids)) == len(ids)
    order = RowOrder(case["rows"], case["batch"], case["seed"])
    seen = _seen(small_recipe, split, tokenizer, tmp_path, case)
    assert [[ids[row] for row in order.step(n)] for n in range(case["steps"])] == seen


def test_any_step_can_be_asked_for() -> None:
    order, again = (RowOrder(rows=10, effective_batch=4, seed=5) for _ in range(2))
    forth = [order.step(n) for n in range(9)]
    assert [again.step(n) for n in reversed(range(9))] == forth[::-1]
    assert sorted(row for step in forth[3:6] for row in step) == list(range(10))
    assert forth[:3] != forth[3:6]
    assert [order.passes(steps) for steps in (0, 1, 2, 3, 4)] == [0, 0.4, 0.8, 1, 1.4]
    assert (order.steps_per_epoch, [len(step) for step in forth[:3]]) == (3, [4, 4, 2])
