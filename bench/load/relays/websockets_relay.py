"""A tunnel on the `websockets` library, under uvloop: python -m bench.load.relays.websockets_relay PORT PATH"""

from __future__ import annotations

import asyncio
import sys
from functools import partial

import uvloop
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

_READ_BYTES = 64 * 1024


async def _forward(client: ServerConnection, writer: asyncio.StreamWriter) -> None:
    async for message in client:
        assert isinstance(message, bytes)
        writer.write(message)
        await writer.drain()


async def _answer(client: ServerConnection, reader: asyncio.StreamReader) -> None:
    while data := await reader.read(_READ_BYTES):
        await client.send(data)


async def _tunnel(client: ServerConnection, *, path: str) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    answering = asyncio.ensure_future(_answer(client, reader))
    try:
        await _forward(client, writer)
    except (ConnectionClosed, ConnectionError):
        pass
    finally:
        answering.cancel()
        writer.close()
        await asyncio.gather(answering, return_exceptions=True)


async def _main(port: int, path: str) -> None:
    tunnel = partial(_tunnel, path=path)
    async with serve(tunnel, "127.0.0.1", port, compression=None, max_size=None, backlog=4096) as server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_main(int(sys.argv[1]), sys.argv[2]))
