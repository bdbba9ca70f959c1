"""`("host" => "127.0.0.1", "port" => 8081)`: a backend as lighttpd's gateways share it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any

from wstunnel.config.drafts import Draft, Place, Problems
from wstunnel.config.fitting import unfit
from wstunnel.config.lighttpd.draft import Filling, at
from wstunnel.config.lighttpd.known import HOST_OPTIONS_LEFT
from wstunnel.config.lighttpd.reading import number, pairs, switch, text, texts
from wstunnel.config.lighttpd.values import Item, Value
from wstunnel.config.names import nearest
from wstunnel.config.options import HOST_OPTIONS, OptionError

__all__ = ["ReadHost", "read_host"]

_DEFAULT_PORT = 80
_DEFAULT_PROCS = 4

_READ: Mapping[str, Callable[[Value], Any]] = {
    "socket": text,
    "host": text,
    "port": number,
    "bin-path": lambda value: shlex.join(text(value).split()),  # lighttpd knows blanks, and no quotation marks
    "bin-environment": pairs,
    "bin-copy-environment": texts,
    "min-procs": number,
    "max-procs": number,
    "max-load-per-proc": number,
    "idle-timeout": number,
    "listen-backlog": number,
    "kill-signal": number,
    "disable-time": number,
    "connect-timeout": number,
    "read-timeout": number,
    "write-timeout": number,
    "tcp-fin-propagate": switch,
}
"""What is an option of hosts here too."""
_OF_ROUTE: Mapping[str, Callable[[Value], Any]] = {
    "upgrade": switch,
    "check-local": switch,
    "docroot": text,
}
"""What is an option of routes here."""


@dataclass(frozen=True, slots=True)
class ReadHost:
    """A host, and what it says about its whole route."""

    draft: Draft
    of_route: dict[str, tuple[Any, Place]]


def read_host(items: tuple[Item, ...], where: Place, kind: str, problems: Problems) -> ReadHost:
    """One backend.

    in      where   the place of the host
            kind    the gateway it belongs to
    """
    filling = Filling(HOST_OPTIONS, where, problems)
    of_route: dict[str, tuple[Any, Place]] = {}
    said: dict[str, Value] = {}
    for item in items:
        name = (item.key or "").replace("_", "-")
        place = at(item.value.place, name or "an entry without a key")
        if name == "host" and isinstance(item.value.data, str) and item.value.data.startswith("/"):
            name = "socket"
        if name in _READ:
            said[name] = item.value
        elif name in _OF_ROUTE:
            try:
                of_route[name] = (_OF_ROUTE[name](item.value), place)
            except OptionError as bad:
                problems.add(place, str(bad))
        elif name == "mode":
            _check_mode(item.value, place, problems)
        elif name in HOST_OPTIONS_LEFT:
            problems.warn(place, HOST_OPTIONS_LEFT[name])
        else:
            meant = nearest(name, (*_READ, *_OF_ROUTE))
            problems.warn(place, "unknown; it is ignored" + (f"; did you mean {meant}?" if meant else ""))
    _fill(filling, said, where, kind, problems)
    return ReadHost(filling.draft, of_route)


def _check_mode(value: Value, place: Place, problems: Problems) -> None:
    if value.data != "responder":
        problems.add(place, f"{value.shown} is not done here; a backend is a responder")


def _fill(filling: Filling, said: Mapping[str, Value], where: Place, kind: str, problems: Problems) -> None:
    misplaced = unfit(lambda field: field == "bin_path" and "bin-path" in said, kind=kind, is_shared=True)
    procs: dict[str, int] = {}
    for name, value in said.items():
        place = at(value.place, name)
        if HOST_OPTIONS[name].field in misplaced and name not in {"socket", "host", "port", "bin-path"}:
            problems.warn(place, f"ignored: {misplaced[HOST_OPTIONS[name].field]}")
        elif name in {"min-procs", "max-procs"}:
            try:
                procs[name] = number(value)
            except OptionError as bad:
                problems.add(place, str(bad))
        elif name == "connect-timeout" and value.data in (0, "0"):
            problems.warn(place, "0 is not done here: it stays at 8 seconds")
        else:
            filling.read(name, value, place, _READ[name])
    if "bin-path" in said:
        problems.warn(at(said["bin-path"].place, "bin-path"), _differences(said))
        _put_procs(filling, procs, {name: at(said[name].place, name) for name in procs}, where)
    if "socket" not in said and "port" not in said and ("host" in said or "bin-path" in said):
        filling.put("port", _DEFAULT_PORT, where)


def _differences(said: Container[str]) -> str:
    environment = (
        "" if "bin-copy-environment" in said else ", and of our environment it gets what bin-copy-environment names"
    )
    return f"differs from lighttpd on purpose: only our own user may connect to its sockets (0600){environment}"


def _put_procs(filling: Filling, procs: Mapping[str, int], places: Mapping[str, Place], where: Place) -> None:
    """As lighttpd counts: 4 unless it is said, and no more at least than at most."""
    most = procs.get("max-procs", _DEFAULT_PROCS)
    least = min(procs.get("min-procs", _DEFAULT_PROCS), most)
    filling.put("max-procs", most, places.get("max-procs", where))
    if least != most:
        filling.put("min-procs", least, places.get("min-procs", where))
