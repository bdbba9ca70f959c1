"""Nothing received before an end is lost: every byte, in order, in both directions, for every way of ending.

Each run is drawn from one seed: how much each side says (to 4 MiB), in which frames and pieces, who is slow, how small
the kernel's buffers are, over TCP or a UNIX socket, and who ends first and how. What must hold for each ending stands
in `Ending`. Many runs share one Tunnel and one loop, as clients do.

    WSTUNNEL_CONSERVATION_RUNS=20000 pytest tests/wire/test_conservation.py                       more runs
    WSTUNNEL_CONSERVATION_FIRST=4711 WSTUNNEL_CONSERVATION_RUNS=1 pytest tests/wire/...           one seed
"""

from __future__ import annotations

import asyncio
import enum
import os
import random
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import STEPS, Run
from tests.wire.backends import Backend
from tests.wire.clients import BINARY, CONT, NO_STATUS, PING, TEXT, Client, Heard, close_frame, frame
from tests.wire.sockets import Wire, eventually, turns
from tests.wire.stage import LogTap
from tests.wire.ways import Way, fitted
from wstunnel import Route, Settings, TcpAddress, Tunnel, UnixAddress

RUNS = int(os.environ.get("WSTUNNEL_CONSERVATION_RUNS", "2000"))
FIRST = int(os.environ.get("WSTUNNEL_CONSERVATION_FIRST", "0"))
CHUNKS = 8
AT_ONCE = 50
RUN_WITHIN_S = 60.0
OTHERS = [step for step in STEPS if step != ("uvloop", "hub", "h1")]
MAX_BYTES = 4 << 20
MAX_PIECES = 60
"""A slow side moves what it has in at most this many pieces, so that slow does not mean for ever."""

POOL = random.Random(2).randbytes(2 * MAX_BYTES)
TEXT_POOL = "".join(random.Random(3).choices("aé€😀\n\0߿￿𐀀", k=MAX_BYTES)).encode()


class Ending(enum.Enum):
    """Who ends first and how, and what must hold then. `up` is from client to backend, `down` the other way.

    Always: what arrives is a prefix of what was sent, in order; each text frame is valid UTF-8 by itself; nothing
    follows the CLOSE; one access line, whose counts are those of the payload that was passed on.
    """

    CLIENT_CLOSE = "CLOSE behind all of up: up, then EOF at the backend; all of down, then CLOSE with that code, EOF"
    CLIENT_EOF = "half-close behind all of up: up, then EOF at the backend; all of down, then EOF without CLOSE"
    CLIENT_LEAVES = "CLOSE, then close, with the backend silent until its EOF: up, then EOF at the backend"
    CLIENT_ABORT = (
        "CLOSE, then close in the middle of down: a prefix of up, and all over a UNIX socket or HTTP/2; then an end"
    )
    BACKEND_EOF = "close behind all of down, up read: all of down, CLOSE 1000, EOF; all of up"
    BACKEND_HALF = "half-close behind all of down while up goes on: all of down, CLOSE 1000; all of up, then EOF"
    BACKEND_RESET = "close with unread bytes: all of down, CLOSE 1011, EOF; a prefix of up"
    BOTH = "CLOSE behind up and half-close behind down at any time: all of both, CLOSE with that code or 1000"


@dataclass(frozen=True)
class Pace:
    """How one side moves its bytes: pieces of `piece` bytes, `lull` turns of the loop before each."""

    piece: int
    lull: int


@dataclass(frozen=True)
class Plan:
    seed: int
    ending: Ending
    is_unix: bool
    is_text: bool
    up: list[tuple[bytes, bytes]]
    """Frames in wire form, each with the payload it carries."""
    down: bytes
    code: int | None
    client_sends: Pace
    client_reads: Pace
    backend_sends: Pace
    backend_reads: Pace
    client_buffer: int | None
    backend_buffer: int | None
    hesitation: int
    """Turns of the loop before the first end of BOTH, or before CLIENT_ABORT."""

    @property
    def said_up(self) -> bytes:
        return b"".join(payload for _, payload in self.up)

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {self.ending.name}, {'unix' if self.is_unix else 'tcp'} client, "
            f"{'text' if self.is_text else 'binary'}, up {len(self.said_up)} in {len(self.up)} frames, "
            f"down {len(self.down)}, code {self.code}, client {self.client_sends} {self.client_reads} "
            f"{self.client_buffer}, backend {self.backend_sends} {self.backend_reads} {self.backend_buffer}"
        )


