"""Who is at fault, and texts that carry nothing a terminal would act on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wstunnel.errors import BackendError, ConfigError, LimitError, PeerError, StartError, TunnelError, safe


@pytest.mark.parametrize("kind", [PeerError, LimitError, BackendError, ConfigError, StartError])
def test_every_error_is_a_tunnel_error(kind):
    assert issubclass(kind, TunnelError)


def test_a_peer_error_says_what_the_client_gets():
    plain = PeerError("no Host")
    assert (str(plain), plain.status, plain.close_code, plain.headers) == ("no Host", 400, 1002, ())
    other = PeerError("version", status=426, close_code=1008, headers=(("Sec-WebSocket-Version", "13"),))
    assert (other.status, other.close_code, other.headers) == (426, 1008, (("Sec-WebSocket-Version", "13"),))


def test_a_limit_error_explains_itself():
    error = LimitError("fields of a head", 100, 101, close_code=1009, status=431)
    assert str(error) == "fields of a head: 101 is over the limit of 100"
    assert (error.bound, error.allowed, error.seen, error.close_code, error.status) == (
        "fields of a head",
        100,
        101,
        1009,
        431,
    )


def test_a_backend_error_is_a_503_unless_told():
    assert BackendError("gone").status == 503
    assert BackendError("slow", status=504).status == 504


def test_a_config_error_holds_each_problem_and_shows_them_all():
    error = ConfigError(("a: one", "b: two"))
    assert error.problems == ("a: one", "b: two")
    assert str(error) == "a: one\nb: two"


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("", ""),
        (b"GET / HTTP/1.1", "GET / HTTP/1.1"),
        (b"\r\n\x1b[31m\x00\xff", "\\r\\n\\x1b[31m\\x00\\xff"),
        ('a"b\\', 'a\\"b\\\\'),
        ("ä€\u202e\udc80", "\\xe4\\u20ac\\u202e\\udc80"),
        ("x" * 64, "x" * 64),
        ("x" * 65, "x" * 61 + "..."),
        (b"\x00" * 17, "\\x00" * 15 + "\\..."),
    ],
)
def test_a_quotation_is_short_and_printable(raw, shown):
    assert safe(raw) == shown


@given(st.one_of(st.binary(max_size=200), st.text(st.characters(), max_size=200)), st.integers(4, 80))
def test_no_quotation_is_longer_than_asked_or_holds_more_than_printable_ascii(raw, limit):
    shown = safe(raw, limit)
    assert len(shown) <= limit
    assert shown.isascii()
    assert shown.isprintable()
