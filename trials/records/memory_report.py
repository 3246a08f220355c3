"""Memory of a trial: predicted, measured, and how its batches were split to fit. Needs no torch.

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
    """Micro-batch that was tried before the trial trained, or for which memory ran out while it did."""

    rows: int
    tokens: int
    """Unpadded tokens of all its rows."""
    recomputation: bool
    """Whether activations of any layer were recomputed."""
    fits: bool


@dataclass(frozen=True)
class MemoryReport:
    """Memory use of a trial. In the engine, bytes are those of the whole process, other trials included."""

    predicted_bytes: int | None
    """Bytes at the peak of a micro-batch; None for a base model of unknown sizes."""
    peak_bytes: int | None
    """Most bytes that were in use; None on a CPU."""
    micro_batch_rows: int
    """Rows of the longest length in one forward and backward pass."""
    recomputation: bool
    """Whether activations of any layer are recomputed."""
    tried: tuple[Attempt, ...] = ()

    def after(self, attempts: Sequence[Attempt]) -> MemoryReport:
        """Return the report with earlier attempts before its own."""
        return replace(self, tried=(*attempts, *self.tried))


_USES = TypeAdapter(MemoryReport)


def write_memory_report(folder: TrialDir, use: MemoryReport) -> None:
    """Write a report into a trial's folder."""
    if folder.is_written:
        write_json(folder.path / MEMORY_FILE, asdict(use))


def read_memory_report(folder: Path) -> MemoryReport | None:
    """Read a trial's report; None if there is none or it can't be read, because nothing depends on it."""
    try:
        return read_as(folder / MEMORY_FILE, _USES)
    except DamagedFile:
        return None
