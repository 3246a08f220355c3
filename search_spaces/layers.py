"""Layers of settings under dotted keys, and where each value came from."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from search_spaces.schema import Recipe
from trials.config import Hyperparameters, Settings
from trials.errors import RecipeError
from trials.sources.source import bare_name, expanded, is_path, with_path

RECIPE_FOLDER = Path(__file__).parent
ENVIRONMENT_PREFIX = "ORCHESTRATOR__"
SET = "--set"
"""Source of the settings that the command line gives."""


_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """YAML loader with the numbers and the unique keys of YAML 1.2.

    PyYAML reads 2e-4 as text, and takes the last of several equal keys.
    """

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge what `<<` names into a mapping, whose own keys take precedence, as PyYAML does.

        Raises PyYAML's error if the mapping itself, before that, has a key twice.
        """
        # PyYAML calls this once for every `<<` that names the node; after the first call its keys are no longer unique.
        if node in self._flattened:
            return
        self._flattened.add(node)
        seen = set()
        for key, _ in node.value:
            # A mapping may have several `<<`: all are merged, the last one first.
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} is there twice", key.start_mark)
                seen.add(key.value)
        super().flatten_mapping(node)

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._flattened: set[yaml.MappingNode] = set()

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        """Return a scalar as PyYAML does, but with surrogate pairs joined to characters.

        JSON may escape a character as two surrogates, which PyYAML leaves as they are.
        """
        value = super().construct_scalar(node)
        if not isinstance(value, str) or value.isascii():
            return value
        try:
            return value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            said = "half of a character that is escaped in two halves"
            raise yaml.constructor.ConstructorError(None, None, said, node.start_mark) from None


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


@dataclass
class Layers:
    """Settings under dotted keys; later layers replace earlier ones. `sources` says what set each key last."""

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    def put(self, key: str, value: Any, source: str) -> None:
        """Set one key; None under space or start removes an entry."""
        self.drop(key)
        if value is None and key.split(".", maxsplit=1)[0] in {"space", "start"}:
            return
        self.values[key] = value
        self.sources[key] = source

    def drop(self, key: str) -> None:
        """Remove a key and everything under it."""
        parts = split_key(key)
        for known in [k for k, value in self.values.items() if split_key(k, value)[: len(parts)] == parts]:
            del self.values[known], self.sources[known]

    def where(self, key: str) -> str:
        """Return the source that last set a key or one under it, for a message; empty text if none did."""
        parts = split_key(key)
        found = [self.sources[k] for k, value in self.values.items() if split_key(k, value)[: len(parts)] == parts]
        return f" (from {found[-1]})" if found else ""

    def starting_points(self) -> set[str]:
        """Return the names of the starting points that are set so far."""
        parts = (split_key(key, value) for key, value in self.values.items())
        return {name for section, name, *_ in (part for part in parts if len(part) > 1) if section == "start"}

    def nested(self) -> dict[str, Any]:
        """Return the values as the recipe's nested mappings."""
        root: dict[str, Any] = {}
        for key, value in self.values.items():
            *parents, leaf = split_key(key, value)
            node = root
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = value
        return root


