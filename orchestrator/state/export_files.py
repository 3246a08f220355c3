"""Reads an export's manifest and the samples for the report. Imports neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from orchestrator.state.run_dir import RunDir
from trials.system.damage import DamagedFile, read_as, read_value

_MANIFEST, _SAMPLES = "export/manifest.json", "samples.json"


@dataclass(frozen=True)
class _Proof:
    eval_loss: float = 0.0
    difference: float = 0.0
    tolerance: float = 0.0


@dataclass(frozen=True)
class _Test:
    eval_loss: float = 0.0
    base_eval_loss: float = 0.0
    standard_error: float = 0.0
    rows: Annotated[int, Field(ge=2)] = 2


@dataclass(frozen=True)
class _Manifest:
    """Part of manifest.json that the report shows."""

    trial: str | None = None
    verified: _Proof | None = None
    test: _Test | None = None
    exported: str | None = None


_MANIFESTS = TypeAdapter(_Manifest)
_SAMPLE_LISTS = TypeAdapter(list[dict[str, Any]])


def read_description(run: RunDir) -> tuple[Mapping[str, Any] | None, tuple[str, ...]]:
    """Return the content of export/manifest.json, and messages about damage.

    The content is None without an export, or if the file can't be read.
    """
    try:
        read_as(run.path / _MANIFEST, _MANIFESTS)
        return read_value(run.path / _MANIFEST), ()
    except DamagedFile as error:
        return None, (f"{_MANIFEST} can't be read: {error.reason}; the export is not described",)


def read_samples(run: RunDir) -> tuple[tuple[Mapping[str, Any], ...], tuple[str, ...]]:
    """Return the samples of samples.json, and messages about damage; no samples if the file is absent or damaged."""
    try:
        read_as(run.path / _SAMPLES, _SAMPLE_LISTS)
        return tuple(read_value(run.path / _SAMPLES) or ()), ()
    except DamagedFile as error:
        return (), (f"{_SAMPLES} can't be read: {error.reason}; no samples are shown",)
