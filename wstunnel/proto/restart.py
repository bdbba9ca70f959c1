"""When a backend that died may be started again.

Pure: the caller passes the clock. Owned by supervise/spawned.py, one instance per slot.

    closed      its runs are healthy: it is started again at once
    looping     its last run was short: it is started again after a wait, which doubles
    open        too many runs were short: it is left alone for a while
    half-open   one more is tried; a healthy run closes the circuit, a short one opens it again
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from wstunnel.limits import RestartLimits

__all__ = ["Circuit", "RestartGate"]


class Circuit(Enum):
    CLOSED = "closed"
    LOOPING = "looping"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(slots=True)
class RestartGate:
    """Decides, after each death, how long to wait for the next start.

    bound   remembers at most `max_deaths` moments
    source  robustness goal 12
    """

    limits: RestartLimits
    circuit: Circuit = field(default=Circuit.CLOSED, init=False)
    _started_at_s: float | None = field(default=None, init=False)
    _next_wait_s: float = field(default=0.0, init=False)
    _short_at_s: list[float] = field(default_factory=list, init=False)

    def started(self, now_s: float) -> None:
        """A process runs since `now_s`."""
        self._started_at_s = now_s
        if self.circuit is Circuit.OPEN:
            self.circuit = Circuit.HALF_OPEN

    def settle(self, now_s: float) -> float:
        """Seconds that the run under way still needs to be a healthy one; at 0 what was before it is forgotten."""
        if self._started_at_s is None:
            return self.limits.healthy_after_s
        left_s = max(self._started_at_s + self.limits.healthy_after_s - now_s, 0.0)
        if not left_s:
            self._forget()
        return left_s

    def ended(self, now_s: float) -> None:
        """The run was ended on purpose: however short it was, that says nothing about the program."""
        self.settle(now_s)
        self._started_at_s = None
        if self.circuit is Circuit.HALF_OPEN:
            self.circuit = Circuit.OPEN

    def died(self, now_s: float) -> float:
        """Seconds to wait before the next start; a start that failed is a death without `started`.

        out     0 after a run of at least `healthy_after_s`, which also forgets earlier short runs; otherwise
                `first_wait_s`, doubling with every further short run up to `max_wait_s`; `probe_after_s` once
                `max_deaths` runs within `window_s` were short, until one is healthy
        """
        is_healthy = self._started_at_s is not None and not self.settle(now_s)
        self._started_at_s = None
        if is_healthy:
            return 0.0
        if self.circuit in {Circuit.OPEN, Circuit.HALF_OPEN}:
            return self.give_up()
        recent = [at_s for at_s in self._short_at_s if at_s > now_s - self.limits.window_s]
        self._short_at_s = [*recent, now_s]
        if len(self._short_at_s) >= self.limits.max_deaths:
            return self.give_up()
        self.circuit = Circuit.LOOPING
        self._next_wait_s = min(max(self._next_wait_s * 2, self.limits.first_wait_s), self.limits.max_wait_s)
        return self._next_wait_s

    def give_up(self) -> float:
        """Opens the circuit at once, for a program that cannot even be executed; the wait as `died` says it."""
        self.circuit = Circuit.OPEN
        return self.limits.probe_after_s

    def _forget(self) -> None:
        self.circuit = Circuit.CLOSED
        self._next_wait_s = 0.0
        self._short_at_s.clear()
