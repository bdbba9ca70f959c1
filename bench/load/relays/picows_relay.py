"""A tunnel on the `picows` library, under uvloop: python -m bench.load.relays.picows_relay PORT PATH"""

from __future__ import annotations

import asyncio
import socket
import sys

import picows
import uvloop


class _Backend(asyncio.Protocol):
    def __init__(self, client: _Client) -> None:
        self._client = client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._client.join(transport)

    def data_received(self, data: bytes) -> None:
        self._client.ws.send(picows.WSMsgType.BINARY, data)

    def connection_lost(self, _error: Exception | None) -> None:
        self._client.ws.disconnect()

    def pause_writing(self) -> None:
        self._client.ws.underlying_transport.pause_reading()

    def resume_writing(self) -> None:
        self._client.ws.underlying_transport.resume_reading()


class _Client(picows.WSListener):
    ws: picows.WSTransport

    def __init__(self, path: str) -> None:
        self._path = path
        self._backend: asyncio.Transport | None = None
        self._early: list[bytes] = []
        self._connecting: asyncio.Task[object] | None = None

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        self.ws = transport
        transport.underlying_transport.set_write_buffer_limits(high=64 * 1024)
        loop = asyncio.get_running_loop()
        backend = socket.socket(socket.AF_UNIX)
        backend.setblocking(False)
        backend.connect(self._path)
        self._connecting = loop.create_task(loop.create_unix_connection(lambda: _Backend(self), sock=backend))

    def join(self, backend: asyncio.Transport) -> None:
        self._backend = backend
        for payload in self._early:
            backend.write(payload)
        self._early.clear()

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if frame.msg_type == picows.WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
        elif self._backend is not None:
            self._backend.write(frame.get_payload_as_bytes())
        else:
            self._early.append(frame.get_payload_as_bytes())

    def on_ws_disconnected(self, _transport: picows.WSTransport) -> None:
        if self._backend is not None:
            self._backend.close()

    def pause_writing(self) -> None:
        if self._backend is not None:
            self._backend.pause_reading()

    def resume_writing(self) -> None:
        if self._backend is not None:
            self._backend.resume_reading()


async def _main(port: int, path: str) -> None:
    server = await picows.ws_create_server(lambda _request: _Client(path), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_main(int(sys.argv[1]), sys.argv[2]))
