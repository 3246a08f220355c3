"""Verification of an export in a process of its own: `python -m trials.evaluation.verify JOB.json RESULT.json`.

The process that trained must not be the one that verifies: here everything is loaded from the exported files.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field

from trials.cli import run_command
from trials.config import DataSettings, Machine, ModelSettings, Settings
from trials.model.merging import merge
from trials.system.files import write_json
from trials.system.torch_setup import use_threads

MERGED = "merged"


class VerificationJob(Settings):
    """Export to verify, and the rows to evaluate it on."""

    export: str = Field(description="folder with adapter and tokenizer")
    model: ModelSettings = Field(description="how the trial loaded its base")
    data: DataSettings
    machine: Machine = Field(description="its `cpu_threads` hold for the verification too")
    batch_rows: int
    samples: int = Field(description="answers of base and adapter to give")
    merge: bool = Field(description="also write merged weights to the export's folder `merged`, and judge those")


def verify_export(job: VerificationJob) -> dict[str, Any]:
    """Return the export's eval loss, its test loss and the base's, a few answers, and the merged weights' eval loss.

    `is_rounded` says whether the model's products are in bfloat16.
    """
    use_threads(job.machine)
    found = _evaluate(job, job.export, job.model.quantization)
    if job.merge:
        target = Path(job.export) / MERGED
        merge(Path(job.export), job.model, target)
        merged = job.model_copy(update={"samples": 0, "data": job.data.model_copy(update={"test": None})})
        found["merged"] = _evaluate(merged, str(target), "none")["eval_loss"]
    return found


def _evaluate(job: VerificationJob, path: str, quantization: str) -> dict[str, Any]:
    import torch

    from trials.data.dataset import load_data
    from trials.evaluation import evaluator

    loaded = evaluator.load_model(path, evaluator.LoadOptions(quantization, job.model.compute_dtype))
    data = load_data(job.data, loaded.tokenizer)
    losses = evaluator.losses(loaded, data.eval, job.batch_rows)
    found: dict[str, Any] = {"eval_loss": losses.mean, "row_losses": asdict(losses)}
    found["is_rounded"] = loaded.model.dtype == torch.bfloat16
    if data.test is not None:
        test = evaluator.losses(loaded, data.test, job.batch_rows)
        base = evaluator.losses(loaded, data.test, job.batch_rows, base=True)
        found["test"] = {"eval_loss": test.mean, "rows": len(data.test.rows), **evaluator.against_base(test, base)}
    if job.samples:
        found["samples"] = evaluator.samples(loaded, data.test or data.eval, job.samples)
    return found


def main() -> int:
    """Run the command line; return the exit code."""
    job_file, result_file = map(Path, sys.argv[1:3])
    job = VerificationJob.model_validate_json(job_file.read_text(encoding="utf-8"))

    def command() -> int:
        write_json(result_file, verify_export(job))
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
