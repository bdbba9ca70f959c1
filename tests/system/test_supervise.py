"""Real programs behind one host: kept running, told apart from each other, and gone without a trace at the end."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import signal
import socket
import stat
import statistics
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.system.programs import (
    DEADLINE_S,
    DOOMED,
    ECHO,
    ECHO_DEAF,
    FORKING,
    LIMITS,
    Client,
    ask,
    eventually,
    host_of,
    is_alive,
    leased,
    messages,
    program,
    restarting,
    running,
    shell,
    supervising,
)
from wstunnel.errors import StartError
from wstunnel.limits import Limits
from wstunnel.settings import Host
from wstunnel.sockets import bind_unix
from wstunnel.supervise.board import SlotState
from wstunnel.supervise.child import ExitStatus
from wstunnel.supervise.slot import Slot

IMPATIENT_S = 0.1
"""A kill timeout for programs that do not obey."""


# --- What a program finds when it starts


LOOK_AROUND = r"""
    my @open = grep { defined readlink "/proc/self/fd/$_" } 0 .. 255;
    my @environment = map { "$_=$ENV{$_}" } sort keys %ENV;
    open my $status, '<', '/proc/self/status';
    my %mask = map { /^(Sig(?:Blk|Ign)):\s*(\w+)/ ? ($1 => hex $2) : () } <$status>;
    $mask{SigIgn} &= ~(1 << 7);    # Perl itself ignores SIGFPE
    $mask{SigIgn} &= ~(3 << 31);   # 32 and 33 are the C library's own: nobody can give them back
    my $flags = do { open my $info, '<', '/proc/self/fdinfo/0'; (map { /^flags:\s*(\w+)/ ? oct $1 : () } <$info>)[0] };
    accept(my $client, \*STDIN);
    print $client join("\n",
        "descriptors @open",
        "out " . readlink("/proc/self/fd/1"),
        "environment @environment",
        "folder " . readlink("/proc/self/cwd"),
        "leads " . ($$ == getpgrp ? "yes" : "no"),
        "signals @mask{'SigBlk', 'SigIgn'}",
        "nonblocking " . ($flags & 04000 ? "yes" : "no"),
        "arguments @ARGV"), "\n";
    close $client;
    sleep 1000 while 1;
"""


async def look_around(host: Host) -> dict[str, str]:
    async with running(host) as (_, (slot,)), Client(slot.address) as client:
        report = await client.read_all()
    return dict(line.split(" ", 1) for line in report.splitlines())


def test_a_program_finds_what_a_backend_expects_and_nothing_else(run, tmp_path):
    found = run(look_around(host_of((*program(tmp_path, LOOK_AROUND), "one", "two three"), tmp_path)))

    assert found == {
        "descriptors": "0 1 2",
        "out": "/dev/null",
        "environment": "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "folder": str(tmp_path),
        "leads": "yes",
        "signals": "0 0",
        "nonblocking": "no",
        "arguments": "one two three",
    }


def test_a_program_has_the_variables_that_are_listed_and_no_other(run, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "ours")
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    monkeypatch.delenv("MISSING", raising=False)
    host = host_of(
        program(tmp_path, LOOK_AROUND),
        tmp_path,
        bin_environment=(("MODE", "test run"),),
        bin_copy_environment=("LANG", "MISSING"),
    )

    found = run(look_around(host))

    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert found["environment"] == f"LANG=de_DE.UTF-8 MODE=test run PATH={path}"


def test_a_descriptor_that_we_were_started_with_is_not_handed_on(run, tmp_path):
    with (tmp_path / "secret").open("w") as secret:
        os.set_inheritable(secret.fileno(), True)
        found = run(look_around(host_of(program(tmp_path, LOOK_AROUND), tmp_path)))

    assert found["descriptors"] == "0 1 2"


def test_a_signal_that_is_blocked_here_is_not_blocked_there_and_stays_blocked_here(run, tmp_path):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    try:
        found = run(look_around(host_of(program(tmp_path, LOOK_AROUND), tmp_path)))
        after = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    assert found["signals"] == "0 0"
    assert {signal.SIGTERM, signal.SIGUSR1} <= after


def test_signals_that_our_starter_ignored_have_their_defaults_again_in_children(tmp_path):
    """As under nohup and a shell's `&`. A process of its own, because dispositions belong to the whole process."""
    starter = textwrap.dedent(
        """
        import asyncio, signal, sys
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_IGN)
        from pathlib import Path
        from wstunnel.supervise.spawn import catch_ignored_signals
        from tests.system.programs import host_of, program
        from tests.system.test_supervise import LOOK_AROUND, look_around
        catch_ignored_signals()
        signal.raise_signal(signal.SIGHUP)
        folder = Path(sys.argv[1])
        print(asyncio.run(look_around(host_of(program(folder, LOOK_AROUND), folder)))["signals"])
        """
    )
    root = Path(__file__).resolve().parents[2]

    done = subprocess.run(
        [sys.executable, "-c", starter, str(tmp_path)], cwd=root, capture_output=True, text=True, timeout=60, check=True
    )

    assert done.stdout == "0 0\n"


