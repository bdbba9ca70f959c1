"""What `status` shows to a person: a table of one look, with rates from the look before.

Plain ASCII but for the names, so that any terminal can show it. No line is wider than it is told.
"""

from __future__ import annotations

import json
import os
import time
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from wstunnel.errors import StartError
from wstunnel.limits import MasterLimits
from wstunnel.server.status import ForkStatus, PoolStatus, SlotStatus, Snapshot, Totals, WorkerStatus

__all__ = ["as_json", "look", "once", "render", "watch"]

Ask = Callable[[], dict[str, Any]]
"""Asks the master for `status` and returns its answer: `{"ok": true, "status": ...}`, or `ok` false and an `error`."""

_DEFAULTS = MasterLimits()
_GAP = "  "
_NONE = "-"
_CUT = "..."
_UNITS = ("", "k", "M", "G", "T", "P", "E")
_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_PLAIN_COUNT = 1_000_000  # counts below are written out
_WHOLE_FROM = 99.95  # what would be rounded to 100.0 or more is shown without tenths
_RATE_CHARS, _BYTES_CHARS = len("99.9k"), len("99.9 KiB")
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400
_FOLD_FROM = 3  # so many idle slots in a row are one line

_BOLD, _DIM, _RED, _GREEN, _YELLOW = "1", "2", "31", "32", "33"
_STYLES = {
    "serving": _GREEN,
    "running": _GREEN,
    "idle": _DIM,
    "quiet": _DIM,
    "stopped": _DIM,
    "broken": _RED,
}
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
_HIDE_CURSOR, _SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


# --- asking


def look(ask: Ask) -> Snapshot:
    """One snapshot.

    raises  StartError with what the master says instead, or when it is of another version; and what `ask` raises
    """
    try:
        return Snapshot.from_json(_status(ask))
    except ValueError as error:
        raise StartError(f"the wstunnel that answered is of another version: {error}") from error


