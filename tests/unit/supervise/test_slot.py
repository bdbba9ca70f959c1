"""What the serving side makes of a slot's row: how the process behind a connection fares, and who is counted."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from wstunnel.limits import Limits, MasterLimits, SpawnLimits
from wstunnel.settings import UnixAddress
from wstunnel.supervise.board import Board, SlotColumn, SlotState
from wstunnel.supervise.child import ExitStatus
from wstunnel.supervise.lease import Lease
from wstunnel.supervise.place import SlotPlace
from wstunnel.supervise.slot import Slot

ROW = 3


class Stand:
    """A slot as workers 1 and 2 see it, and the pen of whoever supervises."""

    def __init__(self, exit_wait_s: float = 60.0) -> None:
        limits = Limits(master=MasterLimits(worker_rows=8, slot_rows=8), spawn=SpawnLimits(exit_wait_s=exit_wait_s))
        self.board = Board(limits.master)
        place = SlotPlace("echo-0", UnixAddress("/run/echo-0"), ROW)
        self.slot, self.others = (Slot(place, self.board, worker, limits) for worker in (1, 2))
        self.row = self.board.slot(ROW)
        self.row[SlotColumn.STATE] = SlotState.RUNNING
        self._processes: list[subprocess.Popen[bytes]] = []

    def die(
        self, status: ExitStatus, *, ended_all: bool = True, state: SlotState = SlotState.WAITING, ago_s: float = 0.0
    ) -> None:
        """The process has ended, and the row says so."""
        row = self.row
        row[SlotColumn.EXIT], row[SlotColumn.EXIT_KNOWN] = status.word, status.is_known
        row[SlotColumn.DIED_AT_NS] = time.monotonic_ns() - int(ago_s * 1e9)
        row[SlotColumn.ENDED_ALL] = ended_all
        row[SlotColumn.STATE] = state
        row[SlotColumn.DEATHS] += 1
        row[SlotColumn.PID] = 0

    def run(self) -> subprocess.Popen[bytes]:
        """A process that runs behind the slot."""
        process = subprocess.Popen(["/bin/sleep", "1000"])
        self._processes.append(process)
        self.row[SlotColumn.PID] = process.pid
        return process

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self.board.close()


@pytest.fixture
def stand() -> Iterator[Stand]:
    made = Stand()
    yield made
    made.close()


def test_a_slot_is_what_its_place_and_its_row_say(stand):
    slot = stand.slot
    assert (slot.name, slot.address, slot.row) == ("echo-0", UnixAddress("/run/echo-0"), ROW)
    stand.row[SlotColumn.PID], stand.row[SlotColumn.DEATHS] = 4711, 5
    assert (slot.pid, slot.deaths) == (4711, 5)
    stand.row[SlotColumn.PID] = 0
    assert slot.pid is None


@pytest.mark.parametrize("state", list(SlotState))
def test_every_state_is_known(stand, state):
    stand.row[SlotColumn.STATE] = state
    assert stand.slot.state is state


def test_a_slot_is_not_disabled_from_the_start_whatever_the_clock_shows(stand):
    assert stand.slot.disabled_until_s < -1e9


def test_a_lease_counts_for_its_worker_and_is_seen_by_all(stand):
    leases = [Lease(slot, 0, lambda: None) for slot in (stand.slot, stand.slot, stand.others)]
    assert stand.slot.load == stand.others.load == stand.board.load(ROW) == 3
    assert stand.board.loads(ROW)[:3].tolist() == [0, 2, 1]

    leases[0].release()

    assert stand.board.loads(ROW)[:3].tolist() == [0, 1, 1]
    assert stand.board.totals(ROW)[:3].tolist() == [0, 2, 1]
    assert stand.others.load == 2


def test_a_worker_row_that_the_board_does_not_have_is_no_place_to_count_in(stand):
    with pytest.raises(ValueError, match="no worker row 8"):
        Slot(SlotPlace("echo-0", UnixAddress("/run/echo-0"), ROW), stand.board, 8, Limits())


def test_claiming_is_for_this_slot(stand, monkeypatch):
    claimed = []
    monkeypatch.setattr(Board, "claiming", lambda board, row: claimed.append(row))
    stand.slot.claiming()
    assert claimed == [ROW]


# --- is it ending?


def test_a_backend_that_is_not_ours_never_ends(stand):
    assert not stand.slot.is_ending_since(0)
    assert asyncio.run(stand.slot.exit_status_since(0)) is None


def test_a_process_that_runs_is_not_ending(stand):
    stand.run()
    assert not stand.slot.is_ending_since(0)
    assert asyncio.run(stand.slot.exit_status_since(0)) is None


def test_a_dead_process_that_nobody_has_reaped_is_ending(stand):
    process = stand.run()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert stand.slot.is_ending_since(0)


def test_a_process_that_was_reaped_before_the_row_could_say_so_is_ending(stand):
    process = stand.run()
    process.kill()
    process.wait()
    assert stand.slot.is_ending_since(0)


def test_without_a_descriptor_to_look_with_a_running_process_is_not_taken_for_gone(stand, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    stand.run()
    monkeypatch.setattr("builtins.open", fail)
    assert not stand.slot.is_ending_since(0)


def test_a_death_on_the_row_is_an_end_for_who_came_before_it_only(stand):
    stand.die(ExitStatus(code=0))
    stand.run()
    assert stand.slot.is_ending_since(0)
    assert not stand.slot.is_ending_since(1)


def test_an_old_death_that_ended_every_connection_is_still_an_end(stand):
    stand.die(ExitStatus(code=0), ended_all=True, ago_s=3600.0)
    assert stand.slot.is_ending_since(0)
    assert asyncio.run(stand.slot.exit_status_since(0)) == ExitStatus(code=0)


@pytest.mark.parametrize(("ago_s", "is_news"), [(30.0, True), (61.0, False)])
def test_a_death_that_left_some_connections_is_news_for_a_while(stand, ago_s, is_news):
    """They wait in the backlog for the next process, or live on in the hands of a forked child."""
    stand.die(ExitStatus(code=0), ended_all=False, ago_s=ago_s)
    assert stand.slot.is_ending_since(0) is is_news
    assert asyncio.run(stand.slot.exit_status_since(0)) == (ExitStatus(code=0) if is_news else None)


def test_the_last_death_is_seen_while_the_row_is_being_written(stand, monkeypatch):
    """Between two looks of ours the row gets its death and loses its pid: one of the two is seen."""
    process = stand.run()

    class Racing:
        """The row, which is written as soon as one word of it has been read."""

        def __getitem__(self, index: int) -> int:
            found = stand.row[index]
            if stand.row[SlotColumn.DEATHS] == 0:
                process.kill()
                process.wait()
                stand.die(ExitStatus(code=0))
            return found

    monkeypatch.setattr(stand.slot, "_words", Racing())
    assert stand.slot.is_ending_since(0)


# --- how did it end?


@pytest.mark.parametrize(
    "status", [ExitStatus(code=0), ExitStatus(code=255), ExitStatus(signal=signal.SIGKILL), ExitStatus()]
)
def test_how_it_ended_stands_on_the_row(stand, status):
    stand.die(status)
    assert asyncio.run(stand.slot.exit_status_since(0)) == status


def test_who_asks_too_early_waits_for_the_word_that_the_row_has_more_to_say(stand):
    async def main() -> None:
        process = stand.run()
        process.kill()
        process.wait()
        asking = [asyncio.ensure_future(stand.slot.exit_status_since(0)) for _ in range(2)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in asking)
        stand.die(ExitStatus(signal=9))
        stand.slot.note_death()
        async with asyncio.timeout(10.0):
            assert await asyncio.gather(*asking) == [ExitStatus(signal=9)] * 2

    asyncio.run(main())


def test_each_death_wakes_those_who_wait_for_it(stand):
    async def main() -> None:
        for count in range(2):
            process = stand.run()
            process.kill()
            process.wait()
            asking = asyncio.ensure_future(stand.slot.exit_status_since(count))
            await asyncio.sleep(0)
            stand.die(ExitStatus(code=count))
            stand.slot.note_death()
            async with asyncio.timeout(10.0):
                assert await asking == ExitStatus(code=count)

    asyncio.run(main())


def test_a_death_that_nobody_waits_for_is_noted_all_the_same(stand):
    stand.slot.note_death()
    stand.die(ExitStatus(code=3))
    stand.slot.note_death()
    assert asyncio.run(stand.slot.exit_status_since(0)) == ExitStatus(code=3)


def test_a_status_that_does_not_come_is_awaited_for_its_time_only():
    stand = Stand(exit_wait_s=0.01)
    process = stand.run()
    process.kill()
    process.wait()
    assert asyncio.run(stand.slot.exit_status_since(0)) is None
    stand.close()


def test_a_status_of_which_no_word_came_is_found_on_the_row_when_the_time_is_over():
    async def main() -> None:
        process = stand.run()
        process.kill()
        process.wait()
        asking = asyncio.ensure_future(stand.slot.exit_status_since(0))
        await asyncio.sleep(0)
        stand.die(ExitStatus(code=7))
        assert await asking == ExitStatus(code=7)

    stand = Stand(exit_wait_s=0.01)
    asyncio.run(main())
    stand.close()


# --- the circuit


def test_a_connection_that_ends_while_the_circuit_is_open_has_failed(stand):
    """It waited in the backlog, and whoever supervises has accepted it only to close it."""
    stand.row[SlotColumn.STATE] = SlotState.BROKEN
    assert stand.slot.is_ending_since(0)
    status = asyncio.run(stand.slot.exit_status_since(0))
    assert status is not None
    assert not status.clean


def test_an_open_circuit_is_a_failure_however_clean_the_last_exit_was(stand):
    """Programs that exit with 0 as soon as they are started open it too."""
    stand.die(ExitStatus(code=0), state=SlotState.BROKEN)
    status = asyncio.run(stand.slot.exit_status_since(0))
    assert status is not None
    assert not status.clean


def test_an_open_circuit_keeps_nobody_waiting(stand):
    """The probe of a half-open one may be exiting."""
    process = stand.run()
    process.kill()
    process.wait()
    stand.row[SlotColumn.STATE] = SlotState.BROKEN

    async def main() -> None:
        async with asyncio.timeout(10.0):
            assert await stand.slot.exit_status_since(0) == ExitStatus()

    asyncio.run(main())
