"""Masking and UTF-8: the same result for every length, address, cut and kernel, to the bit and to the index."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest

from tests.differential.frames import masked, pieces
from wstunnel._speedups import Utf8Validator, _mask_within, _set_kernels, mask

KEY = b"\x81\x02\xf3\x04"
LENGTHS = [*range(201), *range(480, 700, 7), 511, 512, 513, 4095, 65536, 65537]
"""Every small one, and those around the kernels' steps and their aligned start."""


@pytest.fixture(params=["avx2", "plain"])
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    try:
        before = _set_kernels(request.param)
    except ValueError:
        pytest.skip(f"no {request.param} on this processor")
    yield request.param
    assert _set_kernels(before) == request.param


# --- masking


@pytest.mark.parametrize("length", LENGTHS)
def test_masking_is_the_exclusive_or_with_the_repeated_key(kernels, length):
    data = random.Random(length).randbytes(length)

    assert mask(data, KEY) == masked(data, KEY)


@pytest.mark.parametrize("shift", [0, *range(2, 15), 16, 31, 32, 33, 64, 127, 128, 200])
def test_masking_to_a_place_before_or_at_the_source_touches_nothing_else(kernels, shift):
    """Compaction: the frame headers between payloads are closed up, so both ranges overlap."""
    for length in (*range(131), 200, 511, 512, 513, 640, 777):
        data = random.Random(length).randbytes(length)
        right = masked(data, KEY)
        for to in range(33) if length < 131 else (0, 1, 8, 31, 32):
            room = bytearray(b"\xa5" * (to + shift)) + data + b"\x5a" * 40
            want = bytearray(room)
            want[to : to + length] = right

            _mask_within(room, to, to + shift, length, KEY)

            assert room == want, (length, to)


@pytest.mark.parametrize("cut", range(140))
def test_the_key_comes_back_turned_so_that_the_next_piece_continues(kernels, cut):
    data = bytes(range(250))
    room = bytearray(data)

    key = _mask_within(room, 0, 0, cut, KEY)
    _mask_within(room, cut, cut, len(data) - cut, key)

    assert key == (KEY * 2)[cut % 4 : cut % 4 + 4]
    assert room == masked(data, KEY)


@pytest.mark.parametrize("length", [0, 1, 31, 64, 600])
def test_a_key_of_zeros_moves_the_bytes_as_they_are(kernels, length):
    room = bytearray(b"......" + bytes(range(200)) * 3 + b"!")

    assert _mask_within(room, 0, 6, length, bytes(4)) == bytes(4)
    assert room[:length] == (bytes(range(200)) * 3)[:length]


@pytest.mark.parametrize("key", [b"", b"abc", b"abcde"])
def test_a_key_that_is_not_four_bytes_is_a_mistake(key):
    with pytest.raises(ValueError, match="4 bytes"):
        mask(b"data", key)


def test_a_kernel_that_does_not_exist_cannot_be_chosen():
    with pytest.raises(ValueError, match="sse9"):
        _set_kernels("sse9")


# --- UTF-8

ENDINGS = [b"", *(bytes(end) for size in (1, 2, 3) for end in itertools.product((0x80, 0xBF), repeat=size))]
"""Whatever has been begun can be ended by one of these, or it cannot be ended at all."""


def judged(data: bytes) -> tuple[int, int]:
    """The index of the first byte after which no ending makes a text, or the length; and what is left unfinished.

    Python's own incremental decoder would not do: it lets the second byte of a surrogate pass.
    """
    start = 0
    for at in range(len(data)):
        missing = next((len(end) for end in ENDINGS if is_text(data[start : at + 1] + end)), None)
        if missing is None:
            return at, at - start
        if missing == 0:
            start = at + 1
    return len(data), len(data) - start


def is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def fed(data: bytes | bytearray | memoryview, cuts: list[int] | None = None) -> tuple[int, int]:
    """What our validator says of the pieces, in the same terms."""
    validator = Utf8Validator()
    good = 0
    for piece in pieces(bytes(data), cuts) if cuts else (data,):
        taken = validator.feed(piece)
        good += taken
        if taken < len(piece):
            break
    return good, validator.held


