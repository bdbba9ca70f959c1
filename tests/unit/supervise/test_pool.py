"""The backend of one host: its addresses, its environment, and when it shrinks. Real programs: tests/system."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from wstunnel.errors import ConfigError, StartError
from wstunnel.limits import Limits, MasterLimits, SpawnLimits
from wstunnel.settings import Host, Route, TcpAddress, UnixAddress
from wstunnel.supervise.board import Board, SlotColumn, SlotState
from wstunnel.supervise.pool import Pool, backend_environment, raise_all, slot_addresses
from wstunnel.supervise.spawn import CHILD_PATH

ECHO = ("./echo.pl",)
SMALL = MasterLimits(worker_rows=4, slot_rows=8)


@pytest.mark.parametrize(
    ("route", "addresses"),
    [
        (Route(socket="/run/x"), [UnixAddress("/run/x")]),
        (Route(socket="/run/x", max_procs=3), [UnixAddress("/run/x")]),
        (Route(socket="/run/x", bin_path=ECHO), [UnixAddress("/run/x-0")]),
        (Route(socket="/run/x", bin_path=ECHO, max_procs=2), [UnixAddress("/run/x-0"), UnixAddress("/run/x-1")]),
        (Route(host="::1", port=7000), [TcpAddress("::1", 7000)]),
        (Route(port=7000), [TcpAddress("127.0.0.1", 7000)]),
        (Route(port=7000, bin_path=ECHO), [TcpAddress("127.0.0.1", 7000)]),
        (Route(port=65534, bin_path=ECHO, max_procs=2), [TcpAddress("127.0.0.1", n) for n in (65534, 65535)]),
        (Route(port=0, bin_path=ECHO, max_procs=2), [TcpAddress("127.0.0.1", 0)] * 2),
    ],
)
def test_addresses_are_numbered_for_what_we_spawn_and_bare_for_what_we_do_not(route, addresses):
    assert list(slot_addresses(route)) == addresses


def test_a_route_that_says_nothing_about_its_backend_is_refused():
    with pytest.raises(ConfigError, match="route /ws: says nothing about its backend; give socket, or host and port"):
        slot_addresses(Route(path="/ws", host="127.0.0.1"))


def test_a_host_without_a_route_is_told_the_same():
    with pytest.raises(ConfigError, match=r"^host: says nothing about its backend"):
        slot_addresses(Host())


def test_ports_past_the_last_one_are_refused():
    with pytest.raises(ConfigError, match=r"route \.ws: port 65535 and max-procs 2 go past 65535"):
        slot_addresses(Route(path=None, suffix=".ws", port=65535, bin_path=ECHO, max_procs=2))


def test_the_environment_is_the_path_what_is_copied_and_what_is_set_and_the_last_one_wins():
    host = Host(bin_copy_environment=("HOME", "LANG", "MISSING", "PATH"), bin_environment=(("LANG", "C"), ("A", "")))
    ours = {"HOME": "/root", "LANG": "de", "PATH": "/ours", "SECRET": "x"}

    assert backend_environment(host, ours) == {"PATH": "/ours", "HOME": "/root", "LANG": "C", "A": ""}
    assert backend_environment(Host(), ours) == {"PATH": CHILD_PATH}


def test_errors_of_several_programs_are_one_with_a_line_for_each():
    raise_all([None, None])
    with pytest.raises(StartError, match=r"^one\ntwo$"):
        raise_all([StartError("one"), None, StartError("two"), StartError("one")])


def test_an_error_of_another_kind_is_not_hidden_behind_those():
    with pytest.raises(asyncio.CancelledError):
        raise_all([StartError("one"), asyncio.CancelledError()])


def test_a_slot_without_a_descriptor_left_for_its_log_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail():
        raise OSError(24, "Too many open files")

    async def main() -> None:
        host = Host(bin_path=("/bin/sleep", "1000"), socket=str(tmp_path / "s"))
        pool = Pool(host, board=Board(SMALL), rows=[0], limits=Limits(), on_death=lambda row: None)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pipe", fail)
            pool.bind(lambda address: False)

    with pytest.raises(StartError, match="sleep-0: no pipe for its log: Too many open files"):
        asyncio.run(main())

    assert os.listdir(tmp_path) == []


# --- Shrinking, tick by tick


KILL_S = 20.0


class Ticks:
    """A pool of `sleep` whose ticks are ours to give, with a worker's pen."""

    def __init__(self, folder: Path, *, min_procs: int, max_procs: int) -> None:
        self.board = Board(SMALL)
        host = Host(
            bin_path=("/bin/sleep", "1000"),
            socket=str(folder / "s"),
            min_procs=min_procs,
            max_procs=max_procs,
            idle_timeout_s=60.0,
        )
        limits = Limits(master=SMALL, spawn=SpawnLimits(start_watch_s=0.0))
        rows = list(range(max_procs))
        self.pool = Pool(host, board=self.board, rows=rows, limits=limits, on_death=lambda row: None)

    def tick(self, now_s: float) -> str:
        """The states afterwards, by their first letters."""
        self.pool.tick(now_s, KILL_S)
        return self.states

    @property
    def states(self) -> str:
        return "".join(slot.state.name[1] for slot in self.pool.slots)  # rUnning, rEtiring, iDle, wAiting

    def begin(self, row: int) -> None:
        self.board.loads(row)[1] += 1
        self.board.totals(row)[1] += 1

    def end(self, row: int) -> None:
        self.board.loads(row)[1] -= 1


