"""Dimensions of the space in the syntax of other tools (W&B sweeps, Ray Tune, Optuna), and how they are written here.

Another tool's words are recognised, and refused with the line that says the same here. None is accepted, because each
tool has details of its own (a step, a base of the logarithm) that would get lost.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeGuard

import yaml

from trials.config import Hyperparameters

_LOW = ("min", "lower", "minimum", "lower_bound", "from", "low")
_HIGH = ("max", "upper", "maximum", "upper_bound", "to", "high")
_CHOICES = ("values", "categories", "options", "grid", "grid_search", "choices")
_KIND = ("distribution", "type", "method", "scale", "prior", "_type")
_FOREIGN = {*_LOW, *_HIGH, *_CHOICES, *_KIND, "value", "q", "step", "base", "mu", "sigma"} - {"low", "high", "choices"}
_CALL = re.compile(r"(?:\w+\.)*(?P<name>[a-z_]+)\((?P<arguments>.*)\)", re.IGNORECASE | re.DOTALL)
_EXAMPLES = "{low: 1e-5, high: 1e-3, log: true} or {choices: [8, 16, 32]}"


def written_here(name: str, value: Any, where: str = "") -> str | None:
    """Return an error if `value` of `space.<name>` isn't in our syntax, with the line that is; None: it is.

    Errors within our own syntax are left to the recipe's schema. `where` says what set the value, for the message.
    """
    if isinstance(value, Mapping) and _FOREIGN.isdisjoint(str(key).lower() for key in value):
        return None
    given = f"space.{name}={value!r}{where} is not allowed"
    line = _line(name, value)
    if line is None:
        return f"{given}: give what is varied as {_EXAMPLES}"
    if line.startswith(name):
        return f"{given}: write it as `{line}{'' if '`' in line else '`'}"
    return f"{given}: {line}"


def _line(name: str, value: Any) -> str | None:
    """Return one line of a recipe, beginning with `name`, or a sentence; None if the meaning is unknown."""
    if isinstance(value, list | tuple):
        return _choices(name, list(value))
    if isinstance(value, str) and (call := _CALL.fullmatch(value.strip())):
        return _of_call(name, call["name"].lower(), call["arguments"])
    if isinstance(value, Mapping):
        return _of_mapping(name, {str(key).lower(): each for key, each in value.items()})
    if isinstance(value, int | float | str) and name in Hyperparameters.model_fields:
        return _fixed(name, value)
    return None


def _of_mapping(name: str, value: Mapping[str, Any]) -> str | None:
    listed = next((value[key] for key in _CHOICES if isinstance(value.get(key), list)), None)
    if listed is not None:
        return _choices(name, listed)
    if "value" in value:
        return _fixed(name, value["value"])
    low, high = (next((value[key] for key in keys if key in value), None) for keys in (_LOW, _HIGH))
    if low is None or not (_is_number(low) and _is_number(high)):
        return None
    kind = " ".join(str(value[key]).lower() for key in _KIND if key in value)
    # W&B's log_uniform, unlike log_uniform_values, gives exponents of e.
    if re.search(r"log[-_]?uniform$", kind) and low < 0:
        return f"{_EXAMPLES} give the values themselves, not their logarithms"
    is_log = "log" in kind or value.get("log") is True
    return _range(name, low, high, is_log=is_log, has_steps="q" in value or "step" in value)


def _of_call(name: str, function: str, arguments: str) -> str | None:
    """Return the line for a call; None if the meaning is unknown.

    Calls are such as tune.loguniform(1e-5, 1e-3), trial.suggest_float("x", 1e-5, 1e-3, log=True) or
    hp.choice("x", [8, 16]).
    """
    brackets = re.search(r"\[.*\]", arguments, re.DOTALL)
    try:
        listed = yaml.safe_load(brackets[0]) if brackets else None
    except yaml.YAMLError:
        listed = None
    if isinstance(listed, list):
        return _choices(name, listed)
    numbers = [_number(part) for part in re.findall(r"(?<![\w.])[-+]?[\d.]+(?:e[-+]?\d+)?(?![\w.])", arguments, re.I)]
    if len(numbers) < 2:
        return None
    is_log = "log" in function or re.search(r"log\s*=\s*True", arguments) is not None
    return _range(
        name, numbers[0], numbers[1], is_log=is_log, has_steps=function.startswith("q") or "step" in arguments
    )


def _range(name: str, low: Any, high: Any, *, is_log: bool, has_steps: bool) -> str:
    line = f"{name}: {{low: {_text(low)}, high: {_text(high)}{', log: true' if is_log else ''}}}"
    return (
        f"{line}`, or with `choices` where only some values in between are meant: there are no steps"
        if has_steps
        else line
    )


def _choices(name: str, values: list[Any]) -> str:
    return f"{name}: {{choices: {_text(values)}}}"


def _fixed(name: str, value: Any) -> str:
    return f"a value that all trials have is no part of the space; set hyperparameters.{name} to {_text(value)}"


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(text: str) -> int | float:
    return int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)


def _text(value: Any) -> str:
    """Return a value as a recipe has it, in one line."""
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...").strip()
