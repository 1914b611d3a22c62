"""Reading and writing beside computing: one item is made, or put away, while another is worked on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
_END: Any = object()


def ahead(items: Iterable[T]) -> Iterator[T]:
    """The items in order; the next one, and no more, is made in a thread while the caller works on one.

    Close it (`contextlib.closing`) before what the items are made from: the thread is done then.
    """
    items = iter(items)
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, items, _END)
        while (item := following.result()) is not _END:
            following = pool.submit(next, items, _END)
            yield item


class Behind:
    """A function whose calls run in threads; a call waits until fewer than `threads` are under way.

    With one thread they run in order. What a call raises comes out of a later one, or of the end of
    the `with` block.
    """

    def __init__(self, function: Callable[..., object], threads: int = 1):
        self._function, self._threads = function, threads
        self._under_way: deque[Future] = deque()

    def __enter__(self) -> Behind:
        self._pool = ThreadPoolExecutor(self._threads)
        return self

    def __call__(self, *arguments: Any) -> None:
        if len(self._under_way) == self._threads:
            self._under_way.popleft().result()
        self._under_way.append(self._pool.submit(self._function, *arguments))

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._pool.shutdown()
        if kind is None:
            for call in self._under_way:
                call.result()
