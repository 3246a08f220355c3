"""Telling an error that says memory ran out from all others."""

from __future__ import annotations

import torch

_SAY_SO = (
    "can't allocate memory",  # torch, on a CPU
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "Triton Error [CUDA]: out of memory",
    # cuBLAS makes its handle, and finds room for it, when a process first asks for a product.
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
)
"""Parts of plain RuntimeErrors: of memory that is taken past torch's allocator for the GPU."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or on a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or any(part in str(error) for part in _SAY_SO)
