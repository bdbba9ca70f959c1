"""Chromium through what stands in front of a tunnel, ours and other people's, and noVNC in it."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.test_page import BLANK_PAGE, EXAMPLES, counts_to_five
from tests.others import command, listening, running, unpacked
from tests.system.test_control import Service

NOVNC = "@novnc/novnc@1.7.0"
NOVNC_SHA512 = "ucEJOx4T2avIRCleodk7YobZj5O2Ga2AeLfQ69A/yjG9HHba2+PDgwSkN3FttrmG+70ZGx21sElNFouK13RzyA=="


# --- ours, from lighttpd.conf


def ours(folder: Path, name: str, text: str) -> Service:
    """`python -m wstunnel -f FOLDER/NAME/lighttpd-NAME.conf`."""
    (folder / name).mkdir()
    return Service(folder / name, text, name=f"lighttpd-{name}.conf")


def tunnel_conf(document_root: Path, backend: str, more: str = "") -> str:
    return f"""
        server.document-root = "{document_root}"  # where the page is
        server.bind = "127.0.0.1"
        server.port = 0

        server.modules += ("mod_wstunnel")
        wstunnel.server = (
          "/ws/" => (
            (
              {backend}
            )
          )
        )
        {more}
        """


def proxy_conf(document_root: Path, port: int) -> str:
    return f"""
        server.document-root = "{document_root}"  # nothing of it is served: the proxy takes all
        server.bind = "127.0.0.1"
        server.port = 0

        server.modules += ("mod_proxy")
        proxy.server = ( "/" => (( "host" => "127.0.0.1", "port" => "{port}" )))
        proxy.header = ( "upgrade" => "enable" )
        """


@contextlib.contextmanager
def proxy(folder: Path, port: int) -> Iterator[int]:
    """Our own proxy in front of this port."""
    with ours(folder, "proxy", proxy_conf(folder, port)) as service:
        yield service.address.port


# --- other people's


HAPROXY = """
global
    maxconn 100
defaults
    mode http
    timeout connect 30s
    timeout client 30s
    timeout server 30s
    timeout tunnel 1h
frontend front
    bind fd@{fd}
    default_backend tunnel
backend tunnel
    server tunnel 127.0.0.1:{port}
