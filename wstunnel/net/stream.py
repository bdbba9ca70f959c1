"""A connection to a backend that is asked and answers: bytes by `await`, until it is given back or becomes a pipe."""

from __future__ import annotations

import asyncio
import os

from wstunnel._hub import Hub, HubTransport
from wstunnel.net.exchange import Taken

__all__ = ["BackendStream"]

_NEVER_S = float("inf")


class BackendStream:
    """A connected plain socket under the hub, for one coroutine that reads and one that writes.

    in      fd               the stream's own from here on, unless this raises OSError
            read_timeout_s   of silence while somebody reads and the clock is not held; 0: never
            write_timeout_s  in which the backend takes none of the bytes that wait for it; 0: never
    bound   one read that nobody has taken, during which the socket is not read; one piece that is written

    When the connection breaks, what had been received before is still read; then comes the error. A backend that takes
    no more, perhaps because it has answered without reading all of a request, is read to its end.
    """

    __slots__ = (
        "_error",
        "_fd",
        "_hub",
        "_is_aborted",
        "_is_at_eof",
        "_is_clock_held",
        "_is_paused",
        "_is_write_paused",
        "_pending",
        "_read_by_s",
        "_read_timeout_s",
        "_reader",
        "_transport",
        "_unsent_bytes",
        "_write_by_s",
        "_write_error",
        "_write_timeout_s",
        "_writer",
    )

    def __init__(self, hub: Hub, fd: int, *, read_timeout_s: float = 0.0, write_timeout_s: float = 0.0) -> None:
        self._hub, self._fd = hub, fd
        self._read_timeout_s = read_timeout_s or _NEVER_S
        self._write_timeout_s = write_timeout_s or _NEVER_S
        self._read_by_s = self._write_by_s = _NEVER_S
        self._pending = b""  # read, and not yet taken
        self._error: OSError | None = None  # the connection is over
        self._write_error: OSError | None = None  # the backend takes no more
        self._reader: asyncio.Future[bytes] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._is_aborted = False
        self._is_at_eof = False
        self._is_clock_held = False
        self._is_paused = False
        self._is_write_paused = False
        self._unsent_bytes = 0  # when last looked at
        self._transport = HubTransport(hub, fd, self)
        if min(self._read_timeout_s, self._write_timeout_s) < _NEVER_S:
            hub.wheel.add(self, hub.wheel.now_s)

    # --- for the coroutines

    @property
    def is_broken(self) -> bool:
        """Is the connection over, or about to be, whatever is still to be read of it?"""
        return self._transport.is_closing()

    async def read(self) -> bytes:
        """What the backend has said, one read at most; nothing at its end.

        raises  OSError when the connection broke; TimeoutError on silence for read-timeout, which aborts it
        """
        if self._pending:
            data, self._pending = self._pending, b""
            return data
        if self._is_at_eof:
            return b""
        if self._error is not None:
            raise self._error
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()
        self._reader = self._hub.loop.create_future()
        self._start_reading_clock()
        try:
            return await self._reader
        finally:
            self._reader = None
            self._read_by_s = _NEVER_S

    async def write(self, data: bytes) -> None:
        """Send, and wait until all of it is the kernel's.

        raises  OSError when the connection broke, be it that the backend has said its last words and gone;
                TimeoutError when it took nothing for write-timeout, which aborts it
        """
        if self._write_error is not None:
            raise self._write_error
        self._transport.write(data)
        if self._transport.is_closing():
            raise self._error or ConnectionResetError("the backend has ended the connection")
        if self._is_write_paused:
            self._writer = self._hub.loop.create_future()
            try:
                await self._writer
            finally:
                self._writer = None
            if self._write_error is not None:
                raise self._write_error

    async def offer(self, data: bytes) -> bool:
        """As `write`, but tell whether the backend still takes anything. One that does not may have said why: whoever
        reads will see."""
        try:
            await self.write(data)
        except OSError:
            return False
        return True

    def write_eof(self) -> None:
        """End our side. raises OSError when the connection is gone."""
        self._transport.write_eof()

    def hold_clock(self) -> None:
        """Silence is allowed until `start_clock`: the backend waits for us."""
        self._is_clock_held = True
        self._read_by_s = _NEVER_S

    def start_clock(self) -> None:
        """Silence counts from now on."""
        self._is_clock_held = False
        if self._reader is not None:
            self._start_reading_clock()

    def is_silent(self) -> bool:
        """May the connection carry another request? Not if it has ended, or anything came that nobody asked for."""
        return not self._pending and self._write_error is None and self._transport.is_silent()

    def abort(self) -> None:
        """End the connection now; a second call does nothing. Who reads or writes gets an OSError."""
        self._is_aborted = True
        self._transport.abort()

    def release(self) -> Taken:
        """Let go of the connection, for a pipe."""
        self._hub.wheel.discard(self)
        self._transport.pause_reading()
        leftover, self._pending = self._pending, b""
        return Taken(self._transport, leftover, self._is_at_eof)

    # --- called by the transport

    def connection_made(self, transport: HubTransport) -> None:
        transport.set_write_buffer_limits(0, 0)

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(self._hub.view[:nbytes])
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(data)
        else:
            self._pending += data
            self._is_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        self._is_at_eof = True
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(b"")
        return True

    def pause_writing(self) -> None:
        self._is_write_paused = True
        self._unsent_bytes = self._transport.get_write_buffer_size()
        self._write_by_s = self._hub.loop.time() + self._write_timeout_s

    def resume_writing(self) -> None:
        self._is_write_paused = False
        self._write_by_s = _NEVER_S
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if isinstance(error, BrokenPipeError) and self._reads_on(error):
            return
        self._hub.wheel.discard(self)
        if self._error is None:
            self._error = error if isinstance(error, OSError) else ConnectionAbortedError("the connection was ended")
        if error is not None and not self._pending and not self._is_at_eof:
            self._pending = self._last_words()
        if self._reader is not None and not self._reader.done():
            if self._pending:
                data, self._pending = self._pending, b""
                self._reader.set_result(data)
            else:
                self._reader.set_exception(self._error)
        if self._writer is not None and not self._writer.done():
            self._writer.set_exception(self._error)

    def _reads_on(self, error: BrokenPipeError) -> bool:
        """A transport that cannot write is lost. Read what is left by another one, over a descriptor of its own."""
        if self._is_aborted or self._is_at_eof or self._write_error is not None:
            return False
        try:
            fd = os.dup(self._fd)
        except OSError:
            return False
        try:
            self._transport = HubTransport(self._hub, fd, self)
        except OSError:
            os.close(fd)
            return False
        self._fd, self._write_error = fd, error
        self.resume_writing()
        if self._is_paused:
            self._transport.pause_reading()
        return True

    def _last_words(self) -> bytes:
        """What is still unread of a connection that could not be written to: the reason, as a rule."""
        try:
            return os.read(self._fd, len(self._hub.view))
        except OSError:
            return b""

    # --- called by the wheel

    def due(self, now_s: float) -> float:
        """Abort when a deadline has passed; the next time at which one can be."""
        if self._is_write_paused and now_s >= self._write_by_s:
            unsent_bytes, self._unsent_bytes = self._unsent_bytes, self._transport.get_write_buffer_size()
            if self._unsent_bytes < unsent_bytes:
                self._write_by_s = now_s + self._write_timeout_s
        if self._error is None and now_s >= min(self._read_by_s, self._write_by_s):
            self._error = TimeoutError("no answer" if now_s >= self._read_by_s else "nothing was taken")
            self._transport.abort()
        soonest_s = now_s + min(self._read_timeout_s, self._write_timeout_s)
        return min(self._read_by_s, self._write_by_s, soonest_s)

    def _start_reading_clock(self) -> None:
        if self._read_timeout_s < _NEVER_S and not self._is_clock_held:
            self._read_by_s = self._hub.loop.time() + self._read_timeout_s
