import csv
import io
from pathlib import Path

import pytest

from orchestrator.report.data import read_report_data
from orchestrator.report.tables import (
    NOTHING,
    counts_line,
    csv_text,
    ranking_rows,
    settings,
    show,
    stopped_rows,
    surroundings,
)
from orchestrator.state.run_dir import RunDir
from tests.support.report_runs import BASE, BASE_LOSS, Told, new_run, right, row_losses, write_trial
from trials.metrics.row_losses import compare
from trials.records.trial_dir import Ending, Origin
from trials.state import TrialState


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return new_run(tmp_path / "run")


def test_ranking_puts_the_lowest_loss_first_and_trials_without_a_loss_last(run: RunDir) -> None:
    write_trial(run, BASE)
    write_trial(run, Told("0001", [1.5, 1.4]))
    write_trial(run, Told("0002", [], Ending(TrialState.FAILED, "its process died")))
    write_trial(run, Told("0003", [1.2, 1.3]))
    write_trial(run, Told("0004", [2.5]))

    rows = ranking_rows(read_report_data(run))

    assert [row.id for row in rows] == ["0003", "0001", "0000", "0004", "0002"]
    assert [row.loss for row in rows] == ["1.2000", "1.4000", "1.9000", "2.5000", NOTHING]
    assert [row.id for row in rows if row.is_leader] == ["0003"]
    assert [row.id for row in rows if row.is_base] == ["0000"]


def test_trials_with_equal_losses_are_ranked_by_id(run: RunDir) -> None:
    for trial in ("0002", "0001"):
        write_trial(run, Told(trial, [1.5]))
    assert [row.id for row in ranking_rows(read_report_data(run))] == ["0001", "0002"]


def test_ranking_gives_the_paired_difference_to_the_winner(run: RunDir) -> None:
    write_trial(run, BASE)
    write_trial(run, Told("0001", [1.5]))
    write_trial(run, Told("0002", [1.2]))

    behind = {row.id: row.behind for row in ranking_rows(read_report_data(run))}

    error = compare(row_losses(1.2, seed=2), row_losses(1.5, seed=1)).standard_error
    assert behind["0001"] == f"+0.3000 ± {error:.4f}"
    assert behind["0002"] == NOTHING
    assert behind["0000"].startswith("+0.7000 ± ")


def test_ranking_leaves_out_a_difference_between_other_rows(run: RunDir) -> None:
    write_trial(run, BASE)
    write_trial(run, Told("0001", [1.2]))
    folder = write_trial(run, Told("0002", [1.5]))
    for path in folder.path.rglob("eval_rows.json"):
        path.write_text('{"loss_sums": [1.0, 2.0], "token_counts": [3, 4]}')
    assert {row.id: row.behind for row in ranking_rows(read_report_data(run))}["0002"] == NOTHING


def test_ranking_shows_what_the_search_varies(run: RunDir) -> None:
    write_trial(run, BASE)
    write_trial(run, Told("0001", [1.5], values={"learning_rate": 0.0003, "lora_rank": 8}))
    data = read_report_data(run)

    rows = {row.id: dict(zip(data.varied, row.values, strict=True)) for row in ranking_rows(data)}

    assert rows["0001"]["learning_rate"] == "0.0003"
    assert rows["0001"]["lora_rank"] == "8"
    assert rows["0000"]["learning_rate"] == NOTHING
    assert "weight_decay" not in data.varied


