"""An upgraded FastCGI connection as a plain socket: bytes without records, ends, back-pressure, releases."""

from __future__ import annotations

import asyncio
import os
from typing import Any
from unittest.mock import patch

import pytest

from tests.conftest import Run
from tests.exchanges import FakeExchange
from tests.unit.gateways.applications import Stand, handshake_of, record, within
from tests.wire.sockets import eventually, quiet, turns
from tests.wire.stage import LogTap
from wstunnel.errors import BackendError
from wstunnel.gateways.fastcgi import FastcgiGateway
from wstunnel.limits import GatewayLimits

UPGRADED = b"Status: 101\nUpgrade: websocket\n\n"
BIG = 8 * 1024 * 1024
PIECE_BYTES = 32 * 1024


def patient() -> Stand:
    """Whoever waits for the end of a request here waits for good."""
    return Stand("fastcgi", upgrade=True, limits=GatewayLimits(end_wait_s=20.0))


def test_the_clients_eof_ends_stdin_and_the_backend_may_say_more(run: Run):
    async def ended() -> None:
        async with patient() as stand, stand.upgrade() as (application, near, _):
            await near.send(b"last words")
            near.half_close()
            assert await within(application.whole_body()) == b"last words"
            await application.say(b"goodbye")
            await application.end()
            assert await within(near.recv_to_end()) == b"goodbye"

    run(ended())


def test_what_comes_with_the_end_of_the_request_is_the_last_that_the_client_gets(run: Run):
    async def ended() -> None:
        async with patient() as stand, stand.upgrade() as (application, near, _):
            await application.wire.send(record(6, b"goodbye") + record(6) + record(3, bytes(8)))
            assert await within(near.recv_to_end()) == b"goodbye"
            await near.send(b"x" * 500_000)  # nobody wants it any more, and it holds up nobody
            application.wire.close()

    run(ended())


@pytest.mark.parametrize("what", [b"", b"no record"], ids=["without END_REQUEST", "with what is no record"])
def test_a_backend_that_breaks_off_is_logged_and_the_client_gets_its_eof(run: Run, what: bytes):
    async def broken() -> list[str]:
        with LogTap("wstunnel.backend") as log:
            async with patient() as stand, stand.upgrade() as (application, near, _):
                await application.say(b"begun")
                await turns(5)
                await application.wire.send(what)
                application.wire.close()
                assert await within(near.recv_to_end()) == b"begun"
            return log.texts()

    (line,) = run(broken())
    assert line.startswith("app-0: a WebSocket broke off: ")


def test_a_release_tells_the_backend_to_abort_and_waits_for_its_end(run: Run):
    async def released() -> list[str]:
        with LogTap("wstunnel.backend") as log:
            async with patient() as stand:
                async with stand.upgrade() as (application, _, given):
                    pass
                await within(application.aborted())
                given.lease.release()  # again, which changes nothing
                await turns(5)
                assert not stand.leases[0].releases
                await application.complain(b"aborted")
                await application.end()
                await eventually(lambda: stand.leases[0].releases == 1, "the claim given back")
            return log.texts()

    assert run(released()) == ["app-0: aborted"]


def test_a_release_behind_the_end_of_the_request_tells_nobody_anything(run: Run):
    async def released() -> None:
        async with patient() as stand:
            async with stand.upgrade() as (application, near, _):
                await application.wire.send(record(3, bytes(8)))
                assert await within(near.recv_to_end()) == b""
            assert await within(application.wire.recv_to_end()) == b""

    run(released())


def test_a_release_in_the_moment_of_the_upgrade_gives_everything_back(run: Run):
    async def released() -> None:
        async with patient() as stand:

            async def serve_and_close() -> None:
                exchange: Any = FakeExchange(handshake_of())
                upgraded = await stand.gateway.serve(exchange)
                assert upgraded is not None
                upgraded.close()

            serving = asyncio.create_task(serve_and_close())
            application = await stand.accept()
            await application.say(UPGRADED)
            await within(application.wire.gone())
            await within(serving)

    run(released())


def test_a_gateway_that_closes_cuts_what_has_become_a_pipe(run: Run):
    async def closed() -> None:
        async with patient() as stand, stand.upgrade() as (application, near, _):
            assert isinstance(stand.gateway, FastcgiGateway)
            stand.gateway.close()
            assert await within(near.recv_to_end()) == b""
            await within(application.wire.gone())

    run(closed())


def test_a_client_that_takes_nothing_holds_up_the_backend(run: Run):
    async def stalled() -> None:
        async with patient() as stand, stand.upgrade() as (application, near, _):
            sent = 0

            async def flood() -> None:
                nonlocal sent
                while sent < BIG:
                    await application.say(b"x" * PIECE_BYTES)
                    sent += PIECE_BYTES

            flooding = asyncio.create_task(flood())
            assert await quiet(lambda: sent) < BIG // 4
            taken = 0
            while taken < BIG:
                taken += len(await within(near.recv()))
            await flooding
            assert taken == sent

    run(stalled())


def test_a_backend_that_takes_nothing_holds_up_the_client(run: Run):
    async def stalled() -> None:
        async with patient() as stand, stand.upgrade() as (application, near, _):
            sent = 0

            async def flood() -> None:
                nonlocal sent
                while sent < BIG:
                    await near.send(b"x" * PIECE_BYTES)
                    sent += PIECE_BYTES
                near.half_close()

            flooding = asyncio.create_task(flood())
            assert await quiet(lambda: sent) < BIG // 4
            assert len(await application.whole_body()) == sent
            await flooding

    run(stalled())


def test_without_descriptors_there_is_no_upgrade(run: Run):
    async def asked() -> None:
        async with patient() as stand:
            application, serving = await stand.ask(FakeExchange(handshake_of()))
            with patch("socket.socketpair", side_effect=OSError(24, os.strerror(24))):
                await application.say(UPGRADED)
                with pytest.raises(BackendError, match="Too many open files") as refused:
                    await within(serving)
            assert refused.value.status == 503

    run(asked())