def test_a_socket_that_a_process_made_nonblocking_blocks_again_for_the_next_one(run, tmp_path):
    """The flag belongs to the socket, not to the descriptor, so it would outlive the process."""
    make_nonblocking = r"""
        use Fcntl;
        if (-e "second") { exec $^X, "look" }
        open my $mark, '>', "second"; close $mark;
        fcntl(STDIN, F_SETFL, O_NONBLOCK);
        sleep 1000 while 1;
    """
    program(tmp_path, LOOK_AROUND, name="look")

    async def main() -> str:
        async with running(host_of(program(tmp_path, make_nonblocking), tmp_path)) as (_, (slot,)):
            os.kill(slot.pid, signal.SIGKILL)
            async with Client(slot.address) as client:
                return await client.read_all()

    assert "nonblocking no\n" in run(main())


# --- Addresses


def test_every_slot_has_its_own_process_behind_its_own_socket(run, tmp_path):
    async def main() -> None:
        async with running(host_of(program(tmp_path, ECHO), tmp_path, 3)) as (_, slots):
            pids = [int(await ask(slot.address, "pid")) for slot in slots]

            assert [slot.name for slot in slots] == ["backend-0", "backend-1", "backend-2"]
            assert pids == [slot.pid for slot in slots]
            assert len(set(pids)) == 3
            assert [slot.state for slot in slots] == [SlotState.RUNNING] * 3

    run(main())


def test_sockets_are_for_their_owner_only(run, tmp_path):
    async def main() -> None:
        async with running(host_of(program(tmp_path, ECHO), tmp_path)):
            assert stat.S_IMODE((tmp_path / "socket-0").stat().st_mode) == 0o600

    before = os.umask(0)
    try:
        run(main())
    finally:
        os.umask(before)


def test_a_tcp_slot_knows_the_port_it_got(run, tmp_path):
    async def main() -> None:
        host = Host(bin_path=program(tmp_path, ECHO), port=0, max_procs=2)
        async with running(host) as (_, slots):
            assert [await ask(slot.address, "hello") for slot in slots] == ["hello", "hello"]
            assert slots[0].address != slots[1].address

    run(main())


def test_a_missing_folder_is_made_and_taken_away_again(run, tmp_path):
    async def main() -> None:
        async with running(host_of(program(tmp_path, ECHO), tmp_path / "run", 2)) as (_, slots):
            assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700
            assert await ask(slots[1].address, "hello") == "hello"

    run(main())

    assert not (tmp_path / "run").exists()


def test_a_folder_that_was_there_before_stays(run, tmp_path):
    async def main() -> None:
        async with running(host_of(program(tmp_path, ECHO), tmp_path / "run")):
            pass

    (tmp_path / "run").mkdir()

    run(main())

    assert (tmp_path / "run").exists()


def test_a_stale_socket_of_a_dead_run_is_replaced(run, tmp_path):
    async def main() -> None:
        async with running(host_of(program(tmp_path, ECHO), tmp_path)) as (_, (slot,)):
            assert await ask(slot.address, "hello") == "hello"

    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(tmp_path / "socket-0"))

    run(main())


def test_a_path_in_use_stops_the_whole_start_and_leaves_nothing_behind(run, tmp_path):
    """lighttpd takes the stranger for its own backend."""

    async def main() -> None:
        argv = program(tmp_path, ECHO)
        with bind_unix(str(tmp_path / "run" / "socket-2"), backlog=1):
            with pytest.raises(StartError, match="socket-2: another process listens there"):
                async with supervising(host_of(argv, tmp_path / "new"), host_of(argv, tmp_path / "run", 3)):
                    pass
            assert sorted(os.listdir(tmp_path)) == ["backend", "run"]
            assert os.listdir(tmp_path / "run") == ["socket-2"]

    (tmp_path / "run").mkdir()

    run(main())


def test_a_socket_that_somebody_has_put_in_place_of_ours_stays(run, tmp_path):
    async def main() -> None:
        async with running(host_of(program(tmp_path, ECHO), tmp_path)):
            (tmp_path / "socket-0").unlink()
            (tmp_path / "socket-0").write_text("somebody's")

    run(main())

    assert (tmp_path / "socket-0").read_text() == "somebody's"


# --- Programs that cannot be started, or do not stay


async def start_and_stop(host: Host, limits: Limits = LIMITS) -> float:
    """Seconds that the start took."""
    began_s = time.monotonic()
    async with running(host, limits):
        return time.monotonic() - began_s


def test_a_program_that_cannot_be_started_is_an_error_that_leaves_nothing_behind(run, tmp_path):
    with pytest.raises(StartError, match="missing: does not exist"):
        run(start_and_stop(host_of((str(tmp_path / "missing"),), tmp_path / "run", 2)))

    assert os.listdir(tmp_path) == []


def test_a_program_that_dies_at_once_is_an_error_that_tells_how_and_its_last_words(run, tmp_path, caplog):
    argv = shell(tmp_path, r"echo trying >&2; printf '\033[31mcannot open \303\244\n\n' >&2; exit 7")

    with pytest.raises(StartError) as caught:
        run(start_and_stop(host_of(argv, tmp_path / "run", 3)))

    assert str(caught.value) == (
        f"bin-path {argv[0]}: exited with status 7 as soon as it was started; its last line on stderr: "
        r'"\x1b[31mcannot open ä"; a backend has to go on running, correct it'
    )
    assert os.listdir(tmp_path) == ["backend"]
    assert messages(caplog, "wstunnel.supervise") == []


def test_every_program_that_dies_at_once_is_named(run, tmp_path):
    async def main() -> None:
        first = program(tmp_path, "exit 1;", "first")
        second = program(tmp_path, "kill KILL => $$;", "second")
        async with supervising(host_of(first, tmp_path / "1"), host_of(second, tmp_path / "2")):
            pass

    with pytest.raises(StartError) as caught:
        run(main())

    one, two = str(caught.value).splitlines()
    assert "first: exited with status 1 as soon as it was started; it wrote nothing to stderr; a backend" in one
    assert "second: killed by SIGKILL as soon as" in two


