"""Whole searches of short trials on one GPU: the stock pipeline (`stock_ray_tune`) and ours, on equal work.

Both draw learning rate and rank from the same space, train 8 steps of 16 rows a trial and evaluate twice on 32 rows.
Measured are wall time, the gap between one trial's last step and the next one's first, and how busy the GPU is. NVML
reports the last: the share of its own last period (1/6 to 1 s) in which any kernel ran. It overstates what a profiler
would count, equally for both. For ours, torch's profiler counts kernels from the first trial's arrival in the engine to
the last one's leaving.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from benchmarks import ROOT
from benchmarks.system.stock_ray_tune import EVAL_ROWS, EVALUATIONS, HIGHEST_RATE, LOWEST_RATE, RANKS, STEP_ROWS, STEPS
from trials.system.files import read_json_lines
from trials.system.gpus import gpu_count

STOCK_TRIALS, OUR_TRIALS = 3, 24
_TIMEOUT_SECONDS = 420


@dataclass(frozen=True)
class Span:
    """One trial: begin of its first step and end of its last, in seconds since the epoch, and seconds in its steps."""

    first: float
    last: float
    in_steps: float


class Utilisation:
    """Samples the first GPU's utilisation every 50 ms while it's entered; nothing where there is no NVML."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, int]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Utilisation:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def mean(self, begins: float, ends: float) -> float | None:
        """Return the share of time in which kernels ran between two times; None: no samples.

        Times are in seconds since the epoch.
        """
        found = [percent for at, percent in self._samples if begins <= at <= ends]
        return sum(found) / len(found) / 100 if found else None

    def _watch(self) -> None:
        try:
            nvml = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            return
        device, rates = ctypes.c_void_p(), (ctypes.c_uint * 2)()  # GPU and memory, in percent
        if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)):
            return
        while not self._over.wait(0.05):
            if nvml.nvmlDeviceGetUtilizationRates(device, rates) == 0:
                self._samples.append((time.time(), rates[0]))


def compare_searches(work: Path, *, tiny: bool) -> dict[str, Any]:
    """Run both searches, print a line each, and return everything for the JSON."""
    found = {}
    for name in ("ours", "stock"):
        out = work / f"search-{name}"
        shutil.rmtree(out, ignore_errors=True)
        trials = {"stock": STOCK_TRIALS, "ours": OUR_TRIALS}[name] // (3 if tiny else 1)
        command = _stock(work, out, trials) if name == "stock" else _ours(work, out, trials)
        found[name] = _watched(name, command, out, trials)
        print(f"{name}: {json.dumps(found[name])}", flush=True)
    return found


def summary(spans: Sequence[Span], wall_seconds: float) -> dict[str, Any]:
    """Return how a search's trials used its time.

    The gap is from a trial's last step to the first step of the one that takes its place. With n trials at once, the
    i-th to end makes way for the (i + n)-th to begin. `steps_at_once` is the mean number of trials within a step.
    """
    firsts, lasts = sorted(span.first for span in spans), sorted(span.last for span in spans)
    at_once = max((sum(span.first <= first < span.last for span in spans) for first in firsts), default=0)
    gaps = [first - last for last, first in zip(lasts, firsts[at_once:], strict=False)]
    in_steps = sum(span.in_steps for span in spans)
    return {
        "trials": len(spans),
        "trials_at_once": at_once,
        "wall_seconds": wall_seconds,
        "wall_seconds_from_first_to_last_step": lasts[-1] - firsts[0] if spans else None,
        "gap_seconds_mean": sum(gaps) / len(gaps) if gaps else None,
        "gap_seconds_longest": max(gaps, default=None),
        "steps_at_once": in_steps / wall_seconds,
        "share_of_wall_in_trials": _covered(spans) / wall_seconds,
    }


def stock_spans(out: Path) -> list[Span]:
    """Return the spans of the stock pipeline's trials."""
    marks = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(out.glob("*.json"))]
    return [Span(steps[0][0], steps[-1][1], sum(end - begin for begin, end in steps)) for steps in marks]


