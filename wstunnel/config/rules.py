"""Rules between options, and what the file system says: drafts in, Settings or every problem out."""

from __future__ import annotations

import dataclasses
import grp
import os
import pwd
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from wstunnel.config import runtime
from wstunnel.config.drafts import Draft, Place, Problems
from wstunnel.config.files import make_absolute
from wstunnel.config.fitting import HOST_FIELDS, UNCONNECTED, unfit
from wstunnel.config.options import HOST_OPTIONS, shown
from wstunnel.config.places import Danger, program_danger, scripts_danger, socket_danger
from wstunnel.errors import ConfigError
from wstunnel.server.certificates import Material, read_front
from wstunnel.settings import Address, Entrance, Front, Host, Route, Settings, TcpAddress, UnixAddress
from wstunnel.sockets import SOCKET_PATH_BYTES
from wstunnel.supervise.pool import slot_addresses

__all__ = ["Settled", "settle", "settle_server"]

_MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class Settled:
    """Settings that can be used, and what an operator may want to hear about them.

    material  what the files of certificates and keys say
    """

    settings: Settings
    warnings: tuple[str, ...]
    material: Material = dataclasses.field(default_factory=Material)


_Where = Callable[[str], Place]


@dataclass(frozen=True, slots=True)
class _Server:
    """All but the routes, with where each option stands; `written` are the fields at the top that somebody wrote."""

    settings: Settings
    written: dict[str, Place]
    entrances: tuple[tuple[Entrance, Draft], ...]

    def where(self, name: str) -> Place:
        return self.written[name]

    def listening(self) -> Iterator[tuple[Address, Place]]:
        """The addresses that somebody wrote."""
        if "listen" in self.written:
            yield from ((address, self.written["listen"]) for address in self.settings.listen)
        for entrance, draft in self.entrances:
            yield from ((address, draft.where("listen")) for address in entrance.listen)

    def fronts(self) -> Iterator[tuple[Front, Callable[[str], bool], _Where]]:
        """Each front, with which of its options are written, and where."""
        if self.settings.listen:
            yield self.settings.front, self.written.__contains__, self.where
        for entrance, draft in self.entrances:
            yield entrance.front, draft.has, draft.where


@dataclass(frozen=True, slots=True)
class _Backend:
    """A host with the draft that says where each of its options stands, and its name in a text."""

    host: Host
    draft: Draft
    name: str


@dataclass(frozen=True, slots=True)
class _Named:
    """A route with the draft that says where each of its options stands; backends as in `Route.backends`."""

    route: Route
    draft: Draft
    backends: tuple[_Backend, ...]


def settle(
    servers: Iterable[Draft], routes: Iterable[Draft], problems: Problems, held: Material | None = None
) -> Settled:
    """The settings that drafts amount to; a later one of `servers` wins over an earlier one.

    in      held    what certificates and keys said before, for those that we may not read any more
    raises  ConfigError with everything in `problems`, what the readers put there before included
    """
    server = _joined(servers, problems)
    sockets = _DefaultSockets(server.settings.addresses[0])
    named = [_settle_route(draft, number, sockets, problems) for number, draft in enumerate(routes, 1)]
    settings = dataclasses.replace(server.settings, routes=tuple(each.route for each in named))
    trusted = _check_identity(settings, server.written, problems)
    _check_server_sockets(server, problems)
    material = _check_fronts(server, trusted, held, problems)
    _check_endpoints(settings, named, problems)
    if not settings.allow_unsafe_places:
        _check_places(server, named, trusted, problems)
    problems.raise_any()
    _warn_of_unreachable(named, problems)
    _warn_of_misplaced_arguments(named, problems)
    return Settled(settings, problems.warnings, material)


def settle_server(servers: Iterable[Draft], problems: Problems) -> Settings:
    """The same without routes, and without a look at what other users could do: for who only asks where things are.

    raises  as `settle`
    """
    server = _joined(servers, problems)
    problems.raise_any()
    return server.settings


