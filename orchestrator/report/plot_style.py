"""Style of the report's figures: colours, axes, legend, hover text, HTML.

Text and grid take their colours from the page's style sheet, so that the figures follow a dark page.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
import plotly.io

from orchestrator.report.data import UNENDED, ReportData, ending_label, hyperparameter, trial_label
from orchestrator.report.tables import show
from trials.records.trial_dir import TrialRecord
from trials.state import TrialState

WINNER = "winner"
# Distinguishable with colour blindness (after Okabe and Ito), on white and on black.
COLOURS: Mapping[str, str] = {
    WINNER: "#16a34a",
    "finished": "#3b82c4",
    "early stopped": "#56b4e9",
    "out of time": "#0072b2",
    "pruned": "#9aa3ad",
    "diverged": "#d55e00",
    "out of memory": "#e69f00",
    "failed": "#cc79a7",
    UNENDED: "#8b7fc7",
}
LINE_COLOUR = "#8a929c"
_GRID_COLOUR = "rgba(138,146,156,0.2)"
_CONFIG = {"displaylogo": False, "responsive": True, "modeBarButtons": [["zoom2d", "autoScale2d", "resetScale2d"]]}
LOG_FROM_RATIO = 3.0
"""Ratio of the highest to the lowest loss above which the axis is logarithmic."""


def fragment(figure: go.Figure, div_id: str, *, with_library: bool) -> str:
    """Return a figure as HTML.

    `with_library` puts the whole of plotly.js (5 MB) in front, which the first figure of a page needs.
    """
    text: str = plotly.io.to_html(
        figure, config=_CONFIG, include_plotlyjs=with_library, full_html=False, div_id=div_id, default_width="100%"
    )
    return text


def new_figure(x_title: str, y_title: str | None, height: int) -> go.Figure:
    """Return an empty figure as wide as the page; `height` is in pixels."""
    figure = go.Figure()
    figure.update_layout(
        template="none",
        height=height,
        # Dragging scrolls the page on a phone; the zoom button switches it over.
        dragmode=False,
        hovermode="closest",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"size": 13, "color": LINE_COLOUR},
        margin={"l": 60, "r": 12, "t": 40, "b": 90},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "yref": "container", "y": 0, "yanchor": "bottom"},
        hoverlabel={"align": "left"},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": LINE_COLOUR, "activecolor": COLOURS["finished"]},
    )
    axis = {"gridcolor": _GRID_COLOUR, "zeroline": False, "automargin": True}
    figure.update_xaxes(title={"text": x_title, "font": {"size": 13}}, **axis)
    figure.update_yaxes(title={"text": y_title, "font": {"size": 13}}, **axis)
    return figure


def winner_last(data: ReportData) -> list[TrialRecord]:
    """Return all trials with the winner last, because what is drawn last is on top."""
    return sorted(data.trained, key=lambda record: kind_of(record, data) == WINNER)


def kind_of(record: TrialRecord, data: ReportData) -> str:
    """Return `WINNER`, or how the trial ended: a key of `COLOURS`."""
    is_winner = data.best is not None and record.id == data.best.trial.id
    return WINNER if is_winner else ending_label(record)


def has_converged(record: TrialRecord) -> bool:
    """Return whether a trial didn't diverge, so that its losses fit on an axis with the others'."""
    return record.state is not TrialState.DIVERGED


def about(record: TrialRecord, data: ReportData) -> str:
    """Return a trial's hover text; names are escaped, because Plotly reads some HTML in its texts."""
    lines = [f"<b>{html.escape(record.id)}</b> {html.escape(trial_label(record))}, {ending_label(record)}"]
    lines += [f"{name} {html.escape(show(hyperparameter(record, name)))}" for name in data.varied]
    return "<br>".join(lines)


def legend(figure: go.Figure) -> None:
    """Add one legend entry for each key of `COLOURS` that is drawn, in their order."""
    for rank, kind in enumerate(COLOURS):
        for trace in figure.select_traces({"name": kind}):
            trace.update(showlegend=True, legendrank=rank)
            break


def base_line(figure: go.Figure, data: ReportData) -> None:
    """Draw a dashed line at the base model's loss, if it was evaluated."""
    base = data.base
    if base is None:
        return
    figure.add_hline(y=base.best_eval_loss, line={"color": LINE_COLOUR, "width": 1.5, "dash": "dash"})
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


def loss_axis(figure: go.Figure, data: ReportData, losses: Sequence[float]) -> None:
    """Fit the loss axis to `losses` and the base model's; logarithmic above `LOG_FROM_RATIO`."""
    shown = [*losses, *(point.eval_loss for point in (data.base.points if data.base else ()))]
    if not shown:
        return
    low, high = min(shown), max(shown)
    if low > 0 and high / low > LOG_FROM_RATIO:
        low, high = math.log10(low), math.log10(high)
        figure.update_yaxes(type="log")
        # On a logarithmic axis Plotly positions annotations by the logarithm.
        for annotation in figure.select_annotations({"yref": "y"}):
            annotation.y = math.log10(annotation.y)
    margin = 0.07 * (high - low) or 0.1
    figure.update_yaxes(range=[low - margin, high + margin])
