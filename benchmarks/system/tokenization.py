"""Benchmark: reading, checking and tokenising many rows, and the second time from the cache.

python -m benchmarks.system.tokenization [--data FILE] [--format FORMAT] [--tokenizer FOLDER] [--rows 100000]

The rows are those of the file, repeated until there are enough, each made another row by its number. Every measurement
runs in a process of its own with an empty cache, and the ratios of one run are what counts.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

from search_spaces.layers import RECIPE_FOLDER

# The field of every format that is made unique, so that no row is both in train and in eval.
_UNIQUE = {"nli_cot": "premise", "nli": "premise", "instruction": "instruction", "title_body": "body", "text": "text"}
_EVAL_ROWS = 200


def write_rows(source: Path, target: Path, data_format: str, count: int, first: int = 0) -> None:
    """Write `count` rows: those of the source, over and over, numbered from `first`."""
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines() if line.strip()]
    field = _UNIQUE[data_format]
    numbered: Iterator[tuple[int, dict[str, str]]] = enumerate(islice(cycle(rows), count), start=first)
    with target.open("w", encoding="utf-8") as file:
        for number, row in numbered:
            file.write(json.dumps({**row, "id": f"r{number}", field: f"{row[field]} ({number})"}) + "\n")


def measure(folder: Path, data_format: str, tokenizer: str) -> dict[str, float]:
    """Return seconds and peak memory (MiB) of a process that opens the data of a search, cached or not."""
    command = [sys.executable, "-m", "benchmarks.system.tokenization", "--measure", str(folder)]
    command += ["--format", data_format, "--tokenizer", tokenizer]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _measured(folder: Path, data_format: str, tokenizer: str) -> dict[str, float]:
    from trials.cli import quiet_libraries
    from trials.config import DataSettings, ModelSettings
    from trials.data.dataset import load_data
    from trials.model.loading import load_tokenizer

    quiet_libraries()
    loaded = load_tokenizer(ModelSettings(name=tokenizer, chat_template="mistral"))
    before = _peak_mib()
    started = time.perf_counter()
    files = {name: str(folder / f"{name}.jsonl") for name in ("train", "eval")}
    data = load_data(DataSettings(format=data_format, **files), loaded)  # type: ignore[arg-type]
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak_mib": _peak_mib(), "before_mib": before, "tokens": data.train.tokens}


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    """Run the command line and return the exit code."""
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.system.tokenization", description=__doc__)
    arguments.add_argument("--data", type=Path, default=RECIPE_FOLDER / "demo/train.jsonl")
    arguments.add_argument("--format", choices=sorted(_UNIQUE), default="nli_cot")
    arguments.add_argument("--tokenizer", default=str(RECIPE_FOLDER / "demo/base"))
    arguments.add_argument("--rows", type=int, default=100_000)
    arguments.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.measure:
        print(json.dumps(_measured(given.measure, given.format, given.tokenizer)))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(given.data, folder / "train.jsonl", given.format, given.rows)
        write_rows(given.data, folder / "eval.jsonl", given.format, _EVAL_ROWS, first=given.rows)
        first = measure(folder, given.format, given.tokenizer)
        second = measure(folder, given.format, given.tokenizer)
        size = sum(file.stat().st_size for file in (folder / "cache").rglob("*.arrow")) / 2**20
    print(f"{given.rows:,} rows of {first['tokens'] / given.rows:.0f} tokens; {size:,.0f} MiB on disk")
    for what, found in (("read and tokenised", first), ("from the cache", second)):
        memory = f"peak memory {found['peak_mib']:,.0f} MiB, {found['before_mib']:,.0f} MiB of it before"
        print(f"{what}: {found['seconds']:.2f} s ({given.rows / found['seconds']:,.0f} rows/s), {memory}")
    print(f"the second time is {first['seconds'] / second['seconds']:.0f} times as fast")
    return 0


if __name__ == "__main__":
    sys.exit(main())
