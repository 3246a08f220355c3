"""A cluster of three machines, all on this one: a search runs on it while machines go and come back.

python -m tests.cluster.run [--keep DIR]

A head and two workers with an SSH server each (`tests.cluster.namespaces`), started by `ray up` with cluster.yaml, of
which only addresses, the key and the number of CPUs are replaced. Then the demo is searched by scripts/submit. One
worker's link is cut and put back, the other one's Ray is killed; the trials go on elsewhere each time. At the end
scripts/down ends all, and it's looked whether anything is left. Takes about five minutes on two cores, root, and
Debian's packages openssh-server, openssh-client, rsync and iproute2. Exit code 3: this machine can't do that.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.state.run_dir import RunDir
from tests.chaos.invariants import evaluations, problems
from tests.cluster import namespaces
from tests.cluster.fake_cluster import PlayedCluster, say
from tests.cluster.namespaces import Host
from trials.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED
from trials.system.files import read_json_lines

_CANNOT = 3
_SEARCH = ["demo", "--budget", "20m", "--set", "data.eval_rows=60"]
_REFUSED = ["demo", "--set", "search.bugdet=9h"]
_PATIENCE_SECONDS = 300.0

_EVENT = re.compile(r"\] trial (\d{4}) (\w+)")


class Missed(Exception):
    """Something that was to happen didn't."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the search; 0 if all went as it should."""
    arguments = argparse.ArgumentParser(prog="python -m tests.cluster.run", description="Play a cluster.")
    arguments.add_argument("--keep", type=Path, metavar="DIR", help="copy the run folder and Ray's logs there")
    keep = arguments.parse_args(argv).keep
    why_not = namespaces.why_not_here()
    if why_not is not None:
        sys.stderr.write(f"error: no cluster can be played here: {why_not}.\n")
        return _CANNOT
    if not namespaces.are_entered():
        return namespaces.enter("tests.cluster.run", sys.argv[1:] if argv is None else argv)
    folder = Path(tempfile.mkdtemp(prefix="cluster-night-", dir="/var/tmp"))
    cluster = PlayedCluster(folder)
    try:
        _night(cluster)
        return 0
    except Missed as missed:
        say(f"FAILED: {missed}")
        return 1
    finally:
        cluster.end()
        if keep is not None:
            shutil.copytree(folder, keep, symlinks=True, ignore=shutil.ignore_patterns("sockets", "home"))
        shutil.rmtree(folder)


def _night(cluster: PlayedCluster) -> None:
    cluster.start()
    _wait_until(lambda: len(cluster.alive()) == 1 + len(cluster.workers), "all machines joined")
    say(f"cluster of {len(cluster.alive())}")
    code, said = cluster.submit_and_wait(_REFUSED)
    say(f"scripts/submit {' '.join(_REFUSED)}: exit code {code}: {said.strip().splitlines()[-1]}")
    _check(code == EXIT_BAD_INPUT, f"a refused search ended with exit code {code}")
    run = cluster.folder / "runs/night"
    search, job = cluster.submit([*_SEARCH, "--out", str(run)])
    _wait_until(lambda: {"w1", "w2"} <= {str(last["node"]) for last in _trained(run).values()}, "both workers trained")
    say(f"trials train on {', '.join(f'{name}: {number}' for name, number in _trials_by_node(run).items())}")
    first, second = cluster.workers
    _lose(cluster, run, first, "its link is cut", first.cut)
    first.restore()
    _wait_until(lambda: len(cluster.alive()) == 1 + len(cluster.workers), f"{first.name} is back")
    say(f"{first.name} is back in the cluster")
    _lose(cluster, run, second, "its raylet is killed", second.kill_raylet)
    cluster.ask_to_stop(job)
    code = search.wait(_PATIENCE_SECONDS)
    say(f"scripts/submit --stop {job}: the search exported its best, and ended with exit code {code}")
    _check(code == EXIT_INTERRUPTED, f"the search ended with exit code {code}")
    _check_run(run)
    cluster.stop()
    left = cluster.left()
    _check(not left, f"still there: {left}")
    say("nothing is left: no process on any machine")


