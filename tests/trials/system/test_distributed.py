"""What the processes of one trial say to each other: two real ones."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.support.process_pool import Together
from trials.data.tokenization import TokenizedRow
from trials.errors import PeerError
from trials.evaluation.eval_loss import shared_losses
from trials.metrics.row_losses import RowLosses
from trials.system.distributed import ALONE, ProcessGroup, joined_process_group


@pytest.fixture(scope="module")
def pair() -> Iterator[Together]:
    together = Together(2)
    yield together
    together.close()


def _summed(ranks: ProcessGroup) -> list[list[float]]:
    tensors = torch.tensor([1.0 + ranks.rank]), torch.full((2,), 10.0 * ranks.rank)
    ranks.sum(*tensors)
    return [tensor.tolist() for tensor in tensors]


def test_every_rank_has_the_sums(pair: Together) -> None:
    assert pair.run(_summed) == [[[3.0], [10.0, 10.0]]] * 2


def _agreed(ranks: ProcessGroup) -> list[bool]:
    return [ranks.any(ranks.rank == 1), ranks.any(), ranks.any(ranks.rank == 0)]


def test_what_one_says_all_agree_on(pair: Together) -> None:
    assert pair.run(_agreed) == [[True, False, True]] * 2


OUT_OF_MEMORY = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")


def _failed_on_the_second(ranks: ProcessGroup, error: Exception) -> bool:
    if ranks.rank == 1:
        ranks.fail(error)
        return False
    return ranks.any(True)


@pytest.mark.parametrize(
    ("error", "heard"), [(OUT_OF_MEMORY, torch.OutOfMemoryError), (ValueError("no such row"), PeerError)]
)
def test_who_fails_tells_the_others(pair: Together, error: Exception, heard: type[Exception]) -> None:
    first, second = pair.run(_failed_on_the_second, error)
    assert isinstance(first, heard)
    assert "on another of the trial's GPUs" in str(first)
    assert second is False
    assert pair.run(_agreed) == [[True, False, True]] * 2  # nobody waits for anybody any more


def _fails_and_is_heard(ranks: ProcessGroup, error: Exception) -> str:
    """As a step in which both take part: whoever heard of the failure is in the same `except` as whoever failed."""
    try:
        if ranks.rank == 1:
            raise error
        ranks.any()
    except Exception as failure:
        ranks.fail(failure)
        return type(failure).__name__
    return "nothing"


@pytest.mark.parametrize("error", [OUT_OF_MEMORY, ValueError("no such row")])
def test_what_was_heard_is_not_said_again(pair: Together, error: Exception) -> None:
    heard, raised = pair.run(_fails_and_is_heard, error)
    assert heard != "nothing"
    assert raised == type(error).__name__
    assert pair.run(_agreed) == [[True, False, True]] * 2


def _process_of_the_first(ranks: ProcessGroup) -> tuple[int, int]:
    return ranks.on_rank_zero(os.getpid), os.getpid()


def test_the_first_finds_and_the_others_hear(pair: Together) -> None:
    (heard, first), (also_heard, second) = pair.run(_process_of_the_first)
    assert heard == also_heard == first != second


def _together(ranks: ProcessGroup, error: Exception | None = None) -> list[int]:
    def work() -> int:
        if error is not None and ranks.rank == 1:
            raise error
        return 10 * ranks.rank

    return ranks.all_gather(work)


def test_all_have_what_each_has_made(pair: Together) -> None:
    assert pair.run(_together) == [[0, 10]] * 2


@pytest.mark.parametrize(
    ("error", "heard"), [(OUT_OF_MEMORY, torch.OutOfMemoryError), (ValueError("no such row"), PeerError)]
)
def test_what_fails_on_one_fails_on_all(pair: Together, error: Exception, heard: type[Exception]) -> None:
    first, second = pair.run(_together, error)
    assert isinstance(first, heard)
    assert type(second) is type(error)
    assert str(error) in str(first)
    assert str(second) == str(error)
    assert pair.run(_together) == [[0, 10]] * 2


def _divided(ranks: ProcessGroup, items: Sequence[int]) -> tuple[list[int], list[int]]:
    mine: list[int] = []

    def work(part: Sequence[int]) -> list[int]:
        mine.extend(part)
        return [item * item for item in part]

    return list(ranks.map_sharded(items, work)), mine


def test_work_is_divided_and_its_order_kept(pair: Together) -> None:
    squares = [0, 1, 4, 9, 16]
    assert pair.run(_divided, range(5)) == [(squares, [0, 2, 4]), (squares, [1, 3])]
    assert pair.run(_divided, range(1)) == [([0], [0]), ([0], [])]


def _row(tokens: int) -> TokenizedRow:
    return TokenizedRow(str(tokens), list(range(tokens)), [-100, *range(1, tokens)])


def _losses(ranks: ProcessGroup, rows: Sequence[TokenizedRow]) -> RowLosses:
    return shared_losses(ranks, rows, lambda part: RowLosses(*zip(*[_loss(row) for row in part], strict=True)))


def _loss(row: TokenizedRow) -> tuple[float, int]:
    return len(row.input_ids) / 7, row.completion_tokens


def test_losses_are_those_of_one_process(pair: Together) -> None:
    rows = [_row(tokens) for tokens in (5, 3, 9, 4, 2)]
    alone = _losses(ALONE, rows)
    for found in pair.run(_losses, rows):
        assert (list(found.loss_sums), list(found.token_counts)) == (list(alone.loss_sums), list(alone.token_counts))


def _rests(ranks: ProcessGroup) -> int:
    rests = 0

    @contextmanager
    def resting() -> Iterator[None]:
        nonlocal rests
        rests += 1
        yield

    resting_ranks = replace(ranks, resting=resting)
    resting_ranks.sum(torch.zeros(1))
    resting_ranks.any()
    resting_ranks.on_rank_zero(lambda: None)
    return rests


def test_who_waits_for_the_others_rests(pair: Together) -> None:
    assert pair.run(_rests) == [3, 3]


def _parts(tokens: Sequence[int], count: int) -> list[slice]:
    parts = [ProcessGroup(number, count).shard(tokens) for number in range(count)]
    assert all(is_counted for _, is_counted in parts)
    return [part for part, _ in parts]


@pytest.mark.parametrize(
    ("tokens", "ends"),
    [
        ([10, 10, 10, 10], [2, 4]),
        ([40, 10, 10, 10, 10], [1, 5]),
        ([1, 1, 1, 97], [3, 4]),
        ([97, 1, 1], [1, 2, 3]),  # a row for each, though the first has nearly all tokens
        ([1, 1, 97], [1, 2, 3]),
        ([7, 7, 7, 7, 7, 7, 7], [2, 5, 7]),
    ],
)
def test_a_step_is_divided_by_tokens_among_neighbours(tokens: list[int], ends: list[int]) -> None:
    parts = _parts(tokens, len(ends))
    assert [part.stop for part in parts] == ends
    assert [part.start for part in parts] == [0, *ends[:-1]]


def test_of_fewer_rows_than_ranks_each_counts_once() -> None:
    parts = [ProcessGroup(number, 4).shard([5, 7]) for number in range(4)]
    assert parts == [(slice(0, 1), True), (slice(1, 2), True), (slice(1, 2), False), (slice(1, 2), False)]


def test_alone_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    tensor = torch.ones(2)
    with joined_process_group() as ranks:
        assert ranks is ALONE
        ranks.sum(tensor)
        ranks.fail(ValueError("not heard"))
        assert [ranks.any(), ranks.any(True)] == [False, True]
        assert ranks.all_gather(lambda: 3) == [3]
        assert ranks.shard([5, 5, 5]) == (slice(0, 3), True)
    assert tensor.tolist() == [1.0, 1.0]


def test_alone_an_error_is_raised_as_it_is() -> None:
    def fails() -> Any:
        raise KeyError("row")

    with pytest.raises(KeyError):
        ALONE.all_gather(fails)
