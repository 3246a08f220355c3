"""Check that all nodes of a Ray cluster share the run folder with this process, before the search begins."""

from __future__ import annotations

import shlex
import uuid
from dataclasses import dataclass
from pathlib import Path

from orchestrator.execution.cluster import NoAnswer, Node, alive_nodes, run_on_nodes
from orchestrator.state.check_result import CheckResult, Severity
from orchestrator.storage.object_store import is_url
from orchestrator.storage.visibility import is_visible, probe_name, probed, remove_probe, write_probe
from trials.errors import InputError, StoreFailed, first_line

_ANSWER_SECONDS = 60.0
"""Time limit for a process to start on a node and to import this project."""


@dataclass(frozen=True)
class NodeWithoutStorage:
    """A node that doesn't share the run folder; `why` continues a sentence that begins with its name."""

    node: Node
    why: str

    def __str__(self) -> str:
        """Return one line for an error message or a plan."""
        return f"{self.node} {self.why}"


def require_shared_storage(place: str) -> None:
    """Raise `InputError` with their names if some nodes of the cluster don't share the run folder with this process."""
    unseeing = nodes_without_storage(place)
    if not unseeing:
        return
    said = "".join(f"\n  {each}" for each in unseeing)
    raise InputError(
        f"the run folder {place} isn't on storage that every node of the Ray cluster sees:{said}\n"
        "Mount the same storage, such as NFS, under this path on all of them, writable (or, of a store, give them its "
        f"package and credentials), and go on by --resume {shlex.quote(place)}; or begin anew with an --out that they "
        "share, a folder or s3://BUCKET/PREFIX."
    )


def nodes_without_storage(place: str, seconds: float = _ANSWER_SECONDS) -> list[NodeWithoutStorage]:
    """Return the alive nodes that don't share the run folder with this process.

    `place` is the path of an existing folder, or a store's address. This process must have joined Ray. `seconds` is the
    time limit for the answers of all nodes together. Leaves no probe file behind. Raises `InputError` if this process
    can't write there itself.
    """
    token, run = uuid.uuid4().hex, probed(place)
    asked = {node: (place, token, node.id) for node in alive_nodes()}
    try:
        run.write(probe_name(token, "driver"), token)
        answers = run_on_nodes(write_probe, asked, seconds)
        reasons = {node: _why_unseeing(place, token, node, answer) for node, answer in answers.items()}
    except (OSError, StoreFailed) as error:
        raise InputError(f"can't write to {place}: {first_line(error)}. Give another --out.") from error
    finally:
        run.remove([probe_name(token, name) for name in ("driver", *(node.id for node in asked))])
    unseeing = [NodeWithoutStorage(node, why) for node, why in reasons.items() if why is not None]
    run_on_nodes(remove_probe, {each.node: asked[each.node] for each in unseeing if each.why == run.alone}, seconds)
    return unseeing


def storage_checks(place: str) -> list[CheckResult]:
    """Check for a plan whether all nodes share the run folder, or its nearest existing parent."""
    there = place if is_url(place) else str(existing_part(Path(place)))
    try:
        unseeing = nodes_without_storage(there)
    except InputError as error:
        return [
            CheckResult("run folder", Severity.IMPOSSIBLE, first_line(error), "Give --out where this process may write")
        ]
    remedy = "Mount the same storage there, writable, or give an --out that all nodes share"
    found = [CheckResult("run folder", Severity.IMPOSSIBLE, str(each), remedy) for each in unseeing]
    return found or [CheckResult("run folder", Severity.OK, f"every node sees {there}")]


def existing_part(folder: Path) -> Path:
    """Return the folder itself or its nearest existing parent, which can be checked before the run folder is made."""
    here = folder.absolute()
    return next(path for path in (here, *here.parents) if path.is_dir())


def _why_unseeing(place: str, token: str, node: Node, answer: str | NoAnswer | None) -> str | None:
    if isinstance(answer, NoAnswer):
        return answer.why
    if answer is not None:
        return answer
    return None if is_visible(place, token, node.id) else probed(place).alone
