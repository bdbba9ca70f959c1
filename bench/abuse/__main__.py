"""What each flood costs: the server's CPU and memory, and an innocent client's round trips meanwhile.

One process is the server, alone on its processor; one sends the floods, with CPU time that nobody else wants; one has a
tunnel over HTTP/1.1, and sends 64 bytes to and fro. Each flood comes once a second, over a connection of its own, until
the server ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import multiprocessing
import os
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection

from bench.abuse.attacks import FLOODS, Enemy
from bench.load.processes import Cpus, Process, cpu_s, free_port, memory_bytes
from bench.load.programs import ROOT

__all__ = ["main"]

_WAIT_S = 10.0
_MOST = 200_000
_MESSAGE_BYTES = 64
_BASE_S = 3.0
_CONFIG = """
listen = "127.0.0.1:{port}"
h2c = true
document-root = "{site}"
[[route]]
path = "/ws"
socket = "{echoing}"
[[route]]
path = "/silent"
socket = "{silent}"
close-timeout = 0.5
"""
_HEAD = struct.pack(">BBI", 0x82, 0x80 | _MESSAGE_BYTES, 0)
_LARGE_BYTES = 1 << 20
_READ_BYTES = 1 << 16


@dataclass(frozen=True)
class Row:
    """What one flood did, at the median but for memory and round trips."""

    name: str
    pieces: int
    goaway: int | None
    until_ms: float
    cpu_ms: float
    grown_kib: int
    p99_us: float
    longest_us: float


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.abuse", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="FLOOD", help=f"of {', '.join(FLOODS)}; all, without one")
    parser.add_argument("--rounds", type=int, default=3, help="times that each flood comes (default: 3)")
    given = parser.parse_args()
    if unknown := set(given.names) - set(FLOODS):
        parser.error(f"no such flood: {', '.join(sorted(unknown))}")
    cpus = Cpus()
    os.sched_setaffinity(0, {cpus.load})
    with tempfile.TemporaryDirectory() as folder, serving(folder, cpus) as (server, port):
        quiet = round_trips(port, lambda: time.sleep(_BASE_S))
        print(f"quiet: p99 {quiet[0]:.0f} us, longest {quiet[1]:.0f} us, {kib_of(server)} KiB\n")
        print("| flood | frames | GOAWAY | ms to it | CPU ms | KiB more | p99 us | x | longest us |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        for name in given.names or FLOODS:
            row = measured(name, server, port, given.rounds)
            print(
                f"| {row.name} | {row.pieces} | {row.goaway} | {row.until_ms:.0f} | {row.cpu_ms:.0f} | {row.grown_kib} "
                f"| {row.p99_us:.0f} | {row.p99_us / quiet[0]:.2f} | {row.longest_us:.0f} |",
                flush=True,
            )
    return 0


def measured(name: str, server: Process, port: int, rounds: int) -> Row:
    """Have the flood come, once a second."""
    kib_before = kib_of(server)
    said: list[tuple[int, int | None, float, float]] = []

    def flood() -> None:
        for _ in range(rounds):
            before_s, begun_s = spent_by(server), time.monotonic()
            pieces, goaway, took_s = in_process(_flood, name, port)
            said.append((pieces, goaway, took_s, spent_by(server) - before_s))
            time.sleep(max(0.0, 1.0 - (time.monotonic() - begun_s)))

    p99_us, longest_us = round_trips(port, flood)
    pieces, goaway, took_s, spent_s = sorted(said, key=lambda each: each[2])[len(said) // 2]
    return Row(
        name,
        pieces,
        goaway,
        took_s * 1e3,
        spent_s * 1e3,
        kib_of(server) - kib_before,
        p99_us,
        longest_us,
    )


def _flood(told: Connection, name: str, port: int) -> None:
    os.nice(19)

    async def flood() -> tuple[int, int | None, float]:
        async with await Enemy.meet("127.0.0.1", port) as enemy:
            await enemy.greet()
            begun_s = time.monotonic()
            pieces = await enemy.flood(FLOODS[name][0](enemy), _MOST)
            await asyncio.wait_for(enemy.ended.wait(), _WAIT_S)
            return pieces, enemy.goaway, time.monotonic() - begun_s

    told.send(asyncio.run(flood()))


def in_process(target: Callable[..., None], *given: object) -> tuple[int, int | None, float]:
    """What it sends back."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=target, args=(theirs, *given))
    process.start()
    result: tuple[int, int | None, float] = ours.recv()
    process.join()
    return result


def round_trips(port: int, meanwhile: Callable[[], None]) -> tuple[float, float]:
    """99 % of an innocent client's round trips were as short as this, and the longest; in us."""
    ours, theirs = multiprocessing.Pipe()
    client = multiprocessing.Process(target=_client, args=(theirs, port))
    client.start()
    ours.recv()
    meanwhile()
    ours.send(None)
    took: list[int] = ours.recv()
    client.join()
    took.sort()
    return took[len(took) * 99 // 100] / 1e3, took[-1] / 1e3


def _client(told: Connection, port: int) -> None:
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    key = base64.b64encode(os.urandom(16)).decode()
    sock.sendall(
        f"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
    )
    while b"\r\n\r\n" not in sock.recv(4096):
        pass
    message = _HEAD + bytes(_MESSAGE_BYTES)
    took = []
    told.send(None)
    while not told.poll():
        begun_ns = time.monotonic_ns()
        sock.sendall(message)
        sock.recv(2 + _MESSAGE_BYTES, socket.MSG_WAITALL)
        took.append(time.monotonic_ns() - begun_ns)
        time.sleep(0.0005)
    told.send(took)
    sock.close()


def _serve(echoing: str, silent: str) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(_READ_BYTES):
                writer.write(piece)
                await writer.drain()
        writer.close()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while await reader.read(_READ_BYTES):
                pass
        writer.close()

    async def forever() -> None:
        async with (
            await asyncio.start_unix_server(listen, silent),
            await asyncio.start_unix_server(echo, echoing) as on,
        ):
            await on.serve_forever()

    asyncio.run(forever())


def kib_of(server: Process) -> int:
    """Memory of the server."""
    return memory_bytes(server.tree(but="")) // 1024


def spent_by(server: Process) -> float:
    """Seconds of CPU that the server has taken."""
    return cpu_s(server.tree(but=""))


@contextlib.contextmanager
def serving(folder: str, cpus: Cpus) -> Iterator[tuple[Process, int]]:
    """A server with a tunnel's route and files, and its port."""
    site = os.path.join(folder, "site")
    os.mkdir(site)
    for name, size in (("index.html", 6), ("large", _LARGE_BYTES)):
        with open(os.path.join(site, name), "wb") as file:
            file.write(bytes(size))
    echoing, silent = os.path.join(folder, "e.sock"), os.path.join(folder, "s.sock")
    with open(config := os.path.join(folder, "wstunnel.toml"), "w", encoding="ascii") as file:
        file.write(_CONFIG.format(echoing=echoing, silent=silent, site=site, port=(port := free_port())))
    backend = multiprocessing.Process(target=_serve, args=(echoing, silent), daemon=True)
    backend.start()
    command = [sys.executable, "-m", "wstunnel", "-f", config]
    server = Process(command, cpu=cpus.server, log=os.path.join(folder, "log"), cwd=ROOT)
    try:
        if not server.listens_within(port):
            raise SystemExit(f"wstunnel does not start: {server.how_it_ended()}")
        yield server, port
    finally:
        server.stop()
        backend.terminate()
        backend.join()


if __name__ == "__main__":
    sys.exit(main())
