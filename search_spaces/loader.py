"""Reads recipes. Precedence: built-in default < recipe and what it extends < config file < environment < --set."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from search_spaces.guide.config import GuideConfig
from search_spaces.layers import (
    KNOWN_KEYS,
    RECIPE_FOLDER,
    Layers,
    command_line_settings,
    environment_settings,
    flatten,
    parse_yaml,
    resolve_path,
    split_key,
    unknown_key,
)
from search_spaces.schema import Recipe
from search_spaces.sweeps import written_here
from trials.data.chat_template import TEMPLATES
from trials.errors import RecipeError

DEFAULT_RECIPE = "demo"
GUIDE_RECIPE = "nli_cot"
"""Recipe that the guide's config files apply to."""
_PATH_KEYS = {"data.train", "data.eval", "data.test", "model.name", "model.chat_template"}


@dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe with everything applied, and where each value that isn't a built-in default came from."""

    recipe: Recipe
    sources: Mapping[str, str]
    guide: GuideConfig | None = None


def recipe_names() -> list[str]:
    """Return the names of all recipes that ship with the project, such as demo."""
    files = RECIPE_FOLDER.rglob("*.yaml")
    return sorted(str(file.relative_to(RECIPE_FOLDER).with_suffix("")) for file in files)


def load_recipe(
    name_or_path: str,
    requests: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
    guide_config: GuideConfig | None = None,
) -> ResolvedRecipe:
    """Return the recipe with a guide's config file, environment and --set applied.

    With a config file, `requests` may use the guide's names too. If both kinds of name set the same key, the recipe's
    takes precedence. Raises `RecipeError`, with all invalid values in one message.
    """
    file = recipe_file(name_or_path)
    layers = Layers()
    _add_file(layers, file, seen=())
    guide, ours = guide_config.overridden(requests) if guide_config else (None, requests)
    for settings in (
        guide.settings(of_command_line=False) if guide else {},
        _as_the_recipe_spells(environment_settings(environ), layers.starting_points()),
        guide.settings(of_command_line=True) if guide else {},
        command_line_settings(ours),
    ):
        for key, (value, source) in settings.items():
            _override(layers, key, _absolute(key, value, Path.cwd()), source)
    layers.put("name", _recipe_name(file), "recipe's file name")
    return ResolvedRecipe(_validated(layers, file), dict(layers.sources), guide)


