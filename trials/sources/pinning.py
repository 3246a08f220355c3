"""Pinning of hub names to the commit that they mean now, so that a whole search sees one content."""

from __future__ import annotations

import re
from pathlib import Path

from trials.config import DataSettings, ModelSettings
from trials.sources.source import parse_source

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def pinned_data(settings: DataSettings) -> DataSettings:
    """Return the settings with `@commit` after every data set on the hub. Raises `DataError` if one doesn't exist."""
    named = {"train": settings.train, "eval": settings.eval, "test": settings.test}
    pinned = {split: _pinned_source(text) for split, text in named.items() if text is not None}
    return settings.model_copy(update=pinned)


def pinned_model(settings: ModelSettings) -> ModelSettings:
    """Return the settings with a commit as revision, if the model is on the hub. Raises `ModelError` if not found."""
    from trials.sources.hub import pin_model

    if Path(settings.name).exists() or not _HUB_NAME.fullmatch(settings.name):
        return settings
    return settings.model_copy(update={"revision": pin_model(settings.name, settings.revision) or settings.revision})


def _pinned_source(text: str) -> str:
    from trials.sources.hub import pin_dataset

    source = parse_source(text)
    if source.hub_name is None:
        return text
    commit = pin_dataset(source.hub_name, source.revision)
    return source.at(commit).text if commit else text
