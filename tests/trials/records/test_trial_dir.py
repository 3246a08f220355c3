"""What a trial leaves on disk, and what is read back after a crash."""

from __future__ import annotations

import json
import socket
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from trials.config import TrialConfig
from trials.errors import RunFolderError
from trials.metrics.row_losses import RowLosses
from trials.records.trial_dir import Ending, EvalPoint, Origin, TrialDir, read_trial
from trials.state import TrialState

LOSSES = RowLosses([4.0, 6.0], [2, 2])


def _point(step: int, loss: float, best: float) -> EvalPoint:
    return EvalPoint(step, step * 100, loss, best, seconds=float(step), train_loss=loss, tokens_per_second=50.0)


def _adapter(content: str) -> object:
    def save(folder: Path) -> None:
        (folder / "adapter_config.json").write_text(content)

    return save


@pytest.fixture
def folder(tmp_path: Path, small_config: TrialConfig) -> TrialDir:
    folder = TrialDir(tmp_path / "trials" / "0003")
    folder.begin(small_config, Origin.PROPOSED, "proposed")
    return folder


def test_what_was_written_is_read(folder: TrialDir, small_config: TrialConfig) -> None:
    points = [_point(1, 3.0, 3.0), _point(2, 2.5, 2.5)]
    for point in points:
        folder.record(point, LOSSES, _adapter(str(point.step)))
    folder.end(Ending(TrialState.FINISHED, "all 2 steps"))
    record = read_trial(folder.path)
    assert (record.id, record.origin, record.name, record.config) == ("0003", "proposed", "proposed", small_config)
    assert list(record.points) == points
    assert (record.best_eval_loss, record.tokens_seen) == (2.5, 200)
    assert record.ending == Ending(TrialState.FINISHED, "all 2 steps")
    assert record.row_losses() == LOSSES
    assert record.has_adapter


def test_a_trial_that_only_began(folder: TrialDir) -> None:
    record = read_trial(folder.path)
    assert (record.points, record.ending, record.best_eval_loss, record.tokens_seen) == ((), None, None, 0)
    assert record.row_losses() is None
    assert not record.has_adapter


def test_adapter_and_rows_are_those_of_the_best_evaluation(folder: TrialDir) -> None:
    worse = RowLosses([9.0, 9.0], [2, 2])
    folder.record(_point(1, 2.5, 2.5), LOSSES, _adapter("best"))
    folder.record(_point(2, 3.0, 2.5), worse, _adapter("worse"))
    record = read_trial(folder.path)
    assert (folder.adapter / "adapter_config.json").read_text() == "best"
    assert record.row_losses() == LOSSES
    assert record.best_eval_loss == 2.5


def test_a_recorded_evaluation_always_has_its_adapter(folder: TrialDir) -> None:
    def dies(_: Path) -> None:
        raise KeyboardInterrupt

    folder.record(_point(1, 2.5, 2.5), LOSSES, _adapter("first"))
    with pytest.raises(KeyboardInterrupt):
        folder.record(_point(2, 2.0, 2.0), LOSSES, dies)
    record = read_trial(folder.path)
    assert [point.step for point in record.points] == [1]
    assert (folder.adapter / "adapter_config.json").read_text() == "first"


def test_the_base_has_rows_and_no_adapter(folder: TrialDir) -> None:
    folder.record(_point(0, 3.0, 3.0), LOSSES, save_adapter=None)
    assert read_trial(folder.path).row_losses() == LOSSES
    assert not read_trial(folder.path).has_adapter


def test_a_line_cut_by_a_crash_is_not_read_and_the_next_one_is(folder: TrialDir) -> None:
    folder.record(_point(1, 3.0, 3.0), LOSSES, None)
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(asdict(_point(2, 2.0, 2.0)))[:40])
    assert [point.step for point in read_trial(folder.path).points] == [1]
    folder.record(_point(3, 2.5, 2.5), LOSSES, None)
    assert [point.step for point in read_trial(folder.path).points] == [1, 3]


