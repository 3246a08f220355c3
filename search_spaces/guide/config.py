"""The CoT-NLI guide's Python config files as a layer of settings, between recipe and environment.

Unlike in the guide, no value of a file is overwritten by a default of the command line (a False stays False). An
unknown name is an error. So is a file that fails to load, unless the user asks for the guide's default.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search_spaces.guide.files import BUILT_IN, run_config_file
from search_spaces.guide.names import GUIDE_DEFAULT, NAMES, idle_names, nearest_name, problem_with, translate
from search_spaces.layers import SET, full_key, parse_assignment
from trials.errors import RecipeError

DEFAULT_CONFIG = "default"
"""Name given in place of a file, for the guide's default alone."""

logger = logging.getLogger(__name__)

Settings = dict[str, tuple[Any, str]]
"""Dotted keys to values and sources."""


@dataclass(frozen=True)
class GuideConfig:
    """Values under the guide's names, and where each came from: a config file, the guide's default, or --set."""

    values: Mapping[str, Any]
    sources: Mapping[str, str]
    helpers: tuple[str, ...] = ()

    def overridden(self, assignments: Sequence[str]) -> tuple[GuideConfig, list[str]]:
        """Return this config with the --set arguments that use the guide's names applied, and the other arguments.

        Raises `RecipeError` for names and values that aren't allowed, all in one message.
        """
        values, sources, others = dict(self.values), dict(self.sources), []
        for assignment in assignments:
            key, value = parse_assignment(assignment)
            if key in NAMES:
                values[key], sources[key] = value, SET
            else:
                _refuse_nearly_a_name(key)
                others.append(assignment)
        found = {name: problem_with(name, value) for name, value in values.items()}
        problems = [f"{sources[name]}: {problem}" for name, problem in found.items() if problem]
        if problems:
            raise RecipeError("\n  ".join([*(["the config file:"] if problems[1:] else []), *problems]))
        return GuideConfig(values, sources, self.helpers), others

    def settings(self, *, of_command_line: bool) -> Settings:
        """Return recipe settings: those that a --set has a part in, or those that it hasn't."""
        return {
            key: (value, ", ".join(dict.fromkeys(self._source(name) for name in names)))
            for key, (value, names) in translate(self.values).items()
            if any(self._source(name) == SET for name in names) is of_command_line
        }

    def _source(self, name: str) -> str:
        return self.sources.get(name, BUILT_IN)

    @property
    def output_dir(self) -> Path | None:
        """Folder of the trial, unless the command line gives one; None if it isn't set."""
        return Path(self.values["output_dir"]) if "output_dir" in self.values else None

    def gpu(self, environ: Mapping[str, str]) -> str | None:
        """Return the value that CUDA_VISIBLE_DEVICES has to have; None: it stays as it is.

        The environment takes precedence over a config file, and --set over both.
        """
        if "gpu_id" not in self.values or ("CUDA_VISIBLE_DEVICES" in environ and self.sources["gpu_id"] != SET):
            return None
        return str(self.values["gpu_id"])

    def log_unused(self) -> None:
        """Log one line on names without effect, and one on names that were taken for helpers."""
        idle = idle_names(self.values)
        if idle:
            logger.info("config file: without effect here: %s", ", ".join(idle))
        if self.helpers:
            logger.info("config file: read again in it, so not taken for settings: %s", ", ".join(self.helpers))


def read_guide_config(name_or_path: str, *, fallback: bool = False) -> GuideConfig:
    """Return a config file's values, or the guide's default.

    Raises `RecipeError` if the file fails to load; with `fallback` that's a warning, and the guide's default is used.
    """
    default = GuideConfig(GUIDE_DEFAULT, dict.fromkeys(GUIDE_DEFAULT, BUILT_IN))
    if name_or_path == DEFAULT_CONFIG:
        return default
    try:
        found = run_config_file(Path(name_or_path), GUIDE_DEFAULT, NAMES)
    except RecipeError as error:
        if not fallback:
            advice = "Mend it, or start from the guide's default with --fallback-to-default."
            raise RecipeError(f"{error} {advice}") from error
        logger.warning("warning: %s The guide's default is used.", error)
        return default
    return GuideConfig(found.values, found.sources, found.helpers)


def _refuse_nearly_a_name(key: str) -> None:
    """Raise `RecipeError` for a misspelt name of the guide; other unknown names are refused elsewhere."""
    near = nearest_name(key, cutoff=0.8)
    if near is None:
        return
    try:
        full_key(key, SET)
    except RecipeError:
        raise RecipeError(f"{SET}: unknown key {key!r}; the nearest known one is {near!r}.") from None
