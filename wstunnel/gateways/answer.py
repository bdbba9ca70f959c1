"""A program's answer by CGI, from its first byte to the client: what cgi, scgi and fastcgi share.

Each brings an `Output`, wherever its bytes come from. The order of things:

    async with beside(what sends the request's body):       # only where there is one
        head, first = await read_head(output, limits)
        if head.is_upgrade: check_upgrade(...), and the bytes behind the head begin the pipe
        else: await pass_on(exchange, head, first, output)
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from http import HTTPStatus
from typing import Any, Protocol

from wstunnel.errors import BackendError, CutAnswerError, LimitError, safe
from wstunnel.limits import GatewayLimits
from wstunnel.net.exchange import Exchange
from wstunnel.proto import handshake
from wstunnel.proto.cgi import ResponseHeadReader
from wstunnel.proto.request import Headers, Request, tokens
from wstunnel.proto.response import ResponseHead
from wstunnel.settings import Route

__all__ = [
    "Output",
    "UnansweredError",
    "beside",
    "check_upgrade",
    "collect_body",
    "pass_on",
    "passes_upgrade",
    "read_head",
]

_WEBSOCKET = "websocket"


class UnansweredError(BackendError):
    """A program ended before the head of its answer was whole."""


class Output(Protocol):
    """What a program says."""

    async def read(self) -> bytes:
        """The next bytes, one read at most; none at the end.

        raises  TimeoutError when the program has been silent for read-timeout; any other OSError when the connection
                broke
        """


def passes_upgrade(route: Route, request: Request) -> bool:
    """Does a program hear that the client wants a WebSocket? As in lighttpd, not if there is a body as well.

    raises  PeerError on a handshake that nobody could answer with 101
    """
    if not (route.upgrade and request.wants_websocket and request.body_bytes == 0):
        return False
    handshake.answer(request)
    return True


async def collect_body(exchange: Exchange, limits: GatewayLimits) -> bytes:
    """The whole of a body of unknown length, whose length must be told before it.

    raises  LimitError(413) on one of more than `max_collected_bytes`; what `Exchange.read` raises
    """
    pieces: list[bytes] = []
    seen_bytes, most_bytes = 0, limits.max_collected_bytes
    while piece := await exchange.read():
        seen_bytes += len(piece)
        if seen_bytes > most_bytes:
            raise LimitError(
                "max_collected_bytes of a chunked body",
                most_bytes,
                seen_bytes,
                close_code=1009,
                status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            )
        pieces.append(piece)
    return b"".join(pieces)


@contextlib.asynccontextmanager
async def beside(sending: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run what sends a request's body beside the block, and cancel it at the block's end: an answer may come before
    the whole body was taken, and nobody needs the rest then.

    raises  the error of either side, which ends the other one
    """
    try:
        await asyncio.sleep(0)  # a group wants to run in a task: net/eager.py
    except asyncio.CancelledError:
        sending.close()
        raise
    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(sending)
            yield
            task.cancel()
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def read_head(output: Output, limits: GatewayLimits) -> tuple[ResponseHead, bytes]:
    """The head of the answer, and what has come of its body, or of what an upgraded program says.

    raises  BackendError: 504 on silence for read-timeout, 502 on a head that is none and on a broken connection;
            UnansweredError(502) when the program has ended
    bound   as ResponseHeadReader
    """
    reader = ResponseHeadReader(limits)
    head = None
    while head is None:
        try:
            data = await output.read()
        except TimeoutError as error:
            raise BackendError("no answer within read-timeout", status=HTTPStatus.GATEWAY_TIMEOUT) from error
        except OSError as error:
            why = f"the connection broke before the head of the answer: {error.strerror or error}"
            raise BackendError(why, status=HTTPStatus.BAD_GATEWAY) from error
        if not data:
            raise UnansweredError("the program ended before the head of its answer", status=HTTPStatus.BAD_GATEWAY)
        head = reader.feed(data)
    return head, reader.leftover


async def pass_on(exchange: Exchange, head: ResponseHead, first: bytes, output: Output) -> None:
    """Send an answer that is no upgrade, to the end of its body: as many bytes as its Content-Length says, of which
    more are dropped, or all until the program ends. What would be the body of an answer to HEAD is not listened to.

    in      first   the beginning of the body, as `read_head` has left it
    raises  CutAnswerError when the program broke off: the client is to learn it by the end of its connection; what
            `exchange` raises
    bound   one read
    """
    length = head.body_bytes
    if length == 0:
        await exchange.respond(head.status, head.headers)
        return
    await exchange.start(head.status, head.headers, length)
    if exchange.request.method == "HEAD":
        return
    left_bytes = length
    data = first
    while left_bytes is None or left_bytes > 0:
        data = data or await _read_on(output)
        if not data:
            break
        if left_bytes is not None:
            data = data[:left_bytes]
            left_bytes -= len(data)
        await exchange.write(data)
        data = b""
    if length is None:
        await exchange.finish()
    elif left_bytes:
        raise CutAnswerError(
            f"the program ended {left_bytes} bytes before the end of the {length} that it had announced"
        )


async def _read_on(output: Output) -> bytes:
    try:
        return await output.read()
    except TimeoutError as error:
        raise CutAnswerError("the program was silent for read-timeout in the middle of its answer") from error
    except OSError as error:
        raise CutAnswerError(f"the connection broke in the middle of the answer: {error.strerror or error}") from error


def check_upgrade(request: Request, head: ResponseHead, *, is_allowed: bool) -> Headers:
    """The fields with which the client is told 101, after a program has said so.

    in      is_allowed  whether the route passes handshakes through; what it does not pass cannot be answered with 101
    raises  BackendError(502) on a 101 that nobody has asked for, of another protocol, or for another handshake
    source  RFC 6455 §4.1
    """
    if not (is_allowed and request.wants_websocket):
        raise _no_upgrade("which nobody has asked it for")
    if tokens(head.headers, "upgrade") != [_WEBSOCKET]:
        said = ", ".join(value for name, value in head.headers if name == "upgrade")
        raise _no_upgrade(f'with "Upgrade: {safe(said)}" instead of websocket')
    key = request.first("sec-websocket-key") or ""
    accepts = [value for name, value in head.headers if name == "sec-websocket-accept"]
    if any(accept != handshake.accept_hash(key) for accept in accepts):
        raise _no_upgrade(f'with "Sec-WebSocket-Accept: {safe(", ".join(accepts))}", which does not fit the request')
    return (*head.headers, ("Connection", "Upgrade"))


def _no_upgrade(how: str) -> BackendError:
    return BackendError(f"the program says 101 {how}", status=HTTPStatus.BAD_GATEWAY)
