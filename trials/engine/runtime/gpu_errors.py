"""Recognition of fatal GPU errors, after which no result of this process on its GPU can be trusted."""

from __future__ import annotations

from trials.system.oom import is_out_of_memory

_SAYS_GPU = ("CUDA error", "CUDA driver error", "Triton Error [CUDA]", "cuDNN error")
"""Texts in the errors of driver and libraries, which torch and Triton raise as plain `RuntimeError`s."""


def is_fatal_gpu_error(error: BaseException) -> bool:
    """Return whether a kernel failed or the GPU is lost, other than by running out of memory.

    The trial that gets the error needn't have caused it, because kernels run asynchronously. Other data in the GPU's
    memory may be corrupt too.
    """
    says_gpu = isinstance(error, RuntimeError) and any(mark in str(error) for mark in _SAYS_GPU)
    return says_gpu and not is_out_of_memory(error)
