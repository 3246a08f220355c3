"""The report's figures: learning curves, importance, loss against one hyperparameter, score against loss."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go

from orchestrator.report.data import ReportData, hyperparameter
from orchestrator.report.plot_style import (
    COLOURS,
    LINE_COLOUR,
    LOG_FROM_RATIO,
    WINNER,
    about,
    base_line,
    has_converged,
    kind_of,
    legend,
    loss_axis,
    new_figure,
    winner_last,
)
from orchestrator.report.score_agreement import latest
from orchestrator.report.tables import show
from search_spaces.schema import Range
from trials.metrics.score_names import NAMES
from trials.metrics.task_scores import Measure
from trials.records.score_log import estimate


def learning_curves(data: ReportData) -> go.Figure:
    """Draw eval loss against tokens seen, one line a trial; diverged trials may leave the figure at the top."""
    figure = new_figure("training tokens seen", "eval loss, nats per token", height=460)
    for record in winner_last(data):
        if not record.points:
            continue
        kind = kind_of(record, data)
        figure.add_scatter(
            x=[point.tokens_seen for point in record.points],
            y=[point.eval_loss for point in record.points],
            mode="lines+markers",
            line={"color": COLOURS[kind], "width": 4 if kind == WINNER else 1.5},
            marker={"size": 8 if kind == WINNER else 4},
            opacity=1.0 if kind == WINNER else 0.75,
            name=kind,
            legendgroup=kind,
            showlegend=False,
            meta=about(record, data),
            hovertemplate="%{meta}<br>%{x:,} tokens: loss %{y:.4f}<extra></extra>",
        )
    legend(figure)
    base_line(figure, data)
    for number, tokens in enumerate(data.rungs, start=1):
        figure.add_vline(x=tokens, line={"color": LINE_COLOUR, "width": 1, "dash": "dot"}, opacity=0.6)
        figure.add_annotation(
            x=tokens, y=1, yref="paper", yanchor="bottom", text=f"comparison point {number}", showarrow=False
        )
    figure.update_xaxes(rangemode="tozero")
    loss_axis(figure, data, [p.eval_loss for r in data.trained if has_converged(r) for p in r.points])
    return figure


def importance_bars(shares: Mapping[str, float]) -> go.Figure:
    """Draw shares that add up to 1 as horizontal bars, the largest on top."""
    figure = new_figure("share of importance", None, height=110 + 30 * len(shares))
    names = list(shares)[::-1]
    labels = [name.replace("_", " ") for name in names]
    figure.add_bar(
        x=[shares[name] for name in names],
        y=labels,
        orientation="h",
        marker={"color": COLOURS["finished"]},
        text=[f"{shares[name]:.0%}" for name in names],
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{y}: %{x:.1%}<extra></extra>",
    )
    figure.update_xaxes(tickformat=".0%", range=[0, 1.15 * max(shares.values())])
    figure.update_layout(showlegend=False, margin={"t": 30, "b": 50})
    return figure


def loss_against(data: ReportData, name: str) -> go.Figure:
    """Draw the best eval loss of every trial against one hyperparameter that the search varies."""
    figure = new_figure(name.replace("_", " "), "best eval loss", height=380)
    for record in winner_last(data):
        if not record.points:
            continue
        kind = kind_of(record, data)
        value = hyperparameter(record, name)
        figure.add_scatter(
            x=[value if isinstance(value, float) else show(value)],
            y=[record.best_eval_loss],
            mode="markers",
            marker={"color": COLOURS[kind], "size": 13 if kind == WINNER else 8},
            name=kind,
            legendgroup=kind,
            showlegend=False,
            meta=about(record, data),
            hovertemplate="%{meta}<br>best loss %{y:.4f}<extra></extra>",
        )
    legend(figure)
    base_line(figure, data)
    dimension = data.search.recipe.space.get(name)
    if isinstance(dimension, Range) and dimension.log:
        figure.update_xaxes(type="log", dtick=1, tickformat=".0e")
    losses = [record.best_eval_loss for record in data.trained if has_converged(record)]
    loss_axis(figure, data, [loss for loss in losses if loss is not None])
    return figure


def score_against_loss(data: ReportData) -> go.Figure | None:
    """Draw every trial's latest score with its 95 % interval against its loss at that evaluation; None: no scores."""
    scored = {trial.record.id: trial for trial in latest(data.trained)}
    if not scored:
        return None
    measure = next(iter(scored.values())).scoring.scores.measure
    figure = new_figure("eval loss where it was scored", NAMES[measure], height=380)
    for record in winner_last(data):
        if record.id not in scored:
            continue
        trial, kind = scored[record.id], kind_of(record, data)
        interval = estimate(trial.scoring.scores)
        figure.add_scatter(
            x=[trial.loss],
            y=[interval.value],
            error_y={
                "array": [interval.high - interval.value],
                "arrayminus": [interval.value - interval.low],
                "thickness": 1,
                "width": 0,
            },
            mode="markers",
            marker={"color": COLOURS[kind], "size": 13 if kind == WINNER else 8},
            name=kind,
            legendgroup=kind,
            showlegend=False,
            meta=f"{about(record, data)}<br>at {trial.scoring.tokens_seen:,} tokens",
            hovertemplate="%{meta}<br>loss %{x:.4f}, score %{y:.4f}<extra></extra>",
        )
    legend(figure)
    losses = [trial.loss for trial in scored.values()]
    if max(losses) > LOG_FROM_RATIO * min(losses) > 0:
        figure.update_xaxes(type="log", dtick="D2")
    if measure is Measure.LABEL:
        figure.update_yaxes(tickformat=".0%")
    return figure
