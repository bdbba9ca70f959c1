"""How many connections the descriptor limit carries, and what is said when it does not."""

from __future__ import annotations

import resource
from collections.abc import Callable

import pytest

from wstunnel.errors import StartError
from wstunnel.limits import GatewayLimits
from wstunnel.server.budget import connection_budget
from wstunnel.settings import Host, Route, Settings


class Budget:
    """The descriptor limits of this process, invented."""

    def __init__(self, soft: int, hard: int) -> None:
        self.limits = (soft, hard)
        self.raised: list[tuple[int, int]] = []

    def getrlimit(self, _which: int) -> tuple[int, int]:
        return self.limits

    def setrlimit(self, _which: int, limits: tuple[int, int]) -> None:
        self.raised.append(limits)


@pytest.fixture
def budget(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, Budget]]:
    """`budget(wanted, soft, hard, *routes)`: the connections that a worker is told to carry."""

    def find(wanted: int | None, soft: int, hard: int, *routes: Route) -> tuple[int, Budget]:
        limits = Budget(soft, hard)
        monkeypatch.setattr(resource, "getrlimit", limits.getrlimit)
        monkeypatch.setattr(resource, "setrlimit", limits.setrlimit)
        return connection_budget(Settings(max_connections=wanted, routes=routes)), limits

    return find


@pytest.mark.parametrize(
    ("soft", "connections"), [(1024, (1024 - 64) // 2), (65536, (65536 - 64) // 2), (66, 1), (64, 1), (20, 1)]
)
def test_by_default_as_many_connections_as_the_descriptors_carry(budget, soft, connections):
    """Two for each tunnel, and 64 for all else; one at least."""
    told, limits = budget(None, soft, 1 << 20)
    assert told == connections
    assert limits.raised == []


def test_a_wanted_number_that_fits_changes_no_limit(budget):
    told, limits = budget(480, 1024, 4096)
    assert told == 480
    assert limits.raised == []


@pytest.mark.parametrize("hard", [4096, 1064, resource.RLIM_INFINITY])
def test_a_wanted_number_that_does_not_fit_raises_the_soft_limit(budget, hard):
    told, limits = budget(500, 1024, hard)
    assert told == 500
    assert limits.raised == [(1064, hard)]


@pytest.mark.parametrize(("hard", "most"), [(1062, 499), (1063, 499), (70, 3)])
def test_more_than_the_hard_limit_carries_is_a_start_error_that_names_the_most(budget, hard, most):
    with pytest.raises(StartError) as raised:
        budget(500, 64, hard)
    assert f"max-connections = 500 needs 1064 descriptors and the limit is {hard}" in str(raised.value)
    assert f"set max-connections to {most}" in str(raised.value)


@pytest.mark.parametrize("hard", [10, 64, 65])
def test_a_hard_limit_that_carries_nothing_is_not_answered_with_advice_that_cannot_be_followed(budget, hard):
    with pytest.raises(StartError) as raised:
        budget(500, hard, hard)
    assert "raise it" in str(raised.value)
    assert "set max-connections to" not in str(raised.value)


# --- routes whose connections need more

TUNNEL = Route(socket="/b")
HOSTS = (Host(port=1), Host(port=5, bin_path=("b",), max_procs=3))


@pytest.mark.parametrize(
    ("route", "fds"),
    [
        (Route(gateway="static", docroot="/"), 2),
        (Route(stdio=("/bin/cat",)), 2),
        (Route(gateway="scgi", port=1, upgrade=True), 2),
        (Route(gateway="fastcgi", port=1), 2),
        (Route(gateway="cgi", docroot="/", cgi_assign=(("", ""),)), 3),
        (Route(gateway="fastcgi", port=1, upgrade=True), 4),
    ],
)
def test_any_connection_may_take_the_route_that_needs_most_descriptors(budget, route, fds):
    assert budget(None, 64 + 12 * 100, 1 << 20, TUNNEL, route)[0] == 1200 // fds
    assert budget(100, 64, 1 << 20, TUNNEL, route)[1].raised == [(64 + 100 * fds, 1 << 20)]


IDLE = 4 * GatewayLimits().idle_per_slot
"""Of the four slots of HOSTS."""


@pytest.mark.parametrize(
    ("room", "connections"),
    [
        (2 * (IDLE + 300) + IDLE, IDLE + 300),
        (3 * IDLE, IDLE),
        (3 * (IDLE - 1), IDLE - 1),
        (3 * 2, 2),
        (2, 1),
    ],
)
def test_a_proxy_leaves_an_idle_connection_behind_each_of_its_clients_up_to_a_bound_per_slot(budget, room, connections):
    proxy = Route(gateway="proxy", hosts=HOSTS)
    assert budget(None, 64 + room, 1 << 20, TUNNEL, proxy)[0] == connections


@pytest.mark.parametrize(("wanted", "fds"), [(IDLE + 300, 2 * (IDLE + 300) + IDLE), (100, 3 * 100)])
def test_the_idle_connections_of_a_proxy_raise_the_limit(budget, wanted, fds):
    proxy = Route(gateway="proxy", hosts=HOSTS)
    assert budget(wanted, 64, 1 << 20, TUNNEL, proxy)[1].raised == [(64 + fds, 1 << 20)]


def test_where_connections_are_counted_none_is_idle(budget):
    proxy = Route(gateway="proxy", port=1, max_load_policy="queue", max_load_per_proc=3)
    assert budget(None, 64 + 200, 1 << 20, proxy)[0] == 100
