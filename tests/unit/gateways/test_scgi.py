"""SCGI as far as it is not the same for FastCGI: the end of the connection is the end of the answer."""

from __future__ import annotations

import pytest

from tests.conftest import Run
from tests.exchanges import FakeExchange, request_of
from tests.unit.gateways.applications import Stand, within
from wstunnel.errors import BackendError


def test_a_request_is_one_netstring_and_its_body_follows_as_it_is(run: Run):
    async def posted() -> bytes:
        async with Stand("scgi") as stand:
            exchange = FakeExchange(request_of(method="POST", body_bytes=2), [b"a", b"b"])
            application, serving = await stand.ask(exchange)
            assert (application.environ["SCGI"], next(iter(application.environ))) == ("1", "CONTENT_LENGTH")
            assert await within(application.whole_body()) == b"ab"
            await application.say(b"Content-Type: text/x\n\nan answer")
            await application.end()
            await within(serving)
            return exchange.sent

    assert run(posted()) == b"an answer"


def test_a_backend_that_is_gone_when_it_is_asked_is_a_502(run: Run):
    async def asked() -> None:
        async with Stand("scgi") as stand:
            stand.is_refusing = True
            with pytest.raises(BackendError) as refused:
                await within(stand.serve(FakeExchange()))
            assert refused.value.status == 502

    run(asked())


def test_what_stands_behind_the_announced_length_is_not_waited_for(run: Run):
    async def asked() -> bytes:
        async with Stand("scgi") as stand:
            exchange = FakeExchange()
            application, serving = await stand.ask(exchange)
            await application.say(b"Content-Length: 2\n\nab")
            await within(serving)
            return exchange.sent

    assert run(asked()) == b"ab"


@pytest.mark.parametrize("sent_bytes", [100, 1_000_000], ids=["all of it sent", "most of it unsent"])
def test_an_answer_without_a_look_at_the_body_is_whole(run: Run, sent_bytes: int):
    """Its end is a reset then, or we cannot write any more: neither is the end of what has been said."""
    said = b"x" * 200_000

    async def posted() -> None:
        async with Stand("scgi") as stand:
            exchange = FakeExchange(request_of(method="POST", body_bytes=sent_bytes), [b"b" * sent_bytes])
            serving = stand.serve(exchange)
            application = await stand.accept(is_deaf=True)
            await application.say(b"Status: 404\n\n" + said)
            application.wire.close()
            await within(serving)
            assert (exchange.status, exchange.sent == said, exchange.is_complete) == (404, True, True)

    run(posted())
