"""Which slot of a pool takes the next connection."""

from __future__ import annotations

from collections.abc import Container, Iterable

from wstunnel.supervise.slot import Slot

__all__ = ["least_loaded"]

_PREFERENCE = ("running", "waiting")


def least_loaded(slots: Iterable[Slot], avoid: Container[Slot] = ()) -> Slot | None:
    """The slot with the fewest leases, the first of them on a tie; None if all are avoided or stopped.

    A slot whose process is down comes after all that run: it has the fewest leases *because* it fails, and would
    draw every new connection into its backlog.
    """
    candidates = [slot for slot in slots if slot not in avoid and slot.state in _PREFERENCE]
    return min(candidates, key=lambda slot: (_PREFERENCE.index(slot.state), slot.load), default=None)
