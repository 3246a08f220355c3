"""The plot of a head-to-head: the lowest loss on EVAL so far against wall clock, a line a rival."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from benchmarks.head_to_head.curves import Evaluation, best_so_far
from benchmarks.head_to_head.outcomes import Outcome
from benchmarks.head_to_head.rivals import LABELS, Rival
from orchestrator.report.plot_style import LINE_COLOUR, LOG_FROM_RATIO, fragment, new_figure
from search_spaces.durations import format_duration

# Distinguishable with colour blindness (after Okabe and Ito), as in the report; our search is green there, too.
_COLOURS: Mapping[Rival, str] = {
    Rival.RECIPE: "#9aa3ad",
    Rival.REPEATED: "#0072b2",
    Rival.STOCK: "#d55e00",
    Rival.STOCK_PARTS: "#e69f00",
    Rival.OURS: "#16a34a",
}
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Head-to-head</title>
<style>body {{ font-family: sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}</style></head>
<body><h1>Head-to-head</h1>
<p>Lowest loss on EVAL so far, when the evaluation was on disk. Stock's losses are the means that TRL reports, the
others' are weighted by tokens; the table compares adapters on other rows, by one measure.</p>
{figures}
</body></html>
"""


def page(outcomes: Sequence[Outcome]) -> str:
    """Return a page with one figure a budget, which needs no network."""
    by_budget: dict[float, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_budget[outcome.budget_seconds].append(outcome)
    figures = [
        f"<h2>{format_duration(budget)}</h2>" + fragment(figure(found), f"budget-{number}", with_library=number == 0)
        for number, (budget, found) in enumerate(sorted(by_budget.items()))
    ]
    return _PAGE.format(figures="\n".join(figures))


def figure(outcomes: Sequence[Outcome]) -> go.Figure:
    """Return the figure of one budget; seeds of a rival share its colour and its place in the legend."""
    drawn = new_figure("seconds since the start of the command", "best loss on EVAL, nats per token", height=460)
    budget = max(outcome.budget_seconds for outcome in outcomes)
    named: set[Rival] = set()
    losses: list[float] = []
    for outcome in outcomes:
        curve = steps(outcome.evaluations, budget)
        if not curve:
            continue
        drawn.add_scatter(
            x=[point.seconds for point in curve],
            y=[point.eval_loss for point in curve],
            mode="lines",
            line={"shape": "hv", "color": _COLOURS[outcome.rival], "width": 3 if outcome.rival is Rival.OURS else 2},
            name=LABELS[outcome.rival],
            legendgroup=outcome.rival.value,
            showlegend=outcome.rival not in named,
            hovertemplate=f"{LABELS[outcome.rival]}, seed {outcome.seed}<br>%{{x:.0f}} s: %{{y:.4f}}<extra></extra>",
        )
        named.add(outcome.rival)
        losses += [point.eval_loss for point in curve]
    drawn.add_vline(x=budget, line={"color": LINE_COLOUR, "width": 1, "dash": "dot"})
    drawn.update_xaxes(rangemode="tozero")
    if losses and max(losses) > LOG_FROM_RATIO * min(losses) > 0:
        drawn.update_yaxes(type="log")
    return drawn


def steps(evaluations: Sequence[Evaluation], budget_seconds: float) -> list[Evaluation]:
    """Return the best so far at every improvement within the budget, and once more at its end; empty: no evaluation."""
    curve = best_so_far([each for each in evaluations if each.seconds <= budget_seconds])
    return [*curve, Evaluation(budget_seconds, curve[-1].eval_loss)] if curve else []
