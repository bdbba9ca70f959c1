"""What a byte costs in the frame kernel, with AVX2 and without: masking, UTF-8, parsing.

    python -m pytest bench/micro/test_kernels.py --benchmark-enable

`GB_per_s` and `ns_per_frame` are of the fastest round; `of_memcpy` is the speed beside that of a plain copy of as
many bytes, `bytes(bytearray)`, measured in the same test. Calls from Python cost some 50 to 250 ns each, so only
the 64 KiB rows speak of the kernels; small frames are measured many to a read, as they come. What must be reached
stands in test_bars.py, and what others reach in test_peers.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from bench.micro.samples import READ_BYTES, SCRIPTS, text
from tests.differential.frames import BINARY, KEY, TEXT, client_frame
from wstunnel._speedups import FrameParser, Utf8Validator, _mask_within, _set_kernels


@pytest.fixture(params=["avx2", "plain"])
def kernels(request):
    try:
        before = _set_kernels(request.param)
    except ValueError:
        pytest.skip(f"no {request.param} on this processor")
    yield request.param
    _set_kernels(before)


def copy_s(size: int) -> float:
    """Seconds for one copy of `size` bytes: the best of many."""
    source = bytearray(size)
    best = float("inf")
    for _ in range(200):
        start = time.perf_counter()
        for _ in range(10):
            bytes(source)
        best = min(best, (time.perf_counter() - start) / 10)
    return best


def measure(benchmark, size: int, work: Callable[[], object]) -> None:
    benchmark.pedantic(work, rounds=300, iterations=20, warmup_rounds=20)
    note(benchmark, size)


def note(benchmark, size: int, frames: int = 0) -> None:
    if benchmark.stats is None:  # --benchmark-disable
        return
    best_s = benchmark.stats.stats.min
    benchmark.extra_info["GB_per_s"] = round(size / best_s / 1e9, 1)
    benchmark.extra_info["of_memcpy"] = round(copy_s(size) / best_s, 2)
    if frames:
        benchmark.extra_info["ns_per_frame"] = round(best_s * 1e9 / frames, 2)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("shift", [0, 6])
@pytest.mark.parametrize("size", [64, 1024, READ_BYTES, 1 << 20])
def test_mask(benchmark, size, shift):
    """In place, and to a place 6 bytes before, as when the header is closed up."""
    room = bytearray(size + 16)

    measure(benchmark, size, lambda: _mask_within(room, 8 - shift, 8, size, KEY))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("size", [64, 1024, READ_BYTES])
@pytest.mark.parametrize("script", SCRIPTS)
def test_utf8(benchmark, script, size):
    data = text(script, size)
    validator = Utf8Validator()

    measure(benchmark, len(data), lambda: validator.feed(data))

    assert validator.held == 0


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("opcode", [BINARY, TEXT])
@pytest.mark.parametrize("size", [0, 16, 64, 125, 1024, 16 * 1024])
def test_parse_a_full_read(benchmark, size, opcode):
    """As many frames as a read of 64 KiB holds, in place, as in the relay; each round gets them anew."""
    frame = client_frame(opcode, b"x" * size)
    frames = READ_BYTES // len(frame)
    wire = frame * frames
    parser = FrameParser()
    room = bytearray(wire)

    def arrive() -> None:
        room[:] = wire

    benchmark.pedantic(parser.feed_in_place, args=(room,), setup=arrive, rounds=1000)

    note(benchmark, len(wire), frames)
    assert parser.is_at_boundary
    assert parser.messages % frames == 0
