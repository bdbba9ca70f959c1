"""HAProxy and Envoy in front: their clients speak HTTP/1.1 or HTTP/2, they speak HTTP/2 to us, with and without TLS.

Several clients share a connection of the front, and a WebSocket is a stream of it (RFC 8441).
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import signal
import socket
import ssl
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
import websockets

from tests.others import command, listening, running
from tests.system.programs import DEADLINE_S, eventually
from tests.system.stand import FILE_BYTES, Stand, standing
from tests.system.test_control import until
from tests.system.test_h2_clients import node

pytestmark = pytest.mark.timeout(240)

MESSAGE = bytes(range(256)) * 4096  # a mebibyte
STALLED_MESSAGES = 32
"""What one sends who reads nothing: more than all buffers on the way can hold."""
MANY = 10
RELOADS = 3


@dataclass(frozen=True)
class Front:
    """One that runs; its clients speak TLS to this port."""

    port: int
    stand: Stand

    def connect(self) -> Any:
        """A client, over HTTP/1.1."""
        return websockets.connect(
            f"wss://127.0.0.1:{self.port}/ws/",
            ssl=ssl.create_default_context(cafile=self.stand.ca),
            subprotocols=["binary"],
            compression=None,
            max_queue=1,
            ping_interval=None,
            open_timeout=DEADLINE_S,
            close_timeout=DEADLINE_S,
        )


class Starts(Protocol):
    def __call__(self, folder: Path, stand: Stand, wire: str) -> AbstractContextManager[Front]: ...


HAPROXY = """
global
    maxconn 200
    nbthread 1 # idle connections to the server belong to a thread
defaults
    mode http
    timeout connect 30s
    timeout client 1h
    timeout server 1h
    http-reuse always
frontend front
    bind fd@{fd} ssl crt {certificate} alpn h2,http/1.1
    default_backend tunnel
backend tunnel
    server tunnel {server}
"""


@contextlib.contextmanager
def haproxy(folder: Path, stand: Stand, wire: str) -> Iterator[Front]:
    executable = command("haproxy", "haproxy")
    secure = f"{stand.secure} ssl verify required ca-file {stand.ca} alpn h2 ws h2"
    with listening() as listener:
        file = folder / "haproxy.cfg"
        text = HAPROXY.format(
            fd=listener.fileno(),
            certificate=stand.certificate.both,
            server=secure if wire == "h2+tls" else f"{stand.clear} proto h2",
        )
        file.write_text(text)
        with running(folder, listener, [executable, "-db", "-f", str(file)]) as port:
            yield Front(port, stand)


# its own windows are of 16 and 24 MiB: one client who reads nothing could use up most of what all have together
HTTP2 = {
    "allow_connect": True,
    "initial_stream_window_size": 65_536,
    "initial_connection_window_size": 16 << 20,
}


def typed(kind: str, **fields: Any) -> dict[str, Any]:
    return {"@type": f"type.googleapis.com/envoy.extensions.{kind}", **fields}


def envoy_config(folder: Path, stand: Stand, wire: str) -> dict[str, Any]:
    """What `envoy -c` reads. Its admin socket tells the port that it has got."""
    files = stand.certificate
    certificate = {"certificate_chain": {"filename": files.cert}, "private_key": {"filename": files.key}}
    tls = typed(
        "transport_sockets.tls.v3.DownstreamTlsContext",
        common_tls_context={"alpn_protocols": ["h2", "http/1.1"], "tls_certificates": [certificate]},
    )
    route = {"match": {"prefix": "/"}, "route": {"cluster": "tunnel", "timeout": "0s"}}
    manager = typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="front",
        upgrade_configs=[{"upgrade_type": "websocket"}],
        http2_protocol_options=HTTP2,
        route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        http_filters=[{"name": "router", "typed_config": typed("filters.http.router.v3.Router")}],
    )
    listener = {
        "name": "front",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [
            {
                "transport_socket": {"name": "tls", "typed_config": tls},
                "filters": [{"name": "http", "typed_config": manager}],
            }
        ],
    }
    host, _, port = (stand.secure if wire == "h2+tls" else stand.clear).rpartition(":")
    endpoint = {"endpoint": {"address": {"socket_address": {"address": host, "port_value": int(port)}}}}
    options = typed(
        "upstreams.http.v3.HttpProtocolOptions",
        explicit_http_config={"http2_protocol_options": HTTP2},
    )
    cluster = {
        "name": "tunnel",
        "load_assignment": {"cluster_name": "tunnel", "endpoints": [{"lb_endpoints": [endpoint]}]},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
    }
    if wire == "h2+tls":
        context = {"alpn_protocols": ["h2"], "validation_context": {"trusted_ca": {"filename": stand.ca}}}
        upstream = typed("transport_sockets.tls.v3.UpstreamTlsContext", common_tls_context=context)
        cluster["transport_socket"] = {"name": "tls", "typed_config": upstream}
    # without it, Envoy drops what a server says last where a client of HTTP/2 has not ended its side
    half_close = {"envoy.reloadable_features.allow_multiplexed_upstream_half_close": True}
    return {
        "admin": {"address": {"pipe": {"path": str(folder / "admin")}}},
        "layered_runtime": {"layers": [{"name": "static", "static_layer": half_close}]},
        "static_resources": {"listeners": [listener], "clusters": [cluster]},
    }


def listeners(admin: Path) -> list[dict[str, Any]]:
    """Envoy's listeners that are bound; none while it starts."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(DEADLINE_S)
        try:
            asking.connect(str(admin))
            asking.sendall(b"GET /listeners?format=json HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n")
            response = http.client.HTTPResponse(asking)
            response.begin()
            found: list[dict[str, Any]] = json.loads(response.read()).get("listener_statuses", [])
        except (FileNotFoundError, ConnectionError):
            return []
        return found


