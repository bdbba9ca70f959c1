"""What a worker serves: which routes share which slots, and who hears of a death."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.conftest import Run, open_descriptors
from wstunnel.errors import StartError
from wstunnel.gateways.cgi import CgiGateway
from wstunnel.gateways.proxy import ProxyGateway
from wstunnel.gateways.static import StaticGateway
from wstunnel.gateways.stdio import StdioGateway
from wstunnel.gateways.tunnel import TunnelGateway
from wstunnel.limits import Limits, MasterLimits
from wstunnel.server.routes import HttpRoute
from wstunnel.server.service import Places, Service, forks_of, hosts_of, name_of, places_of
from wstunnel.settings import Host, Route, Settings, UnixAddress
from wstunnel.supervise.board import Board, SlotColumn, SlotState
from wstunnel.supervise.lease import Lease
from wstunnel.supervise.place import SlotPlace
from wstunnel.supervise.scripts import ScriptFolder

LIMITS = Limits(master=MasterLimits(worker_rows=4, slot_rows=8))


def places(*rows: int) -> tuple[SlotPlace, ...]:
    return tuple(SlotPlace(f"slot-{row}", UnixAddress(f"/run/{row}"), row) for row in rows)


class NoForker:
    async def fork(self, index: int, environment: Mapping[str, str], stream: Any, script: str = "") -> Any:
        raise AssertionError("nobody is to fork here")


def service_of(settings: Settings, at: Places, board: Board | None = None) -> Service:
    return Service(settings, at, board or Board(LIMITS.master, is_shared=False), 1, NoForker())


A, B = Host(socket="/run/a"), Host(socket="/run/b")
ROUTES = (
    Route(path="/one", hosts=(A, B)),
    Route(path="/cat", stdio=("cat",)),
    Route(path="/two", socket="/run/a"),
)


def test_places_are_found_for_every_host_of_every_route_in_their_order():
    settings = Settings(routes=ROUTES)
    rows = {"/run/a": 1, "/run/b": 2}
    found = places_of(settings, lambda host: places(rows[str(host.socket)]))
    assert found == ((places(1), places(2)), (), (places(1),))
    assert [host.socket for host in hosts_of(settings)] == ["/run/a", "/run/b", "/run/a"]


def test_every_route_has_the_gateway_of_its_kind(run: Run, tmp_path):
    async def story() -> None:
        settings = Settings(routes=ROUTES, limits=LIMITS, document_root=str(tmp_path))
        service = service_of(settings, ((places(1), places(2)), (), (places(1),)))
        kinds = [type(route.gateway) for route in service.routes]
        assert kinds == [TunnelGateway, StdioGateway, TunnelGateway, StaticGateway]
        assert [route.route for route in service.routes[:-1]] == list(ROUTES)
        assert service_of(Settings(routes=(), limits=LIMITS), ()).routes == []

    run(story())


def test_a_route_to_a_web_server_is_a_proxy(run: Run):
    async def story() -> None:
        settings = Settings(routes=(Route(path="/", gateway="proxy", host="127.0.0.1", port=1),), limits=LIMITS)
        (route,) = service_of(settings, ((places(1),),)).routes
        assert type(route.gateway) is ProxyGateway
        assert isinstance(route, HttpRoute)

    run(story())


def test_a_death_is_told_to_every_route_that_shares_the_slot_and_to_no_other(run: Run):
    async def story() -> None:
        settings = Settings(routes=ROUTES, limits=LIMITS)
        service = service_of(settings, ((places(1), places(2)), (), (places(1),)))
        told: list[tuple[int, int]] = []

        class Listening:
            def __init__(self, row: int, number: int) -> None:
                self._name = row, number

            def note_death(self) -> None:
                told.append(self._name)

        for row, slots in service._slots.items():
            slots[:] = [Listening(row, number) for number, _ in enumerate(slots)]  # type: ignore[misc]
        service.note_death(1)
        assert told == [(1, 0), (1, 1)]
        told.clear()
        service.note_death(2)
        service.note_death(7)  # of another configuration
        assert told == [(2, 0)]

    run(story())


def test_routes_that_share_a_slot_count_its_load_together(run: Run):
    async def story() -> None:
        board = Board(LIMITS.master, is_shared=False)
        board.slot(1)[SlotColumn.STATE] = SlotState.RUNNING
        routes = (Route(path="/one", socket="/run/a"), Route(path="/two", socket="/run/a"))
        service = service_of(Settings(routes=routes, limits=LIMITS), ((places(1),), (places(1),)), board)
        lease, _ = (Lease(slot, 0, lambda: None) for slot in service._slots[1])
        assert board.load(1) == 2
        lease.release()
        assert (board.load(1), board.total(1)) == (1, 2)

    run(story())


def test_programs_of_stdio_routes_are_known_by_the_number_of_their_route(run: Run, monkeypatch):
    monkeypatch.setenv("COLOUR", "red")

    async def story() -> None:
        route = Route(
            path="/cat",
            stdio=("cat", "-u"),
            max_forks=7,
            bin_environment=(("A", "b"),),
            bin_copy_environment=("COLOUR",),
        )
        forks = forks_of(Settings(routes=(Route(socket="/run/a"), route), limits=LIMITS, kill_timeout_s=3.5))
        assert list(forks._kinds) == [1]
        program = forks._kinds[1].program
        assert (program.name, program.argv, program.max_forks) == ("cat", ("cat", "-u"), 7)
        assert set(program.environment) == {"PATH", "A", "COLOUR"}
        assert forks.kill_timeout_s == 3.5
        with pytest.raises(StartError, match="does not exist"):
            forks_of(Settings(routes=(Route(stdio=("/nowhere/cat",)),), limits=LIMITS))

    run(story())


def test_a_cgi_route_answers_requests(run: Run, tmp_path):
    async def story() -> None:
        route = Route(gateway="cgi", docroot=str(tmp_path), cgi_assign=((".sh", "/bin/sh"),))
        (made,) = service_of(Settings(routes=(route,), limits=LIMITS), ((),)).routes
        assert isinstance(made, HttpRoute)
        assert isinstance(made.gateway, CgiGateway)

    run(story())


def test_scripts_of_cgi_routes_are_known_by_the_number_of_their_route(run: Run, tmp_path):
    async def story() -> None:
        usual = {"gateway": "cgi", "cgi_assign": ((".sh", "/bin/sh"),)}
        routes = (
            Route(path="/a", docroot=str(tmp_path), max_forks=7, bin_environment=(("A", "b"),), **usual),
            Route(stdio=("cat",)),
            Route(path="/c", alias=str(tmp_path), **usual),
        )
        forks = forks_of(Settings(routes=routes, limits=LIMITS))
        assert list(forks._kinds) == [0, 1, 2]
        program = forks._kinds[0].program
        assert (program.name, program.argv, program.max_forks) == ("/a", (), 7)
        assert set(program.environment) == {"PATH", "A"}
        assert program.scripts == forks._kinds[2].program.scripts == ScriptFolder(str(tmp_path), ((".sh", "/bin/sh"),))
        assert forks._kinds[1].program.scripts is None
        loose = forks_of(Settings(routes=routes, limits=LIMITS, allow_unsafe_places=True))
        assert [loose._kinds[index].program.scripts.allows_strangers for index in (0, 2)] == [True, True]

    run(story())


@pytest.mark.parametrize(
    ("route", "name"),
    [
        (Route(path="/chat/", socket="/a"), "/chat/"),
        (Route(path=None, suffix=".ws", socket="/a"), "....ws"),
        (Route(path="", socket="/a"), "/"),
    ],
)
def test_a_route_is_called_by_its_path_or_its_suffix(route, name):
    assert name_of(route) == name


@pytest.fixture(autouse=True)
def _nothing_is_left(_warm_loops: None) -> Iterator[None]:
    before = open_descriptors().keys()
    yield
    assert open_descriptors().keys() == before
