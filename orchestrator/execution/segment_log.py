"""The log of one segment of a trial: where it began or went on, every evaluation, how it left. Whoever runs it."""

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
    """Logs what becomes of a trial inside, and whatever else its thread logs, in the folder that it runs in."""
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
    """One evaluation as a line."""
    speed = f", {point.tokens_per_second:,.0f} tokens/s" if point.tokens_per_second else ""
    logger.info(
        "trial %s at step %d, %s tokens: eval loss %.4f%s",
        *(trial_id, point.step, f"{point.tokens_seen:,}", point.eval_loss, speed),
    )
