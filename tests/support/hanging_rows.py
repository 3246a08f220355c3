"""Rows whose reading hangs: as data on a network share does that has gone away."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.execution import trial_runner as runner
from orchestrator.execution.trial_runner import load_rows
from orchestrator.execution.trial_worker import TrialWorker
from trials.data.dataset import TrialData
from trials.data.tokenization import TokenizedRow


class Hangs(Sequence[TokenizedRow]):
    """Training rows whose reading hangs until it's let go."""

    def __init__(self) -> None:
        self.began, self.over = threading.Event(), threading.Event()
        self._rows: Sequence[TokenizedRow] = ()

    def instead_of(self, tokenizer: Any, data: TrialData) -> tuple[Any, TrialData]:
        train = copy.copy(data.train)
        self._rows, train.rows = train.rows, self
        return tokenizer, replace(data, train=train)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        self.began.set()
        self.over.wait()
        return self._rows[index]


class HangsOnce(Hangs):
    """The same for the first process that reads any; a file in HANGS_ONCE_IN tells who that was."""

    def __getitem__(self, index: Any) -> Any:
        hung = Path(os.environ["HANGS_ONCE_IN"]) / "hung"
        if not hung.exists():
            hung.touch()
            self.over.wait()
        return self._rows[index]


class HangingOnce(TrialWorker):
    """A worker whose data hangs for the first one of its kind."""

    def __init__(self, slots: int, cpu_threads: int | None, log: Path | None = None) -> None:
        super().__init__(slots, cpu_threads, log)
        hangs = HangsOnce()
        runner.load_rows = lambda *given: hangs.instead_of(*load_rows(*given))  # type: ignore[assignment]
