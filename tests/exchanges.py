"""A stand-in for `wstunnel.net.exchange.Exchange`: one request, its body in given pieces, and what was answered."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from wstunnel.proto.request import Headers, Request

__all__ = ["FakeExchange", "request_of"]


def request_of(**given: Any) -> Request:
    """A GET, but for what is given."""
    usual = {
        "method": "GET",
        "target": "/cgi/a?b",
        "path": "/cgi/a",
        "query": "b",
        "host": "a.example",
        "headers": (("host", "a.example"),),
        "peer": "192.0.2.7:4711",
        "local": "192.0.2.1:8081",
    }
    return Request(**(usual | given))


class FakeExchange:
    """Keeps what it is told, and refuses what HTTP would not survive.

    in      body        pieces of the request's body; an exception among them is raised in its turn
            stalls      after its last piece the body neither goes on nor ends
    """

    def __init__(
        self,
        request: Request | None = None,
        body: Iterable[bytes | Exception] = (),
        *,
        stalls: bool = False,
    ) -> None:
        self.request = request or request_of()
        self.status = 0
        self.headers: Headers = ()
        self.length: int | None = None
        self.sent = b""
        self.is_complete = False
        self.left: list[bytes | Exception] = list(body)
        self._stalls = stalls

    async def read(self) -> bytes:
        await asyncio.sleep(0)
        if self.left:
            piece = self.left.pop(0)
            if isinstance(piece, Exception):
                raise piece
            return piece
        if self._stalls:
            await asyncio.Event().wait()
        return b""

    async def respond(self, status: int, headers: Headers = (), body: bytes = b"", *, close: bool = False) -> None:
        self._begin(status, headers)
        self.sent, self.is_complete = body, True

    async def start(self, status: int, headers: Headers, length: int | None) -> None:
        self._begin(status, headers)
        self.length = length
        self.is_complete = self.request.method == "HEAD" or length == 0

    async def write(self, chunk: bytes) -> None:
        await asyncio.sleep(0)
        if self.request.method == "HEAD":
            return
        assert self.status, "bytes in front of the head"
        assert not self.is_complete, "bytes behind the answer"
        self.sent += chunk
        if self.length is not None:
            assert len(self.sent) <= self.length, "more bytes than promised"
            self.is_complete = len(self.sent) == self.length

    async def finish(self) -> None:
        assert self.status
        assert self.length is None, "an answer of known length ends by itself"
        self.is_complete = True

    def _begin(self, status: int, headers: Headers) -> None:
        assert not self.status, "a second answer"
        self.status, self.headers = status, headers
