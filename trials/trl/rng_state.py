"""State of a process's random generators, as transformers' `Trainer` (5.23) saves it for a single process."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.trainer_pt_utils import safe_globals

RANDOM_STATE_FILE = "rng_state.pth"


def random_state_file(rank: int) -> str:
    """Return the name of a rank's file.

    The first rank's name is that of a single process, which can resume from it as well.
    """
    return f"rng_state_{rank}.pth" if rank else RANDOM_STATE_FILE


def random_state() -> dict[str, Any]:
    """Return the state of this process's random generators, on the CPU and its GPU."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "cpu": torch.random.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.random.get_rng_state()
    return state


def restore_random_state(path: Path) -> None:
    """Restore the random state saved in `path`; do nothing if there is no such file."""
    if not path.is_file():
        return
    with safe_globals():
        state = torch.load(path, weights_only=True)
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.random.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.random.set_rng_state(state["cuda"])
