"""When a backend that died may be started again.

Pure: the caller passes the clock. Owned by supervise/slot.py, one instance per slot.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from wstunnel.limits import RestartLimits

__all__ = ["RestartGate"]


@dataclass(slots=True)
class RestartGate:
    """Decides, after each death, how long to wait for the next start."""

    limits: RestartLimits
    _started_at_s: float | None = field(default=None, init=False)
    _next_wait_s: float = field(default=0.0, init=False)

    def started(self, now_s: float) -> None:
        """A process runs since `now_s`."""
        self._started_at_s = now_s

    def died(self, now_s: float) -> float:
        """Seconds to wait before the next start; a start that failed is a death without `started`.

        out     0 after a run of at least `healthy_after_s`, which also forgets earlier short runs; otherwise
                `first_wait_s`, doubling with every further short run up to `max_wait_s`
        """
        ran_for_s = 0.0 if self._started_at_s is None else now_s - self._started_at_s
        is_healthy = self._started_at_s is not None and ran_for_s >= self.limits.healthy_after_s
        self._started_at_s = None
        if is_healthy:
            self._next_wait_s = 0.0
            return 0.0
        self._next_wait_s = min(max(self._next_wait_s * 2, self.limits.first_wait_s), self.limits.max_wait_s)
        return self._next_wait_s
