"""How a process of ours uses torch: its threads, and its compiler only where something is compiled.

bitsandbytes (0.50) decorates functions with `torch.compile` while it is imported, and that alone loads torch._inductor:
about a quarter of the CPU time that a process takes to import what an engine needs. PEFT imports bitsandbytes, so this
holds for every process of ours. During that import `torch.compile` only notes its arguments; a decorated function is
compiled when it is called first, which is when torch would compile it too.
"""

from __future__ import annotations

import functools
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


def use_threads(machine: Machine) -> None:
    """Limit torch's threads on a machine without a GPU, so that trials side by side don't fight for cores."""
    import torch

    if machine.cpu_threads is not None and not torch.cuda.is_available():
        torch.set_num_threads(machine.cpu_threads)


def compile_lazily() -> None:
    """Apply this to the coming import of bitsandbytes; does nothing if it was imported before."""
    if _PACKAGE not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds bitsandbytes as it is found otherwise, with another loader, once."""

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
