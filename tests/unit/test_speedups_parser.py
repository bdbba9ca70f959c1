"""Client frames, every rule under every cut of the wire: RFC 6455 §5.1-5.5, §7.4, §8.1."""

from __future__ import annotations

import itertools

import pytest

from tests.differential.frames import BINARY, CLOSE, CONT, KEY, PING, PONG, TEXT, client_frame, masked, pieces
from wstunnel._speedups import FrameEvent, FrameParser, _set_kernels, mask

EURO = "€".encode()


def parsed(wire: bytes, cuts: list[int], *, in_place: bool = False) -> tuple[bytes, list[FrameEvent], FrameParser]:
    """All payload, and all events with `at` counted from the start of the wire."""
    parser = FrameParser()
    payload = b""
    events = []
    for piece in pieces(wire, cuts):
        if in_place:
            room = bytearray(piece)
            length, new_events = parser.feed_in_place(room)
            new = bytes(room[:length])
        else:
            new, new_events = parser.feed(piece)
        events += [event._replace(at=event.at + len(payload)) for event in new_events]
        payload += new
    return payload, events, parser


def under_every_cut(wire: bytes) -> tuple[bytes, list[FrameEvent]]:
    """What the parser makes of the wire; it makes the same of it whole, byte by byte, cut in two and in three."""
    payload, events, whole = parsed(wire, [])
    cuts = [list(range(len(wire))), *([cut] for cut in range(len(wire)))]
    cuts += [[cut, cut + width] for cut in range(min(len(wire), 40)) for width in (1, 2, 3, 5)]
    for cut, in_place in itertools.product(cuts, (False, True)):
        again, events_again, parser = parsed(wire, cut, in_place=in_place)
        assert (again, events_again) == (payload, events), (cut, in_place)
        assert (parser.messages, parser.is_at_boundary) == (whole.messages, whole.is_at_boundary)
    return payload, events


def ping(at: int, body: bytes = b"") -> FrameEvent:
    return FrameEvent("ping", at, 0, body)


def pong(at: int, body: bytes = b"") -> FrameEvent:
    return FrameEvent("pong", at, 0, body)


def close(at: int, code: int, body: bytes = b"") -> FrameEvent:
    return FrameEvent("close", at, code, body)


def error(at: int, code: int) -> FrameEvent:
    return FrameEvent("error", at, code, b"")


# --- what is right


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("length", [0, 1, 2, 7, 8, 31, 32, 124, 125, 126, 127, 300])
def test_a_message_is_its_payload(opcode, length):
    data = bytes(at % 128 for at in range(length))

    assert under_every_cut(client_frame(opcode, data)) == (data, [])


