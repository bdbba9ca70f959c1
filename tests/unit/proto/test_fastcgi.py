"""FastCGI records: what a request becomes, and what a responder says, in any pieces."""

from __future__ import annotations

import time
from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.differential.frames import PATIENT, pieces
from wstunnel.errors import BackendError
from wstunnel.limits import GatewayLimits
from wstunnel.proto.fastcgi import End, Event, RecordReader, Stderr, Stdout, abort, begin, params, stdin

LIMITS = GatewayLimits()
SMALL = GatewayLimits(max_ignored_bytes=64)

BEGIN, ABORT, END, PARAMS, STDIN, STDOUT, STDERR, DATA, GET_VALUES, RESULT, UNKNOWN = range(1, 12)
GOOD_END = bytes(8)


def record(kind: int, content: bytes = b"", *, request_id: int = 7, padding: int = 0, version: int = 1) -> bytes:
    """One record, made by hand."""
    header = bytes((version, kind)) + request_id.to_bytes(2, "big") + len(content).to_bytes(2, "big")
    return header + bytes((padding, 0)) + content + b"p" * padding


def records_in(wire: bytes) -> list[tuple[int, int, bytes]]:
    """Type, request id and content of each record; every one well-formed and a multiple of 8 long."""
    found = []
    while wire:
        size, padding = int.from_bytes(wire[4:6], "big"), wire[6]
        assert wire[0] == 1
        assert wire[7] == 0
        assert (size + padding) % 8 == 0
        assert padding < 8
        assert wire[8 + size : 8 + size + padding] == bytes(padding)
        found.append((wire[1], int.from_bytes(wire[2:4], "big"), wire[8 : 8 + size]))
        wire = wire[8 + size + padding :]
    return found


def joined(events: Iterable[Event]) -> list[Event]:
    """Events, neighbours of one stream as one."""
    found: list[Event] = []
    for event in events:
        match event, found[-1:]:
            case (Stdout(more), [Stdout(data)]) | (Stderr(more), [Stderr(data)]):
                found[-1] = type(event)(data + more)
            case _:
                found.append(event)
    return found


def read(wire: bytes, cuts: Iterable[int] = (), limits: GatewayLimits = LIMITS) -> tuple[list[Event], bool, bytes, str]:
    """Events, is the answer complete, what follows it, and why it was refused."""
    reader = RecordReader(limits, 7)
    events: list[Event] = []
    beyond = b""
    for piece in pieces(wire, list(cuts)):
        if reader.is_complete:
            beyond += piece
            continue
        try:
            said = reader.feed(piece)
        except BackendError as error:
            return joined(events), False, b"", f"{error.status} {error}"
        assert said == joined(said)
        assert all(event.data for event in said if not isinstance(event, End))
        events += said
    return joined(events), reader.is_complete, reader.leftover + beyond, ""


def refusal(wire: bytes, limits: GatewayLimits = LIMITS) -> str:
    return read(wire, (), limits)[3]


# --- what a request becomes


@pytest.mark.parametrize(("keep", "flags"), [(False, 0), (True, 1)])
def test_a_request_begins_for_a_responder(keep, flags):
    assert begin(258, keep=keep) == bytes((1, BEGIN, 1, 2, 0, 8, 0, 0, 0, 1, flags, 0, 0, 0, 0, 0))


def test_an_abort_is_a_bare_header():
    assert abort(258) == bytes((1, ABORT, 1, 2, 0, 0, 0, 0))


def test_variables_are_length_length_name_value():
    assert records_in(params(1, {"A": "bc", "DEF": ""})) == [
        (PARAMS, 1, b"\x01\x02Abc\x03\x00DEF"),
        (PARAMS, 1, b""),
    ]


def test_a_length_has_four_bytes_from_128_on():
    short, long = "x" * 127, "x" * 128

    content = records_in(params(1, {short: long, long: short}))[0][2]

    assert content == (
        b"\x7f\x80\x00\x00\x80" + b"x" * (127 + 128) + b"\x80\x00\x00\x80\x7f" + b"x" * (128 + 127)
    )  # fmt: skip


def test_a_length_is_that_of_the_bytes_not_of_the_characters():
    assert records_in(params(1, {"A": "\u00e9\udcff"}))[0][2] == b"\x01\x03A\xc3\xa9\xff"


