"""What else than its path a route may ask of a request: lighttpd's conditionals."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from wstunnel.proto.request import Request
from wstunnel.settings import Condition

__all__ = ["all_hold"]

_Test = Callable[[str], bool]


def all_hold(conditions: Sequence[Condition]) -> Callable[[Request], bool]:
    """Whether every one of them is true of a request."""
    tests = [_test(condition) for condition in conditions]
    return lambda request: all(holds(request) for holds in tests)


def _test(condition: Condition) -> Callable[[Request], bool]:
    value = condition.value
    match condition.field:
        case "url":
            compare = _compare(condition.operator, value)
            return lambda request: compare(request.path)
        case "host":
            compare = _compare(condition.operator, value.lower() if condition.operator not in {"=~", "!~"} else value)
            if condition.operator in {"==", "!="} and not _has_port(value):
                return lambda request: compare(_without_port(request.host.lower()))
            return lambda request: compare(request.host.lower())
        case "socket":
            return _at_socket(value, is_wanted=condition.operator == "==")


def _compare(operator: str, value: str) -> _Test:
    match operator:
        case "==":
            return lambda text: text == value
        case "!=":
            return lambda text: text != value
        case "=^":
            return lambda text: text.startswith(value)
        case "=$":
            return lambda text: text.endswith(value)
    search = re.compile(value).search
    if operator == "=~":
        return lambda text: search(text) is not None
    return lambda text: search(text) is None


def _has_port(host: str) -> bool:
    return re.fullmatch(r".*[^:]:[0-9]+|\[.*\]:[0-9]+", host) is not None


def _without_port(host: str) -> str:
    return re.sub(r":[0-9]*\Z", "", host) if host.startswith("[") or host.count(":") == 1 else host


def _at_socket(value: str, *, is_wanted: bool) -> Callable[[Request], bool]:
    """Did the request come to this listener? One of every address has its port only."""
    if value.startswith("unix:"):
        return lambda request: (request.local == value) is is_wanted
    host, _, port = value.rpartition(":")
    if host in {"", "0.0.0.0", "[::]"}:
        return lambda request: (request.local.rpartition(":")[2] == port) is is_wanted
    return lambda request: (request.local == value) is is_wanted
