"""One line per record, to stderr or a file, as text or JSON.

A record may carry `extra={"fields": {...}}`: facts for a machine, printed as `key=value` or as JSON keys. What a
peer or a backend wrote may stand in any part of a record: nothing in it can end the line or move a terminal's cursor.

A log that cannot be written (full disk, reader gone or asleep) costs lines and never the service; how many were lost
stands in the log as soon as it can be written again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import select
import stat
import sys
import time
from collections.abc import Iterator, Mapping

from wstunnel.errors import StartError
from wstunnel.limits import LogLimits
from wstunnel.settings import LogFormat, LogLevel

__all__ = ["Field", "JsonFormatter", "LogHandler", "TextFormatter", "open_logs", "reopen_logs"]

Field = str | int | float | None
"""The value of one fact in `record.fields`; None is left out."""

_LOGGERS = ("wstunnel", "asyncio")
_BARE = re.compile(r"[A-Za-z0-9_.,:;/@%+*~^<>()\[\]{}?&!#$|-]+")
_ERROR = "error"
_STDERR = 2
_ROOT = 0
_FILE_MODE = 0o640
_MS_PER_S = 1000

_log = logging.getLogger("wstunnel")


def open_logs(
    level: LogLevel, form: LogFormat, path: str | None = None, *, owner: tuple[int, int] | None = None
) -> None:
    """Send what wstunnel and asyncio log from `level` on to the file at `path`, or stderr, and nowhere else.

    in      path    is appended to, and made with mode 0640; several processes may write it, a line at a time
            owner   user and group that get the file while we are root, so that they can open it again
    raises  StartError when the file cannot be opened; the log stays what it was
    """
    handler = LogHandler(path, owner=owner)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        for before in logger.handlers:
            if isinstance(before, LogHandler):
                before.close()
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level.upper())


def reopen_logs() -> None:
    """Go on in a new file at the same path: the old one has been moved away. If there can be none, in the old one."""
    for handler in _log.handlers:
        if isinstance(handler, LogHandler):
            handler.reopen()


class LogHandler(logging.Handler):
    """Writes each line with one write(2), to the end of a file, or to stderr.

    raises  StartError when the file cannot be opened
    bound   nothing is kept back; a reader that does not read (a full pipe) holds us for `stall_s`, once
    """

    def __init__(
        self, path: str | None, *, owner: tuple[int, int] | None = None, limits: LogLimits | None = None
    ) -> None:
        self._path, self._owner = path, owner
        self._stall_ms = (limits or LogLimits()).stall_s * _MS_PER_S
        self._lost = 0
        self._why_lost = ""
        self._is_torn = False
        self._is_stalled = False
        try:
            self._fd = self._opened()
        except OSError as error:
            raise StartError(f"log-file: {path} cannot be opened: {error.strerror}; choose another one") from error
        self._is_file = self._is_regular()
        super().__init__()  # logging closes at exit what it knows of, and so must not know of half a handler

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record's line, or count it as lost."""
        try:
            line = self.format(record)
        except (KeyError, TypeError, ValueError) as error:  # a `%` that does not fit its arguments
            line = self.format(_record(logging.ERROR, f"{record.msg!r} cannot be logged: {error}"))
        if self._lost:
            lost = f"{self._lost} lines of the log were lost: {self._why_lost}"
            if not self._write(self.format(_record(logging.WARNING, lost))):
                self._lost += 1
                return
            self._lost = 0
        if not self._write(line):
            self._lost += 1

    def reopen(self) -> None:
        """Open the path anew; keep what is open if that fails, and say so there."""
        if self._path is None:
            return
        try:
            fd = self._opened()
        except OSError as error:
            _log.error(
                "log-file: %s cannot be opened again: %s; the log goes on in the file that is open",
                self._path,
                error.strerror,
            )
            return
        with self._locked():
            before, self._fd = self._fd, fd
            self._is_file, self._is_torn = self._is_regular(), False
        if before is not None:
            os.close(before)

    def close(self) -> None:
        """Write nothing any more; stderr stays open."""
        with self._locked():
            before, self._fd = self._fd, None
        if before is not None and self._path is not None:
            os.close(before)
        super().close()

    def _opened(self) -> int | None:
        """A descriptor to write to; None where our starter gave us no stderr."""
        if self._path is None:
            # without one, descriptor 2 may be anything by now, a client's socket for one
            return None if sys.stderr is None else _STDERR
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOCTTY | os.O_NONBLOCK
        fd = os.open(self._path, flags, _FILE_MODE)
        found = os.fstat(fd)
        is_roots = os.geteuid() == _ROOT and found.st_uid == _ROOT
        if self._owner is not None and is_roots and stat.S_ISREG(found.st_mode):
            os.fchown(fd, *self._owner)
        return fd

    def _is_regular(self) -> bool:
        return self._fd is not None and stat.S_ISREG(os.fstat(self._fd).st_mode)

    def _write(self, line: str) -> bool:
        """Whether the whole line is written."""
        if self._fd is None:
            return True
        data = f"{line}\n".encode("utf-8", "backslashreplace")
        if self._is_torn:
            data = b"\n" + data
        written = 0
        try:
            while written < len(data):
                # A pipe that polls as writable takes PIPE_BUF bytes without waiting, and in one piece (pipe(7)).
                piece = data if self._is_file else data[written : written + select.PIPE_BUF]
                if not self._is_file and not self._can_write(self._fd):
                    self._why_lost = "nobody reads it"
                    break
                count = os.write(self._fd, piece)
                written += count
                if count < len(piece):
                    self._why_lost = "it took half of a line"
                    break
        except OSError as error:
            self._why_lost = error.strerror or str(error)
        if 0 < written < len(data):
            self._is_torn = True
        elif written:
            self._is_torn = False
        return written == len(data)

    def _can_write(self, fd: int) -> bool:
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        self._is_stalled = not poll.poll(0 if self._is_stalled else self._stall_ms)
        return not self._is_stalled

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.acquire()
        try:
            yield
        finally:
            self.release()


