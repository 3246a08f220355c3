"""Settings of an adapter's base and tokenizer, read from the adapter's folder. Needs no torch.

An exported adapter has its tokenizer beside it, and its trial's configuration in manifest.json. A trial's own
`adapter/` has no tokenizer, but lies in the trial's folder. The trial's configuration there tells how the base was
loaded, with which chat template, and from which rows.
"""

from __future__ import annotations

import json
from pathlib import Path

from trials.config import ModelSettings, TrialConfig
from trials.errors import ModelError, first_line
from trials.records.trial_dir import Origin, read_trial


def is_adapter(path: str) -> bool:
    """Return whether a folder holds a PEFT adapter."""
    return (Path(path) / "adapter_config.json").is_file()


def trial_config(path: str) -> TrialConfig | None:
    """Return the configuration of the trial behind a trial's `adapter/` or an export; None if it is neither.

    Raises `RunFolderError` as `trials.records.trial_dir.read_trial` does.
    """
    exported = _exported_config(Path(path) / "manifest.json")
    if exported is not None:
        return exported
    config = Path(path).resolve().parent / "config.json"
    if not is_adapter(path) or not config.is_file():
        return None
    try:
        is_ours = json.loads(config.read_text(encoding="utf-8"))["origin"] in set(Origin)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return read_trial(config.parent).config if is_ours else None


def _exported_config(manifest: Path) -> TrialConfig | None:
    """Return the configuration in an export's manifest; None if there is none that this version can read.

    The latter includes exports of other versions, whose adapters can be used without it.
    """
    try:
        return TrialConfig.model_validate_json(json.dumps(json.loads(manifest.read_text(encoding="utf-8"))["config"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def base_settings(path: str) -> ModelSettings:
    """Return the base that an adapter names, loaded as its trial did. Raises `ModelError` if it names none."""
    trial = trial_config(path)
    try:
        config = json.loads((Path(path) / "adapter_config.json").read_text(encoding="utf-8"))
        base = ModelSettings(name=config["base_model_name_or_path"], revision=config.get("revision"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise cannot_load(path, error) from error
    return trial.model.model_copy(update={"name": base.name, "revision": base.revision}) if trial else base


def tokenizer_settings(path: str) -> ModelSettings:
    """Return the location of an adapter's or a model's tokenizer, and its chat template. Raises `ModelError`."""
    if is_adapter(path) and not (Path(path) / "tokenizer_config.json").is_file():
        return base_settings(path)
    return ModelSettings(name=path)


def cannot_load(path: str, error: Exception) -> ModelError:
    """Return the error for an adapter that can't be used, with the first line of a library's message."""
    return ModelError(
        f"can't load the adapter {path!r}: {first_line(error)}. "
        "Its adapter_config.json must name a base model that this machine can reach."
    )
