"""The master: binds, spawns, supervises, and never reads a byte of a client.

One crew of workers carries the traffic of one configuration. A reload starts the next crew on the same listening
sockets, and the old one serves its tunnels to their end; an upgrade does the same after this process has become a new
image of the program.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import signal
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from itertools import chain, repeat
from typing import Any, Literal

from wstunnel import __version__
from wstunnel.errors import ConfigError, StartError, TunnelError
from wstunnel.gateways.cgi import scripts_of
from wstunnel.net.listen import ListenerSet, open_listeners
from wstunnel.proto.close import CloseCode
from wstunnel.server import status
from wstunnel.server.budget import connection_budget
from wstunnel.server.certificates import CertificateWatch, Material
from wstunnel.server.control import ControlServer
from wstunnel.server.crew import Crew
from wstunnel.server.image import Image
from wstunnel.server.logs import open_logs, reopen_logs
from wstunnel.server.notify import Notifier
from wstunnel.server.orders import ListenerOrder
from wstunnel.server.privileges import become
from wstunnel.server.service import Places, forks_of, hosts_of, name_of, places_of
from wstunnel.settings import Address, Host, Settings
from wstunnel.sockets import make_folder_of, remove_folder
from wstunnel.supervise.board import Board, now_ms
from wstunnel.supervise.forks import Forks
from wstunnel.supervise.place import SlotPlace
from wstunnel.supervise.pools import Pools

__all__ = ["SIGNALS", "Master"]

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""What a master is told by signals; how is for whoever catches them."""

_log = logging.getLogger("wstunnel")


