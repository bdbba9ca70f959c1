# cython: language_level=3
"""Layout of TLS: one connection's state between ciphertext and plain bytes. Knows nothing of sockets."""

from libc.stdint cimport uint8_t


cdef extern from "<sys/types.h>":
    ctypedef long ssize_t


cdef enum:
    RECORD_HEAD = 5             # RFC 8446 §5.1: type, version, length
    RECORD_PLAIN_MAX = 16384
    RECORD_MAX = RECORD_HEAD + RECORD_PLAIN_MAX + 2048     # RFC 5246 §6.2.3; TLS 1.3 adds 256 at most


cdef class Tls:
    """TLS of one accepted connection, from its first byte on."""

    cdef object connection              # ssl.SSLObject, and below its methods and those of its two MemoryBIOs
    cdef object outgoing
    cdef object give
    cdef object take
    cdef object read
    cdef object write
    cdef uint8_t head[5]                # of the record under way
    cdef size_t head_bytes              # how much of that has come
    cdef size_t body_left               # of the record, once its head has come
    cdef size_t held                    # ciphertext of an unfinished record that lies with OpenSSL
    cdef size_t owed_bytes              # of what OpenSSL said of itself, behind a queue that does not move
    cdef bint may_owe                   # something else than data was read: OpenSSL may have to say something
    cdef bint has_more                  # the last read of the socket was full
    cdef bint has_rest                  # what came with the end of the handshake is still to be decrypted
    cdef bint is_odd                    # what comes is not TLS: OpenSSL is asked at once
    cdef bint is_ended                  # the peer has said close_notify
    cdef bint is_failed                 # OpenSSL takes nothing more
    cdef bint is_shut                   # we have said close_notify

    cdef bint shake(self, const uint8_t* p, size_t n) except -1
    cdef size_t rest(self, uint8_t* plain, size_t room) except? 0
    cdef size_t open(self, const uint8_t* p, size_t n, uint8_t* plain, size_t room) except? 0
    cdef bytes seal(self, const uint8_t* p, size_t n)
    cdef bytes end(self)
    cdef bytes owed(self)
    cdef size_t cut(self, const uint8_t* p, size_t n, unsigned* records) noexcept
    cdef size_t drain(self, uint8_t* plain, size_t room, unsigned records) except? 0
