"""Check of an adapter's weights against its base model, by names and shapes, before weights are loaded.

PEFT (0.21) only warns about layers for which an adapter has no weights. It ignores weights for which there is no layer.
An adapter of another model, or with other names, would thus give the base model's answers as its own.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trials.config import ModelSettings
from trials.errors import ModelError, first_line
from trials.model.loading import empty_model
from trials.model.model_files import StoredTensor, check_weights, stored_tensors

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_MISMATCH = re.compile(
    r"size mismatch for (?P<name>\S+): .*?torch\.Size\(\[(?P<theirs>[\d, ]*)\]\).*?torch\.Size\(\[(?P<ours>[\d, ]*)\]\)"
)
_NOT_ONE = "not one of its {} weights belongs"
_PREFIX = "base_model.model."


def check_adapter_files(folder: Path) -> Path:
    """Return the file that holds an adapter's weights.

    Raises `ModelError` if there is none, or if its content is not what its name says.
    """
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise ModelError(
            f"the adapter {str(folder)!r} has no weights: there is no {' and no '.join(WEIGHTS)} in it. Give the "
            "folder of a whole adapter."
        )
    check_weights(file)
    return file


def check_fit(folder: Path, base: ModelSettings, tokens: int | None) -> int | None:
    """Raise `ModelError` if the adapter in a folder does not belong to its base model, weight by weight.

    `tokens` is the length of the tokenizer beside the adapter, to which `AutoPeftModel` enlarges the base's embedding.
    None: there is no tokenizer. Returns the number of tokens in the adapter's own embedding. None: it has none, and the
    base's number counts. Adapters other than LoRA, and bases whose weights PEFT renames, are not compared: also None.
    """
    from peft import PeftConfig, PeftType

    file = check_adapter_files(folder)
    stored = _stored(file)
    config = PeftConfig.from_pretrained(str(folder))
    if config.peft_type != PeftType.LORA:
        return None
    model = _empty(base, config, tokens, folder)
    if getattr(model.base_model.model, "_checkpoint_conversion_mapping", None):
        return None  # PEFT renames weights by this mapping as they are loaded
    missing, unexpected = _differences(model, stored, folder, base)
    if missing or unexpected:
        raise _other_names(folder, base, stored, missing, unexpected)
    own: int = model.get_input_embeddings().weight.shape[0]
    return own if any("embed" in name for name in stored) else None


def _stored(file: Path) -> dict[str, StoredTensor]:
    if file.suffix == ".safetensors":
        found = stored_tensors(file)
    else:
        try:
            loaded = torch.load(file, map_location="meta", weights_only=True)
            found = {name: StoredTensor(str(each.dtype), tuple(each.shape)) for name, each in loaded.items()}
        except Exception as error:  # whatever a pickle may raise
            raise ModelError(f"can't read the adapter's weights {file}: {first_line(error)}. Get it again.") from error
    if not found:
        raise ModelError(f"the adapter's weights {file} hold nothing. Get it again from where it comes from.")
    return found


def _empty(base: ModelSettings, config: PeftConfig, tokens: int | None, folder: Path) -> PeftModel:
    """Return the base with an adapter of this configuration, both without weights."""
    from peft import get_peft_model

    model = empty_model(base)
    try:
        with torch.device("meta"):
            if tokens is not None and tokens > model.get_input_embeddings().weight.shape[0]:
                model.resize_token_embeddings(tokens, mean_resizing=False)
            # Initial weights that are computed from the base's can't be made here, and their values aren't used.
            config.init_lora_weights = True
            return get_peft_model(model, config)
    except ValueError as error:
        raise _doesnt_fit(folder, base, first_line(error)) from error


def _differences(
    model: PeftModel, stored: dict[str, StoredTensor], folder: Path, base: ModelSettings
) -> tuple[list[str], list[str]]:
    """Return the weights that the file lacks, and those in it that have no layer, as PEFT would load them."""
    from peft import set_peft_model_state_dict

    weights = {name: torch.empty(each.shape, device="meta") for name, each in stored.items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the warning that copying to "meta" copies nothing
            result = set_peft_model_state_dict(model, weights)
    except KeyError as error:  # raised for a module that is saved whole
        return [str(error.args[0])], []
    except (RuntimeError, ValueError) as error:
        raise _doesnt_fit(folder, base, _mismatch(str(error))) from error
    own = [name for name in result.missing_keys if "lora_" in name]
    return own, list(result.unexpected_keys)


def _mismatch(said: str) -> str:
    """Shorten torch's message about weights of another shape."""
    found = _MISMATCH.search(said)
    if found is None:
        return said.strip().split("\n")[0].rstrip(".")
    name = re.sub(r"\.(original_module|modules_to_save\.\w+)\.", ".", found["name"]).removeprefix(_PREFIX)
    theirs, ours = (tuple(map(int, filter(None, found[side].split(",")))) for side in ("theirs", "ours"))
    if re.search(r"embed|lm_head", name) and len(theirs) == len(ours) == 2 and theirs[0] != ours[0]:
        return f"its {name} is of {theirs[0]:,} tokens, and the base has {ours[0]:,}"
    shapes = [" x ".join(map(str, shape)) for shape in (theirs, ours)]
    return f"its {name} is {shapes[0]}, and on this base it would be {shapes[1]}"


def _doesnt_fit(folder: Path, base: ModelSettings, reason: str) -> ModelError:
    return ModelError(
        f"the adapter {str(folder)!r} doesn't fit the base model {base.name!r} that it names: {reason}. Give its own "
        "base as base_model_name_or_path in adapter_config.json."
    )


def _other_names(
    folder: Path, base: ModelSettings, stored: dict[str, StoredTensor], missing: list[str], unexpected: list[str]
) -> ModelError:
    parts = []
    if unexpected:
        fitting = len(stored) - len(unexpected)
        belong = f"only {fitting} of its {len(stored)} weights belong" if fitting > 0 else _NOT_ONE.format(len(stored))
        parts.append(f"{belong} to a layer of it (no layer for {min(unexpected)})")
    if missing:
        parts.append(f"it lacks {len(missing)} weights, such as {min(missing).replace('.default', '')}")
    return _doesnt_fit(folder, base, "; ".join(parts))


def refuse_missing(said: list[Any], folder: Path, base: ModelSettings) -> None:
    """Raise `ModelError` if PEFT has warned, while it loaded an adapter, of layers without weights.

    `said` are the warnings recorded during loading. `check_fit` can't detect this beforehand.
    """
    for each in said:
        if "missing adapter keys" in str(each.message):
            raise _doesnt_fit(folder, base, first_line(each.message)[:300])
