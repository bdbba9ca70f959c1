"""How many connections the descriptor limit carries, and what is said when it does not."""

from __future__ import annotations

import resource
from collections.abc import Callable

import pytest

from wstunnel.errors import StartError
from wstunnel.limits import AcceptLimits
from wstunnel.server.budget import connection_budget


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
def budget(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None, int, int], tuple[int, Budget]]:
    """`budget(wanted, soft, hard)`: the connections that a worker is told to carry."""

    def find(wanted: int | None, soft: int, hard: int) -> tuple[int, Budget]:
        limits = Budget(soft, hard)
        monkeypatch.setattr(resource, "getrlimit", limits.getrlimit)
        monkeypatch.setattr(resource, "setrlimit", limits.setrlimit)
        return connection_budget(wanted, AcceptLimits()), limits

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
