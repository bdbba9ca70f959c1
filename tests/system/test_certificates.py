"""Certificates of a service that runs: new ones under load, bad ones, those of clients, and keys of root's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import re
import signal
import ssl
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvloop

import wstunnel
from tests.authority import Authority, Files
from tests.conftest import Run
from tests.wire.clients import TEXT, close_frame, frame
from tests.wire.sockets import eventually
from tests.wire.tls import TlsClient
from wstunnel.settings import TcpAddress

LATE_S = 90.0
"""Only ever reached in a failure: certificates are looked at every two seconds."""

SCRIPT = """\
#!/bin/sh
echo "Content-Type: text/plain"; echo
echo "$HTTPS $REQUEST_SCHEME $SSL_CLIENT_VERIFY $SSL_CLIENT_S_DN."
"""


@dataclass(frozen=True)
class Interpreter:
    """A Python that the user `nobody` may run, too."""

    argv: tuple[str, ...] = (sys.executable,)
    path: tuple[str, ...] = ()


ECHO = ("--listen", "127.0.0.1:0", "--path", "/ws/", "--stdio", "cat")


class Service:
    """A running wstunnel."""

    def __init__(self, folder: Path, words: tuple[str, ...], interpreter: Interpreter) -> None:
        self._log = open(folder / "log", "w+", encoding="utf-8")  # noqa: SIM115
        environ = {**os.environ, "RUNTIME_DIRECTORY": str(folder / "run")}
        if interpreter.path:
            environ["PYTHONPATH"] = os.pathsep.join(interpreter.path)
        self.process = subprocess.Popen(
            [*interpreter.argv, "-m", "wstunnel", "--log-format", "json", *words],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def serves(self) -> None:
        """Wait until it listens, and where."""
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        found = re.search(r"https://127\.0\.0\.1:([0-9]+)/", said)
        assert found, f"{said}{self.log()}"
        self.address = TcpAddress("127.0.0.1", int(found[1]))

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def lines(self, word: str) -> list[dict[str, Any]]:
        """Log lines that hold a word."""
        return [json.loads(line) for line in self.log().splitlines() if word in line]

    def ask(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            assert self.process.wait(LATE_S) == 0, self.log()
        finally:
            self.process.kill()
            self.process.communicate()
            self._log.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    """Open to other users, which pytest's own folders are not."""
    with tempfile.TemporaryDirectory() as name:
        made = Path(name)
        made.chmod(0o755)
        yield made


@pytest.fixture
def authority(folder: Path) -> Authority:
    return Authority(folder)


Start = Callable[..., Service]


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    services: list[Service] = []

    def run(*words: str, interpreter: Interpreter = Interpreter()) -> Service:
        services.append(Service(folder, words, interpreter))
        services[-1].serves()
        return services[-1]

    yield run
    for each in services:
        each.close()


def flags_for(files: Files) -> tuple[str, ...]:
    return ("--tls-cert", files.cert, "--tls-key", files.key)


async def serial_at(address: TcpAddress, context: ssl.SSLContext) -> int:
    """Shake hands; the serial number of the certificate that is shown."""
    _, writer = await asyncio.open_connection(address.host, address.port, ssl=context, server_hostname="localhost")
    shown: dict[str, Any] = writer.get_extra_info("peercert")
    writer.close()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        await writer.wait_closed()
    return int(shown["serialNumber"], 16)


async def is_refused(address: TcpAddress, context: ssl.SSLContext) -> bool:
    """Does the handshake fail, for the client or (TLS 1.3) behind its back?"""
    try:
        reader, writer = await asyncio.open_connection(
            address.host, address.port, ssl=context, server_hostname="localhost"
        )
    except OSError:
        return True
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        return not await reader.read(1)
    except OSError:
        return True
    finally:
        writer.transport.abort()


@dataclass
class Load:
    """Clients that shake hands again and again."""

    seen: set[int]
    handshakes: int = 0
    failed: int = 0