@pytest.mark.parametrize("length", [65535, 65536, 65537, 1 << 20])
@pytest.mark.parametrize("cuts", [[], [1], [2], [3], [9], [13], [14], [15], [65550], list(range(20))])
def test_a_long_message_is_its_payload(length, cuts):
    data = bytes(range(256)) * (length // 256) + b"x" * (length % 256)

    for in_place in (False, True):
        payload, events, parser = parsed(client_frame(BINARY, data), cuts, in_place=in_place)

        assert (payload == data, events, parser.messages) == (True, [], 1)


def test_the_payloads_of_many_frames_become_one_run_of_bytes():
    words = [b"", b"a", b"bc" * 10, b"d" * 126, b"", b"e" * 40]
    wire = b"".join(client_frame(BINARY, word, key=bytes([at, 2, 3, 4])) for at, word in enumerate(words))

    assert under_every_cut(wire) == (b"".join(words), [])


def test_the_fragments_of_a_message_are_one_message():
    wire = (
        client_frame(TEXT, b"one ", fin=False)
        + client_frame(CONT, b"", fin=False)
        + client_frame(CONT, b"two ", fin=False)
        + client_frame(CONT, b"three")
        + client_frame(BINARY, b"four")
    )

    assert under_every_cut(wire) == (b"one two three" + b"four", [])
    assert parsed(wire, [])[2].messages == 2


@pytest.mark.parametrize("body", [b"", b"p", b"\x00\xff" * 20, b"x" * 124, b"x" * 125])
def test_control_frames_between_and_inside_messages_are_told_in_their_place(body):
    wire = (
        client_frame(PING, body)
        + client_frame(TEXT, b"one " + EURO[:2], fin=False)
        + client_frame(PONG, body)
        + client_frame(CONT, EURO[2:] + b" two")
        + client_frame(PING, b"last")
    )

    assert under_every_cut(wire) == (
        b"one " + EURO + b" two",
        [ping(0, body), pong(6, body), ping(11, b"last")],
    )


def test_binary_messages_may_hold_anything():
    wire = client_frame(BINARY, b"\xff\xfe\xed\xa0\x80", fin=False) + client_frame(CONT, b"\xc3")

    assert under_every_cut(wire) == (b"\xff\xfe\xed\xa0\x80\xc3", [])


def test_a_text_may_be_cut_by_frames_anywhere():
    text = "aé€😀z".encode()
    for first, second in itertools.combinations(range(len(text) + 1), 2):
        wire = (
            client_frame(TEXT, text[:first], fin=False)
            + client_frame(PING)
            + client_frame(CONT, text[first:second], fin=False)
            + client_frame(CONT, text[second:])
        )
        assert parsed(wire, list(range(len(wire))))[:2] == (text, [ping(first)])
        assert parsed(wire, [])[:2] == (text, [ping(first)])


def test_payload_goes_on_at_once_however_long_the_frame_will_be():
    parser = FrameParser()
    assert parser.feed(b"\x82\xff" + (2**63 - 1).to_bytes(8, "big") + KEY) == (b"", [])

    for at in range(9):
        assert parser.feed(masked(bytes(at) + b"x", KEY)[at:]) == (b"x", [])
    assert parser.feed(bytes(1 << 20))[0][:4] == KEY[1:] + KEY[:1]
    assert not parser.is_at_boundary
    assert parser.messages == 0


@pytest.mark.parametrize(
    ("wire", "is_at_boundary"),
    [
        (b"", True),
        (client_frame(TEXT, b"abc"), True),
        (client_frame(TEXT, b"abc") + client_frame(PING, b"p"), True),
        (client_frame(TEXT, b"abc", fin=False), False),
        (client_frame(TEXT, b"abc")[:-1], False),
        (client_frame(TEXT, b"abc")[:1], False),
        (client_frame(TEXT, b"abc")[:5], False),
        (client_frame(PING, b"abc")[:7], False),
    ],
)
def test_the_parser_says_whether_something_is_under_way(wire, is_at_boundary):
    assert parsed(wire, [])[2].is_at_boundary is is_at_boundary


def test_nothing_in_gives_nothing_out():
    parser = FrameParser()

    assert parser.feed(b"") == (b"", [])
    assert parser.feed_in_place(bytearray()) == (0, [])


# --- CLOSE


@pytest.mark.parametrize("code", [*range(1000, 1004), *range(1007, 1015), 3000, 3999, 4000, 4999])
@pytest.mark.parametrize("reason", [b"", b"bye", EURO * 41])
def test_a_close_gives_its_code_and_reason_after_the_payload_before_it(code, reason):
    wire = client_frame(BINARY, b"last words") + client_frame(CLOSE, code.to_bytes(2, "big") + reason)

    assert under_every_cut(wire) == (b"last words", [close(10, code, reason)])


def test_a_close_without_a_body_is_1005():
    assert under_every_cut(client_frame(CLOSE)) == (b"", [close(0, 1005)])


def test_a_close_may_come_inside_a_message():
    wire = client_frame(TEXT, b"half " + EURO[:1], fin=False) + client_frame(CLOSE, b"\x03\xe9")

    assert under_every_cut(wire) == (b"half " + EURO[:1], [close(6, 1001)])


@pytest.mark.parametrize("last", [client_frame(CLOSE), b"\xc1"])
def test_nothing_after_the_end_is_parsed(last):
    after = client_frame(BINARY, b"too late") + client_frame(PING) + client_frame(CLOSE) + b"\xff" * 20
    before = parsed(last, [])[:2]

    assert under_every_cut(last + after) == before


# --- what is wrong

HALF = client_frame(TEXT, b"half", fin=False)
PLACES = {
    "at the start": b"",
    "after a message": client_frame(BINARY, b"one") + client_frame(PING, b"p"),
    "after a fragment": HALF + client_frame(PONG),
}

# The shortest wire that shows a fault: all but its last byte could still become right.
CROOKED_ANYWHERE = {
    **{
        f"RSV {rsv:#x} on {first:#x}": bytes([first | rsv])
        for rsv in (0x40, 0x20, 0x10, 0x70)
        for first in (0x80, 0x81, 0x82, 0x89)
    },
    **{f"opcode {opcode:#x}": bytes([opcode]) for opcode in (*range(3, 8), *range(0xB, 0x10))},
    **{f"opcode {opcode:#x} with FIN": bytes([0x80 | opcode]) for opcode in (*range(3, 8), *range(0xB, 0x10))},
    **{f"control {opcode:#x} in fragments": bytes([opcode]) for opcode in (CLOSE, PING, PONG)},
    **{
        f"control {0x80 | opcode:#x} with {length:#x}": bytes([0x80 | opcode, 0x80 | length])
        for opcode in (CLOSE, PING, PONG)
        for length in (126, 127)
    },
    **{
        f"control {0x80 | opcode:#x} unmasked": bytes([0x80 | opcode, length])
        for opcode in (CLOSE, PING, PONG)
        for length in (0, 2, 126)
    },
    "a close of one byte": b"\x88\x81",
    **{
        f"close code {code}": client_frame(CLOSE, code.to_bytes(2, "big") + b"why")
        for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 1999, 2000, 2999, 5000, 65535)
    },
}
CROOKED_START = {
    "a continuation": bytes([CONT]),
    "a continuation with FIN": bytes([0x80 | CONT]),
}
CROOKED_INSIDE = {
    f"opcode {first:#x} inside a message": bytes([first]) for first in (TEXT, BINARY, 0x80 | TEXT, 0x80 | BINARY)
}


