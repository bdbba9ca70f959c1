"""SIGTERM: with every tunnel in the middle of something, and with a child that does not hear it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter

from tools.chaos.clients import End, open_many
from tools.chaos.outcome import Outcome
from tools.chaos.service import Service, python_program

__all__ = ["deaf_child", "drained"]

_PIECES, _PAUSE_S = 12, 0.2
_MESSAGE_BYTES = 8192
_REST_AFTER_S = 1.0
"""Clients that have said half a message go on after this time, or a little later."""
_LINE = b"a question that takes its time to answer, from client %04d\n"


async def drained(
    folder: str,
    *,
    tunnels: int = 1000,
    silent: int = 50,
    window_s: float = 10.0,
    close_timeout_s: float = 3.0,
    workers: int = 2,
) -> Outcome:
    """SIGTERM while nobody is idle.

    Half of the clients have sent half a message; they send the rest after the SIGTERM, except the first `silent`, who
    never do. The others are being answered by a backend that takes its time.
    What each is owed: all that it has said, said back, and only then CLOSE 1001.
    """
    out = Outcome()
    routes = [
        {
            "path": "/slow/",
            "socket": os.path.join(folder, "slow.sock"),
            "bin-path": python_program("slow.py", _PIECES, _PAUSE_S).replace("-IS", "-I"),
        },
        {"socket": os.path.join(folder, "b.sock"), "bin-path": python_program("echo.py"), "max-procs": 2},
    ]
    for route in routes:
        route["close-timeout"] = close_timeout_s
    config = {"workers": workers, "drain-timeout": window_s, "route": routes}
    service = Service(folder, config)
    async with service:
        halves = await open_many(service.tcp, tunnels - tunnels // 2)
        answered = await open_many(service.tcp, tunnels // 2, "/slow/")
        messages = [os.urandom(_MESSAGE_BYTES // 2).hex().encode() for _ in halves]
        said = _MESSAGE_BYTES // 2
        rests = [client.begin(message, said) for client, message in zip(halves, messages, strict=True)]
        lines = [_LINE % index for index in range(len(answered))]
        for client, line in zip(answered, lines, strict=True):
            client.send(line)
        firsts = await asyncio.gather(
            *(client.take(said) for client in halves),  # half a message is on its way at once
            *(client.take(len(line)) for client, line in zip(answered, lines, strict=True)),
        )
        heard = list(map(bytes, firsts))
        open_now = (await service.status())["totals"]["tunnels"]
        begun_s = time.monotonic()
        service.signal(signal.SIGTERM)
        ends = [asyncio.create_task(client.to_end()) for client in (*halves, *answered)]
        await asyncio.sleep(_REST_AFTER_S)
        for client, rest in zip(halves[silent:], rests[silent:], strict=True):
            client.go_on(rest)
            await asyncio.sleep(0)
        found: list[End] = await asyncio.gather(*ends)
        code = await service.ended()
        took_s = time.monotonic() - begun_s
        got = [first + end.payload for first, end in zip(heard, found, strict=True)]
        owed = [message[:said] for message in messages[:silent]]
        owed += [*messages[silent:], *(line * _PIECES for line in lines)]
        short = sum(a != b for a, b in zip(got, owed, strict=True))
        codes = Counter(end.code for end in found)
        kinds = f"{len(halves)} with half a message from the client, {silent} of which never sent the rest"
        out.tell(f"{open_now} tunnels: {kinds}, and {len(answered)} in the middle of an answer")
        out.tell(f"{short} got less or other than they were owed")
        out.tell(f"close codes {dict(codes)}; exit code {code} after {took_s:.1f} of {window_s:g} s")
        out.promise(open_now == tunnels, f"only {open_now} tunnels were open")
        out.promise(not short, f"{short} tunnels did not get what was under way")
        out.promise(set(codes) == {1001}, f"close codes {dict(codes)}")
        out.promise(code == 0, f"exit code {code}")
        out.promise_speed(took_s <= window_s, f"it took {took_s:.1f} s")
        _promise_nothing_left(out, service)
    out.promise(not service.complaints(), f"the log has {service.complaints()}")
    return out


async def deaf_child(folder: str, *, kill_timeout_s: float = 1.0) -> Outcome:
    """SIGTERM, and a backend that ignores it."""
    out = Outcome()
    route = {"socket": os.path.join(folder, "b.sock"), "bin-path": python_program("stubborn.py")}
    service = Service(folder, {"kill-timeout": kill_timeout_s, "route": [route]})
    async with service:
        (pid,) = (slot["pid"] for slot in (await service.status())["pools"][0]["slots"])
        begun_s = time.monotonic()
        service.signal(signal.SIGTERM)
        code = await service.ended()
        took_s = time.monotonic() - begun_s
        out.tell(f"kill-timeout {kill_timeout_s:g} s: child gone and exit code {code} after {took_s:.1f} s")
        out.promise(not os.path.exists(f"/proc/{pid}"), "the child is still there")
        out.promise(took_s >= kill_timeout_s, "it did not get its time")
        out.promise(code == 0, f"exit code {code}")
        out.promise("SIGKILL" in service.log(), "the log does not say so")
        out.promise_speed(took_s <= kill_timeout_s + 1.0, f"it took {took_s:.1f} s")
        _promise_nothing_left(out, service)
    return out


def _promise_nothing_left(out: Outcome, service: Service) -> None:
    processes, sockets = service.pids(), service.sockets()
    out.tell(f"left in ps: {len(processes)}, socket files: {len(sockets)}")
    out.promise(not processes, f"left in ps: {processes}")
    out.promise(not sockets, f"socket files left: {sockets}")
