"""Which addresses Prometheus is to scrape: a copy of Ray's list, as its own lies where only this user may enter.

<cache>/qlora-orchestrator/prometheus/<run folder's name>-<hash>.json      there while a session with a dashboard runs
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from orchestrator.storage.mirror import copies

_OF_RAY = "prom_metrics_service_discovery.json"


class ScrapeTargets:
    """Keeps the copy for one run folder up to date; errors are ignored, as nobody may scrape."""

    def __init__(self, run: Path) -> None:
        self._source = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / _OF_RAY
        digest = hashlib.sha256(str(run.absolute()).encode()).hexdigest()[:8]
        self._name = f"{run.name}-{digest}.json"
        self._known = ""

    def refresh(self) -> None:
        """Copies Ray's list if it has changed."""
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
        """Takes the copy away."""
        with suppress(OSError, RuntimeError):
            (folder() / self._name).unlink()


def folder() -> Path:
    """Where the copies of all searches of this user are. Raises `RuntimeError` if there's no home."""
    return copies() / "prometheus"
