# cython: language_level=3
"""Layout of the hub: what all sockets of a worker share, and what each of them is to it."""

from libc.stdint cimport int64_t, uint8_t, uint32_t

from wstunnel._tls cimport Tls
from wstunnel._wheel cimport TimerWheel


cdef extern from "<sys/epoll.h>" nogil:
    enum: EPOLLERR, EPOLLIN, EPOLLOUT


cdef extern from "<sys/types.h>":
    ctypedef long ssize_t


cdef enum:
    HEADROOM = 16               # in front of every read: SERVER_HEADER_MAX + 3 held bytes of a character, rounded up
    READY_PER_WAKE = 512        # sockets served per call of Hub.wake
    SPARES = 4                  # buffers that are kept for the next one who gathers something to send
    OWED_MAX = 4096             # what OpenSSL may say of itself to a peer that takes nothing


cdef enum:                      # what all tunnels of a worker add up, in the order of the shared counters
    BYTES_IN = 0
    BYTES_OUT = 1
    MESSAGES_IN = 2
    MESSAGES_OUT = 3
    COUNTERS = 4


cdef class Hub:
    """What the sockets of one worker share: a read buffer, a clock, counters, and one epoll set."""

    cdef readonly object loop
    cdef readonly TimerWheel wheel
    cdef public double now_s            # the wheel's clock, as of its last tick
    cdef readonly object view           # memoryview of the read buffer behind the headroom
    cdef bytearray store                # owns the bytes that `base` points into; never resized
    cdef uint8_t* base                  # first byte behind the headroom
    cdef bytearray inbox_store          # likewise, of `inbox`
    cdef uint8_t* inbox                 # bulk_bytes long: what is cut into frames here while others read
    cdef size_t read_bytes              # size of one read, and the most that a leg is left with
    cdef size_t bulk_bytes              # of one read while its receiver has room
    cdef size_t turn_bytes              # of a transport
    cdef bytearray sealed_store         # owns what `sealed` gives; None: nobody has asked yet
    cdef size_t sealed_bytes            # its size
    cdef double look_s
    cdef int epoll_fd                   # -1: closed
    cdef list seats                     # by descriptor: its Stream, or None
    cdef list corked                    # streams that have gathered something to send
    cdef uint8_t* spares[SPARES]        # malloc'd, spares_n of them, spare_bytes long: to be gathered in
    cdef size_t spare_bytes[SPARES]
    cdef unsigned spares_n
    cdef bint is_awake                  # in `wake`, at whose end they send it
    cdef unsigned handshakes            # that went on in this wake
    cdef uint32_t seatings              # how many there were: tells a stream from its predecessor on a descriptor
    cdef int64_t[::1] counters          # owns the words that `count` points to
    cdef int64_t* count                 # COUNTERS words, indexed by the enum above

    cdef uint8_t* sealed(self) except NULL
    cdef int seat(self, Stream stream) except -1
    cdef int unseat(self, Stream stream) except -1
    cdef int pass_on(self, Stream stream, Stream heir) except -1
    cdef int arm(self, Stream stream) except -1
    cdef int tell(self, Stream stream, uint32_t events) except -1
    cdef int report(self, Stream stream, error) except -1
    cdef int cork(self, Stream stream) except -1
    cdef uint8_t* take_spare(self, size_t* room) noexcept
    cdef void give_spare(self, uint8_t* p, size_t room) noexcept


cdef class Stream:
    """A connected stream socket that the hub watches, and what a short write left unsent."""

    cdef Hub hub
    cdef Tls tls                        # None: what is sent and received is what is put and fetched
    cdef int fd                         # -1 from the moment on that somebody else may close it
    cdef uint32_t seating               # which of `Hub.seatings` it is; 0: it has no seat
    cdef uint32_t wanted                # events that are to be told
    cdef uint32_t armed                 # events that the epoll set has; what is not wanted any more goes when it comes
    cdef uint8_t* queue                 # malloc'd; queue_bytes long from queue_start; ciphertext where there is TLS
    cdef size_t queue_start
    cdef size_t queue_bytes
    cdef bint is_end_next               # what is put is the last, and shut down behind at once: one packet for both

    cdef int ready(self, uint32_t events) except -1
    cdef int fail(self) except -1
    cdef int want(self, uint32_t events) except -1
    cdef int uncork(self) except -1
    cdef int queued(self) except -1
    cdef ssize_t fetch(self, uint8_t* p, size_t n) except? -1
    cdef ssize_t fetch_sealed(self, uint8_t* p, size_t n) except? -1
    cdef int pay(self) except -1
    cdef int put(self, const uint8_t* p, size_t n) except -1
    cdef int put_sealed(self, const uint8_t* p, size_t n) except -1
    cdef int post(self, const uint8_t* p, size_t n) except -1
    cdef int keep(self, const uint8_t* p, size_t n) except -1
    cdef int part(self) except -1
    cdef int shut_down(self) except -1
    cdef int pour(self) noexcept
    cdef size_t room(self) noexcept
    cdef int forget_queue(self) noexcept


cdef class HubTransport(Stream):
    """A connected socket that the hub reads, as much of an asyncio transport as net/h1.py needs."""

    cdef object protocol                # None once the connection is lost or passed on
    cdef size_t high_bytes
    cdef size_t low_bytes
    cdef bint is_paused                 # reading
    cdef bint is_write_paused
    cdef bint is_at_eof
    cdef bint is_eof_wanted
    cdef bint is_ending                 # close or abort was called, or the socket failed
    cdef bint is_lost                   # connection_lost was called, or will be at once

    cdef int rearm(self) except -1
    cdef int flush(self) except -1
    cdef int read(self) except -1
    cdef int pause_if_full(self) except -1
    cdef int lose(self, error) except -1
