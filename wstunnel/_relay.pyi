"""The typed face of the relay; see _relay.pyx."""

import asyncio
from asyncio import BufferedProtocol
from typing import Protocol

from typing_extensions import Buffer, disjoint_base

__all__ = ["BackendLeg", "ClientLeg", "Engine", "Policy", "Relay"]

class _Wheel(Protocol):
    @property
    def now_s(self) -> float: ...
    def add(self, item: Engine | Relay, at_s: float) -> None: ...
    def discard(self, item: Engine | Relay) -> None: ...

class _Session(Protocol):
    def backend_ended(self) -> int: ...
    def ended(self) -> None: ...

@disjoint_base
class Engine:
    loop: asyncio.AbstractEventLoop
    wheel: _Wheel
    now_s: float
    view: memoryview
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        wheel: _Wheel,
        *,
        read_bytes: int,
        turn_bytes: int,
        look_s: float,
        counters: Buffer | None = None,
    ) -> None: ...
    def close(self) -> None: ...
    def due(self, now_s: float) -> float: ...
    def flush_writable(self) -> None: ...

@disjoint_base
class Policy:
    is_binary: bool
    ping_interval_s: float
    ping_timeout_s: float
    max_read_idle_s: float
    max_write_idle_s: float
    close_timeout_s: float
    read_timeout_s: float
    write_timeout_s: float
    fin_propagate: bool
    def __init__(
        self,
        *,
        is_binary: bool,
        ping_interval_s: float,
        ping_timeout_s: float,
        max_read_idle_s: float,
        max_write_idle_s: float,
        close_timeout_s: float,
        read_timeout_s: float = 0.0,
        write_timeout_s: float = 0.0,
        fin_propagate: bool = True,
    ) -> None: ...

class ClientLeg(BufferedProtocol):
    def __init__(self, engine: Engine, fd: int) -> None: ...

class BackendLeg(BufferedProtocol):
    def __init__(self, engine: Engine, fd: int) -> None: ...

@disjoint_base
class Relay:
    bytes_in: int
    bytes_out: int
    messages_out: int
    pongs: int
    close_code: int
    closed_by: str | None
    is_text_broken: bool
    @property
    def messages_in(self) -> int: ...
    @property
    def is_open(self) -> bool: ...
    def __init__(
        self,
        engine: Engine,
        policy: Policy,
        client: ClientLeg,
        backend: BackendLeg,
        session: _Session,
        is_binary: bool = False,
    ) -> None: ...
    def open(self, transport: asyncio.Transport) -> None: ...
    def join(self, leftover: bytearray, is_at_eof: bool) -> None: ...
    def leave(self, code: int, within_s: float = ...) -> None: ...
    def abort(self, code: int) -> None: ...
    def verdict(self, code: int) -> None: ...
    def due(self, now_s: float) -> float | None: ...
