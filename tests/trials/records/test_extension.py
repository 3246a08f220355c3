"""Extension of a trial's folder: a greater length, no ending, its newest checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.checkpoint_dirs import trained
from trials.config import TrialConfig
from trials.errors import RunFolderError
from trials.records.extension import extend
from trials.records.trial_dir import Ending, Origin, TrialDir, TrialRecord, read_trial
from trials.state import TrialState

FINISHED = Ending(TrialState.FINISHED, "trained for all its 3 steps")


@pytest.fixture
def config(small_config: TrialConfig) -> TrialConfig:
    return of(small_config, scheduler="inverse_sqrt")


def of(config: TrialConfig, **hyperparameters: Any) -> TrialConfig:
    changed = config.hyperparameters.model_copy(update=hyperparameters)
    return config.model_copy(update={"hyperparameters": changed})


def longer(config: TrialConfig) -> TrialConfig:
    return of(config, train_tokens=None, epochs=None, rows_seen=1000)


def finished(path: Path, config: TrialConfig, checkpoints: tuple[int, ...] = (2, 3)) -> TrialRecord:
    return trained(path, config, [3.0, 2.0, 1.0], checkpoints=checkpoints, ending=FINISHED, origin=Origin.PROPOSED)


def test_one_that_has_finished_goes_on_from_its_last_step_and_loses_nothing(
    tmp_path: Path, config: TrialConfig
) -> None:
    before = finished(tmp_path / "trial", config)
    checkpoint = extend(before.folder, longer(config))
    assert checkpoint is not None
    assert checkpoint.step == 3
    record = read_trial(before.folder)
    assert (record.ending, record.config) == (None, longer(config))
    assert (record.points, record.origin, record.name) == (before.points, before.origin, before.name)
    assert record.fingerprint == before.fingerprint
    assert not list(before.folder.glob("before*"))


def test_without_a_checkpoint_of_its_last_step_it_goes_back_to_an_earlier_one(
    tmp_path: Path, config: TrialConfig
) -> None:
    before = finished(tmp_path / "trial", config, checkpoints=(2,))
    checkpoint = extend(before.folder, longer(config))
    assert checkpoint is not None
    assert checkpoint.step == 2
    record = read_trial(before.folder)
    assert record.ending is None
    assert record.points == before.points[:2]
    assert read_trial(before.folder / "before-2").points == before.points


def test_one_that_is_paused_is_as_it_was_but_longer(tmp_path: Path, config: TrialConfig) -> None:
    before = trained(tmp_path / "trial", config, [3.0, 2.0], checkpoints=(2,), origin=Origin.PROPOSED)
    checkpoint = extend(before.folder, longer(config))
    assert checkpoint is not None
    assert checkpoint.step == 2
    record = read_trial(before.folder)
    assert (record.points, record.config) == (before.points, longer(config))


def test_what_was_done_by_half_is_done_by_a_second_call(tmp_path: Path, config: TrialConfig) -> None:
    before = finished(tmp_path / "trial", config)
    TrialDir(before.folder).replace_config(longer(config))
    checkpoint = extend(before.folder, longer(config))
    assert checkpoint is not None
    assert read_trial(before.folder).ending is None


def refused(record: TrialRecord, longer: TrialConfig, match: str) -> None:
    with pytest.raises(RunFolderError, match=match):
        extend(record.folder, longer)
    assert read_trial(record.folder) == record


def test_a_schedule_with_an_end_is_refused(tmp_path: Path, small_config: TrialConfig) -> None:
    record = finished(tmp_path / "trial", of(small_config, scheduler="cosine"))
    refused(record, longer(record.config), "can't be extended: under scheduler cosine")


def test_another_configuration_is_refused(tmp_path: Path, config: TrialConfig) -> None:
    record = finished(tmp_path / "trial", config)
    refused(record, of(longer(config), learning_rate=0.5), "Change nothing but its length")
    refused(record, longer(config).model_copy(update={"seed": 5}), "Change nothing but its length")


def test_a_smaller_length_is_refused(tmp_path: Path, config: TrialConfig) -> None:
    record = finished(tmp_path / "trial", longer(config))
    refused(record, of(record.config, rows_seen=999), "can't be extended to fewer rows_seen: 999")


def test_other_endings_are_refused(tmp_path: Path, config: TrialConfig) -> None:
    diverged = Ending(TrialState.DIVERGED, "the loss is nan")
    record = trained(tmp_path / "trial", config, [3.0], checkpoints=(1,), ending=diverged)
    refused(record, longer(config), r"has ended \(diverged: the loss is nan\)")


def test_a_finished_one_without_a_checkpoint_is_refused(tmp_path: Path, config: TrialConfig) -> None:
    record = trained(tmp_path / "trial", config, [3.0], checkpoints=(1,), ending=FINISHED)
    (record.folder / "checkpoints" / "checkpoint-1" / "checkpoint.json").unlink()
    refused(record, longer(config), "nothing to extend")