class Master:
    """Runs `settings` in processes of their own, until it is asked to end.

    in      material    what the files of certificates and keys say
            reread      the configuration as it is now, and that material; given what it was, for files that we may not
                        read any more. Raises ConfigError
            control_at  the path of the control socket, given where the listeners are bound
            passed      listening sockets of a service manager
            on_serving  told once, when everything serves, with the addresses
            image       what an upgrade executes
            inherited   what the image before has exported; its workers go on until this one's are ready
    raises  StartError, from `run`, when an address, a socket, a program or a worker cannot be had
    """

    def __init__(
        self,
        settings: Settings,
        *,
        material: Material,
        reread: Callable[[Material], tuple[Settings, Material]],
        control_at: Callable[[Settings, Sequence[Address]], str],
        passed: Sequence[ListenerSet],
        notifier: Notifier,
        on_serving: Callable[[Sequence[Address]], None],
        image: Image,
        inherited: Mapping[str, Any] | None = None,
    ) -> None:
        self._settings, self._material = settings, material
        self._watch: CertificateWatch | None = None
        self._reread, self._control_at, self._on_serving = reread, control_at, on_serving
        self._passed, self._notifier = passed, notifier
        self._loop = asyncio.get_running_loop()
        self._state: status.State = "starting"
        self._started_ms = now_ms()
        self._image, self._inherited = image, inherited
        try:
            self._board = Board(settings.limits.master, None if inherited is None else inherited["board_fd"])
        except (OSError, ValueError) as error:
            raise StartError(f"the shared counters cannot be had: {error}") from error
        self._pools = Pools(
            self._board, settings.limits, kill_timeout_s=settings.kill_timeout_s, on_death=self._slot_died
        )
        self._listeners: list[ListenerSet] = []
        self._control: ControlServer | None = None
        self._folder: str | None = None  # made for the control socket
        self._crews: list[Crew] = []
        """The current one last; before it those that still serve tunnels of earlier configurations."""
        self._old_forks: set[Forks] = set()
        """Of crews that are gone; some of their programs may not be yet."""
        self._generation = 0
        self._changing = asyncio.Lock()
        self._asked: set[str] = set()
        """Changes that wait for the one under way."""
        self._stop_asked = asyncio.Event()
        self._hurry_asked = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    # --- what the operator asks

    def stop(self) -> None:
        """End every tunnel with CLOSE 1001, then everything; asked again: at once."""
        if self._stop_asked.is_set():
            self._hurry_asked.set()
        self._stop_asked.set()

    def reload(self) -> None:
        """Read the configuration again and serve it; what stands in the way is logged and changes nothing."""
        self._ask("reload", self._reload)

    def drain(self) -> None:
        """Accept no more, serve every tunnel to its own end, then end."""
        if self._state not in ("draining", "stopping"):
            self._do(self._drain())

    def upgrade(self) -> None:
        """Become the version that is installed now, and reload; what stands in the way is logged, nothing changes."""
        self._ask("upgrade", self._upgrade)

    def reopen(self) -> None:
        """The log file has been moved: open it again, here and in the workers."""
        reopen_logs()
        for crew in self._crews:
            crew.reopen()

    # --- from start to stop

    async def run(self) -> None:
        """Serve until `stop` or `drain`."""
        start = self._begin(self._serve())
        asked = self._loop.create_task(self._stop_asked.wait())
        try:
            await asyncio.wait((start, asked), return_when=asyncio.FIRST_COMPLETED)
            if start.done():
                start.result()
                await asked
        finally:
            asked.cancel()
            await self._end()

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where clients connect, until the end begins; port 0 has become the real port."""
        return tuple(each.address for each in self._listeners)

    async def _serve(self) -> None:
        async with self._changing:
            await (self._start() if self._inherited is None else self._adopt(self._inherited))
            self._state = "serving"
            self._on_serving(self.addresses)
            self._notifier.ready(self._summary())

    async def _start(self) -> None:
        settings = self._settings
        connection_budget(settings)
        self._listeners = self._open_listeners(settings, self._passed)
        control = self._control_at(settings, self.addresses)
        sockets = (host.socket for host in hosts_of(settings) if host.bin_path and host.socket is not None)
        become(settings.user, settings.group, self._listeners, map(os.path.dirname, (control, *sockets)))
        self._folder = make_folder_of(control)
        self._control = ControlServer(control, self._commanded, settings.limits.master)
        await self._pools.start(hosts_of(settings))
        await self._next_crew(settings, self._material, places_of(settings, self._pools.places), self._listeners)
        self._watch_certificates()

    async def _adopt(self, inherited: Mapping[str, Any]) -> None:
        """Go on where the image before has stopped, then serve with workers of this one."""
        self._started_ms, self._generation = inherited["started_ms"], inherited["generation"]
        self._folder = inherited["folder"]
        self._listeners = [ListenerSet.adopt(each) for each in inherited["listeners"]]
        self._control = ControlServer.adopt(inherited["control"], self._commanded, self._settings.limits.master)
        self._pools.adopt(inherited["pools"])
        self._crews = [
            Crew.adopt(each, self._settings, board=self._board, slot_rows=self._slot_rows, on_ended=self._crew_ended)
            for each in inherited["crews"]
        ]
        try:
            await self._reload_now(self._settings, self._material)
        except TunnelError as error:
            _log.error("upgrade: the workers of the version before go on: %s", "; ".join(_problems(error)))
            self._watch_certificates()

    async def _end(self) -> None:
        """End whatever has been started, however far that went."""
        self._state = "stopping"
        if self._watch is not None:
            self._watch.stop()
        self._notifier.stopping("ending")
        hurry = self._loop.create_task(self._hurry_asked.wait())
        leave = self._loop.create_task(self._leave())
        try:
            await asyncio.wait((hurry, leave), return_when=asyncio.FIRST_COMPLETED)
            if not leave.done():
                await self._cut(leave)
            await leave
        finally:
            hurry.cancel()
            if self._control is not None:
                self._control.close()
            if self._folder is not None:
                remove_folder(self._folder)
            self._board.close()
            self._notifier.close()

    async def _leave(self) -> None:
        """Workers end their tunnels, then backends are ended. A start or a change under way ends what it has begun."""
        settings = self._settings
        for task in self._tasks:
            task.cancel()
        changes = asyncio.gather(*self._tasks, return_exceptions=True)
        self._close_listeners()
        crews = list(self._crews)
        for crew in crews:
            crew.leave(CloseCode.GOING_AWAY, settings.drain_timeout_s)
        try:
            async with asyncio.timeout(settings.drain_timeout_s + settings.limits.master.exit_wait_s):
                await asyncio.gather(*(crew.gone() for crew in crews))
        except TimeoutError:
            _log.error(
                "workers that had not ended %g s after they should have are killed", settings.limits.master.exit_wait_s
            )
            await asyncio.gather(*(crew.end() for crew in crews))
        await asyncio.gather(changes, self._pools.stop(), *(forks.stop() for forks in self._all_forks()))

    async def _cut(self, leave: asyncio.Task[None]) -> None:
        """Have an end that is under way happen now; SIGKILL for workers that do not."""
        self._pools.abort()
        for crew in self._crews:
            crew.cut(CloseCode.GOING_AWAY)
        for forks in self._all_forks():
            forks.abort()
        await asyncio.wait((leave,), timeout=self._settings.limits.master.exit_wait_s)
        await asyncio.gather(*(crew.end() for crew in self._crews))

    def _close_listeners(self) -> None:
        """Who connects from now on is refused at once, and another wstunnel may listen there."""
        for each in self._listeners:
            each.close()
        self._listeners = []

    # --- crews

    async def _next_crew(
        self, settings: Settings, material: Material, places: Places, listeners: Sequence[ListenerSet]
    ) -> Crew:
        """Start the workers of a configuration; they accept as soon as they are ready.

        in      listeners  in the order of `settings.addresses`, and behind them those that nobody wrote
        raises  StartError, and nothing is left of them then
        """
        count = worker_count(settings)
        crew = Crew(
            settings,
            number=self._generation + 1,
            board=self._board,
            places=places,
            listeners=[
                [
                    ListenerOrder(listener.socket.fileno(), listener.address, listener.is_shared, front)
                    for each, front in zip(listeners, chain(settings.fronts, repeat(settings.front)), strict=False)
                    for listener in each.share(index, count)
                ]
                for index in range(count)
            ],
            material=material,
            forks=forks_of(settings),
            slot_rows=self._slot_rows,
            on_ended=self._crew_ended,
        )
        self._crews.append(crew)
        try:
            await crew.start()
        except BaseException:
            self._crews.remove(crew)
            self._retire(crew.forks)
            raise
        self._generation += 1
        return crew

    def _crew_ended(self, crew: Crew) -> None:
        """The last worker of a crew that was told to go is gone."""
        if self._state == "stopping" or crew not in self._crews:
            return
        self._crews.remove(crew)
        self._retire(crew.forks)
        if self._state == "draining" and not self._crews:
            self._stop_asked.set()

    def _retire(self, forks: Forks) -> None:
        self._old_forks.add(forks)
        self._do(self._stop_forks(forks))

    async def _stop_forks(self, forks: Forks) -> None:
        await forks.stop()
        self._old_forks.discard(forks)

    def _all_forks(self) -> list[Forks]:
        return [*(crew.forks for crew in self._crews), *self._old_forks]

    def _slot_died(self, row: int) -> None:
        for crew in self._crews:
            crew.tell_death(row)

    def _open_listeners(self, settings: Settings, held: Sequence[ListenerSet]) -> list[ListenerSet]:
        return open_listeners(
            settings.addresses,
            count=worker_count(settings),
            backlog=settings.limits.accept.listen_backlog,
            held=held,
            is_default=settings.addresses == Settings().addresses,
        )

    # --- certificates

    def _watch_certificates(self) -> None:
        """Look at the files of the settings that are in force."""
        if self._watch is not None:
            self._watch.stop()
        limits = self._settings.limits.certificate
        self._watch = CertificateWatch(self._settings.fronts, self._material, limits, self._renew)

    def _renew(self, material: Material) -> None:
        """A certificate is a new one."""
        self._material = material
        for crew in self._crews:
            crew.renew(material)

    # --- reload, drain

    def _ask(self, what: str, change: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Have it changed after the change that is under way. However often that is asked meanwhile, once."""
        if what not in self._asked:
            self._asked.add(what)
            self._do(self._change(what, change))

    async def _change(self, what: str, change: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async with self._changing:
            self._asked.discard(what)
            try:
                await change()
            except TunnelError as error:
                _log.error("%s: nothing has changed: %s", what, "; ".join(_problems(error)))

    async def _reload_for_client(self) -> None:
        """Reload, and let a client of the control socket know what stood in the way."""
        reload = self._begin(self._reload_in_turn())
        await asyncio.wait((reload,))
        if reload.cancelled():
            raise StartError("the reload was cut short: this wstunnel is ending")
        reload.result()

    async def _reload_in_turn(self) -> None:
        async with self._changing:
            await self._reload()

    async def _reload(self) -> None:
        """Serve the configuration as it is now. Nothing else may be changing.

        raises  ConfigError, StartError: everything goes on as before
        """
        if self._state != "serving":
            raise StartError(f"a reload is for a wstunnel that is serving, and this one is {self._state}")
        self._state = "reloading"
        self._notifier.reloading("reading the configuration again")
        try:
            await self._reload_now(*self._reread(self._material))
        finally:
            if self._state == "reloading":
                self._state = "serving"
                self._notifier.ready(self._summary())

    async def _reload_now(self, settings: Settings, material: Material) -> None:
        connection_budget(settings)
        before = self._listeners
        counts = {each: len(each) for each in before}
        listeners = self._open_listeners(settings, before)
        try:
            change = await self._pools.prepare(hosts_of(settings))
            try:
                await self._next_crew(settings, material, places_of(settings, change.places), listeners)
            except BaseException:
                await change.undo()
                raise
        except BaseException:
            for each in listeners:
                if each in counts:
                    each.shrink(counts[each])
                else:
                    each.close()
            raise
        _log_as(self._settings, settings)
        self._settings, self._material, self._listeners = settings, material, listeners
        self._watch_certificates()
        self._pools.kill_timeout_s = settings.kill_timeout_s
        change.commit()
        for crew in self._crews[:-1]:
            crew.quiet()
            if settings.reload_timeout_s:
                self._loop.call_later(
                    settings.reload_timeout_s, crew.leave, CloseCode.SERVICE_RESTART, settings.drain_timeout_s
                )
        for each in before:
            if each not in listeners:
                each.close()
        _log.info("reloaded: generation %d serves", self._generation)

    async def _upgrade(self) -> None:
        if self._state != "serving":
            raise StartError(f"an upgrade is for a wstunnel that is serving, and this one is {self._state}")
        state = {"material": self._material.export()}
        await self._image.try_out(state, self._settings.limits.master.ready_timeout_s)
        await self._become_next_image()

    async def _become_next_image(self) -> None:
        if self._control is not None:
            await self._control.rest()
        while any(crew.is_forking for crew in self._crews):  # noqa: ASYNC110 -- who has asked for a program is answered
            await asyncio.sleep(0)
        _log.info("upgrade: becoming the version that is installed now")
        state = self._export()
        try:
            self._image.become(state, state["fds"], SIGNALS)
        finally:
            if self._control is not None:
                self._control.go_on()

    def _export(self) -> dict[str, Any]:
        """All that the next image has to know."""
        listeners = [each.export() for each in self._listeners]
        crews = [crew.export() for crew in self._crews]
        pools = self._pools.export()
        control = None if self._control is None else self._control.export()
        fds = [self._board.fd, *(fd for each in self._listeners for fd in each.fds), *pools["fds"]]
        fds += [fd for crew in crews for fd in crew["fds"]]
        fds += [] if control is None else [control["fd"]]
        return {
            "started_ms": self._started_ms,
            "generation": self._generation,
            "board_fd": self._board.fd,
            "listeners": listeners,
            "control": control,
            "pools": pools,
            "crews": crews,
            "material": self._material.export(),
            "folder": self._folder,
            "notify": self._notifier.export(),
            "fds": fds,
        }

    async def _drain(self) -> None:
        async with self._changing:
            self._state = "draining"
            self._notifier.status("draining")
            self._close_listeners()
            for crew in self._crews:
                crew.quiet()
            if not self._crews:
                self._stop_asked.set()

    # --- the control socket

    async def _commanded(self, command: str) -> dict[str, Any]:
        match command:
            case "status":
                return {"ok": True, "status": status.take(self._board, self._facts(), now_ms()).to_json()}
            case "reload":
                await self._reload_for_client()
                return {"ok": True, "generation": self._generation}
            case "drain":
                self.drain()
            case "stop":
                self.stop()
        return {"ok": True, "pid": os.getpid()}

    def _slot_rows(self) -> list[int]:
        return [place.row for pool, _ in self._pools.all() for place in pool.places]

    def _summary(self) -> str:
        """One line for the service manager."""
        return f"generation {self._generation} serves {', '.join(map(str, self.addresses))}"

    def _facts(self) -> status.Facts:
        return status.Facts(
            version=__version__,
            pid=os.getpid(),
            started_ms=self._started_ms,
            generation=self._generation,
            state=self._state,
            listeners=tuple(map(str, self.addresses)),
            workers=tuple(hand.row for crew in self._crews for hand in crew.hands.values()),
            pools=self._pool_facts(),
            stdio=self._fork_facts("stdio"),
            cgi=self._fork_facts("cgi"),
        )

    def _pool_facts(self) -> tuple[status.PoolFacts, ...]:
        routes: defaultdict[int, list[str]] = defaultdict(list)  # by the row of a slot
        for route in self._settings.routes:
            for place in {place for host in route.backends for place in self._places(host)}:
                routes[place.row].append(name_of(route))
        return tuple(
            status.PoolFacts(
                name=pool.name,
                routes=tuple(routes[pool.places[0].row]),
                backend=shlex.join(pool.host.bin_path) or str(pool.places[0].address),
                is_spawned=bool(pool.host.bin_path),
                is_retired=is_retired,
                places=pool.places,
            )
            for pool, is_retired in self._pools.all()
        )

    def _places(self, host: Host) -> tuple[SlotPlace, ...]:
        try:
            return self._pools.places(host)
        except KeyError:  # not started yet, or being ended already
            return ()

    def _fork_facts(self, kind: Literal["stdio", "cgi"]) -> tuple[status.ForkStatus, ...]:
        """The programs of the current configuration; those of earlier ones run on for their tunnels, uncounted."""
        if not self._crews:
            return ()
        crew = self._crews[-1]
        return tuple(
            status.ForkStatus(
                name=os.path.basename(route.stdio[0]) if route.stdio else scripts_of(route).root,
                routes=(name_of(route),),
                running=crew.forks.running(index),
                max_forks=route.max_forks,
                forked=crew.forks.started(index),
                failed=crew.forks.failed(index),
            )
            for index, route in enumerate(crew.settings.routes)
            if route.kind == kind
        )

    # --- small things

    def _begin(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run it beside everything else, until the end at most; what goes wrong in it is the caller's to see."""
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _do(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """The same; what goes wrong in it is logged."""
        self._begin(coroutine).add_done_callback(_log_failure)


def _log_failure(task: asyncio.Task[Any]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        _log.error("the master failed", exc_info=error)


def worker_count(settings: Settings) -> int:
    """How many processes carry the traffic."""
    if settings.workers == "auto":
        return min(len(os.sched_getaffinity(0)), settings.limits.master.max_workers)
    return settings.workers


def _log_as(before: Settings, after: Settings) -> None:
    """Log from now on as the settings say, which new workers do already."""
    wanted = (after.log_level, after.log_format, after.log_file)
    if wanted != (before.log_level, before.log_format, before.log_file):
        try:
            open_logs(*wanted)
        except StartError as error:
            _log.error("reload: the log goes on where it was: %s", error)


def _problems(error: TunnelError) -> Sequence[str]:
    return error.problems if isinstance(error, ConfigError) else (str(error),)
