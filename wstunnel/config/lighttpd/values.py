"""Values of a lighttpd.conf: strings, numbers and lists, each with its place; what + and += make of two of them."""

from __future__ import annotations

from dataclasses import dataclass

from wstunnel.config.drafts import Place
from wstunnel.config.options import shown
from wstunnel.limits import ConfLimits

__all__ = ["Item", "JoinError", "Merging", "Value", "as_list"]


class JoinError(ValueError):
    """Why values cannot be joined: a sentence for the operator."""


@dataclass(frozen=True, slots=True)
class Value:
    """A value, and where it begins.

    Lists may share their entries: `a := (a, a)`, a hundred times, is small as long as nobody walks through all of it.
    So nobody does, nor hashes a list.
    """

    data: str | int | tuple[Item, ...]
    place: Place

    @property
    def kind(self) -> str:
        """For error texts."""
        match self.data:
            case str():
                return "a string"
            case int():
                return "a number"
            case _:
                return "a list"

    @property
    def shown(self) -> str:
        """What an operator wrote, short and printable."""
        return shown(list(self.data) if isinstance(self.data, tuple) else self.data)


@dataclass(frozen=True, slots=True)
class Item:
    """One entry of a list; with a key it is an entry of a hash. lighttpd knows lists that have both."""

    key: str | None
    value: Value


class Merging:
    """Joins values, within a bound for all that it makes together: three lines that double a value make 8 of it."""

    def __init__(self, limits: ConfLimits) -> None:
        self._limits = limits
        self._left = limits.max_value_bytes

    def join(self, first: Value, second: Value) -> Value:
        """`first + second`, at the place of the first. A number beside a string becomes its digits.

        raises  JoinError
        """
        match first.data, second.data:
            case int(a), int(b):
                if a + b > self._limits.max_number:
                    raise JoinError("the sum is too large a number")
                return Value(a + b, first.place)
            case (str() | int() as a, str() | int() as b):
                text = f"{a}{b}"
                self._charge(len(text))
                return Value(text, first.place)
            case (tuple() as a, tuple() as b):
                return Value(self._joined(a, b), first.place)
        raise JoinError(f"{first.kind} and {second.kind} cannot be joined")

    def _joined(self, a: tuple[Item, ...], b: tuple[Item, ...]) -> tuple[Item, ...]:
        self._charge(len(a) + len(b))
        known = {item.key: item.value.data for item in a if item.key is not None}
        fresh = []
        for item in b:
            if item.key is None or item.key not in known:
                fresh.append(item)
                if item.key is not None:
                    known[item.key] = item.value.data
            elif isinstance(item.value.data, tuple) or known[item.key] != item.value.data:
                raise JoinError(f"the key {shown(item.key)} is in both lists, with different values")
        return (*a, *fresh)

    def _charge(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise JoinError(f"values grow beyond {self._limits.max_value_bytes} bytes")


def as_list(items: list[Item]) -> tuple[Item, ...]:
    """The entries of a list as they are written.

    raises  JoinError for a key that stands there twice
    """
    keys: set[str] = set()
    for item in items:
        if item.key is not None:
            if item.key in keys:
                raise JoinError(f"the key {shown(item.key)} stands there twice")
            keys.add(item.key)
    return tuple(items)