def test_a_death_is_seen_however_long_the_program_computes_before_it(run, tmp_path):
    busy = "my $until = (times)[0] + 0.3; 1 while (times)[0] < $until; die 'no database';"

    with pytest.raises(StartError, match=r'last line on stderr: "no database at '):
        run(start_and_stop(host_of(program(tmp_path, busy), tmp_path)))


def test_a_program_that_waits_for_work_is_not_watched_any_longer(run, tmp_path):
    assert run(start_and_stop(host_of(program(tmp_path, ECHO), tmp_path))) < LIMITS.spawn.start_watch_s / 4


def test_a_program_that_computes_for_ever_is_watched_for_its_time_only(run, tmp_path):
    limits = dataclasses.replace(LIMITS, spawn=dataclasses.replace(LIMITS.spawn, start_watch_s=0.2))

    assert run(start_and_stop(host_of(program(tmp_path, "1 while 1;"), tmp_path), limits)) >= 0.2


def test_a_program_that_vanishes_is_looked_for_until_it_is_back(run, tmp_path, caplog):
    async def main() -> None:
        async with running(host_of(program(tmp_path, ECHO), tmp_path)) as (_, (slot,)):
            (tmp_path / "backend").rename(tmp_path / "away")
            os.kill(slot.pid, signal.SIGKILL)
            await eventually(
                lambda: any("does not exist" in line for line in caplog.messages), "a failed start is logged"
            )
            assert slot.state == SlotState.WAITING
            assert slot.pid is None

            (tmp_path / "away").rename(tmp_path / "backend")
            assert await ask(slot.address, "hello") == "hello"

    run(main())


# --- Death and restart


def test_two_hundred_kills_refuse_no_connect_and_lose_no_request(run, tmp_path):
    """The listening socket outlives its process, so a connect waits for the next one."""
    kills = 200

    async def main() -> None:
        async with running(host_of(program(tmp_path, ECHO), tmp_path)) as (stage, (slot,)):
            served = 0
            is_over = False
            down_s = []

            async def keep_asking() -> None:
                nonlocal served
                while not is_over:
                    text = f"request {served}"
                    async with asyncio.timeout(DEADLINE_S):
                        while await ask_once(text) != text:  # it was killed with our request in its hands
                            pass
                    served += 1

            async def ask_once(text: str) -> str:
                async with Client(slot.address) as client:  # raises when refused
                    try:
                        return await client.ask(text)
                    except BrokenPipeError:
                        return ""

            async with asyncio.TaskGroup() as group:
                for _ in range(4):
                    group.create_task(keep_asking())
                for kill in range(kills):
                    enough = served + 3
                    await eventually(lambda enough=enough: served >= enough, "requests are served")
                    assert stage.restarts(slot) == kill
                    killed_s = time.monotonic()
                    os.kill(slot.pid, signal.SIGKILL)
                    await eventually(lambda kill=kill: stage.restarts(slot) == kill + 1, "the next process is started")
                    down_s.append(time.monotonic() - killed_s)
                is_over = True

            assert slot.deaths == kills
            assert stage.deaths == [slot.row] * kills
            assert statistics.median(down_s) < 0.1

    run(main())


def test_a_connect_while_no_process_runs_is_served_by_the_next_one(run, tmp_path):
    async def main() -> None:
        limits = restarting(healthy_after_s=DEADLINE_S, first_wait_s=0.05)
        async with running(host_of(program(tmp_path, ECHO), tmp_path), limits) as (_, (slot,)):
            os.kill(slot.pid, signal.SIGKILL)
            await eventually(lambda: slot.state == SlotState.WAITING, "the slot waits")

            assert await ask(slot.address, "hello") == "hello"
            assert slot.state == SlotState.RUNNING

    run(main())


def test_a_death_after_a_healthy_run_is_one_line_that_says_how_and_what_happens_next(run, tmp_path, caplog):
    async def main() -> None:
        limits = restarting(healthy_after_s=0.0, first_wait_s=DEADLINE_S)
        async with running(host_of(program(tmp_path, ECHO), tmp_path), limits) as (_, (slot,)):
            pids.append(slot.pid)
            await ask(slot.address, "fail")
            assert await ask(slot.address, "hello") == "hello"

    pids: list[int | None] = []
    run(main())
    (line,) = messages(caplog, "wstunnel.supervise")

    assert line.startswith(f"backend-0: pid {pids[0]} exited with status 3 after ")
    assert line.endswith(" s; started again now")
    assert [record.levelno for record in caplog.records if record.name == "wstunnel.supervise"] == [logging.WARNING]


def test_a_crash_loop_is_one_line_when_it_begins_and_can_be_stopped(run, tmp_path, caplog):
    async def main() -> None:
        (tmp_path / "alive").touch()
        limits = restarting(first_wait_s=0.01, max_deaths=100)
        async with running(host_of(shell(tmp_path, DOOMED), tmp_path), limits) as (_, (slot,)):
            (tmp_path / "alive").unlink()
            os.kill(slot.pid, signal.SIGKILL)
            await eventually(lambda: slot.deaths == 5, "five deaths")

    caplog.set_level(logging.DEBUG, "wstunnel.supervise")
    run(main())

    lines = [record for record in caplog.records if record.name == "wstunnel.supervise" and "next start" in record.msg]
    assert lines[0].getMessage().endswith(" s; next start in 0.0 s, then later and later")
    assert lines[0].levelno == logging.WARNING
    assert [line.getMessage().rpartition("; ")[2] for line in lines[1:4]] == [
        "next start in 0.0 s",
        "next start in 0.0 s",
        "next start in 0.1 s",
    ]
    assert {line.levelno for line in lines[1:]} == {logging.DEBUG}


