"""The typed face of TLS handshakes; see _handshake.pyx."""

import ssl
from collections.abc import Callable
from typing import Any

from typing_extensions import disjoint_base

from wstunnel._hub import Hub, HubTransport, _Connection

__all__ = ["Handshake"]

@disjoint_base
class Handshake:
    @property
    def protocol(self) -> str: ...
    @property
    def certificate(self) -> dict[str, Any] | None: ...
    @property
    def left_s(self) -> float: ...
    def __init__(
        self,
        hub: Hub,
        fd: int,
        context: ssl.SSLContext,
        *,
        on_end: Callable[[Handshake, str | None], None],
        within_s: float,
        max_bytes: int,
        per_turn: int,
    ) -> None: ...
    def fileno(self) -> int: ...
    def attach(self, protocol: _Connection) -> HubTransport: ...
    def abort(self) -> None: ...
    def due(self, now_s: float) -> float | None: ...
