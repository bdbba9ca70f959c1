"""What goes wrong around a spawned slot only when the machine does. What goes right: tests/system."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from wstunnel.errors import StartError
from wstunnel.limits import Limits, SpawnLimits
from wstunnel.settings import UnixAddress
from wstunnel.supervise.child import Child, ExitStatus
from wstunnel.supervise.spawn import Program
from wstunnel.supervise.spawned import SpawnedSlot

DEADLINE_S = 20.0


def spawned(folder: Path, **limits: float) -> SpawnedSlot:
    return SpawnedSlot(
        "echo-0",
        UnixAddress(str(folder / "socket")),
        Program("/bin/sleep", ("1000",)),
        Limits(spawn=SpawnLimits(**limits)),
        signal.SIGTERM,
    )


async def eventually(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


def test_a_slot_without_a_descriptor_left_for_its_log_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail():
        raise OSError(24, "Too many open files")

    async def main() -> None:
        spawned(tmp_path)

    monkeypatch.setattr(os, "pipe", fail)

    with pytest.raises(StartError, match="echo-0: no pipe for its log: Too many open files"):
        asyncio.run(main())

    assert os.listdir(tmp_path) == []


def test_a_process_that_even_sigkill_does_not_end_is_left_behind_and_said_so(tmp_path, monkeypatch, caplog):
    """One that sleeps in the kernel, or that has become another user's."""

    async def main() -> None:
        before = os.listdir("/proc/self/fd")
        slot = spawned(tmp_path, kill_timeout_s=0.01)
        slot.launch()
        pids.append(slot.pid)
        with monkeypatch.context() as patch:
            patch.setattr(Child, "signal_group", lambda child, number: None)
            await slot.stop()
        assert slot.state == "stopped"
        assert os.listdir("/proc/self/fd") == before

    pids: list[int | None] = []
    with pytest.warns(ResourceWarning, match="still running"):
        asyncio.run(main())
    os.kill(pids[0], signal.SIGKILL)
    os.waitpid(pids[0], 0)

    assert os.listdir(tmp_path) == []
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.ERROR]
    assert caplog.messages[-1] == "echo-0: still running after SIGKILL and left behind"


def test_an_end_that_a_debugger_still_holds_back_is_taken_when_it_comes(tmp_path, monkeypatch):
    """The kernel says "ended" by the pidfd, and gives the status only after the tracer has had it."""

    async def main() -> None:
        slot = spawned(tmp_path)
        slot.launch()
        reap, looks = Child.reap, []

        def reap_third_time(child: Child) -> ExitStatus | None:
            looks.append(child)
            return reap(child) if len(looks) > 2 else None

        monkeypatch.setattr(Child, "reap", reap_third_time)
        os.kill(slot.pid, signal.SIGKILL)
        await eventually(lambda: slot.deaths == 1)
        assert await slot.exit_status_since(0) == ExitStatus(signal=signal.SIGKILL)
        await slot.stop()

    asyncio.run(main())


def test_a_status_that_does_not_come_is_awaited_for_its_time_only(tmp_path, monkeypatch):
    async def main() -> None:
        slot = spawned(tmp_path, exit_wait_s=0.01)
        slot.launch()
        monkeypatch.setattr(Child, "is_exiting", lambda child: True)
        assert slot.is_ending_since(0)
        assert await slot.exit_status_since(0) is None
        await slot.stop()

    asyncio.run(main())


def test_a_death_is_news_for_a_while_when_it_may_not_have_been_the_connections_own(tmp_path, monkeypatch):
    async def main() -> None:
        slot = spawned(tmp_path, exit_wait_s=60.0)
        monkeypatch.setattr(SpawnedSlot, "_has_backlog", lambda slot: True)
        slot.launch()
        os.kill(slot.pid, signal.SIGKILL)
        await eventually(lambda: slot.deaths == 1)
        now_s = asyncio.get_running_loop().time()
        for later_s, is_news in ((59.0, True), (61.0, False)):
            with monkeypatch.context() as patch:
                patch.setattr(asyncio.get_running_loop(), "time", lambda later_s=later_s: now_s + later_s)
                assert slot.is_ending_since(0) is is_news
            assert not slot.is_ending_since(1)
        await slot.stop()

    asyncio.run(main())


def test_a_group_that_may_not_be_signalled_stops_no_stop(tmp_path, monkeypatch, caplog):
    def refuse(group, number):
        raise PermissionError(1, "Operation not permitted")

    async def main() -> None:
        slot = spawned(tmp_path, kill_timeout_s=0.01)
        slot._orphans = {1234567}
        monkeypatch.setattr("wstunnel.supervise.procfs.orphans_live", lambda group: True)
        monkeypatch.setattr(os, "killpg", refuse)
        await slot.stop()

    asyncio.run(main())

    assert caplog.messages[-1] == "echo-0: still running after SIGKILL and left behind"
