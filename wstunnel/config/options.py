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
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, cast, get_args
from urllib.parse import unquote

from wstunnel.errors import safe
from wstunnel.limits import LogLimits, MasterLimits, OptionLimits, SpawnLimits
from wstunnel.proto.origin import OriginPolicy
from wstunnel.settings import (
    Address,
    Balance,
    ClientVerify,
    Condition,
    ConditionField,
    ConditionOperator,
    Entrance,
    Forwarded,
    FrameType,
    Front,
    Gateway,
    Host,
    Io,
    LoadPolicy,
    LogFormat,
    LogLevel,
    OptionGroup,
    Route,
    Settings,
    TcpAddress,
    UnixAddress,
)

__all__ = [
    "HOST_OPTIONS",
    "LISTENER_OPTIONS",
    "ROUTE_OPTIONS",
    "SERVER_OPTIONS",
    "Kind",
    "Option",
    "OptionError",
    "shown",
    "toml_string",
]

_MAX_PORT = 65535
_SHOWN_CHARS = LogLimits().path_chars
_SHOWN_BITS = 64
_VARIABLE = "[A-Za-z_][A-Za-z0-9_]*"
_NOT_ENDING = frozenset(
    (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCONT, signal.SIGCHLD, signal.SIGURG)
)
"""Signals that no program takes for a request to end."""


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
        if not _is_utf8(text):
            raise OptionError(f"needs {self.needs}, got {shown(text)}, which is not UTF-8")
        return self.parse(text)

    def from_toml(self, value: object) -> Any:
        if not isinstance(value, str):
            raise OptionError(f"needs {self.needs}, got {shown(value)}")
        return self.from_text(value)

    def to_toml(self, value: Any) -> str:
        return toml_string(self.show(value))


@dataclass(frozen=True, slots=True)
class _Choice:
    """One of a few words; `older` ones mean the same as one of them."""

    words: tuple[str, ...]
    older: tuple[tuple[str, str], ...] = ()

    def from_text(self, text: str) -> str:
        return self.from_toml(text)

    def from_toml(self, value: object) -> str:
        for word, meant in self.older:
            if value == word:
                return meant
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
class _WholeOr:
    """A whole number, or the one word that stands for a number that is found out later."""

    word: str
    number: _Whole

    def from_text(self, text: str) -> int | str:
        return self.word if text == self.word else self._or_refusal(self.number.from_text, text)

    def from_toml(self, value: object) -> int | str:
        return self.word if value == self.word else self._or_refusal(self.number.from_toml, value)

    def to_toml(self, value: int | str) -> str:
        return toml_string(value) if isinstance(value, str) else self.number.to_toml(value)

    def _or_refusal(self, read: Callable[[Any], int], value: object) -> int:
        try:
            return read(value)
        except OptionError:
            raise OptionError(
                f"needs {self.word} or a whole number from {self.number.lowest} to {self.number.highest}, "
                f"got {shown(value)}"
            ) from None


