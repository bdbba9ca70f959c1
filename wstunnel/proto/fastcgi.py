"""FastCGI as a web server speaks it to a responder: a request into records, records into what the responder says.

What its stdout says is what a CGI program says: `cgi.ResponseHeadReader`. After a 101 both directions go on in records.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from wstunnel.errors import BackendError
from wstunnel.limits import GatewayLimits

__all__ = ["End", "Event", "RecordReader", "Stderr", "Stdout", "abort", "begin", "params", "stdin"]

# Types of records (FastCGI 1.0 §8); plain numbers, since an IntEnum would cost more than the rest of a short record.
_BEGIN_REQUEST, _ABORT_REQUEST, _END_REQUEST, _PARAMS, _STDIN, _STDOUT, _STDERR = range(1, 8)
_GET_VALUES = 9  # the last that is said to a responder; beyond it are answers to what is never asked here
_FROM_RESPONDER = frozenset({_END_REQUEST, _STDOUT, _STDERR})

_VERSION = 1
_HEADER = struct.Struct(">BBHHBx")  # version, type, request id, bytes of content, bytes of padding
_BEGIN_BODY = struct.Struct(">HB5x")  # role, flags
_END_BODY = struct.Struct(">LB3x")  # application status, protocol status
_RESPONDER = 1
_KEEP_CONN = 1
_LONG = struct.Struct(">L")
_IS_LONG = 0x80000000  # a length of four bytes; one byte holds up to 127
_MAX_SHORT = 127
_ALIGNMENT = 8
_MAX_CONTENT_BYTES = 65_528
"""Of a record that is written: 65,535 would do, but then every full one would need padding."""

_PADDING = [bytes(-size % _ALIGNMENT) for size in range(_ALIGNMENT)]

_REFUSALS = {
    1: (503, "takes no second request on a connection"),
    2: (503, "is overloaded: give it more processes, or fewer connections"),
    3: (502, "is no responder"),
}
"""Why END_REQUEST may come without an answer."""


@dataclass(frozen=True, slots=True)
class Stdout:
    """The next bytes of the answer; never none."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Stderr:
    """The next bytes for the log; never none."""

    data: bytes


@dataclass(frozen=True, slots=True)
class End:
    """The answer is whole. `app_status` is what the program would have exited with."""

    app_status: int


Event = Stdout | Stderr | End


def begin(request_id: int, *, keep: bool) -> bytes:
    """The record that opens a request for a responder.

    in      keep  the connection is to stay open after the answer
    """
    return _records(_BEGIN_REQUEST, request_id, _BEGIN_BODY.pack(_RESPONDER, _KEEP_CONN if keep else 0))


def params(request_id: int, variables: Mapping[str, str]) -> bytes:
    """All variables of a request, with the record that ends them.

    in      variables  as `cgi.variables` makes them; encoded as UTF-8 with `surrogateescape`
    bound   that of the variables, and two copies
    """
    parts: list[bytes] = []
    for pair in variables.items():
        name, value = (text.encode("utf-8", "surrogateescape") for text in pair)
        parts += (_length(name), _length(value), name, value)
    block = b"".join(parts)
    end = _records(_PARAMS, request_id, b"")
    return _records(_PARAMS, request_id, block) + end if block else end


def stdin(request_id: int, data: bytes) -> bytes:
    """The next bytes of the request's body, or, once it is a pipe, of the client; no bytes end the stream.

    bound   8 bytes more per 65,528, padding, and one copy
    """
    return _records(_STDIN, request_id, data)


def abort(request_id: int) -> bytes:
    """The client has left; the responder answers with END_REQUEST as soon as it can."""
    return _records(_ABORT_REQUEST, request_id, b"")


