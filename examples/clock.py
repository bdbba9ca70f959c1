#!/usr/bin/env python3
"""A clock that pushes: the time at once, and again at the start of each second, until the client goes."""

import asyncio
import socket
import sys
import time

READ_BYTES = 4096


def listening_socket() -> socket.socket:
    """The socket on standard input, or the end of the program with one sentence."""
    try:
        given = socket.socket(fileno=0)
        if given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return given
    except OSError:
        pass
    me = sys.argv[0]
    sys.exit(
        f"{me}: standard input is not a listening socket; "
        f"run me as: python -m wstunnel --socket /tmp/clock.sock --bin-path {me}"
    )


async def tell_time(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    second = int(time.time())
    try:
        while True:
            writer.write(time.strftime("%Y-%m-%d %H:%M:%S\n", time.localtime(second)).encode())
            await writer.drain()
            try:
                async with asyncio.timeout(second + 1 - time.time()):
                    while await reader.read(READ_BYTES):
                        pass  # whatever a client says to a clock
                return
            except TimeoutError:
                second = max(second + 1, int(time.time()))  # timers may be a hair early; no second is told twice
    except ConnectionError:
        pass  # the client went away while we wrote
    finally:
        writer.close()


async def serve(listener: socket.socket) -> None:
    server = await asyncio.start_server(tell_time, sock=listener)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(listening_socket()))
