"""What all rivals get: a recipe with one model, one set of rows and one machine; and the rows that judge them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from search_spaces.layers import command_line_settings
from search_spaces.loader import load_recipe
from search_spaces.schema import Recipe
from trials.config import DataSettings, Hyperparameters
from trials.data.dataset import load_data, load_split
from trials.data.split import Split
from trials.errors import DataError, RecipeError, RunFolderError
from trials.model.loading import check_base, check_targets, load_tokenizer, refuse_unknown_tokens
from trials.schedule import Epoch, full_tokens
from trials.system.files import make_folder, write_json

_GIVEN_OTHERWISE = {
    "model.name": "MODEL",
    "data.train": "TRAIN",
    "data.eval": "EVAL",
    "data.test": "TEST",
    "search.budget": "--budgets",
    "search.seed": "--seeds",
    "machine.gpu_memory_gib": "--gpu-memory-gib",
}
"""Keys that `--set` may not have here, and where their values are given instead."""


@dataclass(frozen=True)
class Contest:
    """Settings that hold for every rival. `requests` are those of `--set`."""

    recipe: str
    model: str
    train: str
    eval: str
    test: str
    requests: tuple[str, ...] = ()
    cpu: bool = False
    gpu_memory_gib: float | None = None
    """GPU memory that a rival may use in all; None: what each takes by itself, 94 % of the GPU's."""

    def settings(self, seed: int) -> list[str]:
        """Return the values of `--set` for a command of the product. No rival is told of the rows that judge it."""
        fixed: dict[str, Any] = {
            "model.name": self.model,
            "data.train": self.train,
            "data.eval": self.eval,
            "data.test": None,
            "search.seed": seed,
        }
        if self.gpu_memory_gib is not None:
            fixed["machine.gpu_memory_gib"] = self.gpu_memory_gib
        return [*as_settings(fixed), *self.requests]

    def resolved(self, seed: int) -> Recipe:
        """Return the recipe with all settings applied. Raises `RecipeError`."""
        for key, (_, source) in command_line_settings(self.requests).items():
            if key in _GIVEN_OTHERWISE:
                raise RecipeError(f"{source} {key}: all rivals must get the same. Give it by {_GIVEN_OTHERWISE[key]}.")
        return load_recipe(self.recipe, self.settings(seed)).recipe

    def judging(self, data: DataSettings) -> DataSettings:
        """Return the settings by which the judge reads its rows: all of them, in the recipe's format."""
        changes = {"train": self.test, "eval": self.test, "eval_rows": None}
        return data.model_copy(update=changes)


@dataclass(frozen=True)
class Checked:
    """A contest whose input was read and checked."""

    recipe: Recipe
    epoch: Epoch
    """The training rows."""
    full_tokens: int
    """Training tokens of the recipe as it is written."""
    test_rows: int


def as_settings(values: Mapping[str, Any]) -> list[str]:
    """Return values as `--set` takes them; JSON is YAML."""
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def usual_values(recipe: Recipe) -> dict[str, Any]:
    """Return the hyperparameters of the recipe's first starting point; empty if it has none."""
    return dict(next(iter(recipe.start.values()), {}))


def usual(recipe: Recipe) -> Hyperparameters:
    """Return the hyperparameters of the recipe as it is written: those of its first starting point, if it has one."""
    return recipe.hyperparameters_with(usual_values(recipe))


def checked(contest: Contest) -> Checked:
    """Read and tokenise all rows. Raises `InputError` for everything that can't be used, before anything runs."""
    recipe = contest.resolved(seed=0)
    if not recipe.space:
        raise RecipeError(f"recipe {recipe.name!r} has no space, so there is nothing to search. Give it one.")
    tokenizer = load_tokenizer(recipe.model)
    check_base(recipe.model)
    check_targets(recipe.model, recipe.all_targets())
    data = load_data(recipe.data, tokenizer)
    refuse_unknown_tokens(recipe.model, data, tokenizer)
    test = load_split(contest.judging(recipe.data), tokenizer)
    if len(test) < 2:
        raise DataError(f"{contest.test}: only one row can be used, and comparing adapters needs at least two.")
    refuse_seen(contest.test, test, {contest.train: data.train, contest.eval: data.eval})
    epoch = data.train.epoch
    return Checked(recipe, epoch, full_tokens(usual(recipe), epoch), len(test))


def refuse_seen(name: str, test: Split, seen: Mapping[str, Split]) -> None:
    """Raise `DataError` if a row that judges is also one that is trained on or selected by."""
    keys = list(_keys(test))
    for source, split in seen.items():
        known = set(_keys(split))
        shared = [example.id for example, key in zip(test.examples, keys, strict=True) if key in known]
        if shared:
            raise DataError(
                f"{len(shared)} of {len(test)} rows of {name} are also rows of {source} (first: "
                f"{', '.join(shared[:5])}). A rival that has seen them can't be judged by them: give others as TEST."
            )


def _keys(split: Split) -> Iterable[bytes]:
    """Return a hash of every row's conversation, whatever its id."""
    for example in split.examples:
        content = json.dumps([message.parts for message in example.messages])
        yield hashlib.sha256(content.encode()).digest()


def claim_folder(out: Path, contest: Contest) -> None:
    """Make the output folder, or check that it is of the same contest. Raises `RunFolderError` if it isn't."""
    file = out / "contest.json"
    now = {**asdict(contest), "requests": list(contest.requests)}
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        changed = sorted(key for key in now if before.get(key) != now[key])
        if changed:
            raise RunFolderError(f"{out} has results with another {', '.join(changed)}. Give another --out folder.")
        return
    if out.is_dir() and any(out.iterdir()):
        raise RunFolderError(f"{out} is not empty, and holds no head-to-head. Give a new or empty --out folder.")
    try:
        make_folder(out)
        write_json(file, now)
    except OSError as error:
        raise RunFolderError(f"can't write to {out}: {error.strerror}. Give another --out folder.") from error


def environment(contest: Contest, environ: Mapping[str, str], root: Path) -> dict[str, str]:
    """Return the environment of every command: no cluster, no W&B, and without GPUs if the CPU was asked for.

    Commands run in the user's folder, so that relative names mean the same to them.
    """
    found = {**environ, "RAY_ADDRESS": "local", "WANDB_MODE": "disabled", "PYTHONUNBUFFERED": "1"}
    found["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), environ.get("PYTHONPATH")]))
    # Ray's workers yield to all other work (nice 15), so on a busy machine the rivals without Ray would be ahead.
    found["RAY_worker_niceness"] = "0"
    if contest.cpu:
        found["CUDA_VISIBLE_DEVICES"] = ""
    return found
