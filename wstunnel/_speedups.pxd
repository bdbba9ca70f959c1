# cython: language_level=3
"""Layout of the frame kernel: pure computation on memory, no I/O, no Python in the hot functions."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t


cdef enum:
    OP_CONTINUATION = 0x0
    OP_TEXT = 0x1
    OP_BINARY = 0x2
    OP_CLOSE = 0x8
    OP_PING = 0x9
    OP_PONG = 0xA
    CONTROL_MAX = 125          # RFC 6455 §5.5
    CLIENT_HEADER_MAX = 14     # 2 + 8 + 4
    SERVER_HEADER_MAX = 10     # 2 + 8


cdef enum Event:
    EVENT_NONE = 0      # every byte was consumed
    EVENT_PING = 1      # payload in control[:control_length]
    EVENT_PONG = 2      # likewise
    EVENT_CLOSE = 3     # close_code (1005: no body), body in control[:control_length]
    EVENT_ERROR = 4     # close_code is what the client is to be told; the parser stays in this state


# --- UTF-8 (RFC 3629), streaming. A zeroed struct is the start of a text.
cdef struct Utf8:
    uint32_t state      # what may come next; 0 on a character boundary
    uint32_t held       # bytes of the unfinished character seen so far, 0..3

# How many of the n bytes continue a valid text: n, or the index of the first byte that cannot.
cdef size_t utf8_feed(Utf8* text, const uint8_t* p, size_t n) noexcept nogil

# --- Masking (RFC 6455 §5.3). dst <= src or disjoint; key in wire order, as memcpy'd from the header.
# Returns the key rotated for the byte that follows.
cdef uint32_t mask_to(uint8_t* dst, const uint8_t* src, size_t n, uint32_t key) noexcept nogil

# --- Encoding. Writes an unmasked FIN=1 header *in front of* `payload` (SERVER_HEADER_MAX bytes of headroom
# are the caller's promise) and returns its length: 2, 4 or 10.
cdef size_t header_before(uint8_t* payload, uint8_t opcode, uint64_t length) noexcept nogil


cdef class FrameParser:
    """Client frames, streamed. See _speedups.pyx."""

    cdef uint64_t left                # payload bytes of the current frame still to come
    cdef uint32_t key                 # rotated to the next byte
    cdef uint8_t opcode               # of the current frame
    cdef uint8_t message              # opcode of the message under way, 0: none
    cdef bint fin
    cdef bint in_payload              # header done, `left` bytes to come
    cdef Utf8 text                    # of the text message under way
    cdef uint8_t spill[14]            # header cut by the end of a read
    cdef uint8_t spilled
    cdef uint8_t control[125]         # payload of the control frame under way
    cdef uint8_t control_length
    cdef uint16_t close_code
    cdef readonly uint64_t messages   # data messages that ended
    cdef bint ended                   # a CLOSE or an error was seen: nothing more is parsed

    # Parse src[:n]; data payload is unmasked to dst (dst == src is the normal case; dst <= src, never ahead of it).
    # Returns at the first Event other than EVENT_NONE, or with all n bytes used. *used: bytes of src consumed;
    # *made: payload bytes written at dst. EVENT_ERROR uses all n; after it or EVENT_CLOSE every later call uses all and
    # makes nothing.
    cdef Event run(self, const uint8_t* src, size_t n, uint8_t* dst, size_t* used, size_t* made) noexcept nogil

    # Is no message under way and no header half read?
    cdef bint at_boundary(self) noexcept nogil
