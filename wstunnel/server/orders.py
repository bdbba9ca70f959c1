"""What a worker process is told before it starts."""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass, field

from wstunnel.server.certificates import Material
from wstunnel.server.service import Places
from wstunnel.settings import Address, Front, Settings

__all__ = ["ListenerOrder", "Orders"]


@dataclass(frozen=True, slots=True)
class ListenerOrder:
    """A listening socket that the worker inherits."""

    fd: int
    address: Address
    is_shared: bool
    front: Front = field(default_factory=Front)


@dataclass(frozen=True, slots=True)
class Orders:
    """All that a worker is told before it starts. Written and read by the same version: a pickle will do."""

    settings: Settings
    places: Places
    listeners: tuple[ListenerOrder, ...]
    board_fd: int
    channel_fd: int
    row: int
    generation: int
    material: Material = field(default_factory=Material)

    def write(self) -> int:
        """A descriptor to read them from, at its start."""
        fd = os.memfd_create("wstunnel-orders", os.MFD_CLOEXEC)
        with open(fd, "wb", closefd=False) as file:
            pickle.dump(self, file)
        os.lseek(fd, 0, os.SEEK_SET)
        return fd

    @classmethod
    def read(cls, fd: int) -> Orders:
        """The orders behind a descriptor, which is closed."""
        with open(fd, "rb") as file:
            orders = pickle.load(file)
        if not isinstance(orders, cls):
            raise TypeError("these are no orders of a worker")
        return orders
