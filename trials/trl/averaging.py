"""Average of the adapter's weights under TRL: updated after every step, and kept in checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trials.records.checkpoints import AVERAGE, average_in
from trials.training.weight_average import WeightAverage


class AverageCallback(TrainerCallback):  # type: ignore[misc]
    """Callback that adds the weights after every optimizer step to their average."""

    def __init__(self, average: WeightAverage) -> None:
        self._average = average

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Update the average; the trainer calls this after every optimizer step, before it evaluates or saves."""
        self._average.update(state.global_step)


def save_average(average: WeightAverage, model: PeftModel, folder: Path) -> None:
    """Write the average into a checkpoint's folder, with the names of an adapter's file."""
    with average.in_place():
        weights = get_peft_model_state_dict(model, save_embedding_layers=False)
        weights = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
        save_file(weights, str(folder / AVERAGE), metadata={"format": "pt"})


def load_average(average: WeightAverage, model: PeftModel, folder: Path) -> None:
    """Load the average from a checkpoint's folder. Raises `RunFolderError` if it isn't there."""
    weights = load_file(str(average_in(folder)))
    with average.in_place():
        set_peft_model_state_dict(model, weights)
