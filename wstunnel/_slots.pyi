"""The typed face of slots and leases; see _slots.pyx."""

from collections.abc import Callable, Collection
from typing import TypeVar

from typing_extensions import disjoint_base

from wstunnel.settings import Address
from wstunnel.supervise.child import ExitStatus
from wstunnel.supervise.slot import Slot

__all__ = ["Lease", "SlotWords", "best_slot"]

_S = TypeVar("_S", bound=SlotWords)

@disjoint_base
class SlotWords:
    disabled_until_s: float
    def __init__(
        self, words: memoryview, loads: memoryview, totals: memoryview, used: memoryview, worker_row: int
    ) -> None: ...
    @property
    def deaths(self) -> int: ...
    @property
    def load(self) -> int: ...

def best_slot(
    slots: tuple[_S, ...], avoid: Collection[_S], now_s: float, most: int, is_strict: bool
) -> tuple[int, _S | None, bool]: ...

@disjoint_base
class Lease:
    @property
    def slot(self) -> Slot: ...
    @property
    def host_index(self) -> int: ...
    def __init__(self, slot: Slot, host_index: int, on_released: Callable[[], None]) -> None: ...
    @property
    def name(self) -> str: ...
    @property
    def address(self) -> Address: ...
    @property
    def where(self) -> str: ...
    def release(self) -> None: ...
    def is_exiting(self) -> bool: ...
    async def exit_status(self) -> ExitStatus | None: ...