def test_a_stop_forgets_the_start_that_is_due(run, tmp_path):
    async def main() -> None:
        wait_s = 0.02
        limits = restarting(healthy_after_s=1000.0, first_wait_s=wait_s)
        async with running(host_of(program(tmp_path, ECHO), tmp_path), limits) as (stage, (slot,)):
            os.kill(slot.pid, signal.SIGKILL)
            await eventually(lambda: slot.state == SlotState.WAITING, "the slot waits")
            loop = asyncio.get_running_loop()
            due_s = loop.time() + wait_s
        await eventually(lambda: loop.time() > due_s, "the next start was due")
        assert stage.deaths == [slot.row]

    run(main())


def test_exit_statuses_that_nobody_can_tell_do_not_stop_the_restarts(run, tmp_path, caplog):
    """With SIGCHLD ignored, as a careless starter may leave it, the kernel throws statuses away."""

    async def main() -> None:
        async with running(host_of(program(tmp_path, ECHO), tmp_path)) as (stage, (slot,)):
            lease = leased(slot)
            os.kill(slot.pid, signal.SIGKILL)
            await eventually(lambda: stage.restarts(slot) == 1, "the next process is started")
            assert await lease.exit_status() == ExitStatus()
            assert await ask(slot.address, "hello") == "hello"

    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        run(main())
    finally:
        signal.signal(signal.SIGCHLD, before)

    assert " ended after " in messages(caplog, "wstunnel.supervise")[0]


def test_children_that_a_dead_process_had_forked_are_left_to_their_tunnels_until_the_stop(run, tmp_path):
    async def main() -> None:
        host = host_of(program(tmp_path, FORKING), tmp_path)
        async with running(host) as (stage, (slot,)), Client(slot.address) as client:
            worker = int(await client.ask("pid"))
            os.kill(slot.pid, signal.SIGKILL)
            await eventually(lambda: stage.restarts(slot) == 1, "the next process is started")

            assert await client.ask("still there?") == "still there?"
            assert is_alive(worker)
        assert not is_alive(worker)

    run(main())


# --- The circuit


TOUCHY = restarting(healthy_after_s=0.4, first_wait_s=0.001, max_deaths=3, probe_after_s=0.2)
"""Three runs of less than 0.4 s, and it is given up until a probe lasts as long."""


def test_a_crash_loop_opens_the_circuit_and_a_probe_that_lasts_closes_it(run, tmp_path, caplog):
    async def main() -> None:
        (tmp_path / "alive").touch()
        async with running(host_of(shell(tmp_path, DOOMED), tmp_path), TOUCHY) as (_, (slot,)):
            (tmp_path / "alive").unlink()
            os.kill(slot.pid, signal.SIGKILL)
            await eventually(lambda: slot.state == SlotState.BROKEN, "the circuit opens")
            deaths = slot.deaths
            assert 3 <= deaths <= 4
            await eventually(lambda: slot.deaths == deaths + 2, "two probes die")
            assert slot.state == SlotState.BROKEN

            (tmp_path / "alive").touch()
            await eventually(lambda: slot.pid, "a probe runs")
            assert slot.state == SlotState.BROKEN
            await eventually(lambda: slot.state == SlotState.RUNNING, "the circuit closes")
            pids.append(slot.pid)

    pids: list[int | None] = []
    run(main())

    opened, closed = [line for line in messages(caplog, "wstunnel.supervise") if "connect" in line]
    assert opened.endswith("; nobody is connected to it any more until it runs; it is tried every 0.2 s")
    assert "exited with status 7" in opened
    assert closed == f"backend-0: pid {pids[0]} goes on running; it takes connections again"
    assert len(messages(caplog, "wstunnel.supervise")) <= 3  # those two, and perhaps the loop's beginning


def test_connections_that_wait_when_the_circuit_opens_are_cut_off_and_know_why(run, tmp_path):
    async def main() -> None:
        (tmp_path / "alive").touch()
        limits = restarting(healthy_after_s=1000.0, first_wait_s=0.05, max_deaths=3, probe_after_s=DEADLINE_S)
        async with running(host_of(shell(tmp_path, DOOMED), tmp_path), limits) as (_, (slot,)):
            (tmp_path / "alive").unlink()
            os.kill(slot.pid, signal.SIGKILL)
            await eventually(lambda: slot.state == SlotState.WAITING, "the next start is due")
            lease = leased(slot)
            async with Client(slot.address) as client:
                assert await client.recv() == ""
                assert slot.state == SlotState.BROKEN
                assert lease.is_exiting()
                status = await lease.exit_status()
                assert status is not None
                assert not status.clean

    run(main())


