import json
import os
from datetime import timedelta
from pathlib import Path

import pytest

from orchestrator.report.data import read_report_data
from orchestrator.report.headline import export_lines, headline, time_line
from orchestrator.state.run_dir import RunDir
from tests.support.report_runs import BASE, STARTED, Told, new_run, row_losses, write_export, write_trial
from trials.metrics.row_losses import compare
from trials.records.trial_dir import Origin


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = new_run(tmp_path / "run")
    write_trial(run, BASE)
    return run


def start(trial: str, loss: float) -> Told:
    return Told(trial, [loss], origin=Origin.START, name="usual")


def test_headline_names_winner_gains_and_errors(run: RunDir) -> None:
    write_trial(run, start("0001", 1.4))
    write_trial(run, Told("0002", [1.2]))

    text = headline(read_report_data(run))

    over_base = compare(row_losses(1.2, seed=2), row_losses(1.9, seed=0)).standard_error
    over_start = compare(row_losses(1.2, seed=2), row_losses(1.4, seed=1)).standard_error
    assert text == (
        "Trial 0002 wins with an eval loss of 1.2000 nats per token: "
        f"0.7000 ± {over_base:.4f} below the base model's 1.9000 (clear); and "
        f"0.2000 ± {over_start:.4f} below starting point usual's 1.4000 (clear)."
    )


def test_headline_says_when_two_cannot_be_told_apart(run: RunDir) -> None:
    write_trial(run, start("0001", 1.201))
    write_trial(run, Told("0002", [1.2]))
    text = headline(read_report_data(run))
    assert "1.9000 (clear)" in text
    assert "starting point usual's 1.2010 (the two cannot be told apart)" in text


def test_headline_when_a_starting_point_wins(run: RunDir) -> None:
    write_trial(run, start("0001", 1.2))
    write_trial(run, Told("0002", [1.3]))
    text = headline(read_report_data(run))
    assert text.startswith("Trial 0001 (starting point usual) wins")
    assert text.count("usual") == 1


def test_headline_when_a_starting_point_was_not_evaluated(run: RunDir) -> None:
    write_trial(run, Told("0002", [1.2]))
    assert "starting point usual has no eval loss to compare with" in headline(read_report_data(run))


def test_headline_when_a_starting_point_has_no_row_losses(run: RunDir) -> None:
    folder = write_trial(run, start("0001", 1.4))
    for path in folder.path.rglob("eval_rows.json"):
        path.unlink()
    write_trial(run, Told("0002", [1.2]))
    assert "starting point usual has 1.4000, without a comparison row by row" in headline(read_report_data(run))


def test_headline_gives_the_reason_when_nothing_beats_the_base(run: RunDir) -> None:
    write_trial(run, Told("0001", [2.5]))
    data = read_report_data(run)
    assert headline(data).startswith("No adapter is worth exporting yet: the best trial, 0001, has eval loss 2.5")
    assert export_lines(data) == ["There is no export, for the reason above."]


def test_headline_when_the_base_has_other_rows(run: RunDir) -> None:
    (run.trial("0000") / "eval_rows.json").write_text('{"loss_sums": [9.0, 9.0], "token_counts": [3, 4]}')
    write_trial(run, Told("0001", [1.2]))
    assert "can't be compared with the base model" in headline(read_report_data(run))


def test_export_lines_verified_and_proved_on_test_rows(run: RunDir) -> None:
    write_trial(run, Told("0001", [1.2]))
    write_export(run, "0001", 1.2)
    verified, test = export_lines(read_report_data(run))
    assert verified == (
        "The export holds trial 0001 and was verified: loaded again it gives 1.2000, 2e-05 off the trial's own figure "
        "(allowed: 0.001)."
    )
    assert "its loss is 1.1234 against the base model's 1.9345, a gain of 0.8111 ± 0.0123 (clear)" in test


def test_export_lines_warn_when_the_figures_are_apart(run: RunDir) -> None:
    write_export(run, "0001", 1.2, verified={"eval_loss": 1.3, "difference": -0.1, "tolerance": 1e-3}, test=None)
    (line,) = export_lines(read_report_data(run))
    assert "NOT verified" in line


def test_export_lines_do_without_missing_figures(run: RunDir) -> None:
    write_export(run, "0001", 1.2, verified=None, test={"eval_loss": 1.1})
    verified, test = export_lines(read_report_data(run))
    assert verified == "The export holds trial 0001; its manifest has no figures of a verification."
    assert test.endswith("its loss is 1.1000.")


def test_export_lines_say_that_a_better_trial_came_later(run: RunDir) -> None:
    write_trial(run, Told("0001", [1.2]))
    write_trial(run, Told("0002", [1.1]))
    write_export(run, "0001", 1.2, test=None)
    assert "The export holds trial 0001; trial 0002 is better by now." in export_lines(read_report_data(run))


def test_export_lines_say_that_a_better_trial_was_skipped(run: RunDir) -> None:
    write_trial(run, Told("0001", [1.2]))
    write_trial(run, Told("0002", [1.1]))
    write_export(run, "0001", 1.2, test=None)
    path = run.export / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(
        json.dumps({**content, "skipped": [{"trial": "0002", "eval_loss": 1.1, "reason": "it is damaged"}]})
    )
    said = "The export holds trial 0001; trial 0002 has a lower loss, and was skipped: it is damaged"
    assert said in export_lines(read_report_data(run))


def test_export_lines_before_the_export(run: RunDir) -> None:
    write_trial(run, Told("0001", [1.2]))
    (line,) = export_lines(read_report_data(run))
    assert line.startswith("Trial 0001 is not exported yet")


def test_time_line_measures_to_the_last_written_file(run: RunDir) -> None:
    for file in (run.path / "trials").rglob("*.json*"):
        when = (STARTED + timedelta(hours=1)).timestamp()
        os.utime(file, (when, when))
    when = (STARTED + timedelta(hours=4, minutes=12)).timestamp()
    os.utime(run.trial("0000") / "metrics.jsonl", (when, when))
    assert time_line(read_report_data(run)).startswith("4h12m used of a budget of 9h00m")


def test_time_line_before_anything_ran(tmp_path: Path) -> None:
    assert time_line(read_report_data(new_run(tmp_path / "fresh"))).startswith("0s used")
