"""The table of damage: what can happen to a run folder, and the least that each may cost.

Every kind is done to a copy of the golden run folder, in which trial 0002 is the best and open (it has a checkpoint),
0001 is the second best and the starting point, 0003 has ended as well, and 0000 is the base model.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BEST, SECOND, THIRD, BASE = "0002", "0001", "0003", "0000"


@dataclass(frozen=True)
class Kind:
    """One kind of damage, and what it may cost."""

    name: str
    do: Callable[[Path], object]
    says: str = ""
    """A part of the sentence that report, plan and check have about it; empty: it's no damage to speak of."""
    without: tuple[str, ...] = ()
    """Trials that are left out by report, export and plan."""
    set_aside: tuple[str, ...] | None = None
    """Trials that a resumed search sets aside; None: those that are left out."""
    winner: str | None = BEST
    """The trial that is exported; None: nothing is."""


def _write(name: str, content: str | bytes) -> Callable[[Path], object]:
    raw = content if isinstance(content, bytes) else content.encode()
    return lambda run: (run / name).write_bytes(raw)


def _cut(name: str, by: int = 30) -> Callable[[Path], object]:
    return lambda run: (run / name).write_bytes((run / name).read_bytes()[:-by])


def _change(file: str, **changes: Any) -> Callable[[Path], object]:
    return lambda run: (run / file).write_text(json.dumps({**json.loads((run / file).read_text()), **changes}))


def _line(file: str, **changes: Any) -> Callable[[Path], object]:
    """Changes the first line of a JSON Lines file; None takes a field away."""

    def change(run: Path) -> None:
        first, *others = (run / file).read_text().splitlines()
        line = {key: value for key, value in {**json.loads(first), **changes}.items() if value is not None}
        (run / file).write_text("\n".join([json.dumps(line), *others]) + "\n")

    return change


def _append(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda run: (run / name).write_bytes((run / name).read_bytes() + content)


def _folder(name: str) -> Callable[[Path], object]:
    """A folder in the place of a file."""

    def replace(run: Path) -> None:
        (run / name).unlink(missing_ok=True)
        (run / name / "inside").mkdir(parents=True)

    return replace


def _pipe(name: str) -> Callable[[Path], object]:
    """A pipe in the place of a file: whoever reads it waits for ever."""

    def replace(run: Path) -> None:
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)

    return replace


def _loop(name: str) -> Callable[[Path], object]:
    """A link to itself in the place of a file."""

    def replace(run: Path) -> None:
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(run / name)

    return replace


def _sparse(name: str) -> Callable[[Path], object]:
    return lambda run: os.truncate(run / name, 3 * 2**30)


def _remove(name: str) -> Callable[[Path], object]:
    return lambda run: shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()


def _copy(name: str, to: str) -> Callable[[Path], object]:
    return lambda run: shutil.copytree(run / name, run / to)


def _link(name: str, to: str) -> Callable[[Path], object]:
    return lambda run: (run / name).symlink_to(run / to)


_T2, _T3, _T0 = "trials/0002/", "trials/0003/", "trials/0000/"
_POINT = '{"step": 9, "tokens_seen": 9'