@dataclass(frozen=True, slots=True)
class _Switch:
    """true or false."""

    def from_text(self, text: str) -> bool:
        if text not in {"true", "false"}:
            raise OptionError(f"needs true or false, got {shown(text)}")
        return text == "true"

    def from_toml(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise OptionError(f"needs true or false, without quotation marks, got {shown(value)}")
        return value

    def to_toml(self, value: bool) -> str:
        return shown(value)


@dataclass(frozen=True, slots=True)
class _Signal:
    """A signal that may ask a process to end: SIGTERM, TERM or 15."""

    def from_text(self, text: str) -> signal.Signals:
        if re.fullmatch("[0-9]{1,3}", text):
            return self._numbered(int(text), text)
        name = text.upper()
        found = signal.Signals.__members__.get(name if name.startswith("SIG") else f"SIG{name}")
        return self._numbered(found, text)

    def from_toml(self, value: object) -> signal.Signals:
        if isinstance(value, str):
            return self.from_text(value)
        return self._numbered(value, value)

    def to_toml(self, value: signal.Signals) -> str:
        return toml_string(value.name)

    def _numbered(self, number: object, written: object) -> signal.Signals:
        try:
            found = signal.Signals(number if isinstance(number, int) and not isinstance(number, bool) else 0)
        except ValueError:
            raise OptionError(
                f"needs the name or the number of a signal, such as SIGTERM, got {shown(written)}"
            ) from None
        if found in _NOT_ENDING:
            raise OptionError(f"{shown(written)} does not ask a process to end; SIGTERM, SIGINT, SIGQUIT and others do")
        return found


@dataclass(frozen=True, slots=True)
class _Environment:
    """Variables and their values: NAME=VALUE,NAME=VALUE on the command line, a table in a file.

    A comma begins another variable only where NAME= follows, so that values may hold commas.
    """

    def from_text(self, text: str) -> tuple[tuple[str, str], ...]:
        pairs: dict[str, object] = {}
        for pair in re.split(f",(?={_VARIABLE}=)", text):
            name, equals, value = pair.partition("=")
            if not equals:
                raise OptionError(f"needs NAME=VALUE, with commas between several, got {shown(pair)}")
            if name in pairs:
                raise OptionError(f"{shown(name)} stands there twice")
            pairs[name] = value
        return self.from_toml(pairs)

    def from_toml(self, value: object) -> tuple[tuple[str, str], ...]:
        if not isinstance(value, dict):
            raise OptionError(f'needs a table such as {{ LANG = "C.UTF-8" }}, got {shown(value)}')
        problems = [why for name, held in value.items() for why in self._why_not(name, held)]
        if problems:
            raise OptionError("; ".join(problems))
        return tuple(value.items())

    def to_toml(self, value: tuple[tuple[str, str], ...]) -> str:
        return f"{{ {', '.join(f'{name} = {toml_string(held)}' for name, held in value)} }}" if value else "{}"

    def _why_not(self, name: str, value: object) -> Iterator[str]:
        if not re.fullmatch(_VARIABLE, name):
            yield _not_a_variable(name)
        if not isinstance(value, str):
            yield f'the value of {name} needs quotation marks, as in "1", got {shown(value)}'
        elif "\0" in value:
            yield f"the value of {name} holds a NUL: {shown(value)}"
        elif not _is_utf8(value):
            yield f"the value of {name} is not UTF-8: {shown(value)}"


def _not_a_variable(name: str) -> str:
    return f"the name of a variable has letters, digits and _ and begins with no digit, got {shown(name)}"


def _variable(text: str) -> str:
    if not re.fullmatch(_VARIABLE, text):
        raise OptionError(_not_a_variable(text))
    return text


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class _BySuffix:
    """Suffixes of file names, and a word for each: a table in a file."""

    item: str
    example: str
    may_be_empty: bool = False

    def from_text(self, text: str) -> tuple[tuple[str, str], ...]:
        raise OptionError(f"needs a table such as {self.example}, got {shown(text)}")

    def from_toml(self, value: object) -> tuple[tuple[str, str], ...]:
        if not isinstance(value, dict):
            raise OptionError(f"needs a table such as {self.example}, got {shown(value)}")
        problems = [
            f"needs {self.item} for {shown(suffix)}, got {shown(word)}"
            for suffix, word in value.items()
            if not isinstance(word, str) or not (word or self.may_be_empty) or "\0" in word + suffix
        ]
        if problems:
            raise OptionError("; ".join(problems))
        return tuple(value.items())

    def to_toml(self, value: tuple[tuple[str, str], ...]) -> str:
        pairs = ", ".join(f"{toml_string(suffix)} = {toml_string(word)}" for suffix, word in value)
        return f"{{ {pairs} }}" if value else "{}"


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
    """A list of words: with commas between them on the command line, an array in a file.

    may_be_bare   one word alone will do in a file
    """

    item: _Word
    example: str
    may_be_empty: bool = False
    instead: str = ""
    may_be_bare: bool = False

    def from_text(self, text: str) -> tuple[Any, ...]:
        return self.from_toml([word.strip() for word in text.split(",")])

    def from_toml(self, value: object) -> tuple[Any, ...]:
        if self.may_be_bare and isinstance(value, str):
            value = [value]
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


def _condition(text: str) -> Condition:
    """`url =^ /a/`, `host == a.example`, `socket == :8080`."""
    parts = re.fullmatch(r"\s*(\S+)\s+(\S+)\s+(.*)", text)
    if parts is None or parts[1] not in get_args(ConditionField) or parts[2] not in get_args(ConditionOperator):
        fields, operators = " or ".join(get_args(ConditionField)), " ".join(get_args(ConditionOperator))
        raise OptionError(f"needs {fields}, one of {operators}, and a value, got {shown(text)}")
    field, operator, value = cast(ConditionField, parts[1]), cast(ConditionOperator, parts[2]), parts[3]
    if operator in {"=~", "!~"}:
        try:
            re.compile(value)
        except (re.error, OverflowError, RecursionError) as bad:
            raise OptionError(f"{shown(value)} is not a regular expression: {bad}") from None
    if field == "socket" and (operator not in {"==", "!="} or not re.fullmatch(r".*:[0-9]+|unix:.+", value)):
        raise OptionError(f"a socket is == or != HOST:PORT, :PORT or unix:PATH, got {shown(text)}")
    return Condition(field, operator, value)


def _token(text: str) -> str:
    if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", text):  # RFC 9110 §5.6.2
        raise OptionError(f"needs names of letters, digits and !#$%&'*+-.^_`|~, got {shown(text)}")
    return text


def _file_name(text: str) -> str:
    if "/" in text:
        raise OptionError(f"needs the name of a file, without folders, got {shown(text)}")
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


def _choice(alias: Any, **older: str) -> _Choice:
    return _Choice(get_args(alias), tuple(older.items()))


def _options(of: type[Front | Host], kinds: dict[str, Kind]) -> dict[str, Option]:
    """The options of a settings class by name: by group, and in each the class's own before those it inherits."""
    options = []
    for each in dataclasses.fields(of):
        about = each.metadata
        if "group" in about:
            kind = kinds[each.name]
            options.append(
                Option(
                    each.name,
                    about["name"],
                    about["metavar"],
                    about["group"],
                    about["help"],
                    about["flag"],
                    each.default,
                    kind,
                )
            )
    groups = get_args(OptionGroup)
    options.sort(key=lambda option: (groups.index(option.group), option.field not in of.__annotations__))
    return {option.name: option for option in options}


_bounds, _spawn_bounds = OptionLimits(), SpawnLimits()
_text_path = _Word("a path", str)
_folder = _Word("a folder", str)
_seconds = _Seconds(_bounds.max_seconds)
_some_seconds = _Seconds(_bounds.max_seconds, may_be_zero=False)
_switch = _Switch()
_program = _Word("a program and its arguments", _command, shlex.join, may_hold_controls=True)

_FRONT_KINDS: dict[str, Kind] = {
    "tls_cert": _Words(_text_path, '["example.pem"]', may_be_bare=True),
    "tls_key": _Words(_text_path, '["example.key"]', may_be_bare=True),
    "tls_client_ca": _text_path,
    "tls_client_verify": _choice(ClientVerify),
    "h2c": _switch,
    "max_streams": _Whole(1, _bounds.max_connections),
    "listen": _Words(_Word("an address", _address), '["127.0.0.1:8081"]', may_be_bare=True),
}

SERVER_OPTIONS: dict[str, Option] = _options(
    Settings,
    {
        **_FRONT_KINDS,
        "max_connections": _Whole(1, _bounds.max_connections),
        "workers": _WholeOr("auto", _Whole(1, MasterLimits().max_workers)),
        "io": _choice(Io),
        "user": _Word("the name of a user", str),
        "group": _Word("the name of a group", str),
        "control": _text_path,
        "drain_timeout_s": _seconds,
        "reload_timeout_s": _seconds,
        "kill_timeout_s": _seconds,
        "document_root": _folder,
        "allow_unsafe_places": _switch,
        "log_level": _choice(LogLevel),
        "log_format": _choice(LogFormat),
        "log_file": _text_path,
    },
)
"""What stands at the top of a file."""

LISTENER_OPTIONS: dict[str, Option] = _options(Entrance, _FRONT_KINDS)
"""What stands in a [[listener]]."""

_HOST_KINDS: dict[str, Kind] = {
    "socket": _text_path,
    "host": _Word("an address or a host name", _host),
    "port": _Whole(1, _MAX_PORT),
    "bin_path": _program,
    "max_procs": _Whole(1, _spawn_bounds.max_procs),
    "min_procs": _Whole(0, _spawn_bounds.max_procs),
    "max_load_per_proc": _Whole(1, _bounds.max_connections),
    "max_load_policy": _choice(LoadPolicy),
    "idle_timeout_s": _seconds,
    "bin_environment": _Environment(),
    "bin_copy_environment": _Words(
        _Word("the name of a variable", _variable), '["LANG", "TZ"]', instead="; leave it out to copy none"
    ),
    "listen_backlog": _Whole(1, _bounds.max_backlog),
    "kill_signal": _Signal(),
    "disable_time_s": _seconds,
    "connect_timeout_s": _some_seconds,
    "read_timeout_s": _seconds,
    "write_timeout_s": _seconds,
    "tcp_fin_propagate": _switch,
}

HOST_OPTIONS: dict[str, Option] = _options(Host, _HOST_KINDS)
"""What stands in a [[route.hosts]], or in the [[route]] itself where that is the only host."""

ROUTE_OPTIONS: dict[str, Option] = _options(
    Route,
    {
        **_HOST_KINDS,
        "path": _Word("a URL path", _url_path),
        "suffix": _Word("the end of a URL path", _url_part),
        "when": _Words(_Word("a condition", _condition), '["host == example.com"]'),
        "gateway": _choice(Gateway),
        "upgrade": _switch,
        "stdio": _program,
        "max_forks": _Whole(1, _bounds.max_connections),
        "balance": _choice(Balance, fair="least-connection"),  # lighttpd's older word
        "docroot": _folder,
        "alias": _folder,
        "check_local": _switch,
        "cgi_assign": _BySuffix("the path of a program", '{ ".pl" = "/usr/bin/perl" }', may_be_empty=True),
        "index_file_names": _Words(_Word("the name of a file", _file_name), '["index.html"]', may_be_empty=True),
        "mimetype_assign": _BySuffix("a media type", '{ ".md" = "text/markdown" }'),
        "forwarded": _Words(_Word("for, by, host or proto", _choice(Forwarded).from_text), '["for", "proto"]'),
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
    },
)
"""What stands in a [[route]]."""
