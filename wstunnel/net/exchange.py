"""One request and its answer, whatever wire it came by: what routes and gateways know of a client."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol

from wstunnel._h2 import H2Leg
from wstunnel._hub import HubTransport
from wstunnel.errors import TunnelError, safe
from wstunnel.proto.request import Headers, Request

__all__ = ["BODILESS", "TEXT", "Agreement", "Exchange", "Taken", "log_failure", "log_silence", "refusal_body"]

_log = logging.getLogger("wstunnel")

BODILESS = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})
TEXT = ("Content-Type", "text/plain")
"""The field that goes with a `refusal_body`."""


@dataclass(slots=True)
class Taken:
    """A connection after its 101: reading is paused, and nothing is left to write.

    The taker calls `transport.set_protocol` before its next `await`, sets the write-buffer limits it wants (they
    are zero here), and then `resume_reading`. The end of the connection is its to watch; `on_closed` is not called.
    A stream of HTTP/2 is a leg already.
    """

    transport: asyncio.Transport | HubTransport | H2Leg
    leftover: bytes
    """What the client sent behind its request: frames, one read at most."""
    is_at_eof: bool
    """Has the client ended its side already? Its `eof_received` may not come again."""


class Agreement(Protocol):
    """The answer that makes a tunnel, or a pipe, of a request."""

    @property
    def head(self) -> bytes:
        """The whole 101, as HTTP/1.1 has it."""

    @property
    def headers(self) -> Headers:
        """Its fields, Upgrade and Connection included."""


class Exchange(Protocol):
    """One request and its answer, for the coroutine that serves it.

    A client that goes away before its answer is complete cancels the coroutine; one that only ends its own side
    (half-close) still gets the answer. A PeerError that leaves the coroutine is answered with its status and
    fields, and not logged here; any other exception, or no answer, is logged and becomes a 500, or where the
    answer had begun the end of the connection, or of its stream.
    """

    request: Request

    @property
    def connection(self) -> Any:
        """What the server counts as one connection: it is no longer, once taken over."""

    @property
    def is_started(self) -> bool:
        """Has an answer begun, so that no other one can be given?"""

    async def read(self) -> bytes:
        """The next piece of the request's body, without its chunks; b"" at its end, and when there is none.

        raises  PeerError(400) on a malformed body or when the client ends within it, PeerError(408) when it sends
                nothing for `body_stall_s`
        bound   one read, or one window: the client does not send more while a piece waits
        A client that waits for `100 Continue` gets it at the first call, unless an answer has begun by then.
        """

    async def respond(
        self, status: int, headers: Headers | bytes = (), body: bytes = b"", *, close: bool = False
    ) -> None:
        """Send a whole answer, with Content-Length, Date and Connection added. HEAD, 204 and 304 get no body.

        in      headers  or lines that are well-formed already, each with its CRLF; a Date among those is kept
                close  end the connection afterwards; after a refused upgrade it always ends (RFC 9931)
        raises  ValueError on what may not stand in a head; RuntimeError when an answer had begun;
                ConnectionResetError when the cancellation was not heeded
        bound   returns once no more than `write_high_bytes` wait for the client
        """

    async def start(self, status: int, headers: Headers | bytes, length: int | None, *, close: bool = False) -> None:
        """Send the head of an answer of `length` bytes, which `write` brings. For HEAD that is all of it.

        in      headers  as in `respond`
                length  None: nobody knows; `finish` ends it
        """

    async def write(self, chunk: bytes) -> None:
        """Send the next bytes of the answer, and let others have their turn. Where there is no body, for HEAD
        and some statuses, nothing is sent.

        raises  RuntimeError on more bytes than were announced; ConnectionResetError as above
        bound   as `respond`
        """

    async def finish(self) -> None:
        """End an answer whose length was not known; nothing happens to any other."""

    async def take_over(self, agreement: Agreement) -> Taken:
        """Answer with this 101, wait until it has left, and let go of the connection."""

    def refuse(self, status: int, text: str, headers: Headers = (), *, close: bool = False) -> None:
        """Send a whole answer with `text` for its body, without waiting: for what ends the coroutine.

        in      text  ASCII; a peer's bytes in it are escaped
        """


def refusal_body(text: str) -> bytes:
    """What a client reads of a refusal."""
    return f"{text}\n".encode("ascii")


def log_failure(request: Request, error: BaseException) -> None:
    """A coroutine has ended with an error; if nobody foresaw it, its traceback is told too."""
    _log.error(
        "%s: %s %s failed: %s",
        request.peer,
        request.method,
        safe(request.target),
        error,
        exc_info=None if isinstance(error, TunnelError) else error,
    )


def log_silence(request: Request) -> None:
    """A coroutine has ended without an answer."""
    _log.error("%s: no answer to %s", request.peer, safe(request.target))
