"""Where a slot is: what supervising tells serving, once, when a worker starts."""

from __future__ import annotations

from dataclasses import dataclass

from wstunnel.settings import Address

__all__ = ["SlotPlace"]


@dataclass(frozen=True, slots=True)
class SlotPlace:
    """A slot's name for the log, its address, and its row on the board, where everything else about it stands."""

    name: str
    address: Address
    row: int