def test_the_socket_blocks_for_the_probe_although_it_was_emptied(run, tmp_path):
    """The flag that keeps us from waiting for connections is shared with the program."""

    async def main() -> None:
        text = f"if (-e 'alive') {{ {ECHO} }} exit 7;"
        (tmp_path / "alive").touch()
        async with running(host_of(program(tmp_path, text), tmp_path), TOUCHY) as (_, (slot,)):
            (tmp_path / "alive").unlink()
            os.kill(slot.pid, signal.SIGKILL)
            await eventually(lambda: slot.state == SlotState.BROKEN, "the circuit opens")
            (tmp_path / "alive").touch()
            await eventually(lambda: slot.state == SlotState.RUNNING, "the circuit closes")
            assert await ask(slot.address, "hello") == "hello"

    run(main())


# --- Processes by need


def test_on_demand_nothing_runs_until_the_first_connection(run, tmp_path):
    async def main() -> None:
        async with running(host_of(program(tmp_path, ECHO), tmp_path, 2, min_procs=0)) as (stage, slots):
            assert [slot.state for slot in slots] == [SlotState.IDLE] * 2
            assert [slot.pid for slot in slots] == [None] * 2

            assert await ask(slots[1].address, "hello") == "hello"
            assert await ask(slots[1].address, "pid") == str(slots[1].pid)

            assert [slot.state for slot in slots] == [SlotState.IDLE, SlotState.RUNNING]
            assert stage.restarts(slots[1]) == 0

    run(main())


def test_min_procs_run_from_the_start(run, tmp_path):
    async def main() -> None:
        async with running(host_of(program(tmp_path, ECHO), tmp_path, 3, min_procs=1)) as (_, slots):
            assert [slot.state for slot in slots] == [SlotState.RUNNING, SlotState.IDLE, SlotState.IDLE]

    run(main())


def test_a_process_that_is_not_needed_any_more_is_ended_and_another_one_comes_when_it_is(run, tmp_path, caplog):
    async def main() -> None:
        host = host_of(program(tmp_path, ECHO), tmp_path, 2, min_procs=1, idle_timeout_s=0.1)
        async with running(host) as (stage, (first, second)):
            leased(first)
            lease = leased(second)
            async with Client(second.address) as client:
                pid = int(await client.ask("pid"))
                ticks_s = asyncio.get_running_loop().time() + 0.3
                await eventually(lambda: asyncio.get_running_loop().time() > ticks_s, "the idle timeout is long over")
                assert second.state == SlotState.RUNNING  # it has a connection
            lease.release()
            await eventually(lambda: second.state == SlotState.IDLE, "it is ended")
            assert not is_alive(pid)
            assert (second.deaths, second.pid) == (1, None)

            assert await ask(second.address, "hello") == "hello"
            assert second.state == SlotState.RUNNING
            assert (first.state, first.deaths) == (SlotState.RUNNING, 0)
            assert stage.restarts(second) == 1

    run(main())

    assert messages(caplog, "wstunnel.supervise") == []  # nothing went wrong


def test_any_process_may_be_the_one_that_stays(run, tmp_path):
    async def main() -> None:
        host = host_of(program(tmp_path, ECHO), tmp_path, 2, min_procs=1, idle_timeout_s=0.1)
        async with running(host) as (_, (first, second)):
            leased(second)
            assert await ask(second.address, "hello") == "hello"
            await eventually(lambda: first.state == SlotState.IDLE, "the idle one is ended")
            assert (second.state, second.deaths) == (SlotState.RUNNING, 0)

    run(main())


def test_processes_that_come_and_go_never_open_the_circuit_and_never_refuse(run, tmp_path):
    async def main() -> None:
        limits = restarting(healthy_after_s=1000.0, max_deaths=2)
        host = host_of(program(tmp_path, ECHO), tmp_path, min_procs=0, idle_timeout_s=0.0)
        async with running(host, limits) as (stage, (slot,)):
            for turn in range(5):
                lease = leased(slot)
                assert await ask(slot.address, "hello") == "hello"
                lease.release()
                await eventually(lambda turn=turn: slot.deaths == turn + 1, "it is ended")
            await eventually(lambda: slot.state == SlotState.IDLE, "it is idle again")
            assert stage.restarts(slot) == 4

    run(main())


def test_a_process_that_ignores_the_kill_signal_is_killed_when_it_is_not_needed_any_more(run, tmp_path, caplog):
    """lighttpd leaves it running for ever."""

    async def main() -> None:
        host = host_of(program(tmp_path, ECHO_DEAF), tmp_path, min_procs=0, idle_timeout_s=0.0)
        async with running(host, kill_timeout_s=IMPATIENT_S) as (_, (slot,)):
            assert await ask(slot.address, "hello") == "hello"
            await eventually(lambda: slot.deaths == 1, "it is ended")
            await eventually(lambda: slot.state == SlotState.IDLE, "it is idle again")

    run(main())

    assert caplog.messages[0] == "backend-0: still running 0.1 s after the kill signal; sending SIGKILL"


def test_a_process_beyond_min_procs_that_dies_is_started_again_by_the_next_connection(run, tmp_path, caplog):
    async def main() -> None:
        async with running(host_of(program(tmp_path, ECHO), tmp_path, 2, min_procs=1)) as (stage, (first, second)):
            await ask(second.address, "be killed")
            await eventually(lambda: second.state == SlotState.IDLE, "it is idle")
            assert await ask(second.address, "hello") == "hello"
            assert stage.restarts(second) == 1

            await ask(first.address, "be killed")
            await eventually(lambda: first.state == SlotState.IDLE, "the other one is enough")
            os.kill(second.pid, signal.SIGKILL)
            await eventually(lambda: stage.restarts(second) == 2, "it was the last one")
            assert first.state == SlotState.IDLE

    run(main())

    lines = messages(caplog, "wstunnel.supervise")
    ends = ["the next connection starts it again", "the next connection starts it again", "started again now"]
    assert [line.rpartition("; ")[2] for line in lines] == ends


