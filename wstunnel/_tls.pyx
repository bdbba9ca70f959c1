# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, freethreading_compatible=True
"""TLS between a socket of the hub and what reads and writes it: `ssl` over two MemoryBIOs, called from C.

The kernel's buffers are the only ones that epoll tells of. So what is read is decrypted at once, as far as records are
whole, and none is left with OpenSSL. The records' heads are followed here: OpenSSL is asked for a record when it has
come whole, since asking in vain costs an exception, more than a small record does.

A MemoryBIO keeps the largest size that it ever had, so nothing much longer than a record is ever put into one.

source  RFC 8446 §5.1, §6.1; what a call costs: docs/performance.md
"""

from cpython.buffer cimport PyBUF_READ, PyBUF_WRITE
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.limits cimport UINT_MAX
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

from ssl import MemoryBIO, SSLError, SSLWantReadError, SSLZeroReturnError

__all__ = ["Tls"]

cdef enum:
    TYPE_MIN = 20               # change_cipher_spec; RFC 8446 §5.1
    TYPE_MAX = 24               # heartbeat
    MAJOR = 3
    COPY_MAX = 512              # up to here a copy costs less than a view


cdef class Tls:
    """TLS of one accepted connection, from its first byte on.

    in      context  ssl.SSLContext of a server
    bound   two buffers no longer than a record; OpenSSL's own
    """

    def __init__(self, context):
        incoming = MemoryBIO()
        self.outgoing = MemoryBIO()
        self.connection = context.wrap_bio(incoming, self.outgoing, server_side=True)
        self.give = incoming.write
        self.take = self.outgoing.read
        self.read = self.connection.read
        self.write = self.connection.write

    cdef bint shake(self, const uint8_t* p, size_t n) except -1:
        """Go on with the handshake by n bytes; is it done? What is to be sent then is `owed`. raises ssl.SSLError"""
        cdef size_t piece
        cdef unsigned records
        while n:
            piece = self.cut(p, n, &records)
            self.give(_lent(p, piece))
            p += piece
            n -= piece
        try:
            self.connection.do_handshake()
        except SSLWantReadError:
            return False
        self.has_rest = True
        return True

    cdef size_t rest(self, uint8_t* plain, size_t room) except? 0:
        """What came with the end of the handshake, decrypted."""
        cdef size_t made = self.drain(plain, room, UINT_MAX)
        self.has_rest = made == room
        return made

    cdef size_t open(self, const uint8_t* p, size_t n, uint8_t* plain, size_t room) except? 0:  # hot
        """Decrypt n bytes, up to the last whole record; `is_ended` and `is_failed` tell what else there was.

        in      room   at least n + held
        """
        cdef size_t piece, made = 0
        cdef unsigned records = 0
        while n and not (self.is_ended or self.is_failed):
            piece = self.cut(p, n, &records)
            self.give(_lent(p, piece))
            p += piece
            n -= piece
            if records:
                made += self.drain(plain + made, room - made, records)
        return made

    cdef bytes seal(self, const uint8_t* p, size_t n):  # hot
        """The ciphertext of n bytes, and what was owed before. raises ssl.SSLError

        in      n   no more than a record has
        """
        self.write(_lent(p, n))
        return self.take()

    cdef bytes end(self):
        """Our close_notify, once; what the peer says may be read on, though not if whole records of it wait here."""
        self.is_shut = True
        try:
            self.connection.unwrap()
        except SSLError:
            pass                # it asks for the peer's, which `read` will come to; or all is lost anyway
        return self.take()

    cdef bytes owed(self):
        """What OpenSSL has to say to its like: tickets, keys, alerts; None, as a rule."""
        self.may_owe = False
        return self.take() if self.outgoing.pending else None

    cdef size_t cut(self, const uint8_t* p, size_t n, unsigned* records) noexcept:  # hot
        """How many bytes OpenSSL should have next, and how many records are whole with them.

        Those are about one record of full length, so that its buffer stays small: several short ones, what completes
        the one under way, or the beginning of one.
        """
        cdef size_t at = 0, piece, began = 0
        cdef bint is_later = self.held != 0
        records[0] = 0
        if self.is_odd:
            records[0] = UINT_MAX
            return n
        while at < n:
            if self.head_bytes == 0:
                if at and (is_later or (n - at >= RECORD_HEAD
                                        and at + RECORD_HEAD + (p[at + 3] << 8 | p[at + 4]) > RECORD_MAX)):
                    break
                began = at
                self.held = 0
            if self.head_bytes < RECORD_HEAD:
                piece = min(RECORD_HEAD - self.head_bytes, n - at)
                memcpy(self.head + self.head_bytes, p + at, piece)
                self.head_bytes += piece
                at += piece
                if self.head_bytes < RECORD_HEAD:
                    break
                self.body_left = self.head[3] << 8 | self.head[4]
                if not (TYPE_MIN <= self.head[0] <= TYPE_MAX and self.head[1] == MAJOR
                        and self.body_left <= RECORD_MAX - RECORD_HEAD):
                    self.is_odd = True
                    records[0] = UINT_MAX
                    return n
            piece = min(self.body_left, n - at)
            self.body_left -= piece
            at += piece
            if self.body_left == 0:
                self.head_bytes = 0
                records[0] += 1
        self.held = 0 if self.head_bytes == 0 else self.held + at - began
        return at

    cdef size_t drain(self, uint8_t* plain, size_t room, unsigned records) except? 0:  # hot
        """Decrypt so many records, or as many as there are."""
        cdef size_t made = 0, n
        while records and made < room:
            records -= 1
            try:
                n = self.read(room - made, PyMemoryView_FromMemory(<char*>plain + made, room - made, PyBUF_WRITE))
            except SSLWantReadError:    # some were OpenSSL's own, or empty
                self.may_owe = True
                break
            except SSLZeroReturnError:
                n = 0
            except SSLError:
                self.may_owe = self.is_failed = True
                break
            if n == 0:
                self.is_ended = True
                break
            made += n
        return made


cdef object _lent(const uint8_t* p, size_t n):
    """n bytes, for the call that they are handed to."""
    if n <= COPY_MAX:
        return PyBytes_FromStringAndSize(<const char*>p, n)
    return PyMemoryView_FromMemory(<char*>p, n, PyBUF_READ)
