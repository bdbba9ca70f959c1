"""Tunnel in the corners that a running one does not show: failed starts, the descriptor budget, ends on top of ends.

What it does for its users stands in tests/system/test_tunnel.py.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

import pytest

from tests.authority import Authority
from tests.conftest import Run, children, open_descriptors
from tests.wire.backends import Backend
from tests.wire.clients import Client
from tests.wire.sockets import eventually, turns
from wstunnel.errors import ConfigError, StartError
from wstunnel.limits import CertificateLimits, Limits
from wstunnel.server import tunnel as tunnel_module
from wstunnel.server.tunnel import Tunnel
from wstunnel.settings import Entrance, Route, Settings, TcpAddress, UnixAddress

ANY_PORT = TcpAddress("127.0.0.1", 0)
SLEEPER = ("/bin/sleep", "1000")


@pytest.fixture
def backend(tmp_path: Any) -> Any:
    made = Backend(str(tmp_path / "b.sock"))
    yield made
    made.sock.close()


def free_port() -> TcpAddress:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return TcpAddress("127.0.0.1", sock.getsockname()[1])


def is_free(address: TcpAddress) -> bool:
    try:
        with socket.create_server((address.host, address.port)):
            return True
    except OSError:
        return False


def descriptors() -> dict[int, str]:
    """What is open, without the /dev/null that libuv keeps for a loop from its first stream on."""
    return {fd: name for fd, name in open_descriptors().items() if name != "/dev/null"}


# --- a start that fails


async def fails_to_start(settings: Settings, error: type[BaseException], match: str) -> None:
    """It raises that, and nothing is left behind: no address, no descriptor, no child."""
    fds, pids = descriptors(), children()
    tunnel = Tunnel(settings)
    with pytest.raises(error, match=match):
        await tunnel.start()
    assert tunnel.addresses == ()
    assert children() == pids
    await eventually(lambda: descriptors() == fds, "every descriptor closed")


def test_a_second_listener_that_cannot_be_had_frees_the_first(run: Run, tmp_path):
    async def check() -> None:
        first, path = free_port(), str(tmp_path / "front.sock")
        with socket.create_server(("127.0.0.1", 0)) as taken:
            second = TcpAddress("127.0.0.1", taken.getsockname()[1])
            settings = Settings(listen=(UnixAddress(path), first, second))
            await fails_to_start(settings, StartError, "another process listens there")
        assert is_free(first)
        assert not os.path.exists(path)

    run(check())


def test_a_second_start_is_refused_and_does_not_disturb_the_first(run: Run):
    async def check() -> None:
        async with Tunnel(Settings(listen=(free_port(),))) as tunnel:
            with pytest.raises(RuntimeError, match="runs already"):
                await tunnel.start()
            assert len(tunnel.addresses) == 1
            (await Client.reach(tunnel.addresses[0])).close()

    run(check())


def test_a_route_that_cannot_be_started_ends_those_that_were(run: Run, tmp_path):
    async def check() -> None:
        first = free_port()
        good = Route(path="/a", socket=str(tmp_path / "run" / "a.sock"), bin_path=SLEEPER, max_procs=2)
        (tmp_path / "b.sock-0").write_text("not a socket")
        bad = Route(path="/b", socket=str(tmp_path / "b.sock"), bin_path=SLEEPER)
        await fails_to_start(Settings(listen=(first,), routes=(good, bad)), StartError, "is not a socket")
        assert is_free(first)
        assert os.listdir(tmp_path) == ["b.sock-0"]

    run(check())


def test_a_program_that_is_not_there_is_a_start_error(run: Run, tmp_path):
    async def check() -> None:
        route = Route(socket=str(tmp_path / "a.sock"), bin_path=("/no/such/program",))
        await fails_to_start(Settings(listen=(ANY_PORT,), routes=(route,)), StartError, "/no/such/program")
        assert os.listdir(tmp_path) == []

    run(check())


def test_a_document_root_that_is_not_there_binds_nothing(run: Run, tmp_path):
    async def check() -> None:
        settings = Settings(listen=(ANY_PORT,), document_root=str(tmp_path / "missing"))
        await fails_to_start(settings, StartError, "document-root")

    run(check())


def test_a_worker_that_cannot_be_made_frees_listeners_and_backends(run: Run, tmp_path, monkeypatch):
    """Its epoll set is the last descriptor that a start takes."""

    def none_left(*_args: Any, **_named: Any) -> Any:
        raise OSError(24, "Too many open files")

    async def check() -> None:
        first = free_port()
        route = Route(socket=str(tmp_path / "a.sock"), bin_path=SLEEPER)
        monkeypatch.setattr(tunnel_module, "Worker", none_left)
        await fails_to_start(Settings(listen=(first,), routes=(route,)), OSError, "Too many open files")
        assert is_free(first)
        assert os.listdir(tmp_path) == []

    run(check())


def test_after_a_failed_start_the_next_one_may_work(run: Run, backend):
    async def check() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = TcpAddress("127.0.0.1", taken.getsockname()[1])
            tunnel = Tunnel(Settings(listen=(address,), routes=(Route(**backend.route),)))
            with pytest.raises(StartError):
                await tunnel.start()
        async with tunnel:
            assert tunnel.addresses == (address,)
            client = await Client.reach(address)
            await client.upgrade("/")
            client.close()
            (await backend.accept()).close()

    run(check())


def test_a_tunnel_may_be_started_again_after_its_end(run: Run, backend):
    async def check() -> None:
        tunnel = Tunnel(Settings(listen=(ANY_PORT,), routes=(Route(**backend.route),)))
        fds = descriptors()
        for _ in range(3):
            async with tunnel:
                client = await Client.reach(tunnel.addresses[0])
                await client.upgrade("/")
                client.close()
                (await backend.accept()).close()
            assert tunnel.addresses == ()
            await eventually(lambda: descriptors() == fds, "every descriptor closed")

    run(check())


# --- ends on top of ends


class Slow:
    """`async with Slow(backend) as slow`: a tunnel with one client, whose end takes as long as the backend wants."""

    def __init__(self, backend: Backend, *, drain_s: float = 10.0) -> None:
        self._backend = backend
        self.tunnel = Tunnel(Settings(listen=(ANY_PORT,), routes=(Route(**backend.route),), drain_timeout_s=drain_s))

    async def __aenter__(self) -> Slow:
        await self.tunnel.start()
        self.address = self.tunnel.addresses[0]
        self.client = await Client.reach(self.address)
        await self.client.upgrade("/")
        self.wire = await self._backend.accept()
        return self

    async def __aexit__(self, *_: Any) -> None:
        self.client.close()
        self.wire.close()
        await self.tunnel.stop()


def test_a_second_stop_waits_for_the_first_and_does_not_cut_it_short(run: Run, backend):
    """The backends must not be taken away from under tunnels that still end."""

    async def check() -> None:
        async with Slow(backend) as slow:
            first = asyncio.ensure_future(slow.tunnel.stop())
            await turns(4)
            second = asyncio.ensure_future(slow.tunnel.stop())
            await turns(20)
            assert not second.done()

            await slow.wire.send(b"still here")
            slow.wire.close()

            heard = await slow.client.to_end(answer=True)
            assert (heard.data, heard.code) == (b"still here", 1001)
            slow.client.close()
            await asyncio.gather(first, second)
            assert is_free(slow.address)

    run(check())


def test_abort_ends_a_stop_that_is_under_way(run: Run, backend):
    async def check() -> None:
        async with Slow(backend) as slow:
            stopping = asyncio.ensure_future(slow.tunnel.stop())
            await turns(4)
            assert not stopping.done()

            slow.tunnel.abort()

            async with asyncio.timeout(2.0):
                await stopping
            assert (await slow.client.to_end()).code == 1001

    run(check())


def test_abort_before_the_stop_that_it_is_meant_for_cuts_the_tunnels_too(run: Run, backend):
    """Two signals in one turn of the loop: the second is seen before the first has begun to stop."""

    async def check() -> None:
        async with Slow(backend) as slow:
            slow.tunnel.abort()

            async with asyncio.timeout(2.0):
                await slow.tunnel.stop()
            assert (await slow.client.to_end()).code == 1001

    run(check())


def test_abort_does_not_wait_for_a_backend_that_heeds_no_signal(run: Run, tmp_path):
    async def check() -> None:
        stubborn = ("/bin/sh", "-c", f"trap '' TERM; : > {tmp_path}/ready; while :; do sleep 0.1; done")
        tunnel = Tunnel(Settings(listen=(ANY_PORT,), routes=(Route(socket=f"{tmp_path}/s", bin_path=stubborn),)))
        async with tunnel:
            await eventually((tmp_path / "ready").exists, "the signal ignored")
            stopping = asyncio.ensure_future(tunnel.stop())
            await turns(20)
            assert not stopping.done()

            tunnel.abort()

            async with asyncio.timeout(2.0):
                await stopping

    run(check())


def test_abort_of_a_tunnel_that_does_not_run_does_nothing(run: Run):
    async def check() -> None:
        tunnel = Tunnel(Settings(listen=(ANY_PORT,)))
        tunnel.abort()
        async with tunnel:
            pass
        tunnel.abort()

    run(check())


def test_a_stop_that_is_called_off_still_gives_everything_back(run: Run, backend, tmp_path):
    async def check() -> None:
        fds, pids = descriptors(), children()
        spawned = Route(path="/spawned", socket=str(tmp_path / "s.sock"), bin_path=SLEEPER)
        tunnel = Tunnel(Settings(listen=(ANY_PORT,), routes=(spawned, Route(**backend.route))))
        await tunnel.start()
        (address,) = tunnel.addresses
        client = await Client.reach(address)
        await client.upgrade("/")
        wire = await backend.accept()
        stopping = asyncio.ensure_future(tunnel.stop())
        await turns(4)

        stopping.cancel()

        with pytest.raises(asyncio.CancelledError):
            await stopping
        assert (await client.to_end()).code == 1001
        client.close()
        wire.close()
        assert is_free(address)
        assert children() == pids
        await eventually(lambda: descriptors() == fds, "every descriptor closed")

    run(check())


def test_a_tunnel_that_takes_too_long_is_cut_after_the_drain_time(run: Run, backend):
    async def check() -> None:
        async with Slow(backend, drain_s=0.05) as slow:
            async with asyncio.timeout(2.0):
                await slow.tunnel.stop()
            assert (await slow.client.to_end()).code == 1001
            assert await slow.wire.recv() == b""

    run(check())


# --- certificates


async def serial_at(address: TcpAddress, authority: Authority) -> int:
    """Of the certificate that a new client is shown."""
    _, writer = await asyncio.open_connection(
        address.host, address.port, ssl=authority.trusting(), server_hostname="localhost"
    )
    shown: dict[str, Any] = writer.get_extra_info("peercert")
    writer.transport.abort()
    return int(shown["serialNumber"], 16)


def test_it_reads_certificates_itself_and_again_when_they_change(run: Run, authority: Authority):
    async def check() -> None:
        files = authority.files("a")
        limits = Limits(certificate=CertificateLimits(look_s=0.02))
        settings = Settings(
            listen=(ANY_PORT,),
            listeners=(Entrance(listen=(ANY_PORT,), tls_cert=(files.cert,), tls_key=(files.key,)),),
            document_root="/",
            limits=limits,
        )
        async with Tunnel(settings) as tunnel:
            plain, tls = tunnel.addresses
            visitor = await Client.reach(plain)
            assert (await visitor.request("/nowhere")).status == 404
            visitor.close()
            assert await serial_at(tls, authority) == files.serial
            files = authority.files("a")
            async with asyncio.timeout(30):
                while await serial_at(tls, authority) != files.serial:
                    pass
            watch = tunnel._watch
        assert watch is not None
        assert watch._timer is None

    run(check())


def test_a_certificate_that_is_of_no_use_is_told_before_anything_is_bound(run: Run, authority: Authority):
    files = authority.files("a")
    settings = Settings(listen=(ANY_PORT,), tls_cert=(files.cert,), document_root="/")
    run(fails_to_start(settings, ConfigError, "tls-cert: .* holds no private key in PEM form"))
