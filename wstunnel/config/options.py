"""How the value of one option is read and written, wherever it stands.

A `Kind` turns what an operator wrote (a word on the command line, a value in a TOML file) into the value
that `Settings` holds, or says in one sentence why it cannot; and it writes the value as TOML. Rules between
options, and everything that asks the file system, stand in `rules.py`.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import math
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, get_args
from urllib.parse import unquote

from wstunnel.errors import safe
from wstunnel.limits import LogLimits, OptionLimits, SpawnLimits
from wstunnel.proto.origin import OriginPolicy
from wstunnel.settings import (
    Address,
    FrameType,
    GatewayName,
    LogFormat,
    LogLevel,
    OptionGroup,
    Route,
    Settings,
    TcpAddress,
    UnixAddress,
)

__all__ = ["ROUTE_OPTIONS", "SERVER_OPTIONS", "Kind", "Option", "OptionError", "shown", "toml_string"]

_MAX_PORT = 65535
_SHOWN_CHARS = LogLimits().path_chars
_SHOWN_BITS = 64


class OptionError(ValueError):
    """Why a value cannot be used: the end of a sentence that begins with the option's name."""


class Kind(Protocol):
    """One sort of value."""

    def from_text(self, text: str) -> Any:
        """The value of a word on the command line; raises OptionError."""

    def from_toml(self, value: object) -> Any:
        """The value of what tomllib read; raises OptionError."""

    def to_toml(self, value: Any) -> str:
        """The value as TOML that `from_toml` reads back to the same."""


def shown(value: object) -> str:
    """What an operator wrote, short and printable, for the end of an error text."""
    match value:
        case str():
            return f'"{safe(value, _SHOWN_CHARS)}"'
        case bool():
            return "true" if value else "false"
        case int() if value.bit_length() > _SHOWN_BITS:  # Python refuses to print the longest
            return f"a number of {value.bit_length()} bits"
        case int() | float():
            return repr(value)
        case list() | dict():
            return "a list" if isinstance(value, list) else "a table"
        case _:
            return safe(str(value))


