"""The plot: the best so far of every rival within its wall clock."""

from __future__ import annotations

from benchmarks.head_to_head.curves import Evaluation
from benchmarks.head_to_head.outcomes import Outcome
from benchmarks.head_to_head.plot import figure, page, steps
from benchmarks.head_to_head.rivals import LABELS, Rival


def outcome(rival: Rival, budget: float, *evaluations: Evaluation, seed: int = 0) -> Outcome:
    return Outcome(rival, budget, seed, ("x",), 50.0, 45.0, 0, False, "run/best", 1, 300, 0.5, evaluations)


def test_a_line_ends_with_the_wall_clock() -> None:
    found = steps([Evaluation(10, 2.0), Evaluation(20, 1.0), Evaluation(61, 0.5)], 60)
    assert found == [Evaluation(10, 2.0), Evaluation(20, 1.0), Evaluation(60, 1.0)]
    assert steps([Evaluation(61, 0.5)], 60) == []


def test_a_rival_is_named_once_whatever_its_seeds() -> None:
    outcomes = [outcome(Rival.STOCK, 60, Evaluation(10, 2.0), seed=seed) for seed in (0, 1)]
    drawn = figure([*outcomes, outcome(Rival.OURS, 60), outcome(Rival.RECIPE, 60, Evaluation(5, 3.0))])
    shown = [(trace.name, trace.showlegend) for trace in drawn.data]
    assert shown == [(LABELS[Rival.STOCK], True), (LABELS[Rival.STOCK], False), (LABELS[Rival.RECIPE], True)]


def test_losses_far_apart_are_on_a_logarithmic_axis() -> None:
    near = outcome(Rival.STOCK, 60, Evaluation(10, 2.0), Evaluation(20, 1.0))
    far = outcome(Rival.OURS, 60, Evaluation(10, 2.0), Evaluation(20, 0.01))
    assert figure([near]).layout.yaxis.type is None
    assert figure([near, far]).layout.yaxis.type == "log"


def test_the_page_has_a_figure_a_budget_and_needs_no_network() -> None:
    text = page([outcome(Rival.OURS, budget, Evaluation(10, 2.0)) for budget in (60, 240)])
    assert text.count("<h2>") == 2
    assert 'id="budget-0"' in text
    assert 'id="budget-1"' in text
    assert "cdn.plot.ly/plotly" not in text