def _joined(servers: Iterable[Draft], problems: Problems) -> _Server:
    """What the drafts say together, with absolute paths. Where a later one says `listen`, it says all of it."""
    values: dict[str, Any] = {}
    where: dict[str, Place] = {}
    entrances: list[tuple[Entrance, Draft]] = []
    for draft in servers:
        make_absolute(draft, problems)
        values.update(draft.values)
        where.update((name, draft.where(name)) for name in (*draft.values, *draft.refused))
        if draft.has("listen"):
            entrances.clear()
        for each in draft.listeners:
            make_absolute(each, problems)
            if not each.has("listen"):
                problems.add(each.where(None), "needs an address to serve: listen")
            entrances.append((Entrance(**each.values), each))
    if any(entrance.listen for entrance, _ in entrances):
        values.setdefault("listen", ())
    listeners = tuple(entrance for entrance, _ in entrances)
    return _Server(Settings(**values, listeners=listeners), where, tuple(entrances))


def _settle_route(draft: Draft, number: int, sockets: _DefaultSockets, problems: Problems) -> _Named:
    if draft.has("suffix"):
        if draft.has("path"):
            problems.add(draft.where("suffix"), "a route has a path or a suffix, not both")
        draft.values["path"] = None
    if draft.hosts is not None:
        return _settle_hosts(draft, draft.hosts, number, sockets, problems)
    around = _around(draft)
    route = Route(**_settled_host(draft, sockets, around, problems, or_else=" or a stdio"))
    _check_files(draft, around.kind, problems)
    return _Named(route, draft, (_Backend(route, draft, f"the backend of route {number}"),) if route.backends else ())


def _check_files(draft: Draft, kind: str, problems: Problems) -> None:
    """A gateway that needs files has been told where they are."""
    if draft.has("alias") and draft.has("docroot"):
        problems.add(draft.where("alias"), "a route has a docroot or an alias, not both")
    if draft.has("alias") and draft.has("suffix"):
        problems.add(draft.where("alias"), "needs a path, in whose place it stands, not a suffix")
    if kind in {"cgi", "static"} and not draft.has("docroot") and not draft.has("alias"):
        problems.add(draft.where("gateway"), "needs a docroot, or an alias, beside it")
    if kind == "cgi" and not draft.has("cgi_assign"):
        problems.add(draft.where("gateway"), 'needs a cgi-assign beside it, such as { ".pl" = "/usr/bin/perl" }')
    if draft.values.get("check_local") and not draft.has("docroot"):
        problems.add(draft.where("check_local"), "needs a docroot beside it")


def _settle_hosts(
    draft: Draft, hosts: list[Draft], number: int, sockets: _DefaultSockets, problems: Problems
) -> _Named:
    """A route of several hosts, which has no host options of its own."""
    around = _around(draft)
    if around.kind in UNCONNECTED:
        place = draft.where("stdio" if draft.has("stdio") else "gateway")
        problems.add(place, f"cannot stand beside {draft.where('hosts').text}")
        around = dataclasses.replace(around, kind="tunnel")  # for the hosts, as if it were not there
    else:
        misplaced = unfit(draft.has, kind=around.kind, is_shared=True)
        for field in sorted(misplaced.keys() - HOST_FIELDS):
            if field in draft.values:
                problems.add(draft.where(field), misplaced[field])
        _check_files(draft, around.kind, problems)
    for field in sorted(HOST_FIELDS):
        if draft.has(field):
            first = hosts[0].where(None).text if hosts else draft.where("hosts").text
            problems.add(
                draft.where(field), f"cannot stand beside {first}; write it into each [[route.hosts]] that it is for"
            )
    if not hosts and "hosts" not in draft.refused:
        problems.add(draft.where("hosts"), "needs at least one [[route.hosts]]")
    if len(hosts) == 1:
        _warn_of_balance(draft, problems)
    backends = tuple(
        _Backend(
            Host(**_settled_host(each, sockets, around, problems)),
            each,
            f"host {index} of route {number}",
        )
        for index, each in enumerate(hosts, 1)
    )
    own = {field: value for field, value in draft.values.items() if field not in HOST_FIELDS}
    return _Named(Route(**own, hosts=tuple(backend.host for backend in backends)), draft, backends)


def _warn_of_balance(draft: Draft, problems: Problems) -> None:
    if draft.has("balance"):
        problems.warn(draft.where("balance"), "without effect: there is one host; several stand as [[route.hosts]]")


@dataclass(frozen=True, slots=True)
class _Around:
    """What a host has to know of its route: the kind of its gateway, and what tells it from other routes."""

    kind: str
    found_by: tuple[object, ...]


