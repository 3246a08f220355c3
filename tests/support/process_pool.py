"""Processes that train together, as torchrun starts them: started once, they do one thing after the other."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

_PATIENCE_SECONDS = 300.0
ENDED = "its process has ended"


class Together:
    """So many real processes, joined by gloo. After a failure of the test's own they are of no more use."""

    def __init__(self, count: int = 2) -> None:
        spawn = multiprocessing.get_context("spawn")
        port = _free_port()
        pairs = [spawn.Pipe() for _ in range(count)]
        self._ours = [ours for ours, _ in pairs]
        self._processes = [
            spawn.Process(target=_serve, args=(theirs, number, count, port), daemon=True)
            for number, (_, theirs) in enumerate(pairs)
        ]
        for process, (_, theirs) in zip(self._processes, pairs, strict=True):
            process.start()
            theirs.close()  # so that the end of the process is noticed

    def run(self, work: Callable[..., Any], *given: Any) -> list[Any]:
        """What `work(ranks, *given)` gives in each of them, the error that it raises there, or `ENDED`.

        Raises TimeoutError if one of them doesn't answer: then it waits for another in vain.
        """
        for connection in self._ours:
            connection.send((work, given))
        return [self._answer(number) for number in range(len(self._ours))]

    def close(self) -> None:
        """Ends them."""
        for process in self._processes:
            process.kill()
            process.join()

    def _answer(self, number: int) -> Any:
        if not self._ours[number].poll(_PATIENCE_SECONDS):
            self.close()
            raise TimeoutError(f"rank {number} doesn't answer")
        try:
            return self._ours[number].recv()
        except EOFError:
            return ENDED


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _serve(connection: Connection, number: int, count: int, port: int) -> None:
    import torch

    from trials.system.distributed import joined_process_group

    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(count), RANK=str(number))
    with joined_process_group() as ranks:
        while True:
            work, given = connection.recv()
            try:
                found = work(ranks, *given)
            except Exception as error:
                found = error.with_traceback(None)
            connection.send(found)
