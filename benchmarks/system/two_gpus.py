"""Two GPUs for one trial against one, and against a trial on each: tokens/s, losses, and how fast trials change.

python -m benchmarks.system.two_gpus --work DIR [--tiny] [--ranks 2] [--stops 10] [--rows 16 64] [--steps 12]
    [--json OUT]

DIR gets a Mistral-7B of random weights in NF4 and rows of about 260 tokens (`benchmarks.engine.workload`); 24 GB of
each GPU are allowed. Every figure of a line is measured in this run. Where there is no GPU, `--tiny` does the same on
the CPU, by gloo. Losses are compared at every evaluation of the same trial, seed and effective batch.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks import ROOT
from benchmarks.engine.workload import MISTRAL_7B, TINY, prepare
from benchmarks.system.group_switching import change_trials
from trials.records.trial_dir import EvalPoint, read_trial

_EVALUATIONS = 4
_MEMORY_GIB = 22.5
_TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class Trained:
    """Evaluations of one trial, from its folder."""

    points: tuple[EvalPoint, ...]

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second between its first evaluation and its last: kernels are compiled before."""
        first, last = (self.points[index] for index in (0, -1))
        seconds = [point.tokens_seen / (point.tokens_per_second or 1.0) for point in (first, last)]
        return (last.tokens_seen - first.tokens_seen) / (seconds[1] - seconds[0])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.system.two_gpus", description=__doc__)
    arguments.add_argument("--work", type=Path, required=True)
    arguments.add_argument("--tiny", action="store_true", help="a tiny model, also for the CPU")
    arguments.add_argument("--ranks", type=int, default=2)
    arguments.add_argument("--stops", type=int, default=10, help="trials that are stopped one after another")
    arguments.add_argument("--rows", type=int, nargs="*", default=[16, 64], help="effective batches")
    arguments.add_argument("--steps", type=int, default=12)
    arguments.add_argument("--json", type=Path)
    given = arguments.parse_args(argv)
    prepare(given.work, TINY if given.tiny else MISTRAL_7B, _device())
    recipe = write_recipe(given.work)
    found: dict[str, Any] = {"ranks": given.ranks, "batches": {}}
    for rows in given.rows:
        found["batches"][rows] = compare(given.work, recipe, rows, given.steps, given.ranks)
        _say_batch(rows, found["batches"][rows], given.ranks)
    found["changes"] = change_trials(recipe, given.work, given.stops, given.ranks)
    _say_changes(found["changes"], given.ranks)
    if given.json:
        given.json.write_text(json.dumps(found), encoding="utf-8")
    return 0


def write_recipe(work: Path) -> Path:
    """Write a recipe on the work's model and rows, which a search can read as well."""
    recipe = {
        "model": {"name": str(work / "nf4")},
        "data": {
            "format": "prompt_completion",
            "train": str(work / "short.jsonl"),
            "eval": str(work / "eval.jsonl"),
            "max_length_tokens": 1024,
        },
        "hyperparameters": {"optimizer": "paged_adamw_8bit", "lora_dropout": 0.05, "rows_seen": 1024},
        "evaluation": {"evaluations": _EVALUATIONS},
        "machine": {"gpu_memory_gib": _MEMORY_GIB, "cpu_threads": 1},
        "search": {"budget": "4m"},
        "start": {"usual": {"learning_rate": 2e-4, "effective_batch": 16}},
        "space": {
            "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
            "lora_rank": {"choices": [8, 16, 32]},
            "effective_batch": {"choices": [16, 32, 64]},
        },
    }
    path = work / "random7b.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


def compare(work: Path, recipe: Path, rows: int, steps: int, ranks: int) -> dict[str, float]:
    """Train a trial on one GPU, the same on all of them together, and one on each at once; return the figures."""
    alone = _train(work, recipe, rows, steps, [_Process("alone", {"CUDA_VISIBLE_DEVICES": "0"})])[0]
    together = _train(work, recipe, rows, steps, [_Process("together", {}, ranks)])[0]
    each = [_Process(f"beside-{number}", {"CUDA_VISIBLE_DEVICES": str(number)}) for number in range(ranks)]
    beside = _train(work, recipe, rows, steps, each)
    pairs = zip(alone.points, together.points, strict=True)
    return {
        "alone": alone.tokens_per_second,
        "together": together.tokens_per_second,
        "beside": sum(trained.tokens_per_second for trained in beside),
        "loss_difference": max(abs(one.eval_loss - other.eval_loss) for one, other in pairs),
        "last_loss": alone.points[-1].eval_loss,
    }


@dataclass(frozen=True)
class _Process:
    name: str
    environment: Mapping[str, str]
    ranks: int = 1

    def start(self, work: Path, recipe: Path, settings: Sequence[str]) -> subprocess.Popen[bytes]:
        together = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.ranks)]
        launcher = together if self.ranks > 1 else []
        command = [sys.executable, *launcher, "-m", "trials.train", str(recipe), "--out", str(self.folder(work))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **self.environment}
        log = (work / f"{self.name}.log").open("wb")
        return subprocess.Popen(
            [*command, "--set", *settings], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        )

    def folder(self, work: Path) -> Path:
        return work / "ranks" / self.name


def _train(work: Path, recipe: Path, rows: int, steps: int, processes: Sequence[_Process]) -> list[Trained]:
    settings = [f"effective_batch={rows}", f"rows_seen={rows * steps}", "learning_rate=2e-4"]
    for process in processes:
        shutil.rmtree(process.folder(work), ignore_errors=True)
    running = [process.start(work, recipe, settings) for process in processes]
    codes = [process.wait(_TIMEOUT_SECONDS) for process in running]
    for code, process in zip(codes, processes, strict=True):
        if code:
            raise RuntimeError(f"{process.name} ended with {code}: see {work / process.name}.log")
    return [Trained(read_trial(process.folder(work)).points) for process in processes]


def _say_batch(rows: int, found: Mapping[str, float], ranks: int) -> None:
    together, beside = (found[name] / found["alone"] for name in ("together", "beside"))
    print(
        f"{rows} rows a step: one GPU {found['alone']:,.0f} tokens/s; {ranks} together {found['together']:,.0f}, "
        f"{together:.2f} times as many; {ranks} trials on {ranks} GPUs {found['beside']:,.0f}, {beside:.2f} times; "
        f"eval losses at most {found['loss_difference']:.1e} apart, of {found['last_loss']:.4f}",
        flush=True,
    )


def _say_changes(found: Mapping[str, Any], ranks: int) -> None:
    gone, next_ = found["gone"], found["next"]
    print(
        f"{len(gone)} trials on {ranks} GPUs stopped one by one: gone after {statistics.median(gone):.2f} s "
        f"({max(gone):.2f} at most), the next one's first evaluation after {statistics.median(next_):.2f} s "
        f"({max(next_):.2f}); the first trial's after {found['first']:.1f} s; all GPUs free {found['closed']:.1f} s "
        "after the end"
    )


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    began = time.perf_counter()
    code = main()
    print(f"all of it took {time.perf_counter() - began:.0f} s")
    sys.exit(code)
