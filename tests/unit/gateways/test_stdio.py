"""A tunnel's own program: what it is told of the request, and what its claim says of its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from tests.conftest import Run, open_descriptors
from wstunnel.errors import BackendError, PeerError
from wstunnel.gateways.claim import Claim, Connected
from wstunnel.gateways.program import ForkedProgram
from wstunnel.gateways.stdio import StdioGateway
from wstunnel.limits import Limits, SpawnLimits
from wstunnel.proto.request import Request
from wstunnel.settings import Route
from wstunnel.supervise.child import ExitStatus
from wstunnel.supervise.forks import ForkProgram, Forks

DEADLINE_S = 20.0


def request_of(**given: Any) -> Request:
    usual = {
        "method": "GET",
        "target": "/ws/a?b",
        "path": "/ws/a",
        "query": "b",
        "host": "a.example",
        "headers": (("x-color", "red"),),
        "peer": "192.0.2.7:4711",
        "local": "192.0.2.1:8081",
    }
    return Request(**(usual | given))


@contextlib.asynccontextmanager
async def gateway_to(
    *argv: str, number: int = 0, limits: SpawnLimits | None = None, **route: Any
) -> AsyncIterator[StdioGateway]:
    """Of route `number`. Nothing is left of its programs at the end."""
    forks = Forks({number: ForkProgram(argv[0], argv, 10)}, Limits(), kill_timeout_s=DEADLINE_S)
    try:
        yield StdioGateway(forks, number, Route(stdio=argv, **route), limits or SpawnLimits())
    finally:
        forks.abort()
        await forks.stop()


async def read_to_end(connected: Connected) -> bytes:
    got = b""
    with socket_of(connected) as sock:
        async with asyncio.timeout(DEADLINE_S):
            while some := await asyncio.get_running_loop().sock_recv(sock, 65536):
                got += some
    return got


def socket_of(connected: Connected) -> socket.socket:
    sock = socket.socket(fileno=os.dup(connected.fd))
    assert not os.get_blocking(connected.fd)
    sock.setblocking(False)
    return sock


async def told(request: Request, **route: Any) -> dict[str, str]:
    """The environment that a program of a route gets."""
    async with gateway_to("env", "-0", **route) as gateway:
        connected = await gateway.connect(request)
        entries = (await read_to_end(connected)).decode().split("\0")
        connected.close()
    return dict(entry.split("=", 1) for entry in entries if entry)


def test_a_tunnel_is_its_programs_input_and_output(run: Run):
    async def main() -> None:
        async with gateway_to("cat", number=7) as gateway:
            connected = await gateway.connect(request_of())
            with socket_of(connected) as sock:
                sock.send(b"hello")
                sock.shutdown(socket.SHUT_WR)
            assert await read_to_end(connected) == b"hello"
            assert await connected.lease.exit_status() == ExitStatus(code=0)
            connected.close()
            assert connected.fd not in open_descriptors()

    run(main())


def test_a_program_is_told_of_the_request(run: Run):
    async def main() -> None:
        said = await told(request_of(), path="/ws")
        assert {name: said[name] for name in ("SCRIPT_NAME", "PATH_INFO", "QUERY_STRING", "HTTP_X_COLOR")} == {
            "SCRIPT_NAME": "/ws",
            "PATH_INFO": "/a",
            "QUERY_STRING": "b",
            "HTTP_X_COLOR": "red",
        }
        assert (said["SERVER_SOFTWARE"], said["REMOTE_ADDR"], said["SERVER_PORT"]) == ("wstunnel", "192.0.2.7", "8081")

    run(main())


@pytest.mark.parametrize(
    ("route", "expected"),
    [
        ({"path": "/"}, ("", "/ws/a")),
        ({"path": None}, ("", "/ws/a")),
        ({"path": None, "suffix": "a"}, ("/ws/a", "")),
        ({"path": "/", "suffix": "a"}, ("/ws/a", "")),
    ],
)
def test_a_suffix_means_the_whole_path_and_a_slash_none_of_it(run: Run, route, expected):
    async def main() -> None:
        said = await told(request_of(), **route)
        assert (said["SCRIPT_NAME"], said["PATH_INFO"]) == expected

    run(main())


def test_httpoxy_does_not_reach_a_program(run: Run):
    """CVE-2016-5385 and its kin."""

    async def main() -> None:
        said = await told(request_of(headers=(("proxy", "http://evil.example/"),)))
        assert "evil" not in repr(said)

    run(main())


def test_a_claim_has_the_name_of_its_program_and_its_pid(run: Run):
    async def main() -> None:
        async with gateway_to("/bin/sh", "-c", "echo $$") as gateway:
            connected = await gateway.connect(request_of())
            claim: Claim = connected.lease
            pid = int(await read_to_end(connected))
            assert (claim.name, claim.where, claim.host_index) == (f"sh[{pid}]", "/bin/sh", 0)
            connected.close()

    run(main())


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("exit 0", ExitStatus(code=0)),
        ("exit 3", ExitStatus(code=3)),
        ("kill -9 $$", ExitStatus(signal=9)),
        ("exec <&- >&-; sleep 0.05; exit 3", ExitStatus(code=3)),
    ],
)
def test_how_a_program_ended_is_known_even_if_it_closes_its_stream_a_moment_before(run: Run, script, status):
    async def main() -> None:
        async with gateway_to("sh", "-c", script, limits=SpawnLimits(fork_exit_wait_s=DEADLINE_S)) as gateway:
            connected = await gateway.connect(request_of())
            await read_to_end(connected)
            assert connected.lease.is_exiting()
            assert await connected.lease.exit_status() == status
            connected.close()

    run(main())


def test_a_program_that_ends_its_output_and_lives_on_is_waited_for_a_little(run: Run):
    async def main() -> None:
        async with gateway_to(
            "sh", "-c", "exec <&- >&-; sleep 1000", limits=SpawnLimits(fork_exit_wait_s=0.05)
        ) as gateway:
            connected = await gateway.connect(request_of())
            await read_to_end(connected)
            began_s = time.monotonic()
            assert await connected.lease.exit_status() is None
            assert 0.05 <= time.monotonic() - began_s < DEADLINE_S
            connected.close()

    run(main())


class Refusing:
    """A forker that cannot."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    async def fork(
        self, index: int, environment: Mapping[str, str], stream: socket.socket, script: str = ""
    ) -> ForkedProgram:
        raise self.error