def _around(route: Draft) -> _Around:
    values = route.values
    kind = "stdio" if route.has("stdio") else values.get("gateway", "tunnel")
    return _Around(kind, (values.get("path", "/"), values.get("suffix"), *map(str, values.get("when", ()))))


def _settled_host(
    draft: Draft, sockets: _DefaultSockets, route: _Around, problems: Problems, or_else: str = ""
) -> dict[str, Any]:
    """The values of a host, or of a route that is its own one, with what follows from them."""
    make_absolute(draft, problems)
    values = dict(draft.values)
    is_shared = not draft.has("max_load_policy") or values.get("max_load_policy") == "share"
    for field, why in unfit(draft.has, kind=route.kind, is_shared=is_shared).items():
        if field in draft.values:
            problems.add(draft.where(field), why)
    if route.kind in UNCONNECTED:
        return values
    _warn_of_balance(draft, problems)
    if draft.has("port") and not draft.has("host"):
        values["host"] = "127.0.0.1"
    elif draft.has("host") and not draft.has("port"):
        problems.add(draft.where("host"), "needs a port beside it")
    if draft.has("socket") and (draft.has("port") or draft.has("host")):
        problems.add(draft.where("socket"), "a backend has a socket or a host and port, not both")
    elif not any(map(draft.has, ("socket", "port", "host", "bin_path"))):
        problems.add(draft.where(None), f"has no backend: it takes a socket, a port (and a host), a bin-path{or_else}")
    elif "bin_path" in values and not any(map(draft.has, ("socket", "port", "host"))):
        values["socket"] = sockets.take(values["bin_path"], route.found_by)
    most, least = values.get("max_procs", 1), values.get("min_procs")
    if least is not None and least > most and "max_procs" not in draft.refused:
        given = "" if "max_procs" in values else ", which is 1 unless it is given"
        problems.add(draft.where("min_procs"), f"{least} is more than max-procs{given or f', {most}'}")
    if "max_load_per_proc" in values and draft.has("bin_path") and is_shared and least in {None, most}:
        problems.warn(
            draft.where("max_load_per_proc"),
            f"without effect: all {most} processes run from the start, and share what is more; give min-procs for "
            "processes that come and go, or a max-load-policy of queue or refuse for a limit that is kept",
        )
    return values


class _DefaultSockets:
    """Sockets in the runtime folder for programs that were given none: the same ones whenever the same is written."""

    def __init__(self, listener: Address) -> None:
        # Another wstunnel of the same user has another listener; at port 0 the process itself tells them apart.
        is_any = isinstance(listener, TcpAddress) and listener.port == 0
        self._mine = (str(listener), os.getpid() if is_any else 0)
        self._taken: set[str] = set()

    def take(self, argv: tuple[str, ...], route: tuple[object, ...]) -> str:
        number = 0
        while (path := runtime.backend_socket(argv[0], (*self._mine, argv, route, number))) in self._taken:
            number += 1
        self._taken.add(path)
        return path


# --- who we are


def _check_identity(settings: Settings, where: dict[str, Place], problems: Problems) -> frozenset[int]:
    """The users whose files are as good as ours."""
    trusted = {0, os.geteuid()}
    if settings.user is not None:
        try:
            uid = pwd.getpwnam(settings.user).pw_uid
        except KeyError:
            problems.add(where["user"], f"there is no user {shown(settings.user)} on this machine")
        else:
            trusted.add(uid)
            if os.geteuid() not in {0, uid}:
                problems.add(where["user"], "only root may become another user: start as root, or leave it out")
    if settings.group is not None:
        try:
            gid = grp.getgrnam(settings.group).gr_gid
        except KeyError:
            problems.add(where["group"], f"there is no group {shown(settings.group)} on this machine")
        else:
            if os.geteuid() != 0 and gid != os.getegid():
                problems.add(where["group"], "only root may take another group: start as root, or leave it out")
    return frozenset(trusted)


# --- addresses