@contextlib.contextmanager
def envoy(folder: Path, stand: Stand, wire: str) -> Iterator[Front]:
    file = folder / "envoy.json"
    file.write_text(json.dumps(envoy_config(folder, stand, wire)))
    executable = str(Path(sys.executable).parent / "envoy")
    options = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]
    with listening() as unused, running(folder, unused, [executable, "-c", str(file), *options]):
        until(lambda: listeners(folder / "admin"), "Envoy listens")
        (listener,) = listeners(folder / "admin")
        yield Front(listener["local_address"]["socket_address"]["port_value"], stand)


@pytest.fixture(scope="module")
def stand(tmp_path_factory) -> Iterator[Stand]:
    with standing(tmp_path_factory.mktemp("stand")) as stand:
        yield stand


every_front = pytest.mark.parametrize("start", [haproxy, envoy])
every_wire = pytest.mark.parametrize("wire", ["h2c", "h2+tls"])


async def echo(client: Any, message: bytes) -> None:
    await client.send(message)
    await hear(client, message)


async def hear(client: Any, message: bytes) -> None:
    got = bytearray()
    while len(got) < len(message):
        got += await client.recv()
    assert got == message


async def visit(front: Front, size: int = 100_000) -> None:
    """A whole tunnel, which ends as it should."""
    async with front.connect() as client:
        await echo(client, MESSAGE[:size])
    assert client.close_code == 1000


def run(story: Any) -> None:
    asyncio.run(asyncio.wait_for(story, DEADLINE_S * 6))


# --- one connection for all


@every_wire
@every_front
def test_clients_of_http_1_share_the_front_s_connection(tmp_path, stand, start: Starts, wire):
    async def story(front: Front) -> None:
        await visit(front)
        await asyncio.gather(*(visit(front) for _ in range(MANY)))

    with start(tmp_path, stand, wire) as front:
        run(story(front))
        lines = stand.tunnels(MANY + 1)
    assert {(line["wire"], line["code"], line["bytes_in"]) for line in lines} == {(wire, "1000", "100000")}
    assert len({line["peer"] for line in lines}) == 1


@every_wire
@pytest.mark.parametrize(
    ("start", "count", "size"),
    [
        (haproxy, MANY, 10_000),  # 2.6 deadlocks, before whatever server, where an echo is larger than its buffers
        (envoy, MANY, 100_000),
        (envoy, 3, 1 << 20),
    ],
)
def test_a_client_s_streams_are_streams_of_the_front_s_connection(tmp_path, stand, start: Starts, wire, count, size):
    with start(tmp_path, stand, wire) as front:
        seen = node("tunnels.mjs", f"https://127.0.0.1:{front.port}/ws/", stand.ca, count, size)
        lines = stand.tunnels(count)
    assert (seen["alpn"], seen["connect"]) == ("h2", True)
    assert [(each["status"], each["same"], each["code"]) for each in seen["tunnels"]] == [(200, True, 1000)] * count
    assert {(line["wire"], line["code"], line["bytes_in"]) for line in lines} == {(wire, "1000", str(size))}