@pytest.mark.parametrize("error", [BackendError("no"), asyncio.CancelledError()])
def test_nothing_is_left_open_when_there_is_no_program(run: Run, error):
    async def main() -> None:
        gateway = StdioGateway(Refusing(error), 0, Route(stdio=("cat",)), SpawnLimits())
        before = open_descriptors()
        with pytest.raises(type(error)):
            await gateway.connect(request_of())
        assert open_descriptors() == before

    run(main())


def test_without_a_descriptor_for_the_stream_there_is_no_backend(run: Run, monkeypatch):
    async def main() -> None:
        def fail() -> None:
            raise OSError(24, os.strerror(24))

        gateway = StdioGateway(Refusing(AssertionError()), 0, Route(stdio=("cat",)), SpawnLimits())
        with monkeypatch.context() as patch:
            patch.setattr(socket, "socketpair", fail)
            with pytest.raises(BackendError, match="no stream for cat: Too many open files") as caught:
                await gateway.connect(request_of())
        assert caught.value.status == 503

    run(main())


def test_a_request_that_no_program_could_be_told_is_the_clients_fault(run: Run):
    async def main() -> None:
        gateway = StdioGateway(Refusing(AssertionError()), 0, Route(stdio=("cat",)), SpawnLimits())
        with pytest.raises(PeerError, match=re.escape('control character in PATH_INFO: "/a\\nb"')):
            await gateway.connect(request_of(path="/a\nb"))

    run(main())
