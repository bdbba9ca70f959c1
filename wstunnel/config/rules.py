"""Rules between options, and what the file system says: drafts in, Settings or every problem out."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from wstunnel.config.options import shown
from wstunnel.errors import ConfigError
from wstunnel.settings import Address, Route, Settings, TcpAddress, UnixAddress
from wstunnel.sockets import SOCKET_PATH_BYTES
from wstunnel.supervise.pool import slot_addresses
from wstunnel.supervise.spawn import CHILD_PATH

__all__ = ["Draft", "Place", "Problems", "Settled", "settle"]

_MAX_PORT = 65535


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where an operator wrote something: a line (0: none) to sort by, and the words for it."""

    line: int
    text: str


class Problems:
    """Everything that is wrong, each with its place, in the order of the file."""

    def __init__(self) -> None:
        self._found: list[tuple[Place, str]] = []

    def add(self, place: Place, text: str) -> None:
        self._found.append((place, text))

    def raise_any(self) -> None:
        """Raise one ConfigError with all of them, if there are any."""
        if self._found:
            found = sorted(self._found, key=lambda entry: entry[0].line)
            raise ConfigError(tuple(f"{place.text}: {text}" for place, text in found))


@dataclass(slots=True)
class Draft:
    """What one table, or the command line, says: values that were read, not yet held against each other.

    where     the place of an option, or of the whole with None
    base      the folder that relative paths start from
    values    by the field that they fill
    refused   fields that were written, but whose value could not be read
    """

    where: Callable[[str | None], Place]
    base: str
    values: dict[str, Any] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)

    def has(self, name: str) -> bool:
        """Was the option written, soundly or not?"""
        return name in self.values or name in self.refused


@dataclass(frozen=True, slots=True)
class Settled:
    """Settings that can be used, and what an operator may want to hear about them."""

    settings: Settings
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Named:
    """A route with the draft that says where each of its options stands."""

    route: Route
    draft: Draft


def settle(servers: Iterable[Draft], routes: Iterable[Draft], problems: Problems) -> Settled:
    """The settings that drafts amount to; a later one of `servers` wins over an earlier one.

    raises  ConfigError with everything in `problems`, what the readers put there before included
    """
    values: dict[str, Any] = {}
    places: dict[str, Draft] = {}
    for draft in servers:
        _make_absolute(draft, problems)
        values.update(draft.values)
        places.update(dict.fromkeys(draft.values, draft))
    named = [_settle_route(draft, problems) for draft in routes]
    settings = Settings(**values, routes=tuple(each.route for each in named))
    if "listen" in places:
        _check_listeners(settings.listen, places["listen"].where("listen"), problems)
    _check_endpoints(settings, named, problems)
    problems.raise_any()
    return Settled(settings, (*_unreachable(named), *_misplaced_arguments(named)))


def _settle_route(draft: Draft, problems: Problems) -> _Named:
    _make_absolute(draft, problems)
    values = draft.values
    if draft.has("suffix"):
        if draft.has("path"):
            problems.add(draft.where("suffix"), "a route has a path or a suffix, not both")
        values["path"] = None
    if draft.has("port") and not draft.has("host"):
        values["host"] = "127.0.0.1"
    elif draft.has("host") and not draft.has("port"):
        problems.add(draft.where("host"), "needs a port beside it")
    if draft.has("socket") and (draft.has("port") or draft.has("host")):
        problems.add(draft.where("socket"), "a route has a socket or a host and port, not both")
    elif not (draft.has("socket") or draft.has("port") or draft.has("host")):
        problems.add(draft.where(None), "has no backend: it takes a socket, or a port (and a host)")
    if values.get("max_procs", 1) > 1 and not draft.has("bin_path"):
        problems.add(draft.where("max_procs"), "needs a bin-path: only programs that are spawned here are counted")
    return _Named(Route(**values), draft)


# --- files


def _make_absolute(draft: Draft, problems: Problems) -> None:
    """Make every path of a draft absolute, and look at those that have to be there already."""
    values = draft.values

    def absolute(path: str) -> str:
        return os.path.abspath(os.path.join(draft.base, path))

    if "listen" in values:
        values["listen"] = tuple(
            UnixAddress(absolute(each.path)) if isinstance(each, UnixAddress) else each for each in values["listen"]
        )
    if "socket" in values:
        values["socket"] = absolute(values["socket"])
    if "document_root" in values:
        root = values["document_root"] = absolute(values["document_root"])
        if not os.path.isdir(root):
            problems.add(draft.where("document_root"), f"{shown(root)} is not a folder")
        elif not os.access(root, os.R_OK | os.X_OK):
            problems.add(draft.where("document_root"), f"{shown(root)} may not be read by this user")
    if "bin_path" in values:
        program, *arguments = values["bin_path"]
        if "/" in program:
            found: str | None = absolute(program)
        else:
            found = shutil.which(program, path=CHILD_PATH)
        trouble = _why_not_a_program(program, found)
        if trouble:
            problems.add(draft.where("bin_path"), trouble)
        values["bin_path"] = (found or program, *arguments)


