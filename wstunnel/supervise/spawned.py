"""A slot whose socket is bound here and whose program is kept running.

The listening socket outlives its processes: a connect while none runs waits in the backlog and is served by the
next one.

    IDLE        no process; the first connection starts one
    RUNNING     a process serves
    WAITING     the process has died, the next one is started when its time comes
    RETIRING    the process serves what it has, and will be ended
    BROKEN      the circuit of the gate is open: who connects is cut off; one process is tried now and then
    STOPPED     not started yet, or over
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from wstunnel.errors import StartError
from wstunnel.limits import Limits
from wstunnel.proto.restart import Circuit, RestartGate
from wstunnel.settings import Address
from wstunnel.supervise import procfs
from wstunnel.supervise.board import Board, SlotColumn, SlotState, now_ms
from wstunnel.supervise.child import Child, ExitStatus, signal_orphans
from wstunnel.supervise.endpoint import Endpoint
from wstunnel.supervise.place import SlotPlace
from wstunnel.supervise.spawn import Program, check_program, spawn
from wstunnel.supervise.stderr import StderrPipe, printable

__all__ = ["Recipe", "SlotOwner", "SpawnedSlot", "enter_state"]

_log = logging.getLogger("wstunnel.supervise")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How each process of a pool is started, and asked to end."""

    program: Program
    environment: Mapping[str, str]
    kill_signal: int


@dataclass(frozen=True, slots=True)
class SlotOwner:
    """What a slot asks, and tells, whoever owns it.

    on_death   its row, after each death
    is_wanted  is a process to be started in the place of one that has died, or only for the next connection?
    """

    on_death: Callable[[int], None]
    is_wanted: Callable[[SpawnedSlot], bool]


def enter_state(words: memoryview, state: SlotState) -> None:
    """Write into a slot's row that it is in this state, and since when."""
    if words[SlotColumn.STATE] != state:
        words[SlotColumn.STATE] = state
        words[SlotColumn.SINCE_MS] = now_ms()