def test_no_variables_are_ended_once():
    assert records_in(params(1, {})) == [(PARAMS, 1, b"")]


def test_variables_that_fill_more_than_a_record_go_on_in_the_next():
    found = records_in(params(3, {"A": "x" * 200_000}))

    assert [len(content) for _, _, content in found] == [65528, 65528, 65528, 200_006 - 3 * 65528, 0]
    assert b"".join(content for _, _, content in found) == b"\x01\x80\x03\x0d\x40A" + b"x" * 200_000
    assert {(kind, request_id) for kind, request_id, _ in found} == {(PARAMS, 3)}


@pytest.mark.parametrize("size", [1, 7, 8, 9, 65_527, 65_528, 65_529, 65_535, 65_536, 131_056, 131_057])
def test_a_body_fills_records_to_their_end(size):
    data = bytes(range(256)) * (size // 256 + 1)
    found = records_in(stdin(1, data[:size]))

    assert [len(content) for _, _, content in found[:-1]] == [65_528] * (len(found) - 1)
    assert found[-1][2]
    assert b"".join(content for _, _, content in found) == data[:size]
    assert {(kind, request_id) for kind, request_id, _ in found} == {(STDIN, 1)}


def test_no_bytes_end_the_body():
    assert stdin(1, b"") == bytes((1, STDIN, 0, 1, 0, 0, 0, 0))


# --- what a responder says


def test_an_answer_is_output_and_errors_in_order_and_an_end():
    wire = (
        record(STDOUT, b"Status: 200\n")
        + record(STDERR, b"oh", padding=6)
        + record(STDOUT, b"\n")
        + record(STDOUT)
        + record(STDERR)
        + record(END, b"\x01\x02\x03\x04\x00xyz", padding=255)
    )

    assert read(wire + b"more") == (
        [Stdout(b"Status: 200\n"), Stderr(b"oh"), Stdout(b"\n"), End(0x01020304)],
        True,
        b"more",
        "",
    )


def test_content_flows_before_its_record_has_come_whole():
    reader = RecordReader(LIMITS, 7)

    assert reader.feed(record(STDOUT, bytes(65_535))[:11]) == [Stdout(bytes(3))]
    assert reader.feed(bytes(65_531)) == [Stdout(bytes(65_531))]
    assert reader.feed(b"\0" + record(STDERR, b"x")) == [Stdout(b"\0"), Stderr(b"x")]


def test_neighbours_are_one_event():
    wire = record(STDOUT, b"a", padding=3) + record(STDOUT) + record(RESULT, request_id=0) + record(STDOUT, b"b")

    assert RecordReader(LIMITS, 7).feed(wire) == [Stdout(b"ab")]


def test_an_end_is_not_told_before_its_padding_has_come():
    """What follows on a connection that is kept would begin with it."""
    reader = RecordReader(LIMITS, 7)

    assert reader.feed(record(END, GOOD_END, padding=3)[:-1]) == []
    assert not reader.is_complete
    assert reader.feed(b"p") == [End(0)]
    assert reader.leftover == b""


@pytest.mark.parametrize(
    "other",
    [
        record(RESULT, b"\x0f\x01FCGI_MPXS_CONNS0", request_id=0),
        record(UNKNOWN, bytes(8), request_id=0, padding=8),
        record(UNKNOWN, b"x"),
        record(200, b"x"),
        record(STDOUT, b"x", request_id=6),
        record(STDERR, b"x", request_id=0x0700),
        record(END, b"x", request_id=8),
        record(PARAMS, b"x", request_id=8),
    ],
)
def test_what_is_not_said_to_this_request_is_skipped(other):
    wire = other + record(STDOUT, b"a") + other + record(END, GOOD_END)

    assert read(wire) == ([Stdout(b"a"), End(0)], True, b"", "")


# --- what is refused


@pytest.mark.parametrize("kind", [BEGIN, ABORT, PARAMS, STDIN, DATA, GET_VALUES, 0])
def test_what_only_servers_say_is_refused(kind):
    assert refusal(record(kind)) == f"502 a FastCGI record of type {kind} comes from no responder"


@pytest.mark.parametrize("wire", [b"H", b"HTTP/1.1 200 OK\r\n", b"\0", record(STDOUT, b"x") + b"\2", b"\x80"])
def test_what_is_no_record_is_refused_by_its_first_byte(wire):
    assert refusal(wire).startswith("502 a FastCGI record begins with 1, not with ")


@pytest.mark.parametrize("size", [0, 7, 9, 65_535])
def test_an_end_of_another_length_is_refused(size):
    assert refusal(record(END, bytes(size))[:8]) == f"502 END_REQUEST has 8 bytes, this one has {size}"


@pytest.mark.parametrize(
    ("protocol_status", "expected"),
    [
        (1, "503 the FastCGI backend takes no second request on a connection"),
        (2, "503 the FastCGI backend is overloaded: give it more processes, or fewer connections"),
        (3, "502 the FastCGI backend is no responder"),
        (255, "502 the FastCGI backend ends the request with protocol status 255"),
    ],
)
def test_a_refusal_is_an_error_not_an_end(protocol_status, expected):
    wire = record(END, bytes((0, 0, 0, 0, protocol_status, 0, 0, 0)))

    assert refusal(wire) == expected
    assert read(wire, range(len(wire)))[3] == expected


@pytest.mark.parametrize(
    "nothing",
    [
        record(STDOUT),
        record(STDERR, padding=8),
        record(RESULT, b"x" * 8, request_id=0),
        record(STDOUT, b"x" * 3, request_id=9, padding=5),
    ],
)
def test_saying_nothing_has_a_bound(nothing):
    fits = 64 // len(nothing)

    assert read(nothing * fits + record(STDOUT, b"a"), (), SMALL) == ([Stdout(b"a")], False, b"", "")
    assert refusal(nothing * (fits + 1), SMALL) == "502 over 64 bytes of FastCGI records say nothing"


def test_a_long_answer_may_say_nothing_now_and_then():
    wire = (record(STDOUT) * 8 + record(STDOUT, b"a")) * 3

    assert read(wire, (), SMALL) == ([Stdout(b"aaa")], False, b"", "")


def test_what_is_skipped_is_bounded_before_it_comes():
    assert refusal(record(200, bytes(57))[:8], SMALL) == "502 over 64 bytes of FastCGI records say nothing"


# --- under every cut

kinds = st.sampled_from([STDOUT, STDOUT, STDERR, RESULT, END, PARAMS])
good_records = st.builds(
    lambda kind, content, padding, request_id: record(
        kind, GOOD_END if kind == END else content, padding=padding, request_id=request_id
    ),
    kinds,
    st.binary(max_size=20),
    st.sampled_from([0, 1, 7, 255]),
    st.sampled_from([7, 7, 7, 8]),
)
wires = st.lists(st.one_of(good_records, good_records, good_records, st.binary(max_size=10)), max_size=6).map(b"".join)


@PATIENT
@example(record(STDOUT, b"abc", padding=2) + record(END, GOOD_END, padding=1) + b"x", [9, 12, 13, 20, 30])
@given(wires, st.lists(st.integers(0, 300), max_size=10))
def test_a_cut_changes_nothing(wire, cuts):
    one_by_one = read(wire, range(len(wire)), SMALL)
    cut = read(wire, cuts, SMALL)

    assert cut[1:] == one_by_one[1:]
    if not cut[3]:
        assert cut[0] == one_by_one[0]


@PATIENT
@given(st.binary())
def test_garbage_is_refused_or_waited_for_and_raises_nothing_else(wire):
    read(b"\1" + wire, (), SMALL)
    read(wire, (), SMALL)


@pytest.mark.parametrize(
    "wire",
    [record(STDOUT, b"x") * 50_000, record(STDOUT) * 50_000, (record(STDOUT, b"x") + record(STDERR, b"y")) * 25_000],
)
def test_time_is_linear_in_the_bytes_whatever_they_are(wire):
    limits = GatewayLimits(max_ignored_bytes=10**6)

    def took_s(size: int) -> float:
        start_s = time.process_time()
        RecordReader(limits, 7).feed(wire[:size])
        return time.process_time() - start_s

    size = len(wire)
    assert min(took_s(size) for _ in range(3)) < 40 * min(took_s(size // 8) for _ in range(5)) + 0.01
