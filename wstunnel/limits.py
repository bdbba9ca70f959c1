"""Every bound in one place: bytes, items, seconds, processes.

Code takes its bounds from here, so that an operator (and a reviewer) can see at one glance what a
peer, a backend or a mistake may cost. Options that operators change live in `settings.py` and take
their defaults from here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = [
    "AcceptLimits",
    "CertificateLimits",
    "ConfLimits",
    "FileLimits",
    "GatewayLimits",
    "H2Limits",
    "HeadLimits",
    "Limits",
    "LogLimits",
    "MasterLimits",
    "NotifyLimits",
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
    handshakes_per_turn: int = 4
    """TLS handshakes that go on per wake-up, likewise: each takes up to a millisecond."""
    reserved_fds: int = 64
    """Descriptors kept back for listeners, logs, pools and files being served."""
    fds_per_connection: int = 2
    """A tunnel holds its client and its backend."""
    fds_per_script: int = 3
    """A request of a cgi route holds its client and its script's stream, which is read over a second descriptor."""
    fds_per_records: int = 4
    """A WebSocket of a fastcgi route holds its client, its backend, and the socket pair between records and relay."""
    first_pause_s: float = 0.1
    """First pause after accept ran out of descriptors or memory; doubles up to `max_pause_s`."""
    max_pause_s: float = 1.0
    log_every_s: float = 10.0
    """At most one log line about missing descriptors in this time."""
    listen_backlog: int = 4096
    yield_s: float = 0.005
    """A listener that workers share is left to the less busy ones for this time ..."""
    max_yields: int = 10
    """... and so many times in a row; then one connection is taken all the same: the others may hang."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLimits:
    """What one HTTP/1 connection may cost outside a tunnel."""

    max_head_bytes: int = 16 * 1024
    max_fields: int = 100
    head_timeout_s: float = 10.0
    """From accept (or the first byte of a later request) to the last byte of the head; a TLS handshake counts."""
    max_handshake_bytes: int = 128 * 1024
    """What a client may send before its TLS handshake is done; OpenSSL takes certificates of 100 KiB."""
    keep_alive_s: float = 30.0
    """An idle connection between two plain requests is closed after this time."""
    write_high_bytes: int = 64 * 1024
    """A response waits for its client once this much of it is not yet taken ..."""
    write_low_bytes: int = 16 * 1024
    """... and goes on below this."""
    body_stall_s: float = 60.0
    """A client that sends nothing of a body that is waited for is answered with 408 after this time."""
    write_stall_s: float = 60.0
    """A client that takes nothing of its response for this time (twice at most) is dropped."""
    linger_s: float = 2.0
    """From our last byte to the end of the connection, while what the client still says is thrown away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class H2Limits:
    """What one HTTP/2 connection may cost beside its streams' tunnels and answers."""

    max_streams: int = 128
    """Streams at once, unless the listener says otherwise."""
    window_bytes: int = 64 * 1024
    """What a client may send on one stream before its backend has taken anything: one read and a bit."""
    frame_bytes: int = 16 * 1024
    """The largest frame that is taken, and that is sent (RFC 9113 §4.2)."""
    max_header_list_bytes: int = 32 * 1024
    """A request's fields without compression, 32 bytes more for each (RFC 9113 §6.5.2)."""
    table_bytes: int = 4096
    """What HPACK may remember of our own answers, whatever the client allows."""
    closed_streams: int = 1024
    """How as many streams ended is remembered: what was on its way to them is no fault."""
    turn_frames: int = 2
    """Requests and other control frames that a connection has served before others have their turn: each takes some 0.2
    ms. With 8, round trips of others had a p99 of 2.6 ms under a flood of resets, with 2 of 1."""
    odd_events: float = 200.0
    """The budget of a connection for what costs us and says nothing. A stream that is reset without an answer is 2, and
    so is one that we must reset for the client's fault; SETTINGS, GOAWAY and CONTINUATION are 10; trailers, and DATA
    that is empty or only padding, are 1; DATA and the reset of a stream that is over are 0.1. PING, WINDOW_UPDATE,
    PRIORITY and unknown frames are free, two for each DATA frame and three for each answer that were sent, and 1 beyond
    that."""
    odd_events_per_stream: float = 2.0
    """What each stream that the client may have adds to it: a proxy may lose patience with all of them at once."""
    odd_events_per_s: float = 20.0
    """What time gives back; each answer to a plain request gives back 1 as well."""
    settled_s: float = 1.0
    """A tunnel through which nothing came to the client may be reset at no cost after this time."""
    leave_s: float = 0.5
    """A client whose CLOSE was answered may take so long to end its stream. Browsers do so at once, undici never."""
    goaway_s: float = 1.0
    """A client that is asked to leave may have streams on their way to us for so long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateLimits:
    """Files with certificates and keys."""

    max_file_bytes: int = 1024 * 1024
    """Largest one that is read: all authorities that a browser knows make a quarter of it."""
    look_s: float = 2.0
    """How often it is looked whether one has changed; it is read when two looks in a row found the same change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayLimits:
    """What one tunnel may hold. Sizes that the compiled code also needs stand in `_relay.pxd`."""

    read_bytes: int = 48 * 1024
    """One read, and so the most that is ever held per direction: 64 KiB with all else that a tunnel has."""
    bulk_bytes: int = 128 * 1024
    """One read of a stream while its receiver's kernel has room for it: half the calls, and nothing more is held."""
    turn_bytes: int = 256 * 1024
    """The most that one transport may read per wake-up before the others have their turn; what the hub reads itself has
    one read."""
    tick_s: float = 0.1
    """Grain of the timer wheel: no timeout is more exact than this."""
    closes_per_s: float = 400.0
    """When the server goes away: tunnels asked to end per second, so that their clients do not all come back at once;
    more if half of `drain-timeout` would not be enough for all."""
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
    max_deaths: int = 8
    """So many short runs within `window_s` open the circuit: the route answers 503 ..."""
    window_s: float = 60.0
    probe_after_s: float = 30.0
    """... and one process is tried after this time; if it stays healthy, the circuit closes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpawnLimits:
    """What one backend process may cost."""

    log_line_bytes: int = 8 * 1024
    """A longer stderr line is cut into pieces of this size."""
    quoted_line_bytes: int = 256
    """As much of its last stderr line is quoted when a program dies at start-up."""
    log_read_bytes: int = 16 * 1024
    """stderr read per wake-up: a program that floods its log waits, not the tunnels."""
    group_poll_s: float = 0.02
    """While stopping: how often to look whether the children of a dead program are gone."""
    listen_backlog: int = 4096
    exit_wait_s: float = 1.0
    """How long a tunnel whose backend is just exiting waits for the exit status that decides its close code."""
    fork_exit_wait_s: float = 0.1
    """How long a program of its tunnel's own that has ended its output, and does not exit yet, may take to do so: some
    close it themselves first. If it lives on, its tunnel is closed with 1000."""
    retry_after_s: int = 1
    """`Retry-After` of a 503."""
    max_procs: int = 1024
    max_forks: int = 1000
    """Processes of one stdio route at once, unless the route says otherwise."""
    start_watch_s: float = 2.0
    """At start-up: how long a program is watched until it has come to rest, in case it dies at once."""
    settle_poll_s: float = 0.01
    """While watching: time between two looks at whether a program still computes."""
    tick_s: float = 1.0
    """How often a pool looks whether it has idle processes."""
    max_queue: int = 1024
    """Connections per worker and route that wait for a process with `max-load-policy = "queue"`."""
    queue_poll_s: float = 0.02
    """How often they look whether another worker's tunnel has ended; one of their own wakes them at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MasterLimits:
    """Workers, and what the master keeps of them."""

    worker_rows: int = 129
    """Workers at once, those of earlier configurations included; each has a row in the shared counters."""
    slot_rows: int = 4096
    """Backends at once, those of earlier configurations included."""
    max_workers: int = 64
    """Workers of one configuration: twice as many have a row each, so that there is always room for a reload."""
    ready_timeout_s: float = 30.0
    """A worker that is not ready by then is ended; a reload that waits for it has failed."""
    max_restart_wait_s: float = 1.0
    """Longest wait before a worker that died is replaced."""
    exit_wait_s: float = 2.0
    """What workers get beyond drain-timeout to end; then they are killed."""
    fork_answer_s: float = 10.0
    """How long a worker waits for the master to start the program of a stdio route."""
    heartbeat_s: float = 1.0
    """How often a worker shows in its row that its loop turns."""
    message_bytes: int = 128 * 1024
    """Longest message between master and worker."""
    max_queued_messages: int = 4096
    """Messages that wait for a worker that does not read; one more, and it is taken for dead."""
    control_bytes: int = 4096
    """Longest request on the control socket."""
    control_clients: int = 16
    """Connections to the control socket at once."""
    control_rest_s: float = 1.0
    """Longest that an upgrade waits for control clients that are being answered."""
    control_timeout_s: float = 60.0
    """Longest that a control client may take to ask, and to read what it is told."""
    control_answer_bytes: int = 16 * 1024 * 1024
    """Longest answer that is read from a control socket: more than all rows of the counters make."""
    control_pause_s: float = 0.1
    """How long the control socket is left alone when there is no descriptor for its next client; and by a client
    when too many wait there."""
    control_named: int = 8
    """Control sockets that are named to somebody who has asked at the wrong place."""
    stuck_after_s: float = 5.0
    """`status` says so of a worker whose last heartbeat is older."""
    rates_s: float = 0.7
    """Time between the two looks from which `status` tells rates."""
    watch_s: float = 1.0
    """How often `status --watch` looks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifyLimits:
    """What is said to the service manager."""

    retry_s: float = 0.1
    """How long to wait before it is said again when the manager's socket was full."""
    status_chars: int = 256
    """Longest status text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileLimits:
    """How a static file is sent."""

    chunk_bytes: int = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayLimits:
    """What bodies and backends that speak HTTP, CGI or FastCGI may cost beside the payload that they carry."""

    max_chunk_line_bytes: int = 1024
    """The line in front of a chunk: its size and extensions, which nobody reads."""
    max_trailer_bytes: int = 8 * 1024
    """All that stands between the last chunk and the end of its body."""
    max_head_bytes: int = 64 * 1024
    """The head of a program's answer."""
    max_fields: int = 256
    max_collected_bytes: int = 1024 * 1024
    """A chunked body that is collected because its backend wants to know its length first."""
    max_ignored_bytes: int = 64 * 1024
    """FastCGI records in a row that say nothing to the request, their headers included."""
    end_wait_s: float = 1.0
    """How long a FastCGI backend whose answer is whole, or whose client has left, is waited for to end the request."""
    idle_per_slot: int = 128
    """Connections of a proxy to one backend that wait for another request. With 32 and 100 busy clients, three of five
    requests had to connect."""
    idle_s: float = 4.0
    """How long each of them does: less than the 5 s after which common servers end them, perhaps under a request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLimits:
    """What peers may put into a log line."""

    safe_chars: int = 64
    """Longest quotation of a peer's bytes in an error text."""
    path_chars: int = 512
    """Longest request path in an access line."""
    subject_chars: int = 256
    """Longest subject of a client's certificate in one."""
    stall_s: float = 0.1
    """A log whose reader does not read is waited for this long, and then not at all until it reads again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfLimits:
    """What a lighttpd.conf may cost, its includes included."""

    max_nesting: int = 32
    """Brackets and blocks inside each other."""
    max_number: int = 2**63 - 1
    max_include_depth: int = 16
    max_files: int = 256
    max_bytes: int = 1024 * 1024
    """All files together; reading so much takes some seconds."""
    max_value_bytes: int = 16 * 1024 * 1024
    """All values that + and += make, together: a line may double what the line above has made."""
    max_blocks: int = 512
    """Conditional blocks."""
    max_cells: int = 256
    """Combinations of conditions that are told apart for one module."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionLimits:
    """What an operator may write: far beyond any use, near enough to catch a slip of the hand."""

    max_file_bytes: int = 1024 * 1024
    """Largest configuration file that is read."""
    max_seconds: float = 31_536_000.0
    """Longest timeout: a year."""
    max_connections: int = 10_000_000
    max_backlog: int = 1_000_000
    """Longest listen-backlog; the kernel cuts it to net.core.somaxconn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    accept: AcceptLimits = field(default_factory=AcceptLimits)
    head: HeadLimits = field(default_factory=HeadLimits)
    h2: H2Limits = field(default_factory=H2Limits)
    certificate: CertificateLimits = field(default_factory=CertificateLimits)
    relay: RelayLimits = field(default_factory=RelayLimits)
    restart: RestartLimits = field(default_factory=RestartLimits)
    spawn: SpawnLimits = field(default_factory=SpawnLimits)
    master: MasterLimits = field(default_factory=MasterLimits)
    notify: NotifyLimits = field(default_factory=NotifyLimits)
    file: FileLimits = field(default_factory=FileLimits)
    gateway: GatewayLimits = field(default_factory=GatewayLimits)
    log: LogLimits = field(default_factory=LogLimits)
    option: OptionLimits = field(default_factory=OptionLimits)
    conf: ConfLimits = field(default_factory=ConfLimits)