def _check_server_sockets(server: _Server, problems: Problems) -> None:
    """Listeners are there once each, and the control socket is none of them."""
    seen: dict[Address, Place] = {}
    for address, place in server.listening():
        if address in seen and not (isinstance(address, TcpAddress) and address.port == 0):
            first = seen[address]
            again = "there twice" if first == place else f"at {first.text} already"
            problems.add(place, f"{shown(str(address))} stands {again}")
        seen.setdefault(address, place)
        if isinstance(address, UnixAddress):
            _check_socket_path(address.path, place, problems)
    control = server.settings.control
    if control is not None:
        _check_socket_path(control, server.where("control"), problems)
        if UnixAddress(control) in server.settings.addresses:
            problems.add(server.where("control"), f"{shown(control)} belongs to a listener")


# --- fronts


def _check_fronts(server: _Server, trusted: frozenset[int], held: Material | None, problems: Problems) -> Material:
    """Certificates are there, can be used, and nobody else can read their keys; what they say."""
    material = Material()
    for front, has, where in server.fronts():
        if not _is_consistent(front, has, where, server, problems) or not front.tls_cert:
            continue
        reading = read_front(front, trusted=trusted, held=held)
        for flaw in reading.flaws:
            problems.add(where(flaw.option), flaw.text)
        for each in (*reading.kept, *reading.stale):
            problems.warn(where(each.option), each.text)
        material = material.with_(reading.material)
    if not server.settings.listen:
        for name in (each.name for each in dataclasses.fields(Front)):
            if name in server.written:
                place = server.where(name)
                problems.warn(place, "without effect: it is for listen, and every [[listener]] has its own")
    return material


def _is_consistent(
    front: Front, has: Callable[[str], bool], where: _Where, server: _Server, problems: Problems
) -> bool:
    """Whether the options of a front fit each other."""
    wrong: list[tuple[str, str]] = []
    if has("tls_cert"):
        certificates, keys = len(front.tls_cert), len(front.tls_key)
        if keys and certificates and keys != certificates:
            remedy = "name one for each, the certificate's own file where the key is in it"
            wrong.append(("tls_key", f"has {keys} of {certificates} keys; {remedy}"))
        if front.h2c:
            problems.warn(where("h2c"), "without effect: with TLS clients take HTTP/2 as they like")
    else:
        wrong += [(name, "needs a tls-cert beside it") for name in ("tls_key", "tls_client_ca") if has(name)]
    if has("tls_client_verify") and not has("tls_client_ca"):
        wrong.append(("tls_client_verify", "needs a tls-client-ca beside it"))
    if front.tls_cert and server.settings.io == "protocol":
        wrong.append(("tls_cert", "cannot stand beside io = protocol, which is for sockets without TLS"))
    for name, text in wrong:
        problems.add(where(name), text)
    return not wrong


_DECIDING = (
    "socket",
    "port",
    "bin_path",
    "max_procs",
    "min_procs",
    "idle_timeout_s",
    "bin_environment",
    "bin_copy_environment",
    "listen_backlog",
    "kill_signal",
)
"""What decides about the processes behind an address: two routes share them if all of it is the same."""


def _check_endpoints(settings: Settings, named: list[_Named], problems: Problems) -> None:
    """No address is bound twice, by a listener or by a program, unless the programs are one and the same."""
    owners: dict[Address, str] = dict.fromkeys(settings.addresses, "a listener")
    if settings.control is not None:
        owners[UnixAddress(settings.control)] = "the control socket"
    spawned: dict[Address, Host] = {}
    for host, draft, name in ((each.host, each.draft, each.name) for route in named for each in route.backends):
        place = draft.where(_address_field(draft))
        if host.port is not None and host.bin_path and host.port + host.max_procs - 1 > _MAX_PORT:
            problems.add(place, f"{host.max_procs} processes from port {host.port} on would go past {_MAX_PORT}")
        for address in _addresses(host):
            if isinstance(address, UnixAddress) and not _check_socket_path(address.path, place, problems):
                break
            owner, other = owners.get(address), spawned.get(address)
            differing = [] if other is None else _differences(host, other)
            if owner is not None and (other is None or (host.bin_path and differing)):
                apart = f", which differs in {', '.join(differing)}" if differing else ""
                problems.add(place, f"{shown(str(address))} belongs to {owner}{apart}")
                break
            if host.bin_path:
                owners.setdefault(address, name)
                spawned[address] = host


def _address_field(draft: Draft) -> str:
    return next((field for field in ("socket", "port") if draft.has(field)), "bin_path")


