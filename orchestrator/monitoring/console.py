"""Console view of a running search: a live table on a terminal, one plain line per event on a pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.controller.events import Event, Notice, TrialEnded, TrialEvaluated, TrialPaused, TrialStarted
from orchestrator.monitoring.progress import Progress, TrialProgress
from orchestrator.state.deadline import Deadline
from search_spaces.durations import format_duration
from trials.console.unexpected import keep_traceback
from trials.state import TrialState

_SHOWN_ROWS = 24
_STYLES = {
    TrialState.RUNNING: "bold",
    TrialState.FINISHED: "green",
    TrialState.DIVERGED: "red",
    TrialState.OUT_OF_MEMORY: "red",
    TrialState.FAILED: "red",
}


def unlogged(line: str) -> None:
    """Discard a line; default for `live_view` without a log."""


@contextmanager
def live_view(
    progress: Progress, deadline: Deadline, console: Console, log: Callable[[str], object] = unlogged
) -> Iterator[Callable[[Event], None]]:
    """Yield the event listener for the controller, which applies, logs and then shows every event.

    The console's stream must survive a closed terminal or pipe (`trials.console.terminal`).
    """
    if not console.is_terminal:

        def tell(event: Event) -> None:
            progress.apply(event)
            said = line(event, progress, deadline)
            log(said)
            console.print(said, soft_wrap=True, markup=False, highlight=False)

        yield tell
        return
    messages: list[str] = []
    with Live(get_renderable=lambda: _drawn(progress, deadline, messages), console=console, refresh_per_second=2):

        def show(event: Event) -> None:
            progress.apply(event)
            log(line(event, progress, deadline))
            if isinstance(event, Notice):
                messages.append(event.text)

        yield show


def _drawn(progress: Progress, deadline: Deadline, messages: list[str]) -> RenderableType:
    """Return the live view, or a replacement text: an error in drawing must not end the search."""
    try:
        return table(progress, deadline, list(messages))
    except Exception as error:
        keep_traceback(error)
        return Text("the table can't be drawn")


def line(event: Event, progress: Progress, deadline: Deadline) -> str:
    """Return an event as one line of plain text, with the time left."""
    left = format_duration(deadline.seconds_left(datetime.now(UTC)))
    return f"[{left} left] {_sentence(event, progress)}"


def _sentence(event: Event, progress: Progress) -> str:
    if isinstance(event, Notice):
        return event.text
    trial = f"trial {event.trial_id}"
    if isinstance(event, TrialStarted):
        row = progress.rows[event.trial_id]
        if event.tokens_seen:
            return f"{trial} goes on from {event.tokens_seen:,} tokens"
        return f"{trial} started: {row.name} {row.settings}"
    if isinstance(event, TrialEvaluated):
        point = event.point
        speed = f", {point.tokens_per_second:,.0f} tokens/s" if point.tokens_per_second else ""
        score = "" if point.score is None else f", score {point.score:.4f}"
        return f"{trial} at {point.tokens_seen:,} tokens: eval loss {point.eval_loss:.4f}{score}{speed}"
    if isinstance(event, TrialPaused):
        return f"{trial} paused: {event.reason}"
    return f"{trial} {_end(event)}"


def _end(event: TrialEnded) -> str:
    best = f", best eval loss {event.best_eval_loss:.4f}" if event.best_eval_loss is not None else ""
    return f"{event.ending.kind.value}{best}: {event.ending.reason}"


def table(progress: Progress, deadline: Deadline, messages: list[str]) -> Group:
    """Return the live view: headline, one row per shown trial (lowest loss first), the last three messages."""
    grid = Table(expand=True, header_style="dim", box=None)
    for name, justify in (("trial", "left"), ("state", "left"), ("done", "right"), ("tokens", "right")):
        grid.add_column(name, justify=justify)  # type: ignore[arg-type]
    has_scores = any(row.score is not None for row in progress.rows.values())
    for name in ("loss", "best", *(["score"] if has_scores else []), "tokens/s"):
        grid.add_column(name, justify="right")
    grid.add_column("configuration", overflow="ellipsis", no_wrap=True, ratio=1)
    for row in shown_rows(progress):
        # As `Text`, because rich would take brackets in the name of a starting point for markup.
        grid.add_row(*map(Text, _cells(row, has_scores=has_scores)), style=_STYLES.get(row.state, "dim"))
    return Group(headline(progress, deadline), grid, *(Text(text, style="dim") for text in messages[-3:]))


def headline(progress: Progress, deadline: Deadline) -> Text:
    """Return the headline: time used and left, base eval loss, best eval loss."""
    now = datetime.now(UTC)
    total = (deadline.ends - deadline.started).total_seconds()
    left = deadline.seconds_left(now)
    best, base = progress.best, progress.base_eval_loss
    text = Text(f"{format_duration(total - left)} used, {format_duration(left)} left")
    text.append(f"   base {base:.4f}" if base is not None else "   base not evaluated yet")
    if best is not None and best.point is not None:
        text.append(f"   best {best.point.best_eval_loss:.4f} (trial {best.trial_id})", style="bold green")
    return text


def shown_rows(progress: Progress) -> list[TrialProgress]:
    """Return the rows to show, lowest loss first: all running trials, and the best other ones as far as they fit."""
    ordered = sorted(progress.rows.values(), key=_by_loss)
    running = [row for row in ordered if row.state is TrialState.RUNNING]
    ended = [row for row in ordered if row.state is not TrialState.RUNNING]
    kept = running + ended[: max(0, _SHOWN_ROWS - len(running))]
    return sorted(kept, key=_by_loss)


def _by_loss(row: TrialProgress) -> tuple[float, str]:
    return (row.point.best_eval_loss if row.point else float("inf"), row.trial_id)


def _cells(row: TrialProgress, *, has_scores: bool) -> list[str]:
    name = row.trial_id if row.name == "proposed" else f"{row.trial_id} {row.name}"
    score = ["" if row.score is None else f"{row.score:.4f}"] if has_scores else []
    point = row.point
    if point is None:
        return [name, row.state, "0 %", "0", "", "", *score, "", row.settings]
    speed = f"{point.tokens_per_second:,.0f}" if point.tokens_per_second else ""
    losses = [f"{point.eval_loss:.4f}", f"{point.best_eval_loss:.4f}"]
    done = f"{min(1.0, point.tokens_seen / row.full_tokens):.0%}".replace("%", " %")
    return [name, row.state, done, f"{point.tokens_seen:,}", *losses, *score, speed, row.settings]
