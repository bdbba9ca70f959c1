"""The access line of a tunnel."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from wstunnel.limits import LogLimits
from wstunnel.proto.request import Request
from wstunnel.server.accesslog import log_tunnel, tunnels_are_logged, wire_of
from wstunnel.server.logs import JsonFormatter, TextFormatter

LINE: dict[str, Any] = {
    "peer": "127.0.0.1:4711",
    "path": "/ws",
    "wire": "h2+tls",
    "client_subject": "CN=ann",
    "backend": "echo-0",
    "bytes_in": 1,
    "bytes_out": 2,
    "messages_in": 3,
    "messages_out": 4,
    "duration_s": 1.23456,
    "code": 1000,
    "closed_by": "client",
    "limits": LogLimits(),
}


@pytest.fixture
def record(caplog: pytest.LogCaptureFixture) -> Any:
    """`record(**changes)`: the one record that such a tunnel leaves."""
    caplog.set_level(logging.INFO, "wstunnel.access")

    def log(**changes: Any) -> logging.LogRecord:
        caplog.clear()
        log_tunnel(**(LINE | changes))
        (found,) = caplog.records
        return found

    return log


def test_a_tunnel_leaves_one_record_with_all_its_facts(record):
    found = record()
    assert (found.name, found.levelname) == ("wstunnel.access", "INFO")
    assert found.getMessage() == "tunnel closed: ended as it should"
    assert found.fields == {name: value for name, value in LINE.items() if name != "limits"} | {"duration_s": 1.235}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (1005, "closed without a code"),
        (1006, "the connection broke without a CLOSE"),
        (1011, "the backend or the server failed"),
        (4001, "a code private to the application"),
        (0, "not a code that may be sent"),
    ],
)
def test_the_close_code_is_told_in_words_too(record, code, words):
    assert record(code=code).getMessage() == f"tunnel closed: {words}"


@pytest.mark.parametrize("form", [TextFormatter(), JsonFormatter()], ids=["text", "json"])
def test_a_path_of_the_peers_making_can_neither_end_the_line_nor_fill_the_disk(record, form):
    line = form.format(record(path='/\n"\x1b]0;x\x07é ' + "a" * 10_000))
    assert line.isprintable()
    assert len(line) < LogLimits().path_chars + 600


def test_a_client_without_a_certificate_has_no_subject(record):
    assert "client_subject" not in record(client_subject="").fields


def test_a_subject_is_logged_as_it_is_written(record):
    subject = r"CN=Ann\, \"x\",O=a"
    assert record(client_subject=subject).fields["client_subject"] == subject
    cut = record(client_subject=f"CN={'a' * 300}").fields["client_subject"]
    assert (len(cut), cut[-4:]) == (LogLimits().subject_chars, "a...")


@pytest.mark.parametrize("form", [TextFormatter(), JsonFormatter()], ids=["text", "json"])
def test_a_subject_can_neither_end_the_line_nor_fill_the_disk(record, form):
    line = form.format(record(client_subject="CN=\n\x1b\x07" + "a" * 10_000))
    assert line.isprintable()
    assert len(line) < LogLimits().subject_chars + 600


@pytest.mark.parametrize(
    ("version", "scheme", "expected"),
    [
        ("HTTP/1.1", "http", "http/1.1"),
        ("HTTP/1.1", "https", "http/1.1+tls"),
        ("HTTP/2", "http", "h2c"),
        ("HTTP/2", "https", "h2+tls"),
    ],
)
def test_the_wire_is_named_in_a_word(version, scheme, expected):
    about = {"method": "GET", "target": "/", "path": "/", "query": "", "host": "a", "headers": (), "peer": "unix:"}
    assert wire_of(Request(**about, version=version, scheme=scheme)) == expected


def test_an_ordinary_path_is_logged_as_it_is(record):
    assert record(path="/chat/room-7").fields["path"] == "/chat/room-7"
    assert len(record(path="/" + "a" * 10_000).fields["path"]) == LogLimits().path_chars


@pytest.mark.parametrize(("level", "expected"), [(logging.INFO, True), (logging.WARNING, False)])
def test_lines_are_wanted_at_the_level_at_which_they_are_written(caplog, level, expected):
    caplog.set_level(level, "wstunnel.access")
    assert tunnels_are_logged() is expected