def _why_not_a_program(program: str, found: str | None) -> str | None:
    if found is None:
        return (
            f"no program {shown(program)} in {CHILD_PATH}; write ./{program} for one in the current folder, "
            "or its whole path"
        )
    try:
        mode = os.stat(found).st_mode
    except OSError as bad:
        return f"{shown(found)} cannot be started: {(bad.strerror or 'unknown error').lower()}"
    if not stat.S_ISREG(mode):
        return f"{shown(found)} is not a program"
    if not os.access(found, os.X_OK):
        return f"{shown(found)} is not executable; chmod +x makes it so"
    return None


# --- addresses


def _check_listeners(listen: tuple[Address, ...], place: Place, problems: Problems) -> None:
    seen: set[Address] = set()
    for address in listen:
        if address in seen and not (isinstance(address, TcpAddress) and address.port == 0):
            problems.add(place, f"{shown(str(address))} stands there twice")
        seen.add(address)
        if isinstance(address, UnixAddress):
            _check_socket_path(address.path, place, problems)


def _check_endpoints(settings: Settings, named: list[_Named], problems: Problems) -> None:
    """No address is bound twice: not by two routes, and not by a route and a listener."""
    owners: dict[Address, str] = dict.fromkeys(settings.listen, "a listener")
    for number, (route, draft) in enumerate(((each.route, each.draft) for each in named), 1):
        option = "socket" if route.socket is not None else "port"
        place = draft.where(option)
        if route.port is not None and route.bin_path and route.port + route.max_procs - 1 > _MAX_PORT:
            problems.add(place, f"{route.max_procs} processes from port {route.port} on would go past {_MAX_PORT}")
        for address in _addresses(route):
            if isinstance(address, UnixAddress) and not _check_socket_path(address.path, place, problems):
                break
            owner = owners.get(address)
            if owner is not None and (route.bin_path or owner == "a listener"):
                problems.add(place, f"{shown(str(address))} belongs to {owner}")
                break
            if route.bin_path:
                owners[address] = f"the backend of route {number}"


def _addresses(route: Route) -> tuple[Address, ...]:
    """Where the backends of a route listen; nothing where that cannot be told, which is a problem of its own."""
    try:
        return slot_addresses(route)
    except ConfigError:
        return ()


def _check_socket_path(path: str, place: Place, problems: Problems) -> bool:
    length = len(os.fsencode(path))
    if length > SOCKET_PATH_BYTES:
        problems.add(place, f"{shown(path)} has {length} bytes, and the path of a socket at most {SOCKET_PATH_BYTES}")
        return False
    return True


# --- warnings


def _unreachable(named: list[_Named]) -> list[str]:
    """Routes that an earlier one keeps every request from."""
    warnings = []
    for number, later in enumerate(named):
        for earlier in named[:number]:
            if _swallows(earlier.route, later.route):
                what = "path" if later.route.path is not None else "suffix"
                place = earlier.draft.where(None).text
                warnings.append(f"{later.draft.where(what).text}: never reached, {place} takes all its requests")
                break
    return warnings


def _swallows(earlier: Route, later: Route) -> bool:
    if earlier.path == "/":
        return True
    if earlier.path is not None:
        return later.path is not None and later.path.startswith(earlier.path)
    return later.suffix is not None and earlier.suffix is not None and later.suffix.endswith(earlier.suffix)


def _misplaced_arguments(named: list[_Named]) -> list[str]:
    """Arguments that name a file here, but will be read by a program that runs in its own folder."""
    warnings = []
    for each in named:
        program, *arguments = each.route.bin_path or ("",)
        folder = os.path.dirname(program)
        for argument in arguments:
            here = os.path.join(each.draft.base, argument)
            if os.path.isfile(here) and not os.path.exists(os.path.join(folder, argument)):
                place = each.draft.where("bin_path").text
                warnings.append(
                    f"{place}: {shown(argument)} is not in {folder}, where the program runs; "
                    f"write {shown(os.path.abspath(here))} if it names a file"
                )
    return warnings
