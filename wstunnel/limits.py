"""Every bound in one place: bytes, items, seconds, processes.

Code takes its bounds from here, so that an operator (and a reviewer) can see at one glance what a
peer, a backend or a mistake may cost. Options that operators change live in `settings.py` and take
their defaults from here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = [
    "AcceptLimits",
    "FileLimits",
    "HeadLimits",
    "Limits",
    "LogLimits",
    "OptionLimits",
    "RelayLimits",
    "RestartLimits",
    "SpawnLimits",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptLimits:
    """How connections are let in (robustness goals 1-3: budget, EMFILE, fairness)."""

    per_turn: int = 16
    """Connections accepted per listener and wake-up, so that live tunnels keep their turn."""
    reserved_fds: int = 64
    """Descriptors kept back for listeners, logs, pools and files being served."""
    fds_per_connection: int = 2
    """A tunnel holds its client and its backend."""
    first_pause_s: float = 0.1
    """First pause after accept ran out of descriptors or memory; doubles up to `max_pause_s`."""
    max_pause_s: float = 1.0
    log_every_s: float = 10.0
    """At most one log line about missing descriptors in this time."""
    listen_backlog: int = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLimits:
    """What one HTTP/1 connection may cost outside a tunnel."""

    max_head_bytes: int = 16 * 1024
    max_fields: int = 100
    head_timeout_s: float = 10.0
    """From accept (or the first byte of a later request) to the last byte of the head."""
    keep_alive_s: float = 30.0
    """An idle connection between two plain requests is closed after this time."""
    write_high_bytes: int = 64 * 1024
    """A response waits for its client once this much of it is not yet taken ..."""
    write_low_bytes: int = 16 * 1024
    """... and goes on below this."""
    write_stall_s: float = 60.0
    """A client that takes nothing of its response for this time (twice at most) is dropped."""
    linger_s: float = 2.0
    """From our last byte to the end of the connection, while what the client still says is thrown away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayLimits:
    """What one tunnel may hold. Sizes that the compiled code also needs stand in `_relay.pxd`."""

    read_bytes: int = 64 * 1024
    """One read, and so the most that is ever held per direction."""
    turn_bytes: int = 256 * 1024
    """The most that one leg may move per wake-up before the others have their turn."""
    tick_s: float = 0.1
    """Grain of the timer wheel: no timeout is more exact than this."""
    drain_s: float = 10.0
    """When the server goes away: tunnels that have not ended by themselves in this time are cut."""
    look_s: float = 0.5
    """An ending tunnel is looked at this often, or oftener where close-timeout is short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartLimits:
    """When a backend that died is started again."""

    healthy_after_s: float = 1.0
    """A run of at least this length is healthy: the next start is immediate."""
    first_wait_s: float = 0.1
    max_wait_s: float = 30.0
    """Waits double from the first to this one while runs stay short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpawnLimits:
    """What one backend process may cost."""

    kill_timeout_s: float = 5.0
    """From the kill signal to SIGKILL."""
    log_line_bytes: int = 8 * 1024
    """A longer stderr line is cut into pieces of this size."""
    log_read_bytes: int = 16 * 1024
    """stderr read per wake-up: a program that floods its log waits, not the tunnels."""
    group_poll_s: float = 0.02
    """While stopping: how often to look whether the children of a dead program are gone."""
    listen_backlog: int = 4096
    exit_wait_s: float = 1.0
    """How long a tunnel whose backend is just exiting waits for the exit status that decides its close code."""
    retry_after_s: int = 1
    """`Retry-After` of a 503."""
    max_procs: int = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class FileLimits:
    """How a static file is sent."""

    chunk_bytes: int = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLimits:
    """What peers may put into a log line."""

    safe_chars: int = 64
    """Longest quotation of a peer's bytes in an error text."""
    path_chars: int = 512
    """Longest request path in an access line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionLimits:
    """What an operator may write: far beyond any use, near enough to catch a slip of the hand."""

    max_file_bytes: int = 1024 * 1024
    """Largest configuration file that is read."""
    max_seconds: float = 31_536_000.0
    """Longest timeout: a year."""
    max_connections: int = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    accept: AcceptLimits = field(default_factory=AcceptLimits)
    head: HeadLimits = field(default_factory=HeadLimits)
    relay: RelayLimits = field(default_factory=RelayLimits)
    restart: RestartLimits = field(default_factory=RestartLimits)
    spawn: SpawnLimits = field(default_factory=SpawnLimits)
    file: FileLimits = field(default_factory=FileLimits)
    log: LogLimits = field(default_factory=LogLimits)
    option: OptionLimits = field(default_factory=OptionLimits)
