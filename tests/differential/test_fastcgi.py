"""Our FastCGI beside fcgiproto, a responder's side that knows nothing of us."""

from __future__ import annotations

from collections.abc import Iterator

from fcgiproto import FastCGIConnection, RequestAbortEvent, RequestBeginEvent, RequestDataEvent
from hypothesis import example, given
from hypothesis import strategies as st

from tests.differential.frames import PATIENT, pieces
from wstunnel.limits import GatewayLimits
from wstunnel.proto.fastcgi import End, RecordReader, Stdout, abort, begin, params, stdin

names = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=12)
values = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=200)
cuts_of = st.lists(st.integers(0, 2000), max_size=10)


def heard(connection: FastCGIConnection, wire: bytes, cuts: list[int]) -> Iterator[object]:
    for piece in pieces(wire, cuts):
        yield from connection.feed_data(piece)


@PATIENT
@example({"A": "x" * 70_000}, b"y" * 140_000, True, [8, 16, 65_540])
@given(st.dictionaries(names, values, max_size=6), st.binary(max_size=100), st.booleans(), cuts_of)
def test_fcgiproto_reads_what_we_write(variables, body, keep, cuts):
    wire = begin(9, keep=keep) + params(9, variables) + (stdin(9, body) if body else b"") + stdin(9, b"")
    connection = FastCGIConnection()

    begun, *data = heard(connection, wire, cuts)

    assert isinstance(begun, RequestBeginEvent)
    assert (begun.request_id, begun.role, bool(begun.keep_connection)) == (9, 1, keep)
    assert dict(begun.params) == variables
    assert all(isinstance(event, RequestDataEvent) and event.request_id == 9 for event in data)
    assert b"".join(event.data for event in data) == body
    assert data[-1].data == b""
    assert connection.data_to_send() == b""


def test_fcgiproto_hears_of_a_client_that_has_left():
    connection = FastCGIConnection()

    said = list(heard(connection, begin(1, keep=False) + params(1, {"A": "b"}) + stdin(1, b"x") + abort(1), []))

    assert isinstance(said[-1], RequestAbortEvent)


@PATIENT
@given(st.lists(st.binary(max_size=300), max_size=5), cuts_of)
def test_we_read_what_fcgiproto_writes(parts, cuts):
    connection = FastCGIConnection()
    connection.feed_data(begin(9, keep=True) + params(9, {}) + stdin(9, b""))
    connection.send_headers(9, [(b"a", b"b")], status=404)
    for part in [part for part in parts if part]:
        connection.send_data(9, part)
    connection.send_data(9, b"")
    connection.end_request(9)
    reader = RecordReader(GatewayLimits(), 9)

    events = [event for piece in pieces(connection.data_to_send(), cuts) if piece for event in reader.feed(piece)]

    assert events.pop() == End(0)
    assert all(isinstance(event, Stdout) for event in events)
    assert b"".join(event.data for event in events) == b"Status: 404\r\na: b\r\n\r\n" + b"".join(parts)
    assert (reader.is_complete, reader.leftover) == (True, b"")


def test_we_pass_over_what_fcgiproto_says_of_itself():
    """GET_VALUES_RESULT and UNKNOWN_TYPE, which answer nothing that we ask."""
    connection = FastCGIConnection()
    connection.feed_data(bytes((1, 9, 0, 0, 0, 17, 0, 0, 15, 0)) + b"FCGI_MPXS_CONNS")
    connection.feed_data(bytes((1, 99, 0, 0, 0, 0, 0, 0)))
    said = connection.data_to_send()
    assert [said[1], said[-15]] == [10, 11]

    assert RecordReader(GatewayLimits(), 1).feed(said) == []
