"""The Python face of the frame kernel: for library users, and for the tests that hold it against its oracles."""

from typing import Literal, NamedTuple

from typing_extensions import Buffer, disjoint_base

__all__ = ["FrameEvent", "FrameParser", "Utf8Validator", "encode_frame", "frame_header", "mask"]

class FrameEvent(NamedTuple):
    """What a client said beside its payload; `at` is how many payload bytes of the same feed came before."""

    kind: Literal["ping", "pong", "close", "error"]
    at: int
    close_code: int
    body: bytes

@disjoint_base
class FrameParser:
    """Client frames, streamed: payload goes on as it comes, whatever length the header announced."""

    @property
    def messages(self) -> int:
        """Data messages that ended."""
    @property
    def is_at_boundary(self) -> bool:
        """Is no message under way and no header or control frame half read?"""
    def feed(self, data: Buffer) -> tuple[bytes, list[FrameEvent]]:
        """The payload in `data`, and the events in it in order. After a close or an error: nothing."""
    def feed_in_place(self, data: Buffer) -> tuple[int, list[FrameEvent]]:
        """As `feed`, but the payload is moved to the front of `data` (writable), and its length returned."""

@disjoint_base
class Utf8Validator:
    """Says of a text that comes in pieces where it stops being UTF-8 (RFC 3629)."""

    @property
    def held(self) -> int:
        """Bytes of the unfinished character at the end: 0 to 3."""
    def feed(self, data: Buffer) -> int:
        """How many bytes of `data` continue a valid text: all, or the index of the first that cannot."""

def mask(data: Buffer, key: Buffer) -> bytes:
    """`data` masked, or unmasked, with the 4 bytes of `key`; ValueError if they are not 4."""

def frame_header(opcode: int, length: int) -> bytes:
    """The header of an unmasked frame with FIN set, in its shortest form: 2, 4 or 10 bytes."""

def encode_frame(opcode: int, payload: Buffer) -> bytes:
    """`payload` as one unmasked frame with FIN set."""

def _set_kernels(name: str) -> Literal["avx2", "plain"]: ...
def _mask_within(data: Buffer, to: int, start: int, length: int, key: Buffer) -> bytes: ...
