"""From what a program says by CGI to what its client gets, and what becomes of a request's body meanwhile."""

from __future__ import annotations

import asyncio
import re

import pytest

from tests.conftest import Run
from tests.exchanges import FakeExchange, request_of
from wstunnel.errors import BackendError, CutAnswerError, LimitError, PeerError
from wstunnel.gateways.answer import UnansweredError, beside, check_upgrade, collect_body, pass_on, read_head
from wstunnel.limits import GatewayLimits
from wstunnel.proto.handshake import accept_hash
from wstunnel.proto.response import ResponseHead

DEADLINE_S = 20.0
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
HANDSHAKE = request_of(wants_websocket=True, headers=(("sec-websocket-key", KEY),))


class Said:
    """A program that says these pieces, and ends; an exception among them is raised in its turn."""

    def __init__(self, *pieces: bytes | Exception) -> None:
        self.left = list(pieces)

    async def read(self) -> bytes:
        await asyncio.sleep(0)
        piece = self.left.pop(0) if self.left else b""
        if isinstance(piece, Exception):
            raise piece
        return piece


async def answered(exchange: FakeExchange, *pieces: bytes | Exception) -> Said:
    said = Said(*pieces)
    head, first = await read_head(said, GatewayLimits())
    await pass_on(exchange, head, first, said)
    return said


def answer_to(run: Run, *pieces: bytes | Exception, method: str = "GET") -> FakeExchange:
    exchange = FakeExchange(request_of(method=method))
    run(answered(exchange, *pieces))
    assert exchange.is_complete
    return exchange


# --- answers


def test_an_answer_of_unknown_length_goes_on_until_the_program_ends(run: Run):
    exchange = answer_to(run, b"Status: 404 Gone\nContent-Type: text/x\n\none ", b"two ", b"three")
    assert (exchange.status, exchange.length, exchange.sent) == (404, None, b"one two three")
    assert exchange.headers == (("content-type", "text/x"),)


def test_an_answer_of_announced_length_ends_there_and_what_follows_is_dropped(run: Run):
    exchange = FakeExchange()
    said = run(answered(exchange, b"Content-Length: 5\n\nab", b"cdef", b"never read"))
    assert (exchange.status, exchange.length, exchange.sent, exchange.is_complete) == (200, 5, b"abcde", True)
    assert said.left == [b"never read"]


@pytest.mark.parametrize("head", [b"Status: 204\n\n", b"Status: 304\n\n", b"Content-Length: 0\n\n"])
def test_an_answer_without_a_body_does_not_wait_for_one(run: Run, head):
    exchange = FakeExchange()
    said = run(answered(exchange, head + b"junk", b"more"))
    assert (exchange.sent, exchange.is_complete, said.left) == (b"", True, [b"more"])


def test_the_body_of_an_answer_to_head_is_not_waited_for(run: Run):
    """It could go on for ever, and nobody would see the client leave: it has its whole answer."""
    for head, length in ((b"A: b\n\n", None), (b"A: b\nContent-Length: 10\n\n", 10)):
        exchange = FakeExchange(request_of(method="HEAD"))
        said = run(answered(exchange, head, b"never read"))
        assert (exchange.status, exchange.length, exchange.sent, exchange.is_complete) == (200, length, b"", True)
        assert said.left == [b"never read"]


def test_an_answer_that_is_shorter_than_announced_is_cut(run: Run):
    exchange = FakeExchange()
    with pytest.raises(CutAnswerError, match="ended 3 bytes before the end of the 5"):
        run(answered(exchange, b"Content-Length: 5\n\nab"))
    assert (exchange.sent, exchange.is_complete) == (b"ab", False)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (TimeoutError(), "the program was silent for read-timeout in the middle of its answer"),
        (ConnectionResetError(104, "reset"), "the connection broke in the middle of the answer: reset"),
    ],
)
def test_an_answer_that_breaks_off_is_cut(run: Run, error, why):
    for head in (b"A: b\n\n", b"Content-Length: 5\n\n"):
        exchange = FakeExchange()
        with pytest.raises(CutAnswerError, match=why):
            run(answered(exchange, head, b"ab", error))
        assert (exchange.sent, exchange.is_complete) == (b"ab", False)