def _record(level: int, text: str) -> logging.LogRecord:
    return logging.LogRecord("wstunnel", level, __file__, 0, text, None, None)


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z info wstunnel.access tunnel closed peer=127.0.0.1:4711 code=1000`"""

    def format(self, record: logging.LogRecord) -> str:
        parts = [_time(record), record.levelname.lower(), _printable(record.name), _printable(record.getMessage())]
        parts += [f"{_printable(key)}={_text_value(value)}" for key, value in _fields(record).items()]
        error = _error(self, record)
        if error:
            parts.append(f"error={_quoted(error)}")
        return " ".join(parts)


class JsonFormatter(logging.Formatter):
    """`{"time": "2026-01-31T12:00:00.123Z", "level": "info", "logger": ..., "message": ..., "peer": ...}`

    A field whose name is taken by the record itself gets a `_` behind it. A number that JSON cannot say is a string.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Field] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for key, value in _fields(record).items():
            name = key
            while name in line or name == _ERROR:
                name += "_"
            line[name] = str(value) if isinstance(value, float) and not math.isfinite(value) else value
        error = _error(self, record)
        if error:
            line[_ERROR] = error
        return json.dumps(line)


def _fields(record: logging.LogRecord) -> dict[str, Field]:
    fields: Mapping[str, Field] = getattr(record, "fields", {})
    return {key: value for key, value in fields.items() if value is not None}


def _time(record: logging.LogRecord) -> str:
    """UTC, with milliseconds."""
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def _error(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """The traceback and stack that a record carries, in as many lines as they have."""
    parts = [formatter.formatException(record.exc_info)] if record.exc_info and record.exc_info[0] else []
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    return "\n".join(parts)


def _printable(text: str) -> str:
    """The text with everything escaped that is not printable: line ends, controls, bidi marks, surrogates."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def _text_value(value: Field) -> str:
    """A value as it is where it is one plain word, in quotes where it is not."""
    text = str(value)
    return text if _BARE.fullmatch(text) else _quoted(text)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{_printable(escaped)}"'
