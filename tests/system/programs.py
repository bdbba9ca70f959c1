"""Programs that play a backend, a stage to supervise them on, and clients of their sockets."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from wstunnel.limits import Limits, MasterLimits, RestartLimits, SpawnLimits
from wstunnel.settings import Address, Host, UnixAddress
from wstunnel.supervise.board import Board, SlotColumn
from wstunnel.supervise.lease import Lease
from wstunnel.supervise.pools import Change, Pools
from wstunnel.supervise.slot import Slot

DEADLINE_S = 20.0
"""How long a thing that must happen may take: only ever waited for in a failure."""

LIMITS = Limits(
    restart=RestartLimits(healthy_after_s=0.0, first_wait_s=0.01, max_wait_s=0.1),
    spawn=SpawnLimits(exit_wait_s=DEADLINE_S, tick_s=0.02, start_watch_s=DEADLINE_S),
    master=MasterLimits(worker_rows=4, slot_rows=16),
)
"""Every run is healthy, nothing is killed for being slow on a busy machine, and idle processes are soon looked for."""


def restarting(**changes: Any) -> Limits:
    """LIMITS with other rules for restarts."""
    return dataclasses.replace(LIMITS, restart=RestartLimits(**changes))


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

# Lives, and serves nobody, while there is a file `alive` beside it; dies at once otherwise.
DOOMED = r"""
    [ -e alive ] && exec sleep 1000
    echo "nothing to live for" >&2
    exit 7
"""

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


def host_of(argv: tuple[str, ...], folder: Path, max_procs: int = 1, **options: Any) -> Host:
    """A host of this program, with its sockets in the folder."""
    return Host(bin_path=argv, socket=str(folder / "socket"), max_procs=max_procs, **options)


class Stage:
    """Pools, and worker 1 of those who serve from them."""

    def __init__(self, limits: Limits, kill_timeout_s: float) -> None:
        self.board = Board(limits.master)
        self.pools = Pools(self.board, limits, kill_timeout_s=kill_timeout_s, on_death=self._note_death)
        self.deaths: list[int] = []
        """Rows of those who died, in order."""
        self._limits = limits
        self._slots: list[Slot] = []

    def _note_death(self, row: int) -> None:
        self.deaths.append(row)
        for slot in self._slots:
            if slot.row == row:
                slot.note_death()

    def slots(self, host: Host, of: Pools | Change | None = None) -> list[Slot]:
        """The slots of a host, as the worker sees them."""
        found = [Slot(place, self.board, 1, self._limits) for place in (of or self.pools).places(host)]
        self._slots += found
        return found

    def restarts(self, slot: Slot) -> int:
        """Processes started there after the first one."""
        return self.board.slot(slot.row)[SlotColumn.STARTS] - 1


def leased(slot: Slot) -> Lease:
    """What a tunnel has of a slot."""
    return Lease(slot, 0, lambda: None)


@contextlib.asynccontextmanager
async def supervising(
    *hosts: Host, limits: Limits = LIMITS, kill_timeout_s: float = DEADLINE_S
) -> AsyncIterator[Stage]:
    """Everything that is supervised for these hosts, from start to stop."""
    stage = Stage(limits, kill_timeout_s)
    try:
        await stage.pools.start(hosts)
        try:
            yield stage
        finally:
            await stage.pools.stop()
    finally:
        stage.board.close()


@contextlib.asynccontextmanager
async def running(
    host: Host, limits: Limits = LIMITS, kill_timeout_s: float = DEADLINE_S
) -> AsyncIterator[tuple[Stage, list[Slot]]]:
    """One host that is supervised, and its slots."""
    async with supervising(host, limits=limits, kill_timeout_s=kill_timeout_s) as stage:
        yield stage, stage.slots(host)


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
