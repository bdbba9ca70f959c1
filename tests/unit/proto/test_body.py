"""Bodies of requests. h11 reads them too, in tests/differential/test_chunked.py."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wstunnel.errors import PeerError
from wstunnel.limits import GatewayLimits
from wstunnel.proto.body import body_reader

LIMITS = GatewayLimits()


def test_no_body_needs_no_reader():
    assert body_reader(0, LIMITS) is None


@given(st.binary(min_size=1, max_size=20), st.binary(max_size=10), st.lists(st.integers(0, 30), max_size=5))
def test_a_body_of_known_length_ends_where_it_was_said_to(body, rest, cuts):
    reader = body_reader(len(body), LIMITS)
    assert reader is not None
    wire = body + rest
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(wire)]
    got = b""
    for start, end in pairwise(edges):
        if not reader.is_complete:
            got += reader.feed(wire[start:end])
            left = wire[end:]
    assert (got, reader.is_complete, reader.leftover + left) == (body, True, rest)


def test_a_body_of_unknown_length_comes_in_chunks():
    reader = body_reader(None, LIMITS)
    assert reader is not None
    assert reader.feed(b"3\r\nabc\r\n0\r\n\r\nGET") == b"abc"
    assert reader.leftover == b"GET"


def test_a_body_of_malformed_chunks_is_the_clients_fault():
    reader = body_reader(None, LIMITS)
    assert reader is not None
    with pytest.raises(PeerError):
        reader.feed(b"x\r\n")
