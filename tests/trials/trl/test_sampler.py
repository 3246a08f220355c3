from __future__ import annotations

import itertools

import pytest
import torch

from tests.support.small_splits import first_rows
from trials.data.dataset import TrialData
from trials.system.distributed import ProcessGroup
from trials.training.row_order import RowOrder
from trials.trl.sampler import RankBatchSampler, RankLoader, rows_of_a_rank, seen


@pytest.mark.parametrize(
    ("rows", "batch", "micro_batch", "count"),
    [(17, 4, 2, 2), (17, 4, 1, 2), (16, 4, 2, 2), (12, 5, 1, 2), (12, 5, 3, 2), (7, 3, 1, 3), (9, 2, 1, 4)],
)
def test_together_they_take_the_rows_of_one_process(rows: int, batch: int, micro_batch: int, count: int) -> None:
    order = RowOrder(rows, batch, seed=3)
    ranks = [RankBatchSampler(rows, batch, micro_batch, 3, ProcessGroup(number, count)) for number in range(count)]
    a_step = rows_of_a_rank(batch, ProcessGroup(0, count)) // micro_batch
    for epoch in range(2):
        for each in ranks:
            each.set_epoch(epoch)
        taken = [list(each) for each in ranks]
        assert {len(batches) for batches in taken} == {len(ranks[0])}
        assert all(len(indices) <= micro_batch for batches in taken for indices in batches)
        for step in range(order.steps_per_epoch):
            slots: dict[int, int] = {}
            for each, batches in zip(ranks, taken, strict=True):
                mine = itertools.chain(*batches[step * a_step : (step + 1) * a_step])
                slots |= dict(enumerate(mine, each.first_slot(epoch * order.steps_per_epoch + step)))
            assert [slots[slot] for slot in sorted(slots)] == order.step(epoch * order.steps_per_epoch + step)


def test_an_empty_micro_batch_counts_as_no_token_and_is_seen_all_the_same(small_data: TrialData) -> None:
    train = first_rows(small_data.train, 3)
    batches = RankBatchSampler(len(train), 3, 1, 0, ProcessGroup(0, 2))

    def collate(examples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        (example,) = examples
        found = {key: torch.tensor([values]) for key, values in example.items()}
        return {**found, "attention_mask": torch.ones_like(found["input_ids"])}

    real, empty = RankLoader(train.for_training, batches, collate, pin_memory=False)
    assert seen(real) is real
    assert real["attention_mask"].sum() == real["input_ids"].numel() > 1
    assert empty["attention_mask"].sum() == 0
    assert set(empty["labels"].flatten().tolist()) == {-100}
    assert seen(empty)["attention_mask"].sum() == empty["input_ids"].numel()