EDGES = "\x00\x7f\x80\u07ff\u0800\u0fff\u1000\ucfff\ud000\ud7ff\ue000\uffff\U00010000\U0003ffff\U00040000\U0010ffff"
SCRIPTS = {
    "ascii": "The quick brown fox jumps over the lazy dog. ",
    "cyrillic": "Съешь же ещё этих мягких французских булок. ",
    "cjk and emoji": "色は匂へど😀散りぬるを🚀我が世誰ぞ🧵常ならむ",
    "edges": EDGES,
    "mostly ascii": "plain words for a while, then one é, " + "and again plain words for quite a long while " * 3,
}
FAULTS = {
    "a continuation without a lead": b"\x80",
    "a fourth continuation": b"\xf1\x80\x80\x80\x80",
    "overlong C0": b"\xc0\x80",
    "overlong C1": b"\xc1\xbf",
    "overlong E0": b"\xe0\x9f\xbf",
    "overlong F0": b"\xf0\x8f\xbf\xbf",
    "the first surrogate": b"\xed\xa0\x80",
    "the last surrogate": b"\xed\xbf\xbf",
    "the first beyond U+10FFFF": b"\xf4\x90\x80\x80",
    "F5": b"\xf5\x80\x80\x80",
    "F8": b"\xf8\x88\x80\x80\x80",
    "FF": b"\xff",
    "two bytes cut by ASCII": b"\xc3A",
    "three bytes cut by ASCII": b"\xe2\x82A",
    "four bytes cut by ASCII": b"\xf0\x9f\x98A",
    "a lead after a lead": b"\xc3\xc3\xa9",
    "four bytes cut by four bytes": b"\xf4\x8f\xf0\xbf",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_text_of_any_length_at_any_address_is_valid_and_its_end_is_held(kernels, script):
    text = (SCRIPTS[script] * 40).encode()
    for length in (*range(201), 255, 256, 257, 600):
        whole = len(text[:length].decode(errors="ignore").encode())
        for at in range(33):
            room = memoryview(b"\xff" * at + text[:length] + b"\xff" * 33)
            assert fed(room[at : at + length]) == (length, length - whole), (length, at)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_first_byte_that_cannot_continue_a_text_is_found_wherever_it_stands(kernels, fault):
    bad, unfinished = judged(FAULTS[fault])
    for script in SCRIPTS.values():
        for chars in range(140):
            before = (script * 10)[:chars].encode()
            for after in (b"", b"x", b"x" * 100, "é".encode() * 50):
                assert fed(before + FAULTS[fault] + after) == (len(before) + bad, unfinished), (before, after)


def test_no_place_in_a_short_ascii_text_goes_unseen(kernels):
    for length in range(140):
        for at in range(length):
            data = bytearray(b"a" * length)
            data[at] = 0xFF
            assert fed(data) == (at, 0), (length, at)


@pytest.mark.parametrize("length", [255, 256, 257, 511, 512, 600, 1000])
def test_no_place_in_a_long_ascii_text_goes_unseen(kernels, length):
    for at in range(length):
        data = bytearray(b"a" * length)
        data[at] = 0xFF
        assert fed(data) == (at, 0), at


def test_all_pairs_of_bytes_are_judged_as_the_standard_does(kernels):
    for pair in itertools.product(range(0x70, 0x100), repeat=2):
        data = bytes(pair)
        good, unfinished = judged(data)
        if good == 2:
            assert fed(b"A" * 62 + data) == (64, unfinished), data
        else:
            assert fed(b"A" * 63 + data + b"A" * 20) == (63 + good, unfinished), data


def test_all_edges_of_four_bytes_are_judged_as_the_standard_does(kernels):
    edges = b"\x7f\x80\x8f\x90\x9f\xa0\xbf\xc1\xc2\xdf\xe0\xe1\xec\xed\xee\xef\xf0\xf1\xf3\xf4\xf5\xff"
    for lead, second, third in itertools.product(edges, repeat=3):
        for fourth in b"A\x80\xbf\xe1":
            data = bytes([lead, second, third, fourth])
            good, unfinished = judged(data)
            assert fed(b"A" * 30 + data) == (30 + good, unfinished), data


@pytest.mark.parametrize("seed", range(30))
def test_no_cut_changes_the_verdict(kernels, seed):
    rng = random.Random(seed)
    data = bytearray("".join(rng.choices(EDGES + "aé€😀", k=rng.randrange(20, 60))).encode())
    for _ in range(seed % 3):
        data[rng.randrange(len(data))] = rng.choice(b"A\x80\x8f\x9f\xa0\xbf\xc0\xc3\xe0\xed\xf0\xf4\xff")
    text = bytes(data[: rng.randrange(len(data))]) if seed % 2 else bytes(data)
    want = judged(text)

    assert fed(text) == want
    for cut in range(len(text) + 1):
        assert fed(text, [cut]) == want, cut
        assert fed(text, [cut, cut + 1, cut + 2, cut + 40]) == want, cut
    assert fed(text, list(range(len(text)))) == want


def test_a_byte_that_was_refused_is_refused_again(kernels):
    validator = Utf8Validator()

    assert validator.feed(b"ab\xe2\x82") == 4
    assert validator.feed(b"x" * 40) == 0
    assert validator.held == 2
    assert validator.feed(b"\xac" + b"x" * 40) == 41
    assert validator.held == 0
