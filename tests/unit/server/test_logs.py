"""One record, one line, whatever is in it, and whatever becomes of the place where it goes."""

from __future__ import annotations

import json
import logging
import os
import shlex
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wstunnel.errors import StartError
from wstunnel.server.logs import JsonFormatter, TextFormatter, open_logs, reopen_logs


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
        for handler in logger.handlers:
            handler.close()
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture
def path(tmp_path: Path, _loggers: None) -> Path:
    """Where a log goes."""
    return tmp_path / "log"


def log(message: str, *arguments: object) -> None:
    logging.getLogger("wstunnel").warning(message, *arguments)


def messages(path: Path) -> list[str]:
    """What stands behind time, level and logger in each line."""
    return [line.partition(" wstunnel ")[2] for line in path.read_text().splitlines()]


def test_open_logs_sends_each_record_once_from_its_level_on(path, caplog):
    open_logs("debug", "text")
    open_logs("warning", "json", str(path))
    logging.getLogger("wstunnel.access").info("not this")
    logging.getLogger("wstunnel.access").warning("this %s", "one", extra={"fields": {"code": 1000}})
    logging.getLogger("asyncio").error("and this")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["logger"], line["message"]) for line in lines] == [
        ("wstunnel.access", "this one"),
        ("asyncio", "and this"),
    ]
    assert lines[0]["code"] == 1000
    assert caplog.records == [], "the root logger has them too"


@pytest.mark.usefixtures("_loggers")
def test_logs_go_to_stderr(capfd):
    open_logs("info", "text")
    logging.getLogger("wstunnel").info("here")
    out, err = capfd.readouterr()
    assert out == ""
    assert err.endswith(" info wstunnel here\n")


def test_a_file_is_appended_to(path):
    path.write_text("before\n")
    open_logs("info", "text", str(path))
    log("after")
    assert path.read_text().startswith("before\n")
    assert messages(path)[1:] == ["after"]