def test_a_connection_that_waits_when_a_process_on_demand_dies_is_served_by_another_one(run, tmp_path):
    async def main() -> None:
        host = host_of(program(tmp_path, ECHO), tmp_path, min_procs=0)
        async with running(host) as (_, (slot,)), Client(slot.address) as served, Client(slot.address) as waiting:
            assert await served.ask("hello") == "hello"
            await waiting.send("hello")
            await served.send("be killed")
            assert await waiting.recv() == "hello"

    run(main())


def test_a_crash_loop_on_demand_waits_between_its_starts_too(run, tmp_path):
    async def main() -> None:
        limits = restarting(healthy_after_s=1000.0, first_wait_s=0.02, max_deaths=4, probe_after_s=DEADLINE_S)
        async with running(host_of(shell(tmp_path, "exit 1"), tmp_path, min_procs=0), limits) as (stage, (slot,)):
            began_s = time.monotonic()
            assert await ask(slot.address, "hello") == ""
            assert time.monotonic() - began_s >= 0.02 + 0.04 + 0.08
            assert (stage.restarts(slot), slot.state) == (3, SlotState.BROKEN)

    run(main())


def test_a_crash_loop_on_demand_that_nobody_wants_any_more_is_not_kept_up(run, tmp_path):
    async def main() -> None:
        limits = restarting(healthy_after_s=1000.0, first_wait_s=0.02, max_deaths=100)
        text = "accept(my $client, \\*STDIN); exit 1;"
        async with running(host_of(program(tmp_path, text), tmp_path, min_procs=0), limits) as (stage, (slot,)):
            assert await ask(slot.address, "hello") == ""
            await eventually(lambda: slot.state == SlotState.IDLE, "it is idle")
            assert (stage.restarts(slot), slot.deaths) == (0, 1)

    run(main())


def test_on_demand_a_program_that_cannot_be_executed_is_told_at_the_start_and_takes_no_connection(
    run, tmp_path, caplog
):
    async def main() -> None:
        argv = program(tmp_path, ECHO)
        (tmp_path / "backend").rename(tmp_path / "away")
        limits = restarting(healthy_after_s=0.0, probe_after_s=0.05)
        async with running(host_of(argv, tmp_path, min_procs=0), limits) as (stage, (slot,)):
            assert slot.state == SlotState.BROKEN
            (tmp_path / "away").rename(tmp_path / "backend")
            await eventually(lambda: slot.state == SlotState.RUNNING, "it is there again")
            assert await ask(slot.address, "hello") == "hello"
            assert (stage.restarts(slot), slot.deaths) == (0, 0)

    run(main())

    lines = messages(caplog, "wstunnel.supervise")
    assert len(lines) == 2
    assert "backend: does not exist; correct the path or install the program; nobody is connected to it" in lines[0]


def test_on_demand_a_program_that_has_gone_since_opens_the_circuit(run, tmp_path, caplog):
    async def main() -> None:
        argv = program(tmp_path, ECHO)
        limits = restarting(first_wait_s=0.001, max_deaths=3, probe_after_s=DEADLINE_S)
        async with running(host_of(argv, tmp_path, min_procs=0), limits) as (_, (slot,)):
            (tmp_path / "backend").unlink()
            lease = leased(slot)
            assert await ask(slot.address, "hello") == ""
            assert lease.is_exiting()
            assert slot.state == SlotState.BROKEN

    run(main())

    assert ["does not exist" in line for line in messages(caplog, "wstunnel.supervise")] == [True, True]


# --- What a lease knows about the end of its connection


@pytest.mark.parametrize(
    ("order", "status"),
    [("be killed", ExitStatus(signal=9)), ("fail", ExitStatus(code=3)), ("finish", ExitStatus(code=0))],
)
def test_when_a_process_ends_its_connections_tell_how_from_their_first_moment(run, tmp_path, order, status):
    async def main() -> None:
        async with running(host_of(program(tmp_path, ECHO), tmp_path)) as (_, (slot,)):
            for _ in range(10):
                lease = leased(slot)
                async with Client(lease.address) as client:
                    assert await client.ask("hello") == "hello"
                    assert not lease.is_exiting()

                    assert await client.ask(order) == ""

                    assert lease.is_exiting()
                    assert await lease.exit_status() == status
                    assert lease.is_exiting()
                lease.release()

    run(main())


def test_a_connection_that_its_program_closes_is_no_death(run, tmp_path):
    async def main() -> None:
        async with running(host_of(program(tmp_path, ECHO), tmp_path)) as (_, (slot,)):
            lease = leased(slot)
            assert await ask(lease.address, "close") == ""

            assert not lease.is_exiting()
            assert await lease.exit_status() is None

    run(main())


def test_a_death_before_the_lease_is_none_of_its_business(run, tmp_path):
    async def main() -> None:
        async with running(host_of(program(tmp_path, ECHO), tmp_path)) as (stage, (slot,)):
            await ask(slot.address, "be killed")
            await eventually(lambda: stage.restarts(slot) == 1, "the next process is started")
            lease = leased(slot)
            assert await ask(lease.address, "close") == ""

            assert not lease.is_exiting()

    run(main())


AT_ONCE = dataclasses.replace(LIMITS, spawn=dataclasses.replace(LIMITS.spawn, exit_wait_s=0.0))
"""Deaths are old as soon as they are noticed."""


