"""bitsandbytes is imported without torch's compiler; what it decorated is compiled when it is called."""

from __future__ import annotations

import subprocess
import sys

from tests.support.cli import ROOT

IMPORTED = """
import sys, trials, bitsandbytes, torch
print("torch._inductor.compile_fx" in sys.modules, torch.compile.__module__, type(bitsandbytes.__loader__).__name__)
"""
CALLED = """
import torch
real, settings = torch.compile, []
torch.compile = lambda model, **given: settings.append(given) or model
import trials
from bitsandbytes.backends.default import ops
before = len(settings)
decorated = [value for value in vars(ops).values() if hasattr(value, "__wrapped__")]
torch.compile = real
print(before, [type(value).__name__ for value in decorated][:1])
"""


def run_python(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_compiler_is_not_loaded() -> None:
    loaded, module, _ = run_python(IMPORTED).split()
    assert (loaded, module) == ("False", "torch")


def test_garbage_is_collected_rarely_unless_somebody_turned_that_off() -> None:
    assert run_python("import gc, trials; print(gc.get_threshold()[0])") == "50000"
    assert run_python("import gc; gc.set_threshold(0); import trials; print(gc.get_threshold()[0])") == "0"


def test_nothing_is_compiled_by_the_import() -> None:
    before, _ = run_python(CALLED).split(maxsplit=1)
    assert before == "0"


def test_a_decorated_function_is_compiled_once_with_its_settings() -> None:
    from trials.system.torch_setup import _lazily

    seen: list[dict[str, object]] = []

    def compiling(model: object, **settings: object) -> object:
        seen.append(settings)
        return model

    def double(x: int) -> int:
        return 2 * x

    plain = _lazily(compiling, double)
    with_settings = _lazily(compiling, dynamic=False)(double)
    assert seen == []
    assert [plain(1), plain(2), with_settings(3), with_settings(4)] == [2, 4, 6, 8]
    assert seen == [{}, {"dynamic": False}]
    assert plain.__name__ == "double"
