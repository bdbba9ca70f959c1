"""Clients that nobody here wrote, over TLS and HTTP/2, against the real program: tunnels and plain requests."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import niquests
import picows
import pytest
import websockets

from tests.others import command, unpacked
from tests.system.programs import DEADLINE_S
from tests.system.stand import FILE_BYTES, Stand, standing

UNDICI = "undici@7.30.2"
UNDICI_SHA512 = "mLyPQnHwUxaM/rideoK/+KL8DaAJLRl4aBCfmX444aCSLnIaomqPLtNRe2jdCYcsk5wZzXrDIQC8ZeYNRAYyIA=="
SCRIPTS = Path(__file__).parent / "node"
MESSAGE = bytes(range(256)) * 4096  # a mebibyte
HTTP_2 = 20


@pytest.fixture(scope="module")
def stand(tmp_path_factory) -> Iterator[Stand]:
    with standing(tmp_path_factory.mktemp("stand")) as stand:
        yield stand


# --- tunnels over streams


def node(script: str, *arguments: object) -> Any:
    """What the script has printed."""
    argv = [command("node", "nodejs"), "--no-warnings", str(SCRIPTS / script), *map(str, arguments)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE_S * 2, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


ECHOED = {"status": 200, "protocol": "binary", "same": True, "code": 1000, "reset": 0}


@pytest.mark.parametrize("wire", ["h2c", "h2+tls"])
@pytest.mark.parametrize(("count", "size"), [(100, 10_000), (3, 1 << 20)])
def test_node_has_many_tunnels_on_one_connection(stand, wire, count, size):
    where, ca = (f"https://{stand.secure}", stand.ca) if wire == "h2+tls" else (f"http://{stand.clear}", "-")
    seen = node("tunnels.mjs", f"{where}/ws/", ca, count, size)
    assert (seen["alpn"], seen["connect"]) == ("h2" if wire == "h2+tls" else "h2c", True)
    assert seen["tunnels"] == [ECHOED] * count
    lines = stand.tunnels(count)
    assert {(line["wire"], line["code"], line["closed_by"], line["bytes_in"]) for line in lines} == {
        (wire, "1000", "client", str(size))
    }
    assert len({line["peer"] for line in lines}) == 1


@pytest.fixture(scope="module")
def undici(tmp_path_factory) -> Path:
    return unpacked(UNDICI, UNDICI_SHA512, tmp_path_factory.mktemp("undici"))


def test_undici_which_checks_an_accept_has_several_on_one_connection(stand, undici):
    seen = node("undici.mjs", undici, f"wss://{stand.secure}/ws/", stand.ca, 5, 100_000)
    assert seen == [{"protocol": "binary", "same": True, "error": None, "code": 1000, "clean": True}] * 5
    lines = stand.tunnels(5)
    assert {(line["wire"], line["code"]) for line in lines} == {("h2+tls", "1000")}
    assert len({line["peer"] for line in lines}) == 1


@pytest.mark.parametrize("wire", ["h2c", "h2+tls"])
def test_niquests_which_wants_an_accept_gets_one(stand, wire):
    """It cuts no message into frames of HTTP/2, so these are small.

    Its CLOSE has the code 0, which nobody may send: so the tunnel ends with 1002, and not with 1000.
    """
    url = f"wss+rfc8441://{stand.secure}" if wire == "h2+tls" else f"ws+rfc8441://{stand.clear}"
    with niquests.Session(disable_http1=wire == "h2c") as session:
        response = session.get(f"{url}/ws/", headers={"Sec-WebSocket-Protocol": "binary"}, verify=stand.ca)
        assert (response.status_code, response.http_version) == (200, HTTP_2)
        assert "sec-websocket-accept" in response.headers
        tunnel = response.extension
        for at in range(10):
            tunnel.send_payload(MESSAGE[at : at + 10_000])
            got = b""
            while len(got) < 10_000:
                got += tunnel.next_payload()
            assert got == MESSAGE[at : at + 10_000]
        tunnel.close()
    (line,) = stand.tunnels(1)
    assert (line["wire"], line["code"], line["bytes_in"]) == (wire, "1002", "100000")


# --- tunnels over TLS alone


def test_websockets_speaks_wss(stand):
    async def story() -> None:
        trust = ssl.create_default_context(cafile=stand.ca)
        url = f"wss://{stand.secure}/ws/"
        async with websockets.connect(url, ssl=trust, subprotocols=["binary"], compression=None) as client:
            await client.send(MESSAGE)
            got = b""
            while len(got) < len(MESSAGE):
                got += await client.recv()
            assert got == MESSAGE
        assert client.close_code == 1000

    asyncio.run(asyncio.wait_for(story(), DEADLINE_S))
    (line,) = stand.tunnels(1)
    assert (line["wire"], line["code"], line["bytes_in"]) == ("http/1.1+tls", "1000", str(len(MESSAGE)))


class Listener(picows.WSListener):
    def __init__(self) -> None:
        self.got = b""
        self.code: int | None = None

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        transport.send(picows.WSMsgType.BINARY, MESSAGE)

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if frame.msg_type == picows.WSMsgType.CLOSE:
            self.code = int(frame.get_close_code())
            transport.disconnect()
            return
        self.got += frame.get_payload_as_bytes()
        if len(self.got) == len(MESSAGE):
            transport.send_close(picows.WSCloseCode.OK)


def test_picows_speaks_wss(stand):
    async def story() -> Listener:
        trust = ssl.create_default_context(cafile=stand.ca)
        transport, listener = await picows.ws_connect(
            Listener,
            f"wss://{stand.secure}/ws/",
            ssl_context=trust,
            extra_headers={"Sec-WebSocket-Protocol": "binary"},
        )
        await transport.wait_disconnected()
        return listener

    listener = asyncio.run(asyncio.wait_for(story(), DEADLINE_S))
    assert (listener.got == MESSAGE, listener.code) == (True, 1000)
    (line,) = stand.tunnels(1)
    assert (line["wire"], line["code"]) == ("http/1.1+tls", "1000")


# --- plain requests


def curl(stand: Stand, wire: str, path: str, *options: str) -> tuple[bytes, dict[str, Any]]:
    """What curl has got, and what it says about it."""
    if wire == "h2+tls":
        where = ["--http2", "--cacert", stand.ca, f"https://{stand.secure}{path}"]
    else:
        where = ["--http2-prior-knowledge", f"http://{stand.clear}{path}"]
    argv = [command("curl", "curl"), "--silent", "--show-error", "--write-out", "%{stderr}%{json}", *options, *where]
    done = subprocess.run(argv, capture_output=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(done.stderr)


@pytest.mark.parametrize("wire", ["h2c", "h2+tls"])
def test_curl_gets_a_file_its_head_and_refusals(stand, wire):
    body, said = curl(stand, wire, "/file")
    assert (said["http_version"], said["response_code"]) == ("2", 200)
    assert body == (stand.files / "file").read_bytes()

    head, said = curl(stand, wire, "/file", "--head")
    assert (said["http_version"], said["response_code"]) == ("2", 200)
    assert f"content-length: {FILE_BYTES}\r\n".encode() in head

    part, said = curl(stand, wire, "/file", "--range", "1000-1999")
    assert (said["response_code"], part) == (206, body[1000:2000])

    assert curl(stand, wire, "/nothing")[1]["response_code"] == 404
    assert curl(stand, wire, "/file", "--data", "x=1")[1]["response_code"] == 405


@pytest.mark.parametrize("wire", ["h2c", "h2+tls"])
@pytest.mark.parametrize(("clients", "streams", "requests", "size"), [(10, 100, 5000, 32), (5, 20, 200, FILE_BYTES)])
def test_h2load_has_no_request_that_fails(stand, wire, clients, streams, requests, size):
    (stand.files / "small").write_bytes(b"." * 32)
    name = "small" if size == 32 else "file"
    where = f"https://{stand.secure}/{name}" if wire == "h2+tls" else f"http://{stand.clear}/{name}"
    argv = [command("h2load", "nghttp2-client"), "-n", str(requests), "-c", str(clients), "-m", str(streams), where]
    said = subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE_S * 4, check=True).stdout
    assert f"{requests} succeeded, 0 failed, 0 errored, 0 timeout" in said
    assert f"status codes: {requests} 2xx" in said
    assert int(re.search(r"\((\d+)\) data", said)[1]) == requests * size


def test_nghttp_sees_the_settings_that_were_meant(stand):
    argv = [command("nghttp", "nghttp2-client"), "-nv", "--no-verify-peer", f"https://{stand.secure}/file"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    frames = re.findall(r"recv SETTINGS frame .*\n((?: +.*\n)*)", done.stdout)
    settings = dict(re.findall(r"\[SETTINGS_(\w+)\(0x\d+\):(\d+)\]", "".join(frames)))
    assert (settings["ENABLE_CONNECT_PROTOCOL"], settings["MAX_CONCURRENT_STREAMS"]) == ("1", "128")
