"""What has to be shared: connections between workers, descriptors between clients."""

from __future__ import annotations

import asyncio
import os
import time

from tools.chaos.clients import Client, open_many
from tools.chaos.outcome import Outcome
from tools.chaos.service import Service, cpu_s, eventually, python_program

__all__ = ["few_descriptors", "two_workers"]

_PROBE = b"anybody?"
_SHARE = 0.6
_CPU_SHARE = 0.05
_SPINS = 0.5
_LOOKS = 10


async def two_workers(folder: str, *, tunnels: int = 1000) -> Outcome:
    """How many of the tunnels the busier one of two workers carries; over TCP, and over a UNIX socket."""
    out = Outcome()
    route = {"socket": os.path.join(folder, "b.sock"), "bin-path": python_program("echo.py"), "max-procs": 2}
    async with Service(folder, {"workers": 2, "route": [route]}) as service:
        for name, address in (("UNIX", service.unix), ("TCP", service.tcp)):
            clients = await open_many(address, tunnels)
            await asyncio.gather(*(client.echo(_PROBE) for client in clients))
            shares = [worker["tunnels"] for worker in (await service.status())["workers"]]
            out.tell(f"{name}: {tunnels} tunnels as {' + '.join(map(str, shares))}, {max(shares) / tunnels:.1%}")
            out.promise(sum(shares) == tunnels, f"{name}: {shares} are not {tunnels}")
            out.promise(max(shares) <= _SHARE * tunnels, f"{name}: one worker has {max(shares)} of {tunnels}")
            await asyncio.gather(*(client.close() for client in clients))
            await service.until(lambda status: status["totals"]["tunnels"] == 0, "all tunnels are closed")
    out.promise(not service.complaints(), f"the log has {service.complaints()}")
    return out


async def few_descriptors(folder: str, *, nofile: int = 256, clients: int = 1000, watch_s: float = 4.0) -> Outcome:
    """A low limit of descriptors and many clients: who is served stays served, the others wait and have their turn."""
    out = Outcome()
    route = {"socket": os.path.join(folder, "b.sock"), "bin-path": python_program("echo.py"), "max-procs": 2}
    async with Service(folder, {"route": [route]}, nofile=nofile) as service:
        served: list[Client] = []
        opening = [asyncio.create_task(_visit(service, served)) for _ in range(clients)]
        await eventually(lambda: "max-connections reached" in service.log(), "it is full")
        status = await service.until(
            lambda status: status["totals"]["connections"] == status["totals"]["tunnels"] == len(served),
            "those that were let in are served",
        )
        first = list(served)
        (worker,) = status["workers"]
        pids = (service.pid, worker["pid"])
        used_s, begun_s = cpu_s(pids), time.monotonic()
        await asyncio.sleep(watch_s)
        share = (cpu_s(pids) - used_s) / (time.monotonic() - begun_s)
        answers = [(await service.status())["totals"]["tunnels"] for _ in range(_LOOKS)]
        await asyncio.gather(*(client.echo(_PROBE) for client in first))
        out.tell(f"RLIMIT_NOFILE {nofile}: {len(first)} of {clients} clients are served at once and stay unharmed")
        out.tell(f"{share:.1%} CPU while {clients - len(first)} wait; {len(answers)} answers of the control socket")
        out.promise(len(first) < clients, "nobody had to wait")
        out.promise(set(answers) == {len(first)}, f"{len(first)} tunnels are open, and status says {answers}")
        out.promise(share < _SPINS, f"it spins: {share:.0%} CPU while waiting")
        out.promise_speed(share < _CPU_SHARE, f"{share:.1%} CPU while waiting")
        while len(served) < clients:
            for client in served:
                client.abort()
            await asyncio.sleep(0.01)
        await asyncio.gather(*opening)
        for client in served:
            client.abort()
        out.tell(f"all {len(served)} were served in the end")
    out.promise(not service.complaints(), f"the log has {service.complaints()}")
    return out


async def _visit(service: Service, served: list[Client]) -> None:
    client = await Client.open(service.tcp, patience_s=600)
    await client.echo(_PROBE)
    served.append(client)
