"""The servers under test: how each is found, set up and started."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pwd
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.load.certificate import Certificate
from bench.load.processes import descriptors
from bench.load.programs import ROOT, Programs

__all__ = ["NAMES", "Peer", "Place", "peer_named"]

_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/sbin"))
_PIP = "pip install --no-deps -r bench/load/requirements.txt"
_ENDLESS = 1_000_000_000  # requests on one connection
_FORKS = "has a process of its own for every tunnel"


@dataclass(frozen=True)
class Place:
    """What a peer is given to work with."""

    folder: str  # of its own, short enough for UNIX sockets
    port: int  # to listen at, on 127.0.0.1
    backend: str  # the path of the UNIX socket that the backend listens at
    stdio_backend: Sequence[str]  # the same backend for those who start a program per tunnel
    programs: Programs
    connections: int  # that it must be able to have
    takes_h2c: bool = False  # HTTP/2 without TLS has to be understood, besides HTTP/1.1
    certificate: Certificate | None = None  # TLS, with both, if there is one


@dataclass(frozen=True)
class Peer:
    """One server under test."""

    name: str
    what: str
    command: Callable[[Place], list[str]]
    missing: Callable[[], str | None]  # what to install, if that is needed
    version: Callable[[], str]
    is_raw: bool = False  # relays bytes and knows nothing of WebSocket
    is_http: bool = False  # its backend speaks HTTP, and WebSocket itself
    is_guest: bool = False  # runs in the rows that name it, and in no others
    most_connections: int | None = None
    leaves_out: str = ""  # a scenario
    why: str = ""  # it does so, and has no more connections

    def unfit(self, scenario: str, connections: int) -> str | None:
        """Why it does not run there, if it does not."""
        if scenario == self.leaves_out:
            return f"not in these rows: it {self.why}"
        if self.most_connections is not None and connections > self.most_connections:
            return f"not with more than {self.most_connections} connections: it {self.why}"
        return None


def _needs(command: str, remedy: str) -> Callable[[], str | None]:
    return lambda: None if shutil.which(command, path=_PATH) else remedy


def _needs_module(module: str, remedy: str) -> Callable[[], str | None]:
    return lambda: None if importlib.util.find_spec(module) else remedy


def _where(command: str) -> str:
    found = shutil.which(command, path=_PATH)
    assert found is not None, command
    return found


def _says(command: str, *arguments: str) -> Callable[[], str]:
    """The first line that a command says about its version."""

    def ask() -> str:
        said = subprocess.run([_where(command), *arguments], capture_output=True, text=True, check=False)
        return (said.stdout or said.stderr).strip().partition("\n")[0]

    return ask


def _distribution(name: str) -> Callable[[], str]:
    return lambda: f"{name} {importlib.metadata.version(name)}"


def _write(path: str, text: str) -> str:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return path


def _lighttpd(place: Place) -> list[str]:
    modules, secure = '"mod_wstunnel"', ""
    if place.certificate is not None:
        modules = f'"mod_openssl", {modules}'
        secure = f"""
        ssl.engine = "enable"
        ssl.pemfile = "{place.certificate.chain}"
        ssl.privkey = "{place.certificate.key}"
        """
    configuration = f"""
        server.document-root = "{place.folder}"
        server.bind = "127.0.0.1"
        server.port = {place.port}
        server.listen-backlog = 4096
        server.max-fds = {descriptors()}
        server.max-connections = {place.connections + 16}
        server.errorlog = "{place.folder}/error.log"
        server.modules = ( {modules} )
        server.feature-flags = ( "server.h2proto" => "enable", "server.h2c" => "enable" )
        {secure}
        wstunnel.frame-type = "binary"
        wstunnel.server = ( "/" => ( ( "socket" => "{place.backend}" ) ) )
    """
    return [_where("lighttpd"), "-D", "-f", _write(f"{place.folder}/lighttpd.conf", configuration)]


def _haproxy(place: Place) -> list[str]:
    secure = f" ssl crt {place.certificate.both} alpn http/1.1" if place.certificate else ""
    configuration = f"""
global
    nbthread 1
    maxconn {place.connections + 16}
defaults
    mode tcp
    timeout connect 8s
    timeout client 1h
    timeout server 1h
listen tunnel
    bind 127.0.0.1:{place.port} backlog 4096{secure}
    maxconn {place.connections + 16}
    server backend unix@{place.backend}
"""
    return [_where("haproxy"), "-db", "-f", _write(f"{place.folder}/haproxy.cfg", configuration)]


def _haproxy_http(place: Place) -> list[str]:
    configuration = f"""
global
    nbthread 1
    maxconn {place.connections + 16}
defaults
    mode http
    timeout connect 8s
    timeout client 1h
    timeout server 1h
    option forwardfor
listen proxy
    bind 127.0.0.1:{place.port} backlog 4096
    maxconn {place.connections + 16}
    http-reuse always
    server backend unix@{place.backend}
"""
    return [_where("haproxy"), "-db", "-f", _write(f"{place.folder}/haproxy.cfg", configuration)]


def _nginx(place: Place) -> list[str]:
    temporary = "\n".join(
        f"    {what}_temp_path {place.folder}/{what};" for what in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    configuration = f"""
