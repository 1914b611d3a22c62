"""Calls in threads for a server that may end at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import threading
import traceback
from collections.abc import Callable
from typing import Any


class Threads:
    """Runs each call in a thread of its own; `stop` ends those under way.

    Python would wait at its end for an ordinary thread, minutes for a large picture, and a daemon thread
    that comes back from compiled code then would abort the process.
    """

    def __init__(self) -> None:
        self._running: set[threading.Thread] = set()

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a call, or what it raises."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def finish(setter: Callable[[Any], None], value: Any) -> None:
            if not future.cancelled():
                setter(value)

        def work() -> None:
            try:
                done = future.set_result, function(*arguments)
            except Exception as error:
                clear_frames(error)
                done = future.set_exception, error
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(finish, *done)

        thread = threading.Thread(target=work, daemon=True)
        self._running = {each for each in self._running if each.is_alive()} | {thread}
        thread.start()
        return await future

    def stop(self) -> None:
        """End all threads with SystemExit, as soon as each is back from compiled code, and wait for it."""
        for thread in filter(threading.Thread.is_alive, self._running):
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
            )
            thread.join()


def clear_frames(error: BaseException | None) -> None:
    """Let an error, and those it came from, hold no variables: a cycle with asyncio's frames keeps it."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
