"""Controller of a search whose run folder is on an object store; the controller works on a local copy.

A trial is on the store before it is dispatched, and its worker uploads every evaluation before reporting it. The
controller downloads a trial before deciding about it. Its own changes to a trial's folder are uploaded some seconds
later: if they are lost, the controller decides again.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from orchestrator.controller.controller import Over, SearchController, Wait
from orchestrator.controller.events import Event
from orchestrator.controller.proxy_errors import QUIETLY, TrialExit
from orchestrator.controller.trial_request import TrialRequest
from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Search
from orchestrator.storage.mirror import Mirror
from orchestrator.storage.working_copy import RemoteTrial
from trials.records.trial_dir import EvalPoint
from trials.tracking.trial_run import keep_run_id

_BETWEEN_PUSHES_SECONDS = 10.0


def controller_of(
    run: RunDir, search: Search, slots: int, listener: Callable[[Event], None], now: Callable[[], datetime]
) -> SearchController:
    """Return the controller for a run folder: a `RemoteSearchController` for a copy of one on an object store."""
    mirror = Mirror.of(run.path)
    if mirror is None:
        return SearchController(run, search, slots, listener, now)
    return RemoteSearchController(mirror, run, search, slots, listener, now)


class RemoteSearchController(SearchController):
    """Controller on a working copy. At the start, trials are read from the store, not from the copy."""

    def __init__(
        self,
        mirror: Mirror,
        run: RunDir,
        search: Search,
        slots: int,
        listener: Callable[[Event], None],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        mirror.pull_trials()
        mirror.reclaim_trials()
        super().__init__(run, search, slots, listener, now)
        self._mirror = mirror
        self._granted: dict[str, tuple[TrialRequest, str]] = {}
        """Requests of running trials, each with the token that lets its worker write to the store."""
        self._next_push = time.monotonic()

    def suggest(self) -> TrialRequest | Wait | Over:
        """Choose the next trial as the base class does, and upload it and search.json before it is dispatched."""
        answer = super().suggest()
        if not isinstance(answer, TrialRequest):
            return answer
        wandb_id = keep_run_id(answer.folder, answer.config.tracking)
        owner = secrets.token_hex(8)
        self._mirror.push_files("search.json")
        self._mirror.grant(answer.folder, owner)
        self._granted[answer.trial_id] = (answer, owner)
        name = answer.folder.relative_to(self._run.path).as_posix()
        return replace(answer, remote=RemoteTrial(self._mirror.store.url, name, owner), wandb_id=wandb_id)

    def on_result(self, trial_id: str, point: EvalPoint) -> bool:
        """Download the trial, then decide as the base class does."""
        self._mirror.pull(self._granted[trial_id][0].folder)
        return super().on_result(trial_id, point)

    def on_trial_end(self, trial_id: str, left: TrialExit = QUIETLY) -> None:
        """Revoke the worker's right to write to the store, then record the end as the base class does."""
        granted = self._granted.pop(trial_id, None)
        if granted is not None:
            request, owner = granted
            self._mirror.revoke(request.folder, owner)
        super().on_trial_end(trial_id, left)

    def on_idle(self) -> None:
        """Do what the base class defers; every `_BETWEEN_PUSHES_SECONDS`, upload what has changed."""
        super().on_idle()
        if time.monotonic() >= self._next_push:
            self.push()
            self._next_push = time.monotonic() + _BETWEEN_PUSHES_SECONDS

    def close(self) -> None:
        """Close the controller as the base class does, then upload what has changed."""
        super().close()
        self.push()

    def push(self) -> None:
        """Upload what has changed, except for the folders of running trials."""
        self._mirror.push_trials(request.folder for request, _ in self._granted.values())
        self._mirror.push_files()
