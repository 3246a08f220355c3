"""A machine with NVIDIA GPUs, as far as a real `nvidia-smi` of the test's own tells of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from trials.system import gpus

_HEADER = "| NVIDIA-SMI 550.54.14    Driver Version: 550.54.14    CUDA Version: 12.4 |"


class FakeDriver:
    """No GPU until it is called: no NVML, no /proc/driver/nvidia, nothing hidden. `patch` undoes all."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self._patch = patch
        self._count = 0
        patch.setattr(gpus, "_by_nvml", lambda: None)
        patch.setattr(gpus, "_PROC", folder / "proc")
        patch.setattr(gpus, "_DEVICES", folder / "dev")
        patch.setattr(gpus, "_SMI_PATHS", ("nvidia-smi",))
        patch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        patch.setenv(gpus.ORDER, "PCI_BUS_ID")
        patch.setenv(gpus.VISIBLE, "")  # so that what a test sets is gone after it
        patch.delenv(gpus.VISIBLE)
        gpus._known.cache_clear()

    def __call__(self, *names: str, total_mib: str = "24564", free_mib: str = "24083") -> None:
        """Has these GPUs from now on."""
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir(parents=True)
        self._patch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        _write_command(folder, names, f"{total_mib}, {free_mib}")
        gpus._known.cache_clear()


def _write_command(folder: Path, names: Sequence[str], memory: str) -> None:
    rows = [f"{index}, GPU-{index}aaa-bbb, {name}, {memory}, 550.54.14" for index, name in enumerate(names)]
    said = f'import sys\nprint("\\n".join({rows}) if sys.argv[1:] else {_HEADER!r})\n'
    (folder / "smi.py").write_text(said, encoding="utf-8")
    command = folder / "nvidia-smi"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -S {folder / "smi.py"} "$@"\n', encoding="utf-8")
    command.chmod(0o755)
