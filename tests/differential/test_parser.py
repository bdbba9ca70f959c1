"""Our parser beside wsproto and websockets, which know nothing of each other or of us.

Where they differ from us on purpose:

- wsproto collects a header before it judges it, websockets a frame; we refuse by the byte that shows the fault. So a
  wire that only we refuse must be refused by wsproto too once a few more bytes have come;
- Python's incremental UTF-8 decoder, which wsproto uses, lets the second byte of a surrogate pass, not the third;
- wsproto does not know close code 1014, which IANA registered in 2013;
- websockets takes any spelling of a length, leaves text to the layer above, refuses a CLOSE inside a message (which
  RFC 6455 §5.4 allows), and reads the reason of a CLOSE before its code.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import example, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ProtocolError
from websockets.frames import Opcode
from websockets.protocol import SERVER, Protocol
from wsproto.frame_protocol import FrameProtocol, ParseFailed
from wsproto.frame_protocol import Opcode as WsprotoOpcode

from tests.differential.frames import BINARY, CLOSE, CONT, PATIENT, PING, PONG, TEXT, client_frame, pieces
from wstunnel._speedups import FrameParser, _set_kernels

FILLER = bytes(14)
"""Enough to end any header and any character; as a frame it is a fault in itself."""


@dataclass
class Heard:
    """What one parser made of a wire: told[k] is (kind, payload bytes before it, close code, body)."""

    payload: bytes = b""
    told: list[tuple[str, int, int, bytes]] = field(default_factory=list)
    refused: int | None = None
    has_closed: bool = False
    messages: int = 0
    why: str = field(default="", compare=False)


def ours(wire: bytes, cuts: list[int], *, in_place: bool = False) -> Heard:
    parser = FrameParser()
    heard = Heard()
    for piece in pieces(wire, cuts):
        if in_place:
            room = bytearray(piece)
            length, events = parser.feed_in_place(room)
            payload = bytes(room[:length])
        else:
            payload, events = parser.feed(piece)
        for event in events:
            assert heard.refused is None
            assert not heard.has_closed
            at = len(heard.payload) + event.at
            if event.kind == "error":
                heard.refused = event.close_code
                assert at == len(heard.payload) + len(payload)
            else:
                heard.told.append((event.kind, at, event.close_code, event.body))
                heard.has_closed = event.kind == "close"
        heard.payload += payload
    heard.messages = parser.messages
    return heard


def wsproto_heard(wire: bytes, cuts: list[int]) -> Heard:
    """`at` counts whole characters only: wsproto keeps the unfinished ones back."""
    parser = FrameProtocol(client=False, extensions=[])
    heard = Heard()
    for piece in pieces(wire, cuts):
        parser.receive_bytes(piece)
        try:
            for frame in parser.received_frames():
                if frame.opcode is WsprotoOpcode.CLOSE:
                    code, reason = frame.payload
                    heard.told.append(("close", len(heard.payload), int(code), reason.encode()))
                    heard.has_closed = True
                elif frame.opcode.iscontrol():
                    heard.told.append((frame.opcode.name.lower(), len(heard.payload), 0, bytes(frame.payload)))
                else:
                    data = frame.payload
                    heard.payload += data.encode() if isinstance(data, str) else bytes(data)
                    heard.messages += frame.message_finished
        except ParseFailed as failed:
            heard.refused, heard.why = int(failed.code), str(failed)
        if heard.refused is not None or heard.has_closed:
            break
    return heard


def websockets_heard(wire: bytes, cuts: list[int]) -> Heard:
    protocol = Protocol(SERVER, max_size=None)
    heard = Heard()
    for piece in pieces(wire, cuts):
        protocol.receive_data(piece)
        for frame in protocol.events_received():
            if frame.opcode is Opcode.CLOSE:
                assert protocol.close_rcvd is not None
                code = int(protocol.close_rcvd.code)
                heard.told.append(("close", len(heard.payload), code, bytes(frame.data[2:])))
                heard.has_closed = True
            elif frame.opcode in (Opcode.PING, Opcode.PONG):
                heard.told.append((frame.opcode.name.lower(), len(heard.payload), 0, bytes(frame.data)))
            else:
                heard.payload += bytes(frame.data)
                heard.messages += frame.fin
        if protocol.parser_exc is not None:
            heard.refused = 1002 if isinstance(protocol.parser_exc, ProtocolError) else 1007
        if heard.refused is not None or heard.has_closed:
            break
    return heard


# --- wires

KEYS = st.binary(min_size=4, max_size=4)
EDGES = st.sampled_from([0, 1, 2, 124, 125, 126, 127, 128, 65534, 65535, 65536, 65537])
CHARACTERS = st.text(st.sampled_from("a~\x00\x7fé߿ࠀ€\ud7ff\ue000\uffff😀\U00010000\U0010ffff"), max_size=60)
CLOSE_CODES = st.sampled_from([1000, 1001, 1002, 1003, 1007, 1011, 1012, 1013, 3000, 3999, 4000, 4999])
ANY_CODES = st.one_of(CLOSE_CODES, st.sampled_from([0, 999, 1004, 1005, 1006, 1014, 1015, 1016, 2999, 5000, 65535]))
CUTS = st.one_of(
    st.just([]),
    st.lists(st.integers(0, 200), max_size=20),
    st.lists(st.integers(0, 140_000), max_size=8),
    st.just(list(range(300))),
)


@st.composite
def controls(draw: st.DrawFn) -> bytes:
    body = draw(st.one_of(st.binary(max_size=20), st.binary(min_size=124, max_size=125)))
    return client_frame(draw(st.sampled_from([PING, PONG])), body, key=draw(KEYS))


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A message in one frame or several, with control frames anywhere between them."""
    opcode = draw(st.sampled_from([TEXT, BINARY]))
    if opcode == TEXT:
        data = draw(CHARACTERS).encode() * draw(st.sampled_from([1, 1, 3, 700]))
    else:
        data = draw(st.binary(max_size=70)) + draw(st.binary(min_size=1, max_size=9)) * 65537
        data = data[: draw(st.one_of(st.integers(0, 70), EDGES))]
    places = sorted(draw(st.lists(st.one_of(st.integers(0, len(data)), EDGES), max_size=4)))
    fragments = list(pieces(data, places))
    wire = b""
    for at, fragment in enumerate(fragments):
        fin = at == len(fragments) - 1
        wire += client_frame(CONT if at else opcode, fragment, fin=fin, key=draw(KEYS))
        if not fin:
            wire += b"".join(draw(st.lists(controls(), max_size=2)))
    return wire


