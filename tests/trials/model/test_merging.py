from pathlib import Path

import pytest
import torch

from trials.config import ModelSettings, TrialConfig
from trials.data.dataset import TrialData
from trials.evaluation.eval_loss import evaluate_rows
from trials.model.loading import attach_adapter, load_base, load_tokenizer
from trials.model.merging import merge


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_merged_weights_are_the_model_that_was_measured(
    tmp_path: Path, small_config: TrialConfig, small_data: TrialData, quantization: str
) -> None:
    settings = small_config.model.model_copy(update={"quantization": quantization})
    model = attach_adapter(load_base(settings), small_config.hyperparameters)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    adapter = tmp_path / "adapter"
    model.save_pretrained(str(adapter))
    load_tokenizer(settings).save_pretrained(str(adapter))
    measured = evaluate_rows(model, small_data.eval.rows, 4).mean
    with model.disable_adapter():
        untouched = evaluate_rows(model, small_data.eval.rows, 4).mean

    merge(adapter, settings, tmp_path / "merged")

    whole = load_base(ModelSettings(name=str(tmp_path / "merged"), quantization="none"))
    assert evaluate_rows(whole, small_data.eval.rows, 4).mean == pytest.approx(measured, abs=1e-4)
    assert abs(untouched - measured) > 0.01
    assert load_tokenizer(ModelSettings(name=str(tmp_path / "merged"))).chat_template