def _lose(cluster: PlayedCluster, run: Path, host: Host, how: str, lose: Callable[[], None]) -> None:
    """A machine goes while trials train on it; returns once one of them has been evaluated elsewhere."""
    _wait_until(lambda: bool(_training_on(cluster, run, host.name)), f"a trial trains on {host.name}")
    before, told = _trained(run), len(cluster.said)
    lose()
    began = time.monotonic()
    lost = _training_on(cluster, run, host.name)
    say(f"{host.name}: {how}; on it trained {', '.join(lost)}")

    def going_on() -> list[str]:
        return [trial for trial in lost if any(f"trial {trial} goes on" in line for line in cluster.said[told:])]

    def elsewhere() -> list[str]:
        return [trial for trial in lost if _trained(run)[trial]["node"] != host.name]

    _wait_until(lambda: bool(going_on()), f"a trial of {host.name} goes on")
    # Two that write to one folder would be worse than all that a lost machine can do.
    _check(not host.has("ray::TrialWorker"), f"{going_on()} go on, and {host.name} still trains")
    say(f"trial {going_on()[0]} goes on {time.monotonic() - began:.0f} s later; {host.name} has ended its own")
    _wait_until(lambda: bool(elsewhere()), f"a trial of {host.name} is evaluated elsewhere")
    for trial in elsewhere():
        old, new = before[trial], _trained(run)[trial]
        idle = time.monotonic() - began - (new["seconds"] - old["seconds"])
        say(
            f"trial {trial}: step {old['step']} on {old['node']}, step {new['step']} on {new['node']} "
            f"{time.monotonic() - began:.0f} s later; for {idle:.0f} s of them it didn't train"
        )


def _check_run(run: Path) -> None:
    deadline = json.loads((run / "search.json").read_text(encoding="utf-8"))["deadline"]
    found = problems(RunDir(run), evaluations(run, {}), deadline)
    _check(not found, "; ".join(found))
    by_node = ", ".join(f"{name}: {number}" for name, number in _trials_by_node(run).items())
    best = json.loads((run / "export/manifest.json").read_text(encoding="utf-8"))
    say(f"trials evaluated on {by_node}; exported trial {best['trial']}, eval loss {best['eval_loss']:.4f}")


def _lines(run: Path) -> dict[str, list[dict[str, Any]]]:
    """What every trained trial has in its metrics.jsonl."""
    files = sorted((run / "trials").glob("[0-9]*/metrics.jsonl"))
    return {file.parent.name: lines for file in files[1:] if (lines := read_json_lines(file))}


def _trained(run: Path) -> dict[str, dict[str, Any]]:
    """The last evaluation of every trial."""
    return {trial: lines[-1] for trial, lines in _lines(run).items()}


def _training_on(cluster: PlayedCluster, run: Path, name: str) -> list[str]:
    """Trials that were evaluated on a machine last, and went on after that, by what the search has said."""
    last = {found[1]: found[2] for line in cluster.said if (found := _EVENT.search(line))}
    return [trial for trial, line in _trained(run).items() if line["node"] == name and last.get(trial) == "at"]


def _trials_by_node(run: Path) -> Mapping[str, int]:
    nodes = [{str(line["node"]) for line in lines} for lines in _lines(run).values()]
    return {name: sum(name in each for each in nodes) for name in sorted(set().union(*nodes))}


def _check(is_well: bool, otherwise: str) -> None:
    if not is_well:
        raise Missed(otherwise)


def _wait_until(condition: Callable[[], bool], what: str) -> None:
    ends = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > ends:
            raise Missed(f"not within {_PATIENCE_SECONDS:.0f} s: {what}")
        time.sleep(1.0)


if __name__ == "__main__":
    sys.exit(main())
