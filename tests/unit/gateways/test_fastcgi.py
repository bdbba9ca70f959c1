"""FastCGI as far as it is not the same for SCGI: how requests end, and who is told that nobody waits for them."""

from __future__ import annotations

import asyncio

import pytest

from tests.conftest import Run
from tests.exchanges import FakeExchange, request_of
from tests.unit.gateways.applications import Stand, handshake_of, record, within
from tests.wire.sockets import eventually, quiet, turns
from tests.wire.stage import LogTap
from wstunnel.errors import BackendError, CutAnswerError
from wstunnel.limits import GatewayLimits


@pytest.mark.parametrize("exchange", [FakeExchange(), FakeExchange(handshake_of())], ids=["plain", "not allowed"])
def test_a_request_without_a_body_has_an_empty_stdin(run: Run, exchange: FakeExchange):
    async def asked() -> None:
        async with Stand("fastcgi") as stand:
            application, _ = await stand.ask(FakeExchange(exchange.request))
            assert await within(application.body()) == b""

    run(asked())


def test_the_stdin_of_a_handshake_stays_open(run: Run):
    async def asked() -> None:
        async with Stand("fastcgi", upgrade=True) as stand:
            application, _ = await stand.ask(FakeExchange(handshake_of()))
            assert await quiet(lambda: len(application.pieces), for_s=0.05) == 0
            with pytest.raises(BlockingIOError):
                application.wire.sock.recv(1)

    run(asked())


def test_what_is_said_on_stderr_goes_to_the_log_line_by_line(run: Run):
    async def asked() -> list[str]:
        async with Stand("fastcgi") as stand:
            exchange = FakeExchange()
            application, serving = await stand.ask(exchange)
            await application.complain(b"in two ")
            await application.say(b"Content-Type: text/x\n\n")
            await application.complain(b"pieces\r\nesc\x1baped\nlast words")
            await application.end()
            with LogTap("wstunnel.backend") as log:
                await within(serving)
                assert exchange.is_complete
                return log.texts()

    assert run(asked()) == ["app-0: in two pieces", "app-0: esc\\x1baped", "app-0: last words"]


def test_stderr_behind_an_answer_of_known_length_is_heard(run: Run):
    async def asked() -> list[str]:
        async with Stand("fastcgi", limits=GatewayLimits(end_wait_s=20.0)) as stand:
            exchange = FakeExchange()
            application, serving = await stand.ask(exchange)
            await application.say(b"Content-Length: 2\n\nab")
            await eventually(lambda: exchange.is_complete, "the answer, before the request has ended")
            assert not serving.done()
            with LogTap("wstunnel.backend") as log:
                await application.complain(b"done\n")
                await application.end()
                await within(serving)
                return log.texts()

    assert run(asked()) == ["app-0: done"]


def test_a_backend_that_does_not_end_the_request_is_not_waited_for_long(run: Run):
    async def asked() -> None:
        async with Stand("fastcgi", limits=GatewayLimits(end_wait_s=0.05)) as stand:
            application, serving = await stand.ask()
            await application.say(b"Content-Length: 2\n\nab")
            await within(serving)
            await within(application.wire.gone())

    run(asked())


@pytest.mark.parametrize(("status", "lines"), [(0, []), (3, ["app-0: ended a request with status 3"])])
def test_a_status_that_is_not_0_is_logged(run: Run, status: int, lines: list[str]):
    async def asked() -> list[str]:
        async with Stand("fastcgi") as stand:
            application, serving = await stand.ask()
            with LogTap("wstunnel.backend") as log:
                await application.say(b"Status: 404\n\ngone")
                await application.end(status)
                await within(serving)
                return log.texts()

    assert run(asked()) == lines


def test_records_may_be_cut_anywhere_and_padded(run: Run):
    async def asked() -> bytes:
        async with Stand("fastcgi") as stand:
            exchange = FakeExchange()
            application, serving = await stand.ask(exchange)
            wire = record(6, b"A: b\n", 7) + record(6, b"\nbo", 255) + record(6, b"dy", 1) + record(3, bytes(8), 5)
            await application.wire.send_in_pieces(wire, [1] * (len(wire) - 1), lull_turns=3)
            await within(serving)
            return exchange.sent

    assert run(asked()) == b"body"


def test_an_overloaded_backend_is_a_503(run: Run):
    async def asked() -> None:
        async with Stand("fastcgi") as stand:
            application, serving = await stand.ask()
            await application.wire.send(record(3, bytes((0, 0, 0, 0, 2, 0, 0, 0))))
            with pytest.raises(BackendError, match="overloaded") as refused:
                await within(serving)
            assert refused.value.status == 503

    run(asked())


@pytest.mark.parametrize("what", [b"HTTP/1.1 200 OK\r\n", b""], ids=["no FastCGI", "the end without END_REQUEST"])
def test_what_is_no_fastcgi_is_a_502_and_within_an_answer_cuts_it(run: Run, what: bytes):
    async def asked() -> None:
        async with Stand("fastcgi") as stand:
            application, serving = await stand.ask()
            await application.wire.send(what)
            application.wire.close()
            with pytest.raises(BackendError) as refused:
                await within(serving)
            assert refused.value.status == 502

            exchange = FakeExchange()
            application, serving = await stand.ask(exchange)
            await application.say(b"A: b\n\nbegun")
            await eventually(lambda: exchange.sent == b"begun", "the beginning")
            await application.wire.send(what)
            application.wire.close()
            with pytest.raises(CutAnswerError):
                await within(serving)
            assert not exchange.is_complete

    run(asked())


@pytest.mark.parametrize("phase", ["waiting for the answer", "sending the body", "in the answer"])
def test_a_backend_whose_client_leaves_is_told_to_abort_and_may_end_the_request(run: Run, phase: str):
    async def left() -> list[str]:
        async with Stand("fastcgi", limits=GatewayLimits(end_wait_s=20.0)) as stand:
            request = request_of(method="POST", body_bytes=9) if phase == "sending the body" else request_of()
            exchange = FakeExchange(request, [b"abc"], stalls=phase == "sending the body")
            application, serving = await stand.ask(exchange)
            if phase == "in the answer":
                await application.say(b"A: b\n\nbegun")
                await eventually(lambda: exchange.sent == b"begun", "the beginning")
            await turns(5)
            serving.cancel()
            await within(application.aborted())
            assert not serving.done()
            with LogTap("wstunnel.backend") as log:
                await application.complain(b"aborted\n")
                await application.end()
                with pytest.raises(asyncio.CancelledError):
                    await within(serving)
                return log.texts()

    assert run(left()) == ["app-0: aborted"]


def test_a_backend_that_takes_no_abort_is_left_all_the_same(run: Run):
    async def left() -> None:
        async with Stand("fastcgi", limits=GatewayLimits(end_wait_s=0.05)) as stand:
            exchange = FakeExchange(request_of(method="POST", body_bytes=10**6), [b"x" * 10**6])
            application, serving = await stand.ask(exchange)
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await within(serving)
            await within(application.wire.gone())

    run(left())
