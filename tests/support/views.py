"""Trials as samplers and schedulers see them, evaluated nine times in a full trial."""

from __future__ import annotations

from orchestrator.scheduling.types import BudgetState
from orchestrator.surrogate.trial_view import TrialView
from trials.state import TrialState

EVALUATIONS = 9
SHORT = 1e-3
"""Optimizer steps end so much of a full trial short of the tokens of an evaluation."""
BUDGET = BudgetState(
    seconds_left=1000.0, seconds=1600.0, slots=1, seconds_full=100.0, evaluation_point=1 / 9, seconds_start=1.0
)


def view(
    number: int,
    *losses: float,
    state: TrialState = TrialState.RUNNING,
    rate: float = 1e-4,
    is_start: bool = False,
) -> TrialView:
    """A trial with these losses at its first evaluations, each a little short of its fraction."""
    points = tuple(((k + 1) / EVALUATIONS - SHORT, loss) for k, loss in enumerate(losses))
    return TrialView(f"{number:04d}", {"learning_rate": rate}, points, 1.0, state, is_start, 0.0)
