"""What the kernels must reach; the table stands at the end of `make bench-micro`.

Works that are compared take turns within every round, and a ratio is the median of the rounds' ratios, so what the
machine does meanwhile falls on both. Times per frame and per byte are of the fastest round. Where a kernel is held
against memcpy both are called from Python, and the time of the same call with nothing to do is taken off both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

import pytest

from bench.load.bars import Bar
from bench.micro.samples import READ_BYTES, text
from tests.differential.frames import BINARY, KEY, TEXT, client_frame
from wstunnel._speedups import FrameParser, Utf8Validator, _mask_within

ROUNDS = 1000
AT_ONCE = 10
UTF8_GB_PER_S = {"ASCII": 30.0, "Cyrillic": 5.0, "CJK with emoji": 5.0}

Hold = Callable[[Bar], None]
Work = Callable[[], object]


def in_turn(works: Sequence[Work]) -> list[list[float]]:
    """Seconds of one call of each work, round by round."""
    rounds = []
    for _ in range(ROUNDS):
        took = []
        for work in works:
            start = time.perf_counter()
            for _ in range(AT_ONCE):
                work()
            took.append((time.perf_counter() - start) / AT_ONCE)
        rounds.append(took)
    return rounds


@pytest.mark.parametrize(("kind", "opcode"), [("binary", BINARY), ("text", TEXT)])
def test_parse_and_unmask(hold: Hold, kind: str, opcode: int) -> None:
    """A read full of 64 B frames, in place as in the relay. What was overwritten is put back between the rounds."""
    frame = client_frame(opcode, b"x" * 64)
    frames = READ_BYTES // len(frame)
    wire = frame * frames
    room = bytearray(wire)
    parser = FrameParser()
    best_s = float("inf")

    for _ in range(ROUNDS):
        room[:] = wire
        start = time.perf_counter()
        made, events = parser.feed_in_place(room)
        best_s = min(best_s, time.perf_counter() - start)
        assert (made, events) == (64 * frames, [])

    hold(Bar(f"parse and unmask 64 B {kind} frames in a full read", best_s / frames * 1e9, 10.0, 6.0, unit="ns"))


@pytest.mark.parametrize(
    ("where", "to", "start"),
    [
        ("to another buffer, against memcpy of the same", 0, READ_BYTES),
        ("in place, against memcpy to another buffer", 0, 0),
        ("6 bytes down, against memmove of the same", 0, 6),
    ],
)
def test_unmask(hold: Hold, where: str, to: int, start: int) -> None:
    """64 KiB in the cache.

    The first row reads and writes the same lines on both sides. In place half as many are touched, and no copy does
    that; it is what the relay does with a frame as large as a read. With smaller ones it does what the last row has.
    """
    room = bytearray(2 * READ_BYTES)
    view = memoryview(room)
    source = start or READ_BYTES  # in place, memcpy brings the same bytes from another buffer
    target, origin = view[to : to + READ_BYTES], view[source : source + READ_BYTES]
    none = view[:0]

    def copy() -> None:
        target[:] = origin

    def copy_nothing() -> None:
        none[:] = none

    rounds = in_turn(
        [
            lambda: _mask_within(room, to, start, READ_BYTES, KEY),
            lambda: _mask_within(room, to, start, 0, KEY),
            copy,
            copy_nothing,
        ]
    )

    speed = median((copied - nothing) / (masked - called) for masked, called, copied, nothing in rounds)
    hold(Bar(f"unmask 64 KiB {where}", speed, 0.9, is_least=True))


@pytest.mark.parametrize("script", UTF8_GB_PER_S)
def test_utf8(hold: Hold, script: str) -> None:
    data = text(script, READ_BYTES)
    validator = Utf8Validator()

    best_s = min(took for (took,) in in_turn([lambda: validator.feed(data)]))

    assert validator.held == 0
    found = len(data) / best_s / 1e9
    hold(Bar(f"validate 64 KiB of {script}", found, UTF8_GB_PER_S[script], is_least=True, unit="GB/s"))