def test_stopped_rows_give_every_reason_with_troubles_first(run: RunDir) -> None:
    write_trial(run, BASE)
    write_trial(run, Told("0001", [1.5], Ending(TrialState.PRUNED, "place 9 of 9")))
    write_trial(run, Told("0002", [1.5], Ending(TrialState.EARLY_STOPPED, "no patience")))
    write_trial(run, Told("0003", [1.5]))
    write_trial(run, Told("0004", [1.5], None))
    write_trial(run, Told("0005", [9.0], Ending(TrialState.DIVERGED, "above twice")))
    write_trial(run, Told("0006", [], Ending(TrialState.OUT_OF_MEMORY, "2 GiB")))
    write_trial(run, Told("0007", [], Ending(TrialState.FAILED, "died")))

    rows = stopped_rows(read_report_data(run))

    assert [(row.id, row.ending, row.reason) for row in rows] == [
        ("0007", "failed", "died"),
        ("0006", "out of memory", "2 GiB"),
        ("0005", "diverged", "above twice"),
        ("0004", "running or paused", "no ending on disk"),
        ("0002", "early stopped", "no patience"),
        ("0001", "pruned", "place 9 of 9"),
    ]


def test_counts_line_counts_trained_trials_only(run: RunDir) -> None:
    write_trial(run, BASE)
    assert counts_line(read_report_data(run)) == "No trial was started yet."
    write_trial(run, Told("0001", [1.5]))
    assert counts_line(read_report_data(run)) == "1 trial: 1 finished."
    write_trial(run, Told("0002", [1.5], None))
    write_trial(run, Told("0003", [1.5], None))
    assert counts_line(read_report_data(run)) == "3 trials: 2 running or paused, 1 finished."


def test_settings_say_who_made_them(tmp_path: Path) -> None:
    data = read_report_data(new_run(tmp_path / "run", ["weight_decay=0.25"]))

    made, defaults = settings(data)

    by_key = {setting.key: (setting.value, setting.source) for setting in made}
    assert by_key["hyperparameters.weight_decay"] == ("0.25", "--set")
    assert by_key["evaluation.evaluations"] == ("9", "demo.yaml")
    assert by_key["space.learning_rate.high"] == ("0.01", "demo.yaml")
    assert by_key["space.lora_rank.choices"] == ("4, 8, 16, 32", "demo.yaml")
    assert {setting.source for setting in defaults} == {"default"}
    assert "hyperparameters.scheduler" in {setting.key for setting in defaults}
    assert not by_key.keys() & {setting.key for setting in defaults}


def test_surroundings_name_versions_and_hardware(run: RunDir) -> None:
    pairs = dict(surroundings(read_report_data(run)))
    assert pairs["python"].startswith("3.")
    assert int(pairs["cpu cores"]) >= 1


def test_csv_has_a_row_a_trial_with_numbers_in_full(run: RunDir) -> None:
    write_trial(run, BASE)
    values = {"learning_rate": 0.00012345678, "target_modules": ["q_proj", "v_proj"]}
    scores = {1: right(10), 2: right(37)}
    told = Told("0001", [1.5, 1.23456789, 1.3], origin=Origin.START, name="usual", values=values, scores=scores)
    write_trial(run, told)
    reason = 'no "luck", in\ntwo lines'
    write_trial(run, Told("0002", [], Ending(TrialState.FAILED, reason)))
    write_trial(run, Told("0003", [1.5], None))

    base, start, failed, running = csv.DictReader(io.StringIO(csv_text(run.records())))

    assert (base["id"], base["origin"], float(base["best_eval_loss"])) == ("0000", "base", BASE_LOSS)
    assert (start["id"], start["origin"], start["name"], start["ending"]) == ("0001", "start", "usual", "finished")
    assert (start["best_eval_loss"], start["tokens_seen"], start["steps"]) == ("1.23456789", "33336", "42")
    assert float(start["seconds"]) == pytest.approx(64.5)
    assert (start["learning_rate"], start["target_modules"]) == ("0.00012345678", "q_proj+v_proj")
    assert (start["score"], base["score"]) == ("0.925", "")
    assert (failed["reason"], failed["best_eval_loss"], failed["seconds"]) == (reason, "", "")
    assert (running["ending"], running["reason"]) == ("", "")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, NOTHING),
        (True, "yes"),
        (32.0, "32"),
        (100_000, "100000"),
        (0.000123456, "0.0001235"),
        (("q_proj", "v_proj"), "q_proj+v_proj"),
    ],
)
def test_show_is_short(value: object, text: str) -> None:
    assert show(value) == text
