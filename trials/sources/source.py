"""Names of data sources: a local file, or a data set on the hub; either with a slice of rows."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from trials.errors import DataError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
FORMS = (
    "a file that ends in .jsonl, .json, .csv or .parquet, or a data set on the hub, such as owner/name:train; "
    "a slice of rows may follow, such as [:800]"
)
_SLICE = re.compile(r"^(?P<name>.*)\[(?P<start>\d*):(?P<stop>\d*)\]$")
_HUB = re.compile(
    r"^(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?(?:#(?P<config>[\w.-]+))?(?::(?P<split>[\w./-]+))?$"
)


@dataclass(frozen=True)
class DataSource:
    """A parsed source. Exactly one of `path` and `hub_name` is given; it means the rows from `start` up to `stop`."""

    path: Path | None = None
    hub_name: str | None = None
    revision: str | None = None
    config: str | None = None
    split: str = "train"
    start: int = 0
    stop: int | None = None

    @property
    def text(self) -> str:
        """The source as it's written in a recipe; `parse_source` reads it back."""
        name = str(self.path)
        if self.hub_name is not None:
            revision = f"@{self.revision}" if self.revision else ""
            name = f"{self.hub_name}{revision}{'#' + self.config if self.config else ''}:{self.split}"
        if self.start == 0 and self.stop is None:
            return name
        return f"{name}[{self.start or ''}:{'' if self.stop is None else self.stop}]"

    def at(self, revision: str) -> DataSource:
        """Return this data set at a fixed commit."""
        return replace(self, revision=revision)


def parse_source(text: str) -> DataSource:
    """Parse a path if the text looks like one or exists, else a name on the hub. Raises `DataError` if it's neither."""
    match = _SLICE.match(text)
    name, start, stop = text, 0, None
    if match is not None:
        name, start = match["name"], int(match["start"] or 0)
        stop = int(match["stop"]) if match["stop"] else None
        if stop is not None and stop <= start:
            raise DataError(f"data source {text!r}: the slice holds no rows. Give its end above its start.")
    if is_path(name):
        return DataSource(path=expanded(name), start=start, stop=stop)
    hub = _HUB.match(name)
    if hub is None:
        raise DataError(f"data source {text!r} is not understood. Give {FORMS}.")
    return DataSource(None, hub["name"], hub["revision"], hub["config"], hub["split"] or "train", start, stop)


def is_path(name: str) -> bool:
    """Return whether a source without its slice names a local file, existing or not."""
    looks_like_file = name.endswith(SUFFIXES) and ":" not in name
    return looks_like_file or name.startswith((".", "/", "~")) or Path(name).exists()


def expanded(name: str) -> Path:
    """Return a path with the home folder in place of its `~`; unchanged if there is no such home."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def with_home(text: str) -> str:
    """Expand the `~` of a path or an address from a command line: shells leave that of `--out=~/runs` as it is."""
    return str(expanded(text)) if text.startswith("~") else text


def with_path(text: str, path: Path) -> str:
    """Return the source with another path and its own slice."""
    match = _SLICE.match(text)
    return str(path) + (text[match.end("name") :] if match else "")


def bare_name(text: str) -> str:
    """Return the source without its slice."""
    match = _SLICE.match(text)
    return match["name"] if match else text
