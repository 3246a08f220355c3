"""The state of a process's random generators, as transformers' `Trainer` (5.23) saves that of a process alone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.trainer_pt_utils import safe_globals

RANDOM_STATE_FILE = "rng_state.pth"


def random_state_file(rank: int) -> str:
    """The name of a rank's own; the first rank's is that of a process alone, which goes on from it as well."""
    return f"rng_state_{rank}.pth" if rank else RANDOM_STATE_FILE


def random_state() -> dict[str, Any]:
    """Of this process, on the CPU and its GPU."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "cpu": torch.random.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.random.get_rng_state()
    return state


def restore_random_state(path: Path) -> None:
    """Goes on drawing where the process that saved `path` stopped; does nothing if nobody saved any there."""
    if not path.is_file():
        return
    with safe_globals():
        state = torch.load(path, weights_only=True)
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.random.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.random.set_rng_state(state["cuda"])
