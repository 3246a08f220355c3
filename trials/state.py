"""States of a trial, as every part of the project names them."""

from __future__ import annotations

from enum import StrEnum


class TrialState(StrEnum):
    """State of a trial; the values of terminal states are those in ending.json.

                 +-- an evaluation's decision --> PAUSED --+--> PRUNED
                 |                                  |      |
    dispatched --> RUNNING <------- resumed --------+      +--> FAILED  (its folder is damaged)
                 |
                 +--> FINISHED | EARLY_STOPPED                  (complete)
                 +--> DIVERGED | OUT_OF_MEMORY                  (infeasible)
                 +--> PRUNED | OUT_OF_TIME | FAILED

    A trial that has finished, and whose length is raised then, is paused again (`trials.records.extension`).

    A trial that was cut off, because its process died or the search was interrupted, is paused too. On disk, running
    and paused look the same: there is no ending.json.
    """

    RUNNING = "running"
    PAUSED = "paused"
    """It doesn't run, and may be resumed."""
    FINISHED = "finished"
    """It was trained for all its steps, or until the time was over if its schedule has no end."""
    PRUNED = "pruned"
    """The controller ended it, because other trials looked more promising."""
    OUT_OF_TIME = "out_of_time"
    """The time for training was over while it ran; nobody found it worse than others."""
    EARLY_STOPPED = "early_stopped"
    """Its loss had stopped improving."""
    DIVERGED = "diverged"
    """Its loss or gradients became too large, or not a number."""
    OUT_OF_MEMORY = "out_of_memory"
    FAILED = "failed"
    """Its training raised an error, or its process died several times."""

    @property
    def is_terminal(self) -> bool:
        """Whether a trial in this state never runs again, unless it is extended."""
        return self not in (TrialState.RUNNING, TrialState.PAUSED)

    @property
    def is_complete(self) -> bool:
        """Whether the trial has been trained for as long as it should be; its last loss is its final one."""
        return self in (TrialState.FINISHED, TrialState.EARLY_STOPPED)

    @property
    def is_infeasible(self) -> bool:
        """Whether the trial's configuration can't be trained."""
        return self in (TrialState.DIVERGED, TrialState.OUT_OF_MEMORY)
