"""SCGI and FastCGI as others speak them, spawned by pools: the scgi package, libfcgi, php-cgi, fcgiwrap."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import struct
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.conftest import Run
from tests.system.test_cgi import DEADLINE_S, MIB, Client, Served, until
from tests.wire.stage import LogTap
from wstunnel import Route, Settings, TcpAddress, Tunnel
from wstunnel.supervise import procfs

PROGRAMS = {
    "app.py": r"""
        # Answers what its path asks for; a WebSocket is echoed, frame by frame.
        import base64, hashlib, os, signal, socket, sys

        from scgi.scgi_server import SCGIServer
        from scgi.util import SCGIHandler
        from wsproto.connection import Connection, ConnectionType
        from wsproto.events import CloseConnection, Message, Ping


        class Handler(SCGIHandler):
            def produce(self, env, size, input, output):
                match env["PATH_INFO"]:
                    case "/echo":
                        body = input.read(size)
                        output.write(b"Content-Type: text/x\r\n\r\n%s " % env["REQUEST_METHOD"].encode() + body)
                    case "/204":
                        output.write(b"Status: 204\r\n\r\n")
                    case "/deaf":
                        output.write(b"Status: 413\r\n\r\ntoo much")
                    case "/die":
                        os.kill(os.getpid(), signal.SIGKILL)
                    case "/drip":
                        output.write(b"A: b\r\n\r\n" + b"%d\n" % os.getpid())
                        output.flush()
                        input.read(1)
                        print("the client is gone", file=sys.stderr, flush=True)
                    case "/ws":
                        self.echo(env, input, output)

            def echo(self, env, input, output):
                key = env["HTTP_SEC_WEBSOCKET_KEY"].encode()
                accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
                output.write(b"Status: 101\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %s\r\n\r\n" % accept)
                output.flush()
                frames = Connection(ConnectionType.SERVER)
                while data := input.read1(65536):
                    frames.receive_data(data)
                    for event in frames.events():
                        if isinstance(event, Message):
                            if event.data == "die":
                                os.kill(os.getpid(), signal.SIGKILL)
                            output.write(frames.send(event))
                        elif isinstance(event, Ping | CloseConnection):
                            output.write(frames.send(event.response()))
                    output.flush()
                print("the client is gone", file=sys.stderr, flush=True)


        SCGIServer(Handler).serve_on_socket(socket.socket(fileno=0))
    """,
    "app.pl": r"""
        # The same over libfcgi, as Perl has it.
        use strict; use warnings; use FCGI; use Digest::SHA 'sha1_base64';
        my ($in, $out, $err, %env) = (\*IN, \*OUT, \*ERR);
        my $request = FCGI::Request($in, $out, $err, \%env, 0);
        sub all_of {
            my ($n, $got) = (shift, '');
            while (length $got < $n) { read($in, $got, $n - length $got, length $got) or last }
            return $got;
        }
        sub frame {
            my ($first, $text) = @_; my $n = length $text;
            my $length = $n < 126 ? pack('C', $n) : $n < 65536 ? pack('Cn', 126, $n) : pack('CQ>', 127, $n);
            print $out pack('C', $first), $length, $text;
            $request->Flush();
        }
        while ($request->Accept() >= 0) {
            my $path = $env{PATH_INFO};
            if ($path eq '/echo') {
                print $out "Content-Type: text/x\r\n\r\n$env{REQUEST_METHOD} ", all_of($env{CONTENT_LENGTH} || 0);
            } elsif ($path eq '/204') {
                print $out "Status: 204\r\n\r\n";
            } elsif ($path eq '/deaf') {
                print $out "Status: 413\r\n\r\ntoo much";
            } elsif ($path eq '/die') {
                kill KILL => $$;
            } elsif ($path eq '/drip') {
                print $out "A: b\r\n\r\n$$\n"; print $err "a word\nand an"; print $err "other\n"; $request->Flush();
                1 while print($out "x" x 1000) && $request->Flush();
            } elsif ($path eq '/ws') {
                print $out "Status: 101\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: ",
                    sha1_base64("$env{HTTP_SEC_WEBSOCKET_KEY}258EAFA5-E914-47DA-95CA-C5AB0DC85B11"), "=\r\n\r\n";
                $request->Flush();
                while (length(my $head = all_of(2)) == 2) {
                    my ($first, $n) = unpack 'CC', $head;
                    $n &= 127;
                    $n = unpack 'n', all_of(2) if $n == 126;
                    $n = unpack 'Q>', all_of(8) if $n == 127;
                    my $mask = all_of(4); my $text = all_of($n);
                    $text ^= substr $mask x ($n / 4 + 1), 0, $n;
                    kill KILL => $$ if $text eq 'die';
                    frame(($first & 15) == 9 ? 0x8a : $first, $text);
                }
                print $err "the client is gone\n";
            }
            $request->Finish();
        }
    """,
}
INTERPRETERS = {"app.py": sys.executable, "app.pl": "/usr/bin/perl"}
KINDS = {"app.py": "scgi", "app.pl": "fastcgi"}


def has_libfcgi() -> bool:
    found = subprocess.run(["/bin/sh", "-c", "perl -MFCGI -e 1"], check=False, stderr=subprocess.DEVNULL)
    return found.returncode == 0


def needed(is_there: bool, package: str) -> pytest.MarkDecorator:
    """Skipped where it is missing, but in CI, where it would fail."""
    return pytest.mark.skipif(not is_there and "CI" not in os.environ, reason=f"not installed (Debian: {package})")


needs_perl = needed(has_libfcgi(), "libfcgi-perl")
needs_php = needed(shutil.which("php-cgi") is not None, "php-cgi")
needs_wrap = needed(shutil.which("fcgiwrap") is not None, "fcgiwrap")
both = pytest.mark.parametrize("name", ["app.py", pytest.param("app.pl", marks=needs_perl)])


@contextlib.asynccontextmanager
async def serving(folder: Path, **route: Any) -> AsyncIterator[Served]:
    """A route of one process, unless `route` says otherwise."""
    usual = {"path": "/app", "socket": str(folder / "socket"), "origins": ("*",), "upgrade": True}
    settings = Settings(listen=(TcpAddress("127.0.0.1", 0),), routes=(Route(**(usual | route)),))
    with LogTap("wstunnel") as log:
        async with Tunnel(settings) as tunnel:
            yield Served(tunnel.addresses[0], folder, lambda: "\n".join(log.texts()))


def running(folder: Path, name: str, **route: Any) -> contextlib.AbstractAsyncContextManager[Served]:
    """One of the programs above."""
    path = folder / name
    path.write_text(f"#!{INTERPRETERS[name]}\n{textwrap.dedent(PROGRAMS[name])}")
    path.chmod(0o755)
    return serving(folder, bin_path=(str(path),), gateway=KINDS[name], **route)


def reset(client: Client) -> None:
    """Leave: a client that only says no more may still want its answer."""
    sock = client.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.writer.transport.abort()


# --- requests


@both
def test_requests_are_answered_one_after_the_other(run: Run, tmp_path: Path, name: str):
    async def story() -> None:
        async with running(tmp_path, name, max_procs=2) as served, served.client() as client:
            got = await client.ask("/app/echo")
            assert (got.status, got.body, got.fields["content-type"]) == (200, b"GET ", "text/x")
            assert (await client.ask("/app/echo", method="POST", body=b"the body")).body == b"POST the body"
            assert (await client.ask("/app/echo", method="POST", body=b"in chunks", chunks=3)).body == b"POST in chunks"
            got = await client.ask("/app/echo", method="HEAD")
            assert (got.status, got.body) == (200, b"")
            got = await client.ask("/app/204")
            assert (got.status, got.body, "content-length" in got.fields) == (204, b"", False)

    run(story())


@both
def test_a_mebibyte_goes_through_both_ways(run: Run, tmp_path: Path, name: str):
    async def story() -> None:
        body = os.urandom(MIB)
        async with running(tmp_path, name) as served:
            assert (await served.ask("/app/echo", method="PUT", body=body)).body == b"PUT " + body

    run(story())


@both
def test_an_answer_without_a_look_at_a_long_body_arrives(run: Run, tmp_path: Path, name: str):
    async def story() -> None:
        async with running(tmp_path, name) as served:
            got = await served.ask("/app/deaf", method="POST", body=bytes(4 * MIB))
            assert (got.status, got.body) == (413, b"too much")

    run(story())


@both
def test_a_backend_that_is_killed_is_a_502_and_the_next_one_serves(run: Run, tmp_path: Path, name: str):
    async def story() -> None:
        async with running(tmp_path, name) as served:
            assert (await served.ask("/app/die")).status == 502
            assert (await served.ask("/app/echo", method="POST", body=b"again")).body == b"POST again"

    run(story())


@both
def test_a_client_that_leaves_is_noticed(run: Run, tmp_path: Path, name: str):
    async def story() -> None:
        async with running(tmp_path, name) as served:
            async with served.client() as client:
                client.writer.write(b"GET /app/drip HTTP/1.1\r\nHost: a\r\n\r\n")
                assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
                await client.reader.readline()  # the length of the chunk
                pid = int(await client.reader.readline())
                reset(client)
            if name == "app.py":
                await until(lambda: "the client is gone" in served.log())
            else:  # libfcgi's process waits for the next request, having failed to write
                await until(lambda: "a word\n" in served.log() and "another" in served.log())
                assert not procfs.is_gone_or_ending(pid)
            assert (await served.ask("/app/echo")).body == b"GET "

    run(story())


# --- WebSockets


async def hears(websocket: ClientConnection, message: str | bytes) -> None:
    await websocket.send(message)
    async with asyncio.timeout(DEADLINE_S):
        assert await websocket.recv() == message


@both
def test_a_websocket_is_passed_on_frame_by_frame(run: Run, tmp_path: Path, name: str):
    async def story() -> None:
        async with running(tmp_path, name) as served:
            async with served.websocket("/app/ws") as websocket:
                for message in ("text", b"\0\1\2", "", "x" * 200, os.urandom(MIB)):
                    await hears(websocket, message)
                await (await websocket.ping())
                await websocket.close(3000, "well")
            assert websocket.close_code == 3000

    run(story())


@both
def test_a_client_that_leaves_a_websocket_is_noticed(run: Run, tmp_path: Path, name: str):
    async def story() -> None:
        async with running(tmp_path, name) as served:
            async with served.websocket("/app/ws") as websocket:
                await hears(websocket, "here")
                websocket.transport.abort()
            await until(lambda: "the client is gone" in served.log())

    run(story())


@both
def test_a_backend_that_dies_ends_its_websocket(run: Run, tmp_path: Path, name: str):
    async def story() -> None:
        async with running(tmp_path, name) as served:
            async with served.websocket("/app/ws") as websocket:
                await hears(websocket, "here")
                await websocket.send("die")
                async with asyncio.timeout(DEADLINE_S):
                    with pytest.raises(ConnectionClosed):
                        await websocket.recv()
            assert websocket.close_code == 1006
            assert (await served.ask("/app/echo")).body == b"GET "

    run(story())


@both
def test_without_upgrade_a_handshake_is_a_request_and_a_101_none_of_its_answers(run: Run, tmp_path: Path, name: str):
    async def story() -> None:
        async with running(tmp_path, name, upgrade=False) as served:
            with pytest.raises(InvalidStatus) as refused:
                await served.websocket("/app/ws")
            assert refused.value.response.status_code == 502

    run(story())


# --- php and fcgiwrap


@needs_php
def test_php_answers_from_its_docroot(run: Run, tmp_path: Path):
    (tmp_path / "tell.php").write_text(
        "<?php error_log('a word of php'); header('X-By: php');"
        "echo $_SERVER['REQUEST_METHOD'], ' ', $_SERVER['PATH_INFO'] ?? '', ' ', file_get_contents('php://input');"
    )
    (tmp_path / "none.php").write_text("<?php http_response_code(204);")

    async def story() -> None:
        php = {"bin_path": (shutil.which("php-cgi"),), "path": "/", "docroot": str(tmp_path), "check_local": True}
        async with serving(tmp_path, gateway="fastcgi", **php) as served, served.client() as client:
            got = await client.ask("/tell.php/a/b?c")
            assert (got.status, got.fields["x-by"], got.body) == (200, "php", b"GET /a/b ")
            assert (await client.ask("/tell.php", method="POST", body=b"x" * MIB)).body == b"POST  " + b"x" * MIB
            assert (await client.ask("/none.php")).status == 204
            assert (await client.ask("/missing.php")).status == 404
            await until(lambda: "a word of php" in served.log())

    run(story())


@needs_php
def test_php_sees_that_its_client_has_left(run: Run, tmp_path: Path):
    (tmp_path / "drip.php").write_text(
        "<?php register_shutdown_function(function () { file_put_contents(__DIR__ . '/left', connection_status()); });"
        "while (true) { echo str_repeat('x', 8192); flush(); usleep(1000); }"
    )

    async def story() -> None:
        php = {"bin_path": (shutil.which("php-cgi"),), "path": "/", "docroot": str(tmp_path), "check_local": True}
        async with serving(tmp_path, gateway="fastcgi", **php) as served:
            async with served.client() as client:
                client.writer.write(b"GET /drip.php HTTP/1.1\r\nHost: a\r\n\r\n")
                await client.reader.readuntil(b"xxxx")
                reset(client)
            await until(lambda: served.said("left") == "1")

    run(story())


@needs_wrap
def test_fcgiwrap_runs_scripts(run: Run, tmp_path: Path):
    script = tmp_path / "tell.cgi"
    script.write_text('#!/bin/sh\nprintf \'Content-Type: text/x\\n\\n%s %s \' "$REQUEST_METHOD" "$PATH_INFO"\ncat\n')
    script.chmod(0o755)

    async def story() -> None:
        wrap = {"bin_path": (shutil.which("fcgiwrap"),), "path": "/", "docroot": str(tmp_path), "check_local": True}
        async with serving(tmp_path, gateway="fastcgi", **wrap) as served, served.client() as client:
            assert (await client.ask("/tell.cgi/a")).body == b"GET /a "
            assert (await client.ask("/tell.cgi", method="POST", body=b"x" * 1000)).body == b"POST  " + b"x" * 1000

    run(story())
