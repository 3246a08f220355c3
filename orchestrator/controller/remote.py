"""Conducts a search whose run folder is on an object store: takes trials from there before it decides about them.

A trial is on the store before it's handed out; its worker puts every evaluation there before it reports it. What the
controller itself changes in a trial's folder is put there some seconds later: lost, it's decided again.
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
from orchestrator.state.run_dir import RunDir, Search
from orchestrator.storage.mirror import Mirror
from orchestrator.storage.working_copy import RemoteTrial
from trials.records.trial_dir import EvalPoint
from trials.tracking.trial_run import keep_run_id

_BETWEEN_PUSHES_SECONDS = 10.0


def controller_of(
    run: RunDir, search: Search, slots: int, listener: Callable[[Event], None], now: Callable[[], datetime]
) -> SearchController:
    """The controller of a run folder, wherever that is."""
    mirror = Mirror.of(run.path)
    if mirror is None:
        return SearchController(run, search, slots, listener, now)
    return RemoteSearchController(mirror, run, search, slots, listener, now)


class RemoteSearchController(SearchController):
    """A controller in a working copy. The store decides what trials have done when it begins."""

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
        """Trials that run, with the owner that each was given to."""
        self._next_push = time.monotonic()

    def suggest(self) -> TrialRequest | Wait | Over:
        """As a controller does; the trial is on the store then, and how long trials are."""
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
        """As a controller does."""
        self._mirror.pull(self._granted[trial_id][0].folder)
        return super().on_result(trial_id, point)

    def on_trial_end(self, trial_id: str, left: TrialExit = QUIETLY) -> None:
        """As a controller does; the trial's worker puts nothing more on the store."""
        granted = self._granted.pop(trial_id, None)
        if granted is not None:
            request, owner = granted
            self._mirror.revoke(request.folder, owner)
        super().on_trial_end(trial_id, left)

    def on_idle(self) -> None:
        """As a controller does; every some seconds, what has changed is put on the store."""
        super().on_idle()
        if time.monotonic() >= self._next_push:
            self.push()
            self._next_push = time.monotonic() + _BETWEEN_PUSHES_SECONDS

    def close(self) -> None:
        """As a controller does; then the store has all of it."""
        super().close()
        self.push()

    def push(self) -> None:
        """Puts what has changed on the store."""
        self._mirror.push_trials(request.folder for request, _ in self._granted.values())
        self._mirror.push_files()
