"""Pools of real programs: kept running, told apart from each other, and gone without a trace at the end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from wstunnel.errors import StartError
from wstunnel.limits import Limits, RestartLimits, SpawnLimits
from wstunnel.settings import Address, TcpAddress, UnixAddress
from wstunnel.sockets import bind_unix
from wstunnel.supervise.child import ExitStatus
from wstunnel.supervise.pool import Pool

DEADLINE_S = 20.0
"""How long a thing that must happen may take: only ever waited for in a failure."""

LIMITS = Limits(
    restart=RestartLimits(healthy_after_s=0.0, first_wait_s=0.01, max_wait_s=0.1),
    spawn=SpawnLimits(kill_timeout_s=DEADLINE_S, exit_wait_s=DEADLINE_S),
)
"""Every run is healthy, and nothing is killed for being slow on a busy machine."""

IMPATIENT = dataclasses.replace(LIMITS, spawn=SpawnLimits(kill_timeout_s=0.1))

# Serves one connection after the other: a line that names an order is obeyed, every other one comes back.
ECHO = r"""
    use strict; use warnings; use POSIX ();
    $SIG{PIPE} = 'IGNORE';
    my $client;
    while (1) {
        accept($client, \*STDIN) or next;
        while (sysread($client, my $line, 4096)) {
            kill KILL => $$ if $line eq "be killed\n";
            POSIX::_exit(3) if $line eq "fail\n";
            POSIX::_exit(0) if $line eq "finish\n";
            last if $line eq "close\n";
            syswrite($client, $line eq "pid\n" ? "$$\n" : $line);
        }
        close $client;
    }
"""

ECHO_DEAF = "$SIG{TERM} = 'IGNORE';" + ECHO

# Forks one child that serves, and waits for ever itself, as a pre-forking server does.
FORKING = (
    r"""
    my $leader = $$;
    if (fork) { sleep 1000 while 1; }
    """
    + ECHO
)


def program(folder: Path, text: str, name: str = "backend", interpreter: str = "/usr/bin/perl") -> tuple[str, ...]:
    """The argv of a script with this text."""
    path = folder / name
    fresh = folder / f"{name}.new"
    fresh.write_text(f"#!{interpreter}\n{textwrap.dedent(text)}")
    fresh.chmod(0o755)
    fresh.rename(path)
    return (str(path),)


def shell(folder: Path, text: str) -> tuple[str, ...]:
    return program(folder, text, interpreter="/bin/sh")


def unix(folder: Path, count: int = 1) -> tuple[Address, ...]:
    return tuple(UnixAddress(str(folder / f"socket-{index}")) for index in range(count))


@contextlib.asynccontextmanager
async def running(
    argv: tuple[str, ...],
    addresses: Sequence[Address],
    limits: Limits = LIMITS,
    kill_signal: signal.Signals = signal.SIGTERM,
) -> AsyncIterator[Pool]:
    pool = Pool("echo", addresses=addresses, argv=argv, limits=limits, kill_signal=kill_signal)
    await pool.start()
    try:
        yield pool
    finally:
        await pool.stop()


async def eventually(is_so: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline, f"never came true: {what}"
        await asyncio.sleep(0.002)


class Client:
    """A connection to a slot, made without blocking the loop that supervises it."""

    def __init__(self, address: Address) -> None:
        is_unix = isinstance(address, UnixAddress)
        self.sock = socket.socket(socket.AF_UNIX if is_unix else socket.AF_INET)
        self.sock.setblocking(False)
        self._target = address.path if isinstance(address, UnixAddress) else (address.host, address.port)
        self._loop = asyncio.get_running_loop()

    async def __aenter__(self) -> Client:
        try:
            await self._loop.sock_connect(self.sock, self._target)
        except OSError:
            self.sock.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.sock.close()

    async def send(self, line: str) -> None:
        await self._loop.sock_sendall(self.sock, line.encode() + b"\n")

    async def recv(self) -> str:
        """What has come, without the end of line; empty when the other side has ended."""
        try:
            return (await self._loop.sock_recv(self.sock, 65536)).decode().removesuffix("\n")
        except ConnectionResetError:
            return ""

    async def ask(self, line: str) -> str:
        await self.send(line)
        return await self.recv()

    async def read_all(self) -> str:
        whole = []
        while part := await self._loop.sock_recv(self.sock, 65536):
            whole.append(part)
        return b"".join(whole).decode()


async def ask(address: Address, line: str) -> str:
    async with Client(address) as client:
        return await client.ask(line)


def is_alive(pid: int) -> bool:
    """Does the process run? A zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in {b"Z", b"X"}
    except OSError:
        return False