"""


@contextlib.contextmanager
def haproxy(folder: Path, port: int) -> Iterator[int]:
    """HAProxy in front of this port: `mode http` passes an Upgrade through, and asks for nothing more."""
    executable = command("haproxy", "haproxy")
    with listening() as listener:
        file = folder / "haproxy.cfg"
        file.write_text(HAPROXY.format(fd=listener.fileno(), port=port))
        with running(folder, listener, [executable, "-db", "-f", str(file)]) as front:
            yield front


NGINX = """
daemon off;
worker_processes 1;
error_log stderr;
pid {folder}/nginx.pid;
events {{ worker_connections 100; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    map $http_upgrade $wish {{ default upgrade; "" close; }}
    server {{
        listen 127.0.0.1:{front};
        location / {{
            proxy_pass http://127.0.0.1:{port};
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $wish;
        }}
    }}
}}
"""


@contextlib.contextmanager
def nginx(folder: Path, port: int) -> Iterator[int]:
    """nginx in front of this port: the Upgrade has to be passed on by hand, and so has the Host that origins need."""
    executable = command("nginx", "nginx-light")
    with listening() as listener:
        file = folder / "nginx.conf"
        file.write_text(NGINX.format(folder=folder, front=listener.getsockname()[1], port=port))
        argv = [executable, "-e", "stderr", "-p", str(folder), "-c", str(file)]
        with running(folder, listener, argv, NGINX=f"{listener.fileno()};") as front:
            yield front


@pytest.mark.parametrize("front", [proxy, haproxy, nginx])
def test_the_page_counts_to_five_through_a_front_and_a_tunnel(page, tmp_path, front):
    backend = f""""socket" => "{tmp_path}/echo.sock",
              "bin-path" => "{EXAMPLES}/echo.pl",
              "max-procs" => 1"""
    with (
        ours(tmp_path, "wstunnel", tunnel_conf(EXAMPLES / "www", backend)) as tunnel,
        front(tmp_path, tunnel.address.port) as port,
    ):
        counts_to_five(page, f"http://127.0.0.1:{port}/")
        assert page.complaints == []


# --- noVNC

SCREEN_NAME = "four pixels: größer geht es nicht".encode()
PIXELS = bytes([255, 0, 0, 0, 0, 255, 0, 0, 0, 0, 255, 0, 128, 129, 254, 0])
KEY = 0x71


class Screen(socketserver.StreamRequestHandler):
    """As little of an RFB server as there can be: no password, one picture, and its end at the first key."""

    def handle(self) -> None:
        self.say(b"RFB 003.008\n")
        self.hear(12)
        self.say(b"\x01\x01")  # one way in, which is: none needed
        self.hear(1)
        self.say(bytes(4))
        self.hear(1)
        layout = struct.pack(">HHBBBBHHHBBB3xI", 2, 2, 32, 24, 0, 1, 255, 255, 255, 0, 8, 16, len(SCREEN_NAME))
        self.say(layout + SCREEN_NAME)
        is_drawn = False
        while kind := self.rfile.read(1):
            match kind[0]:
                case 0:
                    self.rfile.read(19)
                case 2:
                    self.rfile.read(4 * struct.unpack(">xH", self.rfile.read(3))[0])
                case 3:
                    self.rfile.read(9)
                    if not is_drawn:
                        self.say(struct.pack(">BxHHHHHi", 0, 1, 0, 0, 2, 2, 0) + PIXELS)
                        is_drawn = True
                case 4:
                    self.hear(7)
                    self.connection.shutdown(socket.SHUT_WR)
                    self.rfile.read()
                case _:
                    self.server.heard.append(kind)
                    return

    def say(self, data: bytes) -> None:
        self.wfile.write(data)

    def hear(self, count: int) -> None:
        self.server.heard.append(self.rfile.read(count))


@pytest.fixture
def screen() -> Iterator[socketserver.TCPServer]:
    """A Screen; `heard` is what its client said that matters."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Screen) as server:
        server.heard = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def novnc(tmp_path_factory) -> Path:
    """A document root with noVNC as its authors publish it, and a blank page."""
    folder = tmp_path_factory.mktemp("novnc")
    package = unpacked(NOVNC, NOVNC_SHA512, folder)
    (package / "index.html").write_bytes(BLANK_PAGE)
    return package


OPEN = """async (url) => {
    const { default: RFB } = await import("/core/rfb.js");
    const seen = window.seen = { name: null, end: null };
    const rfb = window.rfb = new RFB(document.body, url);
    rfb.addEventListener("desktopname", (event) => { seen.name = event.detail.name; });
    rfb.addEventListener("disconnect", (event) => { seen.end = event.detail.clean; });
}"""
# Red, green and blue of each pixel, once the last of them has been drawn.
DRAWN = """() => {
    const canvas = document.querySelector("canvas");
    if (!canvas || canvas.width !== 2 || canvas.height !== 2) return null;
    const rgba = Array.from(canvas.getContext("2d").getImageData(0, 0, 2, 2).data);
    return rgba[14] ? rgba.filter((_, at) => at % 4 !== 3) : null;
}"""


@contextlib.contextmanager
def nothing(_folder: Path, port: int) -> Iterator[int]:
    """No front: the tunnel itself."""
    yield port


@pytest.mark.parametrize("front", [nothing, proxy])
def test_novnc_shows_a_screen_and_types(page, tmp_path, novnc, screen, front):
    backend = f'"host" => "127.0.0.1", "port" => "{screen.server_address[1]}"'
    conf = tunnel_conf(novnc, backend, 'wstunnel.frame-type = "binary"')
    with ours(tmp_path, "wstunnel", conf) as tunnel, front(tmp_path, tunnel.address.port) as port:
        page.goto(f"http://127.0.0.1:{port}/")
        page.evaluate(OPEN, f"ws://127.0.0.1:{port}/ws/")

        drawn = page.wait_for_function(DRAWN).json_value()
        assert drawn == [byte for at, byte in enumerate(PIXELS) if at % 4 != 3]
        assert page.evaluate("seen.name") == SCREEN_NAME.decode()

        page.evaluate("key => rfb.sendKey(key, 'KeyQ', true)", KEY)
        page.wait_for_function("seen.end !== null")
        assert page.evaluate("seen.end") is True
        assert screen.heard == [b"RFB 003.008\n", b"\x01", b"\x01", struct.pack(">BxxI", 1, KEY)]