@every_wire
@pytest.mark.parametrize("start", [envoy])  # HAProxy 2.6 itself stops reading a connection for one of its streams
def test_a_client_that_reads_nothing_holds_up_nobody_else(tmp_path, stand, start: Starts, wire):
    async def story(front: Front) -> None:
        async with front.connect() as stalled:

            async def send() -> None:
                for _ in range(STALLED_MESSAGES):
                    await stalled.send(MESSAGE)

            sending = asyncio.create_task(send())
            for _ in range(2):
                await asyncio.gather(*(visit(front, len(MESSAGE)) for _ in range(MANY // 2)))
            assert not sending.done(), "nothing was stalled"
            await hear(stalled, MESSAGE * STALLED_MESSAGES)
            await sending
        assert stalled.close_code == 1000

    with start(tmp_path, stand, wire) as front:
        run(story(front))
        lines = stand.tunnels(MANY + 1)
    assert {line["code"] for line in lines} == {"1000"}
    assert sum(int(line["bytes_out"]) for line in lines) == (STALLED_MESSAGES + MANY) * len(MESSAGE)


@every_front
def test_plain_requests_come_through(tmp_path, stand, start: Starts):
    async def story(front: Front) -> None:
        trust = ssl.create_default_context(cafile=stand.ca)
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port, ssl=trust)
        request = "{} /file HTTP/1.1\r\nHost: tunnel.test\r\n{}\r\n"
        for method, more, status in (("HEAD", "", 200), ("GET", "", 200), ("POST", "Content-Length: 0\r\n", 405)):
            writer.write(request.format(method, more).encode())
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert head.startswith(b"http/1.1 %d" % status), head
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            if method != "HEAD":
                body = await reader.readexactly(length)
            if method == "GET":
                assert body == (stand.files / "file").read_bytes()
            elif method == "HEAD":
                assert length == FILE_BYTES
        writer.close()
        await writer.wait_closed()

    with start(tmp_path, stand, "h2c") as front:
        run(story(front))


# --- restarts


@every_front
def test_a_front_that_is_gone_leaves_no_tunnel_behind_and_the_next_one_is_served(tmp_path, stand, start: Starts):
    async def story(front: Front, leave: contextlib.ExitStack) -> None:
        clients = [await front.connect() for _ in range(3)]
        for client in clients:
            await echo(client, b"before")
        await asyncio.to_thread(leave.close)
        for client in clients:
            with pytest.raises(websockets.ConnectionClosedError):
                await client.recv()

    with contextlib.ExitStack() as leave:
        front = leave.enter_context(start(tmp_path, stand, "h2c"))
        run(story(front, leave))
    assert {line["code"] for line in stand.tunnels(3)} == {"1006"}
    with start(tmp_path, stand, "h2c") as front:
        run(visit(front))


@every_wire
@every_front
def test_a_reload_behind_a_front_fails_nobody(tmp_path, stand, start: Starts, wire):
    """The front is told by GOAWAY: new tunnels come on another connection, those that are open go on."""

    def generations() -> set[int]:
        return {worker["generation"] for worker in stand.service.status()["workers"]}

    async def reload() -> None:
        before = max(await asyncio.to_thread(generations))
        stand.service.process.send_signal(signal.SIGHUP)
        await asyncio.to_thread(until, lambda: max(generations()) > before, "the next workers serve")

    async def story(front: Front) -> int:
        is_over = False
        visits = 0

        async def visitor() -> None:
            nonlocal visits
            while not is_over:
                await visit(front, 1000)
                visits += 1

        visitors = [asyncio.create_task(visitor()) for _ in range(3)]
        old = []
        for _ in range(RELOADS):
            old.append(await front.connect())
            await echo(old[-1], b"before")
            await reload()
            seen = visits
            await eventually(lambda seen=seen: visits > seen + 3 or any(each.done() for each in visitors), "visits")
        is_over = True
        await asyncio.gather(*visitors)
        for client in old:
            await echo(client, b"x" * 100_000)
            await client.close()
            assert client.close_code == 1000
        return visits

    with start(tmp_path, stand, wire) as front:
        visits = 0

        async def counted() -> None:
            nonlocal visits
            visits = await story(front)

        run(counted())
        lines = stand.tunnels(visits + RELOADS)
        until(lambda: len(generations()) == 1, "the old workers are gone")
    assert {line["code"] for line in lines} == {"1000"}
    assert len({line["peer"] for line in lines if line["bytes_in"] == "100006"}) == RELOADS
