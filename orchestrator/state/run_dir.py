"""The run folder: everything that a search knows, readable without Ray and without torch.

RUN/search.json    resolved recipe, deadline, versions, seeds, hardware
RUN/study.db       Optuna's storage
RUN/trials/<id>/   one folder a trial; 0000 is the base model
RUN/damaged/       trials that could not be used when the search was resumed (orchestrator.state.trial_folders)
RUN/export/        the verified winner
RUN/trials.csv  report.html  samples.json
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import shlex
import tempfile
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.state.deadline import Deadline
from orchestrator.state.regrouped import Consolidation
from orchestrator.state.rungs import rung_tokens
from orchestrator.state.search_file import FORMAT, SearchFile, read_search_file
from orchestrator.state.trial_folders import BASE_ID, Trials, read_trials
from search_spaces.schema import Recipe
from trials.errors import RunFolderError
from trials.model.architecture import ModelShape, model_shape
from trials.records.trial_dir import TrialRecord
from trials.schedule import Epoch
from trials.system.damage import read_value
from trials.system.disk_full import refuse_unmakeable
from trials.system.files import make_folder, write_json
from trials.system.gpus import gpu_count

BASE_TRIAL_ID = BASE_ID
_UNPRINTABLE = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode's categories of control characters, of bytes that are no UTF-8, and of separators of lines."""
_PACKAGES = ("ray", "optuna", "torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate")


@dataclass(frozen=True)
class Placement:
    """Engines, and trials at once in all of them together. No engines: every trial has a process of its own."""

    engines: int
    slots: int
    most_ranks: int = field(default=1, compare=False)
    """Engines on each machine that has any, at least: so many GPUs could train one trial together."""

    @property
    def slots_per_engine(self) -> int:
        """Of the fullest engine; there must be one."""
        return math.ceil(self.slots / self.engines)


@dataclass(frozen=True)
class Search:
    """What search.json says: what is searched, until when, on what."""

    recipe: Recipe
    sources: Mapping[str, str]
    deadline: Deadline
    gpus_per_trial: int
    """GPUs that one trial has; 0: it's trained on the CPU."""
    full_tokens: int
    """Unpadded tokens of the longest full trial in the space, as long as trials are in this search."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Fingerprint of the tokenised rows, and what became of every split's rows."""
    shortened: float | None = None
    """What full trials are of the recipe's length, so that enough of them fit; None: not measured yet."""
    prediction: Mapping[str, Any] | None = None
    """What the search was predicted to bring, by `planning.forecast.SearchForecast`, once its speed was measured."""
    placement: Placement | None = None
    """Where trials run, once Ray has said it."""
    ranks: int = 1
    """Processes that train one trial together: one for each of its GPUs, also where the CPU stands in for them."""
    regrouped: Consolidation | None = None
    """Near the end all GPUs of a machine may train one trial after the other; None: not so far, or never."""
    opening_seconds: float | None = None
    """From handing out the base model to its evaluation, its loading included; None: not measured yet."""
    base: ModelShape | None = None
    """Of the base model; None: nobody has read its config yet."""

    @property
    def shape(self) -> ModelShape:
        """Of the base model. Raises `ModelError` if its config can't be read."""
        return self.base or model_shape(self.recipe.model.name, self.recipe.model.revision)

    @property
    def rungs(self) -> list[int]:
        """Tokens seen at which all trials are compared in the report, and scored, ascending."""
        settings = self.recipe.search
        return rung_tokens(self.full_tokens, settings.reduction_factor, settings.rungs)

    @property
    def epoch(self) -> Epoch | None:
        """One pass over the training rows; None in a run folder from before rows were counted."""
        train = self.data.get("train")
        return None if train is None else Epoch(train["rows"], train["tokens"])


