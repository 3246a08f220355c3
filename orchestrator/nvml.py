"""What NVIDIA's driver says of a machine's GPUs through its management library, without loading torch or CUDA."""

from __future__ import annotations

import importlib.util
import runpy
from dataclasses import dataclass
from pathlib import Path

from orchestrator.run_folder import gpus_here


@dataclass(frozen=True)
class GpuState:
    """One GPU; bytes."""

    index: int
    name: str
    memory_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Driver:
    """The driver of a machine, its GPUs, and what torch there was built for."""

    version: str
    cuda: tuple[int, int]
    """The newest CUDA that it knows."""
    gpus: tuple[GpuState, ...]
    torch_cuda: str | None
    """None: torch was built without CUDA."""


def driver_here() -> Driver | str | None:
    """Of this machine; None if it has no NVIDIA GPU, or in words why the driver can't be asked."""
    if not gpus_here():
        return None
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return str(error)
    try:
        number = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        gpus = tuple(_gpu(index) for index in range(pynvml.nvmlDeviceGetCount()))
        version = str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError as error:
        return str(error)
    finally:
        pynvml.nvmlShutdown()
    return Driver(version, (number // 1000, number % 1000 // 10), gpus, torch_cuda())


def torch_cuda() -> str | None:
    """The CUDA version that the installed torch was built for; None: for none. Reads a file, torch isn't loaded."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return None
    version: str | None = runpy.run_path(str(Path(found.origin).with_name("version.py")))["cuda"]
    return version


def _gpu(index: int) -> GpuState:
    import pynvml

    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return GpuState(index, str(pynvml.nvmlDeviceGetName(handle)), int(memory.total), int(memory.free))
