"""A worker process: `python -m wstunnel.server.carrier FD`, started by the master, carries traffic and forks nothing.

It finds its orders in the descriptor FD, says `Ready` on its channel, and does what the master says there. When the
master is gone it accepts no more and serves its tunnels to their end.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence

import uvloop

from wstunnel.net.listen import Listener
from wstunnel.proto.close import CloseCode
from wstunnel.server.budget import connection_budget
from wstunnel.server.certificates import Material, renew, servers_of
from wstunnel.server.channel import Channel
from wstunnel.server.logs import open_logs, reopen_logs
from wstunnel.server.messages import Cut, Death, Exited, Forked, Leave, Message, Quiet, Ready, Renew, Reopen, Unforked
from wstunnel.server.orders import Orders
from wstunnel.server.remote import RemoteForker
from wstunnel.server.service import Service
from wstunnel.server.worker import Worker
from wstunnel.supervise.board import Board, WorkerColumn, WorkerState, now_ms

__all__ = ["main"]

_log = logging.getLogger("wstunnel")

_MASTERS_SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Sent to every process of a name or a terminal, and meant for the master, who passes on what is to be done."""


def main(argv: Sequence[str]) -> int:
    """Carry traffic as ordered until told to end; the exit code."""
    orders = Orders.read(int(argv[0]))
    settings = orders.settings
    for fd in (orders.board_fd, orders.channel_fd, *(each.fd for each in orders.listeners)):
        os.set_inheritable(fd, False)
    with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as name:
        name.write(f"wstunnel-w{orders.row}")  # what ps, top and logs of the kernel call us
    open_logs(settings.log_level, settings.log_format, settings.log_file)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_carry(orders))
    return 0


async def _carry(orders: Orders) -> None:
    carrier = _Carrier(orders)
    try:
        await carrier.run()
    finally:
        carrier.close()


class _Carrier:
    """The worker of this process, and the channel that commands it."""

    def __init__(self, orders: Orders) -> None:
        settings, limits = orders.settings, orders.settings.limits
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._board = Board(limits.master, orders.board_fd)
        self._row_number, self._row = orders.row, self._board.worker(orders.row)
        self._row[WorkerColumn.PID] = os.getpid()
        self._row[WorkerColumn.GENERATION] = orders.generation
        self._row[WorkerColumn.STARTED_MS] = now_ms()
        self._channel = Channel(
            socket.socket(fileno=orders.channel_fd), limits.master, on_message=self._told, on_closed=self._orphaned
        )
        self._forker = RemoteForker(
            self._channel.send, answer_s=limits.master.fork_answer_s, exit_wait_s=limits.spawn.exit_wait_s
        )
        self._service = Service(settings, orders.places, self._board, orders.row, self._forker)
        self._tls = servers_of((each.front for each in orders.listeners), orders.material)
        self._listeners = [
            Listener(
                socket.socket(fileno=each.fd),
                each.address,
                is_shared=each.is_shared,
                front=each.front,
                tls=self._tls.get(each.front),
            )
            for each in orders.listeners
        ]
        self._worker = Worker(
            self._listeners,
            self._service.routes,
            max_connections=connection_budget(settings),
            limits=limits,
            row=self._row,
            may_accept=self._may_accept,
            io=settings.io,
        )
        self._ending: asyncio.Task[None] | None = None
        self._is_over = asyncio.Event()
        self._heart: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Serve until the master, or a SIGTERM, says otherwise and nothing is open any more."""
        for number in _MASTERS_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        drain_s = self._settings.drain_timeout_s
        self._loop.add_signal_handler(signal.SIGTERM, self._leave, CloseCode.GOING_AWAY, drain_s)
        self._beat()
        self._worker.start()
        self._row[WorkerColumn.STATE] = WorkerState.SERVING
        gc.collect()
        gc.freeze()  # what a worker starts with stays: not to be walked again by every collection
        self._channel.send(Ready())
        await self._is_over.wait()

    def close(self) -> None:
        """Give everything back; nothing is open any more."""
        if self._heart is not None:
            self._heart.cancel()
        self._channel.close()
        self._worker.close()
        self._stop_listening()

    def _told(self, message: Message, fds: list[int]) -> None:
        match message:
            case Renew() if fds:
                renew(self._tls, Material.read(fds.pop()))
            case Quiet():
                self._quiet()
            case Leave(code, within_s):
                self._leave(CloseCode(code), within_s)
            case Cut(code):
                self._leave(CloseCode(code), 0)
                self._worker.abort(CloseCode(code))
            case Reopen():
                reopen_logs()
            case Death(row):
                self._service.note_death(row)
            case Forked() | Unforked() | Exited():
                self._forker.told(message)
            case _:
                _log.warning("the master said %s, which is not for workers", type(message).__name__)
        for fd in fds:
            os.close(fd)

    def _orphaned(self) -> None:
        _log.error("the master is gone; this worker serves its tunnels to their end and accepts no more")
        self._forker.lost()
        self._quiet()

    def _quiet(self) -> None:
        """Serve what there is to its end, and take nothing new."""
        if self._ending is None:
            self._row[WorkerColumn.STATE] = WorkerState.QUIET
            self._worker.quiet()
            self._stop_listening()
            self._ending = self._loop.create_task(self._worker.idle())
            self._ending.add_done_callback(self._ended)

    def _leave(self, code: CloseCode, within_s: float) -> None:
        """End every tunnel."""
        if self._row[WorkerColumn.STATE] == WorkerState.LEAVING:
            return
        self._row[WorkerColumn.STATE] = WorkerState.LEAVING
        if self._ending is not None:
            self._ending.remove_done_callback(self._ended)
            self._ending.cancel()
        self._ending = self._loop.create_task(self._worker.drain(code, within_s=within_s))
        self._ending.add_done_callback(self._ended)
        self._loop.call_soon(self._stop_listening)  # behind the first step of `drain`, which stops accepting

    def _stop_listening(self) -> None:
        """At an address that nobody serves any more, clients must be refused: they would wait until we have ended."""
        for listener in self._listeners:
            listener.socket.close()  # never unlinked here: the path is the master's

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._is_over.set()
        if not task.cancelled():
            task.result()

    def _may_accept(self) -> bool:
        """Has no other worker clearly less to do? Asked where several accept from the same socket."""
        least = self._board.least_connections(besides=self._row_number)
        return least is None or self._row[WorkerColumn.CONNECTIONS] <= least + self._settings.limits.accept.per_turn

    def _beat(self) -> None:
        """Show that the loop turns."""
        self._row[WorkerColumn.HEARTBEAT_MS] = now_ms()
        self._heart = self._loop.call_later(self._settings.limits.master.heartbeat_s, self._beat)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
