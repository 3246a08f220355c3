"""Write the demo's chain-of-thought NLI data set: search_spaces/demo/{train,dev,test}.jsonl.

    python -m scripts.demo.make_data            # write the files
    python -m scripts.demo.make_data --check    # compare the files with a fresh generation; exit 1 if they differ

Rows are made in pairs that share the hypothesis and differ in the label, so the hypothesis alone says nothing about
the label. No premise occurs twice, in or between splits. The same seed gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

from scripts.demo.case import Case
from scripts.demo.phenomena import PHENOMENA

SEED = 20261122
DEMO_FOLDER = Path(__file__).resolve().parents[2] / "search_spaces" / "demo"
# Rows of a split for each phenomenon; even, since rows come in pairs.
ROWS_PER_PHENOMENON = {"train": 500, "dev": 60, "test": 60}


def make_splits(seed: int = SEED) -> dict[str, list[Case]]:
    """Return the cases of each split, in the order of the files."""
    rng = random.Random(seed)
    seen: set[str] = set()
    splits: dict[str, list[Case]] = {}
    for split, rows in ROWS_PER_PHENOMENON.items():
        cases: list[Case] = []
        for make_pair in PHENOMENA.values():
            wanted = len(cases) + rows
            while len(cases) < wanted:
                pair = make_pair(rng)
                premises = {case.premise for case in pair}
                if len(premises) == 2 and not premises & seen:
                    seen |= premises
                    cases += pair
        rng.shuffle(cases)
        splits[split] = cases
    return splits


def to_jsonl(split: str, cases: list[Case]) -> str:
    """Return the text of one split's file."""
    rows = (
        {
            "id": f"{split}-{index:04d}-{case.phenomenon}",
            "premise": case.premise,
            "hypothesis": case.hypothesis,
            "thought_process": case.thought,
            "label": case.label,
        }
        for index, case in enumerate(cases)
    )
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def main() -> None:
    """Write the files, or with --check compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the files instead of writing them")
    parser.add_argument("--to", type=Path, default=DEMO_FOLDER, help="folder of the files")
    arguments = parser.parse_args()
    stale = []
    for split, cases in make_splits().items():
        path: Path = arguments.to / f"{split}.jsonl"
        text = to_jsonl(split, cases)
        if not arguments.check:
            if arguments.to != DEMO_FOLDER and path.exists():
                sys.exit(f"{path} is there already. It's left as it is. Give another folder by --to.")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
        elif not path.is_file() or path.read_bytes() != text.encode():
            stale.append(str(path))
    if stale:
        sys.exit(f"differs from a fresh generation, run python -m scripts.demo.make_data: {', '.join(stale)}")


if __name__ == "__main__":
    main()
