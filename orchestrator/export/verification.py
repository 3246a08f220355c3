"""Verification of an export: loaded again by a fresh process, as its users will, it must give the trial's loss."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search_spaces.schema import Recipe
from trials.errors import ExportNotVerified
from trials.evaluation.verify import VerificationJob

_TOLERANCE = 1e-3
"""Largest difference between the trial's eval loss and the reloaded adapter's, in nats per token."""
_ROUNDING = 5e-3
"""In bfloat16, the largest difference as a share of the loss, if that is more: the engine and PEFT round differently.

On an H200 an adapter of SmolLM2-135M with loss 0.8974, the best of its search, had 0.8986 when it was loaded again.
Less was allowed then, so another one was exported.
"""

MERGED_TOLERANCE = 0.02
"""Largest difference for merged weights, in nats per token.

It is wider, because merging rounds every weight to the compute dtype, bfloat16 on a GPU.
"""


@dataclass(frozen=True)
class VerificationDeadline:
    """Seconds until verification should be done, and what is called if it isn't; verification goes on meanwhile."""

    seconds: float
    otherwise: Callable[[], None]


def verify_export(
    export: Path, recipe: Recipe, trial_loss: float, *, merge: bool, due: VerificationDeadline | None = None
) -> dict[str, Any]:
    """Return what a fresh process measures on the export (see `trials.evaluation.verify.verify_export`).

    Raises `ExportNotVerified` if it fails, or if a loss is further from the trial's than its tolerance.
    """
    job = VerificationJob(
        export=str(export),
        model=recipe.model,
        data=recipe.data,
        machine=recipe.machine,
        batch_rows=recipe.evaluation.batch_rows,
        samples=recipe.search.samples,
        merge=merge,
    )
    found = _run(job, due)
    check_loss("the exported adapter", found["eval_loss"], trial_loss, allowed_difference(trial_loss, found))
    if merge:
        check_loss("the merged model", found["merged"], trial_loss, MERGED_TOLERANCE)
    return found


def allowed_difference(trial_loss: float, found: Mapping[str, Any]) -> float:
    """Return the largest difference in nats per token of an adapter's loss to the trial's.

    `found` is the result of verification.
    """
    return max(_TOLERANCE, _ROUNDING * trial_loss) if found.get("is_rounded") else _TOLERANCE


def check_loss(what: str, loss: float, trial_loss: float, tolerance: float) -> None:
    """Raise `ExportNotVerified` if the loss is further from the trial's than the tolerance (nats per token)."""
    if not abs(loss - trial_loss) <= tolerance:
        raise ExportNotVerified(
            f"{what}, loaded again, has eval loss {loss:.5f}, but the trial measured {trial_loss:.5f} "
            f"(allowed difference: {tolerance:g}). It's not exported. Check the versions in search.json."
        )


def _run(job: VerificationJob, due: VerificationDeadline | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        job_file, result_file = Path(folder) / "job.json", Path(folder) / "result.json"
        job_file.write_text(job.model_dump_json(), encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "orchestrator.export.proof_process",
            str(os.getpid()),
            str(job_file),
            str(result_file),
        ]
        code, said = said_by(command, due)
        if code != 0 or not result_file.exists():
            raise ExportNotVerified(f"the export could not be loaded again (exit code {code}):\n{said.strip()[-2000:]}")
        found: dict[str, Any] = json.loads(result_file.read_text(encoding="utf-8"))
        return found


def said_by(command: list[str], due: VerificationDeadline | None) -> tuple[int, str]:
    """Return a command's exit code and what it wrote to stderr. Ctrl-C in this terminal doesn't reach it."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            _, said = process.communicate(timeout=None if due is None else max(0.0, due.seconds))
        except subprocess.TimeoutExpired:
            assert due is not None  # without it nothing times out
            due.otherwise()
            _, said = process.communicate()
        except BaseException:
            process.kill()
            raise
        return process.returncode, said
