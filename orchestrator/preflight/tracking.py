"""Check that W&B accepts the key that trials would log with. It takes seconds at most and never fails a search."""

from __future__ import annotations

import os
import shlex
import threading
from collections.abc import Callable

from orchestrator.state.check_result import CheckResult, Severity
from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Search
from trials.tracking.tracker import TrackingError, check_key
from trials.tracking.trial_run import wandb_is_wanted

_SECONDS = 10.0
_OFFLINE = "Trials are logged offline in their folders until then, to be uploaded by wandb sync"


def tracking_checks(search: Search) -> list[CheckResult]:
    """Check the W&B key with the server; no result if W&B is not used or is offline."""
    if not wandb_is_wanted(search.recipe.tracking) or os.environ.get("WANDB_MODE") == "offline":
        return []
    try:
        return [CheckResult("W&B", Severity.OK, f"{check_key(_SECONDS)} takes the key in WANDB_API_KEY")]
    except TrackingError as error:
        remedy = "Set WANDB_API_KEY right (and WANDB_BASE_URL of one's own server), or give --set wandb=false"
        return [CheckResult("W&B", Severity.WARNING, str(error), f"{remedy}. {_OFFLINE}")]
    except Exception as error:  # such as no process can be started; a failed check must not end the search
        return [CheckResult("W&B", Severity.WARNING, f"can't be checked: {type(error).__name__}: {error}", _OFFLINE)]


def check_tracking(search: Search, tell: Callable[[CheckResult], None]) -> None:
    """Run `tracking_checks` in a daemon thread, which calls `tell` with every result that isn't OK."""

    def check() -> None:
        for result in tracking_checks(search):
            if result.level is not Severity.OK:
                tell(result)

    threading.Thread(target=check, daemon=True).start()


def runs_on_disk(folder: RunDir) -> str | None:
    """Return the sentence about runs that were logged offline unintentionally; None: there are none."""
    if os.environ.get("WANDB_MODE") == "offline":
        return None
    found = [path for path in folder.path.glob("trials/*/wandb/offline-run-*") if path.is_dir()]
    where = shlex.quote(str(folder.path / "trials"))
    said = f"W&B: {len(found)} run(s) are on disk only. Upload them: wandb sync {where}/*/wandb/offline-run-*"
    return said if found else None
