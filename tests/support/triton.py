"""Where Triton's kernels run in the tests: on a GPU, or on the CPU in Triton's interpreter (TRITON_INTERPRET=1)."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
IS_NOWHERE = not GPU and os.environ.get("TRITON_INTERPRET") != "1"
WHY_NOT = "needs a GPU, or Triton and TRITON_INTERPRET=1"


@pytest.fixture(autouse=True)
def mended_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Triton 3.6's interpreter lacks.

    A loop's bounds are arrays of one number, which numpy 2.4 doesn't take for a number; bfloat16 is multiplied as
    the whole number that its bits are, and cut off instead of rounded.
    """
    if GPU:
        return
    import triton.language as tl
    from triton.runtime import interpreter

    builder, usual_patch = interpreter.InterpreterBuilder, interpreter._patch_lang_tensor
    usual_dot, usual_cast = builder.create_dot, builder.cast_impl

    def patch(tensor: type, scope: Any) -> None:
        usual_patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def cast(self: Any, source: Any, to: Any) -> Any:
        if (source.dtype.scalar, to.scalar) != (tl.float32, tl.bfloat16):
            return usual_cast(self, source, to)
        bits = torch.from_numpy(source.data.copy()).bfloat16().view(torch.uint16)
        return interpreter.TensorHandle(bits.numpy(), tl.bfloat16)

    def dot(self: Any, left: Any, right: Any, *others: Any) -> Any:
        # Only bfloat16 is cast: the others' bits are numbers.
        left, right = (
            cast(self, each, tl.float32) if each.dtype.scalar == tl.bfloat16 else each for each in (left, right)
        )
        return usual_dot(self, left, right, *others)

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch)
    monkeypatch.setattr(builder, "cast_impl", cast)
    monkeypatch.setattr(builder, "create_dot", dot)