def test_a_connection_that_waited_in_the_backlog_is_not_blamed_on_the_process_before(run, tmp_path):
    async def main() -> None:
        async with running(host_of(program(tmp_path, ECHO), tmp_path), AT_ONCE) as (_, (slot,)):
            first, second = leased(slot), leased(slot)
            async with Client(first.address) as served, Client(second.address) as waiting:
                assert await served.ask("hello") == "hello"
                await served.send("be killed")
                assert await waiting.ask("hello") == "hello"

                assert await waiting.ask("close") == ""
                assert not second.is_exiting()
                assert await second.exit_status() is None

    run(main())


def test_a_connection_that_ended_with_its_process_tells_so_however_late_it_is_read(run, tmp_path):
    """A client that takes its bytes slowly makes the tunnel see the end long after the death."""

    async def main() -> None:
        async with running(host_of(program(tmp_path, ECHO), tmp_path), AT_ONCE) as (stage, (slot,)):
            lease = leased(slot)
            async with Client(lease.address) as client:
                assert await client.ask("hello") == "hello"
                await client.send("fail")
                await eventually(lambda: stage.restarts(slot) == 1, "the next process is started")

                assert await client.recv() == ""
                assert lease.is_exiting()
                assert await lease.exit_status() == ExitStatus(code=3)

    run(main())


def test_a_tunnel_with_a_forked_child_is_not_blamed_on_its_dead_parent(run, tmp_path):
    async def main() -> None:
        async with running(host_of(program(tmp_path, FORKING), tmp_path), AT_ONCE) as (stage, (slot,)):
            lease = leased(slot)
            async with Client(lease.address) as client:
                assert await client.ask("hello") == "hello"
                os.kill(slot.pid, signal.SIGKILL)
                await eventually(lambda: stage.restarts(slot) == 1, "the next process is started")

                assert await client.ask("close") == ""
                assert not lease.is_exiting()

    run(main())


# --- Logs


def test_lines_on_stderr_are_logged_under_the_name_of_the_slot(run, tmp_path, caplog):
    caplog.set_level(logging.INFO, "wstunnel.backend")
    talk = r"""
        printf 'one\ntwo \303\244\342\202\254\n\033[31mred\377\nlast words' >&2
        exec sleep 1000
    """

    async def main() -> None:
        async with running(host_of(shell(tmp_path, talk), tmp_path, 2)) as (_, slots):
            await eventually(lambda: len(messages(caplog, "wstunnel.backend")) == 6, "six lines")
            for slot in slots:
                os.kill(slot.pid, signal.SIGKILL)
            await eventually(lambda: all(slot.deaths for slot in slots), "they are dead")
            lines = messages(caplog, "wstunnel.backend")
            for slot in ("backend-0", "backend-1"):
                words = ["one", "two ä€", r"\x1b[31mred\xff", "last words"]
                assert [line for line in lines if slot in line][:4] == [f"{slot}: {word}" for word in words]

    run(main())


def test_last_words_come_before_the_news_of_the_death(run, tmp_path, caplog):
    caplog.set_level(logging.INFO, "wstunnel")

    async def main() -> None:
        text = r"accept(my $client, \*STDIN); syswrite STDERR, 'i am dying'; exit 7;"
        async with running(host_of(program(tmp_path, text), tmp_path)) as (_, (slot,)):
            await ask(slot.address, "hello")
            await eventually(lambda: slot.deaths, "a death")

    run(main())

    assert caplog.messages[0] == "backend-0: i am dying"
    assert "exited with status 7" in caplog.messages[1]


def test_a_flood_on_stderr_leaves_the_loop_its_turns_and_every_line_whole(run, tmp_path, caplog):
    caplog.set_level(logging.INFO, "wstunnel.backend")
    lines = 20_000

    async def main() -> None:
        flood = f"accept(STDIN, STDIN); print STDERR ++$n, 'x' x 50, qq{{\\n}} while $n < {lines}; sleep 1000 while 1;"
        async with running(host_of(program(tmp_path, flood), tmp_path)) as (_, (slot,)), Client(slot.address):
            turns = 0
            while len(caplog.records) < lines:
                turns += 1
                await asyncio.sleep(0)
            assert turns > lines * 50 // LIMITS.spawn.log_read_bytes

    run(main())

    assert messages(caplog, "wstunnel.backend") == [f"backend-0: {n + 1}{'x' * 50}" for n in range(lines)]


# --- Stop


def test_a_stop_leaves_no_process_no_socket_and_no_restart(run, tmp_path, caplog):
    async def main() -> None:
        async with running(host_of(program(tmp_path, FORKING), tmp_path, 3)) as (stage, slots):
            workers = [int(await ask(slot.address, "pid")) for slot in slots]
            leaders = [slot.pid for slot in slots]
        assert not any(map(is_alive, workers + leaders))
        assert [slot.state for slot in slots] == [SlotState.NONE] * 3
        assert [slot.pid for slot in slots] == [None] * 3
        assert sorted(stage.deaths) == sorted(slot.row for slot in slots)

    run(main())

    assert os.listdir(tmp_path) == ["backend"]
    assert caplog.messages == []


