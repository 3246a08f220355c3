"""Checks of a machine's NVIDIA driver and GPUs before a search. Pure: readings in, check results out."""

from __future__ import annotations

import os
from collections.abc import Mapping

from orchestrator.preflight.all_reduce import AllReduce
from orchestrator.state.check_result import CheckResult, Severity
from trials.system.gpus import VISIBLE, Driver, GpuState, visible

_GIB = 2**30
_IDLE_BYTES = _GIB
"""Memory that driver and desktop may use on an otherwise idle GPU."""
_P2P_DRIVER = (550, 40, 7)
"""First driver that reports that the RTX 4000 series has no P2P; accelerate refuses older ones."""
_NO_P2P = "RTX 40"
WITHOUT_P2P = ("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE")
"""Environment variables that must be 1 to keep NCCL from using P2P and InfiniBand."""
_SLOWER = 0.8


def driver_checks(
    driver: Driver | str | None, gpus_per_trial: int, least_gib: float | None, environ: Mapping[str, str] = os.environ
) -> list[CheckResult]:
    """Check driver, CUDA and GPU memory of one machine.

    `driver` is what `trials.system.gpus.driver_here` returned there, and `environ` that machine's variables.
    `least_gib` is the minimum memory of the smallest trial; None: not known.
    """
    bad = Severity.IMPOSSIBLE if gpus_per_trial else Severity.WARNING
    if driver is None:
        return [CheckResult("GPUs", Severity.OK, "no NVIDIA driver here; trials would run on the CPU")]
    if isinstance(driver, str):
        remedy = "After an update of the driver restart the machine; in a container pass the GPUs in (--gpus all)"
        return [CheckResult("driver", bad, f"it can't be asked about its GPUs ({driver})", remedy)]
    gpus = visible(driver.gpus, environ.get(VISIBLE))
    if not gpus:
        text = f"{VISIBLE}={environ.get(VISIBLE)} leaves none of {len(driver.gpus)}; trials would run on the CPU"
        return [CheckResult("GPUs", Severity.OK, text)]
    found = [_cuda(driver, bad), *(_memory(gpu, least_gib) for gpu in gpus)]
    return found + _old_driver(driver, gpus_per_trial, environ)


def all_reduce_checks(with_p2p: AllReduce, without_p2p: AllReduce, gpus_per_trial: int) -> list[CheckResult]:
    """Check whether all-reduce works over the GPUs of one machine, and whether it is faster with P2P or without."""
    bad = Severity.IMPOSSIBLE if gpus_per_trial > 1 else Severity.WARNING
    name, both = "NCCL", f"with P2P {with_p2p.in_words()}, without {without_p2p.in_words()}"
    text = f"all-reduce over {with_p2p.ranks} GPUs: {both}"
    if with_p2p.gb_per_second is None and without_p2p.gb_per_second is None:
        return [
            CheckResult(
                name,
                bad,
                text,
                "export NCCL_DEBUG=INFO NCCL_DEBUG_FILE=nccl.%p to find why in those files, or give --gpus-per-trial 1",
            )
        ]
    if with_p2p.gb_per_second is None:
        return [CheckResult(name, Severity.WARNING, text, f"export {'=1 '.join(WITHOUT_P2P)}=1 before the search")]
    if without_p2p.gb_per_second is not None and with_p2p.gb_per_second < _SLOWER * without_p2p.gb_per_second:
        return [CheckResult(name, Severity.WARNING, text, "export NCCL_P2P_DISABLE=1: it's faster without")]
    return [CheckResult(name, Severity.OK, text)]


def _cuda(driver: Driver, bad: Severity) -> CheckResult:
    knows = "" if driver.cuda is None else f", for CUDA {driver.cuda[0]}.{driver.cuda[1]}"
    text = f"{driver.version}{knows}; torch is built for "
    if driver.torch_cuda is None:
        remedy = "Install a build of torch with CUDA: TORCH=cuda scripts/setup"
        return CheckResult("driver", bad, text + "none", remedy)
    # A driver runs code that was built for any CUDA release of its own major version, or of an older one.
    if driver.cuda is not None and int(driver.torch_cuda.split(".")[0]) > driver.cuda[0]:
        remedy = f"Install a newer driver, or a torch that is built for CUDA {driver.cuda[0]}"
        return CheckResult("driver", bad, f"{text}CUDA {driver.torch_cuda}", remedy)
    return CheckResult("driver", Severity.OK, f"{text}CUDA {driver.torch_cuda}")


def _memory(gpu: GpuState, least_gib: float | None) -> CheckResult:
    name = f"GPU {gpu.index}"
    if gpu.memory_bytes is None or gpu.free_bytes is None:
        remedy = "In a container start it with NVIDIA_DRIVER_CAPABILITIES=compute,utility"
        return CheckResult(name, Severity.WARNING, f"{gpu.name}; the driver doesn't tell its memory", remedy)
    free = gpu.free_bytes / _GIB
    text = f"{gpu.name}, {free:.1f} of {gpu.memory_bytes / _GIB:.1f} GiB free"
    if least_gib is not None and free < least_gib:
        remedy = f"The smallest trial takes {least_gib:.1f} GiB. End what nvidia-smi lists"
        return CheckResult(name, Severity.WARNING, text, remedy)
    if gpu.memory_bytes - gpu.free_bytes > _IDLE_BYTES:
        return CheckResult(
            name, Severity.WARNING, text, "Others use it: trials take what is left. nvidia-smi lists them"
        )
    return CheckResult(name, Severity.OK, text)


def _old_driver(driver: Driver, gpus_per_trial: int, environ: Mapping[str, str]) -> list[CheckResult]:
    has_no_p2p = len(driver.gpus) > 1 and any(_NO_P2P in gpu.name for gpu in driver.gpus)
    if not has_no_p2p or _numbers(driver.version) >= _P2P_DRIVER:
        return []
    text = f"{driver.version} doesn't know that the RTX 4000 series has no P2P"
    if all(environ.get(name) == "1" for name in WITHOUT_P2P):
        return [CheckResult("P2P", Severity.OK, f"{text}; {' and '.join(WITHOUT_P2P)} say so")]
    remedy = f"Install driver 550.40.07 or newer, or export {'=1 '.join(WITHOUT_P2P)}=1"
    return [CheckResult("P2P", Severity.IMPOSSIBLE if gpus_per_trial > 1 else Severity.WARNING, text, remedy)]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())
