"""What a hostile HTTP/2 client gets: GOAWAY, and no more than its own bounds; an innocent one notices nothing."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
from h2.connection import H2Connection as H2Engine

from bench.abuse.attacks import FLOODS, PREFACE, Enemy, Requests, reset, settings, window_update
from bench.abuse.attacks import frame as h2_frame
from tests.conftest import Run
from tests.wire.backends import Backend, echo
from tests.wire.clients import BINARY, TEXT, Client, frame
from tests.wire.sockets import DEADLINE_S, Wire, connected, eventually
from tests.wire.stage import LogTap
from tests.wire.tls import TlsClient, client_context, issued, pem
from wstunnel import Route, Settings, TcpAddress, Tunnel
from wstunnel._h2 import H2Leg
from wstunnel.limits import FileLimits, H2Limits, HeadLimits, Limits

PROTOCOL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, ENHANCE_YOUR_CALM = 1, 3, 6, 11

FIRST_WINDOW = 65535
MOST = 100_000
"""Pieces of an attack that are never all taken."""

Place = Callable[..., AbstractAsyncContextManager["Scene"]]


class Scene:
    """A Tunnel with a route that echoes, a route whose backend says nothing, and files; and an innocent client."""

    def __init__(self, address: TcpAddress, client: Client) -> None:
        self.address, self._client = address, client
        self.met = 0
        """Connections to the backend that echoes."""

    async def meet(self) -> Enemy:
        context = None
        if isinstance(self._client, TlsClient):
            context = client_context()
            context.set_alpn_protocols(["h2"])
        return await Enemy.meet(self.address.host, self.address.port, context)

    async def enemy(self) -> Enemy:
        enemy = await self.meet()
        await enemy.greet()
        return enemy

    async def echo(self, wire: Wire) -> None:
        self.met += 1
        await echo(wire)

    async def check_innocent(self) -> None:
        await self._client.send(frame(TEXT, b"hello"))
        assert await self._client.payload(5) == b"hello"


def certificate(folder: Path) -> dict[str, tuple[str, ...]]:
    chain, key = folder / "chain.pem", folder / "key.pem"
    key.touch(mode=0o600)
    for path, text in zip((chain, key), pem(issued("localhost")), strict=True):
        path.write_bytes(text)
    return {"tls_cert": (str(chain),), "tls_key": (str(key),)}


@pytest.fixture
def run() -> Run:
    """HTTP/2 is served by the hub, whatever reads other sockets."""
    return Run("uvloop", "hub")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    site = tmp_path / "site"
    site.mkdir()
    (site / "index.html").write_text("hello\n")
    (site / "medium").write_bytes(bytes(100 << 10))
    (site / "large").write_bytes(bytes(1 << 20))

    @asynccontextmanager
    async def opened(*, tls: bool = False, **limits: Any) -> AsyncIterator[Scene]:
        backend, silent = Backend(str(tmp_path / "b.sock")), Backend(str(tmp_path / "s.sock"))
        routes = (Route(path="/ws", **backend.route), Route(path="/silent", close_timeout_s=0.1, **silent.route))
        settings = Settings(
            listen=(TcpAddress("127.0.0.1", 0),),
            h2c=not tls,
            document_root=str(site),
            io="hub",
            routes=routes,
            limits=Limits(**limits),
            **(certificate(tmp_path) if tls else {}),
        )
        try:
            with LogTap("wstunnel", logging.ERROR) as errors:
                async with Tunnel(settings) as tunnel:
                    address = tunnel.addresses[0]
                    client = await (TlsClient.meet(address) if tls else Client.reach(address))
                    scene = Scene(address, client)
                    backend.serve(scene.echo)
                    await client.upgrade("/ws", ())
                    try:
                        yield scene
                    finally:
                        client.close()
            assert not errors.texts()
        finally:
            await backend.stop()
            await silent.stop()

    return opened


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_is_answered_by_goaway_and_an_innocent_client_goes_on(run: Run, place: Place, name: str):
    attack, codes = FLOODS[name]

    async def story():
        async with place() as on, await on.enemy() as enemy:
            sent = await enemy.flood(attack(enemy), MOST)
            await asyncio.wait_for(enemy.ended.wait(), DEADLINE_S)
            await on.check_innocent()
            assert sent < MOST, "the flood was taken to its end"
            assert enemy.goaway in codes
            assert on.met < 500, "backend connections"

    run(story())


@pytest.mark.parametrize("name", ["rapid_reset_of_tunnels", "continuation_of_nothing", "pings", "empty_data"])
def test_a_flood_over_tls_is_answered_by_goaway(run: Run, place: Place, name: str):
    attack, codes = FLOODS[name]

    async def story():
        async with place(tls=True) as on, await on.enemy() as enemy:
            sent = await enemy.flood(attack(enemy), MOST)
            await asyncio.wait_for(enemy.ended.wait(), DEADLINE_S)
            await on.check_innocent()
            assert sent < MOST, "the flood was taken to its end"
            assert enemy.goaway in codes

    run(story())


BOMB = [("x-bomb", "b" * 3000)]
SINGLE = {
    "garbage for a preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX" + settings(), PROTOCOL_ERROR),
    "garbage behind the preface": (PREFACE + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", FRAME_SIZE_ERROR),
    "a frame of 16 MiB": (PREFACE + settings() + b"\xff\xff\xff\0\0\0\0\0\1", FRAME_SIZE_ERROR),
    "PUSH_PROMISE": (PREFACE + settings() + h2_frame(5, 4, 1, b"\0\0\0\2\x82"), PROTOCOL_ERROR),
    "a PING of a stream": (PREFACE + settings() + h2_frame(6, 0, 1, bytes(8)), PROTOCOL_ERROR),
    "HEADERS of a stream of ours": (PREFACE + settings() + h2_frame(1, 5, 2, b"\x82"), PROTOCOL_ERROR),
    "DATA of a stream that was never opened": (PREFACE + settings() + h2_frame(0, 0, 1, b"x"), PROTOCOL_ERROR),
    "a window of a stream that was never opened": (PREFACE + settings() + window_update(5, 1), PROTOCOL_ERROR),
    "a window of 2^31": (PREFACE + settings((4, 2**31)), FLOW_CONTROL_ERROR),
    "a table of HPACK that is larger than allowed": (
        PREFACE + settings() + h2_frame(1, 5, 1, b"\x3f\xe1\xff\x03\x82"),
        PROTOCOL_ERROR,
    ),
}


@pytest.mark.parametrize("what", SINGLE)
def test_what_is_against_the_rules_ends_the_connection(run: Run, place: Place, what: str):
    said, code = SINGLE[what]

    async def story():
        async with place() as on, await on.meet() as enemy:
            await enemy.send(said)
            await asyncio.wait_for(enemy.ended.wait(), DEADLINE_S)
            assert enemy.goaway == code
            await on.check_innocent()

    run(story())


def test_a_preface_in_pieces_is_a_preface(run: Run, place: Place):
    async def story():
        async with place() as on, await on.meet() as enemy:
            for byte in PREFACE + settings():
                await enemy.send(bytes((byte,)))
                await asyncio.sleep(0)
            await enemy.send(enemy.get(enemy.new_id()))
            await eventually(lambda: enemy.statuses == {1: 200}, "an answer")

    run(story())


@pytest.mark.parametrize("said", [b"", PREFACE[:10], PREFACE[:20], PREFACE, PREFACE + settings()])
def test_a_client_that_asks_for_nothing_is_ended(run: Run, place: Place, said: bytes):
    async def story():
        async with place(head=HeadLimits(head_timeout_s=0.2)) as on, await on.meet() as enemy:
            await enemy.send(said)
            await asyncio.wait_for(enemy.ended.wait(), DEADLINE_S)

    run(story())


def test_a_header_block_that_never_ends_ends_the_connection_though_it_has_a_tunnel(run: Run, place: Place):
    async def story():
        async with place(head=HeadLimits(head_timeout_s=0.2)) as on, await on.enemy() as enemy:
            await enemy.send(enemy.connect(enemy.new_id()))
            await eventually(lambda: enemy.statuses == {1: 200}, "a tunnel")
            await enemy.send(enemy.get(enemy.new_id(), flags=0))
            await asyncio.wait_for(enemy.ended.wait(), DEADLINE_S)
            assert enemy.goaway == PROTOCOL_ERROR

    run(story())


@pytest.mark.parametrize("times", [15, 4000])
def test_a_small_block_for_a_large_list_ends_the_connection(run: Run, place: Place, times: int):
    """The HPACK bomb: one field of 3,000 bytes is remembered, and named again by a byte each."""

    async def story():
        async with place() as on, await on.enemy() as enemy:
            await enemy.send(enemy.get(enemy.new_id(), more=BOMB))
            await eventually(lambda: 1 in enemy.statuses, "an answer to a large field")
            bomb = enemy.get(enemy.new_id(), more=BOMB * times)
            assert len(bomb) < 5000
            await enemy.send(bomb)
            await asyncio.wait_for(enemy.ended.wait(), DEADLINE_S)
            assert enemy.goaway == ENHANCE_YOUR_CALM
            await on.check_innocent()

    run(story())


def test_what_a_client_says_of_tables_is_not_kept_for_it(run: Run, place: Place):
    async def story():
        async with place(h2=H2Limits(odd_events=1e9)) as on, await on.enemy() as enemy:
            await enemy.send(enemy.get(enemy.new_id()))
            await eventually(lambda: 1 in enemy.statuses, "an answer")
            usual_bytes = enemy.block_bytes
            for _ in range(200):
                await enemy.send(settings((1, 0)) + settings((1, 2**32 - 1)))
            await enemy.send(enemy.get(enemy.new_id()))
            await eventually(lambda: 3 in enemy.statuses, "an answer")
            assert enemy.block_bytes <= usual_bytes + 4, "two sizes of the table, of three bytes at most"

    run(story())


def test_few_ended_streams_are_remembered(run: Run, place: Place):
    async def story():
        async with place(h2=H2Limits(closed_streams=8)) as on, await on.enemy() as enemy:
            for _ in range(50):
                await enemy.send(enemy.get(enemy.new_id()))
            await eventually(lambda: len(enemy.statuses) == 50, "answers")
            (engine,) = (each for each in gc.get_objects() if isinstance(each, H2Engine))
            assert len(engine._closed_streams) == 8

    run(story())


def test_streams_without_a_window_are_dropped_in_time_and_hold_no_more_than_their_share(run: Run, place: Place):
    async def story():
        head = HeadLimits(write_stall_s=0.3)
        async with place(head=head) as on, await on.enemy() as enemy:
            await enemy.send(settings((4, 0)))
            for _ in range(100):
                await enemy.send(enemy.get(enemy.new_id(), "/large"))
            await eventually(lambda: len(enemy.statuses) == 100, "heads of answers")
            legs = [each for each in gc.get_objects() if isinstance(each, H2Leg)]
            most = head.write_high_bytes + FileLimits().chunk_bytes
            assert all(leg.waiting_bytes <= most for leg in legs)
            await on.check_innocent()
            await eventually(lambda: len(enemy.reset) == 100, "the end of each")
            assert enemy.goaway is None

    run(story())


def test_answers_that_are_reset_while_they_wait_for_a_window_leave_nobody_behind(run: Run, place: Place):
    async def story():
        async with place() as on, await on.enemy() as enemy:
            await enemy.send(settings((4, 0)))
            tasks_before = len(asyncio.all_tasks())
            for _ in range(50):
                await enemy.send(enemy.get(enemy.new_id(), "/medium"))
            await eventually(lambda: len(enemy.statuses) == 50, "heads of answers")
            for stream_id in enemy.statuses:
                await enemy.send(reset(stream_id))
            await eventually(lambda: len(asyncio.all_tasks()) <= tasks_before, "the end of every task")

    run(story())


def test_streams_that_were_reset_while_the_connection_has_no_window_are_forgotten(run: Run, place: Place):
    async def story():
        async with place() as on, await on.enemy() as enemy:
            await enemy.send(settings((4, 1 << 20)))
            await enemy.send(enemy.get(enemy.new_id(), "/large"))
            await eventually(lambda: enemy.taken[1] == FIRST_WINDOW, "all of the connection's window")
            for _ in range(100):
                stream_id = enemy.new_id()
                await enemy.send(enemy.get(stream_id, "/medium"))
                await eventually(lambda: stream_id in enemy.statuses, "the head of an answer")  # noqa: B023
                await enemy.send(reset(stream_id))
            await enemy.send(enemy.get(enemy.new_id(), "/nowhere"))
            await eventually(lambda: len(enemy.statuses) == 102, "an answer")
            assert sum(isinstance(each, H2Leg) for each in gc.get_objects()) < 10

    run(story())


@pytest.mark.parametrize(("window", "taken"), [(0, 0), (1000, 1000), (1 << 20, FIRST_WINDOW)])
def test_answers_of_a_client_that_says_no_more_end_where_their_window_does(
    run: Run, place: Place, window: int, taken: int
):
    async def story():
        async with place() as on, await on.enemy() as enemy:
            await enemy.send(settings((4, window)))
            await enemy.send(enemy.get(enemy.new_id(), "/large"))
            await enemy.send(enemy.get(enemy.new_id(), "/nowhere"))
            enemy.say_no_more()
            await asyncio.wait_for(enemy.ended.wait(), DEADLINE_S)
            assert enemy.statuses == {1: 200, 3: 404}
            assert enemy.taken[1] <= taken

    run(story())


def test_a_client_that_asks_on_and_never_reads_is_ended(run: Run, place: Place):
    async def story():
        async with place() as on:
            sock = await connected(on.address, buffer_bytes=4096)
            enemy = Requests()
            unsent = PREFACE + settings()
            sent = 0

            def is_ended() -> bool:
                nonlocal sent, unsent
                unsent = unsent or b"".join(enemy.get(enemy.new_id(), "/nowhere") for _ in range(50))
                try:
                    taken = sock.send(unsent)
                except BlockingIOError:
                    return False
                except ConnectionError:
                    return True
                sent, unsent = sent + taken, unsent[taken:]
                return False

            try:
                await eventually(is_ended, "an end")
                assert sent < 8 << 20
                await on.check_innocent()
            finally:
                sock.close()

    run(story())


def test_a_tunnel_whose_backend_does_not_read_gets_one_window_and_no_more(run: Run, place: Place):
    async def story():
        async with place() as on, await on.enemy() as enemy:
            stream_id = enemy.new_id()
            await enemy.send(enemy.connect(stream_id, "/silent"))
            await eventually(lambda: enemy.statuses == {1: 200}, "a tunnel")
            piece = h2_frame(0, 0, stream_id, frame(BINARY, bytes(16000)))
            await enemy.flood(repeat(piece), 1000)
            await asyncio.wait_for(enemy.ended.wait(), DEADLINE_S)
            assert enemy.goaway == FLOW_CONTROL_ERROR
            await on.check_innocent()

    run(story())


@pytest.mark.parametrize(("settled_s", "goaway"), [(60.0, ENHANCE_YOUR_CALM), (0.0, None)])
def test_tunnels_that_are_opened_and_reset_unused_are_abuse_unless_they_lasted(
    run: Run, place: Place, settled_s: float, goaway: int | None
):
    async def story():
        limits = H2Limits(odd_events_per_s=0.0, settled_s=settled_s)
        async with place(h2=limits) as on, await on.enemy() as client:
            for _ in range(300):
                stream_id = client.new_id()
                await client.send(client.connect(stream_id))
                await eventually(lambda: stream_id in client.statuses or client.ended.is_set(), "an answer")  # noqa: B023
                await client.send(reset(stream_id))
            await client.send(client.get(client.new_id()))
            await eventually(lambda: client.statuses.get(601) == 200 or client.ended.is_set(), "an answer or the end")
            assert client.goaway == goaway

    run(story())


# --- the innocent. Time gives nothing back to them here, so that a fast machine is as good as a slow one.

STRICT = H2Limits(odd_events_per_s=0.0)


def test_many_small_requests_are_no_abuse_with_all_that_browsers_say_beside_them(run: Run, place: Place):
    async def story():
        async with place(h2=STRICT) as on, await on.enemy() as client:
            for _ in range(30):
                ids = [client.new_id() for _ in range(100)]
                await client.send(
                    b"".join(
                        client.get(each)
                        + window_update(each, 1 << 20)
                        + h2_frame(2, 0, each, b"\0\0\0\0\x10")
                        + h2_frame(0xBA, 0, each, b"grease")
                        for each in ids
                    )
                )
                await eventually(lambda: all(each in client.taken for each in ids), "answers")  # noqa: B023
            assert client.goaway is None
            assert set(client.statuses.values()) == {200}

    run(story())


def test_a_tunnel_of_tiny_messages_is_no_abuse_and_each_may_open_both_windows(run: Run, place: Place):
    async def story():
        async with place(h2=STRICT) as on, await on.enemy() as client:
            await client.send(client.connect(1))
            message = h2_frame(0, 0, 1, frame(TEXT, b"x"))
            for count in range(1, 3001):
                await client.send(message)
                while client.taken[1] < 3 * count:  # noqa: ASYNC110  thousands of times, and at once
                    await asyncio.sleep(0)
                await client.send(window_update(1, 3) + window_update(0, 3))
            assert client.goaway is None

    run(story())


def test_a_proxy_that_opens_and_resets_tunnels_is_no_abuse(run: Run, place: Place):
    async def story():
        async with place(h2=STRICT) as on, await on.enemy() as client:
            for _ in range(20):
                ids = [client.new_id() for _ in range(50)]
                for each in ids:
                    await client.send(client.connect(each) + h2_frame(0, 0, each, frame(TEXT, b"hello")))
                await eventually(lambda: all(client.taken[each] == 7 for each in ids), "echoes")  # noqa: B023
                await client.send(b"".join(reset(each) for each in ids))
            await client.send(client.get(client.new_id()))
            await eventually(lambda: client.statuses.get(2001) == 200, "an answer")
            assert client.goaway is None

    run(story())


def test_a_browser_that_leaves_pages_before_they_are_there_is_no_abuse(run: Run, place: Place):
    async def story():
        async with place(h2=STRICT) as on, await on.enemy() as client:
            for _ in range(10):
                ids = [client.new_id() for _ in range(100)]
                await client.send(b"".join(client.get(each) for each in ids))
                await eventually(lambda: all(each in client.taken for each in ids), "a page")  # noqa: B023
                left = [client.new_id() for _ in range(50)]
                await client.send(b"".join(client.get(each) for each in left) + b"".join(reset(each) for each in left))
            await client.send(client.get(client.new_id()))
            await eventually(lambda: client.statuses.get(3001) == 200, "an answer")
            assert client.goaway is None

    run(story())


def test_a_proxy_that_loses_patience_with_all_streams_at_once_is_no_abuse(run: Run, place: Place):
    async def story():
        async with place(h2=STRICT) as on, await on.enemy() as client:
            ids = [client.new_id() for _ in range(128)]
            await client.send(b"".join(client.connect(each) for each in ids) + b"".join(reset(each) for each in ids))
            await client.send(client.get(client.new_id()))
            await eventually(lambda: client.statuses.get(257) == 200, "an answer")
            assert client.goaway is None

    run(story())


def test_a_body_that_nobody_wants_is_no_abuse(run: Run, place: Place):
    """What was on its way to a stream when that ended."""

    async def story():
        async with place(h2=STRICT) as on, await on.enemy() as client:
            for _ in range(20):
                stream_id = client.new_id()
                await client.send(client.post(stream_id, "/") + h2_frame(0, 0, stream_id, bytes(1024)) * 60)
            await client.send(client.get(client.new_id()))
            await eventually(lambda: client.statuses.get(41) == 200, "an answer")
            assert client.goaway is None

    run(story())
