"""What came of a scenario."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["Outcome", "spread"]


@dataclass(slots=True)
class Outcome:
    """Figures, and the promises that did not hold.

    broken  promises that hold on any machine
    slow    promises in seconds or per cent: on a machine that has other things to do they say little
    """

    figures: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)

    def tell(self, figure: str) -> None:
        self.figures.append(figure)

    def promise(self, holds: object, otherwise: str) -> None:
        """This has to be so, on every machine."""
        if not holds:
            self.broken.append(otherwise)

    def promise_speed(self, holds: object, otherwise: str) -> None:
        """This has to be so where nothing else runs."""
        if not holds:
            self.slow.append(otherwise)


def spread(seconds: Sequence[float]) -> str:
    """Median, 99th percentile and maximum, in milliseconds."""
    if not seconds:
        return "never"
    ranked = sorted(seconds)
    high = ranked[min(len(ranked) - 1, int(len(ranked) * 0.99))]
    return f"{statistics.median(ranked) * 1e3:.0f}/{high * 1e3:.0f}/{ranked[-1] * 1e3:.0f} ms (median/p99/max)"
