"""A slot whose socket is bound here and whose program is kept running.

The listening socket outlives its processes: a connect while none runs waits in the backlog and is served by the
next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import signal
from dataclasses import dataclass

from wstunnel.errors import StartError
from wstunnel.limits import Limits
from wstunnel.proto.restart import RestartGate
from wstunnel.settings import Address, TcpAddress, UnixAddress
from wstunnel.sockets import bind_tcp, bind_unix, unlink_if_ours
from wstunnel.supervise import procfs
from wstunnel.supervise.child import Child, ExitStatus
from wstunnel.supervise.slot import Slot, SlotState
from wstunnel.supervise.spawn import CHILD_PATH, Program, spawn
from wstunnel.supervise.stderr import StderrPipe

__all__ = ["SpawnedSlot"]

_log = logging.getLogger("wstunnel.supervise")


@dataclass(frozen=True, slots=True)
class _Death:
    status: ExitStatus
    at_s: float
    ended_all: bool
    """It ended every connection of the slot: none still waited in the backlog for the next process, and none was in
    the hands of a child that the process had forked."""


class SpawnedSlot(Slot):
    """Binds its address when made, and keeps the program running behind it from `launch` to `stop`.

    raises  StartError when the address cannot be bound

    On a restart the children that a dead process had forked are left alone, since they may still carry tunnels
    (lighttpd does the same). `stop` ends them too.
    """

    __slots__ = (
        "_child",
        "_deaths",
        "_died",
        "_gate",
        "_inode",
        "_is_closed",
        "_is_stopping",
        "_kill_signal",
        "_last_death",
        "_limits",
        "_listener",
        "_loop",
        "_orphans",
        "_program",
        "_started_at_s",
        "_starts",
        "_stderr",
        "_timer",
    )

    def __init__(self, name: str, address: Address, program: Program, limits: Limits, kill_signal: int) -> None:
        super().__init__(name, address)
        self._program, self._limits, self._kill_signal = program, limits, kill_signal
        self._loop = asyncio.get_running_loop()
        self._gate = RestartGate(limits.restart)
        self._child: Child | None = None
        self._orphans: set[int] = set()  # process groups that outlived their leader
        self._timer: asyncio.TimerHandle | None = None
        self._is_stopping = self._is_closed = False
        self._starts = self._deaths = 0
        self._started_at_s = 0.0
        self._last_death: _Death | None = None
        self._died = self._loop.create_future()  # done at the next death, and then replaced
        self._bind()
        try:
            self._stderr = StderrPipe(name, limits.spawn, self._loop)
        except OSError as error:
            self._unbind()
            raise StartError(f"{name}: no pipe for its log: {error.strerror}") from error

    def _bind(self) -> None:
        backlog = self._limits.spawn.listen_backlog
        if isinstance(self.address, UnixAddress):
            self._listener = bind_unix(self.address.path, backlog=backlog)
            self._inode = os.lstat(self.address.path).st_ino
        else:
            self._listener = bind_tcp(self.address.host, self.address.port, backlog=backlog)
            self.address = TcpAddress(self.address.host, self._listener.getsockname()[1])

    def _unbind(self) -> None:
        if isinstance(self.address, UnixAddress):
            unlink_if_ours(self.address.path, self._inode)
        self._listener.close()

    @property
    def state(self) -> SlotState:
        if self._is_closed:
            return "stopped"
        if self._is_stopping:
            return "stopping"
        return "waiting" if self._child is None else "running"

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    @property
    def restarts(self) -> int:
        return max(self._starts - 1, 0)

    @property
    def deaths(self) -> int:
        return self._deaths

    def launch(self) -> None:
        """Start the program. raises StartError when it cannot be executed."""
        self._listener.setblocking(True)  # the flag is shared with every process before, and one may have changed it
        self._child = child = spawn(
            self._program,
            stdin=self._listener.fileno(),
            stdout=None,
            stderr_fd=self._stderr.write_fd,
            environment={"PATH": CHILD_PATH},
        )
        self._loop.add_reader(child.pidfd, self._reap, child)
        self._starts += 1
        self._started_at_s = self._loop.time()
        self._gate.started(self._started_at_s)
        _log.debug("%s: started as pid %d on %s", self.name, child.pid, self.address)

    def _reap(self, child: Child) -> None:
        """The process has ended: say how, tell those who wait for it, start the next one."""
        status = child.reap()
        if status is None:
            return
        self._forget(child)
        now_s = self._loop.time()
        self._stderr.flush()
        self._orphans = {group for group in (*self._orphans, child.pid) if procfs.orphans_live(group)}
        self._deaths += 1
        ended_all = child.pid not in self._orphans and not self._has_backlog()
        self._last_death = _Death(status, now_s, ended_all)
        self._died.set_result(None)
        self._died = self._loop.create_future()
        if not self._is_stopping:
            ran_for_s = now_s - self._started_at_s
            self._start_again(f"pid {child.pid} {status} after {ran_for_s:.1f} s")

    def _forget(self, child: Child) -> None:
        self._loop.remove_reader(child.pidfd)
        child.close()
        self._child = None

    def _has_backlog(self) -> bool:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        return bool(poll.poll(0))

    def _start_again(self, why: str) -> None:
        wait_s = self._gate.died(self._loop.time())
        _log.warning("%s: %s; %s", self.name, why, f"next start in {wait_s:.1f} s" if wait_s else "started again now")
        self._timer = self._loop.call_later(wait_s, self._relaunch)

    def _relaunch(self) -> None:
        try:
            self.launch()
        except StartError as error:
            self._start_again(str(error))

    def _death_since(self, deaths: int) -> _Death | None:
        """The death that ended a connection which was made when `deaths` had been counted.

        A connection may also have waited in the backlog for the next process, or live on with a forked child: such
        a death says something about it only for as long as its end would take to be seen.
        """
        death = self._last_death
        if death is None or self._deaths <= deaths:
            return None
        is_fresh = self._loop.time() - death.at_s <= self._limits.spawn.exit_wait_s
        return death if death.ended_all or is_fresh else None

    def is_ending_since(self, deaths: int, /) -> bool:
        if self._death_since(deaths) is not None:
            return True
        return self._child is not None and self._child.is_exiting()

    async def exit_status_since(self, deaths: int, /) -> ExitStatus | None:
        if self._death_since(deaths) is None and self.is_ending_since(deaths):
            await asyncio.wait((self._died,), timeout=self._limits.spawn.exit_wait_s)
        death = self._death_since(deaths)
        return None if death is None else death.status

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Signal every process of this slot, forked ones too, and start no more."""
        self._is_stopping = True
        if self._timer is not None:
            self._timer.cancel()
        if self._child is not None:
            self._child.signal_group(number)
        for group in self._orphans:
            if procfs.orphans_live(group):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(group, number)

    async def stop(self) -> None:
        """End every process of this slot, then take the socket away.

        bound   `kill_timeout_s` from the kill signal to SIGKILL, and as long again for what even SIGKILL cannot end
        """
        within_s = self._limits.spawn.kill_timeout_s
        self.kill(self._kill_signal)
        if not await self._is_gone_within(within_s):
            _log.warning("%s: still running %.1f s after the kill signal; sending SIGKILL", self.name, within_s)
            self.kill(signal.SIGKILL)
            if not await self._is_gone_within(within_s):
                _log.error("%s: still running after SIGKILL and left behind", self.name)
        self._close()

    async def _is_gone_within(self, timeout_s: float) -> bool:
        deadline_s = self._loop.time() + timeout_s
        while self._child is not None or any(map(procfs.orphans_live, self._orphans)):
            left_s = deadline_s - self._loop.time()
            if left_s <= 0:
                return False
            # Nobody tells us of the death of a process that is not our child: look now and then.
            wait_s = left_s if self._child is not None else min(left_s, self._limits.spawn.group_poll_s)
            await asyncio.wait((self._died,), timeout=wait_s)
        return True

    def _close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self._child is not None:
            self._forget(self._child)
        self._stderr.close()
        self._unbind()