@st.composite
def closes(draw: st.DrawFn) -> bytes:
    body = draw(st.one_of(st.just(b""), CLOSE_CODES.map(lambda code: code.to_bytes(2, "big"))))
    if body:
        body += draw(CHARACTERS).encode()[:123]
        body = body[:2] + body[2:].decode(errors="ignore").encode()
    return client_frame(CLOSE, body, key=draw(KEYS))


@st.composite
def wires(draw: st.DrawFn) -> bytes:
    """What a client without fault may send."""
    frames = draw(st.lists(st.one_of(messages(), messages(), controls()), max_size=5))
    return b"".join(frames) + draw(st.one_of(st.just(b""), closes()))


@st.composite
def crooked_frames(draw: st.DrawFn) -> bytes:
    """A frame whose header is right in most bits."""
    first = draw(st.sampled_from([0x81, 0x82, 0x01, 0x02, 0x80, 0x00, 0x88, 0x89, 0x8A, 0x08, 0x83, 0xC1, 0x9F]))
    data = draw(
        st.one_of(st.binary(max_size=130), CHARACTERS.map(str.encode), CLOSE_CODES.map(lambda c: c.to_bytes(2, "big")))
    )
    key = draw(KEYS)
    wire = bytearray(client_frame(first & 0x0F, data, fin=bool(first & 0x80), key=key))
    wire[0] = first
    return bytes(wire)


