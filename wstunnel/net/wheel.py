"""The timer wheel, and what may stand in it. It is compiled, as every connection comes through it: _wheel.pyx."""

from __future__ import annotations

from typing import Protocol

from wstunnel._wheel import TimerWheel

__all__ = ["Timed", "TimerWheel"]


class Timed(Protocol):
    def due(self, now_s: float) -> float | None:
        """Act on a deadline that has passed, if it has; the next time to be asked, or None: never again."""