@contextlib.asynccontextmanager
async def load(address: TcpAddress, context: ssl.SSLContext, clients: int = 3) -> AsyncIterator[Load]:
    under = Load(set())
    is_over = False

    async def again_and_again() -> None:
        while not is_over:
            try:
                under.seen.add(await serial_at(address, context))
                under.handshakes += 1
            except OSError:
                under.failed += 1

    tasks = [asyncio.create_task(again_and_again()) for _ in range(clients)]
    try:
        yield under
    finally:
        is_over = True
        await asyncio.gather(*tasks)


async def shows(address: TcpAddress, context: ssl.SSLContext, files: Files, workers: int) -> None:
    """Until every worker shows this certificate: many handshakes in a row do."""
    row = 0
    async with asyncio.timeout(LATE_S):
        while row < 10 * workers:
            row = row + 1 if await serial_at(address, context) == files.serial else 0


async def tunnel_to(service: Service, context: ssl.SSLContext) -> TlsClient:
    client = await TlsClient.meet(service.address, context)
    await client.upgrade("/ws/")
    return client


async def echoes(client: TlsClient, word: bytes) -> None:
    await client.send(frame(TEXT, word))
    assert await client.payload(len(word)) == word


async def leave(client: TlsClient) -> None:
    await client.send(close_frame(1000))
    assert (await client.to_end()).code == 1000
    client.close()


@pytest.mark.timeout(240)
def test_no_handshake_fails_and_no_tunnel_ends_while_certificates_change(start: Start, authority: Authority):
    async def story() -> None:
        files = authority.files("a")
        service = start(*ECHO, *flags_for(files), "--workers", "2")
        context = authority.trusting()
        client = await tunnel_to(service, context)
        serials = {files.serial}
        async with load(service.address, context) as under:
            for is_reload in (False, True, False, True):
                files = authority.files("a")
                serials.add(files.serial)
                if is_reload:
                    service.ask(signal.SIGHUP)
                await shows(service.address, context, files, 2)
                await echoes(client, b"still here")
        assert under.failed == 0
        assert under.seen == serials
        assert under.handshakes > 20
        await leave(client)
        await eventually(lambda: len(service.lines("tunnel closed")) == 1, "it is logged")
        assert service.lines('"error"') == []

    Run("asyncio")(story(), timeout_s=200)


