"""SIGHUP and SIGUSR2, again and again, while clients come and go and some stay."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from typing import Any

from tools.chaos.clients import Client, Visits
from tools.chaos.outcome import Outcome, spread
from tools.chaos.service import Service, python_program

__all__ = ["reloaded", "upgraded"]

_PROBE = b"still there?"
_MOST_WORKERS = 3
_CHANGED_ONE_IN = 4


async def reloaded(folder: str, *, times: int = 20, handshakes: int = 2000, at_once: int = 8, seed: int = 0) -> Outcome:
    """SIGHUP; each time with another number of workers, and now and then another environment of one backend."""
    rng = random.Random(seed)
    return await _changed(folder, _configs(folder, rng), [signal.SIGHUP] * times, handshakes, at_once)


async def upgraded(folder: str, *, times: int = 4, handshakes: int = 200, at_once: int = 8, seed: int = 0) -> Outcome:
    """SIGUSR2: the master becomes a new image of the program each time; then one SIGHUP for what that one can do."""
    rng = random.Random(seed)
    return await _changed(
        folder, _configs(folder, rng), [signal.SIGUSR2] * times + [signal.SIGHUP], handshakes, at_once
    )


def _configs(folder: str, rng: random.Random) -> Iterator[dict[str, Any]]:
    changes = 0
    while True:
        changes += not rng.randrange(_CHANGED_ONE_IN)
        changing = {
            "path": "/changing/",
            "socket": os.path.join(folder, "changing.sock"),
            "bin-path": python_program("echo.py"),
            "bin-environment": {"CHANGES": str(changes)},
        }
        same = {"socket": os.path.join(folder, "same.sock"), "bin-path": python_program("echo.py"), "max-procs": 2}
        yield {"workers": rng.randint(1, _MOST_WORKERS), "route": [changing, same]}


async def _changed(
    folder: str, configs: Iterator[dict[str, Any]], signals: list[signal.Signals], handshakes: int, at_once: int
) -> Outcome:
    out = Outcome()
    async with Service(folder, next(configs)) as service:
        backends = _pids(await service.status(), "same")
        early = [
            await Client.open(address, path) for address in (service.tcp, service.unix) for path in ("/", "/changing/")
        ]
        took_s = []
        async with Visits([service.tcp, service.unix], paths=("/", "/changing/"), at_once=at_once) as visits:
            for number, each in enumerate(signals, 1):
                await visits.reach(handshakes * number // (len(signals) + 1))
                service.configure(next(configs))
                begun_s = time.monotonic()
                service.signal(each)
                status = await service.serves(number + 1)
                took_s.append(time.monotonic() - begun_s)
                out.promise(status["generation"] == number + 1, f"generation {status['generation']} after {number}")
            await visits.reach(handshakes)
        names = ", ".join(f"{signals.count(each)} {each.name}" for each in dict.fromkeys(signals))
        refused = sum("answered with" in failure.why for failure in visits.failed)
        out.tell(f"{names}, {visits.handshakes} handshakes: {refused} refused, {len(visits.failed) - refused} failed")
        out.tell(f"served anew after {spread(took_s)}")
        out.promise(not visits.failed, f"handshakes: {visits.failed[:3]}")
        out.promise(not visits.cut, f"tunnels were cut with {visits.cut[:3]}")
        out.promise(not visits.wrong, f"wrong: {visits.wrong[:3]}")
        for client in early:
            await client.echo(_PROBE)
        out.tell(f"{len(early)} tunnels opened before the first still echo after the last")
        out.promise(_pids(await service.status(), "same") == backends, "a pool that did not change was replaced")
        out.promise((await service.status())["pid"] == service.pid, "the master is another process")
        for client in early:
            await client.close()
        status = await service.until(_is_tidy, "what is old is gone")
        out.tell(f"then {len(status['workers'])} workers and {len(status['pools'])} pools are left")
        strangers = service.children() - _all_pids(status)
        out.promise(not strangers, f"{len(strangers)} processes of which status knows nothing: {strangers}")
        out.promise(not service.zombies(), f"zombies: {service.zombies()}")
    out.promise(not service.complaints(), f"the log has {service.complaints()}")
    return out


def _is_tidy(status: dict[str, Any]) -> bool:
    """Nothing of an earlier configuration is there any more."""
    is_current = all(worker["generation"] == status["generation"] for worker in status["workers"])
    return is_current and not any(pool["is_retired"] for pool in status["pools"])


def _all_pids(status: dict[str, Any]) -> set[int]:
    """Every process but the master."""
    slots = {slot["pid"] for pool in status["pools"] for slot in pool["slots"]}
    return slots | {worker["pid"] for worker in status["workers"]}


def _pids(status: dict[str, Any], name: str) -> set[int]:
    """The processes of the pool whose sockets are called that."""
    slots = (slot for pool in status["pools"] for slot in pool["slots"] if f"/{name}.sock" in slot["address"])
    return {slot["pid"] for slot in slots}
