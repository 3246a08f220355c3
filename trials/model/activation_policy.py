"""How much of a layer is kept for its gradient. Needs no torch."""

from __future__ import annotations

from enum import Enum


class ActivationPolicy(Enum):
    """What isn't kept is computed again (arXiv 1604.06174)."""

    SAVE_ALL = "all"
    RECOMPUTE_MLP = "all but what is inside the MLP"
    RECOMPUTE_ALL = "only its input"
