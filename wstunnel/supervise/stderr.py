"""What backends write to stderr, as lines in our log."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os

from wstunnel.limits import SpawnLimits

__all__ = ["LineCutter", "StderrPipe", "printable"]

_log = logging.getLogger("wstunnel.backend")


def printable(line: bytes) -> str:
    """A line as text: UTF-8 where it is UTF-8, everything that could move a cursor or hide text escaped."""
    text = line.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


class LineCutter:
    """Lines out of a byte stream that is cut anywhere.

    bound   a line longer than `limit_bytes` comes in pieces of that size, so no more than that is ever held
    """

    __slots__ = ("_limit_bytes", "_rest")

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._rest = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """Every line that is now whole, without its end."""
        *lines, rest = (self._rest + chunk).split(b"\n")
        whole = [piece for line in lines for piece in self._pieces(line.removesuffix(b"\r"))]
        *pieces, self._rest = self._pieces(rest)
        return whole + pieces

    def take(self) -> bytes:
        """The unfinished last line, which is then forgotten; empty if there is none."""
        rest, self._rest = self._rest, b""
        return rest

    def _pieces(self, line: bytes) -> list[bytes]:
        step = self._limit_bytes
        return [line[start : start + step] for start in range(0, len(line), step)] or [b""]


class StderrPipe:
    """A pipe that outlives the processes that write to it; each line goes to the log after `name`.

    in      fds   both ends of a pipe that is there already, -1 for a writing end that only processes hold; None: a new
                  pipe
    bound   reads `log_read_bytes` per wake-up and holds one line; a program that writes faster waits
    """

    __slots__ = ("_cutter", "_limits", "_loop", "_name", "_read_fd", "last_line", "write_fd")

    def __init__(
        self, name: str, limits: SpawnLimits, loop: asyncio.AbstractEventLoop, fds: tuple[int, int] | None = None
    ) -> None:
        self._name, self._limits, self._loop = name, limits, loop
        self._cutter = LineCutter(limits.log_line_bytes)
        self.last_line = b""
        """The last line that came and was not empty."""
        self._read_fd, self.write_fd = os.pipe() if fds is None else fds
        os.set_blocking(self._read_fd, False)
        loop.add_reader(self._read_fd, self._read)

    def _read(self) -> bool:
        try:
            chunk = os.read(self._read_fd, self._limits.log_read_bytes)
        except BlockingIOError:
            return False
        if not chunk:  # the last process that held the writing end is gone
            self._loop.remove_reader(self._read_fd)
            return False
        for line in self._cutter.feed(chunk):
            self._write(line)
        return True

    @property
    def fds(self) -> tuple[int, int]:
        """Both ends, the reading one first."""
        return self._read_fd, self.write_fd

    def _write(self, line: bytes) -> None:
        self.last_line = line or self.last_line
        _log.info("%s: %s", self._name, printable(line))

    def flush(self) -> None:
        """Log what a process that just ended has left, its unfinished last line too; at most one full pipe."""
        held_bytes = fcntl.fcntl(self._read_fd, fcntl.F_GETPIPE_SZ)
        for _ in range(0, held_bytes, self._limits.log_read_bytes):
            if not self._read():
                break
        rest = self._cutter.take()
        if rest:
            self._write(rest)

    def close(self) -> None:
        self._loop.remove_reader(self._read_fd)
        self.flush()
        os.close(self._read_fd)
        if self.write_fd >= 0:
            os.close(self.write_fd)
