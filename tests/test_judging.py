"""A trained adapter, loaded as its users load it, and judged beside its base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from trials.data import TrialData
from trials.errors import ModelError
from trials.judging import Judged, against_base, label_counts, load_judged, losses, samples
from trials.losses import RowLosses
from trials.records import TrialRecord


@pytest.fixture(scope="module")
def judged(small_trial: TrialRecord) -> Judged:
    return load_judged(str(small_trial.folder / "adapter"))


def test_a_saved_adapter_gives_the_losses_it_had_in_training(
    judged: Judged, small_trial: TrialRecord, small_data: TrialData
) -> None:
    trained = small_trial.row_losses()
    assert trained is not None
    assert judged.is_adapter
    assert losses(judged, small_data.eval, 5).loss_sums == pytest.approx(trained.loss_sums, rel=1e-5)


def test_the_base_of_an_adapter_is_the_base(judged: Judged, small_trial: TrialRecord, small_data: TrialData) -> None:
    plain = load_judged(small_trial.config.model.name)
    assert not plain.is_adapter
    base = losses(judged, small_data.eval, 5, base=True)
    assert base.loss_sums == pytest.approx(losses(plain, small_data.eval, 5).loss_sums, rel=1e-5)
    assert losses(judged, small_data.eval, 5).mean < base.mean  # the adapter is switched on again


def test_an_adapter_without_a_tokenizer_uses_its_base_models(judged: Judged, small_trial: TrialRecord) -> None:
    assert not (small_trial.folder / "adapter" / "tokenizer_config.json").exists()
    assert judged.tokenizer.name_or_path == small_trial.config.model.name


def test_better_than_the_base_is_a_positive_difference() -> None:
    found = against_base(RowLosses([1.0, 2.0], [2, 2]), RowLosses([3.0, 4.0], [2, 2]))
    assert found == {"base_eval_loss": 1.75, "difference": 1.0, "standard_error": 0.0}


def test_labels_that_cannot_be_read_count_as_wrong(small_data: TrialData) -> None:
    answers = [example.completion for example in small_data.eval.examples]
    assert label_counts(answers, small_data.eval) == {"accuracy": 1.0, "unparsed": 0.0, "rows": 12}
    found = label_counts([*answers[:9], "?", "", "{}"], small_data.eval)
    assert found == {"accuracy": 0.75, "unparsed": 0.25, "rows": 12}


def test_samples_show_base_and_adapter_beside_what_was_expected(judged: Judged, small_data: TrialData) -> None:
    shown = samples(judged, small_data.eval, 2)
    assert [sample["id"] for sample in shown] == [example.id for example in small_data.eval.examples[:2]]
    assert shown[0]["expected"] == small_data.eval.examples[0].completion
    assert any(sample["base"] != sample["winner"] for sample in shown)


def test_an_adapter_that_cannot_be_loaded(small_trial: TrialRecord, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(small_trial.folder / "adapter", adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "gone")
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="gone"):
        load_judged(str(adapter))
    (adapter / "adapter_config.json").write_text("rubbish")
    with pytest.raises(ModelError, match="can't load the adapter"):
        load_judged(str(adapter))
