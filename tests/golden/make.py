"""Makes a golden run folder: a real search of the demo with the smallest settings, stopped while a trial is open.

python -m tests.golden.make NAME      writes tests/golden/NAME; takes a minute

What is left out, because it is large and no reader needs it: report.html, the output of processes (logs/, ray/),
what states that a session runs (lock, session.json), and the exported tokenizer.json, which is the demo base's own.
`copy_golden` puts that back. Paths of the repository are replaced in search.json and in the trials' config.json.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.golden import HERE, PLACE, ROOT

_LEFT_OUT = (
    "report.html",
    "tokenizer.json",
    "logs",
    "ray",
    "search.log",
    "lock",
    "session.json",
    "*.new",
    "tensorboard",
)
_COMMAND = (
    "-m orchestrator.search demo --budget 10m --trials 3 --set train_tokens=6000 effective_batch=4 evaluations=3 "
    "eval_rows=12 test_rows=8 lora_rank=1 lora_alpha=2 target_modules=[q_proj,v_proj] evaluation.score_rows=4 "
    "search.samples=1 search.dashboard=false search.keep_adapters=2"
)


def main() -> None:
    """Runs the search, stops it as Ctrl-C does, and copies what is kept."""
    with tempfile.TemporaryDirectory() as made:
        run = Path(made) / "run"
        with subprocess.Popen([sys.executable, *_COMMAND.split(), "--out", str(run)]) as search:
            while search.poll() is None and not _is_enough(run):
                time.sleep(0.02)
            search.send_signal(signal.SIGINT)
        made_here = shutil.copytree(run, HERE / sys.argv[1], ignore=shutil.ignore_patterns(*_LEFT_OUT))
    for file in (made_here / "search.json", *made_here.glob("trials/*/config.json")):
        file.write_text(file.read_text().replace(str(ROOT), PLACE))


def _is_enough(run: Path) -> bool:
    """Whether two trials have ended and another one has a checkpoint to go on from."""
    trials = [path for path in run.glob("trials/*") if path.name != "0000"]
    ended = [path for path in trials if (path / "ending.json").exists()]
    is_open = any(list(path.glob("checkpoints/checkpoint-*")) for path in trials if path not in ended)
    return len(ended) >= 2 and is_open


if __name__ == "__main__":
    main()
