"""A real S3 server on this machine, for tests: moto's, spoken to over HTTP by whatever process has its address."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.request import Request, urlopen

BUCKET = "bucket"


@dataclass(frozen=True)
class S3Server:
    """Where it is, and what a process needs in its environment to reach it."""

    url: str

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@cache
def _make_puts_atomic() -> None:
    """As a real store's are: moto looks whether an object is there, and then writes it, in a thread a request."""
    from moto.s3.responses import S3Response

    put, lock = S3Response.put_object, threading.Lock()

    def put_alone(self: S3Response) -> Any:
        with lock:
            return put(self)

    S3Response.put_object = put_alone  # type: ignore[method-assign]


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """With one empty bucket."""
    import boto3
    import s3fs
    from moto.server import ThreadedMotoServer

    _make_puts_atomic()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    found = S3Server(f"http://{host}:{port}")
    # All servers of a process hold the same objects, those of earlier tests too.
    urlopen(Request(f"{found.url}/moto-api/reset", method="POST"), timeout=10).close()
    names = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=found.url, **names).create_bucket(Bucket=BUCKET)
    try:
        yield found
    finally:
        server.stop()
        s3fs.S3FileSystem.clear_instance_cache()  # they have this server's address
