"""Adapter folders in the format of `PeftModel.save_pretrained` (PEFT 0.21), without a PEFT model.

PEFT's README.md is not written, because it is an unfilled template.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trials.config import TrialConfig
from trials.model.loading import lora_config

WEIGHTS = "adapter_model.safetensors"


def save_adapter(named_parameters: Sequence[tuple[str, nn.Parameter]], config: TrialConfig, path: Path) -> None:
    """Write adapter_config.json and the weights into a folder, which is made if it does not exist.

    The parameters carry PEFT's full names; the files leave out the adapter's own name, "default".
    """
    path.mkdir(parents=True, exist_ok=True)
    settings = lora_config(config.hyperparameters)
    settings.base_model_name_or_path = config.model.name
    settings.revision = config.model.revision
    settings.inference_mode = True
    settings.save_pretrained(str(path))
    save_weights(named_parameters, path / WEIGHTS)


def save_weights(named_parameters: Sequence[tuple[str, nn.Parameter]], file: Path) -> None:
    """Write the weights alone; names as in `save_adapter`."""
    weights = {name.replace(".default.", "."): _for_disk(parameter) for name, parameter in named_parameters}
    save_file(weights, str(file), metadata={"format": "pt"})


def read_weights(file: Path) -> dict[str, Tensor]:
    """Return the weights in an adapter's file, on the CPU, by their full parameter names."""
    weights = load_file(str(file))
    return {f"{name.removesuffix('.weight')}.default.weight": value for name, value in weights.items()}


def _for_disk(parameter: nn.Parameter) -> Tensor:
    """Return a parameter's value on the CPU, in a storage that holds nothing else.

    safetensors refuses tensors that share a storage, as slices of one buffer do.
    """
    value = parameter.detach().cpu().contiguous()
    shares = value.untyped_storage().nbytes() > value.nbytes
    return value.clone() if shares else value
