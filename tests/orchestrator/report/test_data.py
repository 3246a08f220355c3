import json
from pathlib import Path

import pytest

from orchestrator.report.data import read_report_data
from orchestrator.state.run_dir import RunDir
from orchestrator.state.selection import paired_gain
from tests.support.report_runs import BASE, Told, new_run, write_trial
from trials.errors import RunFolderError
from trials.records.trial_dir import Origin


def test_rungs_come_from_the_search(tmp_path: Path) -> None:
    assert read_report_data(new_run(tmp_path / "run")).rungs == (11_111, 33_333)
    assert read_report_data(new_run(tmp_path / "no-rungs", ["search.rungs=0"])).rungs == ()


def test_varied_holds_the_space_and_what_starting_points_change(tmp_path: Path) -> None:
    data = read_report_data(new_run(tmp_path / "run", ["start.usual.weight_decay=0.3"]))
    assert data.varied[0] == "learning_rate"
    assert data.varied[-1] == "weight_decay"
    assert len(set(data.varied)) == len(data.varied)


def test_leader_without_a_base_is_the_lowest_loss(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    write_trial(run, Told("0001", [1.5]))
    write_trial(run, Told("0002", [1.4]))
    data = read_report_data(run)
    assert data.best is None
    assert data.leader is not None
    assert data.leader.id == "0002"


def test_a_half_written_last_line_costs_only_that_evaluation(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    write_trial(run, BASE)
    folder = write_trial(run, Told("0001", [1.5, 1.6], None))
    metrics = folder.path / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-30])
    (record,) = read_report_data(run).trained
    assert [point.eval_loss for point in record.points] == [1.5]


def test_gain_over_needs_the_rows_of_both(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    write_trial(run, Told("0001", [1.5]))
    write_trial(run, Told("0002", []))
    evaluated, untouched = run.records()
    assert paired_gain(evaluated, untouched) is None
    assert paired_gain(untouched, evaluated) is None


@pytest.mark.parametrize("content", ["{}", "[1, 2]", "null", '"text"'])
def test_samples_of_another_shape_are_left_out(tmp_path: Path, content: str) -> None:
    run = new_run(tmp_path / "run")
    (run.path / "samples.json").write_text(content)
    assert read_report_data(run).samples == ()


def test_samples_keep_their_order(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    (run.path / "samples.json").write_text(json.dumps([{"id": "b"}, {"id": "a"}]))
    assert [sample["id"] for sample in read_report_data(run).samples] == ["b", "a"]


def test_no_search_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="holds no search"):
        read_report_data(RunDir(tmp_path))


def test_base_is_no_trained_trial(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    write_trial(run, BASE)
    data = read_report_data(run)
    assert data.trained == []
    assert data.base is not None
    assert data.base.origin is Origin.BASE