def test_the_kill_signal_is_the_one_asked_for_and_reaches_the_whole_group_once(run, tmp_path):
    note = r"""
        $SIG{TERM} = 'IGNORE';
        fork;
        my $asked = 0;
        $SIG{USR1} = sub { $asked++ };
        sleep 1000 until $asked;
        select undef, undef, undef, 0.05;
        open my $mark, '>', "mark-$$";
        print $mark $asked;
    """

    async def main() -> None:
        host = host_of(program(tmp_path, note), tmp_path, kill_signal=signal.SIGUSR1)
        async with running(host) as (_, (slot,)):

            def is_ready() -> bool:
                pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
                return sum(catches_usr1(pid, slot.pid) for pid in pids) == 2

            await eventually(is_ready, "both processes have their handler")

    def catches_usr1(pid: int, group: int) -> bool:
        try:
            if os.getpgid(pid) != group:
                return False
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return False
        caught = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt"))
        return bool(caught & 1 << (signal.SIGUSR1 - 1))

    run(main())

    assert [mark.read_text() for mark in tmp_path.glob("mark-*")] == ["1", "1"]


@pytest.mark.parametrize("text", ["$SIG{TERM} = 'IGNORE';", "$SIG{TERM} = 'IGNORE'; fork;"])
def test_whoever_ignores_the_kill_signal_is_killed_after_the_timeout(run, tmp_path, caplog, text):
    async def main() -> None:
        host = host_of(program(tmp_path, f"{text} {ECHO}"), tmp_path)
        async with running(host, kill_timeout_s=IMPATIENT_S) as (_, (slot,)):
            pids = {slot.pid}
            while len(pids) < 1 + text.count("fork"):
                pids.add(int(await ask(slot.address, "pid")))
            assert await ask(slot.address, "hello") == "hello"
        assert not any(map(is_alive, pids))

    run(main())

    assert caplog.messages == ["backend-0: still running 0.1 s after the kill signal; sending SIGKILL"]


def test_a_forked_child_that_ignores_the_kill_signal_is_killed_after_the_timeout(run, tmp_path):
    """Its parent obeys, so nothing but the group is left of the process that we know."""

    async def main() -> None:
        argv = program(tmp_path, "unless (fork) { $SIG{TERM} = 'IGNORE'; " + ECHO + " } sleep 1000 while 1;")
        async with running(host_of(argv, tmp_path), kill_timeout_s=IMPATIENT_S) as (_, (slot,)):
            worker = int(await ask(slot.address, "pid"))
        assert not is_alive(worker)

    run(main())


def test_a_process_that_has_left_its_group_is_ended_too(run, tmp_path):
    leave = r"""
        pipe my $ready, my $tell;
        my $other = fork;
        unless ($other) { setpgrp(0, 0); syswrite $tell, "x"; sleep 1000 while getppid != 1; exit }
        sysread $ready, my $byte, 1;
        setpgrp(0, $other) or die $!;
        $SIG{TERM} = sub { kill KILL => $other; exit };
    """

    async def main() -> None:
        async with running(host_of(program(tmp_path, leave + ECHO), tmp_path)) as (_, (slot,)):
            pid = int(await ask(slot.address, "pid"))
            assert os.getpgid(pid) != pid
        assert not is_alive(pid)

    run(main())


async def all_of(slots: list[Slot], state: SlotState) -> None:
    await eventually(lambda: {slot.state for slot in slots} == {state}, f"all are {state.name}")


def test_an_abort_ends_a_stop_that_waits(run, tmp_path, caplog):
    async def main() -> None:
        async with running(host_of(program(tmp_path, ECHO_DEAF), tmp_path, 2)) as (stage, slots):
            assert [await ask(slot.address, "hello") for slot in slots] == ["hello", "hello"]
            stopping = asyncio.create_task(stage.pools.stop())
            await all_of(slots, SlotState.RETIRING)

            stage.pools.abort()
            await stopping

    run(main())

    assert caplog.messages == []  # nobody came to the end of the kill timeout
    assert os.listdir(tmp_path) == ["backend"]


def test_an_abort_before_the_stop_starts_nothing_again(run, tmp_path, caplog):
    async def main() -> None:
        async with running(host_of(program(tmp_path, ECHO), tmp_path, 2, min_procs=1)) as (stage, slots):
            stage.pools.abort()
            await eventually(lambda: slots[0].pid is None, "the process is gone")
            await all_of(slots, SlotState.RETIRING)
            async with Client(slots[1].address):
                pass
        assert len(stage.deaths) == 1

    run(main())

    assert caplog.messages == []


def test_a_stop_that_was_cancelled_can_be_finished(run, tmp_path):
    async def main() -> None:
        async with running(host_of(program(tmp_path, ECHO_DEAF), tmp_path)) as (stage, (slot,)):
            assert await ask(slot.address, "hello") == "hello"
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(stage.pools.stop(), 0.01)
            assert slot.state == SlotState.RETIRING

            stage.pools.abort()
            await stage.pools.stop()

            assert slot.state == SlotState.NONE
            await stage.pools.stop()

    run(main())

    assert os.listdir(tmp_path) == ["backend"]


def test_a_stop_while_an_idle_process_is_being_ended_waits_for_that_too(run, tmp_path, caplog):
    async def main() -> None:
        host = host_of(program(tmp_path, ECHO_DEAF), tmp_path, min_procs=0, idle_timeout_s=0.0)
        async with running(host, kill_timeout_s=IMPATIENT_S) as (_, (slot,)):
            pid = int(await ask(slot.address, "pid"))
            await eventually(lambda: slot.state == SlotState.RETIRING, "it is being ended")
        assert not is_alive(pid)

    run(main())

    assert len(caplog.messages) == 1
    assert os.listdir(tmp_path) == ["backend"]
