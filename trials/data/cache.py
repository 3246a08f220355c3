"""Cache of tokenised rows: beside the other data sets of the `datasets` library, by the hash of their content."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trials.config import DataSettings
from trials.errors import DataError
from trials.sources.readers import refuse_absent
from trials.sources.source import DataSource
from trials.system.shared_cache import is_folder, places, set_aside, touch, write_entry

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_log = logging.getLogger(__name__)

VERSIONS = {"messages": 2}
"""Version of each format's tokenisation, 1 for those not named; goes up when the same rows are tokenised differently.

It is part of the rows' fingerprint, so a search that was begun with another version can't be resumed.
"""


def cached_dir(key: str, make: Callable[[Path], None], is_whole: Callable[[Path], bool]) -> Path:
    """Return the folder of a key. The first process that needs it makes it, whole or not at all.

    Another user's folder is read, but never set aside if it's damaged: this user's is then made in another place.
    Raises `DataError` if it can be written nowhere.
    """
    wanted = places(cache_folder(), key, "rows")
    for folder in wanted:
        if is_folder(folder) and is_whole(folder):
            touch(folder)
            return folder
        if aside := set_aside(folder):
            _log.warning("the tokenised rows in %s are damaged: moved to %s", folder, aside)
    refused: list[str] = []
    for folder in wanted:
        if os.path.lexists(folder):
            refused.append(f"{folder} is another's, and can't be read")
            continue
        try:
            write_entry(folder, make)
        except OSError as error:
            refused.append(f"{folder.parent}: {error.strerror or error}")
            continue
        return folder
    raise DataError(
        f"can't write tokenised rows ({'; '.join(refused)}). Make room, or set HF_HOME to a folder of yours."
    )


def cache_folder() -> Path:
    """Return `qlora-orchestrator` in the cache of `datasets`, which HF_HOME and HF_DATASETS_CACHE move."""
    # `datasets` has this path too, but takes a second to import, and not every caller needs it.
    from huggingface_hub.constants import HF_HOME

    return Path(os.environ.get("HF_DATASETS_CACHE") or Path(HF_HOME) / "datasets") / "qlora-orchestrator"


def fingerprint(settings: DataSettings, sources: Mapping[str, DataSource], tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash that is equal if, and only if, the same content is tokenised in the same way."""
    choices = settings.model_dump(mode="json", exclude={"train", "eval", "test"})
    content = {name: _content(source) for name, source in sources.items()}
    parts: list[Any] = [VERSIONS.get(settings.format, 1), choices, content, _tokenizer_content(tokenizer)]
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _content(source: DataSource) -> list[Any]:
    if source.path is None:
        return [source.text, _commit(source)]
    refuse_absent(source.path)
    try:
        with source.path.open("rb") as file:
            digest = hashlib.file_digest(file, "blake2b").hexdigest()
    except OSError as error:
        raise DataError(f"can't read {source.path}: {error.strerror}. Check its permissions.") from error
    return [source.path.suffix, digest, source.start, source.stop]


def _commit(source: DataSource) -> str | None:
    """Return the commit of a data set on the hub; a revision that is no commit is looked up, because a branch moves."""
    from trials.sources.hub import COMMIT, pin_dataset

    if COMMIT.fullmatch(source.revision or ""):
        return source.revision
    return pin_dataset(str(source.hub_name), source.revision)


def _tokenizer_content(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    parts = [content, str(tokenizer.chat_template), str(tokenizer.bos_token), str(tokenizer.eos_token)]
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()
