"""A coroutine's first step at once, without a task: most of those that serve a handshake never wait for anything.

Python has eager tasks from 3.12 on, and they cost a task each. Here one is made only of what is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any

__all__ = ["Begun", "begin"]


def begin(coroutine: Coroutine[Any, Any, None]) -> Begun | None:
    """Run to the first wait; what is left, to be made a task of, or None: it is over.

    raises  what the coroutine does
    There is no current task in the first step: who needs one (`asyncio.timeout`) waits for `asyncio.sleep(0)` before.
    """
    try:
        return Begun(coroutine, coroutine.send(None))
    except StopIteration:
        return None


class Begun(Coroutine[Any, Any, None]):
    """A coroutine that waits already. A task of it waits for the same, and cancelled as one of the whole."""

    __slots__ = ("_coroutine", "_wait")

    def __init__(self, coroutine: Coroutine[Any, Any, None], wait: asyncio.Future[Any] | None) -> None:
        self._coroutine = coroutine
        self._wait = wait

    def send(self, value: None) -> Any:
        wait, self._wait = self._wait, None
        return self._coroutine.send(value) if wait is None else wait

    def throw(self, *error: Any) -> Any:
        wait, self._wait = self._wait, None
        if wait is not None and wait.cancel():
            return wait  # a task is cancelled by the end of what it waits for
        return self._coroutine.throw(*error)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, None, None]:
        return self._coroutine.__await__()
