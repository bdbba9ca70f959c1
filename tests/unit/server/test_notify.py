"""A word to the service manager, with a datagram socket in the manager's place."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from tests.wire.sockets import DEADLINE_S
from wstunnel.limits import NotifyLimits
from wstunnel.server.notify import Notifier


class Manager:
    """Hears datagrams at `address`."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0"))
        self._socket.settimeout(DEADLINE_S)

    def hear(self) -> list[str]:
        """The lines of one message."""
        return self._socket.recv(4096).decode().split("\n")

    async def hear_later(self) -> list[str]:
        """As `hear`, while the loop turns."""
        return await asyncio.to_thread(self.hear)

    def hears_nothing(self) -> bool:
        self._socket.settimeout(0)
        try:
            self._socket.recv(4096)
        except BlockingIOError:
            return True
        return False

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@wstunnel-test-{tmp_path}"
    made = Manager(address)
    yield made
    made.close()


def with_notifier(
    body: Callable[[Notifier], Awaitable[None]],
    address: str | None,
    watchdog_s: float | None = None,
    limits: NotifyLimits | None = None,
) -> None:
    """Run `body` with a notifier in a loop of its own."""

    async def run() -> None:
        notifier = Notifier(address, watchdog_s, limits or NotifyLimits())
        try:
            await asyncio.wait_for(body(notifier), DEADLINE_S * 2)
        finally:
            notifier.close()

    uvloop.run(run())


def test_the_manager_hears_of_start_reload_and_end(manager):
    async def body(notifier: Notifier) -> None:
        notifier.ready("2 workers")
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        notifier.reloading("reading")
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        notifier.ready()
        notifier.status("17 tunnels")
        notifier.stopping("ending")

        assert manager.hear() == ["READY=1", "STATUS=2 workers"]
        reloading, moment, status = manager.hear()
        assert (reloading, status) == ("RELOADING=1", "STATUS=reading")
        name, _, usec = moment.partition("=")
        assert name == "MONOTONIC_USEC"
        assert before <= int(usec) <= after
        assert manager.hear() == ["READY=1"]
        assert manager.hear() == ["STATUS=17 tunnels"]
        assert manager.hear() == ["STOPPING=1", "STATUS=ending"]

    with_notifier(body, manager.address)


def test_a_status_is_one_line_of_bounded_length_whatever_is_in_it(manager):
    async def body(notifier: Notifier) -> None:
        notifier.status("a\nREADY=1\x1b" + "x" * 1000)
        (line,) = manager.hear()
        assert line == "STATUS=a READY=1 " + "x" * (NotifyLimits().status_chars - len("a READY=1 "))

    with_notifier(body, manager.address)


class Loop:
    """An event loop whose one timer is fired by the test."""

    def __init__(self) -> None:
        self.delay_s = 0.0
        self.is_cancelled = False
        self.fire: Callable[[], None] = lambda: None

    def call_later(self, delay_s: float, callback: Callable[..., None], *args: object) -> Loop:
        self.delay_s, self.fire = delay_s, lambda: callback(*args)
        return self

    def cancel(self) -> None:
        self.is_cancelled = True


def test_the_watchdog_is_fed_at_once_and_then_twice_in_its_time(manager, monkeypatch):
    loop = Loop()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    notifier = Notifier(manager.address, watchdog_s=30.0)
    for _ in range(3):
        assert manager.hear() == ["WATCHDOG=1"]
        assert loop.delay_s == 15.0
        loop.fire()
    notifier.close()
    assert loop.is_cancelled


def test_the_watchdog_is_fed_while_the_loop_turns(manager):
    async def body(notifier: Notifier) -> None:
        for _ in range(4):
            assert await manager.hear_later() == ["WATCHDOG=1"]

    with_notifier(body, manager.address, watchdog_s=0.02)


def test_a_loop_that_stands_still_feeds_no_watchdog(manager):
    async def body(notifier: Notifier) -> None:
        assert manager.hear() == ["WATCHDOG=1"]
        until = time.monotonic() + 0.1
        while time.monotonic() < until:  # the loop hangs
            pass
        assert manager.hears_nothing()

    with_notifier(body, manager.address, watchdog_s=0.04)


def test_without_a_watchdog_nothing_is_said_by_itself(manager):
    async def body(notifier: Notifier) -> None:
        notifier.ready()
        assert manager.hear() == ["READY=1"]
        assert manager.hears_nothing()

    with_notifier(body, manager.address)


def test_without_a_manager_nothing_is_said(manager):
    async def body(notifier: Notifier) -> None:
        notifier.ready("2 workers")
        notifier.stopping()

    with_notifier(body, None, watchdog_s=0.1)
    assert manager.hears_nothing()


def test_a_manager_that_is_gone_is_no_error_and_is_told_again_when_it_is_back(tmp_path, caplog):
    address = str(tmp_path / "notify")

    async def body(notifier: Notifier) -> None:
        notifier.ready()
        notifier.status("one")
        manager = Manager(address)
        notifier.status("two")
        assert manager.hear() == ["STATUS=two"]
        manager.close()

    with_notifier(body, address)
    (line,) = caplog.messages
    assert line.startswith("the service manager cannot be told anything: ")


@pytest.mark.parametrize("address", ["vsock:2:1234", "relative", "/" + "x" * 200])
def test_an_address_that_cannot_be_is_told_to_the_log_and_is_no_error(address, caplog):
    async def body(notifier: Notifier) -> None:
        notifier.ready()

    with_notifier(body, address, watchdog_s=1.0)
    assert len(caplog.messages) == 1


def test_while_the_manager_does_not_read_the_latest_of_each_kind_waits_in_order(manager):
    async def body(notifier: Notifier) -> None:
        fill = 0
        stuffing = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        stuffing.setblocking(False)
        try:
            while True:
                stuffing.sendto(b"x", manager.address.replace("@", "\0"))
                fill += 1
        except BlockingIOError:
            stuffing.close()

        began = time.monotonic()
        for number in range(1000):
            notifier.status(f"number {number}")
        notifier.ready("old")
        notifier.reloading()
        notifier.ready("new")
        assert time.monotonic() - began < DEADLINE_S

        for _ in range(fill):
            assert await manager.hear_later() == ["x"]
        assert await manager.hear_later() == ["STATUS=number 999"]
        assert (await manager.hear_later())[0] == "RELOADING=1"
        assert await manager.hear_later() == ["READY=1", "STATUS=new"]
        assert manager.hears_nothing()

    with_notifier(body, manager.address, limits=NotifyLimits(retry_s=0.01))


def test_the_next_image_goes_on_talking(manager):
    async def body(notifier: Notifier) -> None:
        assert manager.hear() == ["WATCHDOG=1"]
        exported = notifier.export()
        notifier.close()
        second = Notifier.adopt(exported)
        assert manager.hear() == ["WATCHDOG=1"]
        second.ready()
        assert manager.hear() == ["READY=1"]
        second.close()

    with_notifier(body, manager.address, watchdog_s=100.0)


def test_after_close_nothing_is_said(manager):
    async def body(notifier: Notifier) -> None:
        notifier.close()
        notifier.ready()
        assert manager.hears_nothing()

    with_notifier(body, manager.address)
