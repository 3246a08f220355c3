"""Processes of `benchmarks.engine.throughput`, each for one job: `python -m benchmarks.engine.processes JOB RESULT`.

Libraries patch classes globally, and memory that one entry leaves mustn't burden the next. A process imports its
libraries as soon as it's started, and waits with everything else until it's told to begin.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from benchmarks import ROOT
from benchmarks.engine.entries import run_job
from benchmarks.engine.jobs import Job

_LIBRARIES = {
    "unsloth": ("unsloth",),  # before torch and transformers, which it patches
    "trl": ("torch", "datasets", "peft", "bitsandbytes", "transformers", "trl"),
    "engine": ("torch", "datasets", "peft", "bitsandbytes", "transformers"),
}
_JOB = TypeAdapter(Job)
_BEGIN = b"begin\n"


class Children:
    """All processes of one job; they import their libraries from the start."""

    def __init__(self, job: Job, unsloth: Path | None = None) -> None:
        """Start the processes. `unsloth` is a folder of Python packages that only Unsloth's processes see."""
        self.job = job
        logs = job.folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(job.gate, ignore_errors=True)  # left by an earlier run
        names = [f"{job.name}-{job.micro_rows}x{job.accumulation}-{member}" for member in range(job.members)]
        self._results = [logs / f"{name}.json" for name in names]
        self._logs = [logs / f"{name}.log" for name in names]
        self._processes = []
        for result, log in zip(self._results, self._logs, strict=True):
            result.unlink(missing_ok=True)
            command = [sys.executable, "-m", "benchmarks.engine.processes", _JOB.dump_json(job).decode(), str(result)]
            with log.open("w", encoding="utf-8") as output:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    env=_environment(job, unsloth),
                    cwd=ROOT,
                )
            self._processes.append(process)

    def run(self, seconds: float) -> dict[str, Any]:
        """Let the processes begin; return the job's result, or {"error": ...}. They are ended after `seconds`."""
        ends = time.monotonic() + seconds
        for process in self._processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it died while importing, and its log says why
                process.stdin.write(_BEGIN)
                process.stdin.close()
        try:
            for process in self._processes:
                process.wait(max(0.0, ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            return {"error": f"ended after {seconds:.0f} s"}
        finally:
            self.close()
        return together([self._found(member) for member in range(self.job.members)])

    def close(self) -> None:
        """End the processes that still run."""
        for process in self._processes:
            process.kill()
            process.wait()

    def _found(self, member: int) -> dict[str, Any]:
        if self._results[member].exists():
            found: dict[str, Any] = json.loads(self._results[member].read_text(encoding="utf-8"))
            return found
        lines = [
            line
            for line in self._logs[member].read_text(errors="replace", encoding="utf-8").splitlines()
            if line.strip()
        ]
        return {"error": f"exit code {self._processes[member].returncode}: {lines[-1] if lines else 'no output'}"}


def together(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return one result for all members: their speeds and memory added up, or the first error."""
    failed = next((one for one in found if "error" in one), None)
    if failed is not None or len(found) == 1:
        return failed or found[0]
    added = ("tokens_per_second", "tokens", "steps", "peak_allocated_gib", "peak_reserved_gib")
    return {**found[0], **{key: sum(one[key] for one in found) for key in added}}


def _environment(job: Job, unsloth: Path | None) -> dict[str, str]:
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "disabled"}
    own = {}
    if job.kind == "unsloth":
        own = {"UNSLOTH_DISABLE_STATISTICS": "1"}
        if unsloth is not None:
            own["PYTHONPATH"] = str(unsloth.resolve())  # alone: it pins older libraries than ours
    return {**os.environ, "PYTHONUNBUFFERED": "1", **quiet, **own}


def main(argv: Sequence[str]) -> None:
    """Run one process: import, wait for the line on its input, and write the job's result or its error."""
    job, result = _JOB.validate_json(argv[0]), Path(argv[1])
    found: dict[str, Any]
    try:
        for library in _LIBRARIES.get(job.kind, ("torch",)):
            importlib.import_module(library)
        if sys.stdin.buffer.readline() != _BEGIN:
            return  # the parent process is gone
        found = run_job(job)
    except Exception as error:
        import traceback

        traceback.print_exc()
        found = {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
        found["out_of_memory"] = type(error).__name__ == "OutOfMemoryError"
    result.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
