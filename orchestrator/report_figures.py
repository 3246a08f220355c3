"""The report's figures: learning curves, importance, loss against one hyperparameter.

Text and grid take their colours from the page's style sheet, so that the figures follow a dark page.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
import plotly.io

from orchestrator.report_findings import UNENDED, Findings, ending_label, hyperparameter, trial_label
from orchestrator.report_tables import show
from search_spaces.schema import Range
from trials.records import EndingKind, TrialRecord

WINNER = "winner"
# Told apart by people who see few colours (after Okabe and Ito), and on white as on black.
COLOURS: Mapping[str, str] = {
    WINNER: "#16a34a",
    "finished": "#3b82c4",
    "early stopped": "#56b4e9",
    "pruned": "#9aa3ad",
    "diverged": "#d55e00",
    "out of memory": "#e69f00",
    "failed": "#cc79a7",
    UNENDED: "#8b7fc7",
}
_LINE_COLOUR = "#8a929c"
_GRID_COLOUR = "rgba(138,146,156,0.2)"
_CONFIG = {"displaylogo": False, "responsive": True, "modeBarButtons": [["zoom2d", "autoScale2d", "resetScale2d"]]}
_LOG_FROM_RATIO = 3.0


def learning_curves(findings: Findings) -> go.Figure:
    """Eval loss against tokens seen, one line a trial; diverged ones may leave the picture at the top."""
    figure = _figure("training tokens seen", "eval loss, nats per token", height=460)
    for record in _winner_last(findings):
        if not record.points:
            continue
        kind = _kind(record, findings)
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
            meta=_about(record, findings),
            hovertemplate="%{meta}<br>%{x:,} tokens: loss %{y:.4f}<extra></extra>",
        )
    _legend(figure)
    _base_line(figure, findings)
    for number, tokens in enumerate(findings.rungs, start=1):
        figure.add_vline(x=tokens, line={"color": _LINE_COLOUR, "width": 1, "dash": "dot"}, opacity=0.6)
        figure.add_annotation(x=tokens, y=1, yref="paper", yanchor="bottom", text=f"rung {number}", showarrow=False)
    figure.update_xaxes(rangemode="tozero")
    _loss_axis(figure, findings, [p.eval_loss for r in findings.trained if _is_tame(r) for p in r.points])
    return figure


def importance_bars(shares: Mapping[str, float]) -> go.Figure:
    """Shares that add up to 1 as horizontal bars, the largest on top."""
    figure = _figure("share of importance", None, height=110 + 30 * len(shares))
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


def loss_against(findings: Findings, name: str) -> go.Figure:
    """Best eval loss of every trial against one hyperparameter that the search varies."""
    figure = _figure(name.replace("_", " "), "best eval loss", height=380)
    for record in _winner_last(findings):
        if not record.points:
            continue
        kind = _kind(record, findings)
        value = hyperparameter(record, name)
        figure.add_scatter(
            x=[value if isinstance(value, float) else show(value)],
            y=[record.best_eval_loss],
            mode="markers",
            marker={"color": COLOURS[kind], "size": 13 if kind == WINNER else 8},
            name=kind,
            legendgroup=kind,
            showlegend=False,
            meta=_about(record, findings),
            hovertemplate="%{meta}<br>best loss %{y:.4f}<extra></extra>",
        )
    _legend(figure)
    _base_line(figure, findings)
    dimension = findings.search.recipe.space.get(name)
    if isinstance(dimension, Range) and dimension.log:
        figure.update_xaxes(type="log", dtick=1, tickformat=".0e")
    losses = [record.best_eval_loss for record in findings.trained if _is_tame(record)]
    _loss_axis(figure, findings, [loss for loss in losses if loss is not None])
    return figure


def fragment(figure: go.Figure, div_id: str, *, with_library: bool) -> str:
    """A figure as HTML; `with_library` puts the whole of plotly.js (5 MB) in front, which one figure a page needs."""
    text: str = plotly.io.to_html(
        figure, config=_CONFIG, include_plotlyjs=with_library, full_html=False, div_id=div_id, default_width="100%"
    )
    return text


def _figure(x_title: str, y_title: str | None, height: int) -> go.Figure:
    figure = go.Figure()
    figure.update_layout(
        template="none",
        height=height,
        # Dragging scrolls the page on a phone; the zoom button switches it over.
        dragmode=False,
        hovermode="closest",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"size": 13, "color": _LINE_COLOUR},
        margin={"l": 60, "r": 12, "t": 40, "b": 90},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "yref": "container", "y": 0, "yanchor": "bottom"},
        hoverlabel={"align": "left"},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": _LINE_COLOUR, "activecolor": COLOURS["finished"]},
    )
    axis = {"gridcolor": _GRID_COLOUR, "zeroline": False, "automargin": True}
    figure.update_xaxes(title={"text": x_title, "font": {"size": 13}}, **axis)
    figure.update_yaxes(title={"text": y_title, "font": {"size": 13}}, **axis)
    return figure


def _winner_last(findings: Findings) -> list[TrialRecord]:
    """Drawn last is drawn on top."""
    return sorted(findings.trained, key=lambda record: _kind(record, findings) == WINNER)


def _kind(record: TrialRecord, findings: Findings) -> str:
    is_winner = findings.best is not None and record.id == findings.best.trial.id
    return WINNER if is_winner else ending_label(record)


def _is_tame(record: TrialRecord) -> bool:
    return record.ending is None or record.ending.kind is not EndingKind.DIVERGED


def _about(record: TrialRecord, findings: Findings) -> str:
    """Plotly reads a little HTML in its texts, so names are escaped."""
    lines = [f"<b>{html.escape(record.id)}</b> {html.escape(trial_label(record))}, {ending_label(record)}"]
    lines += [f"{name} {html.escape(show(hyperparameter(record, name)))}" for name in findings.varied]
    return "<br>".join(lines)


def _legend(figure: go.Figure) -> None:
    """One entry for each way to end, in the order of `COLOURS`."""
    for rank, kind in enumerate(COLOURS):
        for trace in figure.select_traces({"name": kind}):
            trace.update(showlegend=True, legendrank=rank)
            break


def _base_line(figure: go.Figure, findings: Findings) -> None:
    base = findings.base
    if base is None:
        return
    figure.add_hline(y=base.best_eval_loss, line={"color": _LINE_COLOUR, "width": 1.5, "dash": "dash"})
    figure.add_annotation(
        x=1,
        xref="paper",
        xanchor="right",
        y=base.best_eval_loss,
        yref="y",
        yanchor="bottom",
        text=f"base model {base.best_eval_loss:.4f}",
        showarrow=False,
    )


def _loss_axis(figure: go.Figure, findings: Findings, losses: Sequence[float]) -> None:
    """Room for the base and all trials that didn't diverge; a logarithm only where losses differ by a factor."""
    shown = [*losses, *(point.eval_loss for point in (findings.base.points if findings.base else ()))]
    if not shown:
        return
    low, high = min(shown), max(shown)
    if low > 0 and high / low > _LOG_FROM_RATIO:
        low, high = math.log10(low), math.log10(high)
        figure.update_yaxes(type="log")
        # On a logarithmic axis plotly places texts by the logarithm.
        for annotation in figure.select_annotations({"yref": "y"}):
            annotation.y = math.log10(annotation.y)
    margin = 0.07 * (high - low) or 0.1
    figure.update_yaxes(range=[low - margin, high + margin])