def plan(seed: int) -> Plan:
    """The run that belongs to a seed, the same on every machine."""
    dice = random.Random(seed)
    ending = dice.choice(list(Ending))
    is_text = dice.random() < 0.5
    up_bytes, down_bytes = amount(dice), amount(dice)
    if ending is Ending.CLIENT_LEAVES:
        down_bytes = 0
    down = cut_of_text(dice, down_bytes) if is_text else cut_of(dice, down_bytes)
    unread = [(frame(BINARY, b"unread"), b"unread")] if ending is Ending.BACKEND_RESET else []
    # A PONG to a client that has left is answered with a reset, which takes what was still under way with it.
    has_pings = ending not in {Ending.CLIENT_LEAVES, Ending.CLIENT_ABORT}
    return Plan(
        seed=seed,
        ending=ending,
        is_unix=dice.random() < 0.5,
        is_text=is_text,
        up=frames(dice, up_bytes, has_pings) + unread,
        down=down,
        code=dice.choice([None, 1000, 1001, 3000, 4999]),
        client_sends=pace(dice, up_bytes),
        client_reads=pace(dice, down_bytes),
        backend_sends=pace(dice, down_bytes),
        backend_reads=pace(dice, up_bytes),
        client_buffer=dice.choice([None, None, 2048, 16_384]),
        backend_buffer=dice.choice([None, None, 2048, 16_384]),
        hesitation=dice.choice([0, 1, 2, 5, 20, 100]),
    )


def amount(dice: random.Random) -> int:
    kind = dice.random()
    if kind < 0.1:
        return 0
    if kind < 0.55:
        return dice.randrange(1, 2_000)
    if kind < 0.7:
        return max(0, dice.choice([125, 126, 65_535, 65_536, 131_072]) + dice.randrange(-2, 3))
    if kind < 0.95:
        return dice.randrange(1, 150_000)
    if kind < 0.99:
        return dice.randrange(1, 1 << 20)
    return dice.randrange(1 << 20, MAX_BYTES + 1)


def cut_of(dice: random.Random, count: int) -> bytes:
    """`count` bytes from anywhere in the pool."""
    at = dice.randrange(len(POOL) - count)
    return POOL[at : at + count]


def cut_of_text(dice: random.Random, count: int) -> bytes:
    """Some `count` bytes of whole characters."""
    at = dice.randrange(len(TEXT_POOL) - count - 8)
    return TEXT_POOL[at : at + count].decode(errors="ignore").encode()


def frames(dice: random.Random, count: int, has_pings: bool) -> list[tuple[bytes, bytes]]:
    """Messages of some `count` bytes in all, whole and in fragments, with PINGs between and inside them."""
    made: list[tuple[bytes, bytes]] = []
    left = count
    while left > 0:
        size = min(left, dice.choice([left, dice.randrange(1, 200), dice.randrange(1, 70_000)]))
        if len(made) > 200:
            size = left
        opcode = dice.choice([TEXT, BINARY])
        message = cut_of_text(dice, size) if opcode is TEXT else cut_of(dice, size)
        cuts = sorted(dice.randrange(len(message) + 1) for _ in range(dice.choice([0, 0, 1, 4])))
        for index, (begin, end) in enumerate(zip([0, *cuts], [*cuts, len(message)], strict=True)):
            part = message[begin:end]
            made.append((frame(CONT if index else opcode, part, fin=index == len(cuts)), part))
            if has_pings and dice.random() < 0.05:
                made.append((frame(PING, dice.randbytes(dice.randrange(126))), b""))
        left -= size
    return made


