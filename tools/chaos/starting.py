"""Programs that cannot run: at start-up, and on demand beside others that can."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from tools.chaos.clients import Client, NoHandshake
from tools.chaos.outcome import Outcome
from tools.chaos.service import Service, python_program

__all__ = ["bad_programs"]

_PROBE = b"and you?"
_LAST_WORDS = "I will not serve"
_BAD = {
    "missing": "No such file",
    "not-executable": "not executable",
    "dies": _LAST_WORDS,
}
"""Programs, and what the operator has to be told of each (in any case)."""
_UNAVAILABLE = 503
_PAUSE_S = 0.05


async def bad_programs(folder: str) -> Outcome:
    """A program that does not exist, one that is not executable, one that dies at once."""
    out = Outcome()
    with open(os.path.join(folder, "not-executable"), "w", encoding="ascii") as file:
        file.write("#!/bin/sh\n")
    with open(os.path.join(folder, "dies"), "w", encoding="ascii") as file:
        file.write(f"#!/bin/sh\necho {_LAST_WORDS} >&2\nexit 3\n")
        os.fchmod(file.fileno(), 0o755)
    for name, why in _BAD.items():
        await _at_start(out, folder, name, why)
    await _on_demand(out, folder)
    return out


def _route(folder: str, name: str, **more: Any) -> dict[str, Any]:
    socket = os.path.join(folder, f"{name}.sock")
    return {"path": f"/{name}/", "socket": socket, "bin-path": os.path.join(folder, name), **more}


async def _at_start(out: Outcome, folder: str, name: str, why: str) -> None:
    service = Service(folder, {"route": [_route(folder, name)]})
    service.launch()
    try:
        code = await service.ended()
        said = " ".join(line for line in service.log().splitlines() if line.startswith("wstunnel: "))
        out.tell(f"{name}: exit code {code}, {said.replace(folder + '/', '')!r}")
        out.promise(code in {1, 2}, f"{name}: exit code {code}")
        out.promise(os.path.join(folder, name) in said, f"{name}: start-up does not say which: {said}")
        out.promise(why.lower() in said.lower(), f"{name}: start-up does not say why: {said}")
        out.promise(not service.sockets(), f"{name}: left {service.sockets()}")
        out.promise(not service.pids(), f"{name}: left {service.pids()}")
    finally:
        service.kill_all()


async def _on_demand(out: Outcome, folder: str) -> None:
    """The circuit opens after some deaths; until then clients of a dying program may be cut instead."""
    good = {"socket": os.path.join(folder, "good.sock"), "bin-path": python_program("echo.py")}
    routes = [*(_route(folder, name, **{"min-procs": 0}) for name in _BAD), good]
    async with Service(folder, {"route": routes}) as service:
        answers: dict[str, int | None] = {}

        async def ask(name: str) -> None:
            try:
                client = await Client.open(service.tcp, f"/{name}/")
            except NoHandshake as refused:
                answers[name] = refused.status
            else:
                client.abort()
                answers[name] = 101

        for name in _BAD:
            while answers.get(name) != _UNAVAILABLE:
                await ask(name)
                await _echoes(service)
                await asyncio.sleep(_PAUSE_S)
        out.tell(f"on demand: {', '.join(f'{name} {answers[name]}' for name in _BAD)}; the others echo")
        for name in _BAD:
            lines = [line for line in service.log().splitlines() if f"wstunnel.supervise {name}-0: " in line]
            out.promise(0 < len(lines) <= 2, f"{name}: logged {len(lines)} lines: {lines[:4]}")  # one per change
    out.promise(not service.complaints(), f"the log has {service.complaints()}")


async def _echoes(service: Service) -> None:
    client = await Client.open(service.tcp)
    await client.echo(_PROBE)
    await client.close()
