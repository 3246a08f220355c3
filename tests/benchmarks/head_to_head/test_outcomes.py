"""What rivals leave, read from their real folders."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.head_to_head.curves import Evaluation
from benchmarks.head_to_head.outcomes import Outcome, left_by, read_outcome
from benchmarks.head_to_head.rivals import Rival
from orchestrator.state.run_dir import RunDir
from tests.support.fake_search import point, record, save_adapter
from trials.config import TrialConfig
from trials.errors import DataError
from trials.records.trial_dir import Origin, TrialDir, TrialRecord
from trials.system.files import append_json_line, write_json


def begun(path: Path, config: TrialConfig, origin: Origin) -> TrialDir:
    folder = TrialDir(path)
    folder.begin(config, origin, "demo")
    return folder


def test_a_trained_trial_has_its_best_adapter(small_trial: TrialRecord) -> None:
    left = left_by(Rival.RECIPE, small_trial.folder)
    assert left.adapter == small_trial.adapter
    assert left.ready == (small_trial.adapter / "adapter_model.safetensors").stat().st_mtime
    assert small_trial.best_point is not None
    assert (left.winner_tokens, left.trials) == (small_trial.best_point.tokens_seen, 1)
    assert left.tokens == small_trial.tokens_seen


def test_the_adapter_has_seen_less_than_the_trial_if_it_got_worse(tmp_path: Path, small_config: TrialConfig) -> None:
    trial = begun(tmp_path / "run", small_config, Origin.SINGLE)
    record(trial, point(2.0, 300))
    record(trial, point(2.5, 600, best=2.0))
    left = left_by(Rival.REPEATED, trial.path)
    assert (left.winner_tokens, left.tokens) == (300, 600)


@pytest.mark.parametrize("rival", Rival)
def test_nothing_is_left_by_a_command_that_began_nothing(tmp_path: Path, rival: Rival) -> None:
    left = left_by(rival, tmp_path / "run")
    assert (left.adapter, left.ready, left.winner_tokens, left.trials, left.tokens) == (None, None, None, 0, 0)


def test_a_search_has_its_export_and_counts_what_it_trained(run: RunDir, small_config: TrialConfig) -> None:
    record(begun(run.trial("0000"), small_config, Origin.BASE), point(3.0, 0), base=True)
    for trial_id, tokens in (("0001", 300), ("0002", 900)):
        record(begun(run.trial(trial_id), small_config, Origin.PROPOSED), point(2.0, tokens))
    begun(run.trial("0003"), small_config, Origin.PROPOSED)
    assert left_by(Rival.OURS, run.path).adapter is None
    run.export.mkdir()
    save_adapter(run.export)
    write_json(run.export / "manifest.json", {"trial": "0002"})
    left = left_by(Rival.OURS, run.path)
    assert (left.adapter, left.winner_tokens, left.trials, left.tokens) == (run.export, 900, 2, 1200)


def test_stock_has_the_copy_of_its_best_adapter(tmp_path: Path) -> None:
    for trial, tokens in (("a", (100, 200)), ("b", (100,))):
        (tmp_path / "trials" / trial).mkdir(parents=True)
        for seen in tokens:
            metrics = {"step": seen, "tokens_seen": seen, "eval_loss": 1.0, "seconds": 1.0}
            append_json_line(tmp_path / "trials" / trial / "metrics.jsonl", metrics)
    assert left_by(Rival.STOCK, tmp_path).adapter is None
    (tmp_path / "best").mkdir()
    save_adapter(tmp_path / "best")
    write_json(tmp_path / "best" / "point.json", {"tokens_seen": 200, "step": 200, "eval_loss": 1.0})
    left = left_by(Rival.STOCK, tmp_path)
    assert (left.adapter, left.winner_tokens, left.trials, left.tokens) == (tmp_path / "best", 200, 2, 300)


def outcome(**changes: object) -> Outcome:
    values: dict[str, object] = {
        "rival": Rival.STOCK,
        "budget_seconds": 60.0,
        "seed": 0,
        "command": ("python", "-m", "x"),
        "seconds": 50.0,
        "ready_seconds": 45.0,
        "exit_code": 0,
        "was_cut_off": False,
        "adapter": "run/best",
        "trials": 2,
        "tokens": 300,
        "winner_share": 0.5,
        "evaluations": (Evaluation(3.0, 2.0),),
    }
    return Outcome(**{**values, **changes})  # type: ignore[arg-type]


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = outcome()
    written.write(tmp_path / "result.json")
    assert read_outcome(tmp_path / "result.json") == written
    assert read_outcome(tmp_path / "none.json") is None
    shutil.copy(tmp_path / "result.json", tmp_path / "damaged.json")
    (tmp_path / "damaged.json").write_text("{}")
    with pytest.raises(DataError, match="Remove its folder"):
        read_outcome(tmp_path / "damaged.json")


def test_an_adapter_after_the_deadline_is_late() -> None:
    assert not outcome().is_late
    assert outcome(ready_seconds=61.0).is_late
    assert not outcome(ready_seconds=None, adapter=None).is_late
    assert outcome().tokens_per_second == 6.0
