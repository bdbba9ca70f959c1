# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, freethreading_compatible=True
"""Descriptors without socket objects: what a worker does once per connection, in the system calls that it takes.

A descriptor that comes from here is non-blocking, is not inherited by programs, and is the caller's to close.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_SetFromErrno
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint16_t
from libc.string cimport memcpy, memset
from posix.unistd cimport close

import os

cdef extern from "Python.h":
    bytes PyUnicode_EncodeFSDefault(object text)
    str PyUnicode_DecodeLatin1(const char* text, Py_ssize_t n, const char* errors)
    str PyUnicode_FromFormat(const char* pattern, ...)

cdef extern from "<sys/socket.h>" nogil:
    enum: AF_INET, AF_INET6, AF_UNIX, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM
    struct sockaddr:
        pass
    struct sockaddr_storage:
        unsigned short ss_family
    int accept4(int fd, sockaddr* where, unsigned* size, int flags)     # _GNU_SOURCE comes with Python.h
    int getsockname(int fd, sockaddr* where, unsigned* size)
    int socket(int family, int kind, int protocol)
    int connect(int fd, const sockaddr* where, unsigned size)

cdef extern from "<netinet/in.h>" nogil:
    enum: INET6_ADDRSTRLEN
    struct in_addr:
        pass
    struct in6_addr:
        pass
    struct sockaddr_in:
        uint16_t sin_port
        in_addr sin_addr
    struct sockaddr_in6:
        uint16_t sin6_port
        in6_addr sin6_addr

cdef extern from "<arpa/inet.h>" nogil:
    uint16_t ntohs(uint16_t port)
    const char* inet_ntop(int family, const void* address, char* text, unsigned size)

cdef extern from "<sys/un.h>" nogil:
    struct sockaddr_un:
        unsigned short sun_family
        char sun_path[108]

__all__ = ["accept", "connect_unix", "local_name"]


def accept(int listener):
    """The next connection of a non-blocking listening socket: its descriptor, and its peer's name as `local_name` has
    names; None when nobody waits.

    raises  OSError as accept(2) has it
    """
    cdef sockaddr_storage where
    cdef unsigned size = sizeof(where)
    cdef int fd = accept4(listener, <sockaddr*>&where, &size, SOCK_NONBLOCK | SOCK_CLOEXEC)
    while fd < 0 and errno == EINTR:
        size = sizeof(where)
        fd = accept4(listener, <sockaddr*>&where, &size, SOCK_NONBLOCK | SOCK_CLOEXEC)
    if fd < 0:
        if errno == EAGAIN:
            return None
        PyErr_SetFromErrno(OSError)
    return fd, _name(&where)


def local_name(int fd):
    """Where a socket is bound: `127.0.0.1:4711`, `[::1]:4711`, or `unix:`. raises OSError"""
    cdef sockaddr_storage where
    cdef unsigned size = sizeof(where)
    if getsockname(fd, <sockaddr*>&where, &size) < 0:
        PyErr_SetFromErrno(OSError)
    return _name(&where)


def connect_unix(path not None):
    """A descriptor connected to the UNIX socket at `path`; one that begins with NUL is an abstract name.

    raises  OSError as connect(2) has it, BlockingIOError for a full backlog: it completes at once or not at all
    """
    cdef bytes raw = PyUnicode_EncodeFSDefault(path)
    cdef sockaddr_un where
    cdef size_t n = <size_t>PyBytes_GET_SIZE(raw)
    cdef const char* name = PyBytes_AS_STRING(raw)
    cdef bint is_abstract = name[0] == 0
    cdef int fd, error
    if n + (not is_abstract) > sizeof(where.sun_path):
        raise OSError("the path of a UNIX socket is too long")
    memset(&where, 0, sizeof(where))
    where.sun_family = AF_UNIX
    memcpy(where.sun_path, name, n)
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    if fd < 0:
        PyErr_SetFromErrno(OSError)
    if connect(fd, <sockaddr*>&where, <unsigned>(sizeof(where) - sizeof(where.sun_path) + n + (not is_abstract))) < 0:
        error = errno
        close(fd)
        raise OSError(error, os.strerror(error))
    return fd


cdef char* _decimal(char* p, unsigned number) noexcept:
    """Writes a number of five digits at most, and tells where it ends. printf costs more than the accept around it."""
    cdef unsigned power = 10000
    while power > number and power > 1:
        power //= 10
    while power:
        p[0] = <char>(ord(b"0") + number // power % 10)
        p += 1
        power //= 10
    return p


cdef str _name(const sockaddr_storage* where):
    cdef char text[INET6_ADDRSTRLEN]
    cdef const sockaddr_in* in4 = <const sockaddr_in*>where
    cdef const sockaddr_in6* in6 = <const sockaddr_in6*>where
    cdef const uint8_t* octets = <const uint8_t*>&in4.sin_addr
    cdef char* p = text
    if where.ss_family == AF_INET:
        for octet in range(sizeof(in_addr)):
            p = _decimal(p, octets[octet])
            p[0] = b"."
            p += 1
        (p - 1)[0] = b":"
        p = _decimal(p, ntohs(in4.sin_port))
        return PyUnicode_DecodeLatin1(text, p - text, NULL)
    if where.ss_family == AF_INET6 and inet_ntop(AF_INET6, &in6.sin6_addr, text, INET6_ADDRSTRLEN) is not NULL:
        return PyUnicode_FromFormat("[%s]:%d", text, <int>ntohs(in6.sin6_port))
    return "unix:"
