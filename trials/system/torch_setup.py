"""Torch in this project's processes: threads, garbage collection, and a compiler loaded only where it compiles.

bitsandbytes (0.50) decorates functions with `torch.compile` while it is imported, which loads torch._inductor. That
alone is about a quarter of the CPU time that a process takes to import what an engine needs. PEFT imports bitsandbytes,
so this holds for every process of ours. During that import `torch.compile` only records its arguments. A decorated
function is compiled at its first call, which is when torch would compile it too.

Python looks for garbage after every 700 objects (10,000 from 3.14 on). An import makes millions that stay, and looking
through them is a tenth of its CPU time.
"""

from __future__ import annotations

import functools
import gc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trials.config import Machine

_PACKAGE = "bitsandbytes"
_OBJECTS_BETWEEN_COLLECTIONS = 50_000


def use_threads(machine: Machine) -> None:
    """Limit torch's threads on a machine without a GPU, so that trials side by side don't fight for cores."""
    import torch

    if machine.cpu_threads is not None and not torch.cuda.is_available():
        torch.set_num_threads(machine.cpu_threads)


def compile_lazily() -> None:
    """Defer `torch.compile` during the coming import of bitsandbytes. Does nothing if it was imported before."""
    if _PACKAGE not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def collect_rarely() -> None:
    """Look for garbage less often than Python does by itself, in this process."""
    first, *others = gc.get_threshold()
    if 0 < first < _OBJECTS_BETWEEN_COLLECTIONS:
        gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, *others)


class _Finder(MetaPathFinder):
    """Import hook that finds bitsandbytes as usual and gives it another loader, once."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _PACKAGE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        import torch

        compiling = torch.compile
        torch.compile = functools.partial(_lazily, compiling)
        try:
            self._loader.exec_module(module)
        finally:
            torch.compile = compiling


def _lazily(compiling: Callable[..., Any], model: Callable[..., Any] | None = None, **settings: Any) -> Any:
    if model is None:
        return functools.partial(_lazily, compiling, **settings)

    @functools.cache
    def compiled() -> Any:
        return compiling(model, **settings)

    @functools.wraps(model)
    def call(*arguments: Any, **named: Any) -> Any:
        return compiled()(*arguments, **named)

    return call
