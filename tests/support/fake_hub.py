"""A small Hugging Face hub for tests: real HTTP on a free port of this machine, repositories in a folder.

    with Hub(tmp_path / "hub") as hub:
        first = hub.commit("datasets", "ann/rows", {"train.jsonl": '{"text": "a"}\\n'})
        second = hub.commit("datasets", "ann/rows", {"train.jsonl": '{"text": "b"}\\n'}, tag="v2")
        run(..., env={**os.environ, **hub.environment(tmp_path / "home")})

The folder holds `<kind>/<owner>/<name>/<commit>/<files>`; every commit is whole, the newest is the main branch.
It answers what huggingface_hub 2.4, datasets 5.2 and transformers 5.23 ask for when they load data sets, tokenizers and
models (found by running them): info, auth-check, tree, paths-info, and HEAD and GET of files with ranges. Missing and
gated repositories are refused as the hub does it. `hub.requests` lists what was asked. Nothing can be pushed.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import parse_qs, unquote, urlsplit

Kind = Literal["datasets", "models"]
TOKEN = "hf_token_of_someone_who_accepted"
MAIN = "main"
_API = re.compile(
    r"/api/(datasets|models)/([^/]+/[^/]+)(?:/(revision|tree|paths-info|auth-check)(?:/([^/]+)(?:/(.*))?)?)?"
)
_FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class Hub:
    """Repositories in a folder, served on `endpoint` while the `with` block lasts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[str] = []
        self.gated: set[str] = set()
        self._refs: dict[tuple[str, str], dict[str, str]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def commit(self, kind: Kind, name: str, files: Mapping[str, str | bytes | Path], tag: str | None = None) -> str:
        """Makes a commit of exactly these files the newest of a repository, which is made if need be; its sha."""
        refs = self._refs.setdefault((kind, name), {})
        contents = {path: _bytes(content) for path, content in files.items()}
        sha = hashlib.sha1(repr((kind, name, refs.get(MAIN), contents)).encode()).hexdigest()
        for path, content in contents.items():
            file = self.folder / kind / name / sha / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        refs.update({sha: sha, MAIN: sha, **({tag: sha} if tag else {})})
        return sha

    def gate(self, name: str) -> None:
        """From now on the repository's files are only for `TOKEN`; that it exists and has commits anybody may know."""
        self.gated.add(name)

    def refs(self, kind: str, name: str) -> Mapping[str, str] | None:
        """Branches, tags and commits of a repository; None if there is none."""
        return self._refs.get((kind, name))

    def environment(self, home: Path, **extra: str) -> dict[str, str]:
        """Environment variables for a process that shall ask this hub and keep its caches in `home`."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_DATASETS_CACHE": str(home / "datasets"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            **extra,
        }


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._route()

    def do_HEAD(self) -> None:
        self._route()

    def do_POST(self) -> None:
        self._route()

    def log_message(self, *_: Any) -> None:
        """Tests read `Hub.requests` instead."""

    def _route(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if api := _API.fullmatch(path):
            kind, name, what, revision, inner = api.groups()
            if (commit := self._commit(kind, name, revision)) is not None:
                self._api(kind, name, commit, what, inner, body)
        elif file := _FILE.fullmatch(path):
            kind, name = "datasets" if file[1] else "models", file[2]
            if (commit := self._commit(kind, name, file[3])) is not None and self._may_read(name):
                self._file(kind, name, commit, file[4])
        else:
            self._refuse(404, "EntryNotFound", "this hub has no such page")

    def _commit(self, kind: str, name: str, revision: str | None) -> str | None:
        refs = self.hub.refs(kind, name)
        if refs is None:
            # The hub doesn't say whether it's missing or private.
            self._refuse(401, "RepoNotFound", "Repository not found")
        elif (revision or MAIN) not in refs:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return refs[revision or MAIN]
        return None

    def _may_read(self, name: str) -> bool:
        if name in self.hub.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._refuse(401, "GatedRepo", f"Access to {name} is restricted")
            return False
        return True

    def _api(self, kind: str, name: str, commit: str, what: str | None, inner: str | None, body: bytes) -> None:
        root = self.hub.folder / kind / name / commit
        entries = [_entry(root, path) for path in sorted(root.rglob("*"))]
        if what == "auth-check":
            if self._may_read(name):
                self._answer({})
        elif what == "tree":
            self._tree(root, inner or "", entries)
        elif what == "paths-info":
            paths = parse_qs(body.decode())["paths"]
            self._answer([entry for entry in entries if entry["path"] in paths])
        else:
            files = [{"rfilename": entry["path"]} for entry in entries if entry["type"] == "file"]
            gated = "auto" if name in self.hub.gated else False
            self._answer({"_id": commit[:24], "id": name, "sha": commit, "siblings": files, "private": False,
                          "gated": gated, "disabled": False, "downloads": 0, "likes": 0, "tags": []})  # fmt: skip

    def _tree(self, root: Path, folder: str, entries: list[dict[str, Any]]) -> None:
        if not (root / folder).is_dir():
            self._refuse(404, "EntryNotFound", f"{folder} does not exist")
        elif parse_qs(urlsplit(self.path).query).get("recursive", [""])[0].lower() in {"true", "1"}:
            self._answer([entry for entry in entries if (root / folder) in (root / entry["path"]).parents])
        else:
            self._answer([entry for entry in entries if (root / entry["path"]).parent == root / folder])

    def _file(self, kind: str, name: str, commit: str, path: str) -> None:
        file = self.hub.folder / kind / name / commit / path
        if not file.is_file():
            self._refuse(404, "EntryNotFound", f"{path} does not exist", {"X-Repo-Commit": commit})
            return
        etag = f'"{_entry(file.parent, file)["oid"]}"'
        headers = {"ETag": etag, "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        self._send(file.read_bytes(), "application/octet-stream", headers)

    def _answer(self, content: Any) -> None:
        self._send(json.dumps(content).encode(), "application/json", {})

    def _refuse(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        extra = {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})}
        self._send(json.dumps({"error": message}).encode(), "application/json", extra, status)

    def _send(self, data: bytes, kind: str, headers: Mapping[str, str], status: int = 200) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted and status == 200:
            first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
            headers = {**headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"}
            data, status = data[first : last + 1], 206
        self.send_response(status)
        for key, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _bytes(content: str | bytes | Path) -> bytes:
    if isinstance(content, Path):
        return content.read_bytes()
    return content.encode() if isinstance(content, str) else content


def _entry(root: Path, path: Path) -> dict[str, Any]:
    if path.is_dir():
        return {"type": "directory", "path": str(path.relative_to(root)), "oid": "0" * 40, "size": 0}
    data = path.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    return {"type": "file", "path": str(path.relative_to(root)), "oid": blob, "size": len(data)}
