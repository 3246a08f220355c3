"""Evaluations of every rival, read from the files that its trials write while it runs."""

from __future__ import annotations

from pathlib import Path

from benchmarks.head_to_head.curves import CurveReader, Evaluation, best_so_far
from tests.support.fake_search import point, record
from trials.config import TrialConfig
from trials.records.trial_dir import Origin, TrialDir
from trials.system.files import append_json_line


def begun(path: Path, config: TrialConfig) -> TrialDir:
    folder = TrialDir(path)
    folder.begin(config, Origin.PROPOSED, "demo")
    return folder


def test_a_single_trial_is_read_as_it_grows(tmp_path: Path, small_config: TrialConfig) -> None:
    reader = CurveReader(tmp_path / "run")
    reader.read(0.5)
    trial = begun(tmp_path / "run", small_config)
    record(trial, point(2.0, 300))
    reader.read(3.0)
    reader.read(4.0)
    record(trial, point(1.5, 600))
    reader.read(5.0)
    assert reader.found == [Evaluation(3.0, 2.0), Evaluation(5.0, 1.5)]


def test_trials_of_a_search_are_one_curve_without_the_base(tmp_path: Path, small_config: TrialConfig) -> None:
    for number, (loss, tokens) in enumerate([(3.0, 0), (2.0, 300), (1.8, 300)]):
        record(begun(tmp_path / "trials" / f"{number:04d}", small_config), point(loss, tokens))
    reader = CurveReader(tmp_path)
    reader.read(7.0)
    assert reader.found == [Evaluation(7.0, 2.0), Evaluation(7.0, 1.8)]


def test_a_stock_trial_is_read_alike(tmp_path: Path) -> None:
    (tmp_path / "trials" / "1a2b").mkdir(parents=True)
    metrics = {"step": 4, "tokens_seen": 900, "eval_loss": 1.25, "seconds": 3.0}
    append_json_line(tmp_path / "trials" / "1a2b" / "metrics.jsonl", metrics)
    reader = CurveReader(tmp_path)
    reader.read(2.0)
    assert reader.found == [Evaluation(2.0, 1.25)]


def test_half_a_line_is_read_once_it_is_whole_and_a_broken_one_is_skipped(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    reader = CurveReader(tmp_path)
    file.write_text('{"step": 1, "eval_loss": 2.0}\n{broken\n{"step": 2, "eval')
    reader.read(1.0)
    with file.open("a") as more:
        more.write('_loss": 1.0}\n{"step": 3, "eval_loss": NaN}\n')
    reader.read(2.0)
    assert reader.found == [Evaluation(1.0, 2.0), Evaluation(2.0, 1.0)]


def test_the_best_so_far_only_falls() -> None:
    found = [Evaluation(1, 3.0), Evaluation(4, 1.0), Evaluation(2, 3.5), Evaluation(3, 2.0), Evaluation(5, 1.0)]
    assert best_so_far(found) == [Evaluation(1, 3.0), Evaluation(3, 2.0), Evaluation(4, 1.0)]
    assert best_so_far([]) == []
