"""The program that this process runs, and becoming a new version of it without ending (SIGUSR2)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from wstunnel.errors import StartError, safe

__all__ = ["STATE_VARIABLE", "Image", "inherited_state"]

STATE_VARIABLE = "WSTUNNEL_STATE_FD"
"""Names the descriptor in which the image before has left its state."""


@dataclass(frozen=True, slots=True)
class Image:
    """How this process was started.

    prefix   the interpreter and what makes it run wstunnel
    words    the arguments of wstunnel
    """

    prefix: tuple[str, ...]
    words: tuple[str, ...]

    async def try_out(self, timeout_s: float) -> None:
        """Have the version that is installed now look at the arguments, in a process of its own.

        raises  StartError with what it says against them
        """
        process = await asyncio.create_subprocess_exec(
            *self.prefix,
            "check",
            *self.words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(timeout_s):
                _, said = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise StartError(f"the new version said nothing for {timeout_s:g} s") from None
        if process.returncode:
            last = said.rstrip().rpartition(b"\n")[2]
            raise StartError(f"the new version does not start: {safe(last, 512)}")

    def become(self, state: Mapping[str, Any], fds: Iterable[int], blocked: Sequence[signal.Signals]) -> NoReturn:
        """Run the version that is installed now in this very process, which keeps its children and these descriptors.

        in      state     what the new image is to know; JSON
                blocked   signals that wait until the new image unblocks them, instead of ending it while it starts
        raises  StartError when that cannot be done; nothing has changed then
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        kept = list(fds)
        state_fd = os.memfd_create("wstunnel-state", 0)
        try:
            os.write(state_fd, json.dumps(state).encode("ascii"))
            os.lseek(state_fd, 0, os.SEEK_SET)
            for fd in (state_fd, *kept):
                os.set_inheritable(fd, True)
            os.execve(self.prefix[0], (*self.prefix, *self.words), {**os.environ, STATE_VARIABLE: str(state_fd)})
        except OSError as error:
            for fd in kept:
                os.set_inheritable(fd, False)
            os.close(state_fd)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
            raise StartError(f"{self.prefix[0]}: cannot be started: {error.strerror}") from error


def inherited_state(fd: int) -> dict[str, Any]:
    """What the image before has left behind this descriptor, which is closed.

    raises  StartError when it cannot be read
    """
    try:
        with open(fd, "rb") as file:
            state = json.load(file)
    except (OSError, ValueError) as error:
        raise StartError(f"{STATE_VARIABLE}: descriptor {fd} holds no state of an earlier image: {error}") from error
    if not isinstance(state, dict):
        raise StartError(f"{STATE_VARIABLE}: descriptor {fd} holds no state of an earlier image")
    return state
