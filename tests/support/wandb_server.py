"""A double of W&B's server on this machine, with what servers do that can't be used: for the real wandb to talk to."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789abcdef0123456789abcdef01234567"


class WandbServer(ThreadingHTTPServer):
    """Answers as `manner` says, which may be changed meanwhile: well, silent, 401, 500, garbage."""

    daemon_threads = True

    def __init__(self, manner: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.manner = manner
        self.is_over = threading.Event()
        self.asked: list[str] = []
        """Paths of the requests; of GraphQL's the operation."""
        self.logged: list[str] = []
        """Lines of history that were uploaded."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: WandbServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        is_query = self.path == "/graphql"
        asked = json.loads(body) if is_query else {}
        self.server.asked.append(str(asked.get("operationName", self.path)))
        if self.server.manner == "silent":
            self.server.is_over.wait()
            return
        if self.server.manner == "401":
            self._answer(401, json.dumps({"errors": [{"message": "user is not logged in"}]}))
        elif self.server.manner == "500":
            self._answer(500, "<html>an error")
        elif self.server.manner == "garbage":
            self._answer(200, "<html>a login page")
        else:
            if self.path.endswith("/file_stream"):
                files = json.loads(body).get("files") or {}
                self.server.logged += files.get("wandb-history.jsonl", {}).get("content", [])
            self._answer(200, json.dumps(_found(asked, self.server.url)))

    do_GET = do_PUT = do_POST  # noqa: N815  # as http.server names them

    def _answer(self, code: int, text: str) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""


def _found(asked: dict[str, Any], url: str) -> dict[str, Any]:
    given = asked.get("variables") or {}
    if asked.get("operationName") == "UpsertBucket":
        project = {"name": given.get("project") or "p", "entity": {"name": "somebody"}}
        bucket = {"id": "id", "name": given.get("name"), "displayName": given.get("displayName"), "project": project}
        return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
    if asked.get("operationName") == "CreateRunFiles":  # else wandb-core dies of it (0.31)
        files = [{"name": name, "uploadUrl": f"{url}/put"} for name in given.get("files", [])]
        return {"data": {"createRunFiles": {"runID": "id", "uploadHeaders": [], "files": files}}}
    viewer = {"id": "id", "entity": "somebody", "username": "somebody", "email": "", "flags": "{}", "teams": None}
    return {"data": {"viewer": viewer, "serverInfo": None, "model": None}}


@contextmanager
def wandb_server(manner: str) -> Iterator[WandbServer]:
    """A running one, for the block."""
    with WandbServer(manner) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.is_over.set()
            server.shutdown()
            thread.join()
