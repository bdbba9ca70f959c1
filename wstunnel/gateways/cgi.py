"""The Common Gateway Interface: a script of a folder for every request, and for every WebSocket that it takes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from dataclasses import replace
from http import HTTPStatus

from wstunnel._hub import Hub
from wstunnel.errors import BackendError, CutAnswerError, PeerError
from wstunnel.folders import below
from wstunnel.gateways.answer import (
    UnansweredError,
    beside,
    check_upgrade,
    collect_body,
    pass_on,
    passes_upgrade,
    read_head,
)
from wstunnel.gateways.claim import Upgraded
from wstunnel.gateways.program import SOFTWARE, Forker, ProgramClaim, start_program
from wstunnel.limits import Limits
from wstunnel.net.exchange import Exchange
from wstunnel.net.stream import BackendStream
from wstunnel.proto.cgi import variables
from wstunnel.proto.request import Request
from wstunnel.settings import Route
from wstunnel.supervise.child import ExitStatus
from wstunnel.supervise.scripts import Script, ScriptFolder

__all__ = ["CgiGateway", "scripts_of"]

_log = logging.getLogger("wstunnel")


def scripts_of(route: Route, *, allows_strangers: bool = False) -> ScriptFolder:
    """The scripts of a cgi route; `allows_strangers` as in ScriptFolder."""
    return ScriptFolder(route.alias or route.docroot or "", route.cgi_assign, allows_strangers)


class CgiGateway:
    """Runs the script that a request's path leads to, and passes its answer on.

    in      index  the number of the route, by which `forker` knows its folder
    bound   one read per direction, and a chunked body of `max_collected_bytes`: scripts are told its length
    source  RFC 3875
    """

    def __init__(self, forker: Forker, index: int, route: Route, limits: Limits) -> None:
        self._forker, self._index, self._route, self._limits = forker, index, route, limits
        self._scripts = scripts_of(route)
        self._hub: Hub

    def open(self, hub: Hub) -> None:
        """Have `hub` read what scripts say from now on."""
        self._hub = hub

    def close(self) -> None:
        """Nothing is kept between requests."""

    def finds(self, request: Request) -> Script | None:
        """The script that a request is for; None: the request is none of ours."""
        path: str | None = request.path
        if self._route.alias is not None:
            path = below(request.path, self._route.path or "/")
        return None if path is None else self._scripts.find(path)

    async def serve(self, exchange: Exchange) -> Upgraded | None:
        """The program that has taken a WebSocket handshake, to be joined with its client; None: the request has been
        answered.

        raises  PeerError on a request that is refused; BackendError when there is no answer: 503 when no process can be
                had, 504 when the script is silent for read-timeout, else 502. CutAnswerError when it breaks off in
                the middle of its answer; what `exchange` raises
        The script is ended when this ends, whatever the reason.
        """
        request = exchange.request
        script = self.finds(request)
        if script is None:
            raise PeerError("there is no such script", status=HTTPStatus.NOT_FOUND)
        body, body_bytes = b"", request.body_bytes
        wants_upgrade = passes_upgrade(self._route, request)
        if body_bytes is None:
            body = await collect_body(exchange, self._limits.gateway)
            body_bytes = len(body)
        environment = variables(
            request,
            script_name=request.path[: len(request.path) - len(script.rest)],
            software=SOFTWARE,
            content_length=body_bytes,
            with_upgrade=wants_upgrade,
        )
        sock, claim = await self._start(script, environment)
        try:
            if not (wants_upgrade or body_bytes):
                sock.shutdown(socket.SHUT_WR)
            dialogue = _Dialogue(self._hub, sock, claim, self._route, self._limits)
            upgraded = await dialogue.run(exchange, body, has_body=bool(body_bytes), with_upgrade=wants_upgrade)
        except BaseException:
            claim.release()
            raise
        finally:
            sock.close()
        if upgraded is None:
            claim.release()
        return upgraded

    async def _start(self, script: Script, environment: dict[str, str]) -> tuple[socket.socket, ProgramClaim]:
        path = os.path.join(self._scripts.root, script.file)
        try:
            sock, program = await start_program(self._forker, self._index, environment, path=path, script=script.file)
        except BackendError as error:
            if error.status == HTTPStatus.FORBIDDEN:
                _log.error("%s", error)
                raise PeerError("this script cannot be run", status=error.status) from error
            if error.status == HTTPStatus.NOT_FOUND:
                raise PeerError("there is no such script", status=error.status) from error
            raise
        return sock, ProgramClaim(program, path, self._limits.spawn)


class _Dialogue:
    """One request's conversation with its script.

    in      sock  our end of the script's stream, which stays the caller's. It is read by the hub, over a descriptor of
                  its own: a script that reads its input no more is written to in vain, but heard to its end
    raises  BackendError when there is no descriptor left
    """

    def __init__(self, hub: Hub, sock: socket.socket, claim: ProgramClaim, route: Route, limits: Limits) -> None:
        self._sock, self._claim, self._route, self._limits = sock, claim, route, limits
        self._stream = _stream(hub, sock, read_timeout_s=route.read_timeout_s)
        self._is_begun = False
        self._is_ended = False
        self._status: ExitStatus | None = None

    async def run(self, exchange: Exchange, body: bytes, *, has_body: bool, with_upgrade: bool) -> Upgraded | None:
        """As CgiGateway.serve. `body` is the request's if it was collected."""
        sending = beside(self._send_body(exchange, body)) if has_body else contextlib.nullcontext()
        try:
            async with sending:
                upgraded = await self._answer(exchange, with_upgrade=with_upgrade)
        except BackendError as error:
            self._stream.abort()
            if self._is_begun:
                raise CutAnswerError(f"{self._claim.name}: {error}") from error
            raise BackendError(self._told(error), status=error.status) from error
        except BaseException:
            self._stream.abort()
            raise
        if upgraded is None:
            await self._let_end()
        return upgraded

    async def read(self) -> bytes:
        """As Output."""
        try:
            data = await self._stream.read()
        except ConnectionResetError:  # it has ended, and left some of its input unread
            data = b""
        if not data:
            self._is_ended = True
            self._status = await self._claim.exit_status()
            if self._status is not None and self._status.signal is not None:
                raise ConnectionAbortedError(f"{self._claim.name} was {self._status}")
        return data

    async def _answer(self, exchange: Exchange, *, with_upgrade: bool) -> Upgraded | None:
        head, first = await read_head(self, self._limits.gateway)
        if head.is_upgrade:
            headers = check_upgrade(exchange.request, head, is_allowed=with_upgrade)
            taken = self._stream.release()
            return Upgraded(headers, replace(taken, leftover=first + taken.leftover), self._claim)
        self._is_begun = True
        await pass_on(exchange, head, first, self)
        return None

    async def _send_body(self, exchange: Exchange, body: bytes) -> None:
        """Until its end, or until the script takes no more of it: what it says then is its answer all the same.

        raises  BackendError(504) when the script takes nothing for write-timeout; what `exchange.read` raises
        """
        step = self._limits.relay.read_bytes
        try:
            for at in range(0, len(body), step):
                await self._send(body[at : at + step])
            if not body:
                self._stream.hold_clock()
                while piece := await exchange.read():
                    self._stream.start_clock()
                    await self._send(piece)
                    self._stream.hold_clock()
            self._sock.shutdown(socket.SHUT_WR)
        except _DeafError:
            pass
        self._stream.start_clock()

    async def _send(self, data: bytes) -> None:
        try:
            async with asyncio.timeout(self._route.write_timeout_s or None):
                await asyncio.get_running_loop().sock_sendall(self._sock, data)
        except TimeoutError as error:
            why = "took none of the request's body for write-timeout"
            raise BackendError(why, status=HTTPStatus.GATEWAY_TIMEOUT) from error
        except OSError as error:
            raise _DeafError from error

    async def _let_end(self) -> None:
        """Give a script that has said its answer the time to end by itself."""
        try:
            async with asyncio.timeout(self._limits.spawn.fork_exit_wait_s):
                while not self._is_ended:
                    await self.read()
        except OSError:  # it has not, or not well, which is nobody's concern any more
            pass
        finally:
            self._stream.abort()

    def _told(self, error: BackendError) -> str:
        """What the log says of a script that gave no answer."""
        what = str(error)
        if isinstance(error, UnansweredError) and self._status is not None:
            what = f"{self._status} before the head of its answer"
        words = self._claim.program.last_words
        return f"{self._claim.name}: {what}; its last words: {words}" if words else f"{self._claim.name}: {what}"


class _DeafError(Exception):
    """The script reads its input no more."""


def _stream(hub: Hub, sock: socket.socket, *, read_timeout_s: float) -> BackendStream:
    try:
        fd = os.dup(sock.fileno())
        try:
            return BackendStream(hub, fd, read_timeout_s=read_timeout_s)
        except OSError:
            os.close(fd)
            raise
    except OSError as error:
        raise BackendError(f"a script cannot be heard: {error.strerror}") from error
