"""What `status` says: one look at the whole service, as values and as JSON.

The keys of the JSON are the names of the fields below, and stay what they are. Times are milliseconds since 1970.
"""

from __future__ import annotations

import types
import typing
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from wstunnel.supervise.board import Board, SlotColumn, SlotState, WorkerColumn, WorkerState, close_column
from wstunnel.supervise.child import ExitStatus
from wstunnel.supervise.place import SlotPlace

__all__ = [
    "Facts",
    "ForkStatus",
    "PoolFacts",
    "PoolStatus",
    "SlotStatus",
    "Snapshot",
    "State",
    "Totals",
    "WorkerStatus",
    "take",
]


State = Literal["starting", "serving", "reloading", "draining", "stopping"]

_CODES = range(1000, 1016)  # the close codes that have a word of their own on the board
_OTHER = "other"


# --- what is told


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Counts over all workers, those that are gone included; `in` is from clients."""

    connections: int
    """Client connections that are open now, tunnels included."""
    tunnels: int
    """Tunnels that are open now."""
    accepted: int
    """Connections accepted, ever; as everything below."""
    opened: int
    """Tunnels opened: handshakes that succeeded."""
    refused: int
    """Handshakes answered with 4xx or 5xx."""
    bytes_in: int
    """Payload."""
    bytes_out: int
    messages_in: int
    messages_out: int
    closed: dict[str, int]
    """Tunnels ended, by close code: `1000` to `1015`, and `other`; codes that never came are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus(Totals):
    """A process that carries traffic, and what it has counted since it was started."""

    row: int
    """Its number among the workers; another one may get it when this one is gone."""
    pid: int
    generation: int
    state: Literal["none", "starting", "serving", "quiet", "leaving"]
    """quiet: it accepts no more and serves its tunnels to their end; leaving: it ends its tunnels."""
    started_ms: int
    heartbeat_age_ms: int | None
    """How long ago its loop was seen to turn; null: not yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotStatus:
    """One address of a pool, with the process behind it."""

    name: str
    address: str
    pid: int | None
    """null: none runs, or it is not ours."""
    state: Literal["none", "idle", "running", "waiting", "retiring", "broken", "stopped"]
    """idle: the first connection starts a process; waiting: for the next start after a death; retiring: it will be
    ended; broken: its processes die as soon as they are started."""
    since_ms: int
    """When the state was entered."""
    load: int
    """Connections of all workers now."""
    total: int
    """Connections of all workers, ever."""
    restarts: int
    """Starts after the first one."""
    deaths: int
    last_exit: str | None
    """How the last process that ended did: `exited with status 1`, `killed by SIGKILL`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatus:
    """A backend: a program that we keep running, or an address that somebody else serves."""

    name: str
    routes: tuple[str, ...]
    backend: str
    """The program with its arguments, or the address."""
    is_spawned: bool
    """Whether the program is ours."""
    is_retired: bool
    """It belongs to an earlier configuration and goes when its tunnels have ended."""
    slots: tuple[SlotStatus, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkStatus:
    """A program that runs once per tunnel, or the scripts of a folder, of which one runs for each request."""

    name: str
    routes: tuple[str, ...]
    running: int
    max_forks: int
    forked: int
    """Processes started, ever."""
    failed: int
    """Starts that failed, ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The whole at one moment."""

    version: str
    pid: int
    """The master's."""
    started_ms: int
    taken_ms: int
    generation: int
    """How often the configuration has been read."""
    state: State
    listeners: tuple[str, ...]
    totals: Totals
    workers: tuple[WorkerStatus, ...]
    pools: tuple[PoolStatus, ...]
    stdio: tuple[ForkStatus, ...]
    cgi: tuple[ForkStatus, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values that `json` can write."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> Snapshot:
        """What `to_json` said, read again; keys that are not known are left out.

        raises  ValueError that names what is missing or of another kind: it is another version's
        """
        snapshot: Snapshot = _read(cls, value, "status")
        return snapshot


# --- where it comes from


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolFacts:
    """What the board does not say of a pool."""

    name: str
    routes: tuple[str, ...]
    backend: str
    is_spawned: bool
    is_retired: bool
    places: tuple[SlotPlace, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the board does not say. `workers` are rows of the board, in the order of the report."""

    version: str
    pid: int
    started_ms: int
    generation: int
    state: State
    listeners: tuple[str, ...]
    workers: tuple[int, ...]
    pools: tuple[PoolFacts, ...]
    stdio: tuple[ForkStatus, ...]
    cgi: tuple[ForkStatus, ...]


def take(board: Board, facts: Facts, now_ms: int) -> Snapshot:
    """One look at the board; its numbers go on changing while it lasts."""
    return Snapshot(
        version=facts.version,
        pid=facts.pid,
        started_ms=facts.started_ms,
        taken_ms=now_ms,
        generation=facts.generation,
        state=facts.state,
        listeners=facts.listeners,
        totals=Totals(**_counts(board.summed())),
        workers=tuple(_worker(board, row, now_ms) for row in facts.workers),
        pools=tuple(_pool(board, pool) for pool in facts.pools),
        stdio=facts.stdio,
        cgi=facts.cgi,
    )


def _counts(words: typing.Sequence[int]) -> dict[str, Any]:
    """A worker's row, or the sum of all, as the fields of `Totals`."""
    closed = {str(code): words[close_column(code)] for code in _CODES}
    closed[_OTHER] = words[close_column(0)]
    names = (field.name for field in fields(Totals) if field.name != "closed")
    return {
        **{name: words[WorkerColumn[name.upper()]] for name in names},
        "closed": {code: count for code, count in closed.items() if count},
    }


def _worker(board: Board, row: int, now_ms: int) -> WorkerStatus:
    words = board.worker(row)
    beat_ms = words[WorkerColumn.HEARTBEAT_MS]
    return WorkerStatus(
        row=row,
        pid=words[WorkerColumn.PID],
        generation=words[WorkerColumn.GENERATION],
        state=WorkerState(words[WorkerColumn.STATE]).name.lower(),  # type: ignore[arg-type]
        started_ms=words[WorkerColumn.STARTED_MS],
        heartbeat_age_ms=max(0, now_ms - beat_ms) if beat_ms else None,
        **_counts(words),
    )


def _pool(board: Board, facts: PoolFacts) -> PoolStatus:
    return PoolStatus(
        name=facts.name,
        routes=facts.routes,
        backend=facts.backend,
        is_spawned=facts.is_spawned,
        is_retired=facts.is_retired,
        slots=tuple(_slot(board, place) for place in facts.places),
    )


def _slot(board: Board, place: SlotPlace) -> SlotStatus:
    words = board.slot(place.row)
    deaths = words[SlotColumn.DEATHS]
    exit_status = ExitStatus.of_word(words[SlotColumn.EXIT]) if words[SlotColumn.EXIT_KNOWN] else ExitStatus()
    return SlotStatus(
        name=place.name,
        address=str(place.address),
        pid=words[SlotColumn.PID] or None,
        state=SlotState(words[SlotColumn.STATE]).name.lower(),  # type: ignore[arg-type]
        since_ms=words[SlotColumn.SINCE_MS],
        load=board.load(place.row),
        total=board.total(place.row),
        restarts=max(0, words[SlotColumn.STARTS] - 1),
        deaths=deaths,
        last_exit=str(exit_status) if deaths else None,
    )


# --- reading it again


def _read(kind: Any, value: object, where: str) -> Any:
    """`value`, which came out of JSON, as a value of that type."""
    origin, inner = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, dict):
        hints = get_type_hints(kind)
        missing = [field.name for field in fields(kind) if field.name not in value]
        if missing:
            raise ValueError(f"{where}: {missing[0]} is missing")
        return kind(
            **{
                field.name: _read(hints[field.name], value[field.name], f"{where}.{field.name}")
                for field in fields(kind)
            }
        )
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_read(inner[0], item, where) for item in value)
    if origin is dict and isinstance(value, dict):
        return {_read(inner[0], key, where): _read(inner[1], item, where) for key, item in value.items()}
    if origin is types.UnionType:
        return None if value is None else _read(inner[0], value, where)
    if (origin is Literal and value in inner) or (isinstance(kind, type) and type(value) is kind):
        return value
    raise ValueError(f"{where}: {value!r:.40} is of another kind")
