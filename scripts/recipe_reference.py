"""Writes the reference of all recipe keys, and the JSON schema by which editors complete and check recipes.

    python -m scripts.recipe_reference

docs/recipe.md              every key, its default, what is allowed and what it means
docs/recipe.schema.json     JSON Schema, draft 2020-12

Both come from the pydantic models in `search_spaces.schema` and `trials.config`; a test fails if they are out of date.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from search_spaces.schema import Recipe
from trials.config import Hyperparameters

DOCS = Path(__file__).parent.parent / "docs"
REFERENCE, SCHEMA = "recipe.md", "recipe.schema.json"
_WHOLE = ("Range", "Choices")
"""Definitions whose required keys stay required, because a recipe replaces the extended recipe's as a whole."""
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_INTRODUCTION = f"""# Keys of a recipe

A recipe is a YAML file; those that ship are in `search_spaces/`. A key that a recipe leaves out has the value of the
recipe that it `extends`, or its default. On the command line any key is `--set section.key=value`, or `--set key=value`
where only one section has such a key; in the environment it is `ORCHESTRATOR__SECTION__KEY`.

By [`{SCHEMA}`]({SCHEMA}) editors complete and check recipes: for the YAML language server, the first line
of the recipe is `# yaml-language-server: $schema=PATH/{SCHEMA}`.

`python -m scripts.recipe_reference` writes both files.
"""
_EXTENDS = {"type": "string", "description": "name or path of a recipe whose keys are taken where this one has none"}
_LISTED = {
    "space": """What the search varies: names of hyperparameters, each with a range, both ends included
(`{low: 1e-5, high: 1e-2, log: true}`), or with choices (`{choices: [8, 16]}`). `null` removes an entry of the extended
recipe.""",
    "start": """Starting points, tried first: names of your own, each with the hyperparameters in which it differs from
the recipe's (`usual: {learning_rate: 2e-4}`). `null` removes one of the extended recipe.""",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Write both files; return the exit code."""
    arguments = argparse.ArgumentParser(prog="python -m scripts.recipe_reference", description="Write docs/recipe.*")
    arguments.add_argument("--to", type=Path, default=DOCS, help="folder (default: docs)")
    folder: Path = arguments.parse_args(argv).to
    for name, content in files().items():
        (folder / name).write_text(content, encoding="utf-8")
    return 0


def files() -> dict[str, str]:
    """Return the content of both files by their names."""
    return {REFERENCE: reference(), SCHEMA: json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"}


def schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe file, whose every key may come from the recipe that it extends."""
    made = Recipe.model_json_schema()
    definitions = {name: each if name in _WHOLE else _partial(each) for name, each in made["$defs"].items()}
    # A recipe's name is that of its file.
    keys = {name: each for name, each in made["properties"].items() if name != "name"}
    keys |= {"extends": _EXTENDS, "space": _space(), "start": _start()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Recipe of the QLoRA orchestrator",
        "type": "object",
        "additionalProperties": False,
        "properties": keys,
        "$defs": definitions,
    }


def reference() -> str:
    """Return the page: a table of every section."""
    found = schema()
    single = {name: key for name, key in found["properties"].items() if key.get("type") == "string"}
    lines = [_INTRODUCTION, "## At the top\n", *_table(single)]
    for name, key in found["properties"].items():
        if "$ref" in key:
            section = found["$defs"][key["$ref"].rpartition("/")[2]]
            lines += [f"\n## {name}\n", section["description"] + "\n", *_table(section["properties"])]
    for name, text in _LISTED.items():
        lines += [f"\n## {name}\n", text]
    return "\n".join(lines) + "\n"


def _partial(definition: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in definition.items() if key != "required"}


def _space() -> dict[str, Any]:
    entry = {"anyOf": [{"$ref": "#/$defs/Range"}, {"$ref": "#/$defs/Choices"}, {"type": "null"}]}
    return {
        "type": "object",
        "description": "what the search varies",
        "additionalProperties": False,
        "properties": dict.fromkeys(Hyperparameters.model_fields, entry),
    }


def _start() -> dict[str, Any]:
    point = {"anyOf": [{"$ref": "#/$defs/Hyperparameters"}, {"type": "null"}]}
    return {"type": "object", "description": "named starting points, tried first", "additionalProperties": point}


def _table(keys: Mapping[str, Any]) -> Iterator[str]:
    yield "| key | default | allowed | meaning |"
    yield "|---|---|---|---|"
    for name, key in keys.items():
        default = f"`{json.dumps(key['default'])}`" if "default" in key else ""
        yield f"| `{name}` | {default} | {_allowed(key)} | {key.get('description', '')} |"


def _allowed(key: Mapping[str, Any]) -> str:
    """Return the values that a key may have, in words."""
    if "anyOf" in key:
        return " or ".join(dict.fromkeys(_allowed(each) for each in key["anyOf"]))
    if "enum" in key:
        return ", ".join(f"`{value}`" for value in key["enum"])
    if key["type"] == "array":
        return f"list of {_allowed(key['items'])}"
    words = {"null": "`null`", "boolean": "`true`, `false`", "string": "text", "integer": "whole number"}
    bounds = [f"{sign} {key[name]:g}" for name, sign in _BOUNDS.items() if name in key]
    return " ".join([words.get(key["type"], "number"), ", ".join(bounds)]).strip()


if __name__ == "__main__":
    sys.exit(main())
