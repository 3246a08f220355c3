"""Executes the CoT-NLI guide's Python config files, and tells which file set which name.

A config file is a program that may import others: `from train.configs.default import *`, or `from configs.default
import *` after a change of `sys.path`. Such modules are looked for beside the file and in the folder above it, wherever
the file lies; without a `default.py` there, `default` is the guide's. Nothing of it stays in `sys.path` or
`sys.modules`, and no bytecode is written beside the user's files.
"""

from __future__ import annotations

import ast
import sys
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from search_spaces.guide.bindings import bindings_of, names_read, sources_of
from trials.errors import RecipeError

BUILT_IN = "the guide's default"
_PATH_HELPERS = {"current_dir", "default_path"}
_PACKAGES = {"train", "configs"}


@dataclass(frozen=True)
class FileValues:
    """Values that config files set, and the files that set them, by name. `helpers` are other names that they use."""

    values: Mapping[str, Any]
    sources: Mapping[str, str]
    helpers: tuple[str, ...] = ()


def run_config_file(file: Path, default: Mapping[str, Any], known: Collection[str]) -> FileValues:
    """Run a config file. Raises `RecipeError` with file, line and reason if that fails.

    Modules, functions, underscore names, and names that aren't known but are read again are helpers, not settings.
    """
    files = _ConfigFiles(file.absolute(), default)
    try:
        with files.importable():
            names = files.run_main()
    except (Exception, SystemExit) as error:  # a program may raise anything
        reason = " ".join(f"{files.place_of(error)}{type(error).__name__}: {error}".split())
        raise RecipeError(f"can't load the config file {file}: {reason.rstrip('.')}.") from error
    read_again = files.names_read - set(known)
    settings = {name: value for name, value in names.items() if name not in read_again | _PATH_HELPERS}
    return FileValues(
        values={name: str(value) if isinstance(value, Path) else value for name, value in settings.items()},
        sources={name: files.sources[files.main].get(name) or file.name for name in settings},
        helpers=tuple(name for name in names if name in read_again - _PATH_HELPERS),
    )


class _ConfigFiles(MetaPathFinder, Loader):
    """Finds and runs the config files that a config file imports, and remembers what each of them set."""

    def __init__(self, file: Path, default: Mapping[str, Any]) -> None:
        self._file = file
        self._default = default
        self._run_files: set[str] = set()
        self._modules: set[str] = set()
        self.main = f"config file {file.stem}"  # has spaces: no other module's name
        self.names_read: set[str] = set()
        self.sources: dict[str, dict[str, str | None]] = {}

    @contextmanager
    def importable(self) -> Iterator[None]:
        """Make imports find the config files; `sys.path` and `sys.modules` are restored on leaving."""

        def in_the_way() -> list[str]:
            return [name for name in sys.modules if name.partition(".")[0] in {*_PACKAGES, "default"}]

        path = list(sys.path)
        hidden = {name: sys.modules.pop(name) for name in in_the_way()}
        sys.meta_path.insert(0, self)
        try:
            yield
        finally:
            sys.meta_path.remove(self)
            sys.path[:] = path
            for name in {*in_the_way(), *self._modules} & sys.modules.keys():
                del sys.modules[name]
            sys.modules.update(hidden)

    def run_main(self) -> dict[str, Any]:
        """Run the file itself; return its names, without modules, functions and underscore names."""
        module = ModuleType(self.main)
        self._modules.add(self.main)
        sys.modules[self.main] = module
        self._run(self._file, module)
        no_settings = {name for name, source in self.sources[self.main].items() if source is None}
        return {
            name: value
            for name, value in vars(module).items()
            if not (name.startswith("_") or isinstance(value, ModuleType) or callable(value) or name in no_settings)
        }

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a config file, the guide's default, or a package that leads to them; None for all other modules."""
        parent, _, leaf = fullname.rpartition(".")
        if parent not in self._modules if parent else leaf in sys.stdlib_module_names:
            return None
        folders = [*map(Path, path or ()), self._file.parent, self._file.parent.parent]
        origin = next((str(folder / f"{leaf}.py") for folder in folders if (folder / f"{leaf}.py").is_file()), None)
        if origin is None and leaf in _PACKAGES | {self._file.parent.name}:
            spec = ModuleSpec(fullname, self, is_package=True)
            spec.submodule_search_locations = [str(above) for above in self._file.parents if above.name == leaf][:1]
        elif origin or leaf == "default":
            spec = ModuleSpec(fullname, self, origin=origin or BUILT_IN)
        else:
            return None
        self._modules.add(fullname)
        return spec

    def exec_module(self, module: ModuleType) -> None:
        """Run a config file that another one imports; a package has nothing to run."""
        origin = module.__spec__.origin if module.__spec__ else None
        if origin == BUILT_IN:
            vars(module).update(self._default)
            self.sources[module.__name__] = dict.fromkeys(self._default, BUILT_IN)
        elif origin is not None:
            self._run(Path(origin), module)

    def _run(self, file: Path, module: ModuleType) -> None:
        module.__file__ = str(file)
        self._run_files.add(str(file))
        tree = ast.parse(file.read_bytes(), filename=str(file))
        exec(compile(tree, str(file), "exec"), vars(module))
        self.names_read |= names_read(tree)
        self.sources[module.__name__] = sources_of(bindings_of(tree), file.name, self.sources)

    def place_of(self, error: BaseException) -> str:
        """Return the place of an error to begin a sentence with: line, and file if it's imported; may be empty."""
        frames = traceback.extract_tb(error.__traceback__)
        places = [(frame.filename, frame.lineno) for frame in frames if frame.filename in self._run_files]
        if isinstance(error, SyntaxError) and error.filename is not None:
            places.append((error.filename, error.lineno))
        if not places:
            return ""
        file, line = places[-1]
        return f"line {line}: " if file == str(self._file) else f"{Path(file).name}, line {line}: "
