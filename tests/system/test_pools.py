"""All backends of a configuration: shared, changed while they serve, and handed over to another image."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.system.programs import (
    DEADLINE_S,
    ECHO,
    ECHO_DEAF,
    LIMITS,
    Client,
    Stage,
    ask,
    eventually,
    host_of,
    is_alive,
    leased,
    messages,
    program,
    supervising,
)
from wstunnel.errors import StartError
from wstunnel.settings import Host, Route, TcpAddress, UnixAddress
from wstunnel.supervise.board import SlotColumn, SlotState
from wstunnel.supervise.pools import Pools


def retired(stage: Stage) -> list[str]:
    return [pool.name for pool, is_retired in stage.pools.all() if is_retired]


async def gone(stage: Stage) -> None:
    await eventually(lambda: not retired(stage), "what is retired has ended")


def used_rows(stage: Stage) -> set[int]:
    rows = range(LIMITS.master.slot_rows)
    return {row for row in rows if stage.board.slot(row)[SlotColumn.STATE] != SlotState.NONE}


# --- What decides about processes


def test_routes_that_want_the_same_processes_share_them(run, tmp_path):
    async def main() -> None:
        argv = program(tmp_path, ECHO)
        first = host_of(argv, tmp_path)
        second = Route(bin_path=argv, socket=first.socket, path="/other", max_load_per_proc=7, connect_timeout_s=1.0)
        async with supervising(first, second) as stage:
            assert stage.pools.places(first) == stage.pools.places(second)
            assert len(stage.pools.all()) == 1

    run(main())


@pytest.mark.parametrize(
    "other",
    [
        {"min_procs": 0},
        {"idle_timeout_s": 1.0},
        {"bin_environment": (("A", "b"),)},
        {"bin_copy_environment": ("A",)},
        {"listen_backlog": 7},
        {"kill_signal": signal.SIGINT},
        {"max_procs": 2},
    ],
    ids=lambda other: next(iter(other)),
)
def test_an_option_that_decides_about_processes_makes_another_pool(run, tmp_path, other):
    async def main() -> None:
        host = host_of(program(tmp_path, ECHO), tmp_path)
        async with supervising(host) as stage:
            change = await stage.pools.prepare([dataclasses.replace(host, **other)])
            assert len(stage.pools.all()) == 2
            await change.undo()
            assert len(stage.pools.all()) == 1

    run(main())


def test_a_backend_of_somebody_else_is_one_slot_that_always_runs_and_stays_untouched(run, tmp_path):
    async def main() -> None:
        hosts = (Host(socket=str(tmp_path / "theirs")), Host(host="::1", port=7000), Host(port=7000, max_procs=3))
        async with supervising(*hosts) as stage:
            slots = [slot for host in hosts for slot in stage.slots(host)]
            assert [slot.name for slot in slots] == [f"unix:{tmp_path}/theirs", "[::1]:7000", "127.0.0.1:7000"]
            assert [slot.address for slot in slots] == [
                UnixAddress(str(tmp_path / "theirs")),
                TcpAddress("::1", 7000),
                TcpAddress("127.0.0.1", 7000),
            ]
            assert {(slot.state, slot.pid, slot.deaths) for slot in slots} == {(SlotState.RUNNING, None, 0)}
            assert len(used_rows(stage)) == 3
            stage.pools.abort()
        assert used_rows(stage) == set()

    (tmp_path / "theirs").touch()
    run(main())

    assert (tmp_path / "theirs").exists()


def test_what_is_not_ours_to_spawn_is_told_apart_by_its_address_only(run, tmp_path):
    async def main() -> None:
        first, second = Host(socket=str(tmp_path / "s")), Host(socket=str(tmp_path / "s"), listen_backlog=7)
        async with supervising(first, second) as stage:
            assert stage.pools.places(first) == stage.pools.places(second)

    run(main())


def test_two_programs_that_want_one_path_are_an_error(run, tmp_path):
    async def main() -> None:
        argv = program(tmp_path, ECHO)
        async with supervising(host_of(argv, tmp_path), host_of(argv, tmp_path, kill_signal=signal.SIGINT)):
            pass

    with pytest.raises(StartError, match="socket-0: another process listens there"):
        run(main())


def test_what_was_stopped_can_be_started_again(run, tmp_path):
    async def main() -> None:
        host = host_of(program(tmp_path, ECHO), tmp_path)
        async with supervising(host) as stage:
            await stage.pools.stop()
            await stage.pools.start([host])
            (slot,) = stage.slots(host)
            assert await ask(slot.address, "pid") == str(slot.pid)

    run(main())


def test_nothing_is_looked_at_after_a_stop(run, tmp_path, monkeypatch):
    async def main() -> None:
        async with supervising(host_of(program(tmp_path, ECHO), tmp_path)) as stage:
            await stage.pools.stop()
            monkeypatch.setattr(Pools, "_tick_later", looks.append)
            over_s = asyncio.get_running_loop().time() + 4 * LIMITS.spawn.tick_s
            await eventually(lambda: asyncio.get_running_loop().time() > over_s, "it would have been looked at")

    looks: list[Pools] = []
    run(main())

    assert looks == []


def test_a_stop_in_the_middle_of_a_start_ends_both(run, tmp_path):
    async def main() -> None:
        async with supervising() as stage:
            starting = asyncio.create_task(stage.pools.start([host_of(program(tmp_path, "1 while 1;"), tmp_path)]))
            await eventually(stage.pools.all, "the start has begun")
            await stage.pools.stop()
            with pytest.raises(StartError, match="killed by SIGTERM as soon as it was started"):
                await starting
            assert (stage.pools.all(), used_rows(stage)) == ([], set())

    run(main())


def test_more_slots_than_the_board_has_rows_are_refused_and_nothing_is_left(run, tmp_path):
    async def main() -> None:
        async with supervising() as stage:
            with pytest.raises(StartError, match=r"run/socket-0: more than 16 backends at once, .*; lower max-procs"):
                await stage.pools.start([host_of(program(tmp_path, ECHO), tmp_path / "run", 17)])
            assert used_rows(stage) == set()

    run(main())

    assert os.listdir(tmp_path) == ["backend"]


def test_a_start_that_is_cancelled_leaves_nothing_behind(run, tmp_path):
    async def main() -> None:
        async with supervising() as stage:
            host = host_of(program(tmp_path, "1 while 1;"), tmp_path / "run")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(stage.pools.start([host]), 0.1)
            assert (stage.pools.all(), used_rows(stage)) == ([], set())

    run(main())

    assert os.listdir(tmp_path) == ["backend"]


# --- Change


def test_what_has_not_changed_keeps_its_processes_and_what_is_new_is_added(run, tmp_path):
    async def main() -> None:
        argv = program(tmp_path, ECHO)
        one, two = host_of(argv, tmp_path / "one"), host_of(argv, tmp_path / "two")
        async with supervising(one) as stage:
            (before,) = stage.slots(one)
            pid = before.pid
            change = await stage.pools.prepare([one, two])
            (fresh,) = stage.slots(two, change)
            assert change.places(one) == stage.pools.places(one)
            assert await ask(fresh.address, "hello") == "hello"
            change.commit()

            assert stage.pools.places(one)[0].row == before.row
            assert (before.pid, before.deaths) == (pid, 0)
            assert stage.pools.places(two)[0].row == fresh.row
            assert retired(stage) == []

    run(main())


def test_what_is_not_wanted_any_more_ends_with_its_last_connection(run, tmp_path):
    async def main() -> None:
        argv = program(tmp_path, ECHO)
        old, new = host_of(argv, tmp_path / "old"), host_of(argv, tmp_path / "new")
        async with supervising(old) as stage:
            (slot,) = stage.slots(old)
            lease = leased(slot)
            async with Client(slot.address) as client:
                pid = int(await client.ask("pid"))
                (await stage.pools.prepare([new])).commit()
                assert retired(stage) == ["backend"]
                ticks_s = asyncio.get_running_loop().time() + 10 * LIMITS.spawn.tick_s
                await eventually(lambda: asyncio.get_running_loop().time() > ticks_s, "it was looked at")
                assert await client.ask("hello") == "hello"
                os.kill(pid, signal.SIGKILL)  # even now it is kept running: its next connection may be on its way
                assert await ask(slot.address, "hello") == "hello"
            lease.release()
            await gone(stage)
            assert not is_alive(pid)
            assert used_rows(stage) == {stage.pools.places(new)[0].row}
            assert sorted(os.listdir(tmp_path)) == ["backend", "new"]
            with pytest.raises(KeyError):
                stage.pools.places(old)

    run(main())


def test_a_change_that_cannot_be_had_changes_nothing(run, tmp_path):
    async def main() -> None:
        argv = program(tmp_path, ECHO)
        bad = program(tmp_path, "die 'no database';", "bad")
        old, new = host_of(argv, tmp_path / "old"), host_of(argv, tmp_path / "new")
        async with supervising(old) as stage:
            (slot,) = stage.slots(old)
            pid = slot.pid
            with pytest.raises(StartError, match="bad: exited with status"):
                await stage.pools.prepare([new, host_of(bad, tmp_path / "old", kill_signal=signal.SIGINT)])
            assert len(stage.pools.all()) == 1
            assert os.listdir(tmp_path / "old") == ["socket-0"]
            assert not (tmp_path / "new").exists()
            assert (await ask(slot.address, "pid"), slot.deaths) == (str(pid), 0)
            assert used_rows(stage) == {slot.row}

    run(main())


def test_an_undone_change_leaves_everything_as_it_was(run, tmp_path):
    async def main() -> None:
        argv = program(tmp_path, ECHO)
        old = host_of(argv, tmp_path)
        async with supervising(old) as stage:
            (slot,) = stage.slots(old)
            pid = slot.pid
            change = await stage.pools.prepare([old, host_of(argv, tmp_path, kill_signal=signal.SIGINT)])
            assert len(os.listdir(tmp_path)) == 3
            await change.undo()
            assert sorted(os.listdir(tmp_path)) == ["backend", "socket-0"]
            assert await ask(slot.address, "pid") == str(pid)
            assert used_rows(stage) == {slot.row}

    run(main())


def test_a_changed_pool_takes_over_its_path_and_no_connect_is_refused(run, tmp_path):
    """Each generation's workers connect to their own pool as long as they have a connection there."""

    async def main() -> None:
        argv = program(tmp_path, ECHO)
        path = UnixAddress(str(tmp_path / "run" / "socket-0"))
        hosts = [host_of(argv, tmp_path / "run", bin_environment=(("TURN", str(turn)),)) for turn in range(6)]
        async with supervising(hosts[0]) as stage:
            served = 0
            is_over = False

            async def keep_asking() -> None:
                nonlocal served
                while not is_over:
                    answer = await ask(path, "hello")  # raises when refused
                    assert answer in {"hello", ""}  # nobody has a lease: its process may be ended with it
                    served += 1

            async with asyncio.TaskGroup() as group:
                asking = group.create_task(keep_asking())
                for before, host in itertools.pairwise(hosts):
                    (old,) = stage.slots(before)
                    lease = leased(old)
                    change = await stage.pools.prepare([host])
                    (new,) = stage.slots(host, change)
                    assert new.address != old.address
                    assert await ask(new.address, "pid") == str(new.pid)
                    change.commit()
                    assert await ask(old.address, "pid") == str(old.pid)
                    assert await ask(new.address, "pid") == str(new.pid)
                    lease.release()
                    await gone(stage)
                    assert await ask(path, "pid") == str(new.pid)
                    assert await ask(new.address, "pid") == str(new.pid)
                    enough = served + 5
                    await eventually(lambda enough=enough: served >= enough or asking.done(), "requests are served")
                is_over = True
            assert len(os.listdir(tmp_path / "run")) == 2
        assert os.listdir(tmp_path) == ["backend"]

    run(main())


