"""What master and worker say to each other: one JSON object per packet, `"is"` names the message.

A worker may outlive the master image that started it (SIGUSR2), so the set grows by new messages and by new fields
with defaults; what a reader does not know it ignores.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields

__all__ = [
    "Cut",
    "Death",
    "Exited",
    "Fork",
    "Forked",
    "Leave",
    "Message",
    "Quiet",
    "Ready",
    "Release",
    "Renew",
    "Reopen",
    "Unforked",
    "decode",
    "encode",
]


@dataclass(frozen=True, slots=True)
class Ready:
    """Worker: it serves from now on."""


@dataclass(frozen=True, slots=True)
class Quiet:
    """Master: accept no more, serve what there is to its end, then exit."""


@dataclass(frozen=True, slots=True)
class Leave:
    """Master: accept no more, end every tunnel with CLOSE `code` within that time, then exit."""

    code: int
    within_s: float


@dataclass(frozen=True, slots=True)
class Cut:
    """Master: exit now; tunnels get CLOSE `code` if they can take it at once."""

    code: int


@dataclass(frozen=True, slots=True)
class Reopen:
    """Master: the log file has a new name; open it again."""


@dataclass(frozen=True, slots=True)
class Renew:
    """Master, with one descriptor: new connections get the certificates that stand behind it (`Material.read`)."""


@dataclass(frozen=True, slots=True)
class Death:
    """Master: the process of the slot with this row has ended; how stands on the board."""

    row: int


@dataclass(frozen=True, slots=True)
class Fork:
    """Worker, with one descriptor: run the program of stdio route `index`, or the script of a cgi route, by its path
    under the route's folder; the descriptor is its stdin and stdout."""

    request: int
    index: int
    environment: dict[str, str]
    script: str = ""


@dataclass(frozen=True, slots=True)
class Forked:
    """Master: the program of `request` runs."""

    request: int
    pid: int


@dataclass(frozen=True, slots=True)
class Unforked:
    """Master: it does not; the client is told `status`, the log `why`."""

    request: int
    status: int
    why: str


@dataclass(frozen=True, slots=True)
class Exited:
    """Master: the program of `request` has ended; `status` is ExitStatus.word, None: nobody could tell; `last_words`:
    the last line of its stderr."""

    request: int
    status: int | None
    last_words: str = ""


@dataclass(frozen=True, slots=True)
class Release:
    """Worker: the tunnel of `request` is over; end its program."""

    request: int


Message = Ready | Quiet | Leave | Cut | Reopen | Renew | Death | Fork | Forked | Unforked | Exited | Release

_KINDS: dict[str, type[Message]] = {
    kind.__name__.lower(): kind
    for kind in (Ready, Quiet, Leave, Cut, Reopen, Renew, Death, Fork, Forked, Unforked, Exited, Release)
}


def encode(message: Message) -> bytes:
    """One packet."""
    return json.dumps({"is": type(message).__name__.lower(), **asdict(message)}).encode("ascii")


def decode(packet: bytes) -> Message | None:
    """The message of a packet; None for one that this version does not know.

    raises  ValueError on what is no message at all: the other side is not who we think it is
    """
    try:
        said = json.loads(packet)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(said, dict) or not isinstance(said.get("is"), str):
        raise ValueError('a message is a JSON object with a name in "is"')
    kind = _KINDS.get(said.pop("is"))
    if kind is None:
        return None
    known = {field.name for field in fields(kind)}
    try:
        return kind(**{name: value for name, value in said.items() if name in known})
    except TypeError as error:
        raise ValueError(f"{kind.__name__}: {error}") from error
