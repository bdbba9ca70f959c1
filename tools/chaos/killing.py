"""kill -9, again and again: of backends, of workers."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from tools.chaos.clients import Client, Cut, Visits, open_many
from tools.chaos.outcome import Outcome, spread
from tools.chaos.service import Service, descriptors, eventually, python_program

__all__ = ["backends_killed", "workers_killed"]

_HEALTHY_S = 1.0
"""limits.restart.healthy_after_s: who dies earlier is not started again at once, and rightly so."""
_MARGIN_S = 0.05
_PROBE = b"are you there?"
_WARM_TUNNELS = 32
_LULL_S = 0.05


async def backends_killed(folder: str, *, kills: int = 200, slots: int = 10, at_once: int = 8) -> Outcome:
    """kill -9 of one backend after the other, each after a healthy run, while clients come and go."""
    out = Outcome()
    route = {"socket": os.path.join(folder, "b.sock"), "bin-path": python_program("echo.py"), "max-procs": slots}
    async with Service(folder, {"workers": 2, "route": [route]}) as service:
        (pool,) = (await service.status())["pools"]
        paths = [slot["address"].removeprefix("unix:") for slot in pool["slots"]]
        pids = [slot["pid"] for slot in pool["slots"]]
        await asyncio.gather(*map(_answers, paths))
        fit_s = [time.monotonic() + _HEALTHY_S + _MARGIN_S] * slots
        await _warm(service)
        before = await _at_rest(service)
        started_s, answered_s = [], []
        async with Visits([service.tcp, service.unix], at_once=at_once) as visits:
            for number in range(kills):
                slot = number % slots
                await asyncio.sleep(max(0.0, fit_s[slot] - time.monotonic()))
                known = service.children()
                begun_s = time.monotonic()
                os.kill(pids[slot], signal.SIGKILL)
                answer = asyncio.create_task(_answers(paths[slot]))
                await eventually(lambda known=known: service.children() - known, "a new process", poll_s=0.001)
                started_s.append(time.monotonic() - begun_s)
                (pids[slot],) = service.children() - known
                await answer
                answered_s.append(time.monotonic() - begun_s)
                fit_s[slot] = time.monotonic() + _HEALTHY_S + _MARGIN_S
        status = await service.until(lambda status: _deaths(status) >= kills, "every death is counted")
        after = await _at_rest(service)
        out.tell(f"{kills} kills, {visits.handshakes} handshakes: {_told(visits)}")
        out.tell(f"next process after {spread(started_s)}, its first answer after {spread(answered_s)}")
        out.tell(f"tunnels cut by the kills: {len(visits.cut)}")
        _promise_handshakes(out, visits)
        ended_with = f"tunnels of killed backends ended with {Counter(visits.cut)}"
        out.promise(set(visits.cut) <= {1000, 1011}, ended_with)
        out.promise_speed(set(visits.cut) <= {1011}, ended_with)  # 1000 where the master could not say in time
        out.promise(_deaths(status) == kills, f"{kills} kills and {_deaths(status)} deaths")
        out.promise(status["totals"]["refused"] == 0, f"{status['totals']['refused']} refused")
        out.promise(not service.zombies(), f"zombies: {service.zombies()}")
        out.promise(after == before, f"descriptors: {_difference(before, after)}")
        out.promise_speed(sorted(answered_s)[kills // 2] <= 0.1, "a restart takes more than 100 ms")
    out.promise(not service.complaints(), f"the log has {service.complaints()}")
    return out


async def workers_killed(
    folder: str, *, kills: int = 6, tunnels: int = 200, at_once: int = 8, workers: int = 2
) -> Outcome:
    """kill -9 of one worker after the other while clients come and go and others stay."""
    out = Outcome()
    route = {"socket": os.path.join(folder, "b.sock"), "bin-path": python_program("echo.py"), "max-procs": 2}
    async with Service(folder, {"workers": workers, "route": [route]}) as service:
        backends = {slot["pid"] for slot in (await service.status())["pools"][0]["slots"]}
        staying = await open_many(service.tcp, tunnels)
        replaced_s, next_s, lost, overdue = [], [], 0, 0
        fit_s = time.monotonic() + _HEALTHY_S + _MARGIN_S
        async with Visits([service.tcp, service.unix], at_once=at_once) as visits:
            for number in range(kills):
                await asyncio.sleep(max(0.0, fit_s - time.monotonic()))
                staying += await open_many(service.tcp, tunnels - len(staying))
                status = await service.status()
                victim = status["workers"][number % workers]
                # besides those that stay it carries visits: of each visitor this one, and the last one's end
                share, failed_before = victim["tunnels"], len(visits.failed)
                begun_s = time.monotonic()
                os.kill(victim["pid"], signal.SIGKILL)
                await eventually(lambda pid=victim["pid"]: not os.path.exists(f"/proc/{pid}"), "it is dead")
                dead_s = time.monotonic()
                async with asyncio.TaskGroup() as group:  # whoever the kernel gives to the dead one waits for the next
                    nexts = [group.create_task(_next(service)) for _ in range(2 * workers)]
                    serving = group.create_task(service.until(_all_serve(workers, victim["pid"]), "a new worker"))
                next_s += [task.result() for task in nexts]
                replaced_s.append(serving.result()["taken_ms"] / 1e3 - (time.time() - (time.monotonic() - begun_s)))
                fit_s = time.monotonic() + _HEALTHY_S + _MARGIN_S
                kept = await _still_there(staying)
                ended = len(staying) - len(kept)
                out.promise(
                    share - 2 * at_once <= ended <= share,
                    f"the worker had {share} tunnels (some of visits) and {ended} ended",
                )
                lost += ended
                staying = kept
                late = [each for each in visits.failed[failed_before:] if each.begun_s > dead_s]
                overdue += len(late)
                out.promise(not late, f"after the death: {late[:3]}")
        caught = len(visits.failed) - overdue
        failed = f"{overdue} failed that began after a death, {caught} were in a dead worker's hands"
        out.tell(f"{kills} kills, {visits.handshakes} handshakes: {failed}")
        out.tell(f"{lost} tunnels ended, those of the dead; {len(staying)} others still echo")
        out.tell(f"next handshake within {max(next_s) * 1e3:.0f} ms, next worker serves after {spread(replaced_s)}")
        out.promise(caught <= kills * at_once, f"{caught} handshakes were in the hands of {kills} workers")
        out.promise(not visits.wrong, f"wrong: {visits.wrong[:3]}")
        out.promise(set(visits.cut) <= {None}, f"tunnels of dead workers ended with {Counter(visits.cut)}")
        after = {slot["pid"] for slot in (await service.status())["pools"][0]["slots"]}
        out.promise(after == backends, "backends were replaced")
        out.promise(not service.zombies(), f"zombies: {service.zombies()}")
        out.promise_speed(max(replaced_s) <= 1.0, "a worker is replaced after more than 1 s")
        for client in staying:
            client.abort()
    out.promise(not service.complaints(), f"the log has {service.complaints()}")
    return out


async def _next(service: Service) -> float:
    """A handshake and an echo; how long both took."""
    begun_s = time.monotonic()
    client = await Client.open(service.tcp)
    await client.echo(_PROBE)
    await client.close()
    return time.monotonic() - begun_s


async def _still_there(clients: list[Client]) -> list[Client]:
    """Those that still echo."""

    async def look(client: Client) -> bool:
        try:
            await client.echo(_PROBE)
        except (Cut, ConnectionError):
            client.abort()
            return False
        return True

    found = await asyncio.gather(*map(look, clients))
    return [client for client, is_there in zip(clients, found, strict=True) if is_there]


def _all_serve(count: int, without: int) -> Any:
    def claim(status: Mapping[str, Any]) -> bool:
        states = [worker["state"] for worker in status["workers"] if worker["pid"] != without]
        return states == ["serving"] * count

    return claim


async def _answers(path: str) -> None:
    """Returns when the backend at `path` has said something back, whichever process of it that is."""
    while True:
        reader, writer = await asyncio.open_unix_connection(path)
        try:
            writer.write(_PROBE)
            await reader.readexactly(len(_PROBE))
        except (OSError, EOFError):
            continue  # it was the one that is dying
        else:
            return
        finally:
            writer.close()


async def _warm(service: Service) -> None:
    """What a process opens once, at its first tunnel or its first status, is open."""
    for client in await open_many(service.tcp, _WARM_TUNNELS):
        await client.echo(_PROBE)
        await client.close()


async def _at_rest(service: Service) -> dict[str, list[str]]:
    """What master and workers have open when no client is there."""
    status = await service.until(
        lambda status: status["totals"]["connections"] == 0 and all(map(_is_up, status["pools"])), "all is quiet"
    )
    pids = {"master": service.pid, **{f"worker {each['row']}": each["pid"] for each in status["workers"]}}
    found: dict[str, list[str]] = {}
    is_same = False
    while not is_same:  # the one that has just told us the status is about to go
        before = found
        await asyncio.sleep(_LULL_S)
        found = {name: descriptors(pid) for name, pid in pids.items()}
        is_same = found == before
    return found


def _is_up(pool: Mapping[str, Any]) -> bool:
    return all(slot["state"] == "running" and not slot["load"] for slot in pool["slots"])


def _deaths(status: Mapping[str, Any]) -> int:
    return sum(slot["deaths"] for pool in status["pools"] for slot in pool["slots"])


def _difference(before: Mapping[str, list[str]], after: Mapping[str, list[str]]) -> str:
    parts = []
    for name in before:
        old, new = Counter(before[name]), Counter(after.get(name, []))
        if old != new:
            parts.append(f"{name}: gained {dict(new - old)}, lost {dict(old - new)}")
    return "; ".join(parts)


def _told(visits: Visits) -> str:
    refused = sum("answered with" in failure.why for failure in visits.failed)
    return f"{refused} refused, {len(visits.failed) - refused} failed"


def _promise_handshakes(out: Outcome, visits: Visits) -> None:
    out.promise(not visits.failed, f"handshakes: {visits.failed[:3]}")
    out.promise(not visits.wrong, f"wrong: {visits.wrong[:3]}")
