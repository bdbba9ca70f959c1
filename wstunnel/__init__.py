"""A high-throughput WebSocket tunnel: frames on one side, plain bytes on the other.

settings = Settings(routes=(Route(path="/ws/", socket="/run/echo.sock", bin_path=("/usr/local/bin/echo.pl",)),))
async with Tunnel(settings) as tunnel:
    print(tunnel.addresses)
    await something
"""

from __future__ import annotations

from wstunnel.errors import BackendError, ConfigError, PeerError, StartError, TunnelError
from wstunnel.server.tunnel import Tunnel
from wstunnel.settings import Route, Settings, TcpAddress, UnixAddress

__all__ = [
    "BackendError",
    "ConfigError",
    "PeerError",
    "Route",
    "Settings",
    "StartError",
    "TcpAddress",
    "Tunnel",
    "TunnelError",
    "UnixAddress",
    "__version__",
]

__version__ = "0.1.0"
