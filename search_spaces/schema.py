"""Schema of recipes: the settings of every trial, what the search varies, and how it searches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationError, ValidationInfo, field_validator, model_validator

from search_spaces.durations import parse_duration
from trials.config import (
    ALL_LINEAR,
    DataSettings,
    EvaluationSettings,
    Hyperparameters,
    Machine,
    ModelSettings,
    Settings,
    TrackingSettings,
    TrialConfig,
)
from trials.errors import RecipeError

Choice = bool | int | float | str | None | list[str]


class Range(Settings):
    """A hyperparameter between two values, both included."""

    low: float
    high: float
    log: bool = Field(default=False, description="sample the logarithm uniformly")

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"range upside down: low is {self.low:g} and high is {self.high:g}; swap them")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range needs low above 0, not {self.low:g}")
        return self


class Choices(Settings):
    """A hyperparameter that is one of several values."""

    choices: Annotated[tuple[Choice, ...], Field(strict=False, min_length=1)]


def _kind(value: Any) -> str:
    is_choices = isinstance(value, Choices) or (isinstance(value, Mapping) and "choices" in value)
    return "choices" if is_choices else "range"


Dimension = Annotated[
    Annotated[Range, Tag("range")] | Annotated[Choices, Tag("choices")],
    Discriminator(_kind),
]


SAMPLERS = ("freeze_thaw", "tpe", "gp", "cmaes", "random")


class SearchSettings(Settings):
    """How the search spends its time."""

    budget: str = Field(default="9h", description="wall clock from the start of the command to the exported adapter")
    reserve: str | None = Field(
        default=None, description="kept for last evaluations, verification, export and report; null: as measured"
    )
    full_trials: float | None = Field(
        default=6, gt=0, description="so many full trials must fit, else trials are shortened; null: never"
    )
    final_share: float = Field(
        default=0.5,
        ge=0.0,
        le=0.9,
        description="share of the time, at its end, in which the best configuration is trained anew until its loss has "
        "stopped falling; 0: none is",
    )
    trials: int | None = Field(default=None, ge=1, description="at most so many trained configurations")
    seed: int = Field(default=0, ge=0, description="of the sampler, and of every trial's training")
    sampler: str = Field(
        default="freeze_thaw",
        description="what proposes configurations: freeze_thaw, tpe, gp, cmaes, random, or module:Class of Optuna's "
        "sampler interface; auto: what was best in this version's benchmarks, freeze_thaw",
    )
    sampler_arguments: Mapping[str, Any] = Field(
        default={}, description="for Optuna's sampler, such as n_startup_trials"
    )
    scheduler: Literal["freeze_thaw", "asha", "asha_promote", "hyperband", "median", "none"] = Field(
        default="freeze_thaw", description="what decides which trial goes on, pauses, resumes or stops"
    )
    reduction_factor: int = Field(
        default=3, ge=2, description="comparison points are so many times apart in tokens; eta of asha and hyperband"
    )
    rungs: int = Field(
        default=2,
        ge=0,
        description="comparison points: the report compares trials there, answers are scored; no decision uses them",
    )
    concurrent_trials: int | None = Field(
        default=None, ge=1, description="on all machines together; null: enough to fill the engines"
    )
    keep_adapters: int = Field(default=3, ge=1, description="of ended trials, the best; disk is bounded by it")
    keep_paused: int = Field(
        default=30, ge=1, description="paused trials that can go on, the most promising; their checkpoints take room"
    )
    regroup: bool | None = Field(
        default=None,
        description="train the most promising trial on all GPUs of a machine when one is too slow to complete it in "
        "time, and they aren't, if final_share is 0; null: where trials have a GPU each; true: on the CPU as well",
    )
    samples: int = Field(default=3, ge=0, description="generations of base and winner in the report")
    dashboard: bool = Field(default=True, description="start Ray's dashboard")
    gpu_watts: float = Field(default=450.0, gt=0, description="drawn by one GPU at work, for the energy in the plan")
    price_per_gpu_hour: float | None = Field(
        default=None, ge=0, description="in a currency of your choice, for the cost in the plan; null: no cost"
    )

    @field_validator("sampler", mode="after")
    @classmethod
    def _is_sampler(cls, value: str) -> str:
        if value == "auto":
            return SAMPLERS[0]
        module, colon, member = value.partition(":")
        if value not in SAMPLERS and not (colon and member.isidentifier() and module.replace(".", "").isidentifier()):
            raise ValueError(f"{value!r} is no sampler; allowed: {', '.join(SAMPLERS)}, auto, or module:Class")
        return value

    @model_validator(mode="after")
    def _arguments_have_a_sampler(self) -> SearchSettings:
        if self.sampler_arguments and self.sampler == SAMPLERS[0]:
            raise ValueError("search.sampler_arguments are for Optuna's samplers; freeze_thaw takes none: remove them")
        return self

    @field_validator("budget", "reserve", mode="before")
    @classmethod
    def _is_duration(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and info.field_name == "reserve":
            return value
        # Before the type is checked: a number without a unit deserves the same advice as any other non-duration.
        try:
            parse_duration(str(value))
        except RecipeError as error:
            raise ValueError(str(error)) from error
        return value


class Recipe(Settings):
    """A whole recipe, resolved and validated."""

    name: str
    description: str = Field(default="", description="a sentence, which the plan begins with")
    model: ModelSettings
    data: DataSettings
    hyperparameters: Hyperparameters
    evaluation: EvaluationSettings = EvaluationSettings()
    machine: Machine = Machine()
    tracking: TrackingSettings = TrackingSettings()
    search: SearchSettings = SearchSettings()
    start: Mapping[str, Mapping[str, Any]] = Field(default={}, description="named starting points, tried first")
    space: Mapping[str, Dimension] = Field(default={}, description="what the search varies")

    @field_validator("start", mode="after")
    @classmethod
    def _lists_in_start(cls, start: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
        return {name: _with_list(values) for name, values in start.items()}

    @field_validator("space", mode="after")
    @classmethod
    def _lists_in_space(cls, space: Mapping[str, Dimension]) -> Mapping[str, Dimension]:
        targets = space.get("target_modules")
        if not isinstance(targets, Choices):
            return space
        choices = tuple([ALL_LINEAR] if choice == ALL_LINEAR else choice for choice in targets.choices)
        return {**space, "target_modules": Choices(choices=choices)}

    @model_validator(mode="after")
    def _values_are_allowed(self) -> Recipe:
        for name, dimension in self.space.items():
            for value in _extremes(dimension, is_integer(name)):
                self._check({name: value}, f"space.{name}")
        for name, values in self.start.items():
            self._check(values, f"start.{name}")
            for key, dimension in self.space.items():
                value = self.start_values(name)[key]
                if not _holds(dimension, value):
                    raise ValueError(f"start.{name}: {key}={value!r} lies outside space.{key}; widen the space")
        return self

    @model_validator(mode="after")
    def _answers_can_be_scored(self) -> Recipe:
        if self.evaluation.score_rows is not None and self.data.format == "text":
            raise ValueError(
                f"evaluation.score_rows={self.evaluation.score_rows} is not allowed for data.format 'text': nothing is "
                "asked there that could be answered; set it to null"
            )
        return self

    def all_targets(self) -> set[str]:
        """Return every target module that a trial of this recipe may have."""
        found = set(self.hyperparameters.target_modules)
        dimension = self.space.get("target_modules")
        chosen: list[Any] = list(dimension.choices) if isinstance(dimension, Choices) else []
        chosen += [values["target_modules"] for values in self.start.values() if "target_modules" in values]
        return found.union(*chosen)

    def with_targets(self, name_targets: Callable[[Collection[str]], tuple[str, ...]]) -> Recipe:
        """Return the recipe with every list of target modules replaced by what the function returns for it."""

        def named(values: Mapping[str, Any]) -> dict[str, Any]:
            own = values.get("target_modules")
            return {**values, **({} if own is None else {"target_modules": list(name_targets(own))})}

        space, dimension = dict(self.space), self.space.get("target_modules")
        if isinstance(dimension, Choices):
            chosen = dict.fromkeys(name_targets(choice) for choice in dimension.choices if isinstance(choice, list))
            space["target_modules"] = Choices(choices=tuple(map(list, chosen)))
        targets = {"target_modules": name_targets(self.hyperparameters.target_modules)}
        update = {
            "hyperparameters": self.hyperparameters.model_copy(update=targets),
            "start": {name: named(values) for name, values in self.start.items()},
            "space": space,
        }
        return self.model_copy(update=update)

    def start_values(self, name: str) -> dict[str, Any]:
        """Return the hyperparameters of a starting point that it sets itself or that the search varies."""
        recipe_values = self.hyperparameters.model_dump()
        return {**{key: recipe_values[key] for key in self.space}, **self.start[name]}

    def _check(self, values: Mapping[str, Any], where: str) -> None:
        try:
            self.hyperparameters_with(values)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            if first["type"] == "extra_forbidden":
                known = ", ".join(Hyperparameters.model_fields)
                raise ValueError(f"{where}: unknown hyperparameter {key!r}; known are {known}") from error
            message = first["msg"].removeprefix("Value error, ")
            if not key:
                raise ValueError(f"{where}: {message}") from error
            raise ValueError(f"{where}: {key}={first['input']!r} is not allowed: {message}") from error

    def hyperparameters_with(self, values: Mapping[str, Any]) -> Hyperparameters:
        """Return the hyperparameters with some replaced. Raises pydantic's ValidationError if one isn't allowed."""
        return Hyperparameters.model_validate({**self.hyperparameters.model_dump(), **values})

    def trial_config(self, values: Mapping[str, Any]) -> TrialConfig:
        """Return the configuration of the trial that has these hyperparameters in place of the recipe's."""
        return TrialConfig(
            model=self.model,
            data=self.data,
            hyperparameters=self.hyperparameters_with(values),
            evaluation=self.evaluation,
            machine=self.machine,
            tracking=self.tracking,
            seed=self.search.seed,
        )


def _with_list(values: Mapping[str, Any]) -> Mapping[str, Any]:
    is_word = values.get("target_modules") == ALL_LINEAR
    return {**values, "target_modules": [ALL_LINEAR]} if is_word else values


def is_integer(name: str) -> bool:
    """Return whether a hyperparameter takes whole numbers only."""
    return Hyperparameters.model_fields[name].annotation in (int, int | None)


def _holds(dimension: Dimension, value: Any) -> bool:
    if isinstance(dimension, Choices):
        return value in dimension.choices or (isinstance(value, tuple) and list(value) in dimension.choices)
    return value is not None and dimension.low <= value <= dimension.high


def _extremes(dimension: Dimension, integer: bool) -> list[Any]:
    if isinstance(dimension, Choices):
        return list(dimension.choices)
    ends = [dimension.low, dimension.high]
    return [int(end) if integer and end == int(end) else end for end in ends]
