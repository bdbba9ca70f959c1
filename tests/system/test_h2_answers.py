"""Answers over HTTP/2 to clients that have not said all of their request yet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, Event, PingAckReceived, ResponseReceived, StreamEnded, StreamReset

from tests.conftest import Run
from wstunnel import Settings, TcpAddress, Tunnel
from wstunnel.limits import HeadLimits, Limits

SHORT_S = 0.05
LONG_S = 30.0
POST = [(":method", "POST"), (":scheme", "http"), (":authority", "tunnel.test"), (":path", "/"), ("te", "trailers")]


class Client:
    """h2 over a socket; `events` are all that have come."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.events: list[Event] = []

    async def until(self, kind: type[Event]) -> Event:
        """Send what is to be sent, and read until this has come."""
        self._writer.write(self.h2.data_to_send())
        while not (found := [event for event in self.events if isinstance(event, kind)]):
            piece = await self._reader.read(65536)
            assert piece, f"the end came before {kind.__name__}: {self.events}"
            self.events += self.h2.receive_data(piece)
        return found[0]

    def close(self) -> None:
        self._writer.close()


def visit(run: Run, folder: Path, linger_s: float, story: Callable[[Client], object]) -> None:
    """Have the client meet a server of files, to whom a POST is 405 before its body comes."""

    async def whole() -> None:
        settings = Settings(
            listen=(TcpAddress("127.0.0.1", 0),),
            document_root=str(folder),
            h2c=True,
            limits=Limits(head=HeadLimits(linger_s=linger_s)),
        )
        async with Tunnel(settings) as tunnel:
            client = Client(*await asyncio.open_connection("127.0.0.1", tunnel.addresses[0].port))
            try:
                await story(client)
            finally:
                client.close()

    run(whole())


@pytest.mark.parametrize("body", [b"", b"x" * 40_000])
def test_who_is_answered_early_may_say_the_rest_of_the_body(run: Run, tmp_path, body):
    """curl takes a RST_STREAM behind the answer for a failure while it has something to send, whatever its code."""

    async def story(client: Client) -> None:
        client.h2.send_headers(1, POST)
        await client.until(StreamEnded)
        assert dict((await client.until(ResponseReceived)).headers)[":status"] == "405"
        assert b"".join(event.data for event in client.events if isinstance(event, DataReceived)) != b""
        for at in range(0, len(body), 10_000):
            client.h2.send_data(1, body[at : at + 10_000])
        client.h2.end_stream(1)
        client.h2.ping(b"all said")
        await client.until(PingAckReceived)
        assert not any(isinstance(event, StreamReset) for event in client.events)

    visit(run, tmp_path, LONG_S, story)


def test_who_never_says_it_is_told_to_stop(run: Run, tmp_path):
    async def story(client: Client) -> None:
        client.h2.send_headers(1, POST)
        await client.until(StreamEnded)
        reset = await client.until(StreamReset)
        assert reset.error_code == ErrorCodes.NO_ERROR

    visit(run, tmp_path, SHORT_S, story)
