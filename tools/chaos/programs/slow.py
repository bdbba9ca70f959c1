"""A backend that takes its time: each line comes back so many times, with a pause before each.

    slow.py TIMES PAUSE_SECONDS

What it has begun to answer it answers to the end, whether more input can come or not.
"""

import asyncio
import socket
import sys

TIMES, PAUSE_S = int(sys.argv[1]), float(sys.argv[2])
BACKLOG = 4096


async def answer(reader, writer):
    try:
        while line := await reader.readline():
            for _ in range(TIMES):
                await asyncio.sleep(PAUSE_S)
                writer.write(line)
                await writer.drain()
    except ConnectionError:
        pass  # its tunnel was cut
    finally:
        writer.close()


async def serve():
    server = await asyncio.start_server(answer, sock=socket.socket(fileno=0), backlog=BACKLOG)
    await server.serve_forever()


asyncio.run(serve())