TABLE = (
    # config.json: without it a trial is nothing
    Kind("empty config", _write(_T3 + "config.json", ""), "config.json can't be read: it is empty", (THIRD,)),
    Kind("cut config", _cut(_T3 + "config.json"), "config.json can't be read: it is no JSON", (THIRD,)),
    Kind("config of the best", _cut(_T2 + "config.json"), "0002", (BEST,), winner=SECOND),
    Kind("config is a list", _write(_T3 + "config.json", "[]"), "config.json can't be read", (THIRD,)),
    Kind("config of another origin", _change(_T3 + "config.json", origin="moon"), "origin", (THIRD,)),
    Kind("config says base", _change(_T3 + "config.json", origin="base"), "of another trial", (THIRD,)),
    Kind("name is no text", _change(_T3 + "config.json", name=3), "name", (THIRD,)),
    Kind("config has half a letter", _change(_T3 + "config.json", name="\ud83d"), "no JSON", (THIRD,)),
    Kind("config is not UTF-8", _write(_T3 + "config.json", b"\xff\xfe{"), "no JSON", (THIRD,)),
    Kind("config nested without end", _write(_T3 + "config.json", "[" * 10**5), "recursion", (THIRD,)),
    Kind("config is a folder", _folder(_T3 + "config.json"), "a folder is in its place", (THIRD,)),
    Kind("config is a pipe", _pipe(_T3 + "config.json"), "a pipe or a device", (THIRD,)),
    Kind("config is a link to itself", _loop(_T3 + "config.json"), "symbolic links", (THIRD,)),
    Kind("config is huge", _sparse(_T3 + "config.json"), "bytes", (THIRD,)),
    Kind("config is gone", _remove(_T3 + "config.json"), "there is no config.json", (THIRD,)),
    Kind("base's config is cut", _cut(_T0 + "config.json"), "0000", (BASE,), winner=None),
    # metrics.jsonl: a line costs an evaluation, and what the best adapter was worth is in its point.json too
    Kind("metrics cut in the last line", _cut(_T3 + "metrics.jsonl")),
    Kind("metrics line lacks fields", _line(_T3 + "metrics.jsonl", eval_loss=None), "eval_loss: Field required"),
    Kind("metrics line with text", _line(_T3 + "metrics.jsonl", tokens_seen="many"), "valid integer"),
    Kind("metrics with a negative", _line(_T3 + "metrics.jsonl", tokens_seen=-5), "tokens_seen is -5"),
    Kind("metrics with a huge number", _line(_T3 + "metrics.jsonl", step=10**30), "step is 1e+30"),
    Kind("metrics with NaN", _append(_T3 + "metrics.jsonl", (_POINT + ', "eval_loss": NaN}\n').encode()), "no JSON"),
    Kind(
        "metrics with 1e999", _append(_T3 + "metrics.jsonl", (_POINT + ', "eval_loss": 1e999}\n').encode()), "infinite"
    ),
    Kind("metrics with bytes", _append(_T3 + "metrics.jsonl", b"\xff\x00\n"), "no JSON"),
    Kind("metrics is a folder", _folder(_T3 + "metrics.jsonl"), "a folder is in its place"),
    Kind("metrics of the best is empty", _write(_T2 + "metrics.jsonl", "")),
    Kind("metrics of the base is a pipe", _pipe(_T0 + "metrics.jsonl"), "a pipe or a device", winner=None),
    Kind(
        "metrics has a line twice",
        lambda run: _append(_T3 + "metrics.jsonl", (run / _T3 / "metrics.jsonl").read_bytes())(run),
        "one step twice",
    ),
    # ending.json: a trial that has ended goes on having ended
    Kind(
        "empty ending", _write(_T3 + "ending.json", ""), "ending.json can't be read: it is empty; it counts as pruned"
    ),
    Kind("ending unknown", _write(_T3 + "ending.json", '{"kind": "won", "reason": ""}'), "counts as pruned"),
    Kind("ending is a folder", _folder(_T3 + "ending.json"), "counts as pruned"),
    Kind("ending is gone", _remove(_T3 + "ending.json")),
    # eval_rows.json: the trial can't be compared, and so not be exported
    Kind("cut eval rows", _cut(_T3 + "eval_rows.json"), "compared with no other trial"),
    Kind("eval rows of the best", _cut(_T2 + "eval_rows.json"), "compared with no other", winner=SECOND),
    Kind("eval rows gone", _remove(_T3 + "eval_rows.json"), "eval_rows.json is gone"),
    Kind("eval rows of no tokens", _change(_T3 + "eval_rows.json", token_counts=[0] * 12), "a row has no tokens"),
    Kind("eval rows of text", _change(_T3 + "eval_rows.json", loss_sums="many"), "compared with no other"),
    Kind("base's eval rows", _cut(_T0 + "eval_rows.json"), "eval_rows.json", set_aside=(BASE,), winner=None),
    # the adapter
    Kind("empty point", _write(_T2 + "adapter/point.json", ""), "adapter/point.json can't be read: it is empty"),
    Kind("point is a pipe", _pipe(_T3 + "adapter/point.json"), "a pipe or a device is in its place"),
    Kind("point is a list", _write(_T3 + "adapter/point.json", "[]"), "adapter/point.json can't be read"),
    Kind("weights gone", _remove(_T3 + "adapter/adapter_model.safetensors")),
    Kind("adapter gone", _remove(_T2 + "adapter"), winner=SECOND),
    # what else a trial has
    Kind("scores cut", _cut(_T3 + "score_rows.jsonl")),
    Kind("scores lack fields", _line(_T3 + "score_rows.jsonl", scores=None), "line 1 of score_rows.jsonl is left out"),
    Kind(
        "scores of nothing", _line(_T2 + "score_rows.jsonl", scores={"measure": "accuracy", "values": []}), "no scores"
    ),
    Kind("scores is a folder", _folder(_T3 + "score_rows.jsonl"), "score_rows.jsonl can't be read"),
    Kind("memory is text", _write(_T3 + "memory.json", "x")),
    Kind("run id is a folder", _folder(_T3 + "wandb_run")),
    Kind("checkpoint cut", _cut(_T2 + "checkpoints/checkpoint-5/optimizer.pt")),
    Kind("checkpoint's marker is a pipe", _pipe(_T2 + "checkpoints/checkpoint-5/checkpoint.json")),
    Kind("checkpoints gone", _remove(_T2 + "checkpoints")),
    # folders
    Kind("a copy for keeping", _copy("trials/0003", "trials/0003 copy"), "is it a copy", ("0003 copy",)),
    Kind("a backup", _copy("trials/0003", "trials/0003.bak"), "is it a copy", ("0003.bak",)),
    Kind("a copy with a number", _copy("trials/0003", "trials/0007"), "it's a copy of trial 0003", ("0007",)),
    Kind("a copy with a date", _copy("trials/0003", "trials/20261129"), "so high a number", ("20261129",)),
    Kind("a link to another trial", _link("trials/0009", "trials/0003"), "it's a link to 0003", ("0009",)),
    Kind("a link to itself", _loop("trials/0009"), "leads nowhere", ("0009",)),
    Kind("a link to where it is", _link("trials/all", "trials"), ""),
    Kind("a file with a trial's name", _write("trials/0004", "x"), "it is no folder", ("0004",)),
    Kind("a note beside the trials", _write("trials/notes.txt", "x")),
    Kind("an empty folder", lambda run: (run / "trials" / "0004").mkdir()),
    Kind("a trial gone", _remove("trials/0003")),
    Kind("trials gone", _remove("trials"), winner=None),
    # the search's own files
    Kind("samples cut", _cut("samples.json"), "samples.json can't be read"),
    Kind("samples is a folder", _folder("samples.json"), "samples.json can't be read"),
    Kind("timing of text", _write("timing.json", '{"training_over": 3, "exported": "x", "report_seconds": []}')),
    Kind("manifest cut", _cut("export/manifest.json"), "export/manifest.json can't be read"),
    Kind(
        "manifest of text",
        _change("export/manifest.json", verified={"eval_loss": "low"}),
        "manifest.json can't be read",
    ),
    Kind("study empty", _write("study.db", "")),
    Kind("study cut", _cut("study.db", 50_000)),
    Kind("study is rubbish", _write("study.db", "rubbish " * 100)),
    Kind("study is a folder", _folder("study.db")),
    Kind("study is a pipe", _pipe("study.db")),
    Kind("study gone", _remove("study.db")),
    Kind("session is a list", _write("session.json", "[]")),
    Kind("prediction of text", _change("search.json", prediction={"made": "x"})),
)
"""Kinds, by the file that they happen to."""

REFUSED = (
    ("search cut", _cut("search.json"), "search.json can't be read: it is no JSON"),
    ("search empty", _write("search.json", ""), "search.json can't be read: it is empty"),
    ("search is a folder", _folder("search.json"), "a folder is in its place"),
    ("search is a pipe", _pipe("search.json"), "a pipe or a device is in its place"),
    ("search gone", _remove("search.json"), "holds no search"),
    ("search of a newer version", _change("search.json", format=99), "was made by a newer version"),
    ("search with data of text", _change("search.json", data="rows"), "search.json can't be read: data"),
    ("search with uncounted rows", _change("search.json", data={"train": {}}), "positive numbers of rows"),
    ("search without a time zone", _change("search.json", started="2026-01-01T00:00:00"), "timezone"),
    ("search with tokens of text", _change("search.json", full_tokens="many"), "full_tokens"),
)
"""Damage that leaves nothing to go by: one clear error, and exit code 2."""