@st.composite
def crooked_closes(draw: st.DrawFn) -> bytes:
    """A CLOSE of any code and any reason, or of half a code."""
    body = draw(ANY_CODES).to_bytes(2, "big") + draw(st.one_of(CHARACTERS.map(str.encode), st.binary(max_size=8)))
    return client_frame(CLOSE, body[: draw(st.sampled_from([1, 2, 3, 100]))], key=draw(KEYS))


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A right wire, or frames in any order, with a few bytes changed, and cut off anywhere."""
    wire = bytearray(
        b"".join(draw(st.lists(st.one_of(crooked_frames(), crooked_closes(), messages(), controls()), max_size=4)))
    )
    for at, byte in draw(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=3)):
        if at < len(wire):
            wire[at] = byte
    return bytes(wire[: draw(st.one_of(st.just(len(wire)), st.integers(0, 200)))])


# --- verdicts


def whole_characters(heard: Heard) -> Heard:
    """Without the places of events, which wsproto counts in whole characters."""
    return Heard(
        heard.payload,
        [(kind, 0, code, body) for kind, _, code, body in heard.told],
        heard.refused,
        heard.has_closed,
        heard.messages,
    )


@settings(PATIENT, max_examples=150)
@given(wires(), CUTS, st.booleans())
def test_what_is_right_is_heard_as_wsproto_and_websockets_hear_it(wire, cuts, in_place):
    mine = ours(wire, cuts, in_place=in_place)

    assert mine.refused is None
    assert mine == websockets_heard(wire, cuts)
    assert whole_characters(mine) == whole_characters(wsproto_heard(wire, cuts))


@settings(PATIENT, max_examples=150)
@given(st.one_of(wires(), mutated(), st.binary(max_size=80)), CUTS, st.booleans())
@example(b"\x81\x83\x00\x00\x00\x00\xed\xa0\x80", [7, 8], True)
@example(b"\x01\x81\x00\x00\x00\x00\xc3\x00\x80\x00\x00\x00\x00", [], False)
def test_no_cut_and_no_kernel_changes_what_is_heard(wire, cuts, in_place):
    whole = ours(wire, [])
    before = _set_kernels("plain")
    try:
        plain = ours(wire, cuts, in_place=in_place)
    finally:
        _set_kernels(before)

    assert whole == plain == ours(wire, cuts, in_place=in_place) == ours(wire, list(range(min(len(wire), 2000))))


@settings(PATIENT, max_examples=400)
@given(st.one_of(mutated(), st.binary(max_size=80)))
@example(b"\x81\x83\x00\x00\x00\x00\xed\xa0")
@example(b"\x82\xfe\x00\x01")
@example(b"\x88\x81")
@example(client_frame(CLOSE, b"\x03"))
@example(client_frame(CLOSE, b"\x03\xf6"))
@example(client_frame(CLOSE, b"\x03\xf6\x80"))
@example(client_frame(TEXT, b"\xed\xa0", fin=False) + client_frame(PING) + client_frame(CLOSE))
def test_what_wsproto_refuses_we_refuse_and_the_other_way_round(wire):
    mine = ours(wire, [])
    theirs = wsproto_heard(wire, [])

    if theirs.refused is None and mine.refused is not None:
        theirs = wsproto_heard(wire + FILLER, [])
    assert mine.payload.startswith(theirs.payload)
    if mine.refused == 1007 and mine.payload.endswith(b"\xed"):
        return  # a surrogate cut by the end of a fragment: whatever comes next, wsproto hears first
    if theirs.refused == 1002 and mine.refused != 1002:
        assert theirs.why == "CLOSE with unknown reserved code"
        assert mine.refused == 1007 or mine.told[-1][2] == 1014
        return
    assert mine.refused == theirs.refused
    assert whole_characters(mine).told == whole_characters(theirs).told
    assert mine.messages == theirs.messages
    if mine.refused is None:
        assert is_start_of_character(mine.payload[len(theirs.payload) :])


def is_start_of_character(rest: bytes) -> bool:
    return rest == b"" or (len(rest) < 4 and rest[0] >= 0xC2 and all(byte & 0xC0 == 0x80 for byte in rest[1:]))


@settings(PATIENT, max_examples=400)
@given(st.one_of(mutated(), st.binary(max_size=80)))
@example(client_frame(TEXT, b"half", fin=False) + client_frame(CLOSE))
@example(client_frame(CLOSE, b"\x00\x00\xff"))
def test_what_websockets_refuses_we_refuse(wire):
    mine = ours(wire, [])
    theirs = websockets_heard(wire, [])

    if theirs.refused is None:
        if mine.refused is None:
            assert mine.told == theirs.told
            assert mine.payload.startswith(theirs.payload)
        return
    closed_inside = mine.has_closed and len(mine.told) == len(theirs.told) + 1
    assert mine.refused is not None or closed_inside
    assert mine.told[: len(theirs.told)] == theirs.told[: len(mine.told)]


def test_every_close_code_is_judged_as_they_do():
    for code in (*range(5100), 0x7FFF, 0x8000, 0xFFFF):
        wire = client_frame(CLOSE, code.to_bytes(2, "big") + b"why")
        mine = ours(wire, [])
        assert mine.has_closed == websockets_heard(wire, []).has_closed, code
        assert mine.has_closed == (code == 1014 or wsproto_heard(wire, []).has_closed), code