def pace(dice: random.Random, count: int) -> Pace:
    if dice.random() < 0.5:
        return Pace(1 << 20, 0)
    return Pace(max(dice.randrange(1, 3_000), count // MAX_PIECES + 1), dice.randrange(1, 6))


async def say(wire: Wire, data: bytes, how: Pace) -> None:
    for at in range(0, len(data), how.piece):
        await turns(how.lull)
        await wire.send(data[at : at + how.piece])


async def hear(wire: Wire, how: Pace) -> tuple[bytes, bool]:
    """Everything to the end, and whether that was a reset."""
    got = bytearray()
    wire.read_bytes, wire.lull_turns = how.piece, how.lull
    try:
        while piece := await wire.recv():
            got += piece
    except ConnectionResetError:
        return bytes(got), True
    return bytes(got), False


class House:
    """One Tunnel for many runs at once: two listeners, a route per frame type, and both logs."""

    def __init__(self, folder: Path) -> None:
        self.backends = {kind: Backend(str(folder / f"{kind}.sock"), backlog=AT_ONCE) for kind in ("text", "binary")}
        common = {"ping_interval_s": 0.0, "close_timeout_s": RUN_WITHIN_S}
        self.settings = Settings(
            listen=(TcpAddress("127.0.0.1", 0), UnixAddress(str(folder / "client.sock"))),
            routes=tuple(
                Route(path=f"/{kind}/", frame_type=kind, **backend.route, **common)
                for kind, backend in self.backends.items()
            ),
        )
        self.way = Way(share=8)
        self.door = asyncio.Lock()
        self.tunnel = Tunnel(fitted(self.settings, str(folder)))
        self.access = LogTap("wstunnel.access")

    async def join(self, plan: Plan) -> tuple[Client, Wire]:
        """One at a time, so that the connection that comes to the backend is this client's."""
        kind = "text" if plan.is_text else "binary"
        async with self.door:
            client = await self.way.reach(self.tunnel.addresses[plan.is_unix], buffer_bytes=plan.client_buffer)
            try:
                await client.upgrade(f"/{kind}/{plan.seed}")
                backend = await self.backends[kind].accept()
            except BaseException:
                client.close()
                raise
        if plan.backend_buffer:
            backend.narrow(plan.backend_buffer)
        return client, backend

    def lines(self, plan: Plan) -> list[dict[str, Any]]:
        suffix = f"/{plan.seed}"
        return [record.fields for record in self.access.records if record.fields["path"].endswith(suffix)]

    async def line(self, plan: Plan) -> dict[str, Any]:
        """The access line of this run, which there is one of."""
        await eventually(lambda: bool(self.lines(plan)), "the access line")
        (line,) = self.lines(plan)
        return line


async def one_run(house: House, plan: Plan) -> None:
    client, backend = await house.join(plan)
    tasks: list[asyncio.Task] = []
    try:
        async with asyncio.timeout(RUN_WITHIN_S):
            await ENDINGS[plan.ending](house, plan, client, backend, tasks)
            await house.line(plan)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        client.close()
        backend.close()


def check_up(plan: Plan, got: bytes) -> None:
    check_same(got, plan.said_up, "up")


def check_down(plan: Plan, heard: Heard, code: int | None) -> None:
    check_same(bytes(heard.data), plan.down, "down")
    assert heard.code == code
    assert not heard.reset
    assert set(heard.opcodes) <= {TEXT if plan.is_text else BINARY}
    sent = [payload_of(wire) for wire, payload in plan.up if wire[0] & 0x0F == PING]
    # An answer that could not be sent at once may be replaced by that to a later PING (RFC 6455 §5.5.3).
    rest = iter(sent)
    assert all(pong in rest for pong in heard.pongs), "PONGs nobody asked for, or out of order"
    if sent and code != 1011:
        assert heard.pongs
        assert heard.pongs[-1] == sent[-1]


def payload_of(wire: bytes) -> bytes:
    """The unmasked payload of one short frame."""
    key, body = wire[2:6], wire[6:]
    return bytes(byte ^ key[at % 4] for at, byte in enumerate(body))


def check_same(got: bytes, said: bytes, way: str) -> None:
    """Equal, or where they part; not a diff of megabytes."""
    if got == said:
        return
    common = next((at for at, (a, b) in enumerate(zip(got, said, strict=False)) if a != b), min(len(got), len(said)))
    raise AssertionError(f"{way}: {len(got)} of {len(said)} bytes, alike up to {common}")


def check_prefix(got: bytes, said: bytes, way: str) -> None:
    check_same(got, said[: len(got)], way)


async def check_line(house: House, plan: Plan, *, code: int, closed_by: str, up: int, down: int) -> None:
    line = await house.line(plan)
    assert (line["bytes_in"], line["bytes_out"]) == (up, down)
    assert (line["code"], line["closed_by"]) == (code, closed_by)
    fins = sum(bool(wire[0] & 0x80) and wire[0] & 0x0F < 8 for wire, _ in plan.up)
    assert line["messages_in"] == fins


def start(tasks: list[asyncio.Task], coroutine) -> asyncio.Task:
    tasks.append(asyncio.get_running_loop().create_task(coroutine))
    return tasks[-1]


def wire_up(plan: Plan) -> bytes:
    return b"".join(wire for wire, _ in plan.up)


def slow_ear(client: Client, plan: Plan) -> None:
    client.read_bytes, client.lull_turns = plan.client_reads.piece, plan.client_reads.lull


async def client_close(house, plan, client, backend, tasks, half: bool = False):
    slow_ear(client, plan)
    hearing = start(tasks, client.to_end())
    down = start(tasks, say(backend, plan.down, plan.backend_sends))
    up = start(tasks, say(client, wire_up(plan) + (b"" if half else close_frame(plan.code)), plan.client_sends))
    if half:
        up.add_done_callback(lambda task: task.cancelled() or client.half_close())
    got, reset = await hear(backend, plan.backend_reads)
    assert not reset
    check_up(plan, got)
    await asyncio.gather(up, down)
    backend.close()
    code = None if half else plan.code or NO_STATUS
    check_down(plan, await hearing, code)
    await check_line(house, plan, code=code or 1006, closed_by="client", up=len(got), down=len(plan.down))


async def client_eof(house, plan, client, backend, tasks):
    await client_close(house, plan, client, backend, tasks, half=True)


async def client_leaves(house, plan, client, backend, tasks):
    async def leave():
        await say(client, wire_up(plan) + close_frame(plan.code), plan.client_sends)
        client.close()

    leaving = start(tasks, leave())
    got, reset = await hear(backend, plan.backend_reads)
    assert not reset
    check_up(plan, got)
    await leaving
    backend.close()
    await check_line(house, plan, code=plan.code or NO_STATUS, closed_by="client", up=len(got), down=0)


async def client_abort(house, plan, client, backend, tasks):
    async def leave():
        await say(client, wire_up(plan) + close_frame(plan.code), plan.client_sends)
        await turns(plan.hesitation)
        client.close()

    async def talk():
        with suppress(BrokenPipeError, ConnectionResetError):
            await say(backend, plan.down, plan.backend_sends)

    leaving, talking = start(tasks, leave()), start(tasks, talk())
    start(tasks, swallow(client, until=leaving))
    got, _ = await hear(backend, plan.backend_reads)
    if plan.is_unix or house.way.is_shared:
        check_up(plan, got)
    else:
        check_prefix(got, plan.said_up, "up")
    await asyncio.gather(leaving, talking)
    backend.close()


async def swallow(client: Client, until: asyncio.Task) -> None:
    """Read a little of what comes, so that a client that is being pushed can go on pushing."""
    while not until.done():
        try:
            piece = client.recv_now(65_536)
        except OSError:
            piece = None
        if piece == b"":
            return
        if piece is None:
            await asyncio.sleep(0)


async def backend_eof(house, plan, client, backend, tasks):
    slow_ear(client, plan)
    hearing = start(tasks, client.to_end(answer=True))
    up = start(tasks, say(client, wire_up(plan), plan.client_sends))
    down = start(tasks, say(backend, plan.down, plan.backend_sends))
    backend.read_bytes, backend.lull_turns = plan.backend_reads.piece, plan.backend_reads.lull
    check_up(plan, await backend.recv_exactly(len(plan.said_up)))
    await asyncio.gather(up, down)
    backend.close()
    check_down(plan, await hearing, 1000)
    await check_line(house, plan, code=1000, closed_by="backend", up=len(plan.said_up), down=len(plan.down))


async def backend_half(house, plan, client, backend, tasks):
    slow_ear(client, plan)
    up = start(tasks, say(client, wire_up(plan), plan.client_sends))

    async def talk():
        await say(backend, plan.down, plan.backend_sends)
        backend.half_close()

    hearing, talking = start(tasks, hear_and_answer(client, up)), start(tasks, talk())
    got, reset = await hear(backend, plan.backend_reads)
    assert not reset
    check_up(plan, got)
    await talking
    heard = await hearing
    check_same(bytes(heard.data), plan.down, "down")
    assert heard.code == 1000
    await check_line(house, plan, code=1000, closed_by="backend", up=len(got), down=len(plan.down))


async def hear_and_answer(client: Client, up: asyncio.Task) -> Heard:
    """Everything up to the CLOSE, which is answered when this side has finished too; then only the EOF may come."""
    heard = Heard()
    while heard.code is None:
        got = await client.frame()
        assert got is not None, "the end came without CLOSE"
        client.note(heard, got)
    await up
    await client.send(close_frame(heard.code))
    assert await client.frame() is None
    client.close()
    return heard


async def backend_reset(house, plan, client, backend, tasks):
    slow_ear(client, plan)
    up = start(tasks, say(client, wire_up(plan), plan.client_sends))
    hearing = start(tasks, hear_and_answer(client, up))
    total = len(plan.said_up)
    backend.read_bytes = plan.backend_reads.piece
    got = await backend.recv_exactly(random.Random(plan.seed).randrange(total))
    check_prefix(got, plan.said_up, "up")
    await say(backend, plan.down, plan.backend_sends)
    await readable(backend)
    backend.close()
    heard = await hearing
    check_same(bytes(heard.data), plan.down, "down")
    assert heard.code == 1011
    line = await house.line(plan)
    assert (line["code"], line["closed_by"], line["bytes_out"]) == (1011, "backend", len(plan.down))


async def readable(wire: Wire) -> None:
    """At least one byte is unread."""
    loop, seen = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(wire.sock, seen.set)
    try:
        await seen.wait()
    finally:
        loop.remove_reader(wire.sock)


async def both(house, plan, client, backend, tasks):
    slow_ear(client, plan)
    hearing = start(tasks, client.to_end())

    async def talk():
        await say(backend, plan.down, plan.backend_sends)
        await turns(plan.hesitation)
        backend.half_close()

    talking = start(tasks, talk())
    up = start(tasks, say(client, wire_up(plan) + close_frame(plan.code), plan.client_sends))
    got, reset = await hear(backend, plan.backend_reads)
    assert not reset
    check_up(plan, got)
    await asyncio.gather(up, talking)
    heard = await hearing
    check_same(bytes(heard.data), plan.down, "down")
    assert not heard.reset
    assert heard.code in {1000, plan.code or NO_STATUS}
    closed_by = (await house.line(plan))["closed_by"]
    assert closed_by in {"client", "backend"}
    await check_line(house, plan, code=heard.code, closed_by=closed_by, up=len(got), down=len(plan.down))


ENDINGS = {
    Ending.CLIENT_CLOSE: client_close,
    Ending.CLIENT_EOF: client_eof,
    Ending.CLIENT_LEAVES: client_leaves,
    Ending.CLIENT_ABORT: client_abort,
    Ending.BACKEND_EOF: backend_eof,
    Ending.BACKEND_HALF: backend_half,
    Ending.BACKEND_RESET: backend_reset,
    Ending.BOTH: both,
}


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_byte_arrives_in_order_whoever_ends_and_how(run: Run, tmp_path, chunk):
    """Every seed over the hub and plain HTTP/1.1, and over one other step."""
    second = OTHERS.index((run.kind, run.io, run.wire)) if (run.kind, run.io, run.wire) in OTHERS else None
    seeds = [
        seed
        for seed in range(FIRST, FIRST + RUNS)
        if seed // len(OTHERS) % CHUNKS == chunk and second in {None, seed % len(OTHERS)}
    ]
    failures: list[str] = []

    async def story():
        house = House(tmp_path)
        free = asyncio.Semaphore(AT_ONCE)

        async def guarded(seed: int) -> None:
            async with free:
                drawn = plan(seed)
                try:
                    await one_run(house, drawn)
                except (AssertionError, OSError, TimeoutError) as fault:
                    failures.append(f"{type(fault).__name__} {fault} in {drawn}")

        try:
            with house.access:
                async with house.tunnel:
                    await asyncio.gather(*(guarded(seed) for seed in seeds))
                    house.way.close()
        finally:
            for backend in house.backends.values():
                await backend.stop()

    if seeds:
        run(story(), timeout_s=100.0)
    assert not failures, f"{len(failures)} of {len(seeds)} runs:\n" + "\n".join(failures[:10])