def crooked_lengths(first: int) -> dict[str, bytes]:
    """Faults of a data frame's second byte and its length, `first` being a first byte that is right."""
    return {
        **{f"{first:#x} unmasked, {length:#x}": bytes([first, length]) for length in (0, 1, 125, 126, 127)},
        **{
            f"{first:#x} with {length} in 16 bits": bytes([first, 0xFE]) + length.to_bytes(2, "big")
            for length in (0, 1, 125)
        },
        f"{first:#x} with at most 65535 in 64 bits": bytes([first, 0xFF]) + bytes(6),
        **{f"{first:#x} with top byte {top:#x} in 64 bits": bytes([first, 0xFF, top]) for top in (0x80, 0xFF)},
    }


CROOKED = [
    pytest.param(before, wire, id=f"{name} {place}")
    for place, before in PLACES.items()
    for name, wire in {
        **CROOKED_ANYWHERE,
        **(CROOKED_INSIDE if before.startswith(HALF) else CROOKED_START),
        **crooked_lengths(0x80 | CONT if before.startswith(HALF) else 0x80 | BINARY),
        **crooked_lengths(CONT if before.startswith(HALF) else TEXT),
    }.items()
]


@pytest.mark.parametrize(("before", "wire"), CROOKED)
def test_a_fault_is_refused_by_the_very_byte_that_shows_it(before, wire):
    payload, events, _ = parsed(before, [])

    assert parsed(before + wire[:-1], [])[:2] == (payload, events)
    assert under_every_cut(before + wire) == (payload, [*events, error(len(payload), 1002)])


@pytest.mark.parametrize(("before", "wire"), CROOKED)
def test_what_follows_a_fault_changes_nothing(before, wire):
    """Also where enough follows to make a whole header of it, which is read in another way."""
    for after in (b"\x00" * 20, b"\xff" * 20, client_frame(BINARY, b"after"), client_frame(BINARY, b"long after")):
        assert parsed(before + wire + after, [])[:2] == parsed(before + wire, [])[:2]


@pytest.mark.parametrize("top", [0x00, 0x7F])
def test_a_64_bit_length_with_any_of_its_upper_six_bytes_is_right(top):
    for at in range(6):
        length = bytearray([top & 0x7F, 0, 0, 0, 0, 0, 0, 0])
        length[at] |= 1
        wire = b"\x82\xff" + bytes(length) + KEY + masked(b"x", KEY)
        assert under_every_cut(wire) == (b"x", [])


# --- text that is not

