"""A trained adapter, loaded as its users load it, and judged beside its base."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from trials.data.dataset import TrialData
from trials.errors import ModelError
from trials.evaluation.evaluator import (
    LoadedModel,
    LoadOptions,
    against_base,
    answers,
    evaluate,
    load_model,
    losses,
    samples,
)
from trials.evaluation.result import EvalResult, EvalTask, labels_of
from trials.metrics.row_losses import RowLosses
from trials.model.loading import load_base
from trials.records.adapter_dir import trial_config
from trials.records.trial_dir import TrialRecord

TASK = EvalTask("dev.jsonl", "nli_cot", batch_rows=5, answers=True)


@pytest.fixture(scope="module")
def judged(small_trial: TrialRecord) -> LoadedModel:
    return load_model(str(small_trial.folder / "adapter"))


@pytest.fixture
def copied(small_trial: TrialRecord, tmp_path: Path) -> Path:
    """A trial of one's own, to be changed: its `adapter/`."""
    shutil.copytree(small_trial.folder, tmp_path / "0001")
    return tmp_path / "0001" / "adapter"


def _change_config(adapter: Path, **settings: str) -> None:
    path = adapter.parent / "config.json"
    content = json.loads(path.read_text())
    content["config"]["model"].update(settings)
    path.write_text(json.dumps(content))


def test_a_saved_adapter_gives_the_losses_it_had_in_training(
    judged: LoadedModel, small_trial: TrialRecord, small_data: TrialData
) -> None:
    trained = small_trial.row_losses()
    assert trained is not None
    assert judged.is_adapter
    assert losses(judged, small_data.eval, 5).loss_sums == pytest.approx(trained.loss_sums, rel=1e-5)


def test_the_base_of_an_adapter_is_the_base(
    judged: LoadedModel, small_trial: TrialRecord, small_data: TrialData
) -> None:
    plain = load_model(small_trial.config.model.name)
    assert not plain.is_adapter
    base = losses(judged, small_data.eval, 5, base=True)
    assert base.loss_sums == pytest.approx(losses(plain, small_data.eval, 5).loss_sums, rel=1e-5)
    assert losses(judged, small_data.eval, 5).mean < base.mean  # the adapter is switched on again


def test_a_trials_adapter_has_its_trials_tokenizer_template_and_precision(copied: Path) -> None:
    assert not (copied / "tokenizer_config.json").exists()
    config = trial_config(str(copied))
    assert config is not None
    own = load_model(str(copied))
    assert own.tokenizer.name_or_path == config.model.name
    assert own.model.base_model.model.is_quantized
    _change_config(copied, chat_template="zephyr", quantization="none")
    changed = load_model(str(copied))
    assert changed.tokenizer.chat_template != own.tokenizer.chat_template
    assert "<|assistant|>" in changed.tokenizer.chat_template
    assert not getattr(changed.model.base_model.model, "is_quantized", False)
    asked_for = load_model(str(copied), LoadOptions(quantization="nf4", chat_template="mistral"))
    assert asked_for.model.base_model.model.is_quantized
    assert "[INST]" in asked_for.tokenizer.chat_template


def test_a_base_that_was_saved_in_4_bits_is_loaded_as_it_is(
    copied: Path, small_trial: TrialRecord, small_data: TrialData, judged: LoadedModel, tmp_path: Path
) -> None:
    saved = tmp_path / "base4"
    load_base(small_trial.config.model).save_pretrained(saved)
    judged.tokenizer.save_pretrained(saved)
    adapter = json.loads((copied / "adapter_config.json").read_text())
    (copied / "adapter_config.json").write_text(json.dumps({**adapter, "base_model_name_or_path": str(saved)}))
    on_saved = losses(load_model(str(copied)), small_data.eval, 5)
    assert on_saved.mean == pytest.approx(losses(judged, small_data.eval, 5).mean, abs=2e-3)
    assert load_model(str(saved)).model.is_quantized


def test_better_than_the_base_is_a_positive_difference() -> None:
    found = against_base(RowLosses([1.0, 2.0], [2, 2]), RowLosses([3.0, 4.0], [2, 2]))
    assert found == {"base_eval_loss": 1.75, "difference": 1.0, "standard_error": 0.0}


def test_a_judgement_has_losses_answers_and_what_they_are_worth(
    judged: LoadedModel, small_trial: TrialRecord, small_data: TrialData
) -> None:
    ours = evaluate(judged, "ours", small_data.eval, TASK)
    assert ours.losses == losses(judged, small_data.eval, 5)
    assert ours.answers is not None
    assert ours.answers.texts == tuple(answers(judged, list(small_data.eval.examples), until_object=True))
    report = labels_of(ours.answers)
    assert report is not None
    assert report.rows == len(small_data.eval)
    assert report.accuracy.value == ours.answers.scores.mean
    base = evaluate(judged, "base", small_data.eval, replace(TASK, answers=False), base=True)
    assert base.answers is None
    assert base.rows.hash == ours.rows.hash
    assert base.losses.mean > ours.losses.mean


def test_a_text_task_is_scored_by_rouge(judged: LoadedModel, small_data: TrialData) -> None:
    task = replace(TASK, format="prompt_completion", max_new_tokens=8)
    found: EvalResult = evaluate(judged, "ours", small_data.eval, task)
    assert found.answers is not None
    assert found.answers.labels is None
    assert labels_of(found.answers) is None
    assert max(found.answers.tokens) <= 8 < min(found.answers.reference_tokens)
    assert 0 < found.answers.scores.mean < 1


def test_broken_weights_are_no_judgement(small_trial: TrialRecord, small_data: TrialData) -> None:
    broken = load_model(str(small_trial.folder / "adapter"))
    for name, parameter in broken.model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(float("nan"))
    with pytest.raises(ModelError, match="ours has no finite loss on 12 of 12 rows"):
        evaluate(broken, "ours", small_data.eval, TASK)


def test_samples_show_base_and_adapter_beside_what_was_expected(judged: LoadedModel, small_data: TrialData) -> None:
    shown = samples(judged, small_data.eval, 2)
    assert [sample["id"] for sample in shown] == [example.id for example in small_data.eval.examples[:2]]
    assert shown[0]["prompt"] == small_data.eval.examples[0].prompt_text
    assert shown[0]["expected"] == small_data.eval.examples[0].completion
    assert any(sample["base"] != sample["winner"] for sample in shown)


def test_an_adapter_that_cannot_be_loaded(copied: Path, tmp_path: Path) -> None:
    adapter = copied.rename(tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    for rubbish, said in (
        (json.dumps({**config, "base_model_name_or_path": str(tmp_path / "gone")}), "gone"),
        ("rubbish", r"adapter_config\.json is no JSON file: "),
        ('{"r": 8}', "can't load the adapter"),
    ):
        (adapter / "adapter_config.json").write_text(rubbish)
        with pytest.raises(ModelError, match=said):
            load_model(str(adapter))


def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub() -> None:
    with pytest.raises(ModelError, match=r"no model in runs/x/adapter: there is no tokenizer_config\.json in it"):
        load_model("runs/x/adapter")
