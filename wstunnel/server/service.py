"""What a worker serves: the routes of the settings, joined to their backends."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable

from wstunnel.gateways.cgi import CgiGateway, scripts_of
from wstunnel.gateways.fastcgi import FastcgiGateway
from wstunnel.gateways.program import Forker
from wstunnel.gateways.proxy import ProxyGateway
from wstunnel.gateways.scgi import ScgiGateway
from wstunnel.gateways.static import StaticGateway
from wstunnel.gateways.stdio import StdioGateway
from wstunnel.gateways.tunnel import TunnelGateway
from wstunnel.limits import FileLimits
from wstunnel.server.routes import HttpRoute, TunnelRoute
from wstunnel.settings import Host, Route, Settings
from wstunnel.supervise.balance import Balancer, HostSlots
from wstunnel.supervise.board import Board
from wstunnel.supervise.forks import ForkProgram, Forks
from wstunnel.supervise.place import SlotPlace
from wstunnel.supervise.pool import backend_environment
from wstunnel.supervise.slot import Slot

__all__ = ["Places", "Service", "forks_of", "hosts_of", "name_of", "places_of"]

Places = tuple[tuple[tuple[SlotPlace, ...], ...], ...]
"""The slots of every host of every route, in the settings' order."""


def hosts_of(settings: Settings) -> list[Host]:
    """Every host that some route names."""
    return [host for route in settings.routes for host in route.backends]


def places_of(settings: Settings, at: Callable[[Host], tuple[SlotPlace, ...]]) -> Places:
    """Where the slots of all those hosts are."""
    return tuple(tuple(at(host) for host in route.backends) for route in settings.routes)


def forks_of(settings: Settings) -> Forks:
    """The programs of stdio routes, and the scripts of cgi routes, by the number of their route; a route of another
    kind has none."""
    programs = {
        index: ForkProgram(
            os.path.basename(route.stdio[0]) if route.stdio else name_of(route),
            route.stdio,
            route.max_forks,
            backend_environment(route, os.environ),
            route.kill_signal,
            None if route.stdio else scripts_of(route, allows_strangers=settings.allow_unsafe_places),
        )
        for index, route in enumerate(settings.routes)
        if route.kind in {"stdio", "cgi"}
    }
    return Forks(programs, settings.limits, kill_timeout_s=settings.kill_timeout_s)


class Service:
    """Routes and files of one worker.

    in      board, row  where the slots stand, and this worker's row there
            forker      runs programs for stdio routes, and scripts for cgi routes
    """

    def __init__(self, settings: Settings, places: Places, board: Board, row: int, forker: Forker) -> None:
        self._board, self._row = board, row
        self._settings, self._forker = settings, forker
        self._slots: defaultdict[int, list[Slot]] = defaultdict(list)
        self.routes = [self._bound(index, route, places[index]) for index, route in enumerate(settings.routes)]
        if settings.document_root is not None:
            self.routes.append(self._bound(-1, Route(gateway="static", docroot=settings.document_root), ()))

    def note_death(self, row: int) -> None:
        """The process of the slot with this row has ended."""
        for slot in self._slots[row]:
            slot.note_death()

    def _bound(self, index: int, route: Route, places: tuple[tuple[SlotPlace, ...], ...]) -> TunnelRoute | HttpRoute:
        """The route, joined to what it leads to."""
        limits, name = self._settings.limits, name_of(route)
        match route.kind:
            case "tunnel":
                return TunnelRoute(route, TunnelGateway(self._balancer(route, places), name))
            case "stdio":
                return TunnelRoute(route, StdioGateway(self._forker, index, route, limits.spawn))
            case "proxy":
                return HttpRoute(route, ProxyGateway(self._balancer(route, places), name, route, limits.gateway))
            case "cgi":
                return HttpRoute(route, CgiGateway(self._forker, index, route, limits))
            case "static":
                return HttpRoute(route, _files_of(route, limits.file))
            case "scgi" | "fastcgi" as kind:
                made = ScgiGateway if kind == "scgi" else FastcgiGateway
                return HttpRoute(route, made(TunnelGateway(self._balancer(route, places), name), route, limits))

    def _balancer(self, route: Route, places: tuple[tuple[SlotPlace, ...], ...]) -> Balancer:
        limits = self._settings.limits
        hosts = []
        for host, at in zip(route.backends, places, strict=True):
            slots = tuple(Slot(place, self._board, self._row, limits) for place in at)
            for slot in slots:
                self._slots[slot.row].append(slot)
            hosts.append(HostSlots(host, slots))
        return Balancer(hosts, route.balance, limits=limits, clock=time.monotonic)


def _files_of(route: Route, limits: FileLimits) -> StaticGateway:
    return StaticGateway(
        route.alias or route.docroot or "",
        limits,
        prefix="/" if route.alias is None else route.path or "/",
        index_names=route.index_file_names,
        types=route.mimetype_assign,
    )


def name_of(route: Route) -> str:
    """The route as operators know it: its path, or its suffix."""
    return f"...{route.suffix}" if route.suffix is not None else route.path or "/"
