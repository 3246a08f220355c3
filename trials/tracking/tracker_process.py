"""Process that logs a trial's metrics to Weights & Biases.

`trials.tracking.tracker` starts it, and ends it if it hangs. It reads one JSON object per line from stdin, and answers
each by one line on stdout: the result, or `error`. It is run as a file, and imports nothing of this project.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

_LINGER_SECONDS = 20.0
"""Time limit for finishing a run after the trial's process has died."""
_QUERY = json.dumps({"query": "query Viewer { viewer { id } }"}).encode()


def main() -> None:
    """Serve requests until stdin ends or an error occurs."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # stdout is for answers, so what libraries print goes to stderr

    def answer(found: Mapping[str, Any]) -> None:
        answers.write(json.dumps(found) + "\n")
        answers.flush()

    threading.Thread(target=_end_after, args=(os.getppid(),), daemon=True).start()
    code = 0
    try:
        _serve(answer)
    except BaseException as error:
        code = 1
        _tell(answer, error)
    # This skips wandb's exit hooks, which may wait for a network.
    os._exit(code)


def _serve(answer: Callable[[Mapping[str, Any]], None]) -> None:
    import wandb

    answer({})
    run: Any = None
    for line in sys.stdin:
        message = json.loads(line)
        if "check" in message:
            answer({"host": _check(wandb, message["check"])})
        elif "begin" in message:
            run = _begin(wandb, **message["begin"])
            answer({"folder": str(Path(run.dir).parent), "url": run.url})
        elif "log" in message:
            for figures in message["log"]:
                run.log(figures)
            answer({})
        else:
            run.finish()
            run = None
            answer({})
    if run is not None:  # the trial's process has died
        run.finish(exit_code=1)


def _begin(wandb: Any, *, mode: str, seconds: float, parent: int, **settings: Any) -> Any:
    run = wandb.init(
        **settings,
        mode=mode,
        settings=wandb.Settings(
            init_timeout=seconds,
            silent=True,
            console="off",
            x_stats_pid=parent,
            x_transaction_log_flush_interval=1.0,  # what is on disk counts if this process is killed
        ),
    )
    run.define_metric("train/global_step")
    run.define_metric("*", step_metric="train/global_step", step_sync=True)
    return run


def _check(wandb: Any, seconds: float) -> str:
    """Ask the server for the key's owner; return its address. Raises an error with the reason if it fails."""
    wandb.login(verify=False)  # raises if the key hasn't the right format
    host = str(wandb.setup().settings.base_url).rstrip("/")
    secret = base64.b64encode(f"api:{os.environ['WANDB_API_KEY']}".encode()).decode()
    headers = {
        "Authorization": f"Basic {secret}",
        "Content-Type": "application/json",
        "User-Agent": "qlora-orchestrator",
    }
    request = urllib.request.Request(f"{host}/graphql", _QUERY, headers)
    try:
        with urllib.request.urlopen(request, timeout=seconds) as response:
            found = json.load(response)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise RuntimeError(f"{host} doesn't know the key in WANDB_API_KEY (HTTP {error.code})") from None
        raise RuntimeError(f"{host} answers with HTTP {error.code}") from None
    except OSError as error:
        raise RuntimeError(f"{host} can't be reached: {getattr(error, 'reason', error)}") from None
    except ValueError:
        raise RuntimeError(f"{host} doesn't answer as W&B does") from None
    if not isinstance(found, dict) or not (found.get("data") or {}).get("viewer"):
        raise RuntimeError(f"{host} doesn't know the key in WANDB_API_KEY")
    return host


def _tell(answer: Callable[[Mapping[str, Any]], None], error: BaseException) -> None:
    said = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
    with suppress(OSError):  # the parent has ended
        answer({"error": said})


def _end_after(parent: int) -> None:
    """End this process some time after the process that started it."""
    while os.getppid() == parent:
        time.sleep(1.0)
    time.sleep(_LINGER_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main()