def _as_the_recipe_spells(settings: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return the settings of an environment with the recipe's own spelling of its starting points' `names`.

    A variable's name has lost their capitals, and has two underscores in place of a dot.
    """
    spelt = {name.lower().replace("__", "."): name for name in names}

    def key_of(key: str, value: Any) -> str:
        section, *rest = split_key(key, value)
        return ".".join([section, spelt.get(rest[0], rest[0]), *rest[1:]]) if section == "start" and rest else key

    return {key_of(key, found[0]): found for key, found in settings.items()}


def recipe_file(name_or_path: str) -> Path:
    """Return the file of a recipe. Raises `RecipeError` if there is none."""
    is_path = name_or_path.endswith((".yaml", ".yml"))
    file = Path(name_or_path) if is_path else RECIPE_FOLDER / f"{name_or_path}.yaml"
    if file.is_file():
        return file.absolute()
    if is_path:
        raise RecipeError(f"no recipe file {name_or_path}. Give the path of a YAML file that exists.")
    names = recipe_names()
    near = difflib.get_close_matches(name_or_path, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise RecipeError(
        f"unknown recipe {name_or_path!r}; {hint}Known recipes: {', '.join(names)}. A path must end in .yaml."
    )


def _recipe_name(file: Path) -> str:
    if file.is_relative_to(RECIPE_FOLDER):
        return str(file.relative_to(RECIPE_FOLDER).with_suffix(""))
    return file.stem


def _add_file(layers: Layers, file: Path, seen: tuple[Path, ...]) -> None:
    if file in seen:
        raise RecipeError(f"{file} extends itself by way of {' -> '.join(map(str, seen))}. Break the circle.")
    try:
        content = parse_yaml(file.read_text(encoding="utf-8"), str(file))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{file} is not UTF-8 text ({error.reason}). Save it as YAML in UTF-8.") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{file} must hold a mapping of settings, not {type(content).__name__}.")
    parent = content.pop("extends", None)
    if parent is not None:
        relative = file.parent / str(parent)
        is_file = str(parent).endswith((".yaml", ".yml"))
        _add_file(layers, recipe_file(str(relative) if is_file else str(parent)), (*seen, file))
    _refuse_unknown_sections(content, file)
    for section in ("space", "start"):
        # A dimension or a starting point replaces its namesake as a whole.
        named = content.get(section)
        for name in named if isinstance(named, Mapping) else ():
            layers.drop(f"{section}.{name}")
    for key, value in flatten(content).items():
        layers.put(key, _absolute(key, value, file.parent), file.name)


def _override(layers: Layers, key: str, value: Any, source: str) -> None:
    """Set a value from outside the recipe; a hyperparameter is fixed by that, and the search no longer varies it."""
    section, _, name = key.partition(".")
    if section == "hyperparameters":
        layers.drop(f"space.{name}")
        for known in list(layers.values):
            if known.startswith("start.") and known.endswith(f".{name}"):
                layers.drop(known)
    if isinstance(value, Mapping) and value:
        layers.drop(key)
        for inner, inner_value in flatten(value, key + ".").items():
            layers.put(inner, inner_value, source)
    else:
        layers.put(key, value, source)


def _absolute(key: str, value: Any, folder: Path) -> Any:
    if key in _PATH_KEYS and isinstance(value, str) and value not in TEMPLATES:
        return resolve_path(value, folder)
    return value


def _refuse_unknown_sections(content: Mapping[str, Any], file: Path) -> None:
    sections = [name for name in Recipe.model_fields if name != "name"]
    for key in map(str, content):
        if key in sections:
            continue
        homes = [known for known in KNOWN_KEYS if known.endswith("." + key) and not known.startswith("space.")]
        near = difflib.get_close_matches(key, sections, n=1)
        if key == "name":
            hint = "a recipe is named by its file"
        elif homes:
            hint = f"{key!r} belongs into the section {homes[0].rpartition('.')[0]!r}"
        elif key in {"parameters", "search_space"}:
            hint = "what the search varies is the section 'space'"
        elif near:
            hint = f"did you mean {near[0]!r}?"
        else:
            hint = f"allowed are {', '.join([*sections, 'extends'])}"
        raise RecipeError(f"{file}: unknown section {key!r}; {hint}")


def _validated(layers: Layers, file: Path) -> Recipe:
    nested = layers.nested()
    space = nested.get("space")
    for name in space if isinstance(space, Mapping) else ():
        if f"space.{name}" not in KNOWN_KEYS:
            raise RecipeError(f"{file}: {unknown_key(f'space.{name}')}")
    dimensions = space.items() if isinstance(space, Mapping) else ()
    foreign = [written_here(name, value, layers.where(f"space.{name}")) for name, value in dimensions]
    if any(foreign):
        raise _wrong(file, filter(None, foreign))
    try:
        return Recipe.model_validate(nested)
    except ValidationError as error:
        raise _wrong(file, (_describe(detail, layers.sources) for detail in error.errors())) from error


def _wrong(file: Path, problems: Iterable[str]) -> RecipeError:
    return RecipeError(f"recipe {_recipe_name(file)!r}:\n" + "\n".join(f"  {each}" for each in dict.fromkeys(problems)))


def _describe(detail: Any, sources: Mapping[str, str]) -> str:
    # pydantic's location has the tag of the union's member, which is no key of the user's.
    loc = detail["loc"]
    tag_at = 2 if loc[:1] == ("space",) else None
    key = ".".join(str(part) for index, part in enumerate(loc) if index != tag_at)
    where = f" (from {sources[key]})" if key in sources else ""
    if detail["type"] == "extra_forbidden":
        return unknown_key(key) + where
    if detail["type"] == "missing":
        where = "in the recipe" if "." not in key else f"in the recipe or by --set {key}=..."
        return f"{key} is missing. Give it {where}"
    message: str = detail["msg"].removeprefix("Value error, ")
    if not key:
        return message
    return f"{key}={detail['input']!r}{where} is not allowed: {message}"
