"""Close codes in the operator's words."""

from __future__ import annotations

import pytest
import wsproto.frame_protocol

from wstunnel.proto.close import CloseCode, describe


@pytest.mark.parametrize("code", list(wsproto.frame_protocol.CloseReason))
def test_every_code_that_wsproto_knows_has_the_same_number_here_or_is_never_seen(code):
    assert code in set(CloseCode) or code == wsproto.frame_protocol.CloseReason.TLS_HANDSHAKE_FAILED


def test_every_code_has_words_of_its_own():
    words = [describe(code) for code in CloseCode]
    assert len(set(words)) == len(words)
    assert all(words)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (1000, "ended as it should"),
        (1006, "the connection broke without a CLOSE"),
        (1012, "the service restarts"),
        (3000, "a code registered by a library or framework"),
        (3999, "a code registered by a library or framework"),
        (4000, "a code private to the application"),
        (4999, "a code private to the application"),
        (-1, "not a code that may be sent"),
        (0, "not a code that may be sent"),
        (999, "not a code that may be sent"),
        (1004, "not a code that may be sent"),
        (1015, "not a code that may be sent"),
        (2999, "not a code that may be sent"),
        (5000, "not a code that may be sent"),
    ],
)
def test_code_is_described(code, words):
    assert describe(code) == words
