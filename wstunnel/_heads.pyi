"""The typed face of the head scanner; see _heads.pyx."""

from typing_extensions import Buffer

from wstunnel.limits import HeadLimits
from wstunnel.proto.request import Request

__all__ = ["read_plain_head"]

def read_plain_head(
    data: Buffer, nbytes: int, limits: HeadLimits, peer: str, local: str, scheme: str
) -> tuple[Request, bytes] | None:
    """The request at the front of the first `nbytes` of `data`, and what follows its head; None: ask a HeadReader."""