def our_spans(run: Path) -> list[Span]:
    """Return the spans of a run folder's trials, from the times of their TensorBoard events, one a step.

    No event has the first step's begin: that step is taken to be as long as the shortest one.
    """
    spans = []
    for folder in sorted((run / "trials").glob("*")):
        points = [point for point in read_json_lines(folder / "metrics.jsonl") if point.get("tokens_per_second")]
        ends = sorted(time for file in (folder / "tensorboard").glob("*") for time in _logged_steps(file))
        if points and len(ends) > 1:
            shortest = min(later - earlier for earlier, later in pairwise(ends))
            in_steps = points[-1]["tokens_seen"] / points[-1]["tokens_per_second"]
            spans.append(Span(ends[0] - shortest, ends[-1], in_steps))
    return spans


def _logged_steps(file: Path) -> list[float]:
    """Return the times at which training losses were logged; the file repeats length, checksum, event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    content, at, times = file.read_bytes(), 0, []
    while at + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        event = Event.FromString(content[at + 12 : at + 12 + length])
        times += [event.wall_time for value in event.summary.value if value.tag == "train/loss"]
        at += 12 + length + 4
    return times


def _covered(spans: Sequence[Span]) -> float:
    """Return the seconds in which at least one trial was between its first and its last step."""
    covered, until = 0.0, float("-inf")
    for span in sorted(spans, key=lambda span: span.first):
        covered += max(0.0, span.last - max(span.first, until))
        until = max(until, span.last)
    return covered


def _watched(name: str, command: list[str], out: Path, trials: int) -> dict[str, Any]:
    log = out.with_suffix(".log")
    kernels = out.with_suffix(".kernels.json")
    kernels.unlink(missing_ok=True)
    environment = {**os.environ, "RAY_ADDRESS": "local", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
    if name == "ours" and gpu_count():
        environment["ENGINE_PROFILE"] = f"{kernels}:{trials}"
    begins = time.time()
    with Utilisation() as utilisation, log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
        code = _ending(process)
    ends = time.time()
    spans = stock_spans(out) if name == "stock" else our_spans(out)
    found = {"exit": code, **summary(spans, ends - begins), "gpu_busy": utilisation.mean(begins, ends)}
    if kernels.exists():
        seconds = json.loads(kernels.read_text(encoding="utf-8"))
        found["kernel_share_of_wall"] = seconds["kernel_seconds"] / seconds["wall_seconds"]
    if spans:
        first, last = min(span.first for span in spans), max(span.last for span in spans)
        found["gpu_busy_from_first_to_last_step"] = utilisation.mean(first, last)
    return found


def _ending(process: subprocess.Popen[bytes]) -> int | str:
    """Return the exit code, or that the process had to be ended.

    SIGTERM comes first, so that Ray's processes go with it.
    """
    try:
        return process.wait(_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return f"ended after {_TIMEOUT_SECONDS} s"


def _stock(work: Path, out: Path, trials: int) -> list[str]:
    out.mkdir()
    return [sys.executable, "-m", "benchmarks.system.stock_ray_tune", str(work), str(out), str(trials)]


def _ours(work: Path, out: Path, trials: int) -> list[str]:
    path = work / "search.yaml"
    path.write_text(yaml.safe_dump(recipe(work)), encoding="utf-8")
    command = [sys.executable, "-m", "orchestrator.search", str(path), "--out", str(out), "--trials", str(trials)]
    return [*command, "--budget", f"{_TIMEOUT_SECONDS}s"]


def recipe(work: Path) -> dict[str, Any]:
    """Return the recipe of our search: the stock pipeline's model, rows, space and trial."""
    return {
        "description": "Short trials on a random model, to measure the search around them.",
        "model": {"name": str(work / "nf4")},
        "data": {
            "format": "prompt_completion",
            "train": f"{work / 'short.jsonl'}[:{STEPS * STEP_ROWS}]",
            "eval": f"{work / 'eval.jsonl'}[:{EVAL_ROWS}]",
        },
        "hyperparameters": {"effective_batch": STEP_ROWS, "rows_seen": STEPS * STEP_ROWS},
        "evaluation": {"evaluations": EVALUATIONS},
        "machine": {"gpu_memory_gib": 22.5},
        "search": {
            "reserve": "60s",
            "rungs": 1,
            "reduction_factor": 2,
            "samples": 0,
            "dashboard": False,
        },
        "space": {
            "learning_rate": {"low": LOWEST_RATE, "high": HIGHEST_RATE, "log": True},
            "lora_rank": {"choices": list(RANKS)},
        },
    }