class SpawnedSlot:
    """Keeps a program running behind `endpoint`, from `launch` or `await_first` to `stop`.

    in      stderr  the endpoint and the pipe belong to the slot from now on
    Writes its row of the board, for everybody who serves. On a restart the children that a dead process had forked
    are left alone, since they may still carry tunnels (lighttpd does the same). `stop` ends them too.
    """

    __slots__ = (
        "_child",
        "_died",
        "_ending",
        "_endpoint",
        "_gate",
        "_is_closed",
        "_is_listening",
        "_is_stopping",
        "_is_watched",
        "_limits",
        "_loop",
        "_orphans",
        "_owner",
        "_recipe",
        "_started_at_s",
        "_stderr",
        "_timer",
        "_words",
        "place",
    )

    def __init__(
        self,
        place: SlotPlace,
        endpoint: Endpoint,
        stderr: StderrPipe,
        *,
        recipe: Recipe,
        board: Board,
        limits: Limits,
        owner: SlotOwner,
    ) -> None:
        self.place = place
        self._endpoint, self._stderr, self._recipe = endpoint, stderr, recipe
        self._limits, self._owner = limits, owner
        self._words = board.slot(place.row)
        self._loop = asyncio.get_running_loop()
        self._gate = RestartGate(limits.restart)
        self._child: Child | None = None
        self._orphans: set[int] = set()  # process groups that outlived their leader
        self._timer: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None  # of a process that is not needed any more
        self._is_listening = self._is_watched = self._is_stopping = self._is_closed = False
        self._started_at_s = 0.0
        self._died = self._loop.create_future()  # done at the next death, and then replaced
        if self.state is SlotState.NONE:
            self._enter(SlotState.STOPPED)

    @property
    def name(self) -> str:
        return self.place.name

    @property
    def state(self) -> SlotState:
        return SlotState(self._words[SlotColumn.STATE])

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    @property
    def starts(self) -> int:
        return self._words[SlotColumn.STARTS]

    @property
    def deaths(self) -> int:
        return self._words[SlotColumn.DEATHS]

    @property
    def is_being_ended(self) -> bool:
        """Has its process got the signal to end?"""
        return self._ending is not None

    def _enter(self, state: SlotState) -> None:
        enter_state(self._words, state)

    # --- Starting

    def launch(self) -> None:
        """Start the program for the first time, to be followed by `come_to_rest`.

        raises  StartError when it cannot be executed
        """
        self._is_watched = True
        self._spawn()

    async def come_to_rest(self) -> None:
        """Returns when the process launched waits for work, or is alive after `start_watch_s`.

        raises  StartError when it has died before that: how, and its last words
        """
        deadline_s = self._started_at_s + self._limits.spawn.start_watch_s
        cpu_ticks, looks_at_rest = -1, 0
        while looks_at_rest < 2 and self._loop.time() < deadline_s and self._child is not None:
            await asyncio.wait((self._died,), timeout=self._limits.spawn.settle_poll_s)
            found = procfs.read_stat(self._child.pid) if self._child is not None else None
            if found is not None:
                is_at_rest = found.is_asleep and found.cpu_ticks == cpu_ticks
                looks_at_rest = looks_at_rest + 1 if is_at_rest else 0
                cpu_ticks = found.cpu_ticks
        if self._child is None:
            raise StartError(f"bin-path {self._recipe.program.path}: {self._how_it_died()}")
        self._is_watched = False

    def _how_it_died(self) -> str:
        words = self._words
        status = ExitStatus.of_word(words[SlotColumn.EXIT]) if words[SlotColumn.EXIT_KNOWN] else ExitStatus()
        line = self._stderr.last_line[: self._limits.spawn.quoted_line_bytes]
        last_words = f'its last line on stderr: "{printable(line)}"' if line else "it wrote nothing to stderr"
        return f"{status} as soon as it was started; {last_words}; a backend has to go on running, correct it"

    def await_first(self) -> None:
        """Start the program when somebody connects; if that can be seen to be useless, nobody is to connect."""
        try:
            check_program(self._recipe.program)
        except StartError as error:
            self._go_on(self._gate.circuit, self._gate.give_up(), str(error))
        else:
            self._wait_for_connection()

    def _wait_for_connection(self) -> None:
        self._enter(SlotState.IDLE)
        self._is_listening = True
        self._loop.add_reader(self._endpoint.listener.fileno(), self._wake)

    def _wake(self) -> None:
        self._stop_listening()
        self._start()

    def _stop_listening(self) -> None:
        if self._is_listening:
            self._is_listening = False
            self._loop.remove_reader(self._endpoint.listener.fileno())

    def _start(self) -> None:
        before = self._gate.circuit
        try:
            self._spawn()
        except StartError as error:
            self._go_on(before, self._gate.died(self._loop.time()), str(error))

    def _spawn(self) -> None:
        listener = self._endpoint.listener
        listener.setblocking(True)  # the flag is shared with every process before, and one may have changed it
        child = spawn(
            self._recipe.program,
            stdin=listener.fileno(),
            stdout=None,
            stderr_fd=self._stderr.write_fd,
            environment=self._recipe.environment,
        )
        self._words[SlotColumn.STARTS] += 1
        self._watch(child, self._loop.time())
        _log.debug("%s: started as pid %d on %s", self.name, child.pid, self.place.address)

    def _watch(self, child: Child, started_at_s: float) -> None:
        self._child = child
        self._words[SlotColumn.PID] = child.pid
        self._loop.add_reader(child.pidfd, self._reap, child)
        self._started_at_s = started_at_s
        self._gate.started(started_at_s)
        if self._gate.circuit is Circuit.HALF_OPEN:
            self._probe()
        else:
            self._enter(SlotState.RUNNING)

    def _probe(self) -> None:
        """The process that was tried is healthy, or is looked at again when it may be."""
        left_s = self._gate.settle(self._loop.time())
        if left_s:
            self._timer = self._loop.call_later(left_s, self._probe)
            return
        self._enter(SlotState.RUNNING)
        _log.warning("%s: pid %d goes on running; it takes connections again", self.name, self.pid)

    # --- Death

    def _reap(self, child: Child) -> None:
        """The process has ended: say how, tell those who wait for it, start the next one."""
        status = child.reap()
        if status is None:
            return
        self._forget(child)
        self._stderr.flush()
        self._orphans = {group for group in (*self._orphans, child.pid) if procfs.orphans_live(group)}
        now_s, before = self._loop.time(), self._gate.circuit
        is_our_doing = self._is_stopping or self._ending is not None
        wait_s = 0.0
        if is_our_doing:
            self._gate.ended(now_s)
        else:
            wait_s = self._gate.died(now_s)
        is_cut_off = self._gate.circuit is Circuit.OPEN
        has_heirs = bool(self._orphans) or (self._endpoint.has_backlog() and not is_cut_off)
        self._count_death(status, ended_all=not has_heirs)
        if not (is_our_doing or self._is_watched):
            ran_for_s = now_s - self._started_at_s
            self._go_on(before, wait_s, f"pid {child.pid} {status} after {ran_for_s:.1f} s")

    def _forget(self, child: Child) -> None:
        self._cancel_timer()
        self._loop.remove_reader(child.pidfd)
        child.close()
        self._child = None

    def _count_death(self, status: ExitStatus, *, ended_all: bool) -> None:
        words = self._words
        words[SlotColumn.EXIT] = status.word
        words[SlotColumn.EXIT_KNOWN] = status.is_known
        words[SlotColumn.DIED_AT_NS] = time.monotonic_ns()
        words[SlotColumn.ENDED_ALL] = ended_all
        words[SlotColumn.DEATHS] += 1  # now readers may take the rest as it is
        words[SlotColumn.PID] = 0  # not before: until then they see for themselves that it is ending
        died, self._died = self._died, self._loop.create_future()
        died.set_result(None)
        self._owner.on_death(self.place.row)

    def _go_on(self, before: Circuit, wait_s: float, why: str) -> None:
        """After a death, or a start that failed: what comes next, and one line if that is something new."""
        if self._gate.circuit is Circuit.OPEN:
            self._enter(SlotState.BROKEN)  # first: whoever is cut off sees why
            self._endpoint.drop_backlog()
            self._timer = self._loop.call_later(wait_s, self._start)
        elif not wait_s and not self._owner.is_wanted(self):
            self._wait_for_connection()
        else:
            self._enter(SlotState.WAITING)
            self._timer = self._loop.call_later(wait_s, self._start_if_wanted)
        self._log_change(before, wait_s, why)

    def _start_if_wanted(self) -> None:
        if self._owner.is_wanted(self):
            self._start()
        else:
            self._wait_for_connection()

    def _log_change(self, before: Circuit, wait_s: float, why: str) -> None:
        after = self._gate.circuit
        if after is Circuit.OPEN and before in {Circuit.CLOSED, Circuit.LOOPING}:
            next_ = f"nobody is connected to it any more until it runs; it is tried every {wait_s:g} s"
            _log.error("%s: %s; %s", self.name, why, next_)
        elif after is Circuit.LOOPING and before is Circuit.CLOSED:
            _log.warning("%s: %s; next start in %.1f s, then later and later", self.name, why, wait_s)
        elif after is Circuit.CLOSED:
            is_on_demand = self.state is SlotState.IDLE
            next_ = "the next connection starts it again" if is_on_demand else "started again now"
            _log.warning("%s: %s; %s", self.name, why, next_)
        else:
            _log.debug("%s: %s; next start in %.1f s", self.name, why, wait_s)

    # --- Ending

    def retire(self) -> None:
        """Take no new connection: the process is to be ended if it turns out to be idle."""
        self._enter(SlotState.RETIRING)

    def resume(self) -> None:
        """It was not idle after all."""
        self._enter(SlotState.RUNNING)

    def shrink(self, kill_timeout_s: float) -> None:
        """End the process; the next connection starts another one."""
        self._ending = self._loop.create_task(self._shrink(kill_timeout_s))

    async def _shrink(self, kill_timeout_s: float) -> None:
        pid = self.pid
        await self._end(kill_timeout_s)
        await self._is_gone_within(None)
        self._ending = None
        _log.debug("%s: pid %s was idle and has been ended", self.name, pid)
        self._wait_for_connection()

    def kill(self) -> None:
        """SIGKILL every process of this slot now, forked ones too, and start no more."""
        if not self._is_closed:
            self._give_up()
            self._signal(signal.SIGKILL)

    def _give_up(self) -> None:
        self._is_stopping = True
        self._cancel_timer()
        self._stop_listening()
        if self._ending is not None:
            self._ending.cancel()
        self._enter(SlotState.RETIRING)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _signal(self, number: int) -> None:
        if self._child is not None:
            self._child.signal_group(number)
        for group in self._orphans:
            signal_orphans(group, number)

    async def stop(self, kill_timeout_s: float) -> None:
        """End every process of this slot, then take the socket away.

        bound   `kill_timeout_s` from the kill signal to SIGKILL, and as long again for what even SIGKILL cannot end
        """
        if self._is_closed:
            return
        self._give_up()
        if not await self._end(kill_timeout_s):
            _log.error("%s: still running after SIGKILL and left behind", self.name)
        self._close()

    async def _end(self, within_s: float) -> bool:
        self._signal(self._recipe.kill_signal)
        if await self._is_gone_within(within_s):
            return True
        _log.warning("%s: still running %.1f s after the kill signal; sending SIGKILL", self.name, within_s)
        self._signal(signal.SIGKILL)
        return await self._is_gone_within(within_s)

    async def _is_gone_within(self, timeout_s: float | None) -> bool:
        deadline_s = None if timeout_s is None else self._loop.time() + timeout_s
        while self._child is not None or any(map(procfs.orphans_live, self._orphans)):
            left_s = None if deadline_s is None else deadline_s - self._loop.time()
            if left_s is not None and left_s <= 0:
                return False
            # Nobody tells us of the death of a process that is not our child: look now and then.
            poll_s = None if self._child is not None else self._limits.spawn.group_poll_s
            await asyncio.wait((self._died,), timeout=min((s for s in (left_s, poll_s) if s is not None), default=None))
        return True

    def _close(self) -> None:
        self._is_closed = True
        if self._child is not None:
            self._forget(self._child)
        self._enter(SlotState.STOPPED)
        self._stderr.close()
        self._endpoint.close()

    # --- Handing over

    @property
    def wanted(self) -> Address:
        """The address that the configuration names."""
        return self._endpoint.wanted

    def publish(self) -> None:
        """The path that the configuration names leads here, and not to the slot that had it before."""
        self._endpoint.publish()

    @property
    def fds(self) -> list[int]:
        """Every descriptor that belongs to the slot."""
        own = [self._endpoint.listener.fileno(), *self._stderr.fds]
        return own if self._child is None else [*own, self._child.pidfd]

    def facts(self) -> dict[str, Any]:
        """What `adopt` needs to go on from here, for JSON; the rest stands on the board."""
        child = None if self._child is None else {"pid": self._child.pid, "pidfd": self._child.pidfd}
        return {
            "program": self._recipe.program.path,
            "endpoint": self._endpoint.facts(),
            "stderr": self._stderr.fds,
            "child": child,
            "started_at_s": self._started_at_s,
            "orphans": sorted(self._orphans),
        }

    def adopt(self, facts: dict[str, Any]) -> None:
        """Go on where the slot that said `facts` has stopped, in an earlier image of this process."""
        self._orphans = set(facts["orphans"])
        if facts["child"] is not None:
            self._watch(Child(**facts["child"]), facts["started_at_s"])
        elif self.state is SlotState.IDLE:
            self._wait_for_connection()
        else:
            self._start_if_wanted()
