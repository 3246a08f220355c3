"""Row losses, and the paired comparison of two models on the same rows. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RowLosses:
    """Loss of every eval row, in file order: its sum in nats, and its number of completion tokens."""

    loss_sums: Sequence[float]
    token_counts: Sequence[int]

    @property
    def mean(self) -> float:
        """Token-weighted mean in nats per token: every token counts the same, however rows were batched."""
        return math.fsum(self.loss_sums) / sum(self.token_counts)

    def first(self, rows: int) -> RowLosses:
        """Return the losses of the first `rows` rows."""
        return RowLosses(self.loss_sums[:rows], self.token_counts[:rows])

    @property
    def flaw(self) -> str | None:
        """Reason why nothing can be computed from them, if their file was damaged; None: it can."""
        if not self.loss_sums or len(self.loss_sums) != len(self.token_counts):
            return f"it has {len(self.loss_sums)} losses and {len(self.token_counts)} numbers of tokens"
        return "a row has no tokens" if min(self.token_counts) < 1 else None

    @property
    def standard_error(self) -> float:
        """Standard error of the mean, in nats per token, over rows as in `compare`.

        Raises ValueError for fewer than two rows.
        """
        return _standard_error(self.loss_sums, self.token_counts)


@dataclass(frozen=True)
class LossDifference:
    """Difference `b - a` on the same rows, in nats per token, with the standard error that pairing by row gives."""

    difference: float
    standard_error: float
    rows: int


def compare(a: RowLosses, b: RowLosses) -> LossDifference:
    """Return by how much the loss of `b` exceeds that of `a`, in nats per token.

    Rows are the sampling unit, because the tokens of one row aren't independent. So the error is that of a ratio
    estimator over rows: Cochran, Sampling Techniques, 3rd edition, section 6.3. Raises ValueError if the rows differ.
    """
    if list(a.token_counts) != list(b.token_counts):
        raise ValueError("the two were not evaluated on the same rows with the same tokenizer")
    differences = [y - x for x, y in zip(a.loss_sums, b.loss_sums, strict=True)]
    mean = math.fsum(differences) / sum(a.token_counts)
    return LossDifference(mean, _standard_error(differences, a.token_counts), len(a.token_counts))


def _standard_error(sums: Sequence[float], counts: Sequence[int]) -> float:
    rows, tokens = len(counts), sum(counts)
    if rows < 2:
        raise ValueError("a standard error needs at least two rows")
    mean = math.fsum(sums) / tokens
    squares = math.fsum((total - mean * n) ** 2 for total, n in zip(sums, counts, strict=True))
    return math.sqrt(rows / (rows - 1) * squares) / tokens
