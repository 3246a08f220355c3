"""Who may import whom, read from the sources: trials know of no search, Ray is behind one door, nothing is circular."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("trials", "search_spaces", "orchestrator")
SOURCES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for package in PACKAGES
    for file in sorted((ROOT / package).rglob("*.py"))
}
FORBIDDEN = {
    "trials": {"ray", "optuna", "orchestrator", "search_spaces"},
    "search_spaces": {"ray", "torch", "transformers", "optuna", "orchestrator"},
}
# The command line of one trial reads a recipe.
ALLOWED = {"trials.train": {"search_spaces"}}
BEHIND_THE_DOOR = {
    "orchestrator.execution.worker_pool",
    "orchestrator.execution.worker_group",
    "orchestrator.execution.trial_proxy",
    "orchestrator.monitoring.prometheus",
    "orchestrator.execution.cluster",
    "orchestrator.preflight.cluster",
    "orchestrator.execution.tune_adapters",
    "orchestrator.execution.tune_run",
    "orchestrator.execution.trial_task",
}


def _imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all that is imported anywhere, names from a module included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports here are absolute"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


IMPORTS = {module: set(_imports(ast.parse(file.read_text()))) for module, file in SOURCES.items()}


@pytest.mark.parametrize("module", [module for module in SOURCES if module.split(".")[0] in FORBIDDEN])
def test_a_layer_knows_nothing_of_those_above(module: str) -> None:
    forbidden = FORBIDDEN[module.split(".", maxsplit=1)[0]] - ALLOWED.get(module, set())
    assert not {name for name in IMPORTS[module] if name.split(".")[0] in forbidden}


def test_the_recipe_is_read_by_the_command_line_of_a_trial_only() -> None:
    tree = ast.parse(SOURCES["trials.train"].read_text())
    readers = [node for node in tree.body if any(name.startswith("search_spaces") for name in _imports(node))]
    assert [getattr(node, "name", "at import") for node in readers] == ["_train"]
    assert not [module for module, names in IMPORTS.items() if "trials.train" in names]


def test_ray_is_behind_one_door() -> None:
    users = {module for module, names in IMPORTS.items() if any(name.split(".")[0] == "ray" for name in names)}
    assert users == BEHIND_THE_DOOR


def test_nothing_imports_a_main() -> None:
    assert not [module for module, names in IMPORTS.items() if any(name.endswith(".main") for name in names)]


def test_no_import_cycles() -> None:
    graph = {module: (names & SOURCES.keys()) - {module} for module, names in IMPORTS.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError
    assert all(graph["trials.trl.backend"])


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("trials.trl.backend", ("ray", "optuna", "orchestrator", "search_spaces")),
        ("search_spaces.loader", ("ray", "torch", "transformers", "optuna")),
        ("trials.records.trial_dir", ("ray", "torch", "transformers", "scipy.stats")),
        ("trials.engine.support", ("torch", "transformers")),
        ("trials.engine.engine", ("ray", "scipy.stats", "sklearn", "trl")),
        ("orchestrator.execution.group_queue", ("ray", "torch", "transformers")),
        ("orchestrator.execution.trial_runner", ("ray", "torch", "transformers")),
        ("orchestrator.execution.trial_proxy", ("torch", "transformers", "optuna", "scipy.stats", "sklearn")),
        ("orchestrator.search", ("ray", "torch", "transformers", "optuna", "scipy.stats")),
        ("orchestrator.execution.tune_run", ("torch", "transformers")),
    ],
)
def test_what_a_module_really_loads(module: str, absent: tuple[str, ...]) -> None:
    script = f"import sys, {module}; print([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
