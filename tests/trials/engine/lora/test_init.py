"""A fresh adapter's weights, against those that PEFT draws."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import PreTrainedModel, set_seed

from trials.config import Hyperparameters, TrialConfig
from trials.engine.lora.init import initial_weights
from trials.model.loading import attach_adapter, load_base

SOME = ("v_proj", "q_proj", "down_proj")


def _targets(base: PreTrainedModel, names: tuple[str, ...]) -> list[tuple[str, int, int]]:
    return [
        (name, module.in_features, module.out_features)
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Linear) and name.rpartition(".")[2] in names
    ]


@pytest.mark.parametrize(("names", "rank", "seed"), [(("q_proj",), 1, 0), (SOME, 12, 7), (SOME, 300, 2**32 - 1)])
def test_they_are_those_of_peft_bit_for_bit(
    small_config: TrialConfig, names: tuple[str, ...], rank: int, seed: int
) -> None:
    base = load_base(small_config.model)
    targets = _targets(base, names)
    set_seed(seed)
    model = attach_adapter(base, Hyperparameters(lora_rank=rank, target_modules=names, epochs=1.0))
    theirs = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    ours = [weight for pair in initial_weights(targets, rank, seed) for weight in pair]
    assert [name.rpartition(".lora_")[0] for name, _ in theirs[::2]] == [f"base_model.model.{t[0]}" for t in targets]
    assert len(ours) == len(theirs) > 0
    assert all(torch.equal(mine, value) for mine, (_, value) in zip(ours, theirs, strict=True))


def test_the_global_generator_stays_where_it_is_and_threads_do_not_meet() -> None:
    targets = [(str(i), 256, 128) for i in range(40)]
    before = torch.random.get_rng_state()
    alone = [initial_weights(targets, 16, seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: initial_weights(targets, 16, seed), range(4)))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(
        torch.equal(one, other)
        for these, those in zip(alone, together, strict=True)
        for pair, twin in zip(these, those, strict=True)
        for one, other in zip(pair, twin, strict=True)
    )
    assert not torch.equal(alone[0][0][0], alone[1][0][0])
