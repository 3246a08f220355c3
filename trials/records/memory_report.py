"""What is known of a trial's memory: predicted, measured, and how its batches were split to fit. Needs no torch.

trials/<id>/memory.json  one `MemoryReport`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter

from trials.records.trial_dir import TrialDir
from trials.system.damage import DamagedFile, read_as
from trials.system.files import write_json

MEMORY_FILE = "memory.json"


@dataclass(frozen=True)
class Attempt:
    """A micro-step that was tried before the trial trained, or for which memory ran out while it did."""

    rows: int
    tokens: int
    """Unpadded, of all its rows."""
    recomputation: bool
    """Whether activations of any layer were computed again."""
    fits: bool


@dataclass(frozen=True)
class MemoryReport:
    """How a trial fits into memory. In the engine, bytes are those of everything in the process, others included."""

    predicted_bytes: int | None
    """At the worst moment of a micro-step; None for a base model that nobody knows the sizes of."""
    peak_bytes: int | None
    """The most that was in use; None on a CPU."""
    micro_batch_rows: int
    """Rows of the longest kind in one forward and backward pass."""
    recomputation: bool
    """Whether activations of any layer are computed again."""
    tried: tuple[Attempt, ...] = ()

    def after(self, attempts: Sequence[Attempt]) -> MemoryReport:
        """With what was tried before it."""
        return replace(self, tried=(*attempts, *self.tried))


_USES = TypeAdapter(MemoryReport)


def write_memory_report(folder: TrialDir, use: MemoryReport) -> None:
    """Puts it into a trial's folder."""
    if folder.is_written:
        write_json(folder.path / MEMORY_FILE, asdict(use))


def read_memory_report(folder: Path) -> MemoryReport | None:
    """Of a trial; None where nothing is known, or it can't be read: nothing depends on it."""
    try:
        return read_as(folder / MEMORY_FILE, _USES)
    except DamagedFile:
        return None
