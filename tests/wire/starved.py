"""`python -m tests.wire.starved BACKEND_SOCKET SPARE IO`: a Tunnel in a process that runs out of descriptors.

Prints its address, then, for each line it is given on its standard input: the CPU seconds it has used, how many log
lines spoke of descriptors, and how many tunnels have ended. Leaves at EOF.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import sys
from typing import cast

import uvloop

from wstunnel import Route, Settings, TcpAddress, Tunnel
from wstunnel.settings import Io


class Count(logging.Handler):
    """Counts lines that an operator would recognise as `out of descriptors`."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.lines += "descriptor" in record.getMessage() or "Too many open files" in record.getMessage()


async def main(socket_path: str, spare: int, io: Io) -> None:
    count = Count()
    logging.getLogger("wstunnel").addHandler(count)
    settings = Settings(
        listen=(TcpAddress("127.0.0.1", 0),), io=io, routes=(Route(socket=socket_path, ping_interval_s=0.0),)
    )
    async with Tunnel(settings) as tunnel:
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        top = max(map(int, os.listdir("/proc/self/fd")))
        resource.setrlimit(resource.RLIMIT_NOFILE, (top + 1 + spare, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        print(tunnel.addresses[0].port, flush=True)
        while await reader.readline():
            usage = resource.getrusage(resource.RUSAGE_SELF)
            print(usage.ru_utime + usage.ru_stime, count.lines, flush=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), cast(Io, sys.argv[3])))
