"""Setting of torch's GPU allocator for an engine that divides its memory anew while it runs."""

from __future__ import annotations

import os

import torch

_IN_ENVIRONMENT = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Torch's variable for allocator settings, and its older name; settings of the user take precedence."""


def use_expandable_segments() -> None:
    """Let freed memory blocks of any size be joined again, unless the user has set the allocator."""
    if any(name in os.environ for name in _IN_ENVIRONMENT):
        return
    # Not through the environment: torch reads it once, when CUDA is first used, and importing bitsandbytes uses CUDA.
    # There is no public function for it; a torch without this private one keeps its default.
    change = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
    if change is not None:
        change("expandable_segments:True")
