"""What a spawned slot writes on the board, and what goes wrong around it only when the machine does. The rest:
tests/system."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from wstunnel.limits import Limits, MasterLimits, RestartLimits, SpawnLimits
from wstunnel.proto.restart import RestartGate
from wstunnel.settings import UnixAddress
from wstunnel.supervise import procfs
from wstunnel.supervise.board import Board, SlotColumn, SlotState
from wstunnel.supervise.child import Child, ExitStatus
from wstunnel.supervise.endpoint import Endpoint
from wstunnel.supervise.place import SlotPlace
from wstunnel.supervise.spawn import Program
from wstunnel.supervise.spawned import Recipe, SlotOwner, SpawnedSlot
from wstunnel.supervise.stderr import StderrPipe

DEADLINE_S = 20.0
ROW = 3
SLEEP = Program("/bin/sleep", ("1000",))


def with_slot(
    folder: Path,
    story: Callable[[SpawnedSlot, memoryview], Awaitable[None]],
    *,
    program: Program = SLEEP,
    restart: RestartLimits | None = None,
    kill_timeout_s: float = DEADLINE_S,
    on_death: Callable[[int], None] = lambda row: None,
    is_wanted: bool = True,
) -> None:
    """Run a story with one slot and its row; the slot is stopped at the end, if the story has not done it."""
    limits = Limits(
        restart=restart or RestartLimits(healthy_after_s=0.0),
        spawn=SpawnLimits(settle_poll_s=0.001),
        master=MasterLimits(worker_rows=2, slot_rows=8),
    )

    async def main() -> None:
        board = Board(limits.master)
        address = UnixAddress(str(folder / "socket"))
        endpoint = Endpoint.bind(address, backlog=16, is_taken=False)
        stderr = StderrPipe("echo-0", limits.spawn, asyncio.get_running_loop())
        slot = SpawnedSlot(
            SlotPlace("echo-0", address, ROW),
            endpoint,
            stderr,
            recipe=Recipe(program, {}, signal.SIGTERM),
            board=board,
            limits=limits,
            owner=SlotOwner(on_death, lambda asked: is_wanted),
        )
        try:
            await story(slot, board.slot(ROW))
        finally:
            await slot.stop(kill_timeout_s)
            board.close()

    asyncio.run(main())


async def eventually(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


async def started(slot: SpawnedSlot) -> int:
    """The pid of the first process."""
    slot.launch()
    await slot.come_to_rest()
    assert slot.pid is not None
    return slot.pid


# --- The row


def test_the_row_follows_the_slot_from_its_making_to_its_end(tmp_path):
    async def story(slot: SpawnedSlot, row: memoryview) -> None:
        assert row[SlotColumn.STATE] == SlotState.STOPPED
        pid = await started(slot)
        assert list(row)[: SlotColumn.SINCE_MS] == [SlotState.RUNNING, pid, 0, 1]

        before_ns = time.monotonic_ns()
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: slot.starts == 2)
        assert list(row)[: SlotColumn.SINCE_MS] == [SlotState.RUNNING, slot.pid, 1, 2]
        assert (row[SlotColumn.EXIT], row[SlotColumn.EXIT_KNOWN], row[SlotColumn.ENDED_ALL]) == (-signal.SIGKILL, 1, 1)
        assert before_ns < row[SlotColumn.DIED_AT_NS] < time.monotonic_ns()

        await slot.stop(DEADLINE_S)
        assert list(row)[: SlotColumn.SINCE_MS] == [SlotState.STOPPED, 0, 2, 2]
        assert row[SlotColumn.EXIT] == -signal.SIGTERM

    with_slot(tmp_path, story)


def test_the_time_of_a_state_is_that_of_its_beginning(tmp_path):
    async def story(slot: SpawnedSlot, row: memoryview) -> None:
        before_ms = time.time_ns() // 1_000_000
        await started(slot)
        assert before_ms <= row[SlotColumn.SINCE_MS] <= time.time_ns() // 1_000_000
        row[SlotColumn.SINCE_MS] = 1
        slot.resume()  # it runs, as before
        assert row[SlotColumn.SINCE_MS] == 1

    with_slot(tmp_path, story)


class Notes:
    """A row that notes what is written, in order."""

    def __init__(self, row: memoryview) -> None:
        self.row = row
        self.written: list[SlotColumn] = []
        self.states: list[int] = []

    def __getitem__(self, column: int) -> int:
        return self.row[column]

    def __setitem__(self, column: int, word: int) -> None:
        self.written.append(SlotColumn(column))
        if column == SlotColumn.STATE:
            self.states.append(word)
        self.row[column] = word


def test_a_death_is_written_so_that_readers_find_it_whole_and_never_miss_it(tmp_path):
    """Whoever sees the count changed reads the rest; whoever sees no pid any more must see the count changed."""

    async def story(slot: SpawnedSlot, row: memoryview) -> None:
        pid = await started(slot)
        slot._words = notes = Notes(row)
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: slot.deaths)
        order = notes.written
        facts = (SlotColumn.EXIT, SlotColumn.EXIT_KNOWN, SlotColumn.DIED_AT_NS, SlotColumn.ENDED_ALL)
        assert max(map(order.index, facts)) < order.index(SlotColumn.DEATHS) < order.index(SlotColumn.PID)

    with_slot(tmp_path, story)


def test_a_death_is_told_once_it_can_be_read(tmp_path):
    told: list[tuple[int, int, int]] = []

    async def story(slot: SpawnedSlot, row: memoryview) -> None:
        rows.append(row)
        for _ in range(2):
            slot.launch()
            assert slot.pid is not None
            os.kill(slot.pid, signal.SIGKILL)
            count = len(told)
            await eventually(lambda count=count: len(told) > count)

    rows: list[memoryview] = []
    with_slot(
        tmp_path,
        story,
        on_death=lambda row: told.append((row, rows[0][SlotColumn.DEATHS], rows[0][SlotColumn.PID])),
    )

    assert told == [(ROW, 1, 0), (ROW, 2, 0)]


def test_connections_that_are_cut_off_by_the_circuit_have_ended_with_the_last_process(tmp_path):
    async def story(slot: SpawnedSlot, row: memoryview) -> None:
        pid = await started(slot)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "socket"))
            os.kill(pid, signal.SIGKILL)
            await eventually(lambda: slot.state is SlotState.BROKEN)
            assert client.recv(1) == b""
        assert row[SlotColumn.ENDED_ALL] == 1

    with_slot(tmp_path, story, restart=RestartLimits(healthy_after_s=1000.0, max_deaths=1))


def test_connections_that_wait_for_the_next_process_have_not_ended_with_the_last_one(tmp_path):
    async def story(slot: SpawnedSlot, row: memoryview) -> None:
        pid = await started(slot)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "socket"))
            os.kill(pid, signal.SIGKILL)
            await eventually(lambda: slot.deaths)
        assert row[SlotColumn.ENDED_ALL] == 0

    with_slot(tmp_path, story)


# --- Watching the start


class Looks:
    """Processes as /proc might show them, one look after the other; the last one stays."""

    def __init__(self, *looks: tuple[str, int]) -> None:
        self.left = list(looks)
        self.count = 0

    def __call__(self, pid: int) -> procfs.ProcessStat:
        self.count += 1
        state, ticks = self.left.pop(0) if len(self.left) > 1 else self.left[0]
        return procfs.ProcessStat(state, 0, 0, ticks)


@pytest.mark.parametrize(
    ("looks", "count"),
    [
        ([("S", 0)], 3),  # one to compare with, and two that find it at rest
        ([("R", 0), ("R", 1), ("S", 1)], 4),
        ([("S", 0), ("S", 0), ("S", 1)], 5),  # it has computed meanwhile
        ([("S", 0), ("S", 0), ("D", 0), ("S", 0)], 5),
        ([("S", 0), ("S", 0), ("R", 0), ("S", 0)], 5),
    ],
)
def test_a_process_is_at_rest_when_two_looks_in_a_row_find_it_asleep_and_not_computing(
    tmp_path, monkeypatch, looks, count
):
    async def story(slot: SpawnedSlot, row: memoryview) -> None:
        slot.launch()
        with monkeypatch.context() as patch:
            patch.setattr(procfs, "read_stat", seen)
            await slot.come_to_rest()

    seen = Looks(*looks)
    with_slot(tmp_path, story)

    assert seen.count == count


def test_a_process_that_cannot_be_looked_at_is_taken_for_busy(tmp_path, monkeypatch):
    """No descriptor is left for a moment."""

    async def story(slot: SpawnedSlot, row: memoryview) -> None:
        slot.launch()
        with monkeypatch.context() as patch:
            patch.setattr(procfs, "read_stat", lambda pid: None if next(turns) < 5 else rest(pid))
            await slot.come_to_rest()

    rest = Looks(("S", 0))
    turns = iter(range(1000))
    with_slot(tmp_path, story)

    assert rest.count == 3


# --- What only the machine can do


def test_a_process_that_even_sigkill_does_not_end_is_left_behind_and_said_so(tmp_path, monkeypatch, caplog):
    """One that sleeps in the kernel, or that has become another user's."""

    async def story(slot: SpawnedSlot, row: memoryview) -> None:
        pids.append(await started(slot))
        with monkeypatch.context() as patch:
            patch.setattr(Child, "signal_group", lambda child, number: None)
            await slot.stop(0.01)
        assert slot.state is SlotState.STOPPED

    pids: list[int] = []
    before = os.listdir("/proc/self/fd")
    with_slot(tmp_path, story)
    os.kill(pids[0], signal.SIGKILL)
    os.waitpid(pids[0], 0)

    assert os.listdir("/proc/self/fd") == before
    assert os.listdir(tmp_path) == []
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.ERROR]
    assert caplog.messages[-1] == "echo-0: still running after SIGKILL and left behind"


