"""Shows that there is something to find in the demo: eval loss by learning rate, and labels of base and best.

    python -m benchmarks.system.demo_learning [--rates 1e-5 1e-3 1e-2] [--rows 250]

One trial a rate: rank 16 on q, k, v and o, everything else as in the demo recipe, one CPU core, about 30 seconds each.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from search_spaces.loader import load_recipe
from trials.cli import quiet_libraries
from trials.data.dataset import load_data, load_split
from trials.evaluation.evaluator import evaluate, load_model
from trials.evaluation.result import EvalTask, labels_of
from trials.metrics.classification import LabelReport
from trials.model.loading import load_tokenizer
from trials.records.trial_dir import Ending, Origin, TrialDir, read_trial
from trials.run import run_single_trial
from trials.training.training_run import Decision, TrainingRun

RATES = (1e-5, 2e-4, 1e-3, 3e-3, 1e-2)


@dataclass(frozen=True)
class Measured:
    """One learning rate: its trial's loss in nats per token, how the trial ended, how long it took."""

    rate: float
    loss: float
    ending: Ending | None
    seconds: float
    adapter: Path


def measure(rate: float, folder: Path, settings: Sequence[str] = ()) -> Measured:
    """Train the demo's trial at one learning rate; `settings` change the recipe as --set does."""
    recipe = load_recipe("demo", settings, environ={}).recipe
    config = recipe.trial_config({"learning_rate": rate, "lora_rank": 16})
    tokenizer = load_tokenizer(config.model)
    trial = TrialDir(folder / f"rate-{rate:g}")
    trial.begin(config, Origin.SINGLE, f"{rate:g}")
    started = time.monotonic()
    data = load_data(config.data, tokenizer)
    run_single_trial(TrainingRun(config, data, tokenizer, trial, lambda _: Decision.CONTINUE), "demo learning")
    record = read_trial(trial.path)
    loss = record.best_eval_loss
    assert loss is not None
    return Measured(rate, loss, record.ending, time.monotonic() - started, trial.adapter)


def accuracies(adapter: Path, rows: int) -> tuple[LabelReport, LabelReport]:
    """Return label reports of the base and of the adapter, by greedy generation on the first `rows` dev rows."""
    data = load_recipe("demo", environ={}).recipe.data
    judged = load_model(str(adapter))
    split = load_split(data.model_copy(update={"eval_rows": rows}), judged.tokenizer)
    task = EvalTask(data.eval, data.format, batch_rows=32, answers=True)
    found = [evaluate(judged, who, split, task, base=who == "base").answers for who in ("base", "adapter")]
    base, ours = [labels_of(answers) for answers in found if answers is not None]
    assert base is not None
    assert ours is not None
    return base, ours


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="What the demo's learning rate decides.")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--rows", type=int, default=250, help="dev rows that labels are generated for")
    arguments = parser.parse_args(argv)
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for rate in arguments.rates:
            found.append(measure(rate, Path(folder)))
            last = found[-1]
            how = last.ending.kind.value if last.ending else "stopped"
            print(f"learning rate {rate:g}: eval loss {last.loss:.4f}, {how}, {last.seconds:.0f} s", flush=True)
        best = min(found, key=lambda measured: measured.loss)
        base, ours = accuracies(best.adapter, arguments.rows)
        shares = (f"{100 * e.value:.1f} %" for e in (base.accuracy, base.unparsed, ours.accuracy, ours.unparsed))
        said = "labels on {} dev rows: base {} right, {} not parsed; best, {:g}, {} right, {} not parsed"
        base_right, base_unparsed, right, unparsed = shares
        print(said.format(arguments.rows, base_right, base_unparsed, best.rate, right, unparsed))


if __name__ == "__main__":
    main()
