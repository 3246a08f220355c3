"""Whole trials in the engine: what they leave behind is what TRL's leave."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from tests.integration.test_resume_search import events
from tests.support.small_splits import first_rows
from tests.support.trained_trials import TRL
from trials.config import TrialConfig
from trials.data.dataset import TrialData
from trials.engine.engine import Engine
from trials.engine.lora.adapter import Adapter
from trials.engine.runtime.adapter_trainer import AdapterTrainer
from trials.errors import ModelError
from trials.evaluation.eval_loss import evaluate_rows
from trials.model.loading import load_base
from trials.records.trial_dir import Ending, Origin, TrialDir, TrialRecord, read_trial
from trials.state import TrialState
from trials.system.torch_setup import use_threads
from trials.training.training_run import Decision, TrainingRun

TRL_S_OWN = {
    *("train/entropy", "train/mean_token_accuracy", "train/num_tokens", "train/total_flos", "train/train_loss"),
    *("train/train_runtime", "train/train_samples_per_second", "train/train_steps_per_second"),
    "train/train_tokens_per_second",
}
"""What it measures beside the loss, and its sums over a whole run."""
NEAR = 1e-5
"""Relative: the order of sums differs."""


@pytest.fixture(scope="module")
def config(small_config: TrialConfig) -> TrialConfig:
    """Seven steps; its answers are scored at the end."""
    evaluation = small_config.evaluation.model_copy(update={"score_rows": 3})
    machine = small_config.machine.model_copy(update={"checkpoint_every_rows": 12})
    return small_config.model_copy(update={"evaluation": evaluation, "machine": machine})


@pytest.fixture(scope="module")
def engine(config: TrialConfig) -> Iterator[Engine]:
    use_threads(config.machine)
    engine = Engine(config.model, config.machine)
    yield engine
    engine.close()


@dataclass(frozen=True)
class Pair:
    trl: TrialRecord
    ours: TrialRecord


@pytest.fixture(scope="module")
def trained(
    engine: Engine,
    config: TrialConfig,
    small_data: TrialData,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path_factory: pytest.TempPathFactory,
) -> Pair:
    path = tmp_path_factory.mktemp("engine")
    records = []
    for name, by in (("trl", TRL), ("ours", engine)):
        folder = begin(path / name, config, small_data)
        by.run(TrainingRun(config, small_data, tokenizer, folder, lambda _: Decision.CONTINUE))
        records.append(read_trial(folder.path))
    return Pair(*records)


def begin(path: Path, config: TrialConfig, data: TrialData) -> TrialDir:
    folder = TrialDir(path)
    folder.begin(config, Origin.SINGLE, path.name, data.fingerprint)
    return folder


def _files(record: TrialRecord) -> set[str]:
    found = {str(path.relative_to(record.folder)) for path in record.folder.rglob("*") if path.is_file()}
    return {name for name in found if "README.md" not in name and "tensorboard" not in name}


def test_a_trial_leaves_the_files_that_trl_leaves(trained: Pair) -> None:
    # But PEFT's README.md, a template that nobody has filled in.
    assert _files(trained.ours) == _files(trained.trl)
    assert trained.ours.ending == trained.trl.ending
    ours, trls = (
        json.loads((record.adapter / "adapter_config.json").read_text()) for record in (trained.ours, trained.trl)
    )
    assert ours == trls


def test_evaluations_are_those_of_trl(trained: Pair) -> None:
    ours, trls = trained.ours.points, trained.trl.points
    assert [(point.step, point.tokens_seen) for point in ours] == [(point.step, point.tokens_seen) for point in trls]
    for name in ("eval_loss", "best_eval_loss", "train_loss"):
        expected = [getattr(point, name) for point in trls]
        assert [getattr(point, name) for point in ours] == pytest.approx(expected, rel=NEAR), name
    ours_rows, trl_rows = trained.ours.row_losses(), trained.trl.row_losses()
    assert ours_rows is not None
    assert trl_rows is not None
    assert ours_rows.loss_sums == pytest.approx(trl_rows.loss_sums, rel=NEAR)
    assert ours_rows.token_counts == trl_rows.token_counts


def test_answers_are_scored_as_under_trl(trained: Pair) -> None:
    (ours,), (trls,) = trained.ours.scorings, trained.trl.scorings
    assert (ours.step, ours.scores) == (trls.step, trls.scores)
    assert trained.ours.score == trained.trl.score
    assert trained.ours.points[-1].score_seconds is not None


def test_the_best_adapter_gives_the_best_loss_in_peft(trained: Pair, small_data: TrialData) -> None:
    model = PeftModel.from_pretrained(load_base(trained.ours.config.model), str(trained.ours.adapter))
    found = evaluate_rows(model, small_data.eval.rows, batch_rows=4).mean
    assert found == pytest.approx(trained.ours.best_eval_loss, rel=NEAR)


def test_tensorboard_shows_what_trl_s_shows(trained: Pair) -> None:
    def scalars(record: TrialRecord) -> dict[tuple[str, int], float]:
        found = {}
        for file in record.folder.glob("tensorboard/events*"):
            for event in events(file):
                found.update({(value.tag, event.step): value.simple_value for value in event.summary.value})
        return found

    ours, trls = scalars(trained.ours), scalars(trained.trl)
    missing = {tag for tag, _ in trls} - {tag for tag, _ in ours}
    assert {tag for tag in missing if tag not in TRL_S_OWN and "summary" not in tag} == set()
    for key, value in ours.items():
        assert value == pytest.approx(trls[key], rel=1e-4), key


def test_the_base_is_evaluated_as_under_trl(
    engine: Engine, config: TrialConfig, small_data: TrialData, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    records = []
    for name, by in (("trl", TRL), ("ours", engine)):
        folder = begin(tmp_path / name, config, small_data)
        heard = []
        run = TrainingRun(config, small_data, tokenizer, folder, lambda point, to=heard: to.append(point))
        ending = by.evaluate_base(run)
        records.append(read_trial(folder.path))
        assert (records[-1].ending, list(records[-1].points)) == (ending, heard)
    trl, ours = records
    assert _files(ours) == _files(trl)
    assert ours.ending == trl.ending
    assert ours.points[0].eval_loss == pytest.approx(trl.points[0].eval_loss, rel=NEAR)
    assert [scoring.scores for scoring in ours.scorings] == [scoring.scores for scoring in trl.scorings]


@pytest.mark.parametrize(
    ("finishes", "ending"),
    [
        (False, Ending(TrialState.OUT_OF_TIME, "the time for training was over")),
        (True, Ending(TrialState.FINISHED, "trained until the time was over")),
    ],
)
def test_a_trial_ends_when_time_is_over(
    engine: Engine,
    config: TrialConfig,
    small_data: TrialData,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    finishes: bool,
    ending: Ending,
) -> None:
    records = []
    for name, by in (("trl", TRL), ("ours", engine)):
        folder = begin(tmp_path / name, config, small_data)
        over = {"stop_at": time.time(), "finishes_at_stop": finishes}
        by.run(TrainingRun(config, small_data, tokenizer, folder, lambda _: Decision.CONTINUE, **over))
        records.append(read_trial(folder.path))
    trl, ours = records
    assert ours.ending == trl.ending == ending
    assert [point.step for point in ours.points] == [point.step for point in trl.points] == [1]


def test_an_unknown_target_module_is_refused_before_anything_is_trained(
    engine: Engine, config: TrialConfig, small_data: TrialData, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    hp = config.hyperparameters.model_copy(update={"target_modules": ("q_proj", "query")})
    config = config.model_copy(update={"hyperparameters": hp})
    folder = begin(tmp_path / "trial", config, small_data)
    with pytest.raises(ModelError, match=r"target_modules query not in the base model.*Allowed: down_proj, "):
        engine.run(TrainingRun(config, small_data, tokenizer, folder, lambda _: Decision.CONTINUE))
    record = read_trial(folder.path)
    assert record.ending is not None
    assert record.ending.kind is TrialState.FAILED
    assert not record.points


def _adapters() -> list[Adapter | AdapterTrainer]:
    gc.collect()
    return [each for each in gc.get_objects() if isinstance(each, (Adapter, AdapterTrainer))]


def test_nothing_is_left_behind_by_many_trials(
    config: TrialConfig, small_data: TrialData, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    others = {id(each) for each in _adapters()}  # which tests before this one hold
    engine = Engine(config.model, config.machine)
    hp = config.hyperparameters.model_copy(update={"train_tokens": 200, "effective_batch": 1})
    evaluation = config.evaluation.model_copy(update={"evaluations": 1, "score_rows": None})
    data = replace(small_data, train=first_rows(small_data.train, 4))
    for number in range(20):
        # Some finish, some are stopped, and some diverge.
        alpha = 1e30 if number % 5 == 4 else 16.0
        changed = hp.model_copy(update={"lora_alpha": alpha, "lora_rank": 1 + number})
        trial = config.model_copy(
            update={"hyperparameters": changed, "evaluation": evaluation, "base_eval_loss": 3.0, "seed": number}
        )
        folder = begin(tmp_path / str(number), trial, data)
        word = Decision.STOP if number % 3 == 0 else Decision.CONTINUE
        engine.run(TrainingRun(trial, data, tokenizer, folder, lambda _, word=word: word))
    assert [each for each in _adapters() if id(each) not in others] == []
    assert engine._loop._manager._footprints == {}
    engine.close()
