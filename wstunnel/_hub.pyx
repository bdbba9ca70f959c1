# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, freethreading_compatible=True
"""The hub: one epoll set below the event loop, in which the sockets of a worker are served without it.

The set's own descriptor is readable when one of its sockets is ready, so the loop calls `Hub.wake` once for all that
are, and each of them is served by a call in C. The loop's own way costs several Python calls per read.

A descriptor number may be closed and given out again between the moment that the kernel reports an event and the
moment that we come to it. So events carry the seating that they were asked for, and a seat taken over since does not
get those of its predecessor.

Where a stream has a `Tls`, `fetch` and `put` mean plain bytes all the same, and its queue holds ciphertext.

source  the hub against bare C and the loop's transports: docs/architecture.md
"""

from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_SetFromErrno
from cpython.list cimport PyList_GET_ITEM
from libc.errno cimport EAGAIN, EINTR, EPROTO, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from posix.unistd cimport close as close_fd

import os
from ssl import SSLError

from wstunnel._tls cimport RECORD_MAX, RECORD_PLAIN_MAX, Tls

cdef extern from "<sys/socket.h>" nogil:
    enum: MSG_DONTWAIT, MSG_MORE, MSG_NOSIGNAL, MSG_PEEK, SHUT_RD, SHUT_WR, SOL_SOCKET, SO_MEMINFO
    ssize_t send(int fd, const void* p, size_t n, int flags)
    ssize_t recv(int fd, void* p, size_t n, int flags)
    int shutdown(int fd, int how)
    int getsockopt(int fd, int level, int name, void* value, unsigned* length)

cdef extern from "<linux/sock_diag.h>" nogil:
    enum: SK_MEMINFO_WMEM_ALLOC, SK_MEMINFO_SNDBUF, SK_MEMINFO_WMEM_QUEUED, SK_MEMINFO_VARS

cdef extern from "<sys/epoll.h>" nogil:
    enum: EPOLLHUP, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLL_CLOEXEC
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event* event)
    int epoll_wait(int epfd, epoll_event* events, int maxevents, int timeout_ms)

__all__ = ["Hub", "HubTransport"]

cdef enum:
    SEATING_SHIFT = 32          # epoll_data: the seating above, the descriptor below
    FD_MASK = 0x7FFFFFFF
    GONE = EPOLLERR | EPOLLHUP  # told whether they are wanted or not
    SEATS_STEP = 64
    DEFAULT_HIGH_BYTES = 65536


