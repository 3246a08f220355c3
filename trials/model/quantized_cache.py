"""The base model as it was quantised once: saved beside the hub's cache, and read from there by every later engine.

<HF_HOME>/qlora-orchestrator/nf4/<key>/ is whole or not there. Reading it takes half as long as quantising anew, and a
quarter of the bytes. What nobody needs any more can be deleted at any time.
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
"""Of a quantised model that is worth saving; a smaller one is quantised in no time."""

_VERSION = 1
"""Goes up whenever the same model would be quantised differently than before."""

_log = logging.getLogger(__name__)


def load_quantized_base(
    settings: ModelSettings, root: Path | None = None, least_bytes: int = LEAST_BYTES
) -> PreTrainedModel:
    """As `loading.load_base`, with the same weights to the bit, read from what was saved where that is possible.

    `root` is the folder of all saved models; None: in HF_HOME. A model of `least_bytes` or more is saved if it isn't
    there yet. That it can't be written or read is no error: the original is loaded.
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
    """What a folder's files are, or a commit on the hub; None for a branch, which moves.

    14 GB aren't read at every start to tell whether they are the same: a file that was written to or replaced since
    has another time of change (ctime) or inode, which nobody can set, as one can the time of modification.
    """
    folder = Path(settings.name)
    if folder.is_dir():
        found = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
        return [[file, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino] for file, stat in found]
    is_pinned = COMMIT.fullmatch(settings.revision or "") is not None
    return [settings.name, settings.revision] if is_pinned else None


def _read(folder: Path, settings: ModelSettings) -> PreTrainedModel | None:
    """None if it isn't there, or can't be used; then it's there no more, unless it's another's."""
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
    # By this name adapters and messages call the base.
    model.name_or_path = model.config.name_or_path = settings.name
    touch(folder)
    return as_base(model)


def _save(base: PreTrainedModel, wanted: Sequence[Path]) -> None:
    """Saves it in the first place that can be written to; that there's none is no error."""
    refused: list[str] = []
    for folder in wanted:
        if is_ours(folder):
            return  # saved meanwhile
        if is_folder(folder):
            continue  # another's, that can't be read
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
    """Whether nobody else writes this model."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w", encoding="utf-8") as lock:
        yield takes_lock(lock)
