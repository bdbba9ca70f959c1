"""The control socket: one line of JSON asks, one line of JSON answers, and the connection ends.

    {"command": "status"}                 -> {"ok": true, ...}
    {"command": "reload" | "drain" | "stop"} -> {"ok": true, ...} or {"ok": false, "error": "..."}

A UNIX socket for the user that wstunnel runs as, and for root. It answers when the process has no descriptor left,
one client at a time: one is kept back for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from wstunnel.errors import StartError, TunnelError, safe
from wstunnel.limits import MasterLimits
from wstunnel.settings import UnixAddress
from wstunnel.sockets import SOCKET_PATH_BYTES, bind_unix, unlink_if_ours

__all__ = ["COMMANDS", "CONTROL_PREFIX", "ControlServer", "OnCommand", "ask"]

COMMANDS = ("status", "reload", "drain", "stop")
CONTROL_PREFIX = "control-"
"""How the name of a control socket begins, unless the operator has chosen it."""

OnCommand = Callable[[str], Awaitable[dict[str, Any]]]
"""Gets one of `COMMANDS`; what it returns is sent as it is, what it raises as the error."""

_log = logging.getLogger("wstunnel")
_DEFAULTS = MasterLimits()
_UCRED = struct.Struct("iII")  # struct ucred: pid, uid, gid (unix(7), SO_PEERCRED)
_ROOT = 0


class _RefusedError(TunnelError):
    """What a client of the control socket is told instead of being served."""


class ControlServer:
    """Serves the control socket at `path` in the running loop, from now until `close`.

    in      path        its folder must exist; a socket that nobody listens on any more is replaced
            on_command  is awaited for each request, for several at the same time if they come so; a TunnelError or
                        OSError of it is the client's answer. It is not cancelled when its client goes away
    raises  StartError when the path cannot be used, or another wstunnel is controlled there
    bound   `control_clients` at once, further ones wait in the backlog; `control_bytes` per request;
            `control_timeout_s` to ask and again to read the answer
    """

    def __init__(
        self, path: str, on_command: OnCommand, limits: MasterLimits, *, exported: Mapping[str, Any] | None = None
    ) -> None:
        self.path = path
        self._on_command = on_command
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._clients: set[asyncio.Task[None]] = set()
        self._is_armed = False
        self._is_closed = self._is_resting = False
        self._is_told = False
        self._pause: asyncio.TimerHandle | None = None
        self._spare: int | None = None
        if exported is None:
            self._listener = _bind(path, limits)
            self._inode: int = os.lstat(path).st_ino
        else:
            self._listener = socket.socket(fileno=exported["fd"])
            self._listener.set_inheritable(False)
            self._inode = exported["inode"]
        self._listener.setblocking(False)
        self._keep_spare()
        self._arm()

    @classmethod
    def adopt(cls, exported: Mapping[str, Any], on_command: OnCommand, limits: MasterLimits) -> ControlServer:
        """The control socket of the image that ran in this process before; who has connected meanwhile is served.

        in      exported   what its `export` said; the descriptor is this object's from now on
        """
        return cls(exported["path"], on_command, limits, exported=exported)

    def export(self) -> dict[str, Any]:
        """What the next image of this process needs to go on with the socket; its descriptor must be made inheritable
        just before the exec. Clients that are being served then are cut off, those in the backlog are not."""
        return {"path": self.path, "fd": self._listener.fileno(), "inode": self._inode}

    async def rest(self) -> None:
        """Serve who has connected already, `control_rest_s` at most, and let the others wait in the backlog."""
        self._is_resting = True
        self._disarm()
        if self._clients:
            await asyncio.wait(self._clients, timeout=self._limits.control_rest_s)

    def go_on(self) -> None:
        """Serve those too, after `rest`."""
        self._is_resting = False
        self._arm()

    def close(self) -> None:
        """Listen no more, cut off who has no answer yet, and unlink the socket if it still is ours."""
        if self._is_closed:
            return
        self._is_closed = True
        self._disarm()
        if self._pause is not None:
            self._pause.cancel()
        for task in self._clients:
            task.cancel()
        unlink_if_ours(self.path, self._inode)
        self._listener.close()
        if self._spare is not None:
            os.close(self._spare)

    # --- accepting

    def _arm(self) -> None:
        if self._is_armed or self._is_closed or self._is_resting or self._pause is not None:
            return
        if len(self._clients) < self._limits.control_clients:
            self._is_armed = True
            self._loop.add_reader(self._listener.fileno(), self._accept)

    def _disarm(self) -> None:
        if self._is_armed:
            self._is_armed = False
            self._loop.remove_reader(self._listener.fileno())

    def _accept(self) -> None:
        try:
            sock = self._next_client()
        except BlockingIOError:
            return
        except OSError as error:
            self._wait_for_descriptors(error)
            return
        self._is_told = False
        sock.setblocking(False)
        task = self._loop.create_task(self._serve(sock))
        self._clients.add(task)
        task.add_done_callback(lambda _: self._served(task, sock))
        if len(self._clients) >= self._limits.control_clients:
            self._disarm()

    def _next_client(self) -> socket.socket:
        """The client that has waited longest, if need be on the descriptor that was kept back for it."""
        try:
            return self._listener.accept()[0]
        except BlockingIOError:
            raise
        except OSError:
            if self._spare is None:
                raise
            os.close(self._spare)
            self._spare = None
            return self._listener.accept()[0]

    def _keep_spare(self) -> None:
        if self._spare is None and not self._is_closed:
            with contextlib.suppress(OSError):  # none to be had now: tried again after the next client
                self._spare = os.open(os.devnull, os.O_RDONLY)

    def _wait_for_descriptors(self, error: OSError) -> None:
        self._disarm()
        if not self._is_told:
            self._is_told = True
            _log.error("control socket %s: cannot accept: %s; its clients wait", self.path, error.strerror)
        self._pause = self._loop.call_later(self._limits.control_pause_s, self._resume)

    def _resume(self) -> None:
        self._pause = None
        self._keep_spare()
        self._arm()

    # --- one client

    async def _serve(self, sock: socket.socket) -> None:
        try:
            command = await self._asked(sock)
        except _RefusedError as refused:
            answer = {"ok": False, "error": str(refused)}
        except OSError:  # gone before it had asked
            return
        else:
            if command is None:
                return
            answer = await self._answer(command)
        with contextlib.suppress(OSError):  # gone, or it does not read: there is nobody to tell
            async with asyncio.timeout(self._limits.control_timeout_s):
                await self._loop.sock_sendall(sock, json.dumps(answer).encode() + b"\n")

    async def _asked(self, sock: socket.socket) -> str | None:
        """The command; None from somebody who only looked whether we are there."""
        uid = _peer_uid(sock)
        if uid not in {os.geteuid(), _ROOT}:
            raise _RefusedError(
                f"this wstunnel takes orders from uid {os.geteuid()} and from root, and you are uid {uid}"
            )
        try:
            async with asyncio.timeout(self._limits.control_timeout_s):
                line = await self._line(sock)
        except TimeoutError as error:
            raise _RefusedError(f"no request came within {self._limits.control_timeout_s:g} s") from error
        return _command_of(line) if line else None

    async def _line(self, sock: socket.socket) -> bytes:
        """What the client says up to its first line end, or to its end."""
        most_bytes = self._limits.control_bytes
        said = b""
        while b"\n" not in said:
            if len(said) > most_bytes:
                raise _RefusedError(f"the request is longer than {most_bytes} bytes")
            some = await self._loop.sock_recv(sock, most_bytes + 1 - len(said))
            if not some:
                break
            said += some
        line, _, more = said.partition(b"\n")
        if more:
            raise _RefusedError("one request for each connection, and nothing behind its line end")
        return line

    async def _answer(self, command: str) -> dict[str, Any]:
        try:
            return await self._on_command(command)
        except (TunnelError, OSError) as error:
            return {"ok": False, "error": str(error)}

    def _served(self, task: asyncio.Task[None], sock: socket.socket) -> None:
        sock.close()
        self._clients.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _log.error("control socket %s: a request could not be served", self.path, exc_info=error)
        self._keep_spare()
        self._arm()


def _bind(path: str, limits: MasterLimits) -> socket.socket:
    try:
        return bind_unix(path, backlog=limits.control_clients)
    except StartError as error:
        if _is_live(path):
            raise StartError(
                f"{UnixAddress(path)}: another wstunnel is controlled there; stop it (wstunnel stop --control {path}) "
                f"or give this one a control socket of its own (--control PATH)"
            ) from error
        raise StartError(f"control socket {error}") from error


def _peer_uid(sock: socket.socket) -> int:
    """Who has connected, as the kernel saw it at that moment."""
    _, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(uid)


def _command_of(line: bytes) -> str:
    """The command in a request.

    raises  _RefusedError with what is wrong, and what would be right
    """
    wanted = f'{{"command": "{COMMANDS[0]}"}}'
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        raise _RefusedError(f"not a line of JSON such as {wanted}: {safe(line)}") from None
    if not isinstance(request, dict) or not isinstance(request.get("command"), str):
        raise _RefusedError(f"not a request such as {wanted}: {safe(line)}")
    strangers = sorted(request.keys() - {"command"})
    if strangers:
        raise _RefusedError(f"unknown in a request: {safe(strangers[0])}; it has a command and nothing else")
    command: str = request["command"]
    if command not in COMMANDS:
        raise _RefusedError(f"unknown command {safe(command)}: the commands are {', '.join(COMMANDS)}")
    return command


# --- the other end


def ask(path: str, command: str, timeout_s: float, limits: MasterLimits = _DEFAULTS) -> dict[str, Any]:
    """What the wstunnel that is controlled at `path` answers; blocks until then.

    out     its answer, `ok` in it being true or false
    raises  StartError when nobody answers there within `timeout_s`, with what the operator may look at
    bound   `control_answer_bytes`
    """
    name = UnixAddress(path)
    deadline_s = time.monotonic() + timeout_s
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        _connect(sock, path, timeout_s, limits)
        try:
            line = _exchange(sock, json.dumps({"command": command}).encode() + b"\n", deadline_s, limits)
        except TimeoutError as error:
            raise StartError(f"{name}: no answer within {timeout_s:g} s; see the log of that wstunnel") from error
        except OSError as error:
            raise StartError(f"{name}: {error.strerror}; see the log of that wstunnel") from error
    if not line:
        raise StartError(f"{name}: it ended the connection without an answer; see the log of that wstunnel")
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict) or not isinstance(answer.get("ok"), bool):
        raise StartError(f"{name}: no wstunnel of this version answers there: {safe(line)}")
    return answer


def _exchange(sock: socket.socket, request: bytes, deadline_s: float, limits: MasterLimits) -> bytes:
    """Send the request; the first line of what comes back, or what there is of it."""
    with contextlib.suppress(BrokenPipeError):  # told off without having been heard: why can still be read
        sock.sendall(request)
    said = bytearray()
    while not said.endswith(b"\n") and len(said) < limits.control_answer_bytes:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        sock.settimeout(left_s)
        try:
            some = sock.recv(limits.message_bytes)
        except ConnectionResetError:  # an end too, of a connection that was not read to its own
            break
        if not some:
            break
        said += some
    return bytes(said)


def _connect(sock: socket.socket, path: str, timeout_s: float, limits: MasterLimits) -> None:
    name = UnixAddress(path)
    length = len(os.fsencode(path))
    if length > SOCKET_PATH_BYTES:
        raise StartError(
            f"{name}: the path is {length} bytes long and a UNIX socket carries at most {SOCKET_PATH_BYTES}"
        )
    deadline_s = time.monotonic() + timeout_s
    # Blocking, it would wait for a full backlog by itself; but a signal (a terminal's new size) ends that wait, and
    # Python then takes the socket for connected.
    sock.setblocking(False)
    try:
        while True:
            try:
                sock.connect(path)
            except BlockingIOError:
                if time.monotonic() >= deadline_s:
                    raise
                time.sleep(min(limits.control_pause_s, timeout_s))
            else:
                return
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StartError(
            f"{name}: there is no such socket: is wstunnel running, and with this --control?{_others(path, limits)}"
        ) from error
    except ConnectionRefusedError as error:
        raise StartError(
            f"{name}: nobody listens there: the wstunnel that did has ended{_others(path, limits)}"
        ) from error
    except PermissionError as error:
        raise StartError(
            f"{name}: you may not connect there; be the user that wstunnel runs as, or root (sudo)"
        ) from error
    except BlockingIOError as error:
        raise StartError(f"{name}: it is busy with others and took no connection within {timeout_s:g} s") from error
    except OSError as error:
        raise StartError(f"{name}: cannot be connected: {error.strerror}") from error


def _others(path: str, limits: MasterLimits) -> str:
    """Which control sockets of the same folder somebody listens on, for somebody who has asked at a wrong one."""
    folder = os.path.dirname(path) or "."
    try:
        names = sorted(name for name in os.listdir(folder) if name.startswith(CONTROL_PREFIX))
    except OSError:
        return ""
    found = [name for name in names if _is_live(os.path.join(folder, name))]
    if not found:
        return ""
    shown = ", ".join(found[: limits.control_named])
    more = len(found) - limits.control_named
    return f"; these are live in {folder}: {shown}" + (f" and {more} more" if more > 0 else "")


def _is_live(path: str) -> bool:
    """Whether somebody listens at `path`; whoever it is sees a connection that ends without a word."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except OSError as error:
            return error.errno == errno.EAGAIN  # a full backlog has an owner
    return True