def test_an_evaluation_says_which_machine_made_it(folder: TrialDir) -> None:
    folder.record(_point(1, 3.0, 3.0), LOSSES, None)
    (line,) = (folder.path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["node"] == socket.gethostname()


def test_an_adapter_is_found_after_a_cut_replacement(folder: TrialDir) -> None:
    folder.record(_point(1, 3.0, 3.0), LOSSES, _adapter("old"))
    folder.adapter.rename(folder.path / "adapter.old")  # a crash between the two renames
    record = read_trial(folder.path)
    assert record.has_adapter
    assert (record.adapter / "adapter_config.json").read_text() == "old"
    folder.record(_point(2, 2.0, 2.0), LOSSES, _adapter("new"))
    assert (read_trial(folder.path).adapter / "adapter_config.json").read_text() == "new"
    assert not (folder.path / "adapter.old").exists()


def test_reading_changes_nothing(folder: TrialDir) -> None:
    folder.record(_point(1, 3.0, 3.0), LOSSES, _adapter("old"))
    folder.adapter.rename(folder.path / "adapter.old")  # the trial's own process is between its two renames
    before = sorted(folder.path.rglob("*"))
    assert read_trial(folder.path).has_adapter
    assert sorted(folder.path.rglob("*")) == before


def test_the_first_ending_stands(folder: TrialDir) -> None:
    folder.end(Ending(TrialState.PRUNED, "fell behind at a comparison point"))
    folder.end(Ending(TrialState.FAILED, "its process died"))
    assert read_trial(folder.path).ending == Ending(TrialState.PRUNED, "fell behind at a comparison point")


def test_a_trial_is_paused_until_it_has_ended(folder: TrialDir) -> None:
    assert read_trial(folder.path).state is TrialState.PAUSED
    folder.end(Ending(TrialState.EARLY_STOPPED, "no progress"))
    assert read_trial(folder.path).state is TrialState.EARLY_STOPPED


def test_an_ending_that_is_none_counts_as_pruned(folder: TrialDir) -> None:
    (folder.path / "ending.json").write_text('{"kind": "running", "reason": ""}')
    record = read_trial(folder.path)
    assert record.state is TrialState.PRUNED
    assert "a trial can't end as running" in str(record.damage[0])


def test_a_folder_holds_one_trial(folder: TrialDir, small_config: TrialConfig) -> None:
    with pytest.raises(RunFolderError, match=r"0003 already holds a trial\. Give another --out"):
        folder.begin(small_config, Origin.SINGLE, "another")


def test_fields_of_a_later_version_are_skipped(folder: TrialDir) -> None:
    line = {**asdict(_point(1, 3.0, 3.0)), "gpu_degrees": 61}
    (folder.path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    assert read_trial(folder.path).points == (_point(1, 3.0, 3.0),)


@pytest.mark.parametrize(
    "content",
    ["", '{"origin": "start"', "[]", '{"origin": "start"}', '{"origin": "moon", "name": "x", "config": {}}'],
    ids=["empty", "cut", "no object", "keys missing", "unknown origin"],
)
def test_a_config_that_is_not_ours_is_an_error_that_names_the_file(folder: TrialDir, content: str) -> None:
    (folder.path / "config.json").write_text(content)
    with pytest.raises(RunFolderError, match=r"0003/config\.json can't be read: .* Restore it"):
        read_trial(folder.path)


def test_an_unknown_setting_is_an_error(folder: TrialDir) -> None:
    path = folder.path / "config.json"
    content = json.loads(path.read_text())
    content["config"]["hyperparameters"]["lora_depth"] = 3
    path.write_text(json.dumps(content))
    with pytest.raises(RunFolderError, match="lora_depth"):
        read_trial(folder.path)


def test_no_trial_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="holds no trial: there is no config"):
        read_trial(tmp_path)


def test_killed_between_adapter_and_metrics_the_loss_on_record_is_the_adapters(folder: TrialDir) -> None:
    folder.record(_point(1, 3.0, 3.0), LOSSES, _adapter("first"))
    folder.record(_point(2, 2.0, 2.0), LOSSES, _adapter("second"))
    metrics = folder.path / "metrics.jsonl"
    metrics.write_text(metrics.read_text().splitlines()[0] + "\n")  # the second line never came
    record = read_trial(folder.path)
    assert record.best_eval_loss == 2.0
    assert record.points[-1] == _point(2, 2.0, 2.0)
    assert (record.adapter / "adapter_config.json").read_text() == "second"


def test_the_adapter_is_on_disk_before_the_evaluations_line(folder: TrialDir) -> None:
    folder.keep_if_best(_point(1, 3.0, 3.0), LOSSES, _adapter("first"))
    # Answers are made and scored here, for minutes perhaps; whoever reads now finds the evaluation all the same.
    assert read_trial(folder.path).points == (_point(1, 3.0, 3.0),)
    scored = replace(_point(1, 3.0, 3.0), score=0.5, score_seconds=60.0)
    folder.log(scored)
    assert read_trial(folder.path).points == (scored,)
    assert read_trial(folder.path).score == 0.5


def test_the_rows_are_remembered_where_somebody_said_which(tmp_path: Path, small_config: TrialConfig) -> None:
    for name, said in (("a", "abc"), ("b", None)):
        TrialDir(tmp_path / name).begin(small_config, Origin.SINGLE, "demo", said)
        assert read_trial(tmp_path / name).fingerprint == said


def test_damage_names_its_file_whatever_the_text_says(folder: TrialDir) -> None:
    folder.record(_point(1, 3.0, 3.0), LOSSES, _adapter("{}"))
    for path in folder.path.rglob("eval_rows.json"):
        path.unlink()
    (folder.path / "ending.json").write_text('{"kind": "metrics.jsonl is gone", "reason": ""}')
    (folder.adapter / "point.json").write_text("[]")
    found = {damage.file: damage.is_gone for damage in read_trial(folder.path).all_damage()}
    assert found == {"ending.json": False, "adapter/point.json": False, "eval_rows.json": True}
