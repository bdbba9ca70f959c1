"""Programs that are started for one tunnel or request, and the stream that is their standard input and output."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from wstunnel.errors import BackendError
from wstunnel.limits import SpawnLimits
from wstunnel.supervise.child import ExitStatus

__all__ = ["SOFTWARE", "ForkedProgram", "Forker", "ProgramClaim", "start_program"]

SOFTWARE = "wstunnel"
"""SERVER_SOFTWARE."""


class ForkedProgram(Protocol):
    """A program that runs for one tunnel or request."""

    pid: int

    @property
    def last_words(self) -> str:
        """The last line of its stderr, once it has ended; empty when there was none."""

    def is_exiting(self) -> bool:
        """Has it ended, or is it in the act of exiting?"""

    async def exit_status(self) -> ExitStatus | None:
        """How it ended; None at once if it has not, or when nobody could tell in time."""

    def release(self) -> None:
        """The tunnel or request is over: end the program and all that it has forked."""


class Forker(Protocol):
    """Whoever starts programs: `Forks` in the same event loop, or the master on a worker's behalf."""

    async def fork(
        self, index: int, environment: Mapping[str, str], stream: socket.socket, script: str = ""
    ) -> ForkedProgram:
        """The program of the route with this number, or a script of it, by its path under the route's folder; `stream`
        becomes its stdin and stdout. raises BackendError"""


@dataclass(frozen=True, slots=True)
class ProgramClaim:
    """A program, as the server sees a backend.

    path  of the program or the script
    """

    program: ForkedProgram
    path: str
    limits: SpawnLimits

    @property
    def name(self) -> str:
        return f"{os.path.basename(self.path)}[{self.program.pid}]"

    @property
    def where(self) -> str:
        return self.path

    @property
    def host_index(self) -> int:
        return 0

    def is_exiting(self) -> bool:
        """Always: a program that has ended its stream is as a rule about to exit. Some (cat, head) close it before they
        do, so that the kernel has not marked them as exiting yet."""
        return True

    async def exit_status(self) -> ExitStatus | None:
        """How it ended; None `fork_exit_wait_s` later for one that lives on."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self.limits.fork_exit_wait_s
        while not self.program.is_exiting() and loop.time() < deadline_s:  # noqa: ASYNC110 -- nobody tells
            await asyncio.sleep(self.limits.settle_poll_s)
        return await self.program.exit_status()

    def release(self) -> None:
        self.program.release()


async def start_program(
    forker: Forker, index: int, environment: Mapping[str, str], *, path: str, script: str = ""
) -> tuple[socket.socket, ForkedProgram]:
    """A program, and our end of its stream, which does not block.

    in      path  what the program is called in an error; the others: as Forker.fork
    raises  BackendError when the program cannot be started, or must not be
    """
    await asyncio.sleep(0)  # whoever forks, or talks to a program, wants to run in a task: net/eager.py
    try:
        ours, theirs = socket.socketpair()
    except OSError as error:
        raise BackendError(f"no stream for {path}: {error.strerror}") from error
    with theirs:
        try:
            program = await forker.fork(index, environment, theirs, script)
        except BaseException:
            ours.close()
            raise
    ours.setblocking(False)
    return ours, program
