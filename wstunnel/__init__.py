"""A high-throughput WebSocket tunnel: frames on one side, plain bytes on the other."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