def parse_yaml(text: str, source: str) -> Any:
    """Return the value of YAML text. Raises `RecipeError` with line and column if the text is no YAML."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{source} is no YAML: {' '.join(str(error).split())}. Mend it.") from error


def split_key(key: str, value: Any = None) -> tuple[str, ...]:
    """Return the parts of a dotted key.

    The name of a starting point may have dots of its own, as in start.lr2.5e-4.lora_rank. The last part there is a
    hyperparameter if it is a known one, or if `value` can only be a hyperparameter's: neither None nor a mapping.
    """
    section, _, rest = key.partition(".")
    if section != "start" or not rest:
        return tuple(key.split("."))
    name, _, last = rest.rpartition(".")
    is_hyperparameter = last in Hyperparameters.model_fields or not (value is None or isinstance(value, Mapping))
    return (section, name, last) if name and is_hyperparameter else (section, rest)


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as dotted keys. A dimension of the space is taken apart, so that parts can be set."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, dotted + "."))
        else:
            flat[dotted] = value
    return flat


def environment_settings(environ: Mapping[str, str] = os.environ) -> dict[str, tuple[Any, str]]:
    """Return settings from variables such as ORCHESTRATOR__SEARCH__BUDGET=5m: full key to value and source."""
    found = {}
    for variable, text in environ.items():
        if variable.startswith(ENVIRONMENT_PREFIX):
            key = variable.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
            found[full_key(key, variable)] = (parse_yaml(text, variable), f"environment ({variable})")
    return found


def command_line_settings(assignments: Iterable[str]) -> dict[str, tuple[Any, str]]:
    """Return settings from --set key=value: full key to value and source."""
    settings = map(parse_assignment, assignments)
    return {full_key(key, SET): (value, SET) for key, value in settings}


def parse_assignment(assignment: str) -> tuple[str, Any]:
    """Return key and value of one key=value. Raises `RecipeError` if it's something else."""
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {assignment!r} is not of the form key=value, such as learning_rate=1e-4.")
    return key.strip(), parse_yaml(text, f"--set {key}")


def full_key(key: str, source: str) -> str:
    """Return the full dotted key: the key itself, the hyperparameter of that name, or the only key that ends in it.

    So `scheduler` is hyperparameters.scheduler, of the learning rate, and not search.scheduler. Raises `RecipeError` if
    there is none, or several.
    """
    if key in KNOWN_KEYS or (key.split(".", maxsplit=1)[0] in {"space", "start"} and "." in key):
        return key
    ending = [known for known in KNOWN_KEYS if known.endswith("." + key) and not known.startswith("space.")]
    hyperparameters = [known for known in ending if known.startswith("hyperparameters.")]
    if len(ending) == 1 or len(hyperparameters) == 1:
        return (hyperparameters or ending)[0]
    if ending:
        raise RecipeError(f"{source}: key {key!r} could be {' or '.join(ending)}. Give it in full.")
    raise RecipeError(f"{source}: {unknown_key(key)}")


def unknown_key(key: str) -> str:
    """Return one sentence: the unknown key, and the nearest known one."""
    candidates = [known for known in KNOWN_KEYS if known.startswith("space.") == key.startswith("space.")]
    shorts = {known.rpartition(".")[2]: known for known in candidates}
    near = difflib.get_close_matches(key, candidates, n=1, cutoff=0.6)
    near = near or [shorts[s] for s in difflib.get_close_matches(key.rpartition(".")[2], shorts, n=1, cutoff=0.5)]
    if near:
        return f"unknown key {key!r}; the nearest known one is {near[0]!r}."
    return f"unknown key {key!r}; known are: {', '.join(sorted(shorts))}."


def _known_keys(model: type[Settings], prefix: str = "") -> list[str]:
    keys = []
    for name, info in model.model_fields.items():
        nested = info.annotation
        if isinstance(nested, type) and issubclass(nested, Settings):
            keys += _known_keys(nested, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


KNOWN_KEYS: tuple[str, ...] = (
    *(key for key in _known_keys(Recipe) if key not in {"name", "space", "start"}),
    *(f"space.{name}" for name in Hyperparameters.model_fields),
)


def resolve_path(value: str, folder: Path) -> str:
    """Return a path made absolute from `folder`; if it exists only in the current folder, from there.

    Names on a hub stay as they are. A slice of rows after the name is kept.
    """
    name = bare_name(value)
    paths = [(base / expanded(name)).absolute() for base in (folder, Path.cwd())]
    found = next((path for path in paths if path.exists()), None)
    if found is None:
        if not is_path(name):
            return value
        # The data of a recipe that ships with the project is the user's, and so in their current folder.
        found = paths[1] if folder.is_relative_to(RECIPE_FOLDER) else paths[0]
    return with_path(value, Path(os.path.normpath(found)))
