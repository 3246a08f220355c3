"""Who may import whom, read from the sources: trials know of no search, Ray is behind one door, nothing is circular."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter

import pytest

from tests.support.cli import ROOT

PACKAGES = ("trials", "search_spaces", "orchestrator")
SOURCES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for package in PACKAGES
    for file in sorted((ROOT / package).rglob("*.py"))
}
FOR_ALL = {"trials.config", "trials.errors", "trials.state"}
MAY_IMPORT = {
    "orchestrator.check": "orchestrator.integrity orchestrator.state orchestrator.storage trials.cli",
    "orchestrator.cluster": "orchestrator.ray_setup trials.cli trials.system",
    "orchestrator.controller": (
        "orchestrator.planning orchestrator.sampling orchestrator.scheduling orchestrator.state "
        "orchestrator.storage orchestrator.surrogate search_spaces.durations search_spaces.schema "
        "trials.console trials.metrics trials.records trials.schedule trials.system"
    ),
    "orchestrator.execution": (
        "orchestrator.controller orchestrator.planning orchestrator.ray_setup orchestrator.state "
        "orchestrator.storage trials.cli trials.console trials.data trials.engine.engine "
        "trials.engine.runtime trials.model trials.records trials.system trials.tracking trials.training "
        "trials.trl"
    ),
    "orchestrator.export": (
        "orchestrator.state orchestrator.storage search_spaces.schema trials.cli trials.evaluation "
        "trials.metrics trials.model trials.records trials.system"
    ),
    "orchestrator.integrity": "orchestrator.controller orchestrator.state trials.records trials.system",
    "orchestrator.monitoring": (
        "orchestrator.controller orchestrator.state orchestrator.storage search_spaces.durations "
        "trials.console trials.records"
    ),
    "orchestrator.planning": (
        "orchestrator.state search_spaces.durations search_spaces.layers search_spaces.schema trials.data "
        "trials.engine.support trials.model trials.records trials.schedule trials.system"
    ),
    "orchestrator.preflight": (
        "orchestrator.execution orchestrator.planning orchestrator.ray_setup orchestrator.state "
        "orchestrator.storage trials.system trials.tracking"
    ),
    "orchestrator.ray_setup": "orchestrator.state",
    "orchestrator.report": (
        "orchestrator.planning orchestrator.sampling orchestrator.state orchestrator.storage "
        "search_spaces.durations search_spaces.layers search_spaces.schema trials.cli trials.metrics "
        "trials.records trials.sources trials.system"
    ),
    "orchestrator.sampling": "orchestrator.surrogate search_spaces.schema trials.system",
    "orchestrator.scheduling": "orchestrator.surrogate search_spaces.schema",
    "orchestrator.search": (
        "orchestrator.monitoring orchestrator.planning orchestrator.preflight orchestrator.ray_setup "
        "orchestrator.sampling orchestrator.state orchestrator.storage orchestrator.supervisor search_spaces.layers "
        "search_spaces.loader search_spaces.schema trials.cli trials.console trials.data trials.model "
        "trials.sources trials.system"
    ),
    "orchestrator.state": (
        "search_spaces.durations search_spaces.schema trials.metrics trials.model trials.records "
        "trials.schedule trials.system"
    ),
    "orchestrator.storage": (
        "orchestrator.state trials.console trials.records trials.system trials.tracking trials.training"
    ),
    "orchestrator.supervisor": (
        "orchestrator.controller orchestrator.execution orchestrator.export orchestrator.monitoring "
        "orchestrator.planning orchestrator.preflight orchestrator.ray_setup orchestrator.report "
        "orchestrator.state orchestrator.storage search_spaces.durations trials.cli trials.console "
        "trials.system"
    ),
    "orchestrator.surrogate": "",
    "search_spaces.durations": "",
    "search_spaces.guide": "search_spaces.layers",
    "search_spaces.layers": "search_spaces.schema trials.sources",
    "search_spaces.loader": (
        "search_spaces.guide search_spaces.layers search_spaces.schema search_spaces.sweeps trials.data"
    ),
    "search_spaces.schema": "search_spaces.durations",
    "search_spaces.sweeps": "",
    "trials.cli": "trials.console",
    "trials.config": "",
    "trials.console": "",
    "trials.data": "trials.formats trials.schedule trials.sources trials.system",
    "trials.engine.engine": (
        "trials.data trials.engine.memory trials.engine.model trials.engine.runtime trials.model "
        "trials.records trials.system trials.training"
    ),
    "trials.engine.kernels": "trials.engine.support trials.model",
    "trials.engine.lora": "trials.engine.kernels trials.model",
    "trials.engine.memory": (
        "trials.data trials.engine.lora trials.engine.model trials.engine.optim trials.model trials.records "
        "trials.system"
    ),
    "trials.engine.model": "trials.data trials.engine.kernels trials.engine.lora trials.model",
    "trials.engine.optim": "trials.engine.lora trials.schedule",
    "trials.engine.runtime": (
        "trials.data trials.engine.kernels trials.engine.lora trials.engine.memory trials.engine.model "
        "trials.engine.optim trials.evaluation trials.metrics trials.model trials.records trials.schedule "
        "trials.system trials.tracking trials.training"
    ),
    "trials.engine.support": "trials.model",
    "trials.errors": "",
    "trials.evaluate": "trials.cli trials.evaluation trials.formats trials.metrics trials.records trials.system",
    "trials.evaluation": (
        "trials.cli trials.data trials.formats trials.metrics trials.model trials.records trials.system"
    ),
    "trials.formats": "",
    "trials.generate": "trials.cli trials.evaluation trials.formats",
    "trials.metrics": "trials.formats",
    "trials.model": "trials.data trials.sources trials.system",
    "trials.records": "trials.metrics trials.system",
    "trials.run": (
        "trials.engine.engine trials.engine.support trials.records trials.system trials.tracking trials.training "
        "trials.trl"
    ),
    "trials.schedule": "",
    "trials.sources": "trials.formats",
    "trials.state": "",
    "trials.system": "",
    "trials.tracking": "trials.console trials.records trials.system",
    "trials.train": (
        "search_spaces.guide search_spaces.loader trials.cli trials.console trials.data trials.model "
        "trials.records trials.run trials.sources trials.system trials.training"
    ),
    "trials.training": "trials.data trials.evaluation trials.metrics trials.records trials.system",
    "trials.trl": (
        "trials.data trials.evaluation trials.metrics trials.model trials.records trials.schedule "
        "trials.system trials.tracking trials.training"
    ),
}
"""What each package, or module outside of one, imports of the others, and nothing else."""
MOST_MODULES = 12
FORBIDDEN = {
    "trials": {"ray", "optuna", "orchestrator", "search_spaces"},
    "search_spaces": {"ray", "torch", "transformers", "optuna", "orchestrator"},
}
# The command line of one trial reads a recipe.
ALLOWED = {"trials.train": {"search_spaces"}}
BEHIND_THE_DOOR = {
    "orchestrator.cluster.submit",
    "orchestrator.execution.worker_pool",
    "orchestrator.execution.worker_group",
    "orchestrator.execution.trial_proxy",
    "orchestrator.monitoring.prometheus",
    "orchestrator.execution.cluster",
    "orchestrator.preflight.cluster",
    "orchestrator.execution.tune_adapters",
    "orchestrator.execution.tune_run",
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


PACKAGE_NAMES = {module for module, file in SOURCES.items() if file.name == "__init__.py"}
ROOMS = PACKAGE_NAMES - {*PACKAGES, "trials.engine"}


def _room(module: str) -> str:
    """The package of a module, or the module itself where it lies at the top of one of the three, or of the engine."""
    package = module.rpartition(".")[0]
    return package if package in ROOMS else module


def _neighbours() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {_room(module): set() for module in SOURCES.keys() - PACKAGE_NAMES}
    for module in SOURCES.keys() - PACKAGE_NAMES:
        others = {_room(name) for name in IMPORTS[module] & (SOURCES.keys() - PACKAGE_NAMES)}
        found[_room(module)] |= others - {_room(module)} - FOR_ALL
    return found


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_a_package_imports_what_it_may(room: str) -> None:
    assert _neighbours()[room] == set(MAY_IMPORT[room].split())


def test_every_package_is_in_the_table() -> None:
    assert _neighbours().keys() == MAY_IMPORT.keys()


def test_no_cycle_between_packages() -> None:
    TopologicalSorter(_neighbours()).prepare()  # raises CycleError


@pytest.mark.parametrize("package", sorted(ROOMS))
def test_a_package_is_small_and_says_what_it_is_for(package: str) -> None:
    assert ast.get_docstring(ast.parse(SOURCES[package].read_text()))
    own = [module for module in SOURCES.keys() - PACKAGE_NAMES if _room(module) == package]
    modules = [module for module in own if not module.endswith("__main__")]
    assert len(modules) <= MOST_MODULES


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
    assert not [
        module
        for module, names in IMPORTS.items()
        if any(name.endswith(".main") for name in names) and not module.endswith("__main__")
    ]


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
