"""The typed face of the relay; see _relay.pyx."""

import asyncio
from asyncio import BufferedProtocol
from typing import Protocol

from typing_extensions import disjoint_base

from wstunnel._hub import Hub, HubTransport

__all__ = ["BackendLeg", "ClientLeg", "Policy", "Relay"]

class _Session(Protocol):
    def backend_ended(self) -> int: ...
    def ended(self) -> None: ...

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

class _ClientLeg: ...

class ClientLeg(_ClientLeg, BufferedProtocol):
    def __init__(self, hub: Hub, fd: int) -> None: ...
    def own(self) -> None: ...

class BackendLeg(BufferedProtocol):
    def __init__(self, hub: Hub, fd: int) -> None: ...
    def own(self) -> None: ...

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
        hub: Hub,
        policy: Policy,
        client: _ClientLeg,
        backend: BackendLeg,
        session: _Session,
        is_binary: bool = False,
        is_pipe: bool = False,
    ) -> None: ...
    def open(self, transport: asyncio.Transport | HubTransport | _ClientLeg) -> None: ...
    def adopt(self, transport: HubTransport) -> None: ...
    def join(
        self, leftover: bytearray, is_at_eof: bool, said: bytearray = ..., is_backend_at_eof: bool = False
    ) -> None: ...
    def leave(self, code: int, within_s: float = ...) -> None: ...
    def abort(self, code: int) -> None: ...
    def verdict(self, code: int) -> None: ...
    def due(self, now_s: float) -> float | None: ...
