# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, freethreading_compatible=True
"""Client frames out of bytes, bytes into frames, masking and UTF-8: pure computation on memory, no I/O.

The compiled core cimports the functions of `_speedups.pxd`. The classes and functions that Python sees are
thin faces of the same code, for library users and for the tests that hold it against wsproto and websockets.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from typing import NamedTuple

__all__ = [
    "FrameEvent",
    "FrameParser",
    "Utf8Validator",
    "encode_frame",
    "mask",
]


cdef size_t utf8_feed(Utf8* text, const uint8_t* p, size_t n) noexcept nogil:  # hot; p is the caller's, n bytes
    # state: continuation bytes missing | least next byte << 8 | greatest next byte << 16 (RFC 3629 §4)
    cdef uint32_t state = text.state, held = text.held, byte
    cdef size_t i = 0
    while i < n:
        byte = p[i]
        if state == 0:
            if byte >= 0x80:
                if byte < 0xC2 or byte > 0xF4:
                    break
                if byte < 0xE0:
                    state = 0xBF8001
                elif byte < 0xF0:
                    state = 0xBFA002 if byte == 0xE0 else 0x9F8002 if byte == 0xED else 0xBF8002
                else:
                    state = 0xBF9003 if byte == 0xF0 else 0x8F8003 if byte == 0xF4 else 0xBF8003
                held = 1
        else:
            if byte < (state >> 8 & 0xFF) or byte > state >> 16:
                break
            if state & 0xFF == 1:
                state = held = 0
            else:
                state = 0xBF8000 | ((state & 0xFF) - 1)
                held += 1
        i += 1
    text.state = state
    text.held = held
    return i


cdef uint32_t mask_to(uint8_t* dst, const uint8_t* src, size_t n, uint32_t key) noexcept nogil:  # hot
    cdef uint64_t word, wide = key
    cdef size_t i = 0
    cdef uint8_t* byte_of = <uint8_t*>&key
    wide |= wide << 32
    while n - i >= 8:
        memcpy(&word, src + i, 8)
        word ^= wide
        memcpy(dst + i, &word, 8)
        i += 8
    while i < n:
        dst[i] = src[i] ^ byte_of[i & 3]
        i += 1
    cdef uint32_t turn = 8 * (n & 3)
    return (key >> turn) | (key << ((32 - turn) & 31)) if turn else key


cdef size_t header_before(uint8_t* payload, uint8_t opcode, uint64_t length) noexcept nogil:  # hot
    cdef int k
    if length < 126:
        payload[-2] = 0x80 | opcode
        payload[-1] = <uint8_t>length
        return 2
    if length < 65536:
        payload[-4] = 0x80 | opcode
        payload[-3] = 126
        payload[-2] = <uint8_t>(length >> 8)
        payload[-1] = <uint8_t>length
        return 4
    payload[-10] = 0x80 | opcode
    payload[-9] = 127
    for k in range(8):
        payload[-1 - k] = <uint8_t>(length >> (8 * k))
    return 10


# Length of the client frame header at h, of which `got` >= 1 bytes are there: 0 while more of it must come,
# -1 as soon as those that are there show that it is refused.
cdef inline int header_length(FrameParser self, const uint8_t* h, size_t got) noexcept nogil:  # hot
    cdef uint8_t opcode = h[0] & 0x0F, length
    if h[0] & 0x70:
        return -1
    if opcode & 0x08:
        if opcode > OP_PONG or not h[0] & 0x80:
            return -1
    elif opcode > OP_BINARY or (opcode == OP_CONTINUATION) == (self.message == 0):
        return -1
    if got < 2:
        return 0
    if not h[1] & 0x80:
        return -1
    length = h[1] & 0x7F
    if opcode & 0x08 and (length > CONTROL_MAX or (opcode == OP_CLOSE and length == 1)):
        return -1
    if length < 126:
        return 6 if got >= 6 else 0
    if length == 126:
        if got >= 4 and h[2] == 0 and h[3] < 126:
            return -1
        return 8 if got >= 8 else 0
    if got >= 3 and h[2] & 0x80:
        return -1
    if got >= 8 and not (h[2] | h[3] | h[4] | h[5] | h[6] | h[7]):
        return -1
    return CLIENT_HEADER_MAX if got >= CLIENT_HEADER_MAX else 0


# Begin the frame whose accepted header is h[:length].
cdef inline void open_frame(FrameParser self, const uint8_t* h, int length) noexcept nogil:  # hot
    cdef int k
    self.opcode = h[0] & 0x0F
    self.fin = h[0] >> 7
    self.in_payload = True
    if length == 6:
        self.left = h[1] & 0x7F
    else:
        self.left = 0
        for k in range(2, length - 4):
            self.left = self.left << 8 | h[k]
    memcpy(&self.key, h + length - 4, 4)
    if self.opcode & 0x08:
        self.control_length = 0
    elif self.opcode != OP_CONTINUATION:
        self.message = self.opcode
        self.text.state = self.text.held = 0


# May a peer send this code (RFC 6455 §7.4, and the IANA registry's 1012-1014)?
cdef inline bint is_close_code(uint16_t code) noexcept nogil:
    return (1000 <= code <= 1003) or (1007 <= code <= 1014) or (3000 <= code <= 4999)


# The control frame under way is whole: what it says.
cdef Event close_control(FrameParser self) noexcept nogil:
    cdef Utf8 reason
    cdef size_t n = self.control_length
    self.in_payload = False
    if self.opcode == OP_PING:
        return EVENT_PING
    if self.opcode == OP_PONG:
        return EVENT_PONG
    self.ended = True
    if n == 0:
        self.close_code = 1005
        return EVENT_CLOSE
    self.close_code = <uint16_t>(self.control[0] << 8 | self.control[1])
    if not is_close_code(self.close_code):
        self.close_code = 1002
        return EVENT_ERROR
    reason.state = reason.held = 0
    if utf8_feed(&reason, &self.control[2], n - 2) != n - 2 or reason.held:
        self.close_code = 1007
        return EVENT_ERROR
    return EVENT_CLOSE


cdef inline Event refuse(FrameParser self, uint16_t close_code) noexcept nogil:
    self.ended = True
    self.close_code = close_code
    return EVENT_ERROR


class FrameEvent(NamedTuple):
    """What a client said beside its payload."""

    kind: str
    at: int
    close_code: int
    body: bytes


cdef class FrameParser:
    """Client frames, streamed: payload goes on as it comes, whatever length the header announced.

    in      bytes of one client, cut anywhere
    out     payload of data messages as one run of bytes; PING, PONG, CLOSE and the first fault as events
    bound   this object: no allocation, no payload kept but that of one control frame (125 bytes)
    source  RFC 6455 §5.1-5.5, §7.4, §8.1
    """

    cdef Event run(self, const uint8_t* src, size_t n, uint8_t* dst, size_t* used, size_t* made) noexcept nogil:  # hot
        # src and dst are the caller's, n bytes each, for the time of this call
        cdef size_t i = 0, m = 0, take, good
        cdef int length
        cdef Event event = EVENT_NONE
        while i < n and not self.ended:
            if not self.in_payload:
                if self.spilled == 0:
                    length = header_length(self, src + i, n - i)
                    if length == 0:
                        memcpy(self.spill, src + i, n - i)
                        self.spilled = <uint8_t>(n - i)
                        i = n
                        break
                    if length < 0:
                        event = refuse(self, 1002)
                        break
                    open_frame(self, src + i, length)
                    i += length
                else:
                    self.spill[self.spilled] = src[i]
                    self.spilled += 1
                    i += 1
                    length = header_length(self, self.spill, self.spilled)
                    if length == 0:
                        continue
                    if length < 0:
                        event = refuse(self, 1002)
                        break
                    self.spilled = 0
                    open_frame(self, self.spill, length)
            take = n - i
            if take > self.left:
                take = <size_t>self.left
            if self.opcode & 0x08:
                self.key = mask_to(&self.control[self.control_length], src + i, take, self.key)
                self.control_length += <uint8_t>take
                i += take
                self.left -= take
                if self.left == 0:
                    event = close_control(self)
                    break
                continue
            self.key = mask_to(dst + m, src + i, take, self.key)
            i += take
            self.left -= take
            good = take
            if self.message == OP_TEXT:
                good = utf8_feed(&self.text, dst + m, take)
            m += good
            if good != take:
                event = refuse(self, 1007)
                break
            if self.left == 0:
                self.in_payload = False
                if self.fin:
                    if self.message == OP_TEXT and self.text.held:
                        event = refuse(self, 1007)
                        break
                    self.message = 0
                    self.messages += 1
        used[0] = n if self.ended else i
        made[0] = m
        return event

    cdef bint at_boundary(self) noexcept nogil:
        return self.message == 0 and self.spilled == 0 and not self.in_payload

    def feed(self, const uint8_t[::1] data not None):
        """The payload in `data`, and the events in it."""
        cdef size_t n = <size_t>data.shape[0], at = 0, total = 0, used, made
        cdef Event event = EVENT_PING
        out = PyBytes_FromStringAndSize(NULL, n)
        cdef uint8_t* dst = <uint8_t*>PyBytes_AS_STRING(out)
        events = []
        while n and event != EVENT_NONE:
            with nogil:
                event = self.run(&data[0] + at, n - at, dst + total, &used, &made)
            at += used
            total += made
            if event != EVENT_NONE:
                events.append(FrameEvent(("ping", "pong", "close", "error")[<int>event - 1], total, self.close_code,
                                         (<char*>self.control)[:self.control_length]))
        return out[:total], events


cdef class Utf8Validator:
    """Text in pieces."""

    cdef Utf8 text

    def feed(self, const uint8_t[::1] data not None):
        if data.shape[0] == 0:
            return 0
        return utf8_feed(&self.text, &data[0], data.shape[0])

    @property
    def held(self):
        return self.text.held


def mask(const uint8_t[::1] data not None, const uint8_t[::1] key not None):
    """`data` masked (or unmasked) with a 4-byte key."""
    cdef uint32_t word
    if key.shape[0] != 4:
        raise ValueError("a masking key is 4 bytes")
    memcpy(&word, &key[0], 4)
    out = PyBytes_FromStringAndSize(NULL, data.shape[0])
    if data.shape[0]:
        mask_to(<uint8_t*>PyBytes_AS_STRING(out), &data[0], data.shape[0], word)
    return out


def encode_frame(int opcode, const uint8_t[::1] payload not None):
    """An unmasked frame with FIN set."""
    cdef uint8_t room[SERVER_HEADER_MAX]
    cdef size_t length = header_before(room + SERVER_HEADER_MAX, opcode, payload.shape[0])
    return (<char*>room)[SERVER_HEADER_MAX - length:SERVER_HEADER_MAX] + bytes(payload)
