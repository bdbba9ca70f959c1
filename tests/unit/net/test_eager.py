"""A coroutine without a task until it waits, and what a task of the rest does that one of the whole would do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from tests.conftest import Run
from tests.wire.sockets import turns
from wstunnel.net.eager import begin


def test_what_never_waits_is_over_at_once(run: Run):
    async def main() -> None:
        done: list[object] = []

        async def at_once() -> None:
            done.append(asyncio.current_task())

        before = asyncio.current_task()
        assert begin(at_once()) is None
        assert done == [before]

    run(main())


def test_what_it_raises_before_its_first_wait_is_the_callers(run: Run):
    async def main() -> None:
        async def fail() -> None:
            raise LookupError("now")

        with pytest.raises(LookupError, match="now"):
            begin(fail())

    run(main())


async def _waiting(future: asyncio.Future[str]) -> str:
    return await future


async def _later(future: asyncio.Future[str]) -> str:
    await asyncio.sleep(0)
    return await future


Waits = Callable[["asyncio.Future[str]"], Awaitable[object]]
WAITS: dict[str, Waits] = {
    "a future": lambda future: future,
    "a task of it": lambda future: asyncio.ensure_future(_waiting(future)),
    "any of several": lambda future: asyncio.wait((future,)),
    "the next turn, and then it": _later,
}


def begun(coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    left = begin(coroutine)
    assert left is not None
    return asyncio.get_running_loop().create_task(left)


def whole(coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(coroutine)


@pytest.mark.parametrize("start", [begun, whole])
@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_what_waits_goes_on_when_that_is_done(run: Run, wait, start):
    async def main() -> None:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        got: list[object] = []

        async def serve() -> None:
            await wait(future)
            got.append(asyncio.current_task())
            await asyncio.sleep(0)
            got.append("again")

        task = start(serve())
        await turns(2)
        assert got == []
        future.set_result("done")
        await task
        assert got == [task, "again"]

    run(main())


@pytest.mark.parametrize("start", [begun, whole])
@pytest.mark.parametrize("error", [LookupError("later"), asyncio.CancelledError()])
def test_what_it_waits_for_may_fail(run: Run, error, start):
    async def main() -> None:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def serve() -> None:
            await future

        task = start(serve())
        if isinstance(error, asyncio.CancelledError):
            future.cancel()
        else:
            future.set_exception(error)
        with pytest.raises(type(error)):
            await task

    run(main())


@pytest.mark.parametrize("start", [begun, whole])
@pytest.mark.parametrize("late", range(3))
@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_a_cancellation_is_that_of_a_task_that_waits(run: Run, wait, late, start):
    """What it waits for is cancelled first, and is over when the coroutine hears of it; also in the very turn in which
    the task was made."""

    async def main() -> None:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        heard: list[bool] = []

        async def serve() -> None:
            waited = asyncio.ensure_future(wait(future))
            try:
                await waited
            except asyncio.CancelledError:
                heard.append(waited.cancelled())
                await asyncio.sleep(0)
                heard.append(True)
                raise

        task = start(serve())
        await turns(late + (start is whole))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert heard == [True, True]
        future.cancel()

    run(main())


@pytest.mark.parametrize("start", [begun, whole])
def test_a_cancellation_that_comes_after_what_was_waited_for_finds_it_done(run: Run, start):
    async def main() -> None:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        heard: list[bool] = []

        async def serve() -> None:
            try:
                await future
            except asyncio.CancelledError:
                heard.append(future.cancelled())
                raise

        task = start(serve())
        await turns(start is whole)
        future.set_result("done")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert heard == [False]

    run(main())


def test_what_was_begun_and_never_made_a_task_of_can_be_closed(run: Run):
    async def main() -> None:
        ended: list[str] = []

        async def serve() -> None:
            try:
                await asyncio.sleep(0)
            finally:
                ended.append("closed")

        left = begin(serve())
        assert left is not None
        left.close()
        assert ended == ["closed"]

    run(main())
