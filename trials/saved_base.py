"""The base model as it was quantised once: saved beside the hub's cache, and read from there by every later engine.

<HF_HOME>/qlora-orchestrator/nf4/<key>/ is whole or not there. Reading it takes half as long as quantising anew, and a
quarter of the bytes. What nobody needs any more can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import constants
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM

from trials.config import ModelSettings
from trials.errors import first_line
from trials.lock import takes_lock
from trials.model import as_base, compute_dtype, device_map, load_base

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEAST_BYTES = 2**30
"""Of a quantised model that is worth saving; a smaller one is quantised in no time."""

_VERSION = 1
"""Goes up whenever the same model would be quantised differently than before."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_log = logging.getLogger(__name__)


def load_resident_base(
    settings: ModelSettings, root: Path | None = None, least_bytes: int = LEAST_BYTES
) -> PreTrainedModel:
    """As `trials.model.load_base`, with the same weights to the bit, read from what was saved where that is possible.

    `root` is the folder of all saved models; None: in HF_HOME. A model of `least_bytes` or more is saved if it isn't
    there yet. That it can't be written or read is no error: the original is loaded.
    """
    key = _key(settings)
    if key is None:
        return load_base(settings)
    folder = (root or saved_bases()) / key
    saved = _read(folder, settings)
    if saved is not None:
        return saved
    base = load_base(settings)
    if base.get_memory_footprint() >= least_bytes:
        _save(base, folder)
    return base


def saved_bases() -> Path:
    """Where quantised models are kept, which HF_HOME moves."""
    return Path(constants.HF_HOME) / "qlora-orchestrator" / "nf4"


def _key(settings: ModelSettings) -> str | None:
    """Equal for equal weights; None: not to be quantised, or it can't be known which weights they are."""
    try:
        config = AutoConfig.from_pretrained(settings.name, revision=settings.revision, trust_remote_code=False)
        source = _source(settings)
    except (OSError, ValueError):
        return None  # what is wrong with it is said where it's loaded
    is_quantized = getattr(config, "quantization_config", None) is not None
    if settings.quantization != "nf4" or is_quantized or source is None:
        return None
    device = "cpu" if device_map()[""] == "cpu" else "cuda"
    # What isn't quantised is kept in the dtype that it's loaded in.
    parts = [_VERSION, source, str(compute_dtype(settings)), device, importlib.metadata.version("bitsandbytes")]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def _source(settings: ModelSettings) -> list[Any] | None:
    """A folder's files by size and date, or a commit on the hub; None for a branch, which moves."""
    folder = Path(settings.name)
    if folder.is_dir():
        found = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
        return [[file, stat.st_size, stat.st_mtime_ns] for file, stat in found]
    is_pinned = _COMMIT.fullmatch(settings.revision or "") is not None
    return [settings.name, settings.revision] if is_pinned else None


def _read(folder: Path, settings: ModelSettings) -> PreTrainedModel | None:
    """None if it isn't there, or can't be used; then it's there no more."""
    if not folder.is_dir():
        return None
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=compute_dtype(settings),
            device_map=device_map(),
            output_loading_info=True,
            trust_remote_code=False,
        )
        if found["missing_keys"]:
            raise ValueError(f"{min(found['missing_keys'])} is missing")
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        _set_aside(folder, error)
        return None
    # By this name adapters and messages call the base.
    model.name_or_path = model.config.name_or_path = settings.name
    with suppress(OSError):
        os.utime(folder)  # so that what nobody uses can be told by its date
    return as_base(model)


def _set_aside(folder: Path, error: Exception) -> None:
    aside = folder.with_name(f"{folder.name}.damaged")
    _log.warning("the saved base model %s is damaged (%s): moved to %s", folder, first_line(error), aside)
    shutil.rmtree(aside, ignore_errors=True)
    with suppress(OSError):  # another process may have been faster
        folder.rename(aside)


def _save(base: PreTrainedModel, folder: Path) -> None:
    """Writes beside and renames, so that nobody sees half of it."""
    try:
        with _only_writer(folder) as is_free:
            if is_free and not folder.is_dir():
                for leftover in folder.parent.glob(f"{folder.name}.new-*"):
                    shutil.rmtree(leftover)  # its writer was killed
                beside = Path(tempfile.mkdtemp(prefix=f"{folder.name}.new-", dir=folder.parent))
                base.save_pretrained(str(beside))
                beside.rename(folder)
    except (OSError, ValueError, SafetensorError) as error:
        _log.warning("the quantised base model can't be saved to %s: %s", folder, first_line(error))


@contextmanager
def _only_writer(folder: Path) -> Iterator[bool]:
    """Whether nobody else writes this model."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        yield takes_lock(lock)
