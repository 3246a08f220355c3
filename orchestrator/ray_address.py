"""Which Ray a search joins, found as Ray finds it, but without Ray: an address that nobody answers costs it minutes."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path

from orchestrator.finding import Finding, Level

_ANSWER_SECONDS = 3.0
_LOCAL = "local"
_LOCALHOST = ("127.0.0.1", "::1")


def named_cluster(environ: Mapping[str, str] = os.environ) -> str | None:
    """The address of the cluster that Ray joins; None: it starts an instance of its own on this machine."""
    named = environ.get("RAY_ADDRESS", "")
    if named in ("", "auto"):
        return current_cluster(environ)
    return None if named == _LOCAL else named


def current_cluster(environ: Mapping[str, str] = os.environ) -> str | None:
    """The address that the last `ray start` on this machine left in a file; `ray stop` removes it."""
    try:
        return _file(environ).read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def address_finding(environ: Mapping[str, str] = os.environ) -> Finding:
    """Whether what RAY_ADDRESS and that file name answers, and is one and the same."""
    address, in_file = named_cluster(environ), current_cluster(environ)
    says = "RAY_ADDRESS" if environ.get("RAY_ADDRESS", "") not in ("", "auto") else str(_file(environ))
    if address is None:
        return Finding("Ray", Level.OK, "no cluster is named; the search starts Ray on this machine")
    place = _host_and_port(address)
    if place is None:
        return Finding(
            "Ray", Level.IMPOSSIBLE, f"{says} is {address!r}", "Give HOST:PORT of the head, port 6379 mostly"
        )
    if not _answers(*place):
        remedy = "Start the cluster, or name another; without one: export RAY_ADDRESS=local"
        return Finding("Ray", Level.IMPOSSIBLE, f"{says} names {address}, where nobody answers", remedy)
    if in_file is not None and not _same(in_file, address):
        text = f"{says} names {address}, but {_file(environ)} names {in_file}, which parts of Ray may ask instead"
        return Finding("Ray", Level.WARNING, text, "Name that one, or stop it by ray stop; the search joins the first")
    return Finding("Ray", Level.OK, f"{says} names {address}, which answers")


def _file(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"


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
    # Ray writes this machine's own address where somebody says localhost.
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