BAD_TEXTS = [
    # bytes, and the index of the first that cannot continue a text
    (b"\x80", 0),
    (b"ab\xff", 2),
    (b"\xc0\x80", 0),
    (b"\xe0\x80\x80", 1),
    (b"\xed\xa0\x80", 1),
    (b"\xf0\x80\x80\x80", 1),
    (b"\xf4\x90\x80\x80", 1),
    (b"\xf5\x80", 0),
    (EURO[:2] + b"x", 2),
    ("😀".encode()[:3] + EURO, 3),
    (b"x" * 70 + EURO * 30 + b"\xed\xbf" + b"y" * 40, 161),
]


@pytest.mark.parametrize(("text", "bad"), BAD_TEXTS)
def test_a_text_is_delivered_up_to_the_byte_that_cannot_be_utf8(text, bad):
    assert under_every_cut(client_frame(TEXT, text + b"more")) == (text[:bad], [error(bad, 1007)])


@pytest.mark.parametrize(("text", "bad"), BAD_TEXTS)
def test_a_text_is_checked_across_its_fragments_and_the_control_frames_between(text, bad):
    for cut in range(min(len(text), 8) + 1):
        wire = client_frame(TEXT, text[:cut], fin=False) + client_frame(PING) + client_frame(CONT, text[cut:])
        at = min(cut, bad)
        events = [ping(cut), error(bad, 1007)] if cut <= bad else [error(at, 1007)]
        assert parsed(wire, [])[:2] == parsed(wire, list(range(len(wire))))[:2] == (text[:bad], events)


@pytest.mark.parametrize("rest", [EURO[:1], EURO[:2], "😀".encode()[:3], b"\xc3"])
def test_a_text_that_ends_inside_a_character_is_refused_at_its_end(rest):
    wire = client_frame(TEXT, b"ab" + rest[:1], fin=False) + client_frame(CONT, rest[1:])

    assert under_every_cut(wire) == (b"ab" + rest, [error(2 + len(rest), 1007)])
    assert parsed(wire[:-1] if rest[1:] else wire[:-6], [])[1] == []


@pytest.mark.parametrize("kernels", ["avx2", "plain"])
@pytest.mark.parametrize("length", [*range(1, 72), 125, 160, 161, 191, 511, 512, 545, 700])
def test_no_place_in_a_text_frame_goes_unseen_while_it_is_unmasked(kernels, length):
    """Whether a payload is ASCII is known from unmasking it; whatever is not has to be looked at again."""
    try:
        before = _set_kernels(kernels)
    except ValueError:
        pytest.skip(f"no {kernels} on this processor")
    try:
        for at in range(length):
            text = b"a" * at + b"\xff" + b"a" * (length - at - 1)
            payload, events, _ = parsed(client_frame(TEXT, text), [])
            assert (payload, events) == (text[:at], [error(at, 1007)]), at
    finally:
        _set_kernels(before)


@pytest.mark.parametrize("length", [1, 4, 8, 16, 31, 32, 64, 125, 600])
def test_ascii_does_not_end_a_character_that_the_fragment_before_began(length):
    wire = client_frame(TEXT, EURO[:2], fin=False) + client_frame(CONT, b"a" * length)

    payload, events, _ = parsed(wire, [])

    assert (payload, events) == (EURO[:2], [error(2, 1007)])


def test_the_next_text_begins_anew():
    wire = (
        client_frame(TEXT, EURO)
        + client_frame(BINARY, EURO[:1])
        + client_frame(TEXT, EURO)
        + client_frame(TEXT, b"\x82")
    )

    assert under_every_cut(wire) == (EURO + EURO[:1] + EURO, [error(7, 1007)])


@pytest.mark.parametrize("reason", [b"\xff", b"ok" + EURO[:2], b"\xed\xa0\x80", b"x" * 120 + EURO[:2]])
def test_a_reason_that_is_not_utf8_is_1007(reason):
    assert under_every_cut(client_frame(CLOSE, b"\x03\xe8" + reason)) == (b"", [error(0, 1007)])


def test_a_forbidden_code_comes_before_a_bad_reason():
    assert under_every_cut(client_frame(CLOSE, b"\x03\xed\xff")) == (b"", [error(0, 1002)])


# --- keys


@pytest.mark.parametrize("key", [bytes(4), b"\xff" * 4, b"\x00\x00\x00\x01", b"\x80\x00\x00\x00"])
def test_any_key_will_do(key):
    data = bytes(range(70))

    assert under_every_cut(client_frame(BINARY, data, key=key)) == (data, [])
    assert mask(data, key) == masked(data, key)