def test_a_file_that_is_made_is_for_its_owner_and_group_and_not_inherited(path):
    open_logs("info", "text", str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o640 & ~umask()
    (fd,) = (int(fd) for fd in os.listdir("/proc/self/fd") if leads_to(fd) == str(path))
    assert not os.get_inheritable(fd)


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def leads_to(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        return ""


def test_a_log_that_is_opened_elsewhere_lets_go_of_the_file_before(path):
    open_logs("info", "text", str(path))
    open_logs("info", "text", str(path.with_suffix(".other")))
    assert str(path) not in map(leads_to, os.listdir("/proc/self/fd"))


def test_a_file_that_cannot_be_opened_is_a_start_error_and_the_log_stays_what_it_was(path):
    open_logs("info", "text", str(path))
    with pytest.raises(StartError, match=r"log-file: \S+/no/log cannot be opened: No such file or directory"):
        open_logs("info", "text", str(path.parent / "no" / "log"))
    log("still here")
    assert messages(path) == ["still here"]


def test_a_file_that_cannot_be_opened_leaves_nothing_for_logging_to_trip_over_at_exit(path):
    body = """
        try:
            open_logs("info", "text", sys.argv[1])
        except StartError:
            print("refused")
        """
    done = run_script(body, str(path / "no"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert (done.stdout, done.stderr) == (b"refused\n", b"")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_that_root_makes_is_given_to_who_will_open_it_again(path):
    open_logs("info", "text", str(path), owner=(65534, 65533))
    assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65533)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_what_is_no_file_of_ours_is_not_given_away(path):
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    open_logs("info", "text", str(path), owner=(65534, 65533))
    os.close(reader)
    assert path.stat().st_uid == 0


# --- opening again


def test_after_the_file_was_moved_the_log_goes_on_in_a_new_one(path):
    open_logs("info", "text", str(path))
    log("one")
    path.rename(path.with_suffix(".1"))
    log("two")
    before = len(os.listdir("/proc/self/fd"))

    reopen_logs()
    log("three")

    assert messages(path.with_suffix(".1")) == ["one", "two"]
    assert messages(path) == ["three"]
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_path_that_cannot_be_opened_again_keeps_the_old_file_and_says_so_there(path):
    open_logs("info", "text", str(path))
    moved = path.with_suffix(".1")
    path.rename(moved)
    path.mkdir()

    reopen_logs()
    log("goes on")

    said, after = messages(moved)
    assert said.startswith(f"log-file: {path} cannot be opened again: Is a directory")
    assert after == "goes on"


@pytest.mark.usefixtures("_loggers")
def test_stderr_stays_what_it_is_when_logs_are_opened_again(capfd):
    open_logs("info", "text")
    reopen_logs()
    log("here")
    assert capfd.readouterr().err.endswith(" here\n")


# --- what cannot be written


def test_a_record_that_cannot_be_formatted_is_a_line_that_says_so(path):
    open_logs("info", "text", str(path))
    log("%d tunnels", "no")
    log("goes on")
    said, after = messages(path)
    assert said.startswith("'%d tunnels' cannot be logged: ")
    assert after == "goes on"


def test_a_full_disk_costs_lines_and_the_log_says_how_many(path, capfd):
    path.symlink_to("/dev/full")
    open_logs("info", "text", str(path))
    for number in range(7):
        log("line %d", number)
    path.unlink()
    reopen_logs()
    log("room again")
    log("and more")
    assert messages(path) == ["7 lines of the log were lost: No space left on device", "room again", "and more"]
    assert capfd.readouterr().err == ""


def test_a_line_that_was_cut_short_does_not_spoil_the_next_one(path):
    run_script(
        """
        import resource
        open_logs("info", "text", sys.argv[1])
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        for _ in range(3):
            log.info("x" * 50)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        log.info("room again")
        """,
        str(path),
    )
    whole, torn, *after = path.read_text().splitlines()
    assert len(f"{whole}\n{torn}") == 100
    assert [line.partition(" wstunnel ")[2] for line in after] == [
        "2 lines of the log were lost: File too large",
        "room again",
    ]


SCRIPT = """
import logging, os, socket, sys
from wstunnel.errors import StartError
from wstunnel.server.logs import open_logs
log = logging.getLogger("wstunnel")
"""


def run_script(body: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """A Python program with `open_logs` and `log` at hand; it ends well."""
    words = [sys.executable, "-c", SCRIPT + textwrap.dedent(body), *arguments]
    return subprocess.run(words, check=True, timeout=60, **options)


def test_a_stderr_whose_reader_is_gone_ends_nothing():
    reader, writer = os.pipe()
    os.close(reader)
    done = run_script(
        """
        open_logs("info", "text")
        for _ in range(100):
            log.error("nobody hears this")
        print("alive")
        """,
        stdout=subprocess.PIPE,
        stderr=writer,
    )
    os.close(writer)
    assert done.stdout == b"alive\n"


def test_a_stderr_whose_reader_sleeps_holds_nothing_up_and_is_told_of_what_it_missed():
    body = """
        open_logs("info", "text")
        for number in range(5000):
            log.error("%d %s", number, "x" * 100)
        print("alive", flush=True)
        sys.stdin.read()
        log.error("last")
        """
    words = [sys.executable, "-c", SCRIPT + textwrap.dedent(body)]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == b"alive\n"
        heard = os.read(child.stderr.fileno(), 1 << 20)  # all that the pipe holds: the reader wakes up
        heard += child.communicate(timeout=60)[1]
    lines = heard.decode().splitlines()
    kept = len(lines) - 2
    assert 100 < kept < 5000
    assert [line.split()[3] for line in lines[:kept]] == [str(number) for number in range(kept)]
    assert lines[-2].endswith(f" {5000 - kept} lines of the log were lost: nobody reads it")
    assert lines[-1].endswith(" last")


def test_without_a_stderr_nothing_is_written_to_whatever_has_its_number():
    words = 'exec "$0" -c "$1" 2>&-'
    body = """
        one, two = socket.socketpair()
        assert 2 in (one.fileno(), two.fileno())
        open_logs("info", "text")
        log.error("not for clients")
        for end in (one, two):
            end.setblocking(False)
            try:
                print(end.recv(100))
            except BlockingIOError:
                print("nothing")
        """
    shell = ["/bin/sh", "-c", words, sys.executable, SCRIPT + textwrap.dedent(body)]
    assert subprocess.run(shell, check=True, timeout=60, stdout=subprocess.PIPE).stdout == b"nothing\nnothing\n"


def test_lines_of_several_processes_do_not_mix(path):
    body = """
        open_logs("info", "text", sys.argv[1])
        for number in range(300):
            log.info(sys.argv[2] * (1 + number * 97 % 12000))
        """
    words = [sys.executable, "-c", SCRIPT + textwrap.dedent(body), str(path)]
    children = [subprocess.Popen([*words, letter]) for letter in "abc"]
    assert [child.wait(60) for child in children] == [0, 0, 0]
    assert sorted(messages(path)) == sorted(
        letter * (1 + number * 97 % 12000) for letter in "abc" for number in range(300)
    )
