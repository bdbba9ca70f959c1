"""One record, one line, whatever is in it."""

from __future__ import annotations

import io
import json
import logging
import shlex
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wstunnel.server.logs import JsonFormatter, TextFormatter, open_logs


def record(message: str = "hello", fields: dict[str, object] | None = None, **more: object) -> logging.LogRecord:
    """A record at 2026-01-31T12:00:00.123Z."""
    made = logging.LogRecord("wstunnel.test", logging.INFO, __file__, 1, message, None, None)
    made.created, made.msecs = 1769860800.123, 123.0
    if fields is not None:
        made.fields = fields
    for name, value in more.items():
        setattr(made, name, value)
    return made


def raised() -> dict[str, object]:
    """What a record holds inside an `except`."""
    try:
        raise ValueError("first\nsecond")
    except ValueError as bad:
        return {"exc_info": (type(bad), bad, bad.__traceback__)}


def test_a_text_line_has_time_level_logger_and_message():
    assert TextFormatter().format(record()) == "2026-01-31T12:00:00.123Z info wstunnel.test hello"


def test_fields_follow_as_key_and_value():
    fields = {"peer": "[::1]:4711", "path": "/a b", "code": 1000, "s": 0.25, "quote": '"\\', "none": None, "empty": ""}
    assert TextFormatter().format(record("tunnel closed", fields)) == (
        "2026-01-31T12:00:00.123Z info wstunnel.test tunnel closed "
        'peer=[::1]:4711 path="/a b" code=1000 s=0.25 quote="\\"\\\\" empty=""'
    )


def test_a_json_line_has_fields_beside_the_message():
    fields = {"peer": "[::1]:4711", "code": 1000, "s": 0.25, "none": None, "huge": float("inf")}
    assert json.loads(JsonFormatter().format(record("tunnel closed", fields))) == {
        "time": "2026-01-31T12:00:00.123Z",
        "level": "info",
        "logger": "wstunnel.test",
        "message": "tunnel closed",
        "peer": "[::1]:4711",
        "code": 1000,
        "s": 0.25,
        "huge": "inf",
    }


def test_a_field_never_takes_the_place_of_what_the_record_says():
    fields = {"time": 1, "level": 2, "message": 3, "message_": 4, "error": 5}
    line = json.loads(JsonFormatter().format(record(fields=fields, **raised())))
    assert (line["level"], line["message"], line["time_"], line["error_"]) == ("info", "hello", 1, 5)
    assert line["error"].startswith("Traceback")
    assert {line["message_"], line["message__"]} == {3, 4}


def test_a_traceback_stays_in_the_line():
    text = TextFormatter().format(record(**raised()))
    assert "\n" not in text
    assert ' error="Traceback (most recent call last):\\n' in text
    assert 'ValueError: first\\nsecond"' in text
    assert json.loads(JsonFormatter().format(record(**raised())))["error"].endswith("ValueError: first\nsecond")


def test_a_record_without_a_pending_exception_has_no_error():
    assert "error" not in TextFormatter().format(record(exc_info=(None, None, None)))


def test_a_stack_is_told_like_an_error():
    assert TextFormatter().format(record(stack_info="Stack:\n  here")).endswith(' error="Stack:\\n  here"')


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("a\r\nb", "a\\r\\nb"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\u2028\u202e", "\\u2028\\u202e"),
        ("\udc80", "\\udc80"),
        ("\x7f\x85", "\\x7f\\x85"),
        ("äöü €", "äöü €"),
    ],
)
def test_what_could_end_a_line_or_move_a_cursor_is_escaped(raw, shown):
    assert TextFormatter().format(record(raw)).endswith(f" {shown}")
    assert TextFormatter().format(record("m", {"f": raw})).endswith(f' f="{shown}"')


ANY_TEXT = st.text(st.characters(), max_size=20)
FIELDS = st.dictionaries(ANY_TEXT, st.one_of(ANY_TEXT, st.integers(), st.floats(), st.none()), max_size=4)


@given(ANY_TEXT, FIELDS)
def test_every_json_line_parses_and_holds_every_field(message, fields):
    line = JsonFormatter().format(record(message.replace("%", "%%"), fields))
    assert line.isascii()
    assert line.isprintable()
    parsed = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert len(parsed) == 4 + sum(value is not None for value in fields.values())


@given(ANY_TEXT, FIELDS)
def test_every_text_line_is_one_printable_line(message, fields):
    assert TextFormatter().format(record(message, fields)).isprintable()


@given(st.dictionaries(st.from_regex(r"\A[a-z_]{1,9}\Z"), ANY_TEXT, max_size=3))
def test_no_value_can_forge_a_field(fields):
    line = TextFormatter().format(record("m", fields))
    words = shlex.split(line.removeprefix("2026-01-31T12:00:00.123Z info wstunnel.test m"), posix=True)
    assert [word.partition("=")[0] for word in words] == list(fields)


@pytest.fixture
def _loggers() -> Iterator[None]:
    """The two loggers that `open_logs` changes, as they were."""
    loggers = [logging.getLogger(name) for name in ("wstunnel", "asyncio")]
    before = [(logger, logger.handlers, logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, handlers, propagate, level in before:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.mark.usefixtures("_loggers")
def test_open_logs_sends_each_record_once_from_its_level_on(caplog):
    stream = io.StringIO()
    open_logs("debug", "text")
    open_logs("warning", "json", stream)
    logging.getLogger("wstunnel.access").info("not this")
    logging.getLogger("wstunnel.access").warning("this %s", "one", extra={"fields": {"code": 1000}})
    logging.getLogger("asyncio").error("and this")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["logger"], line["message"]) for line in lines] == [
        ("wstunnel.access", "this one"),
        ("asyncio", "and this"),
    ]
    assert lines[0]["code"] == 1000
    assert caplog.records == [], "the root logger has them too"


@pytest.mark.usefixtures("_loggers")
def test_logs_go_to_stderr(capsys):
    open_logs("info", "text")
    logging.getLogger("wstunnel").info("here")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith(" info wstunnel here\n")
