import math
from pathlib import Path
from typing import Any

import pytest

from orchestrator.report.data import UNENDED, read_report_data
from orchestrator.report.figures import importance_bars, learning_curves, loss_against, score_against_loss
from orchestrator.report.plot_style import COLOURS, fragment
from orchestrator.state.run_dir import RunDir
from tests.support.report_runs import BASE, BASE_LOSS, STEP_TOKENS, Told, new_run, right, write_trial
from trials.metrics.intervals import wilson
from trials.records.trial_dir import Ending, Origin
from trials.state import TrialState

DIVERGED = Ending(TrialState.DIVERGED, "above twice")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = new_run(tmp_path / "run")
    write_trial(run, BASE)
    return run


def curves_of(run: RunDir) -> Any:
    return learning_curves(read_report_data(run))


def test_one_curve_a_trial_with_its_own_points(run: RunDir) -> None:
    write_trial(run, Told("0001", [1.5, 1.4, 1.45]))
    write_trial(run, Told("0002", [1.6]))
    write_trial(run, Told("0003", []))

    first, second = sorted(curves_of(run).data, key=lambda trace: trace.meta)

    assert list(first.x) == [STEP_TOKENS, 2 * STEP_TOKENS, 3 * STEP_TOKENS]
    assert list(first.y) == [1.5, 1.4, 1.45]
    assert list(second.y) == [1.6]


def test_the_winner_is_on_top_and_thick(run: RunDir) -> None:
    write_trial(run, Told("0001", [1.3]))
    write_trial(run, Told("0002", [1.6]))
    other, winner = curves_of(run).data
    assert "0001" in winner.meta
    assert winner.name == "winner"
    assert winner.line.width > 2 * other.line.width


def test_colours_tell_how_trials_ended(run: RunDir) -> None:
    write_trial(run, Told("0001", [1.2]))
    for number, kind in enumerate((state for state in TrialState if state.is_terminal), start=2):
        write_trial(run, Told(f"{number:04d}", [1.5], Ending(kind, "because")))
    write_trial(run, Told("0020", [1.5], None))

    figure = curves_of(run)

    assert {trace.name for trace in figure.data} == set(COLOURS)
    assert all(trace.line.color == COLOURS[trace.name] for trace in figure.data)
    assert UNENDED in COLOURS
    assert len(set(COLOURS.values())) == len(COLOURS)


def test_the_legend_has_one_entry_for_each_ending(run: RunDir) -> None:
    for number in range(1, 5):
        write_trial(run, Told(f"{number:04d}", [1.5, 1.2 + number / 10]))
    assert sorted(trace.name for trace in curves_of(run).data if trace.showlegend) == ["finished", "winner"]


def test_base_and_rungs_are_lines(run: RunDir) -> None:
    write_trial(run, Told("0001", [1.5]))
    figure = curves_of(run)
    flat = [shape for shape in figure.layout.shapes if shape.y0 == shape.y1]
    upright = [shape.x0 for shape in figure.layout.shapes if shape.x0 == shape.x1]
    assert [(shape.y0, shape.line.dash) for shape in flat] == [(BASE_LOSS, "dash")]
    assert upright == [11_111, 33_333]


def test_a_diverged_curve_does_not_squeeze_the_others(run: RunDir) -> None:
    write_trial(run, Told("0001", [1.5, 1.2]))
    write_trial(run, Told("0002", [1.8, 40.0], DIVERGED))
    axis = curves_of(run).layout.yaxis
    assert axis.type != "log"
    assert axis.range[0] < 1.2
    assert BASE_LOSS < axis.range[1] < 2.5


def test_losses_that_differ_by_a_factor_are_shown_by_their_logarithm(run: RunDir) -> None:
    write_trial(run, Told("0001", [1.5, 0.1]))
    figure = curves_of(run)
    low, high = figure.layout.yaxis.range
    assert figure.layout.yaxis.type == "log"
    assert low < math.log10(0.1)
    assert math.log10(BASE_LOSS) < high < 1
    (label,) = [a for a in figure.layout.annotations if "base" in a.text]
    assert label.y == pytest.approx(math.log10(BASE_LOSS))


def test_hovering_tells_which_trial_it_is(run: RunDir) -> None:
    write_trial(run, Told("0001", [1.5], values={"lora_rank": 8}))
    (trace,) = curves_of(run).data
    assert "0001" in trace.meta
    assert "proposed" in trace.meta
    assert "lora_rank 8" in trace.meta
    assert "weight_decay" not in trace.meta


def test_names_are_escaped_where_plotly_reads_html(run: RunDir) -> None:
    write_trial(run, Told("0001", [1.5], origin=Origin.START, name="<b>bold</b>"))
    (trace,) = curves_of(run).data
    assert "&lt;b&gt;bold" in trace.meta
    assert "<b>bold" not in trace.meta


def test_curves_of_a_search_that_has_just_begun(tmp_path: Path) -> None:
    assert len(curves_of(new_run(tmp_path / "fresh")).data) == 0


def test_importance_bars_have_the_largest_on_top() -> None:
    (bars,) = importance_bars({"learning_rate": 0.7, "lora_rank": 0.3}).data
    assert list(bars.y) == ["lora rank", "learning rate"]
    assert list(bars.x) == [0.3, 0.7]
    assert list(bars.text) == ["30%", "70%"]


def test_loss_against_the_learning_rate(run: RunDir) -> None:
    write_trial(run, Told("0001", [1.5, 1.3], values={"learning_rate": 3e-4}))
    write_trial(run, Told("0002", [1.9, 5.0], DIVERGED, values={"learning_rate": 9e-3}))
    figure = loss_against(read_report_data(run), "learning_rate")
    assert [(trace.x[0], trace.y[0]) for trace in figure.data] == [(9e-3, 1.9), (3e-4, 1.3)]
    assert figure.layout.xaxis.type == "log"


def test_fragment_brings_the_library_only_when_asked(run: RunDir) -> None:
    figure = curves_of(run)
    alone, whole = (fragment(figure, "curves", with_library=library) for library in (False, True))
    assert 'id="curves"' in alone
    assert len(alone) < 100_000
    assert len(whole) > 1_000_000
    assert "<script src" not in whole


def test_score_against_the_loss_of_the_same_evaluation(run: RunDir) -> None:
    write_trial(run, Told("0001", [1.5, 1.3, 1.4], scores={1: right(10), 3: right(30)}))
    write_trial(run, Told("0002", [1.6], scores={1: right(20)}))
    write_trial(run, Told("0003", [1.7]))
    figure = score_against_loss(read_report_data(run))
    other, winner = figure.data
    assert (winner.x[0], winner.y[0]) == (pytest.approx(1.4), 0.75)
    assert (other.x[0], other.y[0]) == (pytest.approx(1.6), 0.5)
    assert "33,336 tokens" in winner.meta
    interval = wilson(30, 40)
    assert winner.error_y.array[0] == pytest.approx(interval.high - 0.75)
    assert winner.error_y.arrayminus[0] == pytest.approx(0.75 - interval.low)
    assert figure.layout.yaxis.tickformat == ".0%"
    assert figure.layout.xaxis.type != "log"
    write_trial(run, Told("0004", [0.2], scores={1: right(35)}))
    assert score_against_loss(read_report_data(run)).layout.xaxis.type == "log"


def test_there_is_no_figure_of_scores_without_scores(run: RunDir) -> None:
    write_trial(run, Told("0001", [1.5]))
    assert score_against_loss(read_report_data(run)) is None
