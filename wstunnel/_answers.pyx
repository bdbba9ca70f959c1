# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, freethreading_compatible=True
"""Heads of answers as nearly every web server sends them, out of one read and in one pass.

What is taken here, `ResponseReader` (proto/http1_response.py) takes too, and reads the same out of it. Everything else
is left to it, good or bad: it alone refuses, so that the rules and their texts have one source.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t
from libc.string cimport memcmp, memcpy

__all__ = ["read_plain_answer"]

cdef enum:
    PLAIN_BYTES = 4096  # a longer head goes the long way
    START_BYTES = 12  # "HTTP/1.1 200"
    LENGTH_DIGITS = 18  # of a number that 64 bits surely hold

cdef enum Role:
    OTHER
    LENGTH
    CONNECTION
    DROPPED
    ODD

cdef uint8_t _lower[256]  # a byte of a token in lower case; 0: no token has it. Written once, at import
cdef uint8_t _is_value[256]


cdef int _fill_tables() except -1:
    cdef int byte
    for byte in range(256):
        if byte < 0x80 and (chr(byte).isalnum() or chr(byte) in "!#$%&'*+-.^_`|~"):
            _lower[byte] = ord(chr(byte).lower())
        _is_value[byte] = byte == c"\t" or (0x20 <= byte and byte != 0x7F)
    return 0


_fill_tables()


def read_plain_answer(bytes data not None, Py_ssize_t max_bytes, Py_ssize_t max_fields):
    """Status, the fields that are for the client, length of the body, may the connection be used again, and where the
    head ends; None: ask a ResponseReader.

    out     an answer of HTTP/1.1 that is not interim, with strict fields, one Content-Length, and at most one
            Connection, which says `keep-alive` or `close`
    bound   PLAIN_BYTES on the stack; one pass
    source  RFC 9112 §4-§6, as ResponseReader
    """
    cdef const uint8_t* raw = <const uint8_t*>PyBytes_AS_STRING(data)  # owned by `data`
    cdef Py_ssize_t length = min(PyBytes_GET_SIZE(data), max_bytes, PLAIN_BYTES)
    cdef uint8_t kept[PLAIN_BYTES]
    cdef Py_ssize_t kept_bytes = 0, at, begin, value, end, count = 0
    cdef long long body_bytes = -1
    cdef bint is_persistent = True, has_connection = False
    cdef Role role
    cdef int status
    if length < START_BYTES or memcmp(raw, b"HTTP/1.1 ", 9) != 0:
        return None
    for at in range(9, START_BYTES):
        if not c"0" <= raw[at] <= c"9":
            return None
    status = (raw[9] - c"0") * 100 + (raw[10] - c"0") * 10 + raw[11] - c"0"
    if not 200 <= status < 600:
        return None
    at = START_BYTES
    if at < length and raw[at] == c" ":
        while at < length and _is_value[raw[at]]:
            at += 1
    at = _line_end(raw, at, length)
    while 0 < at <= length - 2:
        if raw[at] == c"\r":
            if raw[at + 1] != c"\n" or body_bytes < 0:
                return None
            fields = PyBytes_FromStringAndSize(<const char*>kept, kept_bytes)
            return status, fields, body_bytes, is_persistent, at + 2
        if count == max_fields:
            return None
        count += 1
        begin = at
        while at < length and _lower[raw[at]]:
            at += 1
        if at == begin or at == length or raw[at] != c":":
            return None
        role = _role(raw + begin, at - begin)
        value = at + 1
        at = value
        while at < length and _is_value[raw[at]]:
            at += 1
        end = at
        at = _line_end(raw, at, length)
        if at < 0 or role == ODD:
            return None
        if role == OTHER:
            memcpy(kept + kept_bytes, raw + begin, at - begin)
            kept_bytes += at - begin
            continue
        while value < end and (raw[value] == c" " or raw[value] == c"\t"):
            value += 1
        while value < end and (raw[end - 1] == c" " or raw[end - 1] == c"\t"):
            end -= 1
        if role == LENGTH:
            if body_bytes >= 0:
                return None
            body_bytes = _number(raw + value, end - value)
            if body_bytes < 0:
                return None
        elif role == CONNECTION:
            is_persistent = end - value == 10 and _equals(raw + value, b"keep-alive", 10)
            if has_connection or not (is_persistent or (end - value == 5 and _equals(raw + value, b"close", 5))):
                return None
            has_connection = True
    return None


cdef inline Py_ssize_t _line_end(const uint8_t* raw, Py_ssize_t at, Py_ssize_t length) noexcept nogil:
    """Where the next line begins, if this one ends here; else -1."""
    return at + 2 if length - at >= 2 and raw[at] == c"\r" and raw[at + 1] == c"\n" else -1


cdef inline bint _equals(const uint8_t* text, const char* lowered, Py_ssize_t length) noexcept nogil:
    cdef Py_ssize_t at
    for at in range(length):
        if (text[at] | 0x20 if c"A" <= text[at] <= c"Z" else text[at]) != <uint8_t>lowered[at]:
            return False
    return True


cdef inline Role _role(const uint8_t* name, Py_ssize_t length) noexcept nogil:
    if length == 14 and _equals(name, b"content-length", 14):
        return LENGTH
    if length == 10 and _equals(name, b"connection", 10):
        return CONNECTION
    if length == 10 and _equals(name, b"keep-alive", 10):
        return DROPPED
    if length == 17 and _equals(name, b"transfer-encoding", 17):
        return ODD
    if (length == 7 and (_equals(name, b"upgrade", 7) or _equals(name, b"trailer", 7))
            or length == 2 and _equals(name, b"te", 2) or length == 16 and _equals(name, b"proxy-connection", 16)):
        return DROPPED
    return OTHER


cdef inline long long _number(const uint8_t* text, Py_ssize_t length) noexcept nogil:
    """Of plain digits; -1: it is none, or too long for here."""
    cdef long long number = 0
    cdef Py_ssize_t at
    if not 0 < length <= LENGTH_DIGITS:
        return -1
    for at in range(length):
        if not c"0" <= text[at] <= c"9":
            return -1
        number = number * 10 + text[at] - c"0"
    return number
