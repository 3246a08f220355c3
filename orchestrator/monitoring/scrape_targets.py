"""Prometheus scrape targets: a copy of Ray's list, which itself lies in a folder that only this user may enter.

<cache>/qlora-orchestrator/prometheus/<run folder's name>-<hash>.json      exists while a session with a dashboard runs
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from orchestrator.storage.mirror import copies

_OF_RAY = "prom_metrics_service_discovery.json"


class ScrapeTargets:
    """Copy of Ray's list for one run folder. I/O errors are ignored, as Prometheus may not be in use at all."""

    def __init__(self, run: Path) -> None:
        self._source = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / _OF_RAY
        digest = hashlib.sha256(str(run.absolute()).encode()).hexdigest()[:8]
        self._name = f"{run.name}-{digest}.json"
        self._known = ""

    def refresh(self) -> None:
        """Copy Ray's list if it has changed."""
        with suppress(OSError, RuntimeError):
            text = self._source.read_text(encoding="utf-8")
            if text != self._known:
                target = folder() / self._name
                target.parent.mkdir(parents=True, exist_ok=True)
                beside = target.with_suffix(".new")
                beside.write_text(text, encoding="utf-8")
                beside.replace(target)
                self._known = text

    def remove(self) -> None:
        """Remove the copy."""
        with suppress(OSError, RuntimeError):
            (folder() / self._name).unlink()


def folder() -> Path:
    """Return the folder with the copies of all searches of this user. Raises `RuntimeError` without a home folder."""
    return copies() / "prometheus"
