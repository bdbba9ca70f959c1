"""What a route asks of a request beside its path."""

from __future__ import annotations

import pytest

from wstunnel.proto.request import Request
from wstunnel.server.conditions import all_hold
from wstunnel.settings import Condition


def request(path: str = "/", host: str = "a.example", local: str = "127.0.0.1:8080") -> Request:
    return Request(method="GET", target=path, path=path, query="", host=host, headers=(), peer="unix:", local=local)


@pytest.mark.parametrize(
    ("operator", "value", "path", "holds"),
    [
        ("==", "/a", "/a", True),
        ("==", "/a", "/a/", False),
        ("!=", "/a", "/a", False),
        ("!=", "/a", "/b", True),
        ("=^", "/a", "/ab", True),
        ("=^", "/a", "/b/a", False),
        ("=$", ".py", "/a.py", True),
        ("=$", ".py", "/a.pyc", False),
        ("=~", "[0-9]+", "/a/12/", True),
        ("=~", "^[0-9]+", "/a/12/", False),
        ("!~", "[0-9]+", "/a/12/", False),
        ("!~", "[0-9]+", "/a/", True),
    ],
)
def test_a_url_is_compared_by_its_operator(operator, value, path, holds):
    assert all_hold([Condition("url", operator, value)])(request(path)) is holds


@pytest.mark.parametrize(
    ("operator", "value", "host", "holds"),
    [
        ("==", "a.example", "a.example", True),
        ("==", "A.example", "a.EXAMPLE", True),
        ("==", "a.example", "a.example:8080", True),
        ("==", "a.example:8080", "a.example:8080", True),
        ("==", "a.example:8080", "a.example", False),
        ("==", "a.example:80", "a.example:8080", False),
        ("!=", "a.example", "a.example:1", False),
        ("!=", "a.example", "b.example", True),
        ("==", "[::1]", "[::1]:80", True),
        ("==", "[::1]", "[::1]", True),
        ("==", "[::1]:80", "[::1]:80", True),
        ("=$", ".example", "a.example", True),
        ("=~", "^(www[.])?a", "www.A.example", True),
        ("!~", "^www", "a.example", True),
    ],
)
def test_a_host_is_compared_in_lower_case_and_with_its_port_only_where_one_is_written(operator, value, host, holds):
    assert all_hold([Condition("host", operator, value)])(request(host=host)) is holds


@pytest.mark.parametrize(
    ("value", "local", "is_it"),
    [
        (":8080", "127.0.0.1:8080", True),
        (":8080", "[::1]:8080", True),
        ("0.0.0.0:8080", "10.0.0.1:8080", True),
        ("[::]:8080", "[::1]:8080", True),
        (":8080", "127.0.0.1:80", False),
        (":80", "127.0.0.1:8080", False),
        ("127.0.0.1:8080", "127.0.0.1:8080", True),
        ("127.0.0.1:8080", "127.0.0.2:8080", False),
        ("[::1]:80", "[::1]:80", True),
    ],
)
def test_a_listener_is_known_by_its_address_or_by_its_port(value, local, is_it):
    assert all_hold([Condition("socket", "==", value)])(request(local=local)) is is_it
    assert all_hold([Condition("socket", "!=", value)])(request(local=local)) is not is_it


def test_all_of_several_have_to_hold():
    both = all_hold([Condition("url", "=^", "/a"), Condition("host", "==", "a.example")])
    assert both(request("/ab"))
    assert not both(request("/b"))
    assert not both(request("/a", host="b.example"))