daemon off;
user {pwd.getpwuid(os.geteuid()).pw_name};
worker_processes 1;
pid {place.folder}/nginx.pid;
events {{
    worker_connections {2 * place.connections};
}}
http {{
    access_log off;
    keepalive_requests {_ENDLESS};
{temporary}
    upstream backend {{
        server unix:{place.backend};
        keepalive 1024;
        keepalive_requests {_ENDLESS};
    }}
    server {{
        listen 127.0.0.1:{place.port} backlog=4096;
        location / {{
            proxy_pass http://backend;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Host $http_host;
            proxy_set_header X-Forwarded-Proto $scheme;
        }}
    }}
}}
"""
    log = f"{place.folder}/error.log"
    return [_where("nginx"), "-p", place.folder, "-e", log, "-c", _write(f"{place.folder}/nginx.conf", configuration)]


def _is_proxy(flags: Sequence[str]) -> bool:
    return "proxy" in flags


def _wstunnel(flags: Sequence[str]) -> Callable[[Place], list[str]]:
    frames = () if _is_proxy(flags) else ("--frame-type", "binary")

    def command(place: Place) -> list[str]:
        secure = (
            ("--tls-cert", place.certificate.chain, "--tls-key", place.certificate.key) if place.certificate else ()
        )
        h2c = ("--h2c", "true") if place.takes_h2c else ()
        return [
            *(sys.executable, "-m", "wstunnel", "--listen", f"127.0.0.1:{place.port}", "--socket", place.backend),
            *("--log-level", "warning", "--control", f"{place.folder}/control", *frames, *secure, *h2c, *flags),
        ]

    return command


def _wstunnel_version() -> str:
    commit = subprocess.run(
        ["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return f"wstunnel {commit or 'without git'}"


def _python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


_PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "floor",
            "a relay of bytes in bare C and epoll, without WebSocket",
            lambda place: [place.programs.floor, str(place.port), f"unix:{place.backend}"],
            missing=lambda: None,
            version=lambda: "bench/load/c/floor.c",
            is_raw=True,
        ),
        Peer(
            "wstunnel",
            "this project: master and one worker",
            _wstunnel(()),
            missing=lambda: None,
            version=_wstunnel_version,
        ),
        Peer(
            "lighttpd",
            "lighttpd with mod_wstunnel",
            _lighttpd,
            missing=_needs("lighttpd", "apt-get install --no-install-recommends lighttpd lighttpd-mod-openssl"),
            version=_says("lighttpd", "-v"),
        ),
        Peer(
            "haproxy",
            "HAProxy in TCP mode: a relay of bytes, without WebSocket",
            _haproxy,
            missing=_needs("haproxy", "apt-get install --no-install-recommends haproxy"),
            version=_says("haproxy", "-v"),
            is_raw=True,
        ),
        Peer(
            "picows",
            "a relay on picows and uvloop, written for this bench",
            lambda place: _python("bench.load.relays.picows_relay", str(place.port), place.backend),
            missing=_needs_module("picows", "pip install --no-deps -r requirements-dev.txt"),
            version=_distribution("picows"),
        ),
        Peer(
            "websockets",
            "a relay on websockets and uvloop, written for this bench",
            lambda place: _python("bench.load.relays.websockets_relay", str(place.port), place.backend),
            missing=_needs_module("websockets", "pip install --no-deps -r requirements-dev.txt"),
            version=_distribution("websockets"),
        ),
        Peer(
            "websockify",
            "websockify, with numpy",
            lambda place: _python("websockify", f"--unix-target={place.backend}", f"127.0.0.1:{place.port}"),
            missing=_needs_module("websockify", _PIP),
            version=_distribution("websockify"),
            most_connections=100,
            leaves_out="sweep",
            why=_FORKS,
        ),
        Peer(
            "websocketd",
            "websocketd, with the backend on stdin and stdout",
            lambda place: [
                *(_where("websocketd"), f"--port={place.port}", "--address=127.0.0.1", "--binary=true"),
                *("--loglevel=error", *place.stdio_backend),
            ],
            missing=_needs("websocketd", "apt-get install --no-install-recommends websocketd"),
            version=_says("websocketd", "--version"),
            most_connections=100,
            leaves_out="sweep",
            why=_FORKS,
        ),
        Peer(
            "nginx",
            "nginx as a proxy of HTTP, one worker",
            _nginx,
            missing=_needs("nginx", "apt-get install --no-install-recommends nginx-light"),
            version=_says("nginx", "-v"),
            is_http=True,
            is_guest=True,
        ),
        Peer(
            "haproxy-http",
            "HAProxy as a proxy of HTTP, one thread",
            _haproxy_http,
            missing=_needs("haproxy", "apt-get install --no-install-recommends haproxy"),
            version=_says("haproxy", "-v"),
            is_http=True,
            is_guest=True,
        ),
    )
}

NAMES = tuple(_PEERS)


def peer_named(text: str) -> Peer:
    """One of NAMES, or "wstunnel" with further flags of its own: "wstunnel --workers 2".

    raises  ValueError on any other name
    """
    name, *flags = shlex.split(text)
    if name == "wstunnel" and flags:
        what, is_http = f"this project, {' '.join(flags)}", _is_proxy(flags)
        return Peer(text, what, _wstunnel(flags), lambda: None, _wstunnel_version, is_http=is_http)
    if flags or name not in _PEERS:
        raise ValueError(f"{text}: take one of {', '.join(NAMES)}, or wstunnel with flags: 'wstunnel --workers 2'")
    return _PEERS[name]
