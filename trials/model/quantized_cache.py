"""Cache of quantised base models, beside the hub's cache; every later engine reads its base from there.

An entry, by default <HF_HOME>/qlora-orchestrator/nf4/<key>/, is whole or absent. Reading it takes half as long as
quantising anew, and a quarter of the bytes. Entries that are no longer needed can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import constants
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM

from trials.config import ModelSettings
from trials.errors import first_line
from trials.model.loading import as_base, compute_dtype, device_map, load_base
from trials.sources.hub import COMMIT
from trials.system.locks import takes_lock
from trials.system.shared_cache import is_folder, is_ours, places, set_aside, touch, write_entry

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEAST_BYTES = 2**30
"""Bytes of the smallest quantised model that is saved; a smaller one is quantised in little time."""

_VERSION = 1
"""Must be raised when the same model is quantised differently than before."""

_log = logging.getLogger(__name__)


def load_quantized_base(
    settings: ModelSettings, root: Path | None = None, least_bytes: int = LEAST_BYTES
) -> PreTrainedModel:
    """Load the base as `trials.model.loading.load_base` does, bit by bit, from the cache if possible.

    `root` is the cache's folder; None: the one in HF_HOME. A model of `least_bytes` or more is saved if the cache lacks
    it. A cache that can't be read or written is no error: the original is loaded.
    """
    key = _key(settings)
    if key is None:
        return load_base(settings)
    wanted = places(root or saved_bases(), key, "nf4")
    for folder in wanted:
        saved = _read(folder, settings)
        if saved is not None:
            return saved
    base = load_base(settings)
    if base.get_memory_footprint() >= least_bytes:
        _save(base, wanted)
    return base


def saved_bases() -> Path:
    """Return the folder of the cache, which HF_HOME moves."""
    return Path(constants.HF_HOME) / "qlora-orchestrator" / "nf4"


def _key(settings: ModelSettings) -> str | None:
    """Return a key that is equal for equal weights.

    None: the model is not to be quantised, or its weights can't be identified.
    """
    try:
        config = AutoConfig.from_pretrained(settings.name, revision=settings.revision, trust_remote_code=False)
        source = _source(settings)
    except (OSError, ValueError):
        return None  # the fault is reported when the model is loaded
    is_quantized = getattr(config, "quantization_config", None) is not None
    if settings.quantization != "nf4" or is_quantized or source is None:
        return None
    device = "cpu" if device_map()[""] == "cpu" else "cuda"
    # Weights that aren't quantised keep the dtype in which they are loaded.
    parts = [_VERSION, source, str(compute_dtype(settings)), device, importlib.metadata.version("bitsandbytes")]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def _source(settings: ModelSettings) -> list[Any] | None:
    """Return the state of a folder's files, or a commit on the hub; None for a branch, which can move.

    Reading 14 GB at every start would take too long, so files are compared by size, times and inode. A file written or
    replaced since has another change time (ctime) or inode. Unlike the modification time, ctime can't be set.
    """
    folder = Path(settings.name)
    if folder.is_dir():
        found = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
        return [[file, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino] for file, stat in found]
    is_pinned = COMMIT.fullmatch(settings.revision or "") is not None
    return [settings.name, settings.revision] if is_pinned else None


def _read(folder: Path, settings: ModelSettings) -> PreTrainedModel | None:
    """Load a model from the cache; None if it is absent or can't be used.

    A damaged entry is moved aside, unless it is another user's.
    """
    if not is_folder(folder):
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
        aside = set_aside(folder)
        what = f"moved to {aside}" if aside else "another's; it's left alone, and not used"
        _log.warning("the saved base model %s is damaged (%s): %s", folder, first_line(error), what)
        return None
    # Adapters and messages name the base so, not by its folder in the cache.
    model.name_or_path = model.config.name_or_path = settings.name
    touch(folder)
    return as_base(model)


def _save(base: PreTrainedModel, wanted: Sequence[Path]) -> None:
    """Save a model in the first place that can be written to; if there is none, only warn."""
    refused: list[str] = []
    for folder in wanted:
        if is_ours(folder):
            return  # another process has saved it meanwhile
        if is_folder(folder):
            continue  # another user's, which can't be read
        try:
            with _only_writer(folder) as is_free:
                if is_free and not is_folder(folder):
                    _write(base, folder)
            return
        except (OSError, ValueError, SafetensorError) as error:
            refused.append(f"{folder}: {first_line(error)}")
    _log.warning("the quantised base model can't be saved (%s)", "; ".join(refused))


def _write(base: PreTrainedModel, folder: Path) -> None:
    for leftover in folder.parent.glob(f"{folder.name}.new-*"):
        if is_ours(leftover):
            shutil.rmtree(leftover)  # its writer was killed
    write_entry(folder, lambda beside: base.save_pretrained(str(beside)), for_all=True)


@contextmanager
def _only_writer(folder: Path) -> Iterator[bool]:
    """Yield whether this process is the only one that writes this model."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w", encoding="utf-8") as lock:
        yield takes_lock(lock)
