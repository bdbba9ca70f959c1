"""Paths and authorities, whichever HTTP they come by."""

from __future__ import annotations

import pytest

from wstunnel.errors import PeerError
from wstunnel.proto.target import check_authority, decode_path


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ("/", "/"),
        ("", "/"),
        ("/a/b", "/a/b"),
        ("/a/b/", "/a/b/"),
        ("//a///b//", "/a/b/"),
        ("/a/./b/.", "/a/b/"),
        ("/a/../b", "/b"),
        ("/a/b/..", "/a/"),
        ("/../../a", "/a"),
        ("/..", "/"),
        ("/a%2Fb", "/a/b"),
        ("/a/%2e%2E/b", "/b"),
        ("/%C3%A9%20", "/é "),
        ("/%ff", "/\udcff"),
        ("/...", "/..."),
    ],
)
def test_a_path_is_decoded_first_and_without_dot_segments_then(raw: str, path: str):
    assert decode_path(raw) == path


@pytest.mark.parametrize("raw", ["/%", "/%2", "/%zz", "/%00", "/a%0"])
def test_a_path_that_cannot_be_decoded_is_refused(raw: str):
    with pytest.raises(PeerError) as caught:
        decode_path(raw)
    assert caught.value.status == 400


@pytest.mark.parametrize("host", ["a", "a.b:80", "[::1]", "[::1]:80", "1.2.3.4", "a_b-c.d.", "a:", "xn--nxa", "a%41~"])
def test_an_authority_is_a_host_with_an_optional_port(host: str):
    check_authority(host)


@pytest.mark.parametrize(
    "host", ["", ":80", "a b", "u@a", "a/b", "a:http", "a:123456", "[::1", "::1", "a,b", "é", "a\n"]
)
def test_what_is_none_is_refused(host: str):
    with pytest.raises(PeerError) as caught:
        check_authority(host)
    assert caught.value.status == 400
