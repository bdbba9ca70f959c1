"""What every wire and system test is held to: nothing leaks, and nothing fails where no one looks.

`faulthandler` is pytest's own (see `faulthandler_timeout` in pyproject.toml): a crash or a hang in compiled
code prints where every thread stood.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import os
import time
from collections.abc import Callable, Coroutine, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop

from tests.authority import Authority

T = TypeVar("T")

RELEASE_WITHIN_S = 10.0
"""How long descriptors, tasks and children may take to go after a test: generous, only ever waited for in a failure."""

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}

IO: ContextVar[str] = ContextVar("IO", default="auto")
"""How the tunnels of this run read plain sockets: `Settings.io`, for the helpers that make tunnels."""

WIRE: ContextVar[str] = ContextVar("WIRE", default="h1")
"""What the clients of this run speak: one of WIRES."""

WIRES = ("h1", "h1+tls", "h2c", "h2+tls")
"""Of `h1`, `h1+tls`, `h2c` and `h2+tls`: those that the wire tests are run over."""

STEPS = [("asyncio", "protocol", "h1"), ("uvloop", "protocol", "h1"), *(("uvloop", "hub", wire) for wire in WIRES)]
"""Loops, ways of reading and wires that a tunnel is tried on: the loop's transports differ, below the hub loops hardly
do, and all but plain HTTP/1.1 exists over the hub only."""

WATCHED = ("wire", "system")
"""Folders of tests/ whose tests open sockets, run tasks or start children."""


class Run:
    """Runs a coroutine to its end in a fresh loop, and fails on what the loop would only have logged.

    in      kind  of loop; io: as in Settings; wire: one of WIRES
            coroutine; timeout_s: the whole run, so that a hang names the await it hangs in
    out     the coroutine's result
    raises  whatever it raises; AssertionError on a task left behind or on a call of the loop's exception handler
    """

    def __init__(self, kind: str, io: str = "auto", wire: str = "h1") -> None:
        self.kind, self.io, self.wire = kind, io, wire

    def __call__(self, coroutine: Coroutine[Any, Any, T], *, timeout_s: float = 45.0) -> T:
        faults: list[dict[str, Any]] = []
        IO.set(self.io)
        WIRE.set(self.wire)
        with asyncio.Runner(loop_factory=LOOPS[self.kind]) as runner:
            runner.get_loop().set_exception_handler(lambda _loop, context: faults.append(context))
            result = runner.run(_watched(coroutine, timeout_s))
            gc.collect()  # a task's lost exception is reported when the task goes
        assert not faults, f"the loop's exception handler was called: {faults}"
        return result


async def _watched(coroutine: Coroutine[Any, Any, T], timeout_s: float) -> T:
    async with asyncio.timeout(timeout_s):
        result = await coroutine
    deadline = time.monotonic() + RELEASE_WITHIN_S
    while left := asyncio.all_tasks() - {asyncio.current_task()}:
        assert time.monotonic() < deadline, f"tasks left behind: {left}"
        await asyncio.sleep(0.005)
    return result


@pytest.fixture(params=list(LOOPS))
def run(request: pytest.FixtureRequest) -> Run:
    """`run(coroutine)`, once under asyncio and once under uvloop."""
    return Run(request.param)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Makes certificates."""
    return Authority(tmp_path)


def open_descriptors() -> dict[int, str]:
    """Every open descriptor of this process and what it leads to."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return found


def children() -> set[int]:
    """Every child process of this one, the dead that nobody waited for included."""
    found: set[int] = set()
    for thread in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{thread}/children", encoding="ascii") as file:
                found.update(map(int, file.read().split()))
        except FileNotFoundError:  # the thread ended
            continue
    return found


@pytest.fixture(scope="session", autouse=True)
def _warm_loops() -> None:
    """What a loop opens once per process (libuv's signal pipe) is open before anything is counted."""
    assert faulthandler.is_enabled(), "pytest's faulthandler plugin is off: a crash would say nothing"
    for factory in LOOPS.values():
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.sleep(0))


@pytest.fixture(scope="module", autouse=True)
def _old_heap_out_of_the_way() -> None:
    """What thousands of earlier tests left behind is not walked again by every collection below."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _nothing_leaks(request: pytest.FixtureRequest, _warm_loops: None) -> Iterator[None]:
    """A wire or system test gives back every descriptor and every child that it took."""
    folder = os.path.relpath(request.path, os.path.dirname(__file__)).split(os.sep)[0]
    if folder not in WATCHED:
        yield
        return
    gc.collect()
    fds_before, children_before = open_descriptors(), children()
    yield
    deadline = time.monotonic() + RELEASE_WITHIN_S
    while True:
        gc.collect()
        fds = dict(open_descriptors().items() - fds_before.items())
        orphans = children() - children_before
        if not fds and not orphans:
            return
        assert time.monotonic() < deadline, f"left open: {fds}, left running: {orphans}"
        time.sleep(0.01)
