"""Images read before their turn, in threads, while a model is busy with those before."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from skipway.images import DecodeError

Item = TypeVar("Item")
Ready = TypeVar("Ready")


def read_ahead(
    items: Iterable[Item],
    read: Callable[[Item], Ready],
    threads: int,
    most: int,
    on_bad: str = "error",
) -> Iterator[tuple[Item, Ready | DecodeError]]:
    """Each item with what `read` makes of it in one of the threads, in the order of the items.

    most: items that are begun before their turn, so as many results are held at a time. A
    DecodeError is raised in its turn where `on_bad` is error, else it stands in for the result.
    """
    waiting: deque[tuple[Item, Future[Ready]]] = deque()

    def first() -> tuple[Item, Ready | DecodeError]:
        item, future = waiting.popleft()
        try:
            return item, future.result()
        except DecodeError as error:
            if on_bad == "error":
                raise
            return item, error

    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            waiting.append((item, pool.submit(read, item)))
            if len(waiting) > most:
                yield first()
        while waiting:
            yield first()
    finally:
        pool.shutdown(cancel_futures=True)


def batches(rows: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """The rows in their order, `size` at a time; the last batch may have fewer."""
    rest = iter(rows)
    while batch := list(itertools.islice(rest, size)):
        yield batch
