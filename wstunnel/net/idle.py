"""Connections to backends that wait for another request."""

from __future__ import annotations

from collections.abc import Hashable

from wstunnel._hub import Hub
from wstunnel.limits import GatewayLimits
from wstunnel.net.stream import BackendStream

__all__ = ["IdleStreams"]


class IdleStreams:
    """Keeps connections for a while, by whom they lead to; the one that was used last is taken first.

    bound   `idle_per_slot` for each key, `idle_s` each
    """

    __slots__ = ("_hub", "_is_closed", "_limits", "_streams")

    def __init__(self, hub: Hub, limits: GatewayLimits) -> None:
        self._hub, self._limits = hub, limits
        self._streams: dict[Hashable, list[tuple[BackendStream, float]]] = {}
        self._is_closed = False

    def __len__(self) -> int:
        return sum(map(len, self._streams.values()))

    def take(self, key: Hashable) -> BackendStream | None:
        """One that may carry another request, or None; those that have ended meanwhile go."""
        streams = self._streams.get(key)
        while streams:
            stream, _ = streams.pop()
            if stream.is_silent():
                return stream
            stream.abort()
        return None

    def keep(self, key: Hashable, stream: BackendStream) -> None:
        """Let a connection wait, its last answer having come to its end, or end it if there are enough."""
        if self._is_closed:
            stream.abort()
            return
        if not self._streams:
            self._hub.wheel.add(self, self._hub.wheel.now_s + self._limits.idle_s)
        streams = self._streams.setdefault(key, [])
        if len(streams) >= self._limits.idle_per_slot:
            streams.pop(0)[0].abort()
        streams.append((stream, self._hub.wheel.now_s))

    def close(self) -> None:
        """End those that wait, and keep no more."""
        self._is_closed = True
        self._hub.wheel.discard(self)
        for streams in self._streams.values():
            for stream, _ in streams:
                stream.abort()
        self._streams.clear()

    def due(self, now_s: float) -> float | None:
        """Called by the wheel."""
        for key, streams in list(self._streams.items()):
            while streams and now_s - streams[0][1] >= self._limits.idle_s:
                streams.pop(0)[0].abort()
            if not streams:
                del self._streams[key]
        if not self._streams:
            return None
        return min(streams[0][1] for streams in self._streams.values()) + self._limits.idle_s
