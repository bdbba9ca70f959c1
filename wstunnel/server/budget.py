"""How many connections the descriptor limit carries."""

from __future__ import annotations

import resource
from dataclasses import dataclass

from wstunnel.errors import StartError
from wstunnel.settings import Route, Settings
from wstunnel.supervise.pool import slot_addresses

__all__ = ["connection_budget"]


def connection_budget(settings: Settings) -> int:
    """How many connections the descriptor limit carries, or `max_connections`, for which the soft limit is raised.

    raises  StartError when the hard limit does not carry `max_connections`
    """
    wanted, need = settings.max_connections, _Need.of(settings)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if wanted is None:
        return max(1, need.most(soft))
    needed = need.of_connections(wanted)
    if needed > soft:
        if hard != resource.RLIM_INFINITY and needed > hard:
            most = need.most(hard)
            raise StartError(
                f"max-connections = {wanted} needs {needed} descriptors and the limit is {hard}: raise it "
                f"(ulimit -Hn, LimitNOFILE)" + (f" or set max-connections to {most}" if most > 0 else "")
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return wanted


@dataclass(frozen=True, slots=True)
class _Need:
    """What connections need of the descriptors.

    in      reserved  kept back for all else
            each      of one connection, whatever route it takes
            idle      the most connections to backends that wait for another request; each is left behind by a client's,
                      so there are no more of them than of those
    """

    reserved: int
    each: int
    idle: int

    @classmethod
    def of(cls, settings: Settings) -> _Need:
        limits, routes = settings.limits, settings.routes
        slots = sum(_lasting_slots(route) for route in routes if route.kind == "proxy")
        return cls(
            limits.accept.reserved_fds,
            max((_fds_of(route, settings) for route in routes), default=limits.accept.fds_per_connection),
            slots * limits.gateway.idle_per_slot,
        )

    def of_connections(self, count: int) -> int:
        """The descriptors that so many connections need."""
        return self.reserved + self.each * count + min(self.idle, count)

    def most(self, fds: int) -> int:
        """The most connections that so many descriptors carry; not positive where they carry none."""
        room = fds - self.reserved
        return max((room - self.idle) // self.each, room // (self.each + 1) if self.idle else 0)


def _fds_of(route: Route, settings: Settings) -> int:
    accept = settings.limits.accept
    if route.kind == "cgi":
        return accept.fds_per_script
    if route.kind == "fastcgi" and route.upgrade:
        return accept.fds_per_records
    return accept.fds_per_connection


def _lasting_slots(route: Route) -> int:
    """Slots whose connections are kept for the next request; one that is counted is given back after each."""
    return sum(len(slot_addresses(host)) for host in route.backends if host.max_load_policy == "share")