cdef class Hub:
    """What the sockets of one worker share.

    in      loop        the running asyncio or uvloop loop
            wheel       what times its sockets, and the hub itself
            read_bytes  size of one read, and so the most that a leg is left with
            bulk_bytes  size of one read of a stream, while its receiver has room for what is over read_bytes
            turn_bytes  what a transport may read before the others have their turn; a socket of the hub is read once
            look_s      how often an ending tunnel is looked at, at least
            counters    writable, 4 signed 64-bit words that all tunnels count in: bytes in, bytes out, messages in,
                        messages out; held for as long as the hub lives. None: nobody reads them
    raises  ValueError when the counters are not of that shape; BufferError when they cannot be written
    bound   one buffer of bulk_bytes + headroom, with TLS another one, one descriptor, whatever the number of sockets
    """

    def __cinit__(self):
        self.epoll_fd = -1

    def __dealloc__(self):
        while self.spares_n:
            self.spares_n -= 1
            free(self.spares[self.spares_n])

    def __init__(self, loop, TimerWheel wheel not None, *, size_t read_bytes, size_t bulk_bytes, size_t turn_bytes,
                 double look_s, counters=None):
        self.counters = memoryview(bytearray(sizeof(int64_t) * COUNTERS)).cast("q") if counters is None else counters
        if self.counters.shape[0] != COUNTERS:
            raise ValueError(f"{COUNTERS} counters are wanted, not {self.counters.shape[0]}")
        self.count = &self.counters[0]
        self.loop = loop
        self.wheel = wheel
        self.now_s = wheel.now_s
        self.store = bytearray(HEADROOM + bulk_bytes)
        self.view = memoryview(self.store)[HEADROOM:HEADROOM + read_bytes]
        self.base = <uint8_t*>PyByteArray_AS_STRING(self.store) + HEADROOM
        self.inbox_store = bytearray(bulk_bytes)
        self.inbox = <uint8_t*>PyByteArray_AS_STRING(self.inbox_store)
        self.read_bytes = read_bytes
        self.bulk_bytes = bulk_bytes
        self.turn_bytes = turn_bytes
        self.look_s = look_s
        self.sealed_bytes = bulk_bytes + RECORD_MAX
        self.seats = []
        self.corked = []
        self.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll_fd < 0:
            PyErr_SetFromErrno(OSError)
        loop.add_reader(self.epoll_fd, self.wake)
        wheel.add(self, wheel.now_s)

    def due(self, double now_s):
        """Called by the timer wheel at every tick."""
        self.now_s = now_s
        return now_s

    def close(self):
        """Give the descriptor back. What had a seat has ended before."""
        if self.epoll_fd >= 0:
            self.wheel.discard(self)
            self.loop.remove_reader(self.epoll_fd)
            close_fd(self.epoll_fd)
            self.epoll_fd = -1

    def wake(self):  # hot
        """Called by the loop when some sockets are ready."""
        cdef epoll_event events[READY_PER_WAKE]
        cdef int i, fd
        cdef int n = epoll_wait(self.epoll_fd, events, READY_PER_WAKE, 0)
        cdef Stream stream
        self.is_awake = True
        self.handshakes = 0
        for i in range(n):
            fd = <int>(events[i].data.u64 & FD_MASK)
            if <object>PyList_GET_ITEM(self.seats, fd) is None:
                continue
            stream = <Stream>PyList_GET_ITEM(self.seats, fd)
            if stream.seating == <uint32_t>(events[i].data.u64 >> SEATING_SHIFT):
                self.tell(stream, events[i].events)
        self.is_awake = False
        if self.corked:
            self.uncork()

    cdef int cork(self, Stream stream) except -1:
        """Have `stream.uncork` called once all that are ready were served, or when the loop has its next turn."""
        self.corked.append(stream)
        if not self.is_awake and len(self.corked) == 1:
            self.loop.call_soon(self.uncork)
        return 0

    cdef uint8_t* take_spare(self, size_t* room) noexcept:
        """A buffer that somebody has used before, now the caller's, and how long it is; or NULL and 0."""
        if self.spares_n == 0:
            room[0] = 0
            return NULL
        self.spares_n -= 1
        room[0] = self.spare_bytes[self.spares_n]
        return self.spares[self.spares_n]

    cdef void give_spare(self, uint8_t* p, size_t room) noexcept:
        """The caller does without it from now on."""
        if self.spares_n == SPARES:
            free(p)
            return
        self.spares[self.spares_n] = p
        self.spare_bytes[self.spares_n] = room
        self.spares_n += 1

    def uncork(self):
        """Called by the loop when something was gathered outside of `wake`."""
        cdef Stream stream
        corked, self.corked = self.corked, []
        for stream in corked:
            try:
                stream.uncork()
            except Exception as error:
                self.report(stream, error)

    cdef int tell(self, Stream stream, uint32_t events) except -1:  # hot
        events &= stream.wanted | GONE
        if stream.wanted == 0 or events == 0:
            return self.arm(stream)
        try:
            stream.ready(events)
        except Exception as error:
            self.report(stream, error)
        if stream.armed & ~stream.wanted & EPOLLOUT:
            self.arm(stream)    # it would come again at once
        return 0

    cdef int report(self, Stream stream, error) except -1:
        """A socket could not be served because of a fault of ours: say so, end it, and go on with the others."""
        self.loop.call_exception_handler({"message": "a connection was ended by a fault", "exception": error})
        try:
            stream.fail()
        except Exception as second:
            self.loop.call_exception_handler({"message": "a connection could not be ended", "exception": second})
        return 0

    cdef uint8_t* sealed(self) except NULL:
        """Room for `sealed_bytes` of ciphertext, until the next call of anything that asks for it."""
        if self.sealed_store is None:
            self.sealed_store = bytearray(self.sealed_bytes)
        return <uint8_t*>PyByteArray_AS_STRING(self.sealed_store)

    # --- seats

    cdef int seat(self, Stream stream) except -1:
        """Remember the stream, and nothing of whoever had its descriptor before. Nothing is wanted yet."""
        while len(self.seats) <= stream.fd:
            self.seats.extend([None] * SEATS_STEP)
        self.seatings += 1
        if self.seatings == 0:
            self.seatings = 1
        stream.seating = self.seatings
        stream.armed = stream.wanted = 0
        self.seats[stream.fd] = stream
        return 0

    cdef int unseat(self, Stream stream) except -1:
        """Forget a stream before its descriptor is closed. A program forked meanwhile may hold a copy, so that
        the kernel would go on watching."""
        if stream.seating:
            stream.wanted = 0
            self.arm(stream)
            stream.seating = 0
            self.seats[stream.fd] = None
        return 0

    cdef int pass_on(self, Stream stream, Stream heir) except -1:
        """Let `heir` have the stream's seat, what is armed there, its TLS and its queue, without a system call."""
        heir.tls = stream.tls
        stream.tls = None
        heir.queue = stream.queue
        heir.queue_start = stream.queue_start
        heir.queue_bytes = stream.queue_bytes
        stream.queue = NULL
        stream.queue_bytes = 0
        heir.seating = stream.seating
        heir.armed = stream.armed
        heir.wanted = 0
        self.seats[heir.fd] = heir
        stream.seating = stream.armed = stream.wanted = 0
        return 0

    cdef int arm(self, Stream stream) except -1:
        """Have the kernel watch for what is wanted, and for nothing else."""
        cdef epoll_event event
        cdef int op = EPOLL_CTL_MOD
        if stream.armed == stream.wanted:
            return 0
        if stream.armed == 0:
            op = EPOLL_CTL_ADD
        elif stream.wanted == 0:
            op = EPOLL_CTL_DEL
        memset(&event, 0, sizeof(event))
        event.events = stream.wanted
        event.data.u64 = (<uint64_t>stream.seating << SEATING_SHIFT) | <uint64_t>stream.fd
        if epoll_ctl(self.epoll_fd, op, stream.fd, &event) < 0 and op != EPOLL_CTL_DEL:
            PyErr_SetFromErrno(OSError)
        stream.armed = stream.wanted
        return 0