def test_an_idle_process_that_even_sigkill_does_not_end_takes_no_connection_until_it_has(tmp_path, monkeypatch):
    async def story(slot: SpawnedSlot, row: memoryview) -> None:
        pid = await started(slot)
        slot.retire()
        with monkeypatch.context() as patch:
            patch.setattr(Child, "signal_group", lambda child, number: signals.append(number))
            slot.shrink(0.01)
            await eventually(lambda: signals == [signal.SIGTERM, signal.SIGKILL])
            ended_s = time.monotonic() + 0.05
            await eventually(lambda: time.monotonic() > ended_s)
        assert slot.state is SlotState.RETIRING
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: slot.state is SlotState.IDLE)

    signals: list[int] = []
    with_slot(tmp_path, story)


def test_a_stop_takes_over_from_an_end_for_idleness(tmp_path):
    async def story(slot: SpawnedSlot, row: memoryview) -> None:
        await started(slot)
        slot.retire()
        slot.shrink(DEADLINE_S)
        await asyncio.sleep(0)  # its signal is sent
        slot._words = notes = Notes(row)
        await slot.stop(DEADLINE_S)
        await asyncio.sleep(0)
        assert notes.states == [SlotState.STOPPED]

    with_slot(tmp_path, story)


def test_an_end_that_a_debugger_still_holds_back_is_taken_when_it_comes(tmp_path, monkeypatch):
    """The kernel says "ended" by the pidfd, and gives the status only after the tracer has had it."""

    async def story(slot: SpawnedSlot, row: memoryview) -> None:
        pid = await started(slot)
        reap, looks = Child.reap, []

        def reap_third_time(child: Child) -> ExitStatus | None:
            looks.append(child)
            return reap(child) if len(looks) > 2 else None

        monkeypatch.setattr(Child, "reap", reap_third_time)
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: slot.deaths == 1)
        assert row[SlotColumn.EXIT] == -signal.SIGKILL

    with_slot(tmp_path, story)