def messages(caplog: pytest.LogCaptureFixture, logger: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == logger]


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


async def look_around(argv: tuple[str, ...], addresses: Sequence[Address]) -> dict[str, str]:
    async with running(argv, addresses) as pool, Client(pool.slots[0].address) as client:
        report = await client.read_all()
    return dict(line.split(" ", 1) for line in report.splitlines())


def test_a_program_finds_what_a_backend_expects_and_nothing_else(run, tmp_path):
    found = run(look_around((*program(tmp_path, LOOK_AROUND), "one", "two three"), unix(tmp_path)))

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


def test_a_descriptor_that_we_were_started_with_is_not_handed_on(run, tmp_path):
    with (tmp_path / "secret").open("w") as secret:
        os.set_inheritable(secret.fileno(), True)
        found = run(look_around(program(tmp_path, LOOK_AROUND), unix(tmp_path)))

    assert found["descriptors"] == "0 1 2"


def test_a_signal_that_is_blocked_here_is_not_blocked_there_and_stays_blocked_here(run, tmp_path):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    try:
        found = run(look_around(program(tmp_path, LOOK_AROUND), unix(tmp_path)))
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
        from tests.system.test_supervise import LOOK_AROUND, look_around, program, unix
        catch_ignored_signals()
        signal.raise_signal(signal.SIGHUP)
        folder = Path(sys.argv[1])
        print(asyncio.run(look_around(program(folder, LOOK_AROUND), unix(folder)))["signals"])
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
    """
    program(tmp_path, LOOK_AROUND, name="look")

    found = run(look_around(program(tmp_path, make_nonblocking), unix(tmp_path)))

    assert found["nonblocking"] == "no"


# --- Addresses


def test_every_slot_has_its_own_process_behind_its_own_socket(run, tmp_path):
    async def main() -> None:
        async with running(program(tmp_path, ECHO), unix(tmp_path, 3)) as pool:
            pids = [int(await ask(slot.address, "pid")) for slot in pool.slots]

            assert [slot.name for slot in pool.slots] == ["echo-0", "echo-1", "echo-2"]
            assert pids == [slot.pid for slot in pool.slots]
            assert len(set(pids)) == 3
            assert [slot.state for slot in pool.slots] == ["running"] * 3

    run(main())


def test_sockets_are_for_their_owner_only(run, tmp_path):
    async def main() -> None:
        async with running(program(tmp_path, ECHO), unix(tmp_path)):
            assert stat.S_IMODE((tmp_path / "socket-0").stat().st_mode) == 0o600

    before = os.umask(0)
    try:
        run(main())
    finally:
        os.umask(before)


def test_a_tcp_slot_knows_the_port_it_got(run, tmp_path):
    async def main() -> None:
        async with running(program(tmp_path, ECHO), [TcpAddress("127.0.0.1", 0)] * 2) as pool:
            assert [await ask(slot.address, "hello") for slot in pool.slots] == ["hello", "hello"]
            assert pool.slots[0].address != pool.slots[1].address

    run(main())


def test_a_missing_folder_is_made_and_taken_away_again(run, tmp_path):
    async def main() -> None:
        async with running(program(tmp_path, ECHO), unix(tmp_path / "run", 2)) as pool:
            assert await ask(pool.slots[1].address, "hello") == "hello"

    run(main())

    assert not (tmp_path / "run").exists()


def test_a_folder_that_was_there_before_stays(run, tmp_path):
    async def main() -> None:
        async with running(program(tmp_path, ECHO), unix(tmp_path / "run")):
            pass

    (tmp_path / "run").mkdir()

    run(main())

    assert (tmp_path / "run").exists()


def test_a_stale_socket_of_a_dead_run_is_replaced(run, tmp_path):
    async def main() -> None:
        async with running(program(tmp_path, ECHO), unix(tmp_path)) as pool:
            assert await ask(pool.slots[0].address, "hello") == "hello"

    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(tmp_path / "socket-0"))

    run(main())


def test_a_path_in_use_stops_the_whole_pool_and_leaves_nothing_behind(run, tmp_path):
    """lighttpd takes the stranger for its own backend."""

    async def main() -> None:
        with bind_unix(str(tmp_path / "run" / "socket-2"), backlog=1):
            with pytest.raises(StartError, match="socket-2: another process listens there"):
                async with running(program(tmp_path, ECHO), [*unix(tmp_path / "new"), *unix(tmp_path / "run", 3)]):
                    pass
            assert sorted(os.listdir(tmp_path)) == ["backend", "run"]
            assert os.listdir(tmp_path / "run") == ["socket-2"]

    (tmp_path / "run").mkdir()

    run(main())


def test_a_socket_that_somebody_has_put_in_place_of_ours_stays(run, tmp_path):
    async def main() -> None:
        async with running(program(tmp_path, ECHO), unix(tmp_path)):
            (tmp_path / "socket-0").unlink()
            (tmp_path / "socket-0").write_text("somebody's")

    run(main())

    assert (tmp_path / "socket-0").read_text() == "somebody's"


# --- Programs that cannot be started


def test_a_program_that_cannot_be_started_is_an_error_that_leaves_nothing_behind(run, tmp_path):
    async def main() -> None:
        async with running((str(tmp_path / "missing"),), unix(tmp_path / "run", 2)):
            pass

    with pytest.raises(StartError, match="missing: does not exist"):
        run(main())

    assert os.listdir(tmp_path) == []


def test_a_program_that_vanishes_is_looked_for_until_it_is_back(run, tmp_path, caplog):
    async def main() -> None:
        argv = program(tmp_path, ECHO)
        async with running(argv, unix(tmp_path)) as pool:
            slot = pool.slots[0]
            (tmp_path / "backend").rename(tmp_path / "away")
            os.kill(slot.pid, signal.SIGKILL)
            await eventually(
                lambda: any("does not exist" in line for line in caplog.messages), "a failed start is logged"
            )
            assert slot.state == "waiting"
            assert slot.pid is None

            (tmp_path / "away").rename(tmp_path / "backend")
            assert await ask(slot.address, "hello") == "hello"

    run(main())


# --- Death and restart


def test_fifty_kills_refuse_no_connect_and_lose_no_request(run, tmp_path):
    """The listening socket outlives its process, so a connect waits for the next one."""
    kills = 50

    async def main() -> None:
        async with running(program(tmp_path, ECHO), unix(tmp_path)) as pool:
            slot = pool.slots[0]
            served = 0
            is_over = False

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
                    assert slot.restarts == kill
                    os.kill(slot.pid, signal.SIGKILL)
                    await eventually(lambda kill=kill: slot.restarts == kill + 1, "the next process is started")
                is_over = True

            assert slot.deaths == kills

    run(main())


def test_a_connect_while_no_process_runs_is_served_by_the_next_one(run, tmp_path):
    async def main() -> None:
        patient = dataclasses.replace(LIMITS, restart=RestartLimits(healthy_after_s=DEADLINE_S, first_wait_s=0.05))
        async with running(program(tmp_path, ECHO), unix(tmp_path), patient) as pool:
            slot = pool.slots[0]
            os.kill(slot.pid, signal.SIGKILL)
            await eventually(lambda: slot.state == "waiting", "the slot waits")

            assert await ask(slot.address, "hello") == "hello"
            assert slot.state == "running"

    run(main())


def test_each_death_is_one_line_that_says_how_and_what_happens_next(run, tmp_path, caplog):
    async def main() -> None:
        limits = dataclasses.replace(LIMITS, restart=RestartLimits(healthy_after_s=1000, first_wait_s=0.1))
        async with running(program(tmp_path, ECHO), unix(tmp_path), limits) as pool:
            slot = pool.slots[0]
            pids.append(slot.pid)
            await ask(slot.address, "fail")
            await eventually(lambda: slot.restarts == 1, "a second process")
            pids.append(slot.pid)
            await ask(slot.address, "be killed")
            await eventually(lambda: slot.deaths == 2, "a second death")

    pids: list[int] = []
    run(main())
    one, two = messages(caplog, "wstunnel.supervise")

    assert one.startswith(f"echo-0: pid {pids[0]} exited with status 3 after ")
    assert one.endswith(" s; next start in 0.1 s")
    assert two.startswith(f"echo-0: pid {pids[1]} killed by SIGKILL after ")
    assert two.endswith(" s; next start in 0.2 s")
    assert {record.levelno for record in caplog.records if record.name == "wstunnel.supervise"} == {logging.WARNING}


def test_a_program_that_was_healthy_is_started_again_at_once(run, tmp_path, caplog):
    async def main() -> None:
        limits = dataclasses.replace(LIMITS, restart=RestartLimits(healthy_after_s=0.0, first_wait_s=DEADLINE_S))
        async with running(program(tmp_path, ECHO), unix(tmp_path), limits) as pool:
            await ask(pool.slots[0].address, "be killed")
            assert await ask(pool.slots[0].address, "hello") == "hello"

    run(main())

    (line,) = messages(caplog, "wstunnel.supervise")
    assert line.endswith(" s; started again now")


def test_a_stop_forgets_the_start_that_is_due(run, tmp_path):
    async def main() -> None:
        wait_s = 0.02
        limits = dataclasses.replace(LIMITS, restart=RestartLimits(healthy_after_s=1000, first_wait_s=wait_s))
        async with running(program(tmp_path, ECHO), unix(tmp_path), limits) as pool:
            slot = pool.slots[0]
            os.kill(slot.pid, signal.SIGKILL)
            await eventually(lambda: slot.state == "waiting", "the slot waits")
            loop = asyncio.get_running_loop()
            due_s = loop.time() + wait_s
        await eventually(lambda: loop.time() > due_s, "the next start was due")
        assert slot.restarts == 0

    run(main())


def test_a_program_that_dies_at_once_is_started_later_and_later_and_can_be_stopped(run, tmp_path, caplog):
    async def main() -> None:
        limits = dataclasses.replace(LIMITS, restart=RestartLimits(first_wait_s=0.01))
        async with running(shell(tmp_path, "exit 1"), unix(tmp_path), limits) as pool:
            await eventually(lambda: pool.slots[0].deaths == 4, "four deaths")

    run(main())

    waits = [line.rpartition("; ")[2] for line in messages(caplog, "wstunnel.supervise")]
    assert waits[:4] == ["next start in 0.0 s", "next start in 0.0 s", "next start in 0.0 s", "next start in 0.1 s"]


def test_exit_statuses_that_nobody_can_tell_do_not_stop_the_restarts(run, tmp_path, caplog):
    """With SIGCHLD ignored, as a careless starter may leave it, the kernel throws statuses away."""

    async def main() -> None:
        async with running(program(tmp_path, ECHO), unix(tmp_path)) as pool:
            lease = pool.lease()
            os.kill(pool.slots[0].pid, signal.SIGKILL)
            await eventually(lambda: pool.slots[0].restarts == 1, "the next process is started")
            assert await lease.exit_status() == ExitStatus()
            assert await ask(pool.slots[0].address, "hello") == "hello"

    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        run(main())
    finally:
        signal.signal(signal.SIGCHLD, before)

    assert " ended after " in messages(caplog, "wstunnel.supervise")[0]


def test_children_that_a_dead_process_had_forked_are_left_to_their_tunnels_until_the_stop(run, tmp_path):
    async def main() -> None:
        async with running(program(tmp_path, FORKING), unix(tmp_path)) as pool:
            slot = pool.slots[0]
            async with Client(slot.address) as client:
                worker = int(await client.ask("pid"))
                lease = pool.lease()
                os.kill(slot.pid, signal.SIGKILL)
                await eventually(lambda: slot.restarts == 1, "the next process is started")

                assert await client.ask("still there?") == "still there?"
                assert is_alive(worker)
                lease.release()
        assert not is_alive(worker)

    run(main())


# --- What a lease knows about the end of its connection


@pytest.mark.parametrize(
    ("order", "status"),
    [("be killed", ExitStatus(signal=9)), ("fail", ExitStatus(code=3)), ("finish", ExitStatus(code=0))],
)
def test_when_a_process_ends_its_connections_tell_how_from_their_first_moment(run, tmp_path, order, status):
    async def main() -> None:
        async with running(program(tmp_path, ECHO), unix(tmp_path)) as pool:
            for _ in range(10):
                lease = pool.lease()
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
        async with running(program(tmp_path, ECHO), unix(tmp_path)) as pool:
            lease = pool.lease()
            assert await ask(lease.address, "close") == ""

            assert not lease.is_exiting()
            assert await lease.exit_status() is None

    run(main())


def test_a_death_before_the_lease_is_none_of_its_business(run, tmp_path):
    async def main() -> None:
        async with running(program(tmp_path, ECHO), unix(tmp_path)) as pool:
            await ask(pool.slots[0].address, "be killed")
            await eventually(lambda: pool.slots[0].restarts == 1, "the next process is started")
            lease = pool.lease()
            assert await ask(lease.address, "close") == ""

            assert not lease.is_exiting()

    run(main())


def at_once(limits: Limits) -> Limits:
    """Deaths are old as soon as they are noticed."""
    return dataclasses.replace(limits, spawn=dataclasses.replace(limits.spawn, exit_wait_s=0.0))


def test_a_connection_that_waited_in_the_backlog_is_not_blamed_on_the_process_before(run, tmp_path):
    async def main() -> None:
        async with running(program(tmp_path, ECHO), unix(tmp_path), at_once(LIMITS)) as pool:
            first, second = pool.lease(), pool.lease()
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
        async with running(program(tmp_path, ECHO), unix(tmp_path), at_once(LIMITS)) as pool:
            lease = pool.lease()
            async with Client(lease.address) as client:
                assert await client.ask("hello") == "hello"
                await client.send("fail")
                await eventually(lambda: pool.slots[0].restarts == 1, "the next process is started")

                assert await client.recv() == ""
                assert lease.is_exiting()
                assert await lease.exit_status() == ExitStatus(code=3)

    run(main())


def test_a_tunnel_with_a_forked_child_is_not_blamed_on_its_dead_parent(run, tmp_path):
    async def main() -> None:
        async with running(program(tmp_path, FORKING), unix(tmp_path), at_once(LIMITS)) as pool:
            lease = pool.lease()
            async with Client(lease.address) as client:
                assert await client.ask("hello") == "hello"
                os.kill(pool.slots[0].pid, signal.SIGKILL)
                await eventually(lambda: pool.slots[0].restarts == 1, "the next process is started")

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
        async with running(shell(tmp_path, talk), unix(tmp_path, 2)) as pool:
            await eventually(lambda: len(messages(caplog, "wstunnel.backend")) == 6, "six lines")
            for slot in pool.slots:
                os.kill(slot.pid, signal.SIGKILL)
            await eventually(lambda: all(slot.deaths for slot in pool.slots), "they are dead")
            lines = messages(caplog, "wstunnel.backend")
            for slot in ("echo-0", "echo-1"):
                words = ["one", "two ä€", r"\x1b[31mred\xff", "last words"]
                assert [line for line in lines if slot in line][:4] == [f"{slot}: {word}" for word in words]

    run(main())


def test_last_words_come_before_the_news_of_the_death(run, tmp_path, caplog):
    caplog.set_level(logging.INFO, "wstunnel")

    async def main() -> None:
        async with running(shell(tmp_path, "printf 'i am dying' >&2; exit 7"), unix(tmp_path)) as pool:
            await eventually(lambda: pool.slots[0].deaths, "a death")

    run(main())

    assert caplog.messages[0] == "echo-0: i am dying"
    assert "exited with status 7" in caplog.messages[1]


def test_a_flood_on_stderr_leaves_the_loop_its_turns_and_every_line_whole(run, tmp_path, caplog):
    caplog.set_level(logging.INFO, "wstunnel.backend")
    lines = 20_000

    async def main() -> None:
        flood = f"my $n = 0; print STDERR ++$n, 'x' x 50, qq{{\\n}} while $n < {lines}; sleep 1000 while 1;"
        async with running(program(tmp_path, flood), unix(tmp_path)):
            turns = 0
            while len(caplog.records) < lines:
                turns += 1
                await asyncio.sleep(0)
            assert turns > lines * 50 // LIMITS.spawn.log_read_bytes

    run(main())

    assert messages(caplog, "wstunnel.backend") == [f"echo-0: {n + 1}{'x' * 50}" for n in range(lines)]


# --- Stop


def test_a_stop_leaves_no_process_no_socket_and_no_restart(run, tmp_path, caplog):
    async def main() -> None:
        async with running(program(tmp_path, FORKING), unix(tmp_path, 3)) as pool:
            workers = [int(await ask(slot.address, "pid")) for slot in pool.slots]
            leaders = [slot.pid for slot in pool.slots]
        assert not any(map(is_alive, workers + leaders))
        assert [slot.state for slot in pool.slots] == ["stopped"] * 3
        assert [slot.pid for slot in pool.slots] == [None] * 3
        assert pool.lease() is None

    run(main())

    assert os.listdir(tmp_path) == ["backend"]
    assert caplog.messages == []


def test_the_kill_signal_is_the_one_asked_for_and_reaches_the_whole_group(run, tmp_path):
    note = r"""
        $SIG{TERM} = 'IGNORE';
        fork;
        $SIG{USR1} = sub { open my $mark, '>', "mark-$$"; exit };
        accept(my $client, \*STDIN) if getpgrp == $$;
        sleep 1000 while 1;
    """

    async def main() -> None:
        async with running(program(tmp_path, note), unix(tmp_path), kill_signal=signal.SIGUSR1) as pool:
            leader = pool.slots[0].pid

            def is_ready() -> bool:
                pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
                return sum(catches_usr1(pid, leader) for pid in pids) == 2

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

    assert len(list(tmp_path.glob("mark-*"))) == 2


@pytest.mark.parametrize("text", ["$SIG{TERM} = 'IGNORE';", "$SIG{TERM} = 'IGNORE'; fork;"])
def test_whoever_ignores_the_kill_signal_is_killed_after_the_timeout(run, tmp_path, caplog, text):
    async def main() -> None:
        async with running(program(tmp_path, f"{text} {ECHO}"), unix(tmp_path), IMPATIENT) as pool:
            leader = pool.slots[0].pid
            pids = {leader}
            while len(pids) < 1 + text.count("fork"):
                pids.add(int(await ask(pool.slots[0].address, "pid")))
            assert await ask(pool.slots[0].address, "hello") == "hello"
        assert not any(map(is_alive, pids))

    run(main())

    assert caplog.messages == ["echo-0: still running 0.1 s after the kill signal; sending SIGKILL"]


def test_a_forked_child_that_ignores_the_kill_signal_is_killed_after_the_timeout(run, tmp_path):
    """Its parent obeys, so nothing but the group is left of the process that we know."""

    async def main() -> None:
        argv = program(tmp_path, "unless (fork) { $SIG{TERM} = 'IGNORE'; " + ECHO + " } sleep 1000 while 1;")
        async with running(argv, unix(tmp_path), IMPATIENT) as pool:
            worker = int(await ask(pool.slots[0].address, "pid"))
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
        async with running(program(tmp_path, leave + ECHO), unix(tmp_path)) as pool:
            pid = int(await ask(pool.slots[0].address, "pid"))
            assert os.getpgid(pid) != pid
        assert not is_alive(pid)

    run(main())


def test_an_abort_ends_a_stop_that_waits(run, tmp_path, caplog):
    async def main() -> None:
        async with running(program(tmp_path, ECHO_DEAF), unix(tmp_path, 2)) as pool:
            assert [await ask(slot.address, "hello") for slot in pool.slots] == ["hello", "hello"]
            stopping = asyncio.create_task(pool.stop())
            await eventually(lambda: {slot.state for slot in pool.slots} == {"stopping"}, "the stop has begun")

            pool.abort()
            await stopping

    run(main())

    assert caplog.messages == []  # nobody came to the end of `kill_timeout_s`
    assert os.listdir(tmp_path) == ["backend"]


def test_an_abort_before_the_stop_starts_nothing_again(run, tmp_path, caplog):
    async def main() -> None:
        async with running(program(tmp_path, ECHO), unix(tmp_path)) as pool:
            pool.abort()
            await eventually(lambda: pool.slots[0].pid is None, "the process is gone")
            assert pool.lease() is None

    run(main())

    assert caplog.messages == []


def test_a_stop_that_was_cancelled_can_be_finished(run, tmp_path):
    async def main() -> None:
        async with running(program(tmp_path, ECHO_DEAF), unix(tmp_path)) as pool:
            assert await ask(pool.slots[0].address, "hello") == "hello"
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(pool.stop(), 0.01)
            assert pool.slots[0].state == "stopping"

            pool.abort()
            await pool.stop()

            assert pool.slots[0].state == "stopped"
            await pool.stop()

    run(main())

    assert os.listdir(tmp_path) == ["backend"]


def test_a_slot_whose_process_is_down_takes_connections_only_when_no_other_can(run, tmp_path):
    async def main() -> None:
        patient = dataclasses.replace(LIMITS, restart=RestartLimits(healthy_after_s=1000, first_wait_s=DEADLINE_S))
        async with running(program(tmp_path, ECHO), unix(tmp_path, 2), patient) as pool:
            first, second = pool.slots
            os.kill(first.pid, signal.SIGKILL)
            await eventually(lambda: first.state == "waiting", "the first slot is down")
            leases = [pool.lease() for _ in range(3)]
            assert [lease.slot for lease in leases] == [second] * 3
            assert pool.lease(avoid={second}).slot is first
            assert pool.lease(avoid={first, second}) is None

    run(main())