def test_a_path_goes_to_the_current_pool_only_when_no_older_one_needs_it(run, tmp_path):
    async def main() -> None:
        argv = program(tmp_path, ECHO)
        path = UnixAddress(str(tmp_path / "socket-0"))
        hosts = [host_of(argv, tmp_path, bin_environment=(("TURN", str(turn)),)) for turn in range(3)]
        async with supervising(hosts[0]) as stage:
            (first,) = stage.slots(hosts[0])
            lease = leased(first)
            (await stage.pools.prepare([hosts[1]])).commit()
            (await stage.pools.prepare([hosts[2]])).commit()
            (third,) = stage.slots(hosts[2])
            await eventually(lambda: len(retired(stage)) == 1, "the second one has ended")
            assert await ask(path, "pid") == str(first.pid)

            lease.release()
            await gone(stage)
            assert await ask(path, "pid") == str(third.pid)
            assert len(os.listdir(tmp_path)) == 3

    run(main())


def test_a_port_that_the_old_processes_hold_is_refused_with_the_remedy(run, tmp_path):
    async def main() -> None:
        argv = program(tmp_path, ECHO)
        old = Host(bin_path=argv, port=0)
        async with supervising(old) as stage:
            (slot,) = stage.slots(old)
            port = slot.address.port
            wanted = re.escape(f"127.0.0.1:{port}: is still held by the processes of the old configuration; choose")
            with pytest.raises(StartError, match=wanted):
                await stage.pools.prepare([Host(bin_path=argv, port=port)])
            assert await ask(slot.address, "pid") == str(slot.pid)

    run(main())


