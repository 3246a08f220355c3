"""Address of the Ray cluster that a search joins, found as Ray finds it, but without Ray.

Ray itself takes minutes to give up on an address that doesn't answer. Ray's folder for files with
an address is open to all users. So, unlike Ray, this module reads only a file of this user's.
"""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Mapping
from pathlib import Path

from orchestrator.ray_setup.folder import bases, named_base, no_base, why_not
from orchestrator.state.check_result import CheckResult, Severity

_ANSWER_SECONDS = 3.0
_LONGEST_ADDRESS = 4096
_LOCAL = "local"
_LOCALHOST = ("127.0.0.1", "::1")


def named_cluster(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the address of the cluster that Ray joins; None: Ray starts its own instance on this machine."""
    named = environ.get("RAY_ADDRESS", "")
    if named in ("", "auto"):
        return current_cluster(environ)
    return None if named == _LOCAL else named


def current_cluster(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the address that this user's last `ray start` on this machine left in a file; None: there is none.

    `ray stop` removes the file.
    """
    text = _own_text(address_file(environ))
    return (text or "").strip() or None


def address_file(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the path of the file in which `ray start` leaves the address."""
    return named_base(environ)[1] / "ray" / "ray_current_cluster"


def forget_dead_cluster(environ: Mapping[str, str] = os.environ) -> None:
    """Remove this user's address file, as `ray stop` does, if its address doesn't answer any more."""
    address = current_cluster(environ)
    place = None if address is None else _host_and_port(address)
    if place is not None and not _answers(*place):
        address_file(environ).unlink(missing_ok=True)


def address_check(environ: Mapping[str, str] = os.environ) -> CheckResult:
    """Check that the cluster named by RAY_ADDRESS or the address file answers, and that both name the same one."""
    address, in_file = named_cluster(environ), current_cluster(environ)
    says = "RAY_ADDRESS" if environ.get("RAY_ADDRESS", "") not in ("", "auto") else str(address_file(environ))
    if address is None:
        return _own_ray_check(environ)
    place = _host_and_port(address)
    if place is None:
        return CheckResult(
            "Ray", Severity.IMPOSSIBLE, f"{says} is {address!r}", "Give HOST:PORT of the head, port 6379 mostly"
        )
    if not _answers(*place):
        remedy = "Start the cluster, or name another; without one: export RAY_ADDRESS=local"
        return CheckResult("Ray", Severity.IMPOSSIBLE, f"{says} names {address}, where nobody answers", remedy)
    if in_file is not None and not _same(in_file, address):
        text = (
            f"{says} names {address}, but {address_file(environ)} names {in_file}, which parts of Ray may ask instead"
        )
        return CheckResult(
            "Ray", Severity.WARNING, text, "Name that one, or stop it by ray stop; the search joins the first"
        )
    return CheckResult("Ray", Severity.OK, f"{says} names {address}, which answers")


def _own_ray_check(environ: Mapping[str, str]) -> CheckResult:
    """Check that the search can start its own Ray; warn if it ignores an address file that isn't this user's."""
    fit = bases(environ)
    if not fit:
        return CheckResult(
            "Ray", Severity.IMPOSSIBLE, no_base(environ), "Set TMPDIR=/tmp, or another short folder's path"
        )
    file = address_file(environ)
    if environ.get("RAY_ADDRESS", "") != _LOCAL and os.path.lexists(file) and _own_text(file) is None:
        text = f"{file} isn't yours, and is ignored; the search starts Ray on this machine"
        return CheckResult(
            "Ray", Severity.WARNING, text, "To join that cluster all the same: export RAY_ADDRESS=HOST:PORT"
        )
    name, base = named_base(environ)
    where = "" if fit[0] == base else f", in {fit[0]}, as {name} ({base}) {why_not(base)}"
    return CheckResult("Ray", Severity.OK, f"no cluster is named; the search starts Ray on this machine{where}")


def _own_text(path: Path) -> str | None:
    """Return the text of a file of this user's; None if there is none, or it is a link or another user's."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        found = os.fstat(descriptor)
        is_own = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()
        return os.read(descriptor, _LONGEST_ADDRESS).decode(errors="replace") if is_own else None
    finally:
        os.close(descriptor)


def _host_and_port(address: str) -> tuple[str, int] | None:
    match = re.fullmatch(r"(?:ray://)?(\[[0-9a-fA-F:]+\]|[^:/\[\]]+):(\d+)", address)
    return None if match is None else (match[1].strip("[]"), int(match[2]))


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=_ANSWER_SECONDS):
            return True
    except (OSError, OverflowError):
        return False


def _same(one: str, other: str) -> bool:
    places = [_resolved(one), _resolved(other)]
    if None in places or places[0] == places[1]:
        return places[0] == places[1]
    # Ray writes this machine's own address where the user gave localhost.
    hosts, ports = zip(*[place for place in places if place is not None], strict=True)
    return ports[0] == ports[1] and any(host in _LOCALHOST for host in hosts) and all(_is_here(host) for host in hosts)


def _is_here(host: str) -> bool:
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as any_port:
            any_port.bind((host, 0))
            return True
    except OSError:
        return False


def _resolved(address: str) -> tuple[str, int] | None:
    place = _host_and_port(address)
    if place is None:
        return None
    try:
        host = socket.getaddrinfo(*place, type=socket.SOCK_STREAM)[0][4][0]
    except OSError:
        return place
    return str(host), place[1]