def test_a_bad_certificate_keeps_the_old_one_and_is_told_once(start: Start, authority: Authority):
    async def story() -> None:
        files = authority.files("a")
        service = start(*ECHO, *flags_for(files))
        context = authority.trusting()
        good = Path(files.cert).read_bytes()
        os.truncate(files.cert, len(good) // 3)
        await eventually(lambda: bool(service.lines("stays in use")), "it is told", within_s=LATE_S)
        service.ask(signal.SIGHUP)
        await eventually(lambda: bool(service.lines("nothing has changed")), "the reload is refused", within_s=LATE_S)
        Path(files.cert).write_bytes(good)
        old = files.serial
        assert await serial_at(service.address, context) == old
        files = authority.files("a")
        await shows(service.address, context, files, 1)
        (told,) = service.lines("stays in use")
        assert told["level"] == "error"

    Run("asyncio")(story(), timeout_s=100)


def test_clients_are_known_by_their_certificates(start: Start, folder: Path, authority: Authority):
    (folder / "who.cgi").write_text(SCRIPT)
    (folder / "who.cgi").chmod(0o755)
    files, ann = authority.files("a"), authority.files("ann", "ann@a.example", subject="ann")
    stranger = Authority(folder, "other").files("eve", "eve@a.example", subject="eve")
    (folder / "w.toml").write_text(
        f"""
        listen = "127.0.0.1:0"
        tls-cert = "{files.both}"
        tls-client-ca = "{authority.ca}"
        tls-client-verify = "optional"

        [[route]]
        path = "/ws/"
        stdio = "cat"

        [[route]]
        gateway = "cgi"
        docroot = "{folder}"
        cgi-assign = {{ ".cgi" = "" }}
        """
    )

    async def who(service: Service, context: ssl.SSLContext) -> bytes:
        client = await TlsClient.meet(service.address, context)
        fields = [("SSL-Client-S-DN", "CN=root"), ("Connection", "close")]
        answer = await client.request("/who.cgi", fields)
        client.close()
        return answer.body

    async def story() -> None:
        service = start("-f", str(folder / "w.toml"))
        assert await who(service, authority.trusting()) == b"on https NONE .\n"
        said = (await who(service, authority.trusting(ann))).decode()
        assert re.fullmatch(r"on https SUCCESS CN=ann,[^\n]*\.\n", said)
        assert await is_refused(service.address, authority.trusting(stranger))
        client = await tunnel_to(service, authority.trusting(ann))
        await echoes(client, b"hello")
        await leave(client)
        await eventually(lambda: bool(service.lines("tunnel closed")), "it is logged")
        (line,) = service.lines("tunnel closed")
        assert line["wire"] == "http/1.1+tls"
        assert line["client_subject"].startswith("CN=ann,")

    Run("asyncio")(story())


def test_without_a_certificate_nobody_gets_further_than_the_handshake(start: Start, authority: Authority):
    files, ann = authority.files("a"), authority.files("ann", "ann@a.example")

    async def story() -> None:
        service = start(*ECHO, *flags_for(files), "--tls-client-ca", authority.ca)
        client = await tunnel_to(service, authority.trusting(ann))
        await echoes(client, b"hello")
        await leave(client)
        assert await is_refused(service.address, authority.trusting())
        await eventually(lambda: bool(service.lines("TLS handshake failed")), "it is logged")

    Run("asyncio")(story())


# --- keys that only root may read


@pytest.fixture
def interpreter() -> Interpreter:
    """A Python of this version that the user `nobody` may run, with wstunnel as it stands here."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    site = tuple(os.path.dirname(os.path.dirname(each.__file__)) for each in (wstunnel, uvloop))
    plain = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    for each in (Interpreter(), Interpreter((plain,), site)):
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(each.path)}
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            subprocess.run(
                [*each.argv, "-c", "import wstunnel, uvloop"],
                user=pwd.getpwnam("nobody").pw_uid,
                env=environ,
                check=True,
                capture_output=True,
            )
            return each
    pytest.skip(f"nobody may run neither {sys.executable} nor {plain} with wstunnel")


def test_a_key_that_only_root_may_read_outlives_reloads_and_upgrades(
    start: Start, authority: Authority, interpreter: Interpreter
):
    """Of the user that root has become nobody reads it: workers that come later, and the next image, get it handed."""

    async def story() -> None:
        files = authority.files("a")
        os.chmod(files.cert, 0o644)
        service = start(*ECHO, *flags_for(files), "--user", "nobody", interpreter=interpreter)
        context = authority.trusting()
        first = files.serial
        client = await tunnel_to(service, context)
        for number, told in ((signal.SIGHUP, "generation 2"), (signal.SIGUSR2, "generation 3")):
            service.ask(number)
            await eventually(lambda told=told: bool(service.lines(told)), told, within_s=LATE_S)  # type: ignore[misc]
            assert await serial_at(service.address, context) == first
            await echoes(client, b"still here")
        assert "cannot be read any more: what it said stays in use" in service.log()
        authority.files("a")
        os.chmod(files.cert, 0o644)
        await eventually(
            lambda: any(line["level"] == "error" for line in service.lines("takes a restart")),
            "the new one takes a restart",
            within_s=LATE_S,
        )
        assert await serial_at(service.address, context) == first
        assert b"PRIVATE KEY" not in Path(f"/proc/{service.process.pid}/environ").read_bytes()
        assert "PRIVATE" not in service.log()
        await leave(client)

    Run("asyncio")(story(), timeout_s=100)