def test_a_retired_pool_shrinks_as_ever(run, tmp_path):
    async def main() -> None:
        argv = program(tmp_path, ECHO)
        old = host_of(argv, tmp_path, 2, min_procs=0, idle_timeout_s=0.0)
        async with supervising(old) as stage:
            first, second = stage.slots(old)
            lease = leased(first)
            assert await ask(first.address, "hello") == "hello"
            (await stage.pools.prepare([])).commit()
            other = leased(second)
            assert await ask(second.address, "hello") == "hello"
            other.release()
            await eventually(lambda: second.state == SlotState.IDLE, "the idle one is ended")
            assert (first.state, retired(stage)) == (SlotState.RUNNING, ["backend"])
            lease.release()
            await gone(stage)

    run(main())


def test_a_pool_that_is_being_ended_is_asked_to_once(run, tmp_path):
    """A second SIGTERM means "at once" to many a program."""
    count = r"""
        my $asked = 0;
        $SIG{TERM} = sub { $asked++ };
        accept(my $client, \*STDIN);
        syswrite $client, "ready";
        close $client;
        sleep 1000 until $asked;
        select undef, undef, undef, 0.05 for 1 .. 4;
        open my $mark, '>', "mark";
        print $mark $asked;
    """

    async def main() -> None:
        host = host_of(program(tmp_path, count), tmp_path, min_procs=0)
        async with supervising(host) as stage:
            (slot,) = stage.slots(host)
            async with Client(slot.address) as client:
                assert await client.read_all() == "ready"
            (await stage.pools.prepare([])).commit()
            await gone(stage)

    run(main())

    assert (tmp_path / "mark").read_text() == "1"


