"""Threads of torch on a machine without a GPU."""

from __future__ import annotations

import torch

from trials.config import Machine


def use_threads(machine: Machine) -> None:
    """Limits torch's threads on a machine without a GPU, so that trials side by side don't fight for cores."""
    if machine.cpu_threads is not None and not torch.cuda.is_available():
        torch.set_num_threads(machine.cpu_threads)