def toml_string(text: str) -> str:
    """A TOML basic string. JSON's escapes are a part of TOML's; DEL is the one character JSON leaves bare."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


@dataclass(frozen=True, slots=True)
class _Word:
    """A value that is one string in a file and one word on the command line."""

    needs: str
    parse: Callable[[str], Any]
    show: Callable[[Any], str] = str
    may_hold_controls: bool = False

    def from_text(self, text: str) -> Any:
        if not text.strip():
            raise OptionError(f"needs {self.needs}, got {shown(text)}")
        if "\0" in text or (not self.may_hold_controls and any(ord(char) < 0x20 or char == "\x7f" for char in text)):
            raise OptionError(f"needs {self.needs}, got a control character in {shown(text)}")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise OptionError(f"needs {self.needs}, got {shown(text)}, which is not UTF-8") from None
        return self.parse(text)

    def from_toml(self, value: object) -> Any:
        if not isinstance(value, str):
            raise OptionError(f"needs {self.needs}, got {shown(value)}")
        return self.from_text(value)

    def to_toml(self, value: Any) -> str:
        return toml_string(self.show(value))


@dataclass(frozen=True, slots=True)
class _Choice:
    """One of a few words."""

    words: tuple[str, ...]

    def from_text(self, text: str) -> str:
        return self.from_toml(text)

    def from_toml(self, value: object) -> str:
        if not isinstance(value, str) or value not in self.words:
            raise OptionError(f"needs {' or '.join(self.words)}, got {shown(value)}")
        return value

    def to_toml(self, value: str) -> str:
        return toml_string(value)


@dataclass(frozen=True, slots=True)
class _Whole:
    """A whole number between two bounds, both allowed."""

    lowest: int
    highest: int

    def from_text(self, text: str) -> int:
        digits = len(str(self.highest))
        if not re.fullmatch(r"-?[0-9]+", text) or len(text.lstrip("-0")) > digits:
            raise self._refusal(text)
        return self.from_toml(int(text))

    def from_toml(self, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not self.lowest <= value <= self.highest:
            raise self._refusal(value)
        return value

    def to_toml(self, value: int) -> str:
        return str(value)

    def _refusal(self, value: object) -> OptionError:
        return OptionError(f"needs a whole number from {self.lowest} to {self.highest}, got {shown(value)}")


@dataclass(frozen=True, slots=True)
class _Seconds:
    """A time that is neither negative nor endless."""

    highest: float
    may_be_zero: bool = True

    def from_text(self, text: str) -> float:
        if not re.fullmatch(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)", text):
            raise self._refusal(text)
        return self.from_toml(float(text))

    def from_toml(self, value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self._refusal(value)
        if not math.isfinite(value) or not 0 <= value <= self.highest or not (value or self.may_be_zero):
            raise self._refusal(value)
        return abs(float(value))  # no minus before a zero

    def to_toml(self, value: float) -> str:
        return str(int(value)) if value.is_integer() else repr(value)

    def _refusal(self, value: object) -> OptionError:
        lowest = "from 0" if self.may_be_zero else "over 0 and up"
        return OptionError(f"needs seconds {lowest} to {self.highest:.0f}, got {shown(value)}")


@dataclass(frozen=True, slots=True)
class _Words:
    """A list of words: with commas between them on the command line, an array in a file."""

    item: _Word
    example: str
    may_be_empty: bool = False
    instead: str = ""

    def from_text(self, text: str) -> tuple[Any, ...]:
        return self.from_toml([word.strip() for word in text.split(",")])

    def from_toml(self, value: object) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise OptionError(f"needs a list such as {self.example}, got {shown(value)}")
        if not value and not self.may_be_empty:
            raise OptionError(f"needs at least one entry{self.instead}")
        items, problems = [], []
        for word in value:
            try:
                items.append(self.item.from_toml(word))
            except OptionError as bad:
                problems.append(str(bad))
        if problems:
            raise OptionError("; ".join(problems))
        return tuple(items)

    def to_toml(self, value: tuple[Any, ...]) -> str:
        return f"[{', '.join(self.item.to_toml(item) for item in value)}]"


def _address(text: str) -> Address:
    """`unix:PATH`, `[IPV6]:PORT` or `HOST:PORT`; a name is kept as it is, to be resolved at the start."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path:
            raise OptionError(f"needs a path after unix:, got {shown(text)}")
        return UnixAddress(path)
    host, colon, port = text.rpartition(":")
    if not colon:
        if re.fullmatch("[0-9]+", text):
            raise OptionError(f"{shown(text)} has no host; {_every_interface(text)}")
        raise OptionError(f"needs HOST:PORT, [IPV6]:PORT or unix:PATH, got {shown(text)}")
    if not host:
        raise OptionError(f"{shown(text)} has no host; {_every_interface(port)}")
    if not re.fullmatch("[0-9]+", port) or len(port.lstrip("0")) > len(str(_MAX_PORT)) or int(port) > _MAX_PORT:
        raise OptionError(f"needs a port from 0 to {_MAX_PORT} after the last colon, got {shown(text)}")
    if ":" in host and not host.startswith("["):
        raise OptionError(f"an IPv6 address stands in brackets, as in [::1]:8081, got {shown(text)}")
    return TcpAddress(_host(host), int(port))


def _every_interface(port: str) -> str:
    return f"write 127.0.0.1:{safe(port)} for this machine only, [::]:{safe(port)} for every interface"


