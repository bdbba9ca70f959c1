"""A wstunnel in processes of its own, as an operator would start it, and what /proc says of them."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tools.chaos.clients import Address
from wstunnel.errors import StartError
from wstunnel.server.control import ask

__all__ = ["PROGRAMS", "Service", "cpu_s", "descriptors", "eventually", "python_program"]

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROGRAMS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "programs")
DEADLINE_S = 60.0
"""How long a thing that must happen may take."""
_POLL_S = 0.005

Config = Mapping[str, Any]
"""wstunnel.toml as values; `route` is a list of tables."""


def python_program(name: str, *arguments: object) -> str:
    """`bin-path` for one of our programs, without what Python would look for at its start."""
    return " ".join((sys.executable, "-IS", os.path.join(PROGRAMS, name), *map(str, arguments)))


async def eventually(
    claim: Callable[[], object], what: str, *, within_s: float = DEADLINE_S, poll_s: float = _POLL_S
) -> None:
    """Returns as soon as `claim()` holds. raises TimeoutError"""
    deadline_s = time.monotonic() + within_s
    while not claim():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"not within {within_s:g} s: {what}")
        await asyncio.sleep(poll_s)


def cpu_s(pids: Sequence[int]) -> float:
    """Processor time that these processes have used so far."""
    total_ns = 0
    for pid in pids:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/schedstat", encoding="ascii") as file:
                total_ns += int(file.read().split()[0])
    return total_ns / 1e9


def descriptors(pid: int) -> list[str]:
    """What a process has open."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.append(re.sub(r"\d{3,}", "N", os.readlink(f"/proc/{pid}/fd/{fd}")))
        except FileNotFoundError:
            continue
    return sorted(found)


class Service:
    """`python -m wstunnel -f FOLDER/wstunnel.toml`, from its first connection to its end.

    in      folder  for the configuration, the log and all sockets
            nofile  its limit of descriptors
    `async with` starts it and ends it. What it logged is in FOLDER/log, for whoever looks into a broken promise.
    """

    def __init__(self, folder: str, config: Config, *, nofile: int | None = None) -> None:
        self.folder, self._nofile = folder, nofile
        self.unix = os.path.join(folder, "front.sock")
        self._config_path = os.path.join(folder, "wstunnel.toml")
        self.control = os.path.join(folder, "control.sock")
        self.configure(config)
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def tcp(self) -> Address:
        return ("127.0.0.1", self.port)

    @property
    def pid(self) -> int:
        """The master's."""
        assert self._process is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None: it runs."""
        assert self._process is not None
        return self._process.poll()

    def configure(self, config: Config) -> None:
        """Write the configuration; it counts from the next start or reload on."""
        config = {
            "listen": ["127.0.0.1:0", f"unix:{self.unix}"],
            "control": self.control,
            "allow-unsafe-places": True,
            **config,
        }
        fresh = f"{self._config_path}.new"
        with open(fresh, "w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in _toml(config))
        os.rename(fresh, self._config_path)

    def socket(self, name: str) -> str:
        """A path for a backend's socket."""
        return os.path.join(self.folder, f"{name}.sock")

    # --- start and end

    def launch(self) -> None:
        """Start the process."""
        limited = () if self._nofile is None else ("sh", "-c", f'ulimit -n {self._nofile} && exec "$@"', "limited")
        with open(self._path("out"), "wb") as out, open(self._path("log"), "wb") as log:
            self._process = subprocess.Popen(
                (*limited, sys.executable, "-m", "wstunnel", "-f", self._config_path),
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                start_new_session=True,  # by which all that it starts is found
            )

    async def start(self) -> None:
        """Returns when it serves. raises RuntimeError when it does not come to that"""
        self.launch()
        await eventually(lambda: self.exit_code is not None or b"listening" in self._read("out"), "it serves")
        found = re.search(rb"http://[^:]+:(\d+)/", self._read("out"))
        if self.exit_code is not None or found is None:
            raise RuntimeError(f"it did not start: {self.log()}")
        self.port = int(found[1])

    async def __aenter__(self) -> Service:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        try:
            if self.exit_code is None:
                self.signal(signal.SIGTERM)
                await self.ended()
        finally:
            self.kill_all()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    async def ended(self, within_s: float = DEADLINE_S) -> int:
        """Its exit code, when it has ended."""
        await eventually(lambda: self.exit_code is not None, "it ends", within_s=within_s)
        assert self.exit_code is not None
        return self.exit_code

    def kill_all(self) -> None:
        """Whatever is left of it. Only ever needed when a promise is broken."""
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    # --- what there is

    def pids(self) -> list[int]:
        """Every process of its session that is there, the dead included that nobody has waited for."""
        if self._process is None:
            return []
        return [pid for pid, _, session, _ in _processes() if session == self.pid and (pid != self.pid or self._runs())]

    def _runs(self) -> bool:
        return self.exit_code is None

    def zombies(self) -> list[int]:
        return [pid for pid, _, session, state in _processes() if session == self.pid != pid and state == "Z"]

    def children(self) -> set[int]:
        """Of the master."""
        with open(f"/proc/{self.pid}/task/{self.pid}/children", encoding="ascii") as file:
            return set(map(int, file.read().split()))

    def sockets(self) -> list[str]:
        """Socket files left in its folder."""
        return sorted(name for name in os.listdir(self.folder) if ".sock" in name)

    async def status(self) -> dict[str, Any]:
        """What its control socket says."""
        answer = await asyncio.to_thread(ask, self.control, "status", DEADLINE_S)
        status: dict[str, Any] = answer["status"]
        return status

    async def until(self, claim: Callable[[dict[str, Any]], object], what: str) -> dict[str, Any]:
        """The first status of which `claim` is true."""
        deadline_s = time.monotonic() + DEADLINE_S
        while True:
            try:
                status = await self.status()
            except StartError:  # an upgrade cuts the connection of who is just asking
                if self.exit_code is not None:
                    raise
            else:
                if claim(status):
                    return status
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"not within {DEADLINE_S:g} s: {what}")
            await asyncio.sleep(_POLL_S)

    async def serves(self, generation: int) -> dict[str, Any]:
        """Status, once the configuration of that generation is served."""
        return await self.until(
            lambda status: status["generation"] >= generation and status["state"] == "serving",
            f"generation {generation} serves",
        )

    def log(self) -> str:
        """Everything logged so far."""
        return self._read("log").decode(errors="replace")

    def complaints(self) -> list[str]:
        """What nobody who promises anything should have to log."""
        return re.findall(r"^Traceback.*|^.*the master failed.*|^.*never retrieved.*", self.log(), re.MULTILINE)[:3]

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def _read(self, name: str) -> bytes:
        with open(self._path(name), "rb") as file:
            return file.read()


def _processes() -> Iterator[tuple[int, int, int, str]]:
    """pid, parent, session and state of every process. proc(5)"""
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", encoding="ascii", errors="replace") as file:
                state, parent, _, session, *_ = file.read().rpartition(")")[2].split()
        except OSError:  # gone meanwhile
            continue
        yield int(entry), int(parent), int(session), state


def _toml(config: Config) -> Iterator[str]:
    """The lines of a wstunnel.toml."""
    for name, value in config.items():
        if name != "route":
            yield f"{name} = {_value(value)}"
    for route in config.get("route", ()):
        yield "[[route]]"
        for name, value in route.items():
            yield f"{name} = {_value(value)}"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_value(name)} = {_value(each)}" for name, each in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return str(value)
