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

__all__ = ["STATE_FORMAT", "STATE_VARIABLE", "Image", "inherited_state"]

STATE_FORMAT = 3
"""What an image can take over: to be raised when the state, or the layout of the board, means something else."""

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

    async def try_out(self, state: Mapping[str, Any], timeout_s: float) -> None:
        """Have the version that is installed now look at the arguments, and at the form of the state that it would get,
        in a process of its own.

        in      state  as much of it as the look takes
        raises  StartError with what it says against them
        """
        try:
            state_fd = _state_behind(state)
            try:
                process = await _started((*self.prefix, "check", *self.words), state_fd)
            finally:
                os.close(state_fd)
        except OSError as error:
            raise StartError(f"{self.prefix[0]}: cannot be started: {error.strerror}") from error
        try:
            async with asyncio.timeout(timeout_s):
                _, said = await process.communicate()
        except TimeoutError:
            raise StartError(f"the new version said nothing for {timeout_s:g} s") from None
        finally:
            await _end(process)
        if process.returncode:
            last = said.rstrip().rpartition(b"\n")[2]
            raise StartError(f"the new version does not start: {safe(last, 512)}")

    def become(self, state: Mapping[str, Any], fds: Iterable[int], blocked: Sequence[signal.Signals]) -> NoReturn:
        """Run the version that is installed now in this very process, which keeps its children and these descriptors.

        in      state     what the new image is to know; JSON
                blocked   signals that wait until the new image unblocks them, instead of ending it while it starts
        raises  StartError when that cannot be done; nothing has changed then
        """
        kept = list(fds)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        try:
            state_fd = _state_behind(state)
            try:
                for fd in (state_fd, *kept):
                    os.set_inheritable(fd, True)
                os.execve(self.prefix[0], (*self.prefix, *self.words), {**os.environ, STATE_VARIABLE: str(state_fd)})
            finally:
                os.close(state_fd)
                for fd in kept:
                    os.set_inheritable(fd, False)
        except OSError as error:
            raise StartError(f"{self.prefix[0]}: cannot be started: {error.strerror}") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def _started(argv: Sequence[str], state_fd: int) -> asyncio.subprocess.Process:
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, STATE_VARIABLE: str(state_fd)},
            pass_fds=(state_fd,),
        )
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:  # a start that is cancelled half-way leaves a process that nobody can end
        await _end(await starting)
        raise


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
        await process.wait()


def _state_behind(state: Mapping[str, Any]) -> int:
    """A descriptor to read the state from; not inheritable."""
    fd = os.memfd_create("wstunnel-state", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(json.dumps({"format": STATE_FORMAT, **state}).encode("ascii"))
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def inherited_state(said: str) -> dict[str, Any]:
    """What the image before has left, and said where in `STATE_VARIABLE`; the descriptor is closed.

    raises  StartError when it cannot be read, or only by another version
    """
    try:
        with open(int(said), "rb") as file:
            state = json.load(file)
    except (OSError, ValueError) as error:
        raise StartError(f"{STATE_VARIABLE}: {safe(said)} is no state of an earlier image: {error}") from error
    if not isinstance(state, dict) or state.get("format") != STATE_FORMAT:
        raise StartError("this version cannot go on where the one that runs has stopped; stop that one, and start this")
    return state