def test_a_stop_ends_what_is_retired_and_what_is_on_its_way_too(run, tmp_path):
    async def main() -> None:
        argv = program(tmp_path, ECHO)
        hosts = [host_of(argv, tmp_path / str(turn)) for turn in range(3)]
        async with supervising(hosts[0]) as stage:
            leased(stage.slots(hosts[0])[0])
            (await stage.pools.prepare([hosts[1]])).commit()
            await stage.pools.prepare([hosts[2]])
            assert len(stage.pools.all()) == 3
            await stage.pools.stop()
            assert (stage.pools.all(), used_rows(stage)) == ([], set())

    run(main())

    assert os.listdir(tmp_path) == ["backend"]


def test_a_stop_while_a_retired_pool_is_being_ended_waits_for_it(run, tmp_path, caplog):
    async def main() -> None:
        old = host_of(program(tmp_path, ECHO_DEAF), tmp_path)
        async with supervising(old, kill_timeout_s=0.1) as stage:
            (slot,) = stage.slots(old)
            pid = int(await ask(slot.address, "pid"))
            (await stage.pools.prepare([])).commit()
            await eventually(lambda: slot.state == SlotState.RETIRING, "it is being ended")
        assert not is_alive(pid)

    run(main())

    assert os.listdir(tmp_path) == ["backend"]
    assert len(messages(caplog, "wstunnel.supervise")) == 1


# --- Handing over


