# cython: language_level=3
"""Layout of an HTTP/2 connection below its control frames, and of the leg of a tunnel that is one of its streams."""

from libc.stdint cimport int64_t, uint8_t, uint32_t

from wstunnel._hub cimport Stream
from wstunnel._relay cimport _ClientLeg


cdef enum:
    FRAME_HEAD = 9              # RFC 9113 §4.1
    SMALL_PAYLOAD = 8           # of PING; WINDOW_UPDATE has 4


cdef enum Way:                  # what becomes of the payload of the frame under way
    WAY_TUNNEL = 0              # DATA of a tunnel: to its relay, as it comes
    WAY_SMALL = 1               # WINDOW_UPDATE and PING: collected here
    WAY_CONTROL = 2             # collected as a whole frame, for h2
    WAY_NOWHERE = 3             # PRIORITY and what nobody knows


cdef class H2Wire(Stream):
    """The socket of one HTTP/2 connection."""

    cdef object owner           # net/h2.py's connection
    cdef dict legs              # stream id -> H2Leg, of every stream that is not over
    cdef object waiting         # deque of legs that have something to send and a window for it, in turn
    cdef uint8_t* out           # out_bytes of out_room are used; malloc'd, or a spare of the hub, while there are any
    cdef size_t out_bytes
    cdef size_t out_room
    cdef bint is_corked         # in the hub's list
    cdef bint is_parsing
    cdef bint is_at_eof
    cdef bint is_closing        # nothing more is sent but what waits; then our side is shut
    cdef bint is_shut
    cdef bint is_lost
    cdef int64_t window         # what may still be sent on all streams together
    cdef int64_t first_window   # what may be sent on a new stream, as the client says
    cdef size_t frame_bytes     # largest payload of DATA that is sent
    cdef size_t frame_max       # largest payload of any frame that is taken
    cdef int64_t stream_window  # what the client may send on a new stream
    cdef int64_t arrived        # payload of tunnels since the connection's window was last opened
    cdef uint32_t highest       # id of the client's newest stream
    cdef unsigned preface       # bytes of the preface that have come
    cdef uint8_t head[9]        # of the frame under way; head_bytes of it have come
    cdef unsigned head_bytes
    cdef uint32_t left          # bytes of its payload that are still to come
    cdef uint32_t padding       # of those, at the end, that say nothing
    cdef bint is_padding_due    # its length comes first
    cdef uint8_t type
    cdef uint8_t flags
    cdef uint32_t stream_id
    cdef Way way
    cdef H2Leg leg              # of DATA of a tunnel
    cdef H2Leg run_leg          # whose payload is to be passed on, of one frame or of several in a row:
    cdef uint8_t* run           # run_bytes from here, in what is being parsed
    cdef size_t run_bytes
    cdef uint8_t small[8]
    cdef bytearray frame        # of WAY_CONTROL, its head included
    cdef uint32_t block_id      # stream of the header block under way, or 0
    cdef size_t block_bytes
    cdef double block_s         # when it began
    cdef size_t block_max
    cdef bytes rest             # read, and left for the next turn
    cdef unsigned turn          # control frames that may still be served in this one
    cdef unsigned turn_frames
    cdef double credit          # budget of odd events: it falls with each, and rises with answers and time
    cdef double credit_max
    cdef double credit_per_s
    cdef double credit_s
    cdef double settled_s
    cdef double leave_s         # what a client has to end a stream whose CLOSE it has sent, and had
    cdef double free            # frames that may be about what the client was sent

    cdef int parse(self, uint8_t* p, size_t n) except -1
    cdef int begin_frame(self) except -1
    cdef bint was_opened(self) noexcept
    cdef int begin_data(self, size_t n) except -1
    cdef int count_arrived(self, size_t n) except -1
    cdef int pass_run(self) except -1
    cdef int end_frame(self) except -1
    cdef int end_control(self) except -1
    cdef int end_small(self) except -1
    cdef int feed_tunnel(self, uint8_t* p, size_t n) except -1
    cdef int window_update(self, uint32_t increment) except -1
    cdef int charge(self, double cost, str what) except -1
    cdef int charge_idle(self, str what) except -1
    cdef int charge_reset(self) except -1
    cdef int fault(self, uint32_t code, str text) except -1
    cdef int read(self) except -1
    cdef int end_input(self) except -1
    cdef int catch_up(self) except -1
    cdef int flush(self) except -1
    cdef int rearm(self) except -1
    cdef int shut_socket(self) except -1
    cdef int lose(self, error) except -1
    cdef int line_up(self, H2Leg leg) except -1
    cdef int pump(self) except -1
    cdef int spill(self) except -1
    cdef int append(self, const uint8_t* p, size_t n) except -1
    cdef int append_head(self, size_t n, uint8_t type, uint8_t flags, uint32_t stream_id) except -1
    cdef int open_window(self, uint32_t stream_id, int64_t by) except -1
    cdef size_t send_data(self, H2Leg leg, const uint8_t* p, size_t n) except? 0
    cdef int unacknowledged(self) noexcept


cdef class H2Leg(_ClientLeg):
    """One stream: of a tunnel, or of a plain request and its answer."""

    cdef H2Wire wire            # None once the leg is closed
    cdef readonly uint32_t stream_id
    cdef object owner           # of the stream: told when the queue is empty, and of its end while there is no relay
    cdef bytearray early        # what came before the tunnel was there
    cdef readonly bint is_tunnel
    cdef bint is_waiting        # in `wire.waiting`
    cdef bint is_reset_sent
    cdef bint is_answered
    cdef double opened_s
    cdef bint has_peer_moved    # at the last look
    cdef int64_t window         # what may be sent
    cdef int64_t client_window  # what the client may send
    cdef int64_t taken          # what it has sent and may send again

    cdef int arrive(self, uint8_t* p, size_t n) except -1
    cdef int give_back(self) except -1
    cdef int give_up(self) except -1
    cdef int send_some(self) except -1
    cdef int emptied(self) except -1
    cdef int fall(self) except -1
    cdef int64_t wire_window(self) noexcept
