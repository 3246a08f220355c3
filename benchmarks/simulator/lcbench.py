"""LCBench: MLPs on OpenML tasks, trained by SGD with cosine annealing, as YAHPO Gym's surrogate predicts them.

LCBench is Zimmer et al., arXiv 2006.13799; the surrogate is Pfisterer et al., arXiv 2109.03670. The learning curve of a
configuration is the validation cross-entropy after epochs 1 to 52. A recipe has no momentum and no layers, so
dimensions of LCBench go by names of the product's hyperparameters. Ranges are LCBench's own, with two exceptions:

| LCBench | hyperparameter | range |
|---|---|---|
| batch_size | effective_batch | 16 to 512, log |
| learning_rate | learning_rate | 1e-4 to 0.1, log |
| momentum | warmup_fraction | 0.1 to 0.99 |
| weight_decay | weight_decay | 1e-5 to 0.1 |
| num_layers | lora_alpha | 0.5 to 5.5, rounded to 1 to 5 |
| max_units | lora_rank | 64 to 1024, log |
| max_dropout | lora_dropout | 0 to 0.99, which is mapped to 0 to 1, as a dropout of 1 is not allowed |
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.simulator.landscapes import Array, Task, Values, curves_file, drawn, untrained_loss
from search_spaces.schema import Range
from trials.errors import InputError

CHOSEN_BY = ("126025", "126029", "167083", "167104", "167149", "167161", "167168", "167181")
"""Tasks to choose constants by; the others are to judge with."""
EPOCHS = 52
_NAMES = {
    "batch_size": "effective_batch",
    "learning_rate": "learning_rate",
    "momentum": "warmup_fraction",
    "weight_decay": "weight_decay",
    "num_layers": "lora_alpha",
    "max_units": "lora_rank",
    "max_dropout": "lora_dropout",
}
"""Hyperparameter that stands for each dimension of LCBench, in the order of the surrogate's columns after the epoch."""
_MOST_DROPOUT = 0.99
_CROSS_ENTROPY = 2
"""Column of the surrogate's output with the validation cross-entropy."""
_SAMPLE = 300


class LCBench(Task):
    """One OpenML task; `curves` is the folder of the surrogate. Raises `InputError` if anything is missing."""

    resolution = EPOCHS

    def __init__(self, number: str, curves: Path) -> None:
        codes = _read(curves, "lcbench_encoding.json")["OpenML_task_id"]
        if number not in codes:
            raise InputError(f"LCBench has no task {number!r}; its tasks are {', '.join(sorted(codes))}")
        self._code: int = codes[number]
        self._session = _session(curves)
        dimensions = _dimensions(curves)
        self.space = {hyperparameter: _range(dimensions[name]) for name, hyperparameter in _NAMES.items()}
        self.start = {hyperparameter: _default(dimensions[name]) for name, hyperparameter in _NAMES.items()}
        sample = drawn(self.space, _SAMPLE, np.random.default_rng(1))
        self.base_loss = untrained_loss(self.losses(sample, [1 / EPOCHS]))

    def losses(self, configurations: Sequence[Values], fractions: Sequence[float]) -> Array:
        """Return cross-entropies at the whole epochs that are nearest to the fractions."""
        epochs = np.maximum(1, np.round(np.asarray(fractions) * EPOCHS))
        fixed = np.array([[lcbench_value(name, values[_NAMES[name]]) for name in _NAMES] for values in configurations])
        rows = np.column_stack([np.tile(epochs, len(fixed)), np.repeat(fixed, len(epochs), axis=0)])
        codes = np.full((len(rows), 1), self._code, dtype=np.int32)
        (found,) = self._session.run(None, {"x_cat": codes, "x_cont": rows.astype(np.float32)})
        return np.asarray(found[:, _CROSS_ENTROPY], dtype=np.float64).reshape(len(fixed), len(epochs))


def judged_by(curves: Path) -> tuple[str, ...]:
    """Return the numbers of the tasks that constants must not be chosen by."""
    names: Sequence[str] = next(
        each["choices"] for each in _hyperparameters(curves) if each["name"] == "OpenML_task_id"
    )
    return tuple(sorted(set(names) - set(CHOSEN_BY)))


def lcbench_value(name: str, value: float) -> float:
    """Return LCBench's value of a dimension for that of the hyperparameter which stands for it."""
    if name == "num_layers":
        return float(min(5, max(1, round(value))))
    return value / _MOST_DROPOUT if name == "max_dropout" else float(value)


def _range(dimension: Mapping[str, Any]) -> Range:
    low, high = float(dimension["lower"]), float(dimension["upper"])
    if dimension["name"] == "num_layers":  # a number of layers is as likely as any other
        low, high = low - 0.5, high + 0.5
    if dimension["name"] == "max_dropout":
        high = _MOST_DROPOUT
    return Range(low=low, high=high, log=dimension["log"])


def _default(dimension: Mapping[str, Any]) -> Any:
    default = dimension["default"]
    return default * _MOST_DROPOUT if dimension["name"] == "max_dropout" else default


def _dimensions(curves: Path) -> dict[str, Mapping[str, Any]]:
    return {each["name"]: each for each in _hyperparameters(curves)}


def _hyperparameters(curves: Path) -> Sequence[Mapping[str, Any]]:
    found: Sequence[Mapping[str, Any]] = _read(curves, "lcbench_config_space.json")["hyperparameters"]
    return found


@cache
def _session(curves: Path) -> Any:
    """Return the surrogate on one thread: searches run side by side in processes."""
    try:
        import onnxruntime  # inside, as it is an optional dependency
    except ImportError as error:
        raise InputError("LCBench's surrogate needs onnxruntime. Install it: pip install '.[benchmarks]'.") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    file = curves_file(curves, "lcbench.onnx")
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _read(curves: Path, name: str) -> Any:
    return json.loads(curves_file(curves, name).read_text(encoding="utf-8"))
