"""Tables of recorded learning curves: a proposal gets the curve of the nearest entry, whichever searcher made it.

The landscape is constant around each entry, and all searchers alike learn from that landscape. The tables:

- `demo`: 200 configurations of the demo's space, 40 of them with two seeds (`benchmarks.engine.record_curves`).
- `peft`: 63 runs of PEFT methods on Llama-3.2-3B and MetaMathQA, of the method comparison in huggingface/peft. The
  curve is the training loss of 250 steps at a time. The space is one list of the 63 runs, in place of target modules:
  entries have nothing in common that a model could learn from, so only early losses help.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.simulator.landscapes import Array, Curve, Task, Values, curves_file, to_unit, untrained_loss
from search_spaces.loader import load_recipe
from search_spaces.schema import Choices, Dimension
from trials.config import Hyperparameters

DEMO_TABLE = Path(__file__).with_name("demo_curves.csv")
_DEMO_BASE = 3.1716
"""Loss of the demo's base model on the demo's eval rows, in nats per token."""
_PEFT_START = "lora--llama-3.2-3B-rank32"
_RunCurve = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Entry:
    """One configuration of a table; `curve` has pairs (fraction, loss)."""

    values: Values
    curve: _RunCurve


class Table(Task):
    """Landscape of a table. The distance of two configurations is Euclidean, each dimension from 0 to 1."""

    def __init__(
        self, entries: Sequence[Entry], space: Mapping[str, Dimension], start: Values, base_loss: float | None = None
    ) -> None:
        """`base_loss` in nats per token; None: not known, so it is estimated from the first losses."""
        self.entries, self.space, self.start = entries, space, start
        self._at = np.array([self._coordinates(entry.values) for entry in entries])
        firsts = np.array([entry.curve[0][1] for entry in entries])
        self.base_loss = untrained_loss(firsts) if base_loss is None else base_loss

    def losses(self, configurations: Sequence[Values], fractions: Sequence[float]) -> Array:
        """Return the losses of the nearest entries, between two points by a straight line."""
        curves = [np.array(self.nearest(values).curve) for values in configurations]
        return np.array([np.interp(fractions, curve[:, 0], curve[:, 1]) for curve in curves])

    def curve(self, trial_id: str, hyperparameters: Hyperparameters) -> Curve:
        """Return the nearest entry's curve, with its own points."""
        return Curve(self.nearest(hyperparameters.model_dump()).curve)

    def nearest(self, values: Values) -> Entry:
        """Return the entry whose curve a proposal gets; of equally near ones the first."""
        distances = np.square(self._at - self._coordinates(values)).sum(1)
        return self.entries[int(distances.argmin())]

    def _coordinates(self, values: Values) -> list[float]:
        return [to_unit(dimension, values[name]) for name, dimension in self.space.items()]


def demo_table(seed: int) -> Table:
    """Return the demo's table. Where a configuration was trained twice, the search's seed chooses one of the curves."""
    recipe = load_recipe("demo", [], environ={}).recipe
    start = recipe.start_values(next(iter(recipe.start)))
    entries = [
        Entry(values, random.Random(f"{seed} {number}").choice(curves))
        for number, (values, curves) in enumerate(_demo_runs())
    ]
    return Table(entries, recipe.space, start, _DEMO_BASE)


def peft_table(curves: Path) -> Table:
    """Return the table of PEFT methods. Raises `InputError` if it is missing."""
    runs = json.loads(curves_file(curves, "peft_metamathqa.json").read_text(encoding="utf-8"))
    space = {"target_modules": Choices(choices=tuple([run["name"]] for run in runs))}
    entries = [Entry({"target_modules": [run["name"]]}, _peft_curve(run)) for run in runs]
    return Table(entries, space, {"target_modules": [_PEFT_START]})


def _peft_curve(run: Mapping[str, Any]) -> _RunCurve:
    return [(step / run["max_steps"], loss) for step, loss in zip(run["step"], run["loss"], strict=True)]


@cache
def _demo_runs() -> Sequence[tuple[Values, Sequence[_RunCurve]]]:
    """Return each configuration with its curves; fractions are of the tokens of a run's last evaluation."""
    runs: dict[tuple[int, int], list[dict[str, str]]] = {}
    with DEMO_TABLE.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            runs.setdefault((int(row["configuration"]), int(row["seed"])), []).append(row)
    space = load_recipe("demo", [], environ={}).recipe.space
    curves: dict[int, list[_RunCurve]] = {}
    values: dict[int, Values] = {}
    for (number, _), rows in sorted(runs.items()):
        last = float(rows[-1]["tokens"])
        curves.setdefault(number, []).append([(float(r["tokens"]) / last, float(r["eval_loss"])) for r in rows])
        values[number] = {name: _number(rows[0][name], dimension) for name, dimension in space.items()}
    return [(values[number], found) for number, found in curves.items()]


def _number(text: str, dimension: Dimension) -> Any:
    """Return a number of the table as in the space, where a choice may be a whole number."""
    choices = dimension.choices if isinstance(dimension, Choices) else ()
    return next((choice for choice in choices if choice == float(text)), float(text))
