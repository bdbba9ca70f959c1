"""One connection's claim on a slot. It is compiled, as every tunnel has one: _slots.pyx."""

from __future__ import annotations

from wstunnel._slots import Lease

__all__ = ["Lease"]
