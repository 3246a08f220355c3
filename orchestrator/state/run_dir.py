"""Run folder: all state of a search on disk, readable without Ray and without torch.

RUN/search.json    resolved recipe, deadline, versions, seeds, hardware
RUN/study.db       Optuna's storage
RUN/trials/<id>/   one folder per trial; 0000 is the base model
RUN/damaged/       trials that were unusable when the search was resumed (orchestrator.state.trial_folders)
RUN/export/        the verified winner
RUN/logs/          search.log, and output of trials' processes
RUN/trials.csv  report.html  samples.json  timing.json
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
"""Unicode categories of control characters, of bytes that are not UTF-8, and of line separators."""
_PACKAGES = ("ray", "optuna", "torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate")


@dataclass(frozen=True)
class Placement:
    """Number of workers, and of concurrent trials in all of them."""

    engines: int
    """Workers: processes, or groups of processes that train each trial together."""
    slots: int
    most_ranks: int = field(default=1, compare=False)
    """Workers that fit on every machine that has any: so many ranks could train one trial together."""

    @property
    def slots_per_engine(self) -> int:
        """Slots of the worker with most slots; there must be a worker."""
        return math.ceil(self.slots / self.engines)


@dataclass(frozen=True)
class Search:
    """Content of search.json: recipe, deadline, data, placement, and what was measured so far."""

    recipe: Recipe
    sources: Mapping[str, str]
    deadline: Deadline
    gpus_per_trial: int
    """GPUs of one trial; 0: it is trained on the CPU."""
    full_tokens: int
    """Unpadded tokens of the longest full trial in the space, with the length that trials have in this search."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Fingerprint of the tokenised rows, and for every split its `trials.data.split.Counts`."""
    shortened: float | None = None
    """Length of full trials as a share of the recipe's length, so that enough of them fit; None: not measured yet."""
    prediction: Mapping[str, Any] | None = None
    """`orchestrator.planning.forecast.SearchForecast` as JSON; None: the speed is not measured yet."""
    placement: Placement | None = None
    """Placement on the machines that Ray has; None: not known yet."""
    ranks: int = 1
    """Processes that train one trial together: one for each of its GPUs, or as many on the CPU without GPUs."""
    regrouped: Consolidation | None = None
    """Change near the end to all GPUs of a machine for one trial at a time; None: not changed."""
    opening_seconds: float | None = None
    """Seconds from dispatching the base model to the end of its evaluation, with loading; None: not measured yet."""
    base: ModelShape | None = None
    """Shape of the base model; None: its config was not read yet."""

    @property
    def shape(self) -> ModelShape:
        """Shape of the base model, read if not stored. Raises `ModelError` if its config can't be read."""
        return self.base or model_shape(self.recipe.model.name, self.recipe.model.revision)

    @property
    def rungs(self) -> list[int]:
        """Tokens seen at which trials are compared in the report and scored, ascending."""
        settings = self.recipe.search
        return rung_tokens(self.full_tokens, settings.reduction_factor, settings.rungs)

    @property
    def epoch(self) -> Epoch | None:
        """One pass over the training rows; None in a run folder of a version that didn't count rows."""
        train = self.data.get("train")
        return None if train is None else Epoch(train["rows"], train["tokens"])


class RunDir:
    """Paths and contents of one run folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def study_url(self) -> str:
        """SQLAlchemy URL of the study, for Optuna and optuna-dashboard.

        Reserved characters of the path are percent-encoded. Otherwise a `?` would end the file's name, and Optuna would
        take braces for placeholders.
        """
        from sqlalchemy.engine import URL  # inside, as it takes half a second and few callers need it

        return str(URL.create("sqlite", database=str(self.path / "study.db")))

    @property
    def export(self) -> Path:
        """Folder of the exported winner."""
        return self.path / "export"

    @property
    def logs(self) -> Path:
        """Folder of search.log and of the output of trials' processes.

        Each worker has a file, and each rank of a worker group.
        """
        return self.path / "logs"

    def trial(self, trial_id: str) -> Path:
        """Return the folder of one trial."""
        return self.path / "trials" / trial_id

    def write_search(self, search: Search) -> None:
        """Write search.json. Repeated whenever placement, length of trials or reserve become known."""
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
        """Read search.json. Raises `RunFolderError` if it is absent or can't be read."""
        return _search_of(read_search_file(self.path / "search.json"))

    def read_json(self, name: str) -> Any | None:
        """Return the content of a JSON file of the folder; None if it is absent.

        Raises `trials.system.damage.DamagedFile` if it can't be read.
        """
        return read_value(self.path / name)

    def records(self) -> list[TrialRecord]:
        """Return the usable trials on disk, ordered by id."""
        return list(self.read_trials().records)

    def read_trials(self) -> Trials:
        """Return the usable and the damaged trials on disk."""
        return read_trials(self.path / "trials")


def _placement_of(file: SearchFile) -> Placement | None:
    if file.engines is None:
        return None
    # Earlier versions wrote 0 engines for TRL, under which every trial had a process of its own.
    return Placement(file.engines or file.slots, file.slots, file.most_ranks)


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
        placement=_placement_of(file),
        ranks=file.ranks,
        regrouped=file.regrouped,
        opening_seconds=file.opening_seconds,
        base=file.base,
    )


def refuse_taken(path: Path) -> None:
    """Raise `RunFolderError` if the folder holds a search or anything else, or can't be made."""
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
    """Raise `RunFolderError` if a path has line breaks, other control characters, or bytes that are not UTF-8.

    The path is written to JSON files, to lines of logs and into commands for the user.
    """
    if any(unicodedata.category(character) in _UNPRINTABLE for character in str(path.absolute())):
        raise RunFolderError(
            f"{str(path)!r} has a line break or another character that can't be printed. Give another --out folder."
        )


def create_run_dir(path: Path) -> RunDir:
    """Create an empty run folder. Raises `RunFolderError` if it can't be made or isn't empty."""
    refuse_taken(path)
    try:
        make_folder(path / "trials")
        with tempfile.TemporaryFile(dir=path):  # with a unique name, to test that files can be written
            pass
    except OSError as error:
        raise RunFolderError(f"can't write to {path}: {error.strerror}. Give another --out folder.") from error
    return RunDir(path.absolute())


def open_run_dir(path: Path) -> RunDir:
    """Open an existing run folder. Raises `RunFolderError` if it holds no readable search."""
    folder = RunDir(path.absolute())
    folder.read_search()
    return folder


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that affect results; absent ones are left out."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Return architecture, cores, memory (GiB) and number of GPUs of this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "machine": platform.machine(),
        "cpu_cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "gpus": gpu_count(),
    }
