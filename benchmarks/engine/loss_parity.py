"""Loss curves of random configurations in the engine beside others, alone, and under TRL: how far they lie apart.

python -m benchmarks.engine.loss_parity [--configurations 6]

Trains on the demo's model and rows. On a GPU products are in bfloat16: the difference between two runs of one
configuration is then the scale for the others. Prints, over all evaluations, the largest relative difference of the
eval loss: the engine beside others against alone; alone against alone again; the engine against TRL; TRL with one split
into micro-batches against TRL with others.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
AT_ONCE = 8
Curve = list[float]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.engine.loss_parity", description=__doc__)
    arguments.add_argument("--configurations", type=int, default=6)
    given = arguments.parse_args(argv)
    for name, differences in compare(given.configurations):
        print(name, json.dumps({"largest": max(differences), "each": differences}), flush=True)
    return 0


def compare(count: int) -> Iterator[tuple[str, list[float]]]:
    """Yield the name of each comparison, and the largest relative difference of each configuration's curves."""
    from search_spaces.loader import load_recipe
    from trials.data.dataset import load_data
    from trials.engine.engine import Engine
    from trials.model.loading import load_tokenizer
    from trials.trl.backend import TrlBackend

    recipe = load_recipe("demo", ["train_tokens=14000", "eval_rows=32", "evaluations=3"], environ={}).recipe
    configs = [_drawn(recipe, number) for number in range(max(count, AT_ONCE))]
    tokenizer = load_tokenizer(recipe.model)
    data = load_data(recipe.data, tokenizer)

    def curve(by: Any, config: Any) -> Curve:
        return _curve(by, config, data, tokenizer)

    engine = Engine(recipe.model, recipe.machine)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        beside = list(pool.map(lambda config: curve(engine, config), configs))
    alone, again = ([curve(engine, config) for config in configs[:count]] for _ in range(2))
    engine.close()
    yield "engine beside others, engine alone", _differences(beside, alone)
    yield "engine alone, again", _differences(alone, again)
    trl = [curve(TrlBackend(), config) for config in configs[:count]]
    yield "engine beside others, TRL", _differences(beside, trl)
    for rows in (1, 2):
        split = [curve(TrlBackend(), _with_micro_batch(config, rows)) for config in configs[:count]]
        yield f"TRL, TRL in micro-batches of {rows} row{'s' * (rows > 1)}", _differences(trl, split)


def _drawn(recipe: Any, number: int) -> Any:
    lot = random.Random(number)
    values = {
        "learning_rate": 10 ** lot.uniform(-4, -3),
        "lora_rank": lot.choice((4, 8, 16, 64)),
        "lora_dropout": lot.choice((0.0, 0.05, 0.2)),
        "target_modules": tuple(lot.sample(MODULES, lot.randint(1, 7))),
        "effective_batch": lot.choice((4, 8, 16)),
        "scheduler": lot.choice(("cosine", "linear", "constant")),
    }
    return recipe.trial_config(values).model_copy(update={"seed": number, "base_eval_loss": 1e9})


def _with_micro_batch(config: Any, rows: int) -> Any:
    machine = config.machine.model_copy(update={"micro_batch_rows": rows})
    return config.model_copy(update={"machine": machine})


def _curve(by: Any, config: Any, data: Any, tokenizer: Any) -> Curve:
    from trials.records.trial_dir import Origin, TrialDir, read_trial
    from trials.training.training_run import Decision, TrainingRun

    with tempfile.TemporaryDirectory() as folder:
        trial = TrialDir(Path(folder) / "trial")
        trial.begin(config, Origin.SINGLE, "comparison")
        by.run(TrainingRun(config, data, tokenizer, trial, lambda _: Decision.CONTINUE))
        return [point.eval_loss for point in read_trial(trial.path).points]


def _differences(ones: Sequence[Curve], others: Sequence[Curve]) -> list[float]:
    """Return the largest relative difference of each pair of curves, for as many configurations as both have."""
    pairs = zip(ones, others, strict=False)
    return [max(abs(a / b - 1) for a, b in zip(one, other, strict=True)) for one, other in pairs]


if __name__ == "__main__":
    sys.exit(main())