def _differences(host: Host, other: Host) -> list[str]:
    """Names of the options that keep two hosts at one address from being one and the same pool of processes."""
    names = {option.field: option.name for option in HOST_OPTIONS.values()}
    return [names[field] for field in _DECIDING if getattr(host, field) != getattr(other, field)]


def _addresses(host: Host) -> tuple[Address, ...]:
    """Where its processes listen; nothing where that cannot be told, which is a problem of its own."""
    try:
        return slot_addresses(host)
    except ConfigError:
        return ()


def _check_socket_path(path: str, place: Place, problems: Problems) -> bool:
    length = len(os.fsencode(path))
    if length > SOCKET_PATH_BYTES:
        problems.add(place, f"{shown(path)} has {length} bytes, and the path of a socket at most {SOCKET_PATH_BYTES}")
        return False
    return True


# --- places


def _check_places(server: _Server, named: list[_Named], trusted: frozenset[int], problems: Problems) -> None:
    """Other users can put theirs in the place of no program and no socket of ours."""

    def look(place: Place, danger: Danger | None) -> None:
        if danger is not None:
            (problems.add if danger.is_refused else problems.warn)(place, danger.text)

    for address, place in server.listening():
        if isinstance(address, UnixAddress):
            look(place, socket_danger(address.path, trusted))
    if server.settings.control is not None:
        look(server.where("control"), socket_danger(server.settings.control, trusted))
    for each in named:
        if each.route.stdio:
            look(each.draft.where("stdio"), program_danger(each.route.stdio[0], trusted))
        for _, interpreter in each.route.cgi_assign:
            if interpreter and os.path.exists(interpreter):
                look(each.draft.where("cgi_assign"), program_danger(interpreter, trusted))
        if each.route.kind == "cgi":
            option = "docroot" if each.route.alias is None else "alias"
            folder = each.route.alias or each.route.docroot
            if folder and os.path.isdir(folder):
                look(each.draft.where(option), scripts_danger(folder, trusted))
        for backend in each.backends:
            host, draft = backend.host, backend.draft
            if host.bin_path and os.path.exists(host.bin_path[0]):
                look(draft.where("bin_path"), program_danger(host.bin_path[0], trusted))
            if host.bin_path and host.socket is not None:
                look(draft.where(_address_field(draft)), socket_danger(f"{host.socket}-0", trusted))


# --- warnings


_OF_TUNNELS = frozenset({"tunnel", "stdio"})
"""Gateways that take WebSocket handshakes only."""


def _warn_of_unreachable(named: list[_Named], problems: Problems) -> None:
    """Routes that an earlier one keeps every request from."""
    for number, later in enumerate(named):
        for earlier in named[:number]:
            if _swallows(earlier.route, later.route):
                what = "path" if later.route.path is not None else "suffix"
                place = earlier.draft.where(None).text
                problems.warn(later.draft.where(what), f"never reached, {place} takes all its requests")
                break


def _swallows(earlier: Route, later: Route) -> bool:
    if earlier.when or earlier.kind == "cgi" or (earlier.kind in _OF_TUNNELS and later.kind not in _OF_TUNNELS):
        return False  # it leaves some to others
    if earlier.path == "/":
        return True
    if earlier.path is not None:
        return later.path is not None and later.path.startswith(earlier.path)
    return later.suffix is not None and earlier.suffix is not None and later.suffix.endswith(earlier.suffix)


def _warn_of_misplaced_arguments(named: list[_Named], problems: Problems) -> None:
    """Arguments that name a file here, but will be read by a program that runs in its own folder."""
    for argv, draft, field in (command for each in named for command in _commands(each)):
        program, *arguments = argv
        folder = os.path.dirname(program)
        for argument in arguments:
            here = os.path.join(draft.base, argument)
            if os.path.isfile(here) and not os.path.exists(os.path.join(folder, argument)):
                problems.warn(
                    draft.where(field),
                    f"{shown(argument)} is not in {folder}, where the program runs; "
                    f"write {shown(os.path.abspath(here))} if it names a file",
                )


def _commands(named: _Named) -> Iterator[tuple[tuple[str, ...], Draft, str]]:
    """The program of each host, or that of the tunnels, with its arguments and where it is written."""
    if named.route.stdio:
        yield named.route.stdio, named.draft, "stdio"
    for each in named.backends:
        if each.host.bin_path:
            yield each.host.bin_path, each.draft, "bin_path"