@pytest.mark.parametrize(
    ("pieces", "status", "why"),
    [
        ((b"Content-Type: te", TimeoutError()), 504, "no answer within read-timeout"),
        ((b"A: b\n", ConnectionResetError(104, "reset")), 502, "broke before the head of the answer: reset"),
        ((b"A: b\n",), 502, "the program ended before the head of its answer"),
        ((), 502, "the program ended before the head of its answer"),
        ((b"no head at all\n\n",), 502, "is no field"),
        ((b"A: " + b"b" * 70_000,), 502, "does not end within 65536 bytes"),
    ],
)
def test_what_is_no_head_of_an_answer_is_a_refusal(run: Run, pieces, status, why):
    exchange = FakeExchange()
    with pytest.raises(BackendError, match=why) as caught:
        run(answered(exchange, *pieces))
    assert (caught.value.status, exchange.status) == (status, 0)
    assert isinstance(caught.value, UnansweredError) == ("program ended" in why)


@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_an_answer_is_the_same_however_it_is_cut(run: Run, step):
    wire = b"Status: 201\r\nContent-Type: text/x\r\n\r\nthe body\n"
    exchange = answer_to(run, *(wire[at : at + step] for at in range(0, len(wire), step)))
    assert (exchange.status, exchange.sent) == (201, b"the body\n")


# --- upgrades


def switching(*headers: tuple[str, str]) -> ResponseHead:
    return ResponseHead(status=101, headers=headers, body_bytes=0, is_upgrade=True)


@pytest.mark.parametrize("accept", [(), (("sec-websocket-accept", accept_hash(KEY)),)])
def test_an_upgrade_that_was_asked_for_is_told_with_the_programs_fields(accept):
    said = (("upgrade", "WebSocket"), *accept, ("sec-websocket-protocol", "x"))
    assert check_upgrade(HANDSHAKE, switching(*said), is_allowed=True) == (*said, ("Connection", "Upgrade"))


@pytest.mark.parametrize(
    ("request_", "is_allowed", "fields", "why"),
    [
        (HANDSHAKE, False, [("upgrade", "websocket")], "which nobody has asked it for"),
        (request_of(), True, [("upgrade", "websocket")], "which nobody has asked it for"),
        (HANDSHAKE, True, [("upgrade", "h2c")], 'with "Upgrade: h2c" instead of websocket'),
        (HANDSHAKE, True, [("upgrade", "websocket, h2c")], 'with "Upgrade: websocket, h2c" instead'),
        (
            HANDSHAKE,
            True,
            [("upgrade", "websocket"), ("sec-websocket-accept", "x")],
            'with "Sec-WebSocket-Accept: x", which does not fit',
        ),
        (
            HANDSHAKE,
            True,
            [("upgrade", "websocket"), ("sec-websocket-accept", accept_hash(KEY)), ("sec-websocket-accept", "x")],
            "which does not fit",
        ),
    ],
)
def test_an_upgrade_that_does_not_answer_the_handshake_is_none(request_, is_allowed, fields, why):
    with pytest.raises(BackendError, match=re.escape(why)) as caught:
        check_upgrade(request_, switching(*fields), is_allowed=is_allowed)
    assert caught.value.status == 502


# --- bodies


def test_a_chunked_body_is_collected_up_to_its_bound(run: Run):
    limits = GatewayLimits(max_collected_bytes=6)
    assert run(collect_body(FakeExchange(body=[b"abc", b"def"]), limits)) == b"abcdef"
    with pytest.raises(LimitError, match="7 is over the limit of 6") as caught:
        run(collect_body(FakeExchange(body=[b"abc", b"defg", b"never read"]), limits))
    assert caught.value.status == 413


def test_what_sends_the_body_is_cancelled_when_the_answer_is_over(run: Run):
    async def main() -> None:
        ended: list[str] = []

        async def send() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("sender")

        async with beside(send()):
            await asyncio.sleep(0)
        assert ended == ["sender"]

    run(main())


def test_what_sends_the_body_may_end_before_the_answer(run: Run):
    async def main() -> None:
        async with beside(asyncio.sleep(0)):
            await asyncio.sleep(0.001)

    run(main())


def test_an_error_of_either_side_ends_the_other_and_is_the_one_that_is_raised(run: Run):
    async def main() -> None:
        async def fail() -> None:
            raise PeerError("a malformed chunk")

        with pytest.raises(PeerError, match="a malformed chunk"):
            async with beside(fail()):
                await asyncio.Event().wait()
        with pytest.raises(BackendError, match="no head"):
            async with beside(asyncio.sleep(DEADLINE_S)):
                raise BackendError("no head")

    run(main())


def test_a_client_that_leaves_cancels_both_sides(run: Run):
    async def main() -> None:
        ended: list[str] = []

        async def wait(who: str) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(who)

        async def serve() -> None:
            async with beside(wait("sender")):
                await wait("reader")

        task = asyncio.create_task(serve())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sorted(ended) == ["reader", "sender"]

    run(main())
