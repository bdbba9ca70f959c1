"""Which slot of a pool takes the next connection."""

from __future__ import annotations

import pytest

from wstunnel.settings import UnixAddress
from wstunnel.supervise.balance import least_loaded
from wstunnel.supervise.slot import Slot, SlotState


class StatedSlot(Slot):
    """Is in the state that it was given."""

    __slots__ = ("given",)

    def __init__(self, name: str, load: int, state: SlotState) -> None:
        super().__init__(name, UnixAddress(name))
        self.load, self.given = load, state

    @property
    def state(self) -> SlotState:
        return self.given


def slots(*loads: int, states: str = "") -> list[StatedSlot]:
    known: dict[str, SlotState] = {"r": "running", "w": "waiting", "e": "stopping", "s": "stopped"}
    return [
        StatedSlot(str(index), load, known[letter])
        for index, (load, letter) in enumerate(zip(loads, states or "r" * len(loads), strict=True))
    ]


def chosen(candidates: list[StatedSlot], *avoid: int) -> str | None:
    found = least_loaded(candidates, [candidates[index] for index in avoid])
    return None if found is None else found.name


@pytest.mark.parametrize(
    ("loads", "name"), [((2, 1, 3), "1"), ((1, 1, 1), "0"), ((2, 1, 1), "1"), ((0,), "0"), ((5, 4, 3), "2")]
)
def test_the_fewest_leases_win_and_the_first_on_a_tie(loads, name):
    assert chosen(slots(*loads)) == name


def test_a_slot_to_avoid_is_not_chosen():
    assert chosen(slots(0, 2, 1), 0) == "2"


def test_nothing_is_left_when_all_are_avoided():
    assert chosen(slots(0, 0), 0, 1) is None


def test_nothing_is_left_of_an_empty_pool():
    assert least_loaded(()) is None


def test_a_slot_that_is_down_does_not_draw_connections_because_it_has_none():
    assert chosen(slots(0, 7, 9, states="wrr")) == "1"


def test_a_slot_that_is_down_is_better_than_none():
    assert chosen(slots(3, 7, 2, states="wrw"), 1) == "2"


def test_a_slot_that_is_or_will_be_stopped_takes_nothing():
    assert chosen(slots(0, 0, states="es")) is None


def test_connections_spread_evenly():
    pool = slots(0, 0, 0)
    for _ in range(7):
        found = least_loaded(pool)
        assert found is not None
        found.load += 1

    assert [slot.load for slot in pool] == [3, 2, 2]
