# cython: language_level=3
"""Layout of the relay: two legs, and the tunnel that joins them."""

from libc.stdint cimport uint8_t, uint16_t, uint64_t

from wstunnel._hub cimport Hub, HubTransport, Stream
from wstunnel._speedups cimport FrameParser, Utf8


cdef enum:
    TEXT_HELD_MAX = 3           # RFC 3629: an unfinished character is at most 3 bytes
    PONG_FRAME_MAX = 127        # 2 bytes of header + CONTROL_MAX


cdef enum Hold:                 # why a leg does not read: bits, all clear = reading
    HOLD_START = 1              # the tunnel is not open yet
    HOLD_QUEUE = 2              # the other leg has bytes waiting: back-pressure
    HOLD_TURN = 4               # the turn is over (fairness)


cdef enum State:
    STATE_OPEN = 0              # bytes flow both ways
    STATE_DRAINING = 1          # the client's input ended; the backend may finish what it says
    STATE_CLOSING = 2           # nothing more is sent to the client: its CLOSE or EOF is awaited
    STATE_ENDED = 3


cdef class Policy:
    """What a route says about all of its tunnels. Seconds; 0 = off."""

    cdef readonly bint is_binary
    cdef readonly double ping_interval_s
    cdef readonly double ping_timeout_s
    cdef readonly double max_read_idle_s
    cdef readonly double max_write_idle_s
    cdef readonly double close_timeout_s
    cdef readonly double read_timeout_s
    cdef readonly double write_timeout_s
    cdef readonly bint fin_propagate


cdef class Leg(Stream):
    """One end of a tunnel over one connected stream socket."""

    cdef Relay relay                    # None once the tunnel has ended
    cdef object transport               # that reads for it; None: the hub does, or nobody yet, or no more
    cdef unsigned holds                 # Hold bits
    cdef size_t turn                    # bytes of this turn, of a transport
    cdef uint64_t pushed                # bytes that the kernel took or that wait in the queue
    cdef uint64_t seen_sent             # bytes sent and unacknowledged at the last look: is the peer taking anything?
    cdef int seen_unacked
    cdef bint is_own                    # the descriptor is the leg's: the hub reads it, and the leg closes it
    cdef uint8_t stream                 # reads to come that may be large, since one was full lately
    cdef bint may_have_failed           # the socket may have an error that reading does not tell
    cdef bint is_read_ended             # EOF or error: nothing more will be read
    cdef bint is_write_dead             # the peer takes nothing more (EPIPE, reset): what is pushed is dropped
    cdef bint is_reset                  # the peer went away with an error, not with an EOF
    cdef bint is_shut_wanted            # shut down for writing once the queue is empty
    cdef bint is_shut
    cdef bint is_closed

    cdef int take(self, size_t n) except -1
    cdef int leave(self) except -1
    cdef int read(self) except -1
    cdef size_t next_read(self) except? 0
    cdef int read_end(self) except -1
    cdef int read_failed(self) except -1
    cdef int rearm(self) except -1
    cdef int push(self, const uint8_t* p, size_t n) except -1
    cdef int flush(self) except -1
    cdef int shut(self) except -1
    cdef int hold(self, unsigned reason) except -1
    cdef int release(self, unsigned reason) except -1
    cdef int close(self) except -1
    cdef int mark_write_dead(self, int error) except -1
    cdef int drop_queue(self) except -1
    cdef int count_turn(self, size_t n) except -1
    cdef bint has_moved(self) noexcept
    cdef bint is_flushed(self) noexcept
    cdef size_t unread(self) except? 0
    cdef int hand_over(self) noexcept
    cdef int discard(self) noexcept


cdef class _ClientLeg(Leg):
    """The leg that speaks WebSocket."""


cdef class Relay:
    """One tunnel: what goes through it, and how it ends."""

    cdef Hub hub
    cdef Policy policy
    cdef FrameParser parser
    cdef Leg client
    cdef Leg backend
    cdef object session                 # told of the ending: backend_ended(), ended()
    cdef State state
    cdef uint8_t opcode                 # of the frames that the client gets: text or binary
    cdef Utf8 text                      # of what the backend says, where that is text
    cdef uint8_t text_held[3]           # the unfinished character at its end
    cdef uint8_t pong[127]              # a whole PONG frame that waits for the queue to empty; the latest PING wins
    cdef uint8_t pong_bytes
    cdef bint is_pipe                   # bytes go through as they are: the backend speaks WebSocket itself
    cdef bint is_client_done            # no further payload of the client is forwarded
    cdef bint is_backend_done           # no further byte of the backend is forwarded
    cdef bint is_close_sent
    cdef bint is_close_received
    cdef bint is_input_kept             # the client ended its side, and the backend is not told (fin_propagate)
    cdef bint is_verdict_awaited        # the backend ended; its exit status decides the close code
    cdef bint is_ping_out
    cdef uint16_t answer_code           # of the CLOSE to come; 0: none is sent, 1005: an empty one
    cdef uint16_t leave_code            # a shutdown waits for the end of the client's message; 0: none
    cdef size_t leave_bytes             # what had arrived from the client by then, and is still to be read
    cdef double leave_s                 # when the server was asked to leave
    cdef double deadline_s              # by then the tunnel has ended; INFINITY: nobody said so
    cdef double reserve_s               # of the time until then: for the client's answer, and as much for the backend
    cdef double client_seen_s           # last byte from the client
    cdef double backend_seen_s          # last byte from the backend
    cdef double client_took_s           # last look at which the client had taken something, or nothing waited for it
    cdef double backend_took_s
    cdef double ping_s
    cdef double ending_s                # when the ending began
    cdef double looked_s                # last look at an ending tunnel
    cdef double budget_s                # seconds left for the peer that an ending waits for
    cdef readonly uint64_t bytes_in     # payload, client to backend
    cdef readonly uint64_t bytes_out    # payload, backend to client
    cdef readonly uint64_t messages_out
    cdef readonly uint64_t pongs
    cdef readonly uint16_t close_code   # of the access line: how it ended, 0 while open
    cdef readonly str closed_by         # client, backend or server
    cdef readonly bint is_text_broken   # the backend sent bytes that are not UTF-8 on a text route

    cdef int inherit(self, Leg leg, HubTransport plain, str who) except -1
    cdef int from_client(self, uint8_t* p, size_t n) except -1
    cdef int leave_at_boundary(self) except -1
    cdef int sweep(self, Leg leg, Leg other) except -1
    cdef int from_backend(self, uint8_t* p, size_t n) except -1
    cdef int send_text(self, uint8_t* p, size_t n) except -1
    cdef int send_frame(self, uint8_t* payload, size_t n) except -1
    cdef int answer_ping(self) except -1
    cdef int client_closed(self) except -1
    cdef int client_failed(self) except -1
    cdef int client_left(self) except -1
    cdef int backend_left(self) except -1
    cdef int begin_draining(self, uint16_t code, uint16_t answer, str who) except -1
    cdef int begin_closing(self, uint16_t code, str who) except -1
    cdef int send_close(self, uint16_t code) except -1
    cdef int send_ping(self) except -1
    cdef int fail(self, uint16_t code) except -1
    cdef int queue_filled(self, Leg leg) except -1
    cdef int queue_emptied(self, Leg leg) except -1
    cdef int settle(self) except -1
    cdef int begin_ending(self, State state) except -1
    cdef int end(self) except -1
    cdef int broke(self) except -1
    cdef double look_open(self, double now_s) except -1
    cdef double look_leaving(self, double now_s) except -1
    cdef double look_ending(self, double now_s) except -1
