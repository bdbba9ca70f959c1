#!/usr/bin/env python3
"""A chat: each line of a client goes to all clients, its writer included.

All clients have to meet in one process, so the route keeps `max-procs` at 1.
"""

import asyncio
import socket
import sys

LONGEST_LINE_BYTES = 4 * 1024 * 1024
MOST_WAITING_BYTES = 4 * LONGEST_LINE_BYTES  # a guest who does not listen loses the seat, not the others their chat

guests: set[asyncio.StreamWriter] = set()


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
        f"run me as: python -m wstunnel --socket /tmp/chat.sock --bin-path {me}"
    )


def say(line: bytes) -> None:
    """Hand a line to everybody; who has too much waiting already is shown the door."""
    for guest in guests:
        if guest.transport.get_write_buffer_size() > MOST_WAITING_BYTES:
            guest.transport.abort()
        else:
            guest.write(line)


async def seat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    guests.add(writer)
    try:
        while (line := await reader.readline()).endswith(b"\n"):
            say(line)
            await writer.drain()
    except (ConnectionError, ValueError):
        pass  # went away, or said more than LONGEST_LINE_BYTES without taking breath
    finally:
        guests.discard(writer)
        writer.close()


async def serve(listener: socket.socket) -> None:
    server = await asyncio.start_server(seat, sock=listener, limit=LONGEST_LINE_BYTES)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(listening_socket()))