def once(
    ask: Ask,
    *,
    width: int,
    colour: bool = False,
    limits: MasterLimits = _DEFAULTS,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """The table, with the rates between two looks; ends with a line end."""
    before = look(ask)
    sleep(limits.rates_s)
    return render(look(ask), before, width=width, colour=colour, limits=limits)


def as_json(ask: Ask) -> str:
    """One snapshot for a machine, just as the master has said it; ends with a line end."""
    return json.dumps(_status(ask), indent=2) + "\n"


def watch(
    ask: Ask,
    *,
    write: Callable[[str], object],
    size: Callable[[], os.terminal_size],
    colour: bool = False,
    limits: MasterLimits = _DEFAULTS,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Draw the table again and again, in place, until Ctrl-C; the exit code.

    in      write   puts a whole page on the terminal at once, so that it does not flicker
    out     0 after Ctrl-C, 1 when the master is gone: the last page stays, and below it why
    """
    before: Snapshot | None = None
    write(_HIDE_CURSOR + _HOME + _CLEAR_BELOW)
    try:
        while True:
            now = look(ask)
            columns, lines = size()
            write(_page(render(now, before, width=columns, colour=colour, limits=limits), lines))
            sleep(limits.watch_s if before else limits.rates_s)
            before = now
    except KeyboardInterrupt:
        write("\n")  # behind the ^C that the terminal shows
        return 0
    except StartError as error:
        write(f"wstunnel: {error}\n")
        return 1
    finally:
        write(_SHOW_CURSOR)


def _status(ask: Ask) -> dict[str, Any]:
    answer = ask()
    status = answer.get("status")
    if not isinstance(status, dict):
        raise StartError(str(answer.get("error", "the wstunnel that answered does not say how it is")))
    return status


def _page(table: str, height: int) -> str:
    """The table drawn over the one before; what does not fit is counted in the last line."""
    lines = table.splitlines()
    room = max(1, height - 1)  # the cursor stands in the last one
    if len(lines) > room:
        lines[room - 1 :] = [f"{_CUT} and {len(lines) - room + 1} more lines"]
    return _HOME + "".join(f"{line}{_CLEAR_LINE}\n" for line in lines) + _CLEAR_BELOW


# --- the table


def render(
    now: Snapshot, before: Snapshot | None, *, width: int, colour: bool = False, limits: MasterLimits = _DEFAULTS
) -> str:
    """The table as lines with their ends.

    in      before  an earlier look at the same service, for the rates; without it they are `-`
            width   columns of the terminal; no line is longer
            colour  whether states and headings are painted (SGR)
    """
    page = _Page(width, colour)
    rates = _Rates(now, before)
    _headline(page, now)
    _sums(page, now, rates)
    if now.workers:
        page.blank()
        _workers(page, now, rates, limits)
    if now.pools:
        page.blank()
        _pools(page, now)
    for title, programs in (("PER TUNNEL", now.stdio), ("PER REQUEST", now.cgi)):
        if programs:
            page.blank()
            _forks(page, title, programs)
    return page.text()


def _headline(page: _Page, now: Snapshot) -> None:
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(now.started_ms / 1000))
    parts = [
        f"wstunnel {now.version}",
        f"pid {now.pid}",
        now.state,
        f"up {_span(now.taken_ms - now.started_ms)} since {since}",
    ]
    if now.generation > 1:
        parts.append(f"generation {now.generation}")
    page.flow(parts, _BOLD)
    page.flow(["listening on", *now.listeners] if now.listeners else ["not listening any more"])


def _sums(page: _Page, now: Snapshot, rates: _Rates) -> None:
    totals, per_s = now.totals, rates.of(now.totals)
    page.table(
        _Column("", ("tunnels", "in", "out"), is_right=False),
        _Column(
            "",
            (
                f"{_count(totals.tunnels)} open",
                f"{_rate(per_s('messages_in'))} msg/s",
                f"{_rate(per_s('messages_out'))} msg/s",
            ),
            room=_RATE_CHARS + len(" msg/s"),
        ),
        _Column(
            "",
            (
                f"{_rate(per_s('opened'))} new/s",
                f"{_bytes(per_s('bytes_in'))}/s",
                f"{_bytes(per_s('bytes_out'))}/s",
            ),
            room=_BYTES_CHARS + len("/s"),
        ),
        _Column(
            "",
            (
                f"{_count(totals.opened)} ever",
                f"{_count(totals.messages_in)} messages",
                f"{_count(totals.messages_out)} messages",
            ),
            drop=1,
        ),
        _Column("", (f"{_count(totals.refused)} refused", _bytes(totals.bytes_in), _bytes(totals.bytes_out)), drop=2),
    )
    if totals.closed:
        page.flow(["closed", *(f"{code}: {_count(count)}" for code, count in totals.closed.items())])


def _workers(page: _Page, now: Snapshot, rates: _Rates, limits: MasterLimits) -> None:
    workers = now.workers
    paces = [rates.of(worker) for worker in workers]
    page.table(
        _Column("WORKER", [str(worker.row) for worker in workers]),
        _Column("PID", [str(worker.pid) for worker in workers]),
        _Column("STATE", [worker.state for worker in workers], is_right=False, is_state=True),
        _Column("GEN", [str(worker.generation) for worker in workers], drop=5),
        _Column("UP", [_since(worker.started_ms, now) for worker in workers], drop=2),
        _Column("CONNS", [_count(worker.connections) for worker in workers], drop=4),
        _Column("TUNNELS", [_count(worker.tunnels) for worker in workers]),
        _Column("NEW/S", [_rate(per_s("opened")) for per_s in paces], drop=1, room=_RATE_CHARS),
        _Column("REFUSED", [_count(worker.refused) for worker in workers], drop=3),
        _Column("MSG/S", [_rate(per_s("messages_in", "messages_out")) for per_s in paces], room=_RATE_CHARS),
        _Column("IN/S", [_bytes(per_s("bytes_in")) for per_s in paces], room=_BYTES_CHARS),
        _Column("OUT/S", [_bytes(per_s("bytes_out")) for per_s in paces], room=_BYTES_CHARS),
    )
    for worker in workers:
        age_ms = worker.heartbeat_age_ms
        if age_ms is not None and age_ms > limits.stuck_after_s * 1000:
            page.line((f"worker {worker.row} (pid {worker.pid}) has not moved for {_span(age_ms)}", _RED))


def _pools(page: _Page, now: Snapshot) -> None:
    rows: list[SlotStatus | _Heading] = []
    for pool in now.pools:
        rows.append(_heading(pool))
        for is_idle, group in groupby(pool.slots, _is_unused):
            slots = list(group)
            if is_idle and len(slots) >= _FOLD_FROM:
                rows.append((f"  {len(slots)} idle: ", f"{slots[0].name} to {slots[-1].name}"))
            else:
                rows += slots
    slots = [row for row in rows if isinstance(row, SlotStatus)]
    page.table(
        _Column("SLOT", [f"  {slot.name}" for slot in slots], is_right=False, least=12),
        _Column("PID", [_NONE if slot.pid is None else str(slot.pid) for slot in slots]),
        _Column("STATE", [slot.state for slot in slots], is_right=False, is_state=True),
        _Column("FOR", [_since(slot.since_ms, now) for slot in slots], drop=1),
        _Column("LOAD", [_count(slot.load) for slot in slots]),
        _Column("TOTAL", [_count(slot.total) for slot in slots], drop=3),
        _Column("RESTARTS", [_count(slot.restarts) for slot in slots]),
        _Column("LAST EXIT", [_exit(slot) for slot in slots], is_right=False, drop=2),
        headings=[None if isinstance(row, SlotStatus) else row for row in rows],
    )


def _heading(pool: PoolStatus) -> _Heading:
    gone = "  (of an earlier configuration)" if pool.is_retired else ""
    return f"{pool.name}{gone}  ", f"{' '.join(pool.routes)} -> {pool.backend}"


def _exit(slot: SlotStatus) -> str:
    """How the last process ended, without the words that go without saying."""
    return (slot.last_exit or "").removeprefix("killed by ").removeprefix("exited with ")


def _is_unused(slot: SlotStatus) -> bool:
    return slot.state == "idle" and slot.load == 0


def _forks(page: _Page, title: str, programs: Sequence[ForkStatus]) -> None:
    page.table(
        _Column(title, [program.name for program in programs], is_right=False, least=len(title)),
        _Column("ROUTES", [" ".join(program.routes) for program in programs], is_right=False, least=6),
        _Column("RUNNING", [_count(program.running) for program in programs]),
        _Column("MAX-FORKS", [_count(program.max_forks) for program in programs], drop=1),
        _Column("FORKED", [_count(program.forked) for program in programs]),
        _Column("FAILED", [_count(program.failed) for program in programs]),
    )


# --- rates


class _Rates:
    """What has changed per second between two looks; nothing if they are not of the same run."""

    def __init__(self, now: Snapshot, before: Snapshot | None) -> None:
        self._elapsed_s = 0.0
        self._earlier: dict[tuple[int, int], Totals] = {}
        if before is not None and (now.pid, now.started_ms) == (before.pid, before.started_ms):
            self._elapsed_s = (now.taken_ms - before.taken_ms) / 1000
            self._earlier = {_key(totals): totals for totals in (before.totals, *before.workers)}

    def of(self, now: Totals) -> Callable[..., float | None]:
        """A function from the names of counters to their sum per second, None if there is no telling."""
        before = self._earlier.get(_key(now))

        def per_s(*names: str) -> float | None:
            if before is None or self._elapsed_s <= 0:
                return None
            gone_by: int = sum(getattr(now, name) - getattr(before, name) for name in names)
            return max(0, gone_by) / self._elapsed_s

        return per_s


def _key(totals: Totals) -> tuple[int, int]:
    """Which process counted: a row is given again to the worker that comes after."""
    return (totals.row, totals.pid) if isinstance(totals, WorkerStatus) else (0, 0)


# --- lines

_Heading = tuple[str, str]
"""A line on its own in a table; the second part is shortened where the two do not fit."""


@dataclass(slots=True)
class _Column:
    """A column of a table.

    drop    the highest goes first where there is no room; 0 never goes
    least   it may be shortened to this width, if it is not 0
    room    it is at least so wide, so that what changes all the time does not move the columns beside it
    """

    title: str
    cells: Sequence[str]
    is_right: bool = True
    is_state: bool = False
    drop: int = 0
    least: int = 0
    room: int = 0

    def __post_init__(self) -> None:
        self.cells = [_plain(cell) for cell in self.cells]

    @property
    def width(self) -> int:
        return max(len(self.title), self.room, *map(len, self.cells))

    def cut(self, width: int) -> None:
        self.cells = [_shorten(cell, width) for cell in self.cells]

    def fit(self, cell: str, width: int) -> str:
        return cell.rjust(width) if self.is_right else cell.ljust(width)


class _Page:
    """Lines that end at the edge of the terminal."""

    def __init__(self, width: int, colour: bool) -> None:
        self._width, self._colour = max(1, width), colour
        self._lines: list[str] = []

    def text(self) -> str:
        return "".join(f"{line}\n" for line in self._lines)

    def blank(self) -> None:
        self._lines.append("")

    def line(self, *pieces: tuple[str, str]) -> None:
        """Pieces of text, each with its style ("": none), cut at the edge."""
        room = self._width
        line = ""
        for text, style in pieces:
            shown = text[:room]
            room -= len(shown)
            line += f"\x1b[{style}m{shown}\x1b[0m" if self._colour and style and shown.strip() else shown
        self._lines.append(line.rstrip())

    def flow(self, parts: Sequence[str], style: str = "") -> None:
        """Parts beside each other, in as many lines as they need; each that follows is indented."""
        line = ""
        for part in map(_plain, parts):
            part = _shorten(part, self._width - len(_GAP))
            longer = f"{line}{_GAP}{part}" if line else part
            if line.strip() and len(longer) > self._width:
                self.line((line, style))
                longer = f"{_GAP}{part}"
            line = longer
        self.line((line, style))

    def table(self, *columns: _Column, headings: Sequence[_Heading | None] = ()) -> None:
        """Rows under titles, if there are any. A heading stands on its own before a row; None is the next row."""
        shown = self._fitting(list(columns))
        widths = [column.width for column in shown]
        if any(column.title for column in shown):
            titles = (column.fit(column.title, width) for column, width in zip(shown, widths, strict=True))
            self.line((_GAP.join(titles), _BOLD))
        rows = iter(zip(*(column.cells for column in shown), strict=True))
        for heading in headings or (None,) * len(shown[0].cells):
            if heading is not None:
                name, rest = map(_plain, heading)
                name = _shorten(name, self._width)
                self.line((name, _BOLD), (_shorten(rest, self._width - len(name)), ""))
                continue
            pieces: list[tuple[str, str]] = []
            for column, cell, width in zip(shown, next(rows), widths, strict=True):
                style = _STYLES.get(cell, _YELLOW) if column.is_state else ""
                pieces += [(_GAP if pieces else "", ""), (column.fit(cell, width), style)]
            self.line(*pieces)

    def _fitting(self, columns: list[_Column]) -> list[_Column]:
        """The columns that there is room for, the elastic ones shortened as far as need be."""
        while (over := self._over(columns)) > 0:
            elastic = [column for column in columns if column.least]
            spare = sum(max(0, column.width - column.least) for column in elastic)
            if spare >= over:
                for column in reversed(elastic):
                    column.cut(max(column.least, column.width - max(0, self._over(columns))))
                break
            least_wanted = max(columns, key=lambda column: column.drop)
            if not least_wanted.drop:
                break
            columns.remove(least_wanted)
        return columns

    def _over(self, columns: Sequence[_Column]) -> int:
        return sum(column.width for column in columns) + len(_GAP) * (len(columns) - 1) - self._width


def _plain(text: str) -> str:
    """The text with a ? for whatever would take another place than one column."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if _is_one_column(char) else "?" for char in text)


def _is_one_column(char: str) -> bool:
    is_wide = unicodedata.east_asian_width(char) in {"F", "W"}
    return char.isprintable() and not is_wide and not unicodedata.combining(char)


def _shorten(text: str, width: int) -> str:
    """The text with its middle left out, where it is longer than that."""
    if len(text) <= width:
        return text
    kept = width - len(_CUT)
    if kept < len(_CUT):
        return text[: max(0, width)]
    tail = kept // 2
    return text[: kept - tail] + _CUT + text[len(text) - tail :]


# --- numbers


def _since(then_ms: int, now: Snapshot) -> str:
    return _span(now.taken_ms - then_ms) if then_ms else _NONE


def _span(span_ms: int) -> str:
    """A length of time in its two largest units: `3d 4h`, `12m 5s`, `7s`."""
    seconds = max(0, span_ms) // 1000
    if seconds >= _DAY_S:
        return f"{seconds // _DAY_S}d {seconds % _DAY_S // _HOUR_S}h"
    if seconds >= _HOUR_S:
        return f"{seconds // _HOUR_S}h {seconds % _HOUR_S // _MINUTE_S}m"
    if seconds >= _MINUTE_S:
        return f"{seconds // _MINUTE_S}m {seconds % _MINUTE_S}s"
    return f"{seconds}s"


def _count(number: int) -> str:
    return f"{number:,}" if number < _PLAIN_COUNT else _scaled(number, 1000, _UNITS)


def _rate(per_s: float | None) -> str:
    return _NONE if per_s is None else _scaled(per_s, 1000, _UNITS)


def _bytes(number: float | None) -> str:
    return _NONE if number is None else _scaled(number, 1024, tuple(f" {unit}" for unit in _BYTE_UNITS))


def _scaled(number: float, step: int, units: Sequence[str]) -> str:
    """Three digits or so, and the unit that makes them so."""
    left = list(units)
    while round(number) >= step and len(left) > 1:
        number /= step
        left.pop(0)
    is_scaled = len(left) < len(units)
    has_tenths = number < _WHOLE_FROM and (is_scaled or number != int(number))
    digits = f"{number:.1f}" if has_tenths else f"{number:.0f}"
    return digits + left[0]