cdef class Stream:
    """A connected stream socket that the hub watches. Who derives from it says what happens when it is ready.

    bound   the queue is as long as what was put
    """

    def __cinit__(self):
        self.fd = -1

    def __dealloc__(self):
        free(self.queue)

    cdef int ready(self, uint32_t events) except -1:
        """Some of what is wanted has come, or the peer is gone."""
        raise NotImplementedError

    cdef int fail(self) except -1:
        """End it: `ready` has raised."""
        raise NotImplementedError

    cdef int uncork(self) except -1:
        """Send what was gathered."""
        raise NotImplementedError

    cdef int want(self, uint32_t events) except -1:
        """Have `ready` called for these events from now on, EPOLLIN and EPOLLOUT being levels."""
        self.wanted = events
        if events & ~self.armed:
            return self.hub.arm(self)
        return 0

    cdef int queued(self) except -1:
        """Something waits in the queue that was not put: have it sent, and put no more than need be."""
        raise NotImplementedError

    cdef ssize_t fetch(self, uint8_t* p, size_t n) except? -1:  # hot
        """Read up to n bytes; how many, 0 at the end, or a negative errno: -EAGAIN when there are none yet.

        in      n   with TLS at least RECORD_MAX
        With TLS, reading may also find something to send.
        """
        cdef ssize_t r
        if self.tls is not None:
            return self.fetch_sealed(p, n)
        r = recv(self.fd, p, n, MSG_DONTWAIT)
        return r if r >= 0 else -errno

    cdef ssize_t fetch_sealed(self, uint8_t* p, size_t n) except? -1:  # hot
        cdef Tls tls = self.tls
        cdef size_t made = 0, asked
        cdef ssize_t r
        cdef uint8_t* sealed
        if tls.has_rest:
            made = tls.rest(p, n)
            if tls.may_owe:
                self.pay()
        if made == 0 and not (tls.is_ended or tls.is_failed):
            sealed = self.hub.sealed()
            asked = min(n - tls.held, self.hub.sealed_bytes)
            r = recv(self.fd, sealed, asked, MSG_DONTWAIT)
            if r <= 0:
                return r if r == 0 else -errno
            tls.has_more = <size_t>r == asked
            made = tls.open(sealed, <size_t>r, p, n)
        if tls.may_owe:
            self.pay()
        if tls.is_ended or tls.is_failed:
            shutdown(self.fd, SHUT_RD)      # whoever is not told now is told by the epoll set
            if made == 0:
                return -EPROTO if tls.is_failed else 0
        return <ssize_t>made if made else -EAGAIN

    cdef int pay(self) except -1:  # hot
        """Send what OpenSSL has to say of itself."""
        cdef bytes owed = self.tls.owed()
        cdef size_t waiting = self.queue_bytes
        if owed is None or self.tls.is_shut:
            return 0
        self.tls.owed_bytes = PyBytes_GET_SIZE(owed) + (self.tls.owed_bytes if waiting else 0)
        if self.tls.owed_bytes > OWED_MAX:
            self.tls.is_failed = True
            return 0
        self.post(<const uint8_t*>PyBytes_AS_STRING(owed), PyBytes_GET_SIZE(owed))  # an error shows at the next read
        if self.queue_bytes and not waiting:
            self.queued()
        return 0

    cdef int put(self, const uint8_t* p, size_t n) except -1:  # hot; p is the caller's, and not kept
        """Send n bytes behind those that wait, or keep what the socket does not take; an errno, or 0."""
        return self.post(p, n) if self.tls is None else self.put_sealed(p, n)

    cdef int put_sealed(self, const uint8_t* p, size_t n) except -1:  # hot
        cdef uint8_t* all = NULL
        cdef size_t gathered = 0, piece
        cdef int error
        cdef bytes sealed
        while True:
            piece = min(n, <size_t>RECORD_PLAIN_MAX)
            try:
                sealed = self.tls.seal(p, piece)
            except SSLError:
                return EPROTO
            p += piece
            n -= piece
            if n == 0 and gathered == 0:
                return self.post(<const uint8_t*>PyBytes_AS_STRING(sealed), PyBytes_GET_SIZE(sealed))
            if all is NULL:
                all = self.hub.sealed()
            memcpy(all + gathered, PyBytes_AS_STRING(sealed), PyBytes_GET_SIZE(sealed))
            gathered += PyBytes_GET_SIZE(sealed)
            if n == 0 or gathered + RECORD_MAX + OWED_MAX > self.hub.sealed_bytes:
                error = self.post(all, gathered)
                if error or n == 0:
                    return error
                gathered = 0

    cdef int post(self, const uint8_t* p, size_t n) except -1:  # hot; p is the caller's, and not kept
        """`put`, of what goes over the wire."""
        cdef ssize_t r
        cdef int flags = MSG_DONTWAIT | MSG_NOSIGNAL | (MSG_MORE if self.is_end_next else 0)
        if self.queue_bytes == 0:
            r = send(self.fd, p, n, flags)
            while r < 0 and errno == EINTR:
                r = send(self.fd, p, n, flags)
            if r < 0:
                if errno != EAGAIN:
                    return errno
                r = 0
            if <size_t>r == n:
                return 0
            p += r
            n -= r
        self.keep(p, n)
        return 0

    cdef int keep(self, const uint8_t* p, size_t n) except -1:
        """Queue n bytes behind those that wait."""
        cdef uint8_t* grown = <uint8_t*>malloc(self.queue_bytes + n)
        if grown is NULL:
            raise MemoryError()
        if self.queue_bytes:
            memcpy(grown, self.queue + self.queue_start, self.queue_bytes)
        memcpy(grown + self.queue_bytes, p, n)
        free(self.queue)
        self.queue = grown
        self.queue_start = 0
        self.queue_bytes += n
        return 0

    cdef int part(self) except -1:
        """Say close_notify, once; an errno, or 0. The queue is empty before, as a rule afterwards too."""
        cdef bytes sealed
        if self.tls is None or self.tls.is_shut:
            return 0
        self.is_end_next = True
        sealed = self.tls.end()
        return self.post(<const uint8_t*>PyBytes_AS_STRING(sealed), PyBytes_GET_SIZE(sealed))

    cdef int shut_down(self) except -1:
        """Say that no more comes, the queue being empty; an errno, or 0. If it is not empty then, call again."""
        cdef int error = self.part()
        if error or self.queue_bytes:
            return error
        return errno if shutdown(self.fd, SHUT_WR) < 0 else 0

    cdef int pour(self) noexcept:
        """Send from the queue what the socket takes now; an errno, or 0."""
        cdef ssize_t r = send(self.fd, self.queue + self.queue_start, self.queue_bytes, MSG_DONTWAIT | MSG_NOSIGNAL)
        if r < 0:
            return 0 if errno == EAGAIN or errno == EINTR else errno
        self.queue_start += r
        self.queue_bytes -= r
        if self.queue_bytes == 0:
            self.forget_queue()
        return 0

    cdef size_t room(self) noexcept:
        """Bytes that the kernel would still take, its own overhead included; 0 where it does not say."""
        cdef uint32_t memory[SK_MEMINFO_VARS]
        cdef unsigned length = sizeof(memory)
        cdef uint32_t used
        if self.queue_bytes or getsockopt(self.fd, SOL_SOCKET, SO_MEMINFO, memory, &length) < 0:
            return 0
        # UNIX sockets count in the one, TCP in the other
        used = max(memory[SK_MEMINFO_WMEM_ALLOC], memory[SK_MEMINFO_WMEM_QUEUED])
        return memory[SK_MEMINFO_SNDBUF] - min(used, memory[SK_MEMINFO_SNDBUF])

    cdef int forget_queue(self) noexcept:
        free(self.queue)
        self.queue = NULL
        self.queue_start = 0
        self.queue_bytes = 0
        return 0