def _host(text: str) -> str:
    """An address or a name, without the brackets of IPv6."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    is_address_like = bare != text or ":" in bare or re.fullmatch(r"[0-9.]+", bare)
    try:
        if is_address_like:
            return str(ipaddress.ip_address(bare))
    except ValueError:
        raise OptionError(f"{shown(text)} is not an IP address") from None
    if not re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?", bare):
        raise OptionError(f"needs an IP address or a host name, got {shown(text)}")
    return bare


def _url_path(text: str) -> str:
    """A prefix as requests are matched: decoded, without query and dot segments."""
    if not text.startswith("/"):
        raise OptionError(f"must begin with a slash, got {shown(text)}; write {shown('/' + text)}")
    return _url_part(text)


def _url_part(text: str) -> str:
    for char, meaning in (("?", "a query"), ("#", "a fragment")):
        if char in text:
            raise OptionError(f"only the path of a request is matched, and {shown(text)} holds {meaning}")
    decoded = unquote(text)
    if decoded != text:
        raise OptionError(f"requests are decoded before they are matched; write {shown(decoded)} for {shown(text)}")
    if {".", ".."}.intersection(text.split("/")):
        raise OptionError(f"{shown(text)} can never match: requests lose their . and .. before they are matched")
    return text


def _origin(text: str) -> str:
    try:
        OriginPolicy((text,))
    except ValueError as bad:
        raise OptionError(str(bad)) from None
    return text


def _token(text: str) -> str:
    if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", text):  # RFC 9110 §5.6.2
        raise OptionError(f"needs names of letters, digits and !#$%&'*+-.^_`|~, got {shown(text)}")
    return text


def _command(text: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(text))
    except ValueError as bad:
        raise OptionError(f"{shown(text)} cannot be split into words: {str(bad).lower()}") from None
    if not words or not words[0]:
        raise OptionError(f"needs a program, got {shown(text)}")
    return words


@dataclass(frozen=True, slots=True)
class Option:
    """One option: the field of `Settings` or `Route` that it fills, its words, and the kind of its value."""

    field: str
    name: str
    metavar: str
    group: OptionGroup
    help: str
    is_flag: bool
    default: Any
    kind: Kind = dataclasses.field(repr=False)


def _choice(alias: Any) -> _Choice:
    return _Choice(get_args(alias))


def _options(of: type[Settings] | type[Route], kinds: dict[str, Kind]) -> dict[str, Option]:
    """The options of a settings class by name, in the order of its fields."""
    options = {}
    for each in dataclasses.fields(of):
        about = each.metadata
        if "group" in about:
            kind = kinds[each.name]
            options[about["name"]] = Option(
                each.name,
                about["name"],
                about["metavar"],
                about["group"],
                about["help"],
                about["flag"],
                each.default,
                kind,
            )
    return options


_bounds = OptionLimits()
_text_path = _Word("a path", str)
_seconds = _Seconds(_bounds.max_seconds)
_some_seconds = _Seconds(_bounds.max_seconds, may_be_zero=False)

SERVER_OPTIONS: dict[str, Option] = _options(
    Settings,
    {
        "listen": _Words(_Word("an address", _address), '["127.0.0.1:8081"]'),
        "max_connections": _Whole(1, _bounds.max_connections),
        "document_root": _Word("a folder", str),
        "log_level": _choice(LogLevel),
        "log_format": _choice(LogFormat),
    },
)
"""What stands at the top of a file."""

ROUTE_OPTIONS: dict[str, Option] = _options(
    Route,
    {
        "path": _Word("a URL path", _url_path),
        "suffix": _Word("the end of a URL path", _url_part),
        "gateway": _choice(GatewayName),
        "socket": _text_path,
        "host": _Word("an address or a host name", _host),
        "port": _Whole(1, _MAX_PORT),
        "bin_path": _Word("a program and its arguments", _command, shlex.join, may_hold_controls=True),
        "max_procs": _Whole(1, SpawnLimits().max_procs),
        "frame_type": _choice(FrameType),
        "origins": _Words(
            _Word("an origin", _origin),
            '["https://example.com"]',
            instead="; leave it out for the same origin as the Host, write * for every origin",
        ),
        "subprotocols": _Words(_Word("a subprotocol", _token), '["binary"]', may_be_empty=True),
        "ping_interval_s": _seconds,
        "ping_timeout_s": _some_seconds,
        "max_read_idle_s": _seconds,
        "max_write_idle_s": _seconds,
        "close_timeout_s": _seconds,
        "connect_timeout_s": _some_seconds,
    },
)
"""What stands in a [[route]]."""
