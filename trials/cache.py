"""Where tokenised rows are kept: beside the other data sets of the `datasets` library, by the hash of their content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trials.config import DataSettings
from trials.errors import DataError
from trials.rows import refuse_absent
from trials.source import Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 2
"""Goes up whenever the same rows would be tokenised differently than before."""


def kept(key: str, make: Callable[[Path], None]) -> Path:
    """The folder that belongs to a key; made if it isn't there yet, whole or not at all, by whoever comes first."""
    folder = cache_folder() / key
    if folder.is_dir():
        os.utime(folder)  # so that what nobody uses can be told by its date
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=folder.parent))
    except OSError as error:
        raise DataError(f"can't write tokenised rows to {folder.parent}: {error.strerror}. Set HF_HOME.") from error
    try:
        make(beside)
        beside.rename(folder)
    except OSError as error:
        if not folder.is_dir():
            raise DataError(f"can't write tokenised rows to {folder}: {error}. Make room, or set HF_HOME.") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def cache_folder() -> Path:
    """`qlora-orchestrator` in the cache of `datasets`, which HF_HOME and HF_DATASETS_CACHE move."""
    # `datasets` says so too, but takes a second to load, and not everybody here needs it.
    from huggingface_hub.constants import HF_HOME

    return Path(os.environ.get("HF_DATASETS_CACHE") or Path(HF_HOME) / "datasets") / "qlora-orchestrator"


def fingerprint(settings: DataSettings, sources: Mapping[str, Source], tokenizer: PreTrainedTokenizerBase) -> str:
    """Equal if, and only if, the same content is tokenised in the same way."""
    choices = settings.model_dump(mode="json", exclude={"train", "eval", "test"})
    content = {name: _content(source) for name, source in sources.items()}
    parts: list[Any] = [VERSION, choices, content, _tokenizer_content(tokenizer)]
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _content(source: Source) -> list[Any]:
    if source.path is None:
        return [source.text]
    refuse_absent(source.path)
    try:
        with source.path.open("rb") as file:
            digest = hashlib.file_digest(file, "blake2b").hexdigest()
    except OSError as error:
        raise DataError(f"can't read {source.path}: {error.strerror}. Check its permissions.") from error
    return [source.path.suffix, digest, source.start, source.stop]


def _tokenizer_content(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    parts = [content, str(tokenizer.chat_template), str(tokenizer.bos_token), str(tokenizer.eos_token)]
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()
