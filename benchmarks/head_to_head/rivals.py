"""The rivals: what each is, and the command that runs it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from benchmarks.head_to_head.contest import Contest, as_settings


class Rival(StrEnum):
    """A way to spend the wall clock, in the order in which they run."""

    RECIPE = "recipe"
    REPEATED = "repeated"
    STOCK = "stock"
    STOCK_PARTS = "stock-parts"
    OURS = "ours"

    @property
    def is_single(self) -> bool:
        """Whether it is one trial, which is cut off at the deadline; the others watch the clock themselves."""
        return self in {Rival.RECIPE, Rival.REPEATED}


LABELS: Mapping[Rival, str] = {
    Rival.RECIPE: "the recipe as written",
    Rival.REPEATED: "the recipe for the whole time",
    Rival.STOCK: "Ray Tune, TPE, ASHA, TRL",
    Rival.STOCK_PARTS: "our search with TPE, ASHA, TRL",
    Rival.OURS: "our search",
}
_STOCK_PARTS = {"search.sampler": "tpe", "search.scheduler": "asha", "machine.engine": "trl"}


def single_command(contest: Contest, values: Mapping[str, Any], seed: int, out: Path) -> list[str]:
    """Return the command of one trial in our engine; `values` are hyperparameters in place of the recipe's."""
    named = as_settings({f"hyperparameters.{key}": value for key, value in values.items()})
    command = ["-m", "trials.train", contest.recipe, "--out", str(out), "--set", *contest.settings(seed), *named]
    return [sys.executable, *command]


def search_command(contest: Contest, rival: Rival, budget_seconds: float, seed: int, out: Path) -> list[str]:
    """Return the command of a search by the product."""
    parts = as_settings(_STOCK_PARTS) if rival is Rival.STOCK_PARTS else []
    devices = ["--gpus-per-trial", "0"] if contest.cpu else []
    timing = ["--budget", f"{budget_seconds:g}s", "--out", str(out)]
    settings: Sequence[str] = [*contest.settings(seed), *parts]
    return [sys.executable, "-m", "orchestrator.search", contest.recipe, *timing, *devices, "--set", *settings]


def stock_command(request: Path, budget_seconds: float, seed: int, out: Path) -> list[str]:
    """Return the command of the stock search; `request` is a `benchmarks.head_to_head.stock.trial.Request` on disk."""
    timing = [f"{budget_seconds:g}", str(seed), str(out)]
    return [sys.executable, "-m", "benchmarks.head_to_head.stock.search", str(request), *timing]