class RunDir:
    """Paths and contents of one run folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def study_url(self) -> str:
        """SQLAlchemy's URL of the study, which Optuna and optuna-dashboard open.

        What a URL reserves is percent-encoded in it: a `?` in the path would else end the file's name, and Optuna takes
        braces for placeholders.
        """
        from sqlalchemy.engine import URL  # half a second, and few need it

        return str(URL.create("sqlite", database=str(self.path / "study.db")))

    @property
    def export(self) -> Path:
        """Where the verified winner goes."""
        return self.path / "export"

    @property
    def logs(self) -> Path:
        """Where the output of trials' processes goes: a file per engine, or per trial that has a process of its own."""
        return self.path / "logs"

    def trial(self, trial_id: str) -> Path:
        """The folder of one trial."""
        return self.path / "trials" / trial_id

    def write_search(self, search: Search) -> None:
        """Writes search.json; again whenever more is known: where trials run, how long they are, what is reserved."""
        deadline = search.deadline
        content = {
            "format": FORMAT,
            "recipe": search.recipe.model_dump(mode="json"),
            "sources": dict(search.sources),
            "started": deadline.started.isoformat(),
            "deadline": deadline.ends.isoformat(),
            "is_time_of_day": deadline.is_time_of_day,
            "reserve_seconds": deadline.reserve_seconds,
            "gpus_per_trial": search.gpus_per_trial,
            "ranks": search.ranks,
            "regrouped": search.regrouped and asdict(search.regrouped),
            "opening_seconds": search.opening_seconds,
            "full_tokens": search.full_tokens,
            "base": search.base and asdict(search.base),
            "rungs": search.rungs,
            "data": dict(search.data),
            "shortened": search.shortened,
            "prediction": search.prediction,
            "seed": search.recipe.search.seed,
            "versions": versions(),
            "hardware": hardware(),
        }
        if search.placement is not None:
            content.update(asdict(search.placement))
        write_json(self.path / "search.json", content)

    def read_search(self) -> Search:
        """Reads search.json. Raises `RunFolderError` if there is none or it can't be read."""
        return _search_of(read_search_file(self.path / "search.json"))

    def read_json(self, name: str) -> Any | None:
        """A JSON file of the folder; None if it isn't there. Raises `DamagedFile` if it can't be read."""
        return read_value(self.path / name)

    def records(self) -> list[TrialRecord]:
        """All trials on disk that can be used, by id."""
        return list(self.read_trials().records)

    def read_trials(self) -> Trials:
        """All trials on disk, and those among them that are damaged."""
        return read_trials(self.path / "trials")


def _search_of(file: SearchFile) -> Search:
    return Search(
        file.recipe,
        file.sources,
        Deadline(file.started, file.deadline, file.reserve_seconds, file.is_time_of_day),
        file.gpus_per_trial,
        file.full_tokens,
        data=file.data,
        shortened=file.shortened,
        prediction=file.prediction,
        placement=None if file.engines is None else Placement(file.engines, file.slots, file.most_ranks),
        ranks=file.ranks,
        regrouped=file.regrouped,
        opening_seconds=file.opening_seconds,
        base=file.base,
    )


def refuse_taken(path: Path) -> None:
    """Raises `RunFolderError` if the folder holds a search, or anything else, or can't be made."""
    refuse_unprintable(path)
    refuse_unmakeable(path, "--out")
    if (path / "search.json").exists():
        raise RunFolderError(
            f"{path} holds another search. Go on with it by --resume {shlex.quote(str(path))}, or give another --out "
            "folder."
        )
    if path.is_dir() and any(path.iterdir()):
        raise RunFolderError(f"{path} is not empty. Give a new or empty --out folder.")


def refuse_unprintable(path: Path) -> None:
    """Raises `RunFolderError` if a path can't be written down: line breaks, and bytes that are no UTF-8.

    It stands in JSON files, in lines of logs and in commands that are to be typed.
    """
    if any(unicodedata.category(character) in _UNPRINTABLE for character in str(path.absolute())):
        raise RunFolderError(
            f"{str(path)!r} has a line break or another character that can't be printed. Give another --out folder."
        )


def create_run_dir(path: Path) -> RunDir:
    """A new, empty run folder. Raises `RunFolderError` if it can't be made or something is in it."""
    refuse_taken(path)
    try:
        make_folder(path / "trials")
        with tempfile.TemporaryFile(dir=path):  # a name that nobody else has
            pass
    except OSError as error:
        raise RunFolderError(f"can't write to {path}: {error.strerror}. Give another --out folder.") from error
    return RunDir(path.absolute())


def open_run_dir(path: Path) -> RunDir:
    """An existing run folder. Raises `RunFolderError` if it holds no search."""
    folder = RunDir(path.absolute())
    folder.read_search()
    return folder


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that shape a result; absent ones are left out."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Cores, memory (GiB) and GPUs of this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "machine": platform.machine(),
        "cpu_cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "gpus": gpu_count(),
    }
