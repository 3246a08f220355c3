"""Schema of search.json: required and optional keys, validated once when the file is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    AwareDatetime,
    FiniteFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)

from orchestrator.state.regrouped import Consolidation
from search_spaces.schema import Recipe
from trials.errors import RunFolderError
from trials.model.architecture import ModelShape
from trials.system.damage import DamagedFile, in_words, read_value

FORMAT = 1
"""Format number of run folders that this version writes to search.json; folders without a number have format 0."""


def _with_counted_rows(data: Mapping[str, Any]) -> Mapping[str, Any]:
    train = data.get("train", {"rows": 1, "tokens": 1})
    counts = [train.get(name) if isinstance(train, dict) else None for name in ("rows", "tokens")]
    if not all(isinstance(count, int) and count > 0 for count in counts):
        raise ValueError("train must have positive numbers of rows and tokens")
    return data


@dataclass(frozen=True)
class SearchFile:
    """The content of search.json. Units and meanings are those of `orchestrator.state.run_dir.Search`."""

    recipe: Recipe
    sources: Mapping[str, str]
    started: AwareDatetime
    deadline: AwareDatetime
    reserve_seconds: FiniteFloat
    gpus_per_trial: NonNegativeInt
    full_tokens: PositiveInt
    is_time_of_day: bool = False
    data: Annotated[Mapping[str, Any], AfterValidator(_with_counted_rows)] = field(default_factory=dict)
    shortened: PositiveFloat | None = None
    prediction: Mapping[str, Any] | None = None
    engines: NonNegativeInt | None = None
    """None: the search has no placement yet."""
    slots: NonNegativeInt = 0
    most_ranks: PositiveInt = 1
    ranks: PositiveInt = 1
    regrouped: Consolidation | None = None
    opening_seconds: FiniteFloat | None = None
    base: ModelShape | None = None


_FILES = TypeAdapter(SearchFile)


def read_search_file(path: Path) -> SearchFile:
    """Read search.json. Raises `RunFolderError` if it is absent, unreadable, or made by a newer version."""
    try:
        content = read_value(path)
    except DamagedFile as error:
        raise RunFolderError(f"{path} can't be read: {error.reason}. Restore it.") from error
    if content is None:
        raise RunFolderError(f"{path.parent} holds no search: there is no search.json in it. Give a run folder.")
    number = content.get("format", 0) if isinstance(content, dict) else 0
    if isinstance(number, int) and number > FORMAT:
        raise RunFolderError(
            f"{path.parent} was made by a newer version: its format is {number}, and this version reads up to "
            f"{FORMAT}. Use the version that made it, or a newer one."
        )
    try:
        return _FILES.validate_json(json.dumps(content))
    except ValidationError as error:
        raise RunFolderError(f"{path} can't be read: {in_words(error)}. Restore it.") from error
