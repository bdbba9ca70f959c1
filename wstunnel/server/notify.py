"""What the service manager is told: that we serve, reload, stop, and that the loop still turns.

The protocol is sd_notify(3): one datagram per message. Nobody at the other end is no error, and nothing here waits.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Mapping
from typing import Any

from wstunnel.limits import NotifyLimits

__all__ = ["Notifier"]

_log = logging.getLogger("wstunnel")
_DEFAULTS = NotifyLimits()


class Notifier:
    """Talks to the service manager from the running loop until `close`; silent without an address.

    in      address     NOTIFY_SOCKET: a path, or @NAME in the abstract namespace
            watchdog_s  time after which the manager takes a silent service for dead; it hears of us twice in that
    bound   one message of each kind waits while the manager's socket is full, the latest
    """

    def __init__(self, address: str | None, watchdog_s: float | None = None, limits: NotifyLimits = _DEFAULTS) -> None:
        self._loop = asyncio.get_running_loop()
        self._limits = limits
        self._said_address, self._watchdog_s = address, watchdog_s
        self._address = _socket_address(address)
        self._socket: socket.socket | None = None
        self._waiting: dict[str, bytes] = {}
        self._retry: asyncio.TimerHandle | None = None
        self._beat: asyncio.TimerHandle | None = None
        self._is_deaf_logged = False
        if self._address is not None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
            if watchdog_s is not None:
                self._alive(watchdog_s / 2)

    def ready(self, status: str = "") -> None:
        """Clients are served: after the start, and after a reload, whether it succeeded or not."""
        self._say("READY", "READY=1", *self._status(status))

    def reloading(self, status: str = "") -> None:
        """The configuration is being read again; `ready` follows."""
        moment = f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"
        self._say("RELOADING", "RELOADING=1", moment, *self._status(status))

    def stopping(self, status: str = "") -> None:
        """The end has begun."""
        self._say("STOPPING", "STOPPING=1", *self._status(status))

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._say("STATUS", *self._status(text))

    def export(self) -> dict[str, Any]:
        """What the next image of this process needs to go on talking."""
        return {"address": self._said_address, "watchdog_s": self._watchdog_s}

    @classmethod
    def adopt(cls, exported: Mapping[str, Any], limits: NotifyLimits = _DEFAULTS) -> Notifier:
        """Go on where the image before has stopped.

        in      exported   what its `export` said
        """
        return cls(exported["address"], exported["watchdog_s"], limits)

    def close(self) -> None:
        """Say nothing any more."""
        for timer in (self._retry, self._beat):
            if timer is not None:
                timer.cancel()
        self._retry = self._beat = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _status(self, text: str) -> list[str]:
        line = "".join(char if char.isprintable() else " " for char in text)
        return [f"STATUS={line[: self._limits.status_chars]}"] if text else []

    def _alive(self, every_s: float) -> None:
        self._beat = self._loop.call_later(every_s, self._alive, every_s)
        self._send(b"WATCHDOG=1")

    def _say(self, kind: str, *lines: str) -> None:
        if self._socket is None:
            return
        self._waiting.pop(kind, None)  # what is said anew is said last
        self._waiting[kind] = "\n".join(lines).encode("utf-8", "replace")
        if self._retry is None:
            self._send_waiting()

    def _send_waiting(self) -> None:
        self._retry = None
        while self._waiting:
            kind = next(iter(self._waiting))
            if not self._send(self._waiting[kind]):
                self._retry = self._loop.call_later(self._limits.retry_s, self._send_waiting)
                return
            del self._waiting[kind]

    def _send(self, message: bytes) -> bool:
        """Whether the message is off our hands: taken, or there is nobody to take it."""
        if self._socket is None or self._address is None:
            return True
        try:
            self._socket.sendto(message, self._address)
        except BlockingIOError:
            return False
        except OSError as error:
            if not self._is_deaf_logged:
                self._is_deaf_logged = True
                _log.warning("the service manager cannot be told anything: %s", error)
        return True


def _socket_address(address: str | None) -> bytes | None:
    """The address as the kernel takes it; one of a kind that we do not know is none."""
    if address is None:
        return None
    if address.startswith("@"):
        return b"\0" + address[1:].encode("utf-8", "surrogateescape")
    if address.startswith("/"):
        return address.encode("utf-8", "surrogateescape")
    _log.warning("NOTIFY_SOCKET: %s is no path and no @name; the service manager is not told anything", address)
    return None