def ticking(folder: Path, story: Callable[[Ticks], Awaitable[None]], *, min_procs: int = 1, max_procs: int = 3) -> None:
    """Every process runs from the start."""

    async def main() -> None:
        ticks = Ticks(folder, min_procs=min_procs, max_procs=max_procs)
        ticks.pool.bind(lambda address: False)
        for slot in ticks.pool.slots:
            slot.launch()
            await slot.come_to_rest()
        try:
            await story(ticks)
        finally:
            await ticks.pool.stop(KILL_S)
            ticks.board.close()

    asyncio.run(main())


async def idle(ticks: Ticks, count: int) -> None:
    deadline = time.monotonic() + KILL_S
    while ticks.states.count("D") < count:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


def test_what_is_idle_for_its_time_is_taken_out_of_choice_and_ended_a_tick_later(tmp_path):
    async def story(ticks: Ticks) -> None:
        assert ticks.tick(0.0) == "UUU"
        assert ticks.tick(59.0) == "UUU"
        assert ticks.tick(60.0) == "UEE"
        assert not any(slot.is_being_ended for slot in ticks.pool.slots)
        assert ticks.tick(61.0) == "UEE"
        assert [slot.is_being_ended for slot in ticks.pool.slots] == [False, True, True]
        await idle(ticks, 2)
        assert ticks.tick(1000.0) == "UDD"

    ticking(tmp_path, story)


def test_a_process_that_gets_a_connection_at_the_last_moment_goes_on(tmp_path):
    async def story(ticks: Ticks) -> None:
        ticks.tick(0.0)
        assert ticks.tick(60.0) == "UEE"
        ticks.begin(1)
        ticks.begin(2)
        ticks.end(2)  # it was there, and has gone again
        assert ticks.tick(61.0) == "UUU"
        assert ticks.tick(120.0) == "EUU"  # the first one has been idle since 0, and one is enough

    ticking(tmp_path, story)


def test_a_process_with_a_connection_is_never_idle_and_one_without_is_from_its_last_one_on(tmp_path):
    async def story(ticks: Ticks) -> None:
        ticks.begin(0)
        ticks.begin(2)
        ticks.tick(0.0)
        assert ticks.tick(60.0) == "UEU"
        ticks.tick(61.0)
        ticks.end(2)
        ticks.begin(2)
        ticks.end(2)
        ticks.tick(100.0)
        assert ticks.tick(159.0)[2] == "U"
        assert ticks.tick(160.0)[2] == "E"

    ticking(tmp_path, story)


def test_a_process_in_use_is_not_taken_out_of_choice_however_short_the_idle_time_is(tmp_path):
    async def story(ticks: Ticks) -> None:
        object.__setattr__(ticks.pool.host, "idle_timeout_s", 0.0)
        ticks.begin(1)
        ticks.begin(2)
        assert ticks.tick(0.0) == "UUU"
        assert ticks.tick(1.0) == "EUU"

    ticking(tmp_path, story)


def test_no_more_are_ended_than_are_to_stay(tmp_path):
    async def story(ticks: Ticks) -> None:
        ticks.tick(0.0)
        assert ticks.tick(1000.0) == "UUE"
        ticks.tick(1001.0)
        await idle(ticks, 1)
        assert ticks.tick(2000.0) == "UUD"

    ticking(tmp_path, story, min_procs=2)


def test_on_demand_the_last_one_is_ended_too(tmp_path):
    async def story(ticks: Ticks) -> None:
        ticks.tick(0.0)
        assert ticks.tick(60.0) == "EE"

    ticking(tmp_path, story, min_procs=0, max_procs=2)


def test_a_pool_of_a_fixed_size_is_left_alone(tmp_path):
    async def story(ticks: Ticks) -> None:
        assert [ticks.tick(now_s) for now_s in (0.0, 60.0, 1000.0)] == ["UU"] * 3

    ticking(tmp_path, story, min_procs=2, max_procs=2)


def test_a_pool_is_unused_when_two_looks_in_a_row_find_nobody(tmp_path):
    async def story(ticks: Ticks) -> None:
        pool = ticks.pool
        assert [pool.look_unused(), pool.look_unused()] == [False, True]
        ticks.begin(1)
        assert not pool.look_unused()
        assert not pool.look_unused()
        ticks.end(1)
        assert pool.look_unused()
        ticks.begin(2)
        ticks.end(2)
        assert [pool.look_unused(), pool.look_unused()] == [False, True]

    ticking(tmp_path, story)


def test_a_process_is_wanted_where_less_than_min_procs_are_up_without_it(tmp_path):
    async def story(ticks: Ticks) -> None:
        rows = [ticks.board.slot(row) for row in range(3)]
        first = ticks.pool.slots[0]
        for others, is_wanted in (
            ((SlotState.RUNNING, SlotState.RUNNING), False),
            ((SlotState.RUNNING, SlotState.IDLE), True),
            ((SlotState.WAITING, SlotState.WAITING), False),
            ((SlotState.RETIRING, SlotState.RUNNING), True),
            ((SlotState.BROKEN, SlotState.RUNNING), True),
        ):
            rows[1][SlotColumn.STATE], rows[2][SlotColumn.STATE] = others
            assert ticks.pool._is_wanted(first) is is_wanted

    ticking(tmp_path, story, min_procs=2)
