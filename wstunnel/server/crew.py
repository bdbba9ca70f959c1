"""The worker processes of one generation, as their master sees them: started, replaced when they die, sent home."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

from wstunnel.errors import BackendError, StartError
from wstunnel.proto.close import CloseCode
from wstunnel.server.certificates import Material
from wstunnel.server.channel import Channel, Sendable
from wstunnel.server.messages import (
    Cut,
    Death,
    Exited,
    Fork,
    Forked,
    Leave,
    Message,
    Quiet,
    Ready,
    Release,
    Renew,
    Reopen,
    Unforked,
)
from wstunnel.server.orders import ListenerOrder, Orders
from wstunnel.server.service import Places
from wstunnel.settings import Settings
from wstunnel.supervise.board import Board, WorkerColumn, WorkerState
from wstunnel.supervise.child import Child, ExitStatus
from wstunnel.supervise.forks import Fork as RunningFork
from wstunnel.supervise.forks import Forks

__all__ = ["Crew", "Hand"]

_log = logging.getLogger("wstunnel")

_CODE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
"""Where this version is imported from: the first of the places that its workers look in, whatever their folder."""


class Hand:
    """One worker process, from its start until it has been reaped.

    in      on_ready, on_ended   told once each
    """

    def __init__(
        self,
        child: Child,
        channel_socket: socket.socket,
        *,
        index: int,
        row: int,
        forks: Forks,
        settings: Settings,
        on_ready: Callable[[], None],
        on_ended: Callable[[Hand, ExitStatus], None],
    ) -> None:
        self.child = child
        self.index, self.row = index, row
        self.is_ready = False
        self._forks, self._limits = forks, settings.limits
        self._on_ready, self._on_ended = on_ready, on_ended
        self._loop = asyncio.get_running_loop()
        self.started_s = self._loop.time()
        self._running: dict[int, RunningFork] = {}
        self._forking = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._channel = Channel(channel_socket, settings.limits.master, on_message=self._told, on_closed=self._given_up)
        self._loop.add_reader(child.pidfd, self._reap)

    def export(self) -> dict[str, Any]:
        """What the next image of this process needs to go on with the worker, for JSON."""
        return {
            "index": self.index,
            "row": self.row,
            "pid": self.child.pid,
            "pidfd": self.child.pidfd,
            "channel_fd": self._channel.fileno(),
            "forks": {str(request): fork.pid for request, fork in self._running.items()},
        }

    def resume(self, requests: Mapping[str, int], forks: Mapping[int, RunningFork]) -> None:
        """Go on with the programs that the worker had when `export` was called."""
        for request, pid in requests.items():
            self._running[int(request)] = forks[pid]
            self._do(self._watch(int(request), forks[pid]))

    def send(self, message: Message, files: Sequence[Sendable] = ()) -> None:
        """Tell the worker something; files go with it, and are closed."""
        self._channel.send(message, files)

    def kill(self) -> None:
        """End the process now."""
        self.child.signal_group(signal.SIGKILL)

    def kill_unless_ready(self, within_s: float) -> None:
        """End the process if it does not serve by then."""
        self._timer = self._loop.call_later(within_s, self._give_up_start, within_s)

    @property
    def is_forking(self) -> bool:
        """Is there a request for a program that it has no answer to yet?"""
        return self._forking > 0

    def _told(self, message: Message, fds: list[int]) -> None:
        sockets = [socket.socket(fileno=fd) for fd in fds]
        match message:
            case Ready():
                self.is_ready = True
                self._cancel_timer()
                self._on_ready()
            case Fork() if sockets:
                self._forking += 1
                self._do(self._fork(message, sockets.pop()))
            case Fork(request):
                self.send(Unforked(request, 503, "the master had no descriptor left for the program's stream"))
            case Release(request):
                fork = self._running.pop(request, None)
                if fork is not None:
                    fork.release()
            case _:
                _log.warning("worker %d said %s, which is not for masters", self.index, type(message).__name__)
        for each in sockets:
            each.close()

    async def _fork(self, asked: Fork, stream: socket.socket) -> None:
        request = asked.request
        try:
            with stream:
                fork = await self._forks.fork(asked.index, asked.environment, stream, asked.script)
        except BackendError as error:
            self.send(Unforked(request, error.status, str(error)))
            return
        finally:
            self._forking -= 1
        self._running[request] = fork
        self.send(Forked(request, fork.pid))
        await self._watch(request, fork)

    async def _watch(self, request: int, fork: RunningFork) -> None:
        status = await fork.wait()
        self.send(Exited(request, status.word if status.is_known else None, fork.last_words))

    def _do(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _given_up(self) -> None:
        """The channel is gone: the process is ending, or not to be talked with any more."""
        self._cancel_timer()
        self._timer = self._loop.call_later(self._limits.master.exit_wait_s, self.kill)

    def _give_up_start(self, within_s: float) -> None:
        _log.error("worker %d (pid %d) was not ready within %g s and is killed", self.index, self.child.pid, within_s)
        self.kill()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _reap(self) -> None:
        status = self.child.reap()
        if status is None:
            return
        self._cancel_timer()
        self._loop.remove_reader(self.child.pidfd)
        self.child.close()
        self._channel.close()
        for fork in self._running.values():
            fork.release()
        self._running.clear()
        self._on_ended(self, status)


class Crew:
    """The workers of one configuration.

    in      listeners  per worker, the listening sockets that it serves
            material   the certificates and keys that they are served with
            on_ended   told when the last of them is gone, unless that is before all were ready
    bound   `settings.workers` processes
    """

    def __init__(
        self,
        settings: Settings,
        *,
        number: int,
        board: Board,
        places: Places,
        listeners: Sequence[Sequence[ListenerOrder]],
        material: Material,
        forks: Forks,
        slot_rows: Callable[[], Iterable[int]],
        on_ended: Callable[[Crew], None],
    ) -> None:
        self.settings, self.number, self.forks = settings, number, forks
        self._material = material
        self.hands: dict[int, Hand] = {}
        """The living, by index."""
        self._board, self._places, self._listeners = board, places, listeners
        self._slot_rows, self._on_ended = slot_rows, on_ended
        self._loop = asyncio.get_running_loop()
        self._waits_s = [0.0] * len(listeners)
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._is_going = False
        self._is_starting = True
        self._is_ended = False
        self._changed = asyncio.Event()

    @classmethod
    def adopt(
        cls,
        exported: Mapping[str, Any],
        settings: Settings,
        *,
        board: Board,
        slot_rows: Callable[[], Iterable[int]],
        on_ended: Callable[[Crew], None],
    ) -> Crew:
        """The crew that an earlier image of this process has left, as `export` said. Who dies of it is not replaced."""
        forks = Forks.adopt(exported["forks"], settings.limits, kill_timeout_s=settings.kill_timeout_s)
        crew = cls(
            settings,
            number=exported["number"],
            board=board,
            places=(),
            listeners=(),
            material=Material(),
            forks=forks,
            slot_rows=slot_rows,
            on_ended=on_ended,
        )
        crew._is_going, crew._is_starting = True, False
        programs = forks.by_pid()
        for each in exported["hands"]:
            hand = crew._hand(
                Child(each["pid"], each["pidfd"]), socket.socket(fileno=each["channel_fd"]), each["index"], each["row"]
            )
            hand.resume(each["forks"], programs)
        return crew

    def export(self) -> dict[str, Any]:
        """What `adopt` needs; `fds` are the descriptors that must survive the exec."""
        hands = [hand.export() for hand in self.hands.values()]
        forks = self.forks.export()
        fds = [each[name] for each in hands for name in ("pidfd", "channel_fd")]
        return {"number": self.number, "hands": hands, "forks": forks, "fds": [*fds, *forks["fds"]]}

    @property
    def is_forking(self) -> bool:
        """Is there a worker that waits for the answer to a request for a program?"""
        return any(hand.is_forking for hand in self.hands.values())

    @property
    def is_gone(self) -> bool:
        """Has the last worker ended, with none to come?"""
        return not self.hands and not self._timers

    async def start(self) -> None:
        """Start every worker and wait until all are ready.

        raises  StartError when one cannot be started, dies, or takes too long; the others are ended then
        """
        timeout_s = self.settings.limits.master.ready_timeout_s
        try:
            for index in range(len(self._listeners)):
                self._launch(index)
            async with asyncio.timeout(timeout_s):
                while not all(hand.is_ready for hand in self.hands.values()):
                    self._changed.clear()
                    await self._changed.wait()
                    if len(self.hands) < len(self._listeners):
                        raise StartError("a worker ended before it was ready; what it logged says why")
        except TimeoutError:
            await self.end()
            raise StartError(f"a worker was not ready within {timeout_s:g} s") from None
        except BaseException:
            await self.end()
            raise
        self._is_starting = False

    def quiet(self) -> None:
        """Accept no more; every worker ends with its last tunnel."""
        self._go()
        self.tell(Quiet())

    def leave(self, code: CloseCode, within_s: float) -> None:
        """End every tunnel with CLOSE `code`, and every worker with its last one."""
        self._go()
        self.tell(Leave(code, within_s))

    def cut(self, code: CloseCode) -> None:
        """End every worker now."""
        self._go()
        self.tell(Cut(code))

    def tell(self, message: Message) -> None:
        """Say something to every worker."""
        for hand in list(self.hands.values()):
            hand.send(message)

    def renew(self, material: Material) -> None:
        """Serve new connections with these certificates."""
        self._material = material
        for hand in list(self.hands.values()):
            hand.send(Renew(), (material.write(),))

    def tell_death(self, row: int) -> None:
        """The process of a slot has ended."""
        self.tell(Death(row))

    def reopen(self) -> None:
        """The log file has a new name."""
        self.tell(Reopen())

    async def gone(self) -> None:
        """Wait until the last worker has ended, after it was told to go."""
        while not self.is_gone:
            self._changed.clear()
            await self._changed.wait()

    async def end(self) -> None:
        """SIGKILL for all that is left."""
        self._go()
        for hand in self.hands.values():
            hand.kill()
        await self.gone()

    def _go(self) -> None:
        """Nobody is replaced any more."""
        self._is_going = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        if not self.hands:  # those who were to be replaced were the last
            self._loop.call_soon(self._note_gone)

    def _launch(self, index: int) -> Hand:
        self._timers.pop(index, None)
        row = self._board.free_worker()
        if row is None:
            raise StartError(
                "too many workers of earlier configurations still serve their tunnels; set reload-timeout, or wait"
            )
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise StartError(f"a worker cannot be started: {error.strerror}") from error
        with theirs:
            orders = Orders(
                settings=self.settings,
                places=self._places,
                listeners=tuple(self._listeners[index]),
                material=self._material,
                board_fd=self._board.fd,
                channel_fd=theirs.fileno(),
                row=row,
                generation=self.number,
            )
            try:
                child = _exec_worker(orders)
            except OSError as error:
                ours.close()
                raise StartError(f"a worker cannot be started with {sys.executable}: {error.strerror}") from error
        self._board.worker(row)[WorkerColumn.STATE] = WorkerState.STARTING
        return self._hand(child, ours, index, row)

    def _hand(self, child: Child, channel_socket: socket.socket, index: int, row: int) -> Hand:
        hand = self.hands[index] = Hand(
            child,
            channel_socket,
            index=index,
            row=row,
            forks=self.forks,
            settings=self.settings,
            on_ready=self._changed.set,
            on_ended=self._hand_ended,
        )
        return hand

    def _hand_ended(self, hand: Hand, status: ExitStatus) -> None:
        del self.hands[hand.index]
        self._board.clear_worker(hand.row, list(self._slot_rows()))
        if not self._is_going and not self._is_starting:
            self._replace(hand, status)
        elif self._is_going and not status.clean:
            _log.error("worker %d (pid %d) %s while it was ending", hand.index, hand.child.pid, status)
        self._changed.set()
        self._note_gone()

    def _note_gone(self) -> None:
        if self.is_gone and not self._is_starting and not self._is_ended:
            self._is_ended = True
            self._on_ended(self)

    def _replace(self, hand: Hand, status: ExitStatus) -> None:
        limits = self.settings.limits
        ran_for_s = self._loop.time() - hand.started_s
        if ran_for_s >= limits.restart.healthy_after_s:
            wait_s = 0.0
        else:
            wait_s = max(self._waits_s[hand.index] * 2, limits.restart.first_wait_s)
            wait_s = min(wait_s, limits.master.max_restart_wait_s)
        self._waits_s[hand.index] = wait_s
        _log.error(
            "worker %d (pid %d) %s after %.1f s, and its tunnels with it; replaced %s",
            hand.index,
            hand.child.pid,
            status,
            ran_for_s,
            f"in {wait_s:.1f} s" if wait_s else "now",
        )
        self._timers[hand.index] = self._loop.call_later(wait_s, self._relaunch, hand)

    def _relaunch(self, before: Hand) -> None:
        try:
            self._launch(before.index).kill_unless_ready(self.settings.limits.master.ready_timeout_s)
        except StartError as error:
            _log.error("%s", error)
            wait_s = self.settings.limits.master.max_restart_wait_s
            self._timers[before.index] = self._loop.call_later(wait_s, self._relaunch, before)


def _exec_worker(orders: Orders) -> Child:
    """The worker as a new process of this very version, with nothing open but what its orders name."""
    orders_fd = orders.write()
    try:
        return Child.of(
            subprocess.Popen(
                (sys.executable, "-P", "-m", "wstunnel.server.carrier", str(orders_fd)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join((_CODE, *sys.path))},
                pass_fds=(orders_fd, orders.board_fd, orders.channel_fd, *(each.fd for each in orders.listeners)),
                process_group=0,  # Ctrl-C is for the master
            )
        )
    finally:
        os.close(orders_fd)
