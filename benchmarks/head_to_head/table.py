"""The table of a head-to-head: every rival's loss on TEST, and its paired difference to our search."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.head_to_head.outcomes import Outcome
from benchmarks.head_to_head.rivals import LABELS, Rival
from search_spaces.durations import format_duration
from trials.metrics.paired_tests import is_clear
from trials.metrics.row_losses import LossDifference, RowLosses, compare

HEADINGS = ("rival", "loss", "minus ours", "time used", "trials", "trained", "tokens/s", "")
_NONE = "-"


@dataclass(frozen=True)
class Line:
    """One line of the table. `losses` is None if there was no adapter, `difference` also for our search itself."""

    outcome: Outcome
    losses: RowLosses | None
    difference: LossDifference | None

    def cells(self) -> tuple[str, ...]:
        """Return the texts under `HEADINGS`."""
        outcome = self.outcome
        loss = _NONE if self.losses is None else f"{self.losses.mean:.4f}"
        share = _NONE if outcome.winner_share is None else f"{outcome.winner_share:.2f}"
        used = format_duration(outcome.seconds)
        speed = f"{outcome.tokens_per_second:,.0f}"
        return (
            *(LABELS[outcome.rival], loss, in_words(self.difference), used, str(outcome.trials), share, speed),
            self._remarks(),
        )

    def _remarks(self) -> str:
        outcome, found = self.outcome, []
        if outcome.adapter is None:
            found.append(f"no adapter, exit code {outcome.exit_code}")
        if outcome.was_cut_off:
            found.append("cut off at the deadline" if outcome.rival.is_single else "had to be ended")
        if outcome.is_late and outcome.ready_seconds is not None:
            found.append(f"adapter {outcome.ready_seconds - outcome.budget_seconds:.0f} s late")
        return "; ".join(found)


def in_words(found: LossDifference | None) -> str:
    """Return a difference with its standard error, and a star if the 95 % interval excludes 0."""
    if found is None:
        return _NONE
    return f"{found.difference:+.4f} ± {found.standard_error:.4f}{'*' if is_clear(found) else ' '}"


Judged = Mapping[tuple[float, int, Rival], RowLosses]
"""Losses on TEST by budget in seconds, seed and rival; those without an adapter are missing."""


def lines(outcomes: Iterable[Outcome], judged: Judged) -> list[Line]:
    """Return one line an outcome; differences are to our search with the same budget and seed, if that has a loss."""
    found = []
    for outcome in outcomes:
        cell = (outcome.budget_seconds, outcome.seed)
        losses, ours = judged.get((*cell, outcome.rival)), judged.get((*cell, Rival.OURS))
        is_compared = losses is not None and ours is not None and outcome.rival is not Rival.OURS
        found.append(Line(outcome, losses, compare(ours, losses) if is_compared else None))  # type: ignore[arg-type]
    return found


def over_seeds(judged: Judged, budget_seconds: float, rival: Rival) -> tuple[int, LossDifference] | None:
    """Return in how many seeds a rival and our search have a loss, and the mean difference; None: in fewer than two.

    Each row's losses are averaged over the seeds, so its standard error is over rows: what other seeds would give is
    not in it.
    """
    seeds = sorted(seed for budget, seed, who in judged if (budget, who) == (budget_seconds, rival))
    both = [seed for seed in seeds if (budget_seconds, seed, Rival.OURS) in judged]
    if len(both) < 2 or rival is Rival.OURS:
        return None
    ours, theirs = (_mean_rows([judged[budget_seconds, seed, who] for seed in both]) for who in (Rival.OURS, rival))
    return len(both), compare(ours, theirs)


def _mean_rows(losses: Sequence[RowLosses]) -> RowLosses:
    sums = [math.fsum(rows) / len(losses) for rows in zip(*(each.loss_sums for each in losses), strict=True)]
    return RowLosses(sums, losses[0].token_counts)


def table_text(found: Sequence[Line], judged: Judged) -> str:
    """Return the whole table: a block for every budget and seed, and the means where there are several seeds."""
    blocks: dict[tuple[float, int], list[Line]] = defaultdict(list)
    for line in found:
        blocks[line.outcome.budget_seconds, line.outcome.seed].append(line)
    widths = [max(map(len, column)) for column in zip(HEADINGS, *(line.cells() for line in found), strict=True)]
    parts = []
    for (budget, seed), block in blocks.items():
        title = f"{format_duration(budget)} of wall clock each, seed {seed}"
        parts.append(
            "\n".join([title, _aligned(HEADINGS, widths), *(_aligned(line.cells(), widths) for line in block)])
        )
    parts += _means(judged, list(dict.fromkeys(budget for budget, _ in blocks)))
    return "\n\n".join(parts)


def _means(judged: Judged, budgets: Sequence[float]) -> list[str]:
    parts = []
    for budget in budgets:
        found = {rival: over_seeds(judged, budget, rival) for rival in Rival}
        rows = [f"{LABELS[rival]}: {in_words(mean[1])} ({mean[0]} seeds)" for rival, mean in found.items() if mean]
        if rows:
            parts.append("\n".join([f"{format_duration(budget)}, minus ours, mean over seeds", *rows]))
    return parts


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Return the first and the last text to the left, figures to the right."""
    first, *middle, last = cells
    inner = [cell.rjust(width) for cell, width in zip(middle, widths[1:-1], strict=True)]
    return "  ".join([first.ljust(widths[0]), *inner, last]).rstrip()


def as_json(found: Iterable[Line]) -> list[dict[str, Any]]:
    """Return all figures of every line, with the loss of every TEST row."""
    rows = []
    for line in found:
        outcome, losses, difference = line.outcome, line.losses, line.difference
        row = asdict(outcome)
        row |= {"tokens_per_second": outcome.tokens_per_second, "is_late": outcome.is_late}
        row["test_loss"] = None if losses is None else losses.mean
        row["test_loss_standard_error"] = None if losses is None else losses.standard_error
        row["minus_ours"] = None if difference is None else vars(difference)
        row["test_rows"] = None if losses is None else vars(losses)
        rows.append(row)
    return rows
