"""Trials that start and end on one resident base: seconds from one's end to the next one's first step, and memory left.

python -m benchmarks.engine.trial_switching --work DIR [--trials 100] [--json OUT], after `benchmarks.engine.throughput`
has made DIR. Each trial is one optimizer step of 16 rows with an evaluation of 8 rows: nothing but change.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.engine.trial_switching", description=__doc__)
    arguments.add_argument("--work", type=Path, required=True)
    arguments.add_argument("--trials", type=int, default=100)
    arguments.add_argument("--json", type=Path)
    given = arguments.parse_args(argv)
    found = measure(given.work, given.trials)
    print(json.dumps(found))
    if given.json:
        given.json.write_text(json.dumps(found), encoding="utf-8")
    return 0


def measure(work: Path, trials: int) -> dict[str, Any]:
    """Run the trials one after another in this process; return what was measured."""
    import torch

    from trials.config import DataSettings, EvaluationSettings, Hyperparameters, Machine, ModelSettings, TrialConfig
    from trials.data.dataset import load_data
    from trials.engine.engine import Engine
    from trials.model.loading import load_tokenizer
    from trials.records.trial_dir import Origin, TrialDir
    from trials.training.training_run import Decision, TrainingRun

    settings = ModelSettings(name=str(work / "nf4"))
    rows = DataSettings(
        format="prompt_completion", train=f"{work / 'short.jsonl'}[:64]", eval=f"{work / 'eval.jsonl'}[:8]"
    )
    config = TrialConfig(
        model=settings,
        data=rows,
        hyperparameters=Hyperparameters(rows_seen=16, optimizer="paged_adamw_8bit"),
        evaluation=EvaluationSettings(evaluations=1),
        machine=Machine(gpu_memory_gib=22.5),
        base_eval_loss=1e9,
    )
    tokenizer = load_tokenizer(settings)
    data = load_data(rows, tokenizer)
    began = time.perf_counter()
    engine = Engine(settings, config.machine)
    loading = time.perf_counter() - began
    allocated, gaps, ended = [], [], None
    first_steps = _first_steps(engine)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(trials):
            trial = TrialDir(Path(folder) / str(number))
            own = config.model_copy(update={"seed": number})
            trial.begin(own, Origin.SINGLE, "change")
            engine.run(TrainingRun(own, data, tokenizer, trial, lambda _: Decision.CONTINUE))
            if ended is not None:
                gaps.append(first_steps[-1] - ended)
            ended = time.perf_counter()
            allocated.append(torch.cuda.memory_allocated() if torch.cuda.is_available() else 0)
    engine.close()
    return {
        "trials": trials,
        "loading_seconds": loading,
        "median_gap_seconds": statistics.median(gaps),
        "longest_gap_seconds": max(gaps),
        "allocated_after_first": allocated[0],
        "allocated_after_last": allocated[-1],
    }


def _first_steps(engine: Any) -> list[float]:
    """Return a list that grows by the time at which each trial starts to train; time before it is change."""
    times: list[float] = []
    train = engine._loop.train

    def timed(trainer: Any, is_there: Any) -> Any:
        times.append(time.perf_counter())
        return train(trainer, is_there)

    engine._loop.train = timed
    return times


if __name__ == "__main__":
    sys.exit(main())
