"""Activations of a layer that are saved for the backward pass. Needs no torch."""

from __future__ import annotations

from enum import Enum


class ActivationPolicy(Enum):
    """Choice of activations that one layer saves; it recomputes the others (arXiv 1604.06174)."""

    SAVE_ALL = "all"
    RECOMPUTE_MLP = "all but what is inside the MLP"
    RECOMPUTE_ALL = "only its input"
