# cython: language_level=3
"""Layout of TLS handshakes under way."""

from wstunnel._hub cimport Stream


cdef class Handshake(Stream):
    """An accepted socket whose TLS handshake is under way."""

    cdef object on_end                  # None: it has been called
    cdef readonly object protocol       # agreed on by ALPN, once it is done; "": the client did not ask
    cdef readonly object certificate    # the client's, as `ssl.SSLSocket.getpeercert` has it; None: it has none
    cdef double due_s
    cdef double within_s
    cdef size_t max_bytes
    cdef size_t left_bytes              # of max_bytes
    cdef unsigned per_turn

    cdef int read(self) except -1
    cdef int owe(self) except -1
    cdef int over(self, str why) except -1
