"""Cost of an evaluation on an object store: seconds and bytes, of a trial with adapters of a given size.

python -m benchmarks.system.object_store s3://BUCKET/PREFIX [--adapter-mib 80] [--evaluations 5]

Every second evaluation is the best so far: then the adapter changes as well as the checkpoint. Measured is the work of
a worker, of the driver, and of a worker that resumes the paused trial; nothing is trained.
"""

from __future__ import annotations

import argparse
import os
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.storage.locations import check_store
from orchestrator.storage.object_store import ObjectStore
from orchestrator.storage.trial_snapshots import TrialSnapshotStore
from trials.cli import run_command, whole_number
from trials.records.adapter_check import POINT_FILE
from trials.records.checkpoints import CheckpointWriter, LogState
from trials.records.trial_dir import EVAL_ROWS_FILE, TrialDir
from trials.system.files import append_json_line, replace_folder, write_json
from trials.system.timer import TrialTimer

_ROWS = 2000
_MIB = 2**20


def evaluate(folder: Path, step: int, adapter_bytes: int, *, is_best: bool) -> None:
    """Write what a trial leaves at an evaluation: a line, its best adapter, a checkpoint.

    The optimizer's state takes half the adapter's bytes, as with moments of 8 bits.
    """
    weights = os.urandom(adapter_bytes)
    if is_best:
        (folder / "adapter.new").mkdir(parents=True)
        (folder / "adapter.new" / "adapter_model.safetensors").write_bytes(weights)
        write_json(folder / "adapter.new" / POINT_FILE, {"step": step})
        replace_folder(folder / "adapter.new", folder / "adapter")
        write_json(folder / EVAL_ROWS_FILE, {"sums": [1.2345678] * _ROWS, "tokens": [100] * _ROWS})
    append_json_line(folder / "metrics.jsonl", {"step": step, "eval_loss": 2.0})
    writer = CheckpointWriter(TrialDir(folder), TrialTimer(), 3.0, keep=1)

    def save() -> None:
        made = writer.unfinished / f"checkpoint-{step}"
        made.mkdir(parents=True)
        (made / "adapter_model.safetensors").write_bytes(weights)
        (made / "optimizer.pt").write_bytes(os.urandom(adapter_bytes // 2))

    writer.write(step, LogState(0, None), save)


def measure(store: ObjectStore, adapter_bytes: int, evaluations: int) -> None:
    """Print the times of worker, driver and resuming worker, a line each."""
    name = f"trials/{secrets.token_hex(4)}"
    worker, driver = TrialSnapshotStore(store, name), TrialSnapshotStore(store, name)
    pushes: list[float] = []
    pulls: list[float] = []
    with tempfile.TemporaryDirectory() as path:
        folder, copy, other = (Path(path) / part for part in ("worker", "driver", "other"))
        folder.mkdir()
        write_json(folder / "config.json", {})
        worker.push(folder, owner=None, becomes="worker")
        for step in range(1, evaluations + 1):
            evaluate(folder, step, adapter_bytes, is_best=step % 2 == 1)
            pushes.append(_seconds(lambda: worker.push(folder, owner="worker", becomes="worker")))
            pulls.append(_seconds(lambda: driver.pull(copy, whole=False)))
        resumed = _seconds(lambda: TrialSnapshotStore(store, name).pull(other, whole=True))
        size = sum(file.stat().st_size for file in {file.stat().st_ino: file for file in _files(other)}.values())
        print(f"worker, an evaluation that is the best: {statistics.median(pushes[::2]):.2f} s")
        if pushes[1::2]:
            print(f"worker, one that isn't: {statistics.median(pushes[1::2]):.2f} s")
        print(f"driver, an evaluation: {statistics.median(pulls):.3f} s")
        print(f"worker, taking up the trial: {resumed:.2f} s for {size / _MIB:.1f} MiB")
    driver.remove()


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]


def _seconds(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    arguments = argparse.ArgumentParser(
        prog="python -m benchmarks.system.object_store", description="Time an object store."
    )
    arguments.add_argument("url", help="s3://BUCKET/PREFIX or gs://BUCKET/PREFIX; what is made there is removed again")
    arguments.add_argument("--adapter-mib", type=float, default=80, help="an adapter's size (default: 80)")
    arguments.add_argument("--evaluations", type=whole_number(1), default=5)
    given = arguments.parse_args(argv)

    def command() -> int:
        store = ObjectStore(given.url)
        check_store(store)
        measure(store, int(given.adapter_mib * _MIB), given.evaluations)
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
