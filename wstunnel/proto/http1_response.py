"""HTTP/1.1 answers of a backend: bytes in, one head and the payload behind it out.

Strict where messages could be taken apart in another way than the next reader would: that is how a backend's answer
to one client becomes the answer to another.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from wstunnel._answers import read_plain_answer
from wstunnel.errors import BackendError, safe
from wstunnel.limits import GatewayLimits
from wstunnel.proto.chunked import ChunkedReader
from wstunnel.proto.request import Headers

__all__ = ["RawHead", "ResponseReader"]

_VERSION = b"HTTP/1."
_CRLF = b"\r\n"
_END = b"\r\n\r\n"
_STATUS_LINE = rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*+)?\r\n"
_FIELDS = rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+"
_HEAD = re.compile(rb"%b(%b)\r\n" % (_STATUS_LINE, _FIELDS))
_LINES = re.compile(_FIELDS)
_BEGINNING = re.compile(rb"(?:%b%b)?" % (_STATUS_LINE, _FIELDS))
_FIELD = re.compile(r"([^:]+):([^\r]*)\r\n")  # of what is well-formed, as are the next two
_OWN = re.compile(
    rb"\r\n(connection|content-length|keep-alive|proxy-connection|te|trailer|transfer-encoding|upgrade):"
    rb"([^\r]*)(?=\r)",
    re.IGNORECASE,
)
_OWN_BUT_UPGRADE = re.compile(_OWN.pattern.replace(b"|upgrade", b""), re.IGNORECASE)
_HARMLESS = frozenset({"close", "keep-alive", "upgrade"})  # to be named by Connection
_LENGTH = re.compile(r"[0-9]{1,19}")
_MAX_LENGTH_BYTES = 2**63 - 1  # what every reader of it can count to
_BODILESS = frozenset({204, 304})
_SWITCHING_PROTOCOLS = 101
_OK = 200


@dataclass(slots=True)
class RawHead:
    """A whole head of an answer, with its fields as the backend wrote them.

    status      200 to 599, or 101
    fields      lines with their CRLF, without those that speak of the backend's connection, of which a 101 keeps
                Upgrade, and without Content-Length
    body_bytes  length of the body as announced, be it that there is none to a HEAD; None: nobody has said
    is_upgrade  a 101: what follows is not HTTP any more
    """

    status: int
    fields: bytes
    body_bytes: int | None
    is_upgrade: bool

    @property
    def headers(self) -> Headers:
        """The fields taken apart."""
        return _split(self.fields)


class ResponseReader:
    """Reads one answer, in any pieces, and stops behind its last byte. One reader, one answer.

    in      method  of the request: the answer to a HEAD has no payload
    bound   `max_head_bytes` and `max_fields` for the head and all interim ones before it; no payload is held
    raises  BackendError(502) on what is no strict HTTP/1 answer; payload of the same piece is lost with it. Nothing
            may be fed after it, or once the answer is complete
    source  RFC 9112 §4-§6, §9.3. Refused there, though a proxy may also repair it: folded fields, blanks before a
            colon, lines that end without CR, lengths that differ or stand beside a Transfer-Encoding, any coding but
            one chunked, a Transfer-Encoding of HTTP/1.0
    """

    __slots__ = (
        "_checked",
        "_chunked",
        "_held",
        "_is_persistent",
        "_left_bytes",
        "_limits",
        "_method",
        "_seen_bytes",
        "head",
        "is_complete",
        "leftover",
    )

    def __init__(self, limits: GatewayLimits, method: str) -> None:
        self._limits, self._method = limits, method
        self._held = b""  # the head under way
        self._checked = 0  # bytes of it that are well-formed lines
        self._seen_bytes = 0
        self._is_persistent = False
        self._left_bytes: int | None = 0
        self._chunked: ChunkedReader | None = None
        self.head: RawHead | None = None
        """Once it is whole; interim ones (1xx) are passed over, but not 101."""
        self.is_complete = False
        self.leftover = b""
        """What followed the answer in the piece that completed it. Behind a 101 it is the new protocol's; anything
        else was not asked for."""

    @property
    def is_empty(self) -> bool:
        """Has no byte of the answer arrived?"""
        return not self._seen_bytes

    @property
    def is_reusable(self) -> bool:
        """May the connection carry another request? Only ever behind a complete answer that nothing followed."""
        return self.is_complete and self._is_persistent and not self.leftover

    def feed(self, data: bytes) -> bytes:
        """The payload in `data`, which may be none."""
        if self.head is None:
            data = self._feed_head(data) if self._seen_bytes else self._feed_first(data)
            if self.head is None:
                return b""
        if self.is_complete:
            self.leftover = data
            return b""
        if self._chunked is not None:
            payload = self._chunked.feed(data)
            if self._chunked.is_complete:
                self.is_complete, self.leftover = True, self._chunked.leftover
            return payload
        if self._left_bytes is None:
            return data
        payload = data[: self._left_bytes]
        self._left_bytes -= len(payload)
        if not self._left_bytes:
            self.is_complete, self.leftover = True, data[len(payload) :]
        return payload

    def feed_eof(self) -> None:
        """The backend has ended its side: an answer that had to end in another way is broken."""
        if self.is_complete:
            return
        if self.head is None:
            raise _fault("the backend ended the connection " + ("in" if self._seen_bytes else "without") + " an answer")
        if self._chunked is not None or self._left_bytes is not None:
            missing = "its last chunk" if self._left_bytes is None else f"{self._left_bytes} bytes"
            raise _fault(f"the backend ended the connection with {missing} of its answer missing")
        self.is_complete = True

    def _feed_first(self, data: bytes) -> bytes:
        """As `_feed_head`, by the short way if it is a plain head."""
        plain = read_plain_answer(data, self._limits.max_head_bytes, self._limits.max_fields)
        if plain is None:
            return self._feed_head(data)
        status, fields, self._left_bytes, self._is_persistent, end = plain
        self._seen_bytes = end
        self.head = RawHead(status, fields, self._left_bytes, is_upgrade=False)
        self.is_complete = self._method == "HEAD" or status in _BODILESS
        return data[end:]

    def _feed_head(self, data: bytes) -> bytes:
        """Take in heads up to the first that is not interim; what follows it."""
        room = self._limits.max_head_bytes - self._seen_bytes
        piece, beyond = data[:room], data[room:]
        self._seen_bytes += len(piece)
        unsearched = max(0, len(self._held) - len(_END) + 1)
        self._held = self._held + piece if self._held else piece
        while (end := self._held.find(_END, unsearched) + len(_END)) >= len(_END):
            head = _HEAD.match(self._held, 0, end)
            if head is None:
                raise self._malformed(end)
            block = self._held[head.start(3) - len(_CRLF) : head.end(3)]
            self._held = self._held[end:]
            self._checked = unsearched = 0
            self._take_head(int(head[1]), int(head[2]), block)
            if self.head is not None:
                rest, self._held = self._held, b""
                return rest + beyond if beyond else rest
        self._check_unfinished()
        return b""

    def _check_unfinished(self) -> None:
        """Refuse what can never become a head: the backend might wait for us, and we for it."""
        held = self._held
        if held[: len(_VERSION)] != _VERSION[: len(held)]:
            raise _fault(f'the backend does not speak HTTP: "{safe(held)}"')
        end = held.rfind(b"\n") + 1
        if end > self._checked:
            pattern = _LINES if self._checked else _BEGINNING
            if not pattern.fullmatch(held, self._checked, end):
                raise self._malformed(end)
            self._checked = end
            if held.count(b"\n", 0, end) - 1 > self._limits.max_fields:
                raise self._too_many()
        if self._seen_bytes >= self._limits.max_head_bytes:
            raise _fault(f"the head of an answer is longer than {self._limits.max_head_bytes} bytes")

    def _malformed(self, end: int) -> BackendError:
        """An error that shows the first line that is none, of those before `end`."""
        good = _BEGINNING.match(self._held, 0, end)
        at = good.end() if good else 0
        kind = "field" if at else "status line"
        line = self._held[at : self._held.find(b"\n", at) + 1]
        return _fault(f'malformed {kind} in the head of an answer: "{safe(line)}"')

    def _too_many(self) -> BackendError:
        return _fault(f"the head of an answer has more than {self._limits.max_fields} fields")

    def _take_head(self, minor_version: int, status: int, block: bytes) -> None:
        """A head is whole: it is an interim one, or says how the payload ends.

        in      block  its field lines, each behind a CRLF, and a last CRLF
        """
        if block.count(_CRLF) > self._limits.max_fields + 1:
            raise self._too_many()
        is_upgrade = status == _SWITCHING_PROTOCOLS
        lengths, codings, options = _own_fields(block)
        if codings and (lengths or minor_version != 1 or codings != ["chunked"]):
            raise _fault(
                f'an answer of HTTP/1.{minor_version} with Transfer-Encoding "{safe(", ".join(codings))}" and '
                f"{len(lengths)} Content-Length cannot be told from what follows it"
            )
        length_bytes = _length(lengths)
        if status < _OK:
            if length_bytes or codings:
                raise _fault(f"an answer of {status} has no payload, and this one announces some")
            if not is_upgrade:
                return
            if "upgrade" not in options:
                raise _fault("an answer of 101 that does not say Connection: Upgrade")
        fields = (_OWN_BUT_UPGRADE if is_upgrade else _OWN).sub(b"", block)[len(_CRLF) :]
        if not options <= _HARMLESS:
            fields = _without(fields, options - _HARMLESS)
        self.head = RawHead(status, fields, length_bytes, is_upgrade)
        is_persistent = minor_version == 1 and not is_upgrade and "close" not in options
        self._left_bytes = length_bytes
        if self._method == "HEAD" or status in _BODILESS or status < _OK:
            self.is_complete = True
        elif codings:
            self._chunked = ChunkedReader(self._limits, _fault)
        elif length_bytes is None:
            is_persistent = False
        self._is_persistent = is_persistent


def _split(fields: bytes) -> Headers:
    return tuple([(name.lower(), value.strip(" \t")) for name, value in _FIELD.findall(fields.decode("latin-1"))])


def _without(fields: bytes, names: set[str]) -> bytes:
    """The lines of other fields than these."""
    kept = [
        f"{name}:{value}\r\n" for name, value in _FIELD.findall(fields.decode("latin-1")) if name.lower() not in names
    ]
    return "".join(kept).encode("latin-1")


def _own_fields(block: bytes) -> tuple[list[str], list[str], set[str]]:
    """The values of Content-Length and Transfer-Encoding, and what Connection names."""
    lengths: list[str] = []
    codings: list[str] = []
    options: set[str] = set()
    for raw_name, raw_value in _OWN.findall(block):
        name, value = raw_name.lower(), raw_value.decode("latin-1").strip(" \t")
        if name == b"content-length":
            lengths.append(value)
        elif name == b"transfer-encoding":
            codings.append(value.lower())
        elif name == b"connection":
            options.update([option.strip(" \t") for option in value.lower().split(",")])
    return lengths, codings, options


def _length(announced: list[str]) -> int | None:
    if not announced:
        return None
    length = announced[0]
    if announced.count(length) != len(announced) or not _LENGTH.fullmatch(length) or int(length) > _MAX_LENGTH_BYTES:
        raise _fault(f'an answer has one length in digits, not "{safe(", ".join(announced))}"')
    return int(length)


def _fault(text: str) -> BackendError:
    return BackendError(text, status=502)
