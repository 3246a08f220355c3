"""Log of one segment of a trial, in any kind of process: its begin, every evaluation, and how it ended."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trials.console.logs import trial_log
from trials.console.troubles import only_reporting
from trials.records.trial_dir import EvalPoint, read_trial

logger = logging.getLogger(__name__)


@contextmanager
def logged_segment(folder: Path, *, resumes: bool) -> Iterator[None]:
    """Log begin and end of a segment, and whatever its thread logs inside, to the log file in `folder`."""
    with trial_log(folder):
        how = "goes on" if resumes else "begins"
        logger.info("trial %s %s in process %d on %s", folder.name, how, os.getpid(), socket.gethostname())
        try:
            yield
        except Exception:
            logger.exception("trial %s: an error ended it here", folder.name)
            raise
        with only_reporting("log"):
            ending = read_trial(folder).ending
            left = "it leaves, as its search says" if ending is None else f"{ending.kind.value}: {ending.reason}"
            logger.info("trial %s: %s", folder.name, left)


def log_evaluation(trial_id: str, point: EvalPoint) -> None:
    """Log one evaluation as a line."""
    speed = f", {point.tokens_per_second:,.0f} tokens/s" if point.tokens_per_second else ""
    logger.info(
        "trial %s at step %d, %s tokens: eval loss %.4f%s",
        *(trial_id, point.step, f"{point.tokens_seen:,}", point.eval_loss, speed),
    )
