"""Packets between master and worker, over one end of a SOCK_SEQPACKET socket pair."""

from __future__ import annotations

import array
import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from wstunnel.errors import LimitError
from wstunnel.limits import MasterLimits
from wstunnel.proto.close import CloseCode
from wstunnel.server.messages import Message, decode, encode

__all__ = ["Channel", "Sendable"]

_log = logging.getLogger("wstunnel")

_FDS_PER_MESSAGE = 1
_MESSAGES_PER_TURN = 64
_HEAD_TOO_LARGE = 431  # RFC 6585 §5: what a client has said is the only thing here that can be long


class Sendable(Protocol):
    """A socket or a file."""

    def fileno(self) -> int: ...

    def close(self) -> None: ...


class Channel:
    """One side of the conversation.

    in      sock        the socket, which is the channel's from here on
            on_message  gets each message with the descriptors that came with it, and owns them
            on_closed   the other side is gone, or has stopped reading; called once, and not after `close`
    bound   `max_queued_messages` wait for a slow reader; one more, and it is taken for dead. `message_bytes` each
    """

    def __init__(
        self,
        sock: socket.socket,
        limits: MasterLimits,
        *,
        on_message: Callable[[Message, list[int]], None],
        on_closed: Callable[[], None],
    ) -> None:
        sock.setblocking(False)
        self._socket, self._limits = sock, limits
        self._on_message, self._on_closed = on_message, on_closed
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[bytes, tuple[Sendable, ...]]] = deque()
        self._is_open = True
        self._loop.add_reader(sock.fileno(), self._read)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: Message, sockets: Sequence[Sendable] = ()) -> None:
        """Send a message and these sockets or files with it, which are closed here as soon as they are on their way.

        raises  LimitError when the other side would not read so long a message; they are closed then
        """
        packet = encode(message)
        owned = tuple(sockets)
        most_bytes = self._limits.message_bytes
        if len(packet) > most_bytes:
            _close_all(owned)
            raise LimitError(
                "message_bytes", most_bytes, len(packet), close_code=CloseCode.TOO_BIG, status=_HEAD_TOO_LARGE
            )
        if not self._is_open or len(self._waiting) >= self._limits.max_queued_messages:
            _close_all(owned)
            if self._is_open:
                _log.error("a process has left %d messages unread and is given up", len(self._waiting))
                self._lose()
            return
        if self._waiting or not self._send(packet, owned):
            if not self._waiting:
                self._loop.add_writer(self._socket.fileno(), self._flush)
            self._waiting.append((packet, owned))

    def close(self) -> None:
        """Say no more and hear no more."""
        if not self._is_open:
            return
        self._is_open = False
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        while self._waiting:
            _close_all(self._waiting.popleft()[1])
        self._socket.close()

    def _lose(self) -> None:
        self.close()
        self._on_closed()

    def _send(self, packet: bytes, sockets: tuple[Sendable, ...]) -> bool:
        """False: there is no room now."""
        fds = array.array("i", [each.fileno() for each in sockets])
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fds else []
        try:
            self._socket.sendmsg([packet], rights, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionResetError):  # the other side is gone, of which the next read tells
            pass
        except OSError as error:
            _log.error("a message of %d bytes to another process is lost: %s", len(packet), error.strerror)
        _close_all(sockets)
        return True

    def _flush(self) -> None:
        while self._waiting and self._send(*self._waiting[0]):
            self._waiting.popleft()
        if not self._waiting:
            self._loop.remove_writer(self._socket.fileno())

    def _read(self) -> None:
        for _ in range(_MESSAGES_PER_TURN):
            if not self._is_open:
                return
            try:
                packet, fds = self._receive()
            except BlockingIOError:
                return
            except OSError:
                packet, fds = b"", []
            if not packet:
                self._lose()
                return
            self._take(packet, fds)

    def _receive(self) -> tuple[bytes, list[int]]:
        """One packet and its descriptors; not by `socket.recv_fds`, which throws its flags away (Python 3.11)."""
        room = socket.CMSG_LEN(_FDS_PER_MESSAGE * array.array("i").itemsize)
        packet, rights, _, _ = self._socket.recvmsg(self._limits.message_bytes, room, socket.MSG_CMSG_CLOEXEC)
        fds = array.array("i")
        for _, _, data in rights:
            fds.frombytes(data)
        return packet, list(fds)

    def _take(self, packet: bytes, fds: list[int]) -> None:
        try:
            message = decode(packet)
        except ValueError as error:
            _log.error("a message of %d bytes cannot be read (%s) and is left out", len(packet), error)
            message = None
        if message is None:
            for fd in fds:
                os.close(fd)
        else:
            self._on_message(message, fds)


def _close_all(sockets: Sequence[Sendable]) -> None:
    for each in sockets:
        each.close()
