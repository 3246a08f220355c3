"""NVIDIA GPUs of this machine, asked without torch, CUDA or Ray.

The driver's management library (NVML) is asked first, then `nvidia-smi`, then the driver's files. WSL2 and many
containers have no /proc/driver/nvidia. Containers that were given no utilities of the driver have nothing else.
"""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

VISIBLE = "CUDA_VISIBLE_DEVICES"
ORDER = "CUDA_DEVICE_ORDER"
"""Unless it is PCI_BUS_ID, CUDA counts the fastest GPU first, and its numbers are not those of nvidia-smi."""
UNKNOWN = "unknown NVIDIA GPU"
_PROC, _DEVICES = Path("/proc/driver/nvidia"), Path("/dev")
_SMI_PATHS = ("nvidia-smi", "/usr/lib/wsl/lib/nvidia-smi")
_SMI_FIELDS = "index,uuid,name,memory.total,memory.free,driver_version"
_SMI_SECONDS = 30.0
_MIB = 2**20


@dataclass(frozen=True)
class GpuState:
    """One GPU; memory in bytes, None where the driver does not report it."""

    index: int
    name: str
    memory_bytes: int | None
    free_bytes: int | None
    uuid: str = ""


@dataclass(frozen=True)
class Driver:
    """The driver of a machine, all its GPUs, and the CUDA version of the installed torch."""

    version: str
    cuda: tuple[int, int] | None
    """Newest CUDA version that the driver supports; None if it does not say."""
    gpus: tuple[GpuState, ...]
    torch_cuda: str | None
    """None: torch was built without CUDA, or is not installed."""


def driver_here() -> Driver | str | None:
    """Ask this machine's driver about all GPUs.

    None: there is no GPU. A text says why the driver can't be asked.
    """
    found = _by_nvml()
    if isinstance(found, Driver) and found.gpus:
        return found
    by_command = _by_command()
    if by_command is not None:
        return by_command
    return found if isinstance(found, str) else _by_files()


def gpus_here() -> tuple[GpuState, ...]:
    """Return the GPUs that this process may use, with the memory that is free now."""
    return _usable(driver_here())


def gpu_names() -> list[str]:
    """Return the names of the GPUs that this process may use, as the driver calls them."""
    return [gpu.name for gpu in _usable(_known())]


def gpu_count() -> int:
    """Return how many GPUs this process may use.

    If a driver exists that can't be asked, it is 1: a search on the CPU instead would be a surprise.
    """
    found = _known()
    return int(os.environ.get(VISIBLE) != "") if isinstance(found, str) else len(_usable(found))


def visible(gpus: Sequence[GpuState], given: str | None) -> tuple[GpuState, ...]:
    """Return the GPUs that `given`, the value of CUDA_VISIBLE_DEVICES, names by number or by the beginning of a UUID.

    They are in its order. As in CUDA, the first name without a GPU ends the list. `given` None: all GPUs.
    """
    if given is None:
        return tuple(gpus)
    found: list[GpuState] = []
    for word in (word.strip() for word in given.split(",")):
        named = [gpu for gpu in gpus if word == str(gpu.index) or (len(word) > 4 and gpu.uuid.startswith(word))]
        gpu = _instance(word) if word.startswith("MIG-") else named[0] if len(named) == 1 else None
        if gpu is None or gpu in found:
            break
        found.append(gpu)
    return tuple(found)


def use_one_gpu(number: str | None = None) -> bool:
    """Hide all GPUs but one from this process: the one of that number, or the first that it may use.

    Returns False if the driver has no GPU of that number. Must be called before CUDA starts. Transformers wraps the
    model in DataParallel if a process sees several GPUs, and a quantised base can't be trained in that.
    """
    os.environ.setdefault(ORDER, "PCI_BUS_ID")
    found = driver_here()
    gpus = found.gpus if isinstance(found, Driver) else None
    if number is not None:
        os.environ[VISIBLE] = number
        return gpus is None or bool(visible(gpus, number))
    given = os.environ.get(VISIBLE)
    if gpus is not None and visible(gpus, given):
        os.environ[VISIBLE] = "0" if given is None else given.split(",")[0].strip()
    return True


def torch_cuda() -> str | None:
    """Return the CUDA version of the installed torch; None: it has none. Reads a file, and imports no torch."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return None
    version: str | None = runpy.run_path(str(Path(found.origin).with_name("version.py")))["cuda"]
    return version


@cache
def _known() -> Driver | str | None:
    """Ask as `driver_here` does, once: names and numbers do not change while a process runs."""
    return driver_here()


def _usable(found: Driver | str | None) -> tuple[GpuState, ...]:
    return visible(found.gpus, os.environ.get(VISIBLE)) if isinstance(found, Driver) else ()


def _by_nvml() -> Driver | str | None:
    """Ask NVML. None: its library is missing or sees no driver. A text says why it can't be asked."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        absent = (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
        return None if error.value in absent else str(error)
    try:
        number = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        gpus = tuple(_state(index, handle) for index, handle in enumerate(handles))
        version = str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError as error:
        return str(error)
    finally:
        pynvml.nvmlShutdown()
    return Driver(version, (number // 1000, number % 1000 // 10), gpus, torch_cuda())


def _state(index: int, handle: object) -> GpuState:
    import pynvml

    name, uuid = str(pynvml.nvmlDeviceGetName(handle)), str(pynvml.nvmlDeviceGetUUID(handle))
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    except pynvml.NVMLError:  # a GPU that shares the machine's memory has none of its own
        return GpuState(index, name, None, None, uuid)
    return GpuState(index, name, int(memory.total), int(memory.free), uuid)


def _instance(uuid: str) -> GpuState | None:
    """Return the part of a divided GPU (MIG) with this UUID, which only NVML knows; None if there is none."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return _state(0, pynvml.nvmlDeviceGetHandleByUUID(uuid))
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _by_command() -> Driver | None:
    command = next((found for path in _SMI_PATHS if (found := shutil.which(path))), None)
    if command is None:
        return None
    rows = _said(command, f"--query-gpu={_SMI_FIELDS}", "--format=csv,noheader,nounits")
    table = [[field.strip() for field in line.split(",")] for line in rows.splitlines()]
    gpus = [row for row in table if len(row) == len(_SMI_FIELDS.split(",")) and row[0].isdecimal()]
    if not gpus:
        return None
    cuda = re.search(r"CUDA Version:\s*(\d+)\.(\d+)", _said(command))
    states = tuple(GpuState(int(row[0]), row[2], _bytes(row[3]), _bytes(row[4]), row[1]) for row in gpus)
    return Driver(gpus[0][5], (int(cuda[1]), int(cuda[2])) if cuda else None, states, torch_cuda())


def _said(*command: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=_SMI_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _bytes(mib: str) -> int | None:
    return int(mib) * _MIB if mib.isdecimal() else None


def _by_files() -> Driver | None:
    """Read names from the driver's files; if these are missing, count the device files. Memory is unknown."""
    names = [_model(file) for file in sorted((_PROC / "gpus").glob("*/information"))]
    names = names or [UNKNOWN for _ in _DEVICES.glob("nvidia[0-9]*")]
    if not names:
        return None
    states = tuple(GpuState(index, name, None, None) for index, name in enumerate(names))
    return Driver("of unknown version", None, states, torch_cuda())


def _model(file: Path) -> str:
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("Model:")), UNKNOWN)
