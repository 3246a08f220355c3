import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.controller.events import Event, Notice, TrialEnded, TrialEvaluated, TrialPaused, TrialStarted
from orchestrator.monitoring.console import headline, live_view, shown_rows, table
from orchestrator.monitoring.progress import Progress
from search_spaces.schema import Recipe
from tests.support.fake_search import make_search, point
from trials.console.line_log import LineLog
from trials.console.unexpected import keep_tracebacks_in
from trials.records.trial_dir import Ending, Origin
from trials.state import TrialState


@pytest.fixture
def events(small_recipe: Recipe) -> list[Event]:
    config = small_recipe.trial_config({})
    return [
        Notice("Ray dashboard http://127.0.0.1:8265"),
        TrialStarted("0000", Origin.BASE, "base", config, 900),
        TrialEvaluated("0000", point(3.0, 0)),
        TrialEnded("0000", Ending(TrialState.FINISHED, "evaluated"), 3.0),
        TrialStarted("0001", Origin.START, "usual", config, 900),
        TrialEvaluated("0001", point(2.5, 100)),
        TrialEnded("0001", Ending(TrialState.PRUNED, "other trials looked more promising"), 2.5),
    ]


def show(events: list[Event], recipe: Recipe, *, terminal: bool, log: list[str] | None = None) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=110)
    logged = [] if log is None else log
    with live_view(Progress(tuple(recipe.space)), make_search(recipe).deadline, console, logged.append) as listener:
        for event in events:
            listener(event)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_pipe_gets_one_line_an_event(events: list[Event], small_recipe: Recipe) -> None:
    lines = show(events, small_recipe, terminal=False).splitlines()
    assert len(lines) == len(events)
    assert lines[0].endswith("Ray dashboard http://127.0.0.1:8265")
    assert lines[5].endswith("trial 0001 at 100 tokens: eval loss 2.5000")
    assert lines[6].split("] ")[1].startswith("trial 0001 pruned, best eval loss 2.5000: ")


def test_a_terminal_gets_a_table(events: list[Event], small_recipe: Recipe) -> None:
    shown = show(events, small_recipe, terminal=True)
    for word in ("trial", "state", "done", "11 %", "tokens/s", "0001 usual", "pruned", "base 3.0000", "best 2.5000"):
        assert word in shown


@pytest.mark.parametrize("terminal", [False, True])
def test_the_log_gets_the_lines_of_a_pipe_either_way(events: list[Event], small_recipe: Recipe, terminal: bool) -> None:
    log: list[str] = []
    show(events, small_recipe, terminal=terminal, log=log)
    lines = show(events, small_recipe, terminal=False).splitlines()
    assert [line.split("] ")[1] for line in log] == [line.split("] ")[1] for line in lines]


def test_a_table_that_cannot_be_drawn_ends_nothing(
    events: list[Event], small_recipe: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("dictionary changed size during iteration")

    kept = LineLog(tmp_path / "search.log")
    keep_tracebacks_in(kept)
    monkeypatch.setattr("orchestrator.monitoring.console.table", broken)
    assert "the table can't be drawn" in show(events, small_recipe, terminal=True)
    assert "dictionary changed size" in kept.path.read_text()
    keep_tracebacks_in(None)


def test_pauses_and_returns_are_said(events: list[Event], small_recipe: Recipe) -> None:
    config = small_recipe.trial_config({})
    paused = TrialPaused("0001", "other trials look more promising")
    resumed = TrialStarted("0001", Origin.START, "usual", config, 900, tokens_seen=100)
    lines = show([*events, paused, resumed], small_recipe, terminal=False).splitlines()
    assert lines[-2].endswith("trial 0001 paused: other trials look more promising")
    assert lines[-1].endswith("trial 0001 goes on from 100 tokens")


def test_running_trials_are_always_shown(small_recipe: Recipe) -> None:
    progress = Progress(tuple(small_recipe.space))
    config = small_recipe.trial_config({})
    for number in range(60):
        progress.apply(TrialStarted(f"{number:04d}", Origin.PROPOSED, "proposed", config, 900))
        progress.apply(TrialEvaluated(f"{number:04d}", point(1.0 + number, 100)))
        if number != 59:
            progress.apply(TrialEnded(f"{number:04d}", Ending(TrialState.FINISHED, ""), 1.0))
    shown = [row.trial_id for row in shown_rows(progress)]
    assert shown[0] == "0000"
    assert shown[-1] == "0059"
    assert len(shown) == 24
    assert "best 1.0000 (trial 0000)" in headline(progress, make_search(small_recipe).deadline).plain
    assert table(progress, make_search(small_recipe).deadline, ["hello"]).renderables


def test_scores_are_shown_where_there_are_any(events: list[Event], small_recipe: Recipe) -> None:
    assert "score" not in show(events, small_recipe, terminal=True)
    scored = [
        replace(event, point=replace(event.point, score=0.625)) if isinstance(event, TrialEvaluated) else event
        for event in events
    ]
    lines = show(scored, small_recipe, terminal=False).splitlines()
    assert "at 100 tokens: eval loss 2.5000, score 0.6250" in lines[5]
    # A later evaluation without a score leaves the last one there.
    scored.append(TrialEvaluated("0001", point(2.4, 200)))
    shown = show(scored, small_recipe, terminal=True)
    assert "score" in shown
    assert "0.6250" in shown


@pytest.mark.parametrize("name", ["[red]a", "a[/b]", "[link=x]y[/link]"])
def test_brackets_in_a_name_are_shown(small_recipe: Recipe, name: str) -> None:
    started = TrialStarted("0001", Origin.START, name, small_recipe.trial_config({}), 900)
    assert f"0001 {name}" in show([started], small_recipe, terminal=True)
    assert f"started: {name} " in show([started], small_recipe, terminal=False)