def test_a_group_that_may_not_be_signalled_stops_no_stop(tmp_path, monkeypatch, caplog):
    def refuse(group: int, number: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    async def story(slot: SpawnedSlot, row: memoryview) -> None:
        slot._orphans = {1234567}
        monkeypatch.setattr("wstunnel.supervise.procfs.orphans_live", lambda group: True)
        monkeypatch.setattr(os, "killpg", refuse)

    with_slot(tmp_path, story, kill_timeout_s=0.01)

    assert caplog.messages[-1] == "echo-0: still running after SIGKILL and left behind"


def test_children_of_the_dead_are_not_signalled_twice_as_often_as_the_living(tmp_path, monkeypatch):
    """A second SIGTERM means "at once" to many a program."""
    sent: list[tuple[int, int]] = []
    living = {1234567}

    async def story(slot: SpawnedSlot, row: memoryview) -> None:
        slot._orphans = {1234567, 1234568}
        monkeypatch.setattr("wstunnel.supervise.procfs.orphans_live", lambda group: group in living)
        monkeypatch.setattr(os, "killpg", lambda group, number: (sent.append((group, number)), living.clear()))

    with_slot(tmp_path, story)

    assert sent == [(1234567, signal.SIGTERM)]


def test_a_probe_is_looked_at_again_when_its_timer_was_early(tmp_path, monkeypatch, caplog):
    """Timers of uvloop count whole milliseconds."""

    async def story(slot: SpawnedSlot, row: memoryview) -> None:
        row[SlotColumn.STATE] = SlotState.BROKEN
        slot._gate.give_up()
        monkeypatch.setattr(RestartGate, "settle", lambda gate, now_s: left_s.pop() if left_s else settle(gate, now_s))
        slot._start()
        assert slot.state is SlotState.BROKEN
        await eventually(lambda: slot.state is SlotState.RUNNING)
        assert left_s == []

    settle, left_s = RestartGate.settle, [0.001, 0.01, 0.01]
    with_slot(tmp_path, story)

    assert len(caplog.messages) == 1


# --- Handing over


def test_facts_name_all_that_is_not_on_the_board(tmp_path):
    async def story(slot: SpawnedSlot, row: memoryview) -> None:
        assert slot.facts()["child"] is None
        assert len(slot.fds) == 3
        pid = await started(slot)
        slot._orphans = {9, 7}
        facts = slot.facts()
        assert facts["child"]["pid"] == pid
        assert facts["child"]["pidfd"] in slot.fds
        assert len(slot.fds) == 4
        assert (facts["orphans"], facts["program"]) == ([7, 9], "/bin/sleep")
        slot._orphans = set()

    with_slot(tmp_path, story)


@pytest.mark.parametrize(("ran_for_s", "state"), [(0.0, SlotState.WAITING), (101.0, SlotState.RUNNING)])
def test_a_process_that_was_taken_over_has_run_since_its_start(tmp_path, ran_for_s, state):
    popen = subprocess.Popen(["/bin/sleep", "1000"], process_group=0)
    popen.returncode = 0  # it is the slot's

    async def story(slot: SpawnedSlot, row: memoryview) -> None:
        child = {"pid": popen.pid, "pidfd": os.pidfd_open(popen.pid)}
        started_at_s = asyncio.get_running_loop().time() - ran_for_s
        slot.adopt({"child": child, "started_at_s": started_at_s, "orphans": []})
        assert slot.state is SlotState.RUNNING
        os.kill(popen.pid, signal.SIGKILL)
        await eventually(lambda: slot.deaths and slot.state is state)

    with_slot(tmp_path, story, restart=RestartLimits(healthy_after_s=100.0, first_wait_s=DEADLINE_S))


def test_children_of_the_dead_that_were_taken_over_are_ended_too(tmp_path, monkeypatch):
    sent: list[int] = []

    async def story(slot: SpawnedSlot, row: memoryview) -> None:
        monkeypatch.setattr("wstunnel.supervise.procfs.orphans_live", lambda group: not sent)
        monkeypatch.setattr(os, "killpg", lambda group, number: sent.append(group))
        slot.adopt({"child": None, "started_at_s": 0.0, "orphans": [1234567]})

    with_slot(tmp_path, story, is_wanted=False)

    assert sent == [1234567]
