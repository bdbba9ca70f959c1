"""One line per record, to stderr, as text or JSON.

A record may carry `extra={"fields": {...}}`: facts for a machine, printed as `key=value` or as JSON keys. What a
peer or a backend wrote may stand in any part of a record: nothing in it can end the line or move a terminal's cursor.
"""

from __future__ import annotations

import json
import logging
import math
import re
import time
from collections.abc import Mapping
from typing import IO

from wstunnel.settings import LogFormat, LogLevel

__all__ = ["Field", "JsonFormatter", "TextFormatter", "open_logs"]

Field = str | int | float | None
"""The value of one fact in `record.fields`; None is left out."""

_LOGGERS = ("wstunnel", "asyncio")
_BARE = re.compile(r"[A-Za-z0-9_.,:;/@%+*~^<>()\[\]{}?&!#$|-]+")
_ERROR = "error"


def open_logs(level: LogLevel, form: LogFormat, stream: IO[str] | None = None) -> None:
    """Send what wstunnel and asyncio log from `level` on to `stream` (stderr), and nowhere else."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level.upper())


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
