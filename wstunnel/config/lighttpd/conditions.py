"""What a block of a lighttpd.conf asks of a request, and what follows from one answer for another.

lighttpd asks all blocks and lets the last that holds decide about each option; routes are tried in turn, and the first
one wins. `Cells` cuts all requests into parts in each of which the same blocks hold, so that nothing is left to order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from wstunnel.settings import Condition, ConditionField

__all__ = ["Cell", "Claim", "as_condition", "decided", "negated", "simplified", "split"]

_REGEX_SIGNS = frozenset("\\^$.|?*+()[]{}")


@dataclass(frozen=True, slots=True)
class Claim:
    """A comparison, and whether it is true; `!=` is an untrue `==`."""

    field: ConditionField
    operator: str
    """`==`, `=^`, `=$` or `=~`"""
    value: str
    holds: bool = True


def negated(claim: Claim) -> Claim:
    return replace(claim, holds=not claim.holds)


def simplified(claim: Claim) -> Claim:
    """The same without a regular expression, where that only says how the text begins, ends, or is: `^/ws/`."""
    if claim.operator != "=~":
        return claim
    text = claim.value
    begins, ends = text.startswith("^"), text.endswith("$")
    core = text[begins : len(text) - ends]
    if ends and not begins and core.startswith("\\."):
        plain = core[1:]
        return claim if _REGEX_SIGNS.intersection(plain[1:]) else replace(claim, operator="=$", value=plain)
    if not (begins or ends) or _REGEX_SIGNS.intersection(core):
        return claim
    return replace(claim, operator="==" if begins and ends else "=^" if begins else "=$", value=core)


def as_condition(claim: Claim) -> Condition:
    """The condition of a route. There is no operator for "does not begin with", but there are regular expressions."""
    if claim.holds:
        return Condition(claim.field, claim.operator, claim.value)  # type: ignore[arg-type]  # the four of Claim
    match claim.operator:
        case "==":
            return Condition(claim.field, "!=", claim.value)
        case "=^":
            return Condition(claim.field, "!~", rf"\A{re.escape(claim.value)}")
        case "=$":
            return Condition(claim.field, "!~", rf"{re.escape(claim.value)}\Z")
        case _:
            return Condition(claim.field, "!~", claim.value)


@dataclass(frozen=True, slots=True)
class Cell:
    """Requests of which some claims are true, and the numbers of the blocks that hold for them."""

    claims: tuple[Claim, ...] = ()
    blocks: tuple[int, ...] = field(default=())

    def within(self, claims: tuple[Claim, ...], block: int | None) -> Cell | None:
        """The part of it in which further claims are true; None: there is no such part."""
        mine = list(self.claims)
        for claim in claims:
            known = [decided(other, claim) for other in mine]
            if False in known:
                return None
            if True not in known:
                mine = [other for other in mine if decided(claim, other) is not True]
                mine.append(claim)
        return Cell(tuple(mine), self.blocks if block is None else (*self.blocks, block))

    def divided(self, number: int, when: tuple[Claim, ...]) -> Iterator[Cell]:
        """Its parts with and without a block that holds when all of `when` is true."""
        inside = self.within(when, number)
        if inside is not None:
            yield inside
        for length, claim in enumerate(when):
            outside = self.within((*when[:length], negated(claim)), None)
            if outside is not None:
                yield outside


def split(blocks: list[tuple[int, tuple[Claim, ...]]], most: int) -> list[Cell] | None:
    """All requests, in parts that do not overlap; None if there would be more than `most`.

    in      blocks  each with its number and all that has to be true for it
    """
    cells = [Cell()]
    for number, when in blocks:
        cells = [part for cell in cells for part in cell.divided(number, when)]
        if len(cells) > most:
            return None
    return cells


def decided(known: Claim, asked: Claim) -> bool | None:
    """Is `asked` true where `known` is? None: it may be or not."""
    if known.field != asked.field:
        return None
    is_so = _decided_plainly(known, asked.operator, asked.value)
    return is_so if is_so is None or asked.holds else not is_so


def _decided_plainly(known: Claim, operator: str, value: str) -> bool | None:
    if (known.operator, known.value) == (operator, value):
        return known.holds
    if known.field == "socket":
        return _other_socket(known, operator, value)
    if "=~" in {known.operator, operator} or (known.field == "host" and (":" in known.value) != (":" in value)):
        return None  # nobody can tell, or one looks at the port and the other does not
    if known.operator == "==":
        return _fits(operator, known.value, value) if known.holds else None
    if operator == "==":
        return False if _fits(known.operator, value, known.value) != known.holds else None
    return _other_part(known, value) if operator == known.operator else None


def _other_part(known: Claim, value: str) -> bool | None:
    """Does the text begin (or end) with `value`, of which is known whether it begins (or ends) with something else?"""
    is_part, has_part = _fits(known.operator, known.value, value), _fits(known.operator, value, known.value)
    if known.holds:
        return True if is_part else None if has_part else False
    return False if has_part else None


def _fits(operator: str, text: str, part: str) -> bool:
    if operator == "==":
        return text == part
    return text.startswith(part) if operator == "=^" else text.endswith(part)


def _other_socket(known: Claim, operator: str, value: str) -> bool | None:
    """`:80` may be the same listener as `127.0.0.1:80`, but not as `:81`."""
    if not known.holds or known.operator != "==" or operator != "==":
        return None
    mine, other = known.value.rpartition(":"), value.rpartition(":")
    return False if mine[2] != other[2] or (mine[0] and other[0]) else None
