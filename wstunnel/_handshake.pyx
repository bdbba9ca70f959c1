# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, freethreading_compatible=True
"""TLS handshakes of accepted sockets, read by the hub until a transport takes them over."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint32_t
from posix.unistd cimport close as close_fd

import os
from ssl import SSLCertVerificationError, SSLError

from wstunnel._hub cimport EPOLLIN, EPOLLOUT, Hub, HubTransport, Stream, ssize_t
from wstunnel._tls cimport RECORD_MAX, Tls

cdef extern from "<sys/socket.h>" nogil:
    enum: MSG_DONTWAIT
    ssize_t recv(int fd, void* p, size_t n, int flags)

__all__ = ["Handshake"]

cdef bytes _NOT_TLS = b"https is spoken here, and http is not\n"
_NOT_TLS = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"
    % (len(_NOT_TLS), _NOT_TLS)
)


cdef class Handshake(Stream):
    """An accepted socket whose TLS handshake is under way.

    in      fd          connected and non-blocking; closed when the handshake fails, otherwise `attach` passes it on
            context     ssl.SSLContext of a server
            on_end      called once, with this and a text: why it failed, to be logged; "" where there is nothing to
                        say; None: it is done, and `attach` comes next
            within_s    from now to the end of the handshake
            max_bytes   that the client may send for it
            per_turn    how many handshakes go on per wake of the hub, so that what else it reads keeps its turn
    raises  OSError; the descriptor is then still the caller's. ValueError: the hub's reads are shorter than a record
    """

    def __init__(self, Hub hub not None, int fd, context, *, on_end, double within_s, size_t max_bytes,
                 unsigned per_turn):
        if hub.read_bytes < RECORD_MAX:
            raise ValueError(f"TLS takes reads of at least {RECORD_MAX} bytes")
        self.tls = Tls(context)
        self.hub = hub
        self.fd = fd
        self.on_end = on_end
        self.within_s = within_s
        self.max_bytes = self.left_bytes = max_bytes
        self.per_turn = per_turn
        hub.seat(self)
        try:
            self.want(EPOLLIN)
        except BaseException:
            hub.unseat(self)
            raise
        self.due_s = hub.loop.time() + within_s
        hub.wheel.add(self, self.due_s)

    def due(self, double now_s):
        """Called by the timer wheel."""
        if now_s < self.due_s:
            return self.due_s
        self.over(f"not done within {self.within_s:g} s")

    @property
    def left_s(self):
        """Seconds of `within_s` that are left."""
        return max(self.due_s - self.hub.loop.time(), 0.0)

    def fileno(self):
        return self.fd

    def attach(self, protocol):
        """The HubTransport that goes on with the connection. raises as that does; the descriptor is closed then"""
        cdef int fd = self.fd
        self.fd = -1
        try:
            return HubTransport(self.hub, fd, protocol, self)
        except BaseException:
            close_fd(fd)
            raise

    def abort(self):
        """Give up, without a word in the log."""
        self.over("")

    cdef int ready(self, uint32_t events) except -1:
        if self.queue_bytes and events & ~<uint32_t>EPOLLIN:
            if self.pour():
                return self.over("the client is gone")
            if self.queue_bytes == 0:
                self.want(EPOLLIN)
        if events & ~<uint32_t>EPOLLOUT and self.hub.handshakes < self.per_turn:
            self.hub.handshakes += 1
            return self.read()
        return 0                # the epoll set tells of it again

    cdef int fail(self) except -1:
        return self.over("")

    cdef int read(self) except -1:
        cdef uint8_t* p = self.hub.sealed()
        cdef bint is_first = self.left_bytes == self.max_bytes
        cdef ssize_t n = recv(self.fd, p, min(<size_t>RECORD_MAX, self.left_bytes), MSG_DONTWAIT)
        if n < 0:
            return 0 if errno == EAGAIN or errno == EINTR else self.over(os.strerror(errno))
        if n == 0:
            return self.over("" if is_first else "the client left")
        self.left_bytes -= n
        if is_first and b"A" <= p[0] <= b"Z":   # of a request line; a record begins with 22
            self.post(<const uint8_t*>PyBytes_AS_STRING(_NOT_TLS), PyBytes_GET_SIZE(_NOT_TLS))
            return self.over("the client speaks plain HTTP")
        try:
            is_done = self.tls.shake(p, n)
        except SSLError as error:
            self.owe()
            return self.over(_reason(error))
        if self.owe():
            return self.over("the client is gone")
        if is_done:
            try:
                self.certificate = self.tls.connection.getpeercert()
            except ValueError as error:         # OpenSSL verifies what Python cannot decode
                return self.over(f"the client's certificate cannot be read: {error}")
            self.protocol = self.tls.connection.selected_alpn_protocol() or ""
            self.hub.wheel.discard(self)
            on_end, self.on_end = self.on_end, None
            on_end(self, None)
        elif self.left_bytes == 0:
            self.over(f"more than {self.max_bytes} bytes of it")
        return 0

    cdef int owe(self) except -1:
        """Send what OpenSSL has to say; an errno, or 0."""
        cdef bytes owed = self.tls.owed()
        cdef int error = 0
        if owed is not None:
            error = self.post(<const uint8_t*>PyBytes_AS_STRING(owed), PyBytes_GET_SIZE(owed))
            if self.queue_bytes:
                self.want(EPOLLIN | EPOLLOUT)
        return error

    cdef int over(self, str why) except -1:
        """It failed, or nobody could go on with it."""
        if self.fd < 0:
            return 0
        on_end, self.on_end = self.on_end, None
        self.hub.wheel.discard(self)
        self.hub.unseat(self)
        self.forget_queue()
        recv(self.fd, self.hub.sealed(), self.hub.sealed_bytes, MSG_DONTWAIT)   # closing over unread input is a reset
        close_fd(self.fd)
        self.fd = -1
        if on_end is not None:
            on_end(self, why)
        return 0


def _reason(error):
    """What OpenSSL says, in words."""
    if isinstance(error, SSLCertVerificationError):
        return f"the client's certificate does not pass: {error.verify_message}"
    return (error.reason or error.strerror or "no reason given").lower().replace("_", " ")
