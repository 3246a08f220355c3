"""Evaluations of a rival while it runs: read from the metrics.jsonl of its trials as they appear."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_PATTERNS = ("metrics.jsonl", "trials/*/metrics.jsonl")


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a trial: seconds since the start of the rival's command, and the loss on EVAL."""

    seconds: float
    eval_loss: float


@dataclass
class CurveReader:
    """Reader of all evaluations below a run or trial folder, each once, with the time at which it was first seen.

    The time of a trial's own clock doesn't count pauses, nor what came before the trial.
    """

    folder: Path
    found: list[Evaluation] = field(default_factory=list)
    _read: dict[Path, int] = field(default_factory=dict)

    def read(self, seconds: float) -> None:
        """Read what is new; `seconds` is the time since the command started."""
        for pattern in _PATTERNS:
            for file in sorted(self.folder.glob(pattern)):
                self.found += [Evaluation(seconds, loss) for loss in self._new_losses(file)]

    def _new_losses(self, file: Path) -> Iterator[float]:
        begin = self._read.get(file, 0)
        try:
            with file.open("rb") as lines:
                lines.seek(begin)
                content = lines.read()
        except OSError:  # it is being replaced, and is there at the next look
            return
        whole = content[: content.rfind(b"\n") + 1]
        self._read[file] = begin + len(whole)
        for line in whole.splitlines():
            try:
                point = json.loads(line)
                step, loss = int(point["step"]), float(point["eval_loss"])
            except (ValueError, KeyError, TypeError):
                continue
            if step > 0 and math.isfinite(loss):  # step 0 is the base model: no adapter that could be exported
                yield loss


def best_so_far(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Return the evaluations that were lower than all before them, in order of time."""
    best: list[Evaluation] = []
    for evaluation in sorted(evaluations, key=lambda each: each.seconds):
        if not best or evaluation.eval_loss < best[-1].eval_loss:
            best.append(evaluation)
    return best
