"""Names in a config file's source: those that it binds, in order, and those that it reads."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Binding:
    """A module-level name that is bound; `module` and `original` say what it's imported from, if it is."""

    name: str
    module: str | None = None
    original: str = ""


class _Bindings(ast.NodeVisitor):
    """Collects bindings in the order of the source; functions, classes and comprehensions have scopes of their own."""

    def __init__(self) -> None:
        self.found: list[Binding] = []

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            self.found.append(Binding(node.id))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            self.found.append(Binding(alias.asname or alias.name, node.module or "", alias.name))

    def _skip(self, node: ast.AST) -> None:
        pass

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = visit_Lambda = _skip  # noqa: N815
    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _skip  # noqa: N815


def bindings_of(tree: ast.AST) -> list[Binding]:
    """Return all bindings of values at module level, in order."""
    visitor = _Bindings()
    visitor.visit(tree)
    return visitor.found


def names_read(tree: ast.AST) -> set[str]:
    """Return the names that are read anywhere in the file."""
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def sources_of(
    bindings: list[Binding], file: str, imported: Mapping[str, Mapping[str, str | None]]
) -> dict[str, str | None]:
    """Return the file that set each name last; None for a name that no config file set.

    `imported` is the same for other modules, by module name.
    """
    found: dict[str, str | None] = {}
    for binding in bindings:
        if binding.module is None:
            found[binding.name] = file
            continue
        others = imported.get(binding.module, {})
        if binding.name == "*":
            found.update({name: source for name, source in others.items() if not name.startswith("_")})
        else:
            found[binding.name] = others.get(binding.original)
    return found