cdef class HubTransport(Stream):
    """A connected socket that the hub reads, with TLS or without, as much of an asyncio transport as net/h1.py needs.

    in      fd        connected and non-blocking; closed when the connection is lost, unless a leg has taken it over
            protocol  an asyncio.BufferedProtocol that reads from `hub.view`: its `get_buffer` is not asked.
                      `connection_made` is called at once
            before    who had the descriptor's seat until now; its TLS goes on here. None: it had none
    raises  what `connection_made` does, or OSError; the descriptor is then still the caller's
    bound   the queue is as long as what the protocol writes after it was asked to pause
    """

    def __init__(self, Hub hub not None, int fd, protocol, Stream before=None):
        self.hub = hub
        self.fd = fd
        self.protocol = protocol
        self.high_bytes = DEFAULT_HIGH_BYTES
        self.low_bytes = DEFAULT_HIGH_BYTES // 4
        if before is None:
            hub.seat(self)
        else:
            hub.pass_on(before, self)
        try:
            protocol.connection_made(self)
            self.rearm()
        except BaseException:
            self.is_lost = True
            self.protocol = None
            hub.unseat(self)
            raise

    # --- for the protocol

    def read_at_once(self):
        """Read what has come already, without waiting to be told; the end of the connection is told as ever."""
        cdef ssize_t n
        if self.is_paused or self.is_at_eof or self.is_ending:
            return
        n = self.fetch(self.hub.base, self.hub.read_bytes)
        if n > 0:
            try:
                self.protocol.buffer_updated(n)
            except Exception as error:
                self.hub.report(self, error)

    def get_extra_info(self, name, default=None):
        """`socket`: something with a `fileno`."""
        return self if name == "socket" and self.seating else default

    def fileno(self):
        return self.fd

    def get_protocol(self):
        return self.protocol

    def set_write_buffer_limits(self, size_t high, low=None):
        """From `high` waiting bytes on the protocol is to pause writing, from `low` down (a quarter) to resume."""
        self.high_bytes = high
        self.low_bytes = high // 4 if low is None else <size_t>low
        self.pause_if_full()

    def get_write_buffer_size(self):
        return self.queue_bytes

    def pause_reading(self):
        self.is_paused = True
        self.rearm()

    def resume_reading(self):
        self.is_paused = False
        self.rearm()

    def is_closing(self):
        return self.is_ending

    def is_silent(self):
        """Is the other side still there, and is nothing of it unread?"""
        cdef uint8_t byte
        if self.is_ending or self.is_at_eof:
            return False
        return recv(self.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 and errno == EAGAIN

    def can_write_eof(self):
        return True

    def write(self, const uint8_t[::1] data):
        """Send, or keep what the socket does not take. Nothing happens when the transport is closing."""
        cdef int error
        if self.is_eof_wanted:
            raise RuntimeError("nothing is written behind the end")
        if self.is_ending or data.shape[0] == 0:
            return
        error = self.put(&data[0], <size_t>data.shape[0])
        if error:
            self.lose(OSError(error, os.strerror(error)))
        elif self.queue_bytes:
            self.rearm()
            self.pause_if_full()

    def write_eof(self):
        """Shut down for writing, behind what waits. raises OSError when the connection is gone."""
        cdef int error
        if self.is_ending or self.is_eof_wanted:
            return
        self.is_eof_wanted = True
        if self.queue_bytes == 0:
            error = self.shut_down()
            if error:
                raise OSError(error, os.strerror(error))
            self.rearm()

    def close(self):
        """Send what waits, throw away what has come, and go: closing over unread input would reset the connection."""
        if self.is_ending:
            return
        if not self.is_at_eof:
            recv(self.fd, self.hub.base, self.hub.read_bytes, MSG_DONTWAIT)
        self.is_ending = True
        if self.queue_bytes == 0:
            self.part()
        if self.queue_bytes == 0:
            self.lose(None)
        else:
            self.rearm()

    def abort(self):
        """Go now; what waits is dropped."""
        self.lose(None)

    # --- for the hub

    cdef int ready(self, uint32_t events) except -1:
        if self.queue_bytes and events & ~<uint32_t>EPOLLIN:
            self.flush()
        if self.wanted & EPOLLIN and events & ~<uint32_t>EPOLLOUT:
            self.read()
        return 0

    cdef int fail(self) except -1:
        return self.lose(None)

    cdef int read(self) except -1:
        cdef ssize_t n = self.fetch(self.hub.base, self.hub.read_bytes)
        if n > 0:
            self.protocol.buffer_updated(n)
        elif n == 0:
            self.is_at_eof = True
            self.rearm()
            if not self.protocol.eof_received():
                self.close()
        elif n != -EAGAIN and n != -EINTR:
            self.lose(OSError(-n, os.strerror(-n)))
        return 0

    cdef int flush(self) except -1:
        cdef int error = self.pour()
        if error:
            return self.lose(OSError(error, os.strerror(error)))
        if self.is_write_paused and self.queue_bytes <= self.low_bytes:
            self.is_write_paused = False
            self.protocol.resume_writing()
        if self.queue_bytes == 0 and not self.is_lost:
            if self.is_ending:
                self.part()
                return self.rearm() if self.queue_bytes else self.lose(None)
            if self.is_eof_wanted:
                self.shut_down()
        return self.rearm()

    cdef int rearm(self) except -1:
        cdef uint32_t events = 0
        if self.seating == 0 or self.is_lost:
            return 0
        if self.queue_bytes:
            events = EPOLLOUT
        if not (self.is_paused or self.is_at_eof or self.is_ending):
            events |= EPOLLIN
            if self.tls is not None and self.tls.has_rest:
                self.hub.loop.call_soon(self.read_at_once)      # no event tells of it
        return self.want(events)

    cdef int queued(self) except -1:
        return self.rearm()

    cdef int pause_if_full(self) except -1:
        if self.queue_bytes > self.high_bytes and not self.is_write_paused:
            self.is_write_paused = True
            self.protocol.pause_writing()
        return 0

    cdef int lose(self, error) except -1:
        """The connection is over: tell the protocol in a call of its own, once, and close."""
        if self.is_lost or self.seating == 0:
            return 0
        self.is_lost = self.is_ending = True
        self.forget_queue()
        self.want(0)
        self.hub.loop.call_soon(self.finish, error)
        return 0

    def finish(self, error):
        """Called by the loop, once."""
        cdef int fd = self.fd
        if self.seating == 0:
            return
        protocol, self.protocol = self.protocol, None
        self.hub.unseat(self)
        self.fd = -1
        try:
            protocol.connection_lost(error)
        finally:
            close_fd(fd)
