"""Torch's allocator on a GPU, as an engine needs it that cuts its memory anew while it lives."""

from __future__ import annotations

import os

import torch

_IN_ENVIRONMENT = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Torch's name for its settings, and the older one; what a user says there counts."""


def use_expandable_segments() -> None:
    """Lets pieces of memory that were freed join again, whatever their sizes were."""
    if any(name in os.environ for name in _IN_ENVIRONMENT):
        return
    # Not through the environment: it's read once, when CUDA is first used, and bitsandbytes does that when it's
    # imported. There is no public function for it; a torch without this one keeps its own way.
    change = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
    if change is not None:
        change("expandable_segments:True")
