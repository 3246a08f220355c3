"""Commits of names on the Hugging Face hub, fixed once, so that all of a search sees one content."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trials.errors import DataError, InputError, ModelError

if TYPE_CHECKING:
    from datasets import Dataset
    from huggingface_hub import HfApi

logger = logging.getLogger(__name__)

Kind = Literal["dataset", "model"]
MAIN = "main"
TIMEOUT_SECONDS = 30.0
COMMIT = re.compile(r"[0-9a-f]{40}")
"""Name of a commit, which is fixed; a branch or a tag may move."""
_ERRORS: dict[Kind, type[InputError]] = {"dataset": DataError, "model": ModelError}
_NOUNS: dict[Kind, str] = {"dataset": "data set", "model": "model"}


def pin_dataset(name: str, revision: str | None = None) -> str | None:
    """Return the commit of a data set that a branch, tag or commit means now; `revision` None means the main branch.

    Offline (HF_HUB_OFFLINE=1) it is the commit in the local cache; None, with a warning, if the cache has none. Raises
    `DataError` if the data set doesn't exist, may not be read, or the hub can't be reached.
    """
    return _pin("dataset", name, revision)


def pin_model(name: str, revision: str | None = None) -> str | None:
    """Return the commit of a model, as `pin_dataset` does. Raises `ModelError`."""
    return _pin("model", name, revision)


def refuse_other_commit(rows: Dataset, name: str, commit: str | None) -> None:
    """Raise `DataError` if rows that were loaded offline aren't of this commit, named by all of its 40 digits.

    Offline, `load_dataset` ignores its revision: it returns what was prepared last (datasets 5.2).
    """
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if not HF_HUB_OFFLINE or commit is None or not COMMIT.fullmatch(commit):
        return
    if not all(commit in Path(file["filename"]).parts for file in rows.cache_files):
        raise DataError(
            f"offline, and the cache has another commit of the data set {name!r} than {commit}. "
            "Load it once with network, or give the revision that the cache has."
        )


def _pin(kind: Kind, name: str, revision: str | None) -> str | None:
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return _cached_commit(kind, name, revision)
    api = HfApi()
    try:
        return _commit(api, kind, name, revision)
    except Exception as error:  # the hub's client raises whatever its HTTP library does
        raise _ERRORS[kind](f"{_reason(error, kind, name, revision, api.endpoint)}.") from error


def _commit(api: HfApi, kind: Kind, name: str, revision: str | None) -> str:
    info = api.repo_info(name, repo_type=kind, revision=revision, timeout=TIMEOUT_SECONDS)
    if getattr(info, "gated", False):
        # A gated repository shows its commits also without access to its files: better to fail now than at the load.
        api.auth_check(name, repo_type=kind)
    if info.sha is None:
        raise ValueError("it names no commit")
    return info.sha


def _reason(error: Exception, kind: Kind, name: str, revision: str | None, endpoint: str) -> str:
    from huggingface_hub import errors

    what = f"the {_NOUNS[kind]} {name!r}"
    page = f"{endpoint}/{'datasets/' if kind == 'dataset' else ''}{name}"
    if isinstance(error, errors.GatedRepoError):
        return f"{what} is gated. Accept its licence on {page}, and set HF_TOKEN to a token of that account"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{what} has no revision {revision!r}. Give a branch, tag or commit that {page} lists"
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return f"there is no {_NOUNS[kind]} {name!r} on {endpoint}, or it's private. Check the name, or set HF_TOKEN"
    said = " ".join(str(error).split())[:200].rstrip(".")
    if isinstance(error, errors.HfHubHTTPError):
        return f"{endpoint} didn't answer for {what} ({said}). Try again later"
    return (
        f"{endpoint} can't be reached for {what} ({type(error).__name__}: {said}). Check the network; "
        "with HF_HUB_OFFLINE=1, what was downloaded before is used"
    )


def _cached_commit(kind: Kind, name: str, revision: str | None) -> str | None:
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind)
    ref = folder / "refs" / (revision or MAIN)
    if ref.is_file():
        return ref.read_text(encoding="utf-8").strip()
    # A download by commit leaves no ref.
    snapshots = sorted(folder.glob("snapshots/*"), key=lambda path: path.stat().st_mtime)
    found = [path.name for path in snapshots if revision in (None, path.name)]
    if found:
        return found[-1]
    logger.warning(
        "offline, and %s isn't in the cache %s: the run folder can't say which commit it is", name, HF_HUB_CACHE
    )
    return None