class RecordReader:
    """Reads what a responder says to one request, in any pieces, and stops behind its last byte.

    bound   a header and an END_REQUEST are held, nothing else: content goes on as it comes. Records that say nothing
            (of other requests, of unknown types, empty ones) are skipped, `max_ignored_bytes` of them in a row
    source  FastCGI 1.0 §3.3, §5.1, §5.5
    """

    __slots__ = (
        "_held",
        "_ignored_bytes",
        "_kind",
        "_left",
        "_limits",
        "_padding_left",
        "_request_id",
        "is_complete",
        "leftover",
    )

    def __init__(self, limits: GatewayLimits, request_id: int) -> None:
        self._limits, self._request_id = limits, request_id
        self._held = b""  # a header under way, or the body of END_REQUEST
        self._kind = 0  # of the record under way; 0 for one that is skipped
        self._left = 0  # bytes of its content that have not come
        self._padding_left = 0
        self._ignored_bytes = 0
        self.is_complete = False
        self.leftover = b""
        """What followed in the piece that completed the answer: on a connection that is kept, nothing should."""

    def feed(self, data: bytes) -> list[Event]:
        """What `data` says, in order; neighbours of one stream come as one event.

        raises  BackendError(502) on what is no FastCGI or no answer to this request; BackendError(503) or (502) when
                the responder refuses it. Events of the same piece are lost with it. Nothing may be fed after an
                error, or once the answer is complete
        """
        runs: list[tuple[int, list[bytes]]] = []
        at = 0
        while at < len(data) and not self.is_complete:
            if self._left:
                piece = data[at : at + self._left]
                self._left -= len(piece)
                at += len(piece)
                if self._kind == _END_REQUEST:
                    self._held += piece
                elif self._kind and runs and runs[-1][0] == self._kind:
                    runs[-1][1].append(piece)
                elif self._kind:
                    runs.append((self._kind, [piece]))
            elif self._padding_left:
                skipped = min(self._padding_left, len(data) - at)
                self._padding_left -= skipped
                at += skipped
            else:
                header = data[at : at + _HEADER.size - len(self._held)]
                at += len(header)
                self._take_header(self._held + header)
            self.is_complete = self._kind == _END_REQUEST and not self._left and not self._padding_left
        events: list[Event] = [(Stdout if kind == _STDOUT else Stderr)(b"".join(run)) for kind, run in runs]
        if self.is_complete:
            self.leftover = data[at:]
            events.append(_end(self._held))
        return events

    def _take_header(self, header: bytes) -> None:
        if header[0] != _VERSION:
            raise BackendError(
                f"a FastCGI record begins with 1, not with {header[0]}: no FastCGI is spoken", status=502
            )
        if len(header) < _HEADER.size:
            self._held = header
            return
        self._held = b""
        _, kind, request_id, self._left, self._padding_left = _HEADER.unpack(header)
        is_ours = request_id == self._request_id and kind <= _GET_VALUES
        if is_ours and kind not in _FROM_RESPONDER:
            raise BackendError(f"a FastCGI record of type {kind} comes from no responder", status=502)
        if is_ours and kind == _END_REQUEST and self._left != _END_BODY.size:
            raise BackendError(f"END_REQUEST has {_END_BODY.size} bytes, this one has {self._left}", status=502)
        self._kind = kind if is_ours else 0
        if is_ours and self._left:
            self._ignored_bytes = 0
            return
        self._ignored_bytes += _HEADER.size + self._left + self._padding_left
        if self._ignored_bytes > self._limits.max_ignored_bytes:
            raise BackendError(
                f"over {self._limits.max_ignored_bytes} bytes of FastCGI records say nothing", status=502
            )


def _end(body: bytes) -> End:
    app_status, protocol_status = _END_BODY.unpack(body)
    if protocol_status:
        status, why = _REFUSALS.get(protocol_status, (502, f"ends the request with protocol status {protocol_status}"))
        raise BackendError(f"the FastCGI backend {why}", status=status)
    return End(app_status)


def _length(text: bytes) -> bytes:
    return bytes((len(text),)) if len(text) <= _MAX_SHORT else _LONG.pack(len(text) | _IS_LONG)


def _records(kind: int, request_id: int, content: bytes) -> bytes:
    """`content` in as many records as it needs, the last one padded; one empty record for none."""
    view = memoryview(content)
    parts: list[bytes | memoryview] = []
    for start in range(0, len(content) or 1, _MAX_CONTENT_BYTES):
        piece = view[start : start + _MAX_CONTENT_BYTES]
        padding = _PADDING[len(piece) % _ALIGNMENT]
        parts += (_HEADER.pack(_VERSION, kind, request_id, len(piece), len(padding)), piece, padding)
    return b"".join(parts)
