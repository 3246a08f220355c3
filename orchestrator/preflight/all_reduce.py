"""All-reduce test over the GPUs of one machine: whether it works, and its bandwidth. One process per rank.

python -m orchestrator.preflight.all_reduce RANK RANKS FOLDER

NCCL can hang for ever if it misjudges the hardware, so the test runs in processes of its own, which can be killed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

_TIMES = 5
_GPU_NUMBERS, _CPU_NUMBERS = 2**24, 2**18
"""Float32 elements of the tensor: 64 MiB, like the gradients of an adapter, and 1 MiB."""
_SECONDS = 90.0
_LOOK_SECONDS = 0.05
_FOUND = "gb-per-second"


@dataclass(frozen=True)
class AllReduce:
    """Result of an all-reduce test. GB/s are per GPU link (NCCL's bus bandwidth); None if there was a `problem`."""

    ranks: int
    gb_per_second: float | None
    problem: str = ""

    def in_words(self) -> str:
        """Return the bandwidth, or the problem, as part of a sentence."""
        return self.problem if self.gb_per_second is None else f"{self.gb_per_second:.1f} GB/s"


def measure(ranks: int, environ: Mapping[str, str], seconds: float = _SECONDS) -> AllReduce:
    """Run an all-reduce over `ranks` processes, on GPUs if torch finds enough of them, else on the CPU.

    `environ` is added to this process's environment. It takes little longer than `seconds` at most, and leaves no
    process behind.
    """
    with tempfile.TemporaryDirectory() as folder:
        started = [_Rank.started(rank, ranks, Path(folder), environ) for rank in range(ranks)]
        try:
            problem = _problem(started, time.monotonic() + seconds)
            found = None if problem else float((Path(folder) / _FOUND).read_text(encoding="utf-8"))
            return AllReduce(ranks, found, problem)
        finally:
            for rank in started:
                rank.process.kill()
                rank.process.wait()


@dataclass(frozen=True)
class _Rank:
    """Process of one rank, and the file for its stderr. A pipe would fill up after a few lines of NCCL_DEBUG=INFO."""

    process: subprocess.Popen[bytes]
    errors: Path

    @classmethod
    def started(cls, rank: int, ranks: int, folder: Path, environ: Mapping[str, str]) -> _Rank:
        command = [sys.executable, "-m", "orchestrator.preflight.all_reduce", str(rank), str(ranks), str(folder)]
        errors = folder / f"errors-{rank}"
        with errors.open("wb") as file:
            process = subprocess.Popen(command, env={**os.environ, **environ}, stdout=subprocess.DEVNULL, stderr=file)
        return cls(process, errors)


def _problem(started: Sequence[_Rank], ends: float) -> str:
    """Wait until all ranks have exited, one has failed, or the time is over; return the problem, empty if none.

    It returns at the first failure, because the other ranks would wait long for the failed one. `ends` is in seconds of
    `time.monotonic`.
    """
    began = time.monotonic()
    while True:
        codes = [rank.process.poll() for rank in started]
        failed = next((rank for rank, code in zip(started, codes, strict=True) if code), None)
        if failed is not None:
            lines = failed.errors.read_text(errors="replace", encoding="utf-8").strip().splitlines()
            return f"it fails ({lines[-1] if lines else failed.process.returncode})"
        if all(code == 0 for code in codes):
            return ""
        if time.monotonic() > ends:
            return f"it hangs ({ends - began:.0f} s)"
        time.sleep(_LOOK_SECONDS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one rank; a wrong sum raises `ArithmeticError`.

    Rank 0 writes the GB/s to a file in FOLDER, because NCCL itself writes to stdout.
    """
    import torch
    import torch.distributed as dist

    rank, ranks, folder = argv or sys.argv[1:]
    on_gpus = torch.cuda.is_available() and torch.cuda.device_count() >= int(ranks)
    device = torch.device("cuda", int(rank)) if on_gpus else torch.device("cpu")
    if on_gpus:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if on_gpus else "gloo",
        init_method=f"file://{folder}/store",
        rank=int(rank),
        world_size=int(ranks),
        timeout=timedelta(seconds=_SECONDS),
    )
    numbers = _GPU_NUMBERS if on_gpus else _CPU_NUMBERS
    tensor = torch.full((numbers,), float(int(rank) + 1), device=device)
    dist.all_reduce(tensor)
    expected = float(sum(range(1, int(ranks) + 1)))
    if not bool((tensor == expected).all()):
        raise ArithmeticError(f"the sum is {float(tensor[0])}, not {expected}")
    began = time.perf_counter()
    for _ in range(_TIMES):
        dist.all_reduce(tensor.zero_())
    if on_gpus:
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - began) / _TIMES
    if int(rank) == 0:
        bus_bytes = numbers * 4 * 2 * (int(ranks) - 1) / int(ranks)
        (Path(folder) / _FOUND).write_text(repr(bus_bytes / seconds / 1e9), encoding="utf-8")
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