# Two images of one process: the first starts programs and becomes the second one, which goes on with them.
IMAGES = """
import asyncio, json, os, sys
from tests.system.programs import DEADLINE_S, LIMITS, eventually, ask, leased
from wstunnel.settings import Host
from wstunnel.supervise.board import Board
from wstunnel.supervise.pools import Pools
from wstunnel.supervise.slot import Slot

script, folder, argv = sys.argv[1], sys.argv[2], (sys.argv[3],)
old = Host(bin_path=argv, socket=folder + "/run/socket", max_procs=2)
new = Host(bin_path=argv, socket=folder + "/run/socket", max_procs=3, min_procs=2)
tcp = Host(bin_path=argv, port=0, bin_environment=(("A", "b"),))
theirs = Host(socket=folder + "/theirs")

def slots(pools, board, host):
    return [Slot(place, board, 1, LIMITS) for place in pools.places(host)]

async def first():
    board = Board(LIMITS.master)
    pools = Pools(board, LIMITS, kill_timeout_s=DEADLINE_S, on_death=print)
    await pools.start([old, tcp, theirs])
    for slot in slots(pools, board, old):
        leased(slot)
    (await pools.prepare([new, tcp, theirs])).commit()
    pids = [slot.pid for host in (new, tcp) for slot in slots(pools, board, host)]
    retired = [slot.pid for pool, is_retired in pools.all() if is_retired for slot in pool.slots]
    state = pools.export()
    state["fds"].append(board.fd)
    for fd in state["fds"]:
        os.set_inheritable(fd, True)
    (await asyncio.create_subprocess_exec("true"))  # nothing that we start meanwhile has them
    argv = [sys.executable, "-c", script, *sys.argv[1:4], json.dumps([state, board.fd, pids, retired])]
    os.execv(sys.executable, argv)

async def second(state, board_fd, pids, retired):
    board = Board(LIMITS.master, board_fd)
    deaths = []
    pools = Pools(board, LIMITS, kill_timeout_s=DEADLINE_S, on_death=deaths.append)
    pools.adopt(state)
    assert not any(map(os.get_inheritable, state["fds"][:-1]))
    assert [is_retired for _, is_retired in pools.all()] == [True, False, False, False]
    now = [slot for host in (new, tcp) for slot in slots(pools, board, host)]
    assert [slot.pid for slot in now] == pids, (pids, [slot.pid for slot in now])
    assert [await ask(slot.address, "pid") for slot in now if slot.pid] == [str(pid) for pid in pids if pid]

    os.kill(pids[0], 9)
    await eventually(lambda: deaths == [now[0].row], "the death of a child of the image before is seen")
    await eventually(lambda: now[0].pid not in (None, pids[0]), "another one is started")
    assert await ask(now[0].address, "pid") == str(now[0].pid)
    assert await ask(now[2].address, "pid") == str(now[2].pid)  # it was idle, and is listened to

    assert pools.export()["folders"] == state["folders"] != []
    for pool, is_retired in pools.all():
        for row in pool.rows if is_retired else ():
            board.loads(row)[1] = 0
    await eventually(lambda: len(pools.all()) == 3, "the old ones end with their last connection")
    assert await ask(type(now[0].address)(folder + "/run/socket-0"), "pid") == str(now[0].pid)
    change = await pools.prepare([new, tcp, theirs])
    assert len(pools.all()) == 3  # nothing has changed
    change.commit()
    await pools.stop()
    print("done", *pids, *retired)

if len(sys.argv) == 4:
    asyncio.run(first())
else:
    asyncio.run(second(*json.loads(sys.argv[4])))
"""


def test_another_image_of_this_process_goes_on_with_the_same_children(tmp_path):
    argv = program(tmp_path, ECHO)
    script = textwrap.dedent(IMAGES)
    root = Path(__file__).resolve().parents[2]

    done = subprocess.run(
        [sys.executable, "-c", script, script, str(tmp_path), argv[0]],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.stdout.startswith("done "), done.stderr
    assert not any(is_alive(int(pid)) for pid in done.stdout.split()[1:] if pid != "None")
    assert os.listdir(tmp_path) == ["backend"]


def test_what_is_exported_goes_through_json(run, tmp_path):
    async def main() -> dict[str, Any]:
        host = host_of(program(tmp_path, ECHO), tmp_path, bin_environment=(("A", "b"),), bin_copy_environment=("C",))
        async with supervising(host) as stage:
            state: dict[str, Any] = json.loads(json.dumps(stage.pools.export()))
            assert all(os.fstat(fd) for fd in state["fds"])
            return state

    state = run(main())

    assert len(state["fds"]) == len(set(state["fds"])) == 4
    assert state["folders"] == []


@pytest.mark.parametrize("state", [SlotState.BROKEN, SlotState.WAITING, SlotState.RETIRING])
def test_a_slot_that_had_no_process_when_it_was_handed_over_is_started(run, tmp_path, state):
    async def main() -> None:
        host = host_of(program(tmp_path, ECHO), tmp_path)
        async with supervising(host) as stage:
            (slot,) = stage.slots(host)
            facts = stage.pools.export()
            for pool, _ in stage.pools.all():
                for each in pool.slots:
                    each.kill()
            await eventually(lambda: slot.pid is None, "its process is gone")
            # What the other image has of it, with descriptors of its own.
            facts = json.loads(json.dumps(facts))
            (pool_facts,) = facts["pools"]
            (slot_facts,) = pool_facts["slots"]
            slot_facts["child"] = None
            slot_facts["endpoint"]["fd"] = os.dup(slot_facts["endpoint"]["fd"])
            slot_facts["stderr"] = [os.dup(fd) for fd in slot_facts["stderr"]]
            facts["fds"] = [slot_facts["endpoint"]["fd"], *slot_facts["stderr"]]
            stage.board.slot(slot.row)[SlotColumn.STATE] = state

            other = Pools(stage.board, LIMITS, kill_timeout_s=DEADLINE_S, on_death=lambda row: None)
            other.adopt(facts)
            assert await ask(slot.address, "hello") == "hello"
            assert slot.state == SlotState.RUNNING
            await other.stop()

    run(main())
