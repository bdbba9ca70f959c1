"""What master and worker say: each message as it went in, and what is none."""

from __future__ import annotations

import json

import pytest

from wstunnel.limits import HeadLimits, MasterLimits
from wstunnel.proto.cgi import variables
from wstunnel.proto.request import Request
from wstunnel.server.messages import (
    Cut,
    Death,
    Exited,
    Fork,
    Forked,
    Leave,
    Message,
    Quiet,
    Ready,
    Release,
    Renew,
    Reopen,
    Unforked,
    decode,
    encode,
)


@pytest.mark.parametrize(
    "message",
    [
        Ready(),
        Quiet(),
        Leave(1001, 2.5),
        Cut(1012),
        Reopen(),
        Death(4095),
        Fork(1, 2, {"REQUEST_URI": "/a?b=\udcff", "HTTP_X": 'ü "quoted"'}),
        Forked(3, 4711),
        Unforked(4, 503, "max-forks = 1 of cat reached"),
        Fork(1, 2, {}, "sub/\udce9.pl"),
        Exited(5, -9),
        Exited(5, 1, "died at a.pl line 3"),
        Exited(6, None),
        Release(7),
        Renew(),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_message_arrives_as_it_was_sent(message: Message):
    packet = encode(message)
    assert packet.isascii()
    assert decode(packet) == message


def test_a_message_of_a_later_version_is_ignored():
    assert decode(b'{"is": "dance", "how": "slowly"}') is None


def test_messages_of_versions_that_knew_no_scripts_mean_what_they_meant():
    assert decode(b'{"is": "fork", "request": 1, "index": 2, "environment": {}}') == Fork(1, 2, {}, "")
    assert decode(b'{"is": "exited", "request": 5, "status": 0}') == Exited(5, 0, "")


def test_a_field_of_a_later_version_is_ignored():
    assert decode(b'{"is": "death", "row": 3, "why": "old age"}') == Death(3)


@pytest.mark.parametrize(
    "packet",
    [
        b"\xff",
        b"",
        b"ready",
        b"[]",
        b"7",
        b"{}",
        b'{"is": ["ready"]}',
        b'{"is": null}',
        b'{"is": "death"}',
        b'{"is": "fork", "request": 1}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_message_is_an_error(packet):
    with pytest.raises(ValueError):
        decode(packet)


def test_whatever_a_client_may_say_in_an_ordinary_request_fits_into_a_message():
    """A head of 16 KiB, half of it in the path, which stands in two variables; each byte takes six at most."""
    half = HeadLimits().max_head_bytes // 2
    path = "/" + "a" * half
    request = Request(
        method="GET",
        target=path,
        path=path,
        query="",
        host="a.example",
        headers=(("x-long", "\xff" * half),),
        peer="192.0.2.7:4711",
        local="192.0.2.1:8081",
    )
    packet = encode(Fork(1, 0, variables(request, script_name="/", software="wstunnel")))
    assert len(json.loads(packet)["environment"]["HTTP_X_LONG"]) == half
    assert len(packet) <= MasterLimits().message_bytes
