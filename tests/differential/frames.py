"""Client frames with every bit in the test's hand; nothing of wstunnel is used to make them."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import HealthCheck, settings

__all__ = ["BINARY", "CLOSE", "CONT", "KEY", "PATIENT", "PING", "PONG", "TEXT", "client_frame", "masked", "pieces"]

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A machine that is busy with something else is not a failure."""

KEY = b"\x37\xfa\x21\x3d"


def masked(data: bytes, key: bytes) -> bytes:
    """RFC 6455 §5.3 as one long exclusive-or."""
    wide = (key * (len(data) // 4 + 1))[: len(data)]
    return (int.from_bytes(data, "big") ^ int.from_bytes(wide, "big")).to_bytes(len(data), "big")


def client_frame(opcode: int, payload: bytes = b"", *, fin: bool = True, key: bytes = KEY) -> bytes:
    """A frame without fault, its length in the shortest form."""
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 1 << 16:
        length = b"\xfe" + size.to_bytes(2, "big")
    else:
        length = b"\xff" + size.to_bytes(8, "big")
    return bytes([fin << 7 | opcode]) + length + key + masked(payload, key)


def pieces(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    """`data` cut at each of the places, which may lie outside of it or coincide."""
    start = 0
    for cut in sorted(cuts):
        yield data[start:cut]
        start = max(start, cut)
    yield data[start:]
