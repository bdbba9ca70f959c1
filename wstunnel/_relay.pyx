# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, freethreading_compatible=True
"""The relay: client frames become plain backend bytes and the other way round, until either side ends.

`Leg` is one socket, `Relay` joins two legs and knows how a tunnel ends. Bytes are read into the hub's one buffer: of
a plain socket by the hub, of any other by the loop's transport (BufferedProtocol), leg by leg. They are written with
send(2) straight from that buffer; only what a short write leaves is copied. From then on the *other* leg stops reading
until the copy is gone, which bounds what a tunnel holds to one read per direction and a few control frames.

Writing never goes through the transport: an error there would close it together with everything that the
peer has said and we have not read yet. A leg that can no longer be written to goes on being read to its end.

source  RFC 6455 §5.4-§7; uvloop's traps: docs/architecture.md
"""

from asyncio import BufferedProtocol

from cpython.bytearray cimport PyByteArray_AS_STRING
from libc.errno cimport EAGAIN, ECONNRESET, EINTR
from libc.math cimport INFINITY
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.unistd cimport close as close_fd

from wstunnel._hub cimport (
    BYTES_IN,
    BYTES_OUT,
    EPOLLERR,
    EPOLLIN,
    EPOLLOUT,
    MESSAGES_IN,
    MESSAGES_OUT,
    Hub,
    HubTransport,
    Stream,
    ssize_t,
)
from wstunnel._speedups cimport (
    EVENT_CLOSE,
    EVENT_ERROR,
    EVENT_NONE,
    EVENT_PING,
    EVENT_PONG,
    OP_BINARY,
    OP_CLOSE,
    OP_PING,
    OP_PONG,
    OP_TEXT,
    SERVER_HEADER_MAX,
    Event,
    FrameParser,
    header_before,
    utf8_feed,
)

cdef extern from "<sys/socket.h>" nogil:
    enum: MSG_DONTWAIT, MSG_NOSIGNAL, SOL_SOCKET, SO_ERROR, SO_SNDBUF
    ssize_t send(int fd, const void* p, size_t n, int flags)
    ssize_t recv(int fd, void* p, size_t n, int flags)
    int getsockopt(int fd, int level, int name, void* value, unsigned* length)
    int setsockopt(int fd, int level, int name, const void* value, unsigned length)

cdef extern from "<sys/ioctl.h>" nogil:
    enum: FIONREAD
    int ioctl(int fd, unsigned long request, ...)

cdef extern from "<linux/sockios.h>":
    enum: SIOCOUTQ

__all__ = ["BackendLeg", "ClientLeg", "Policy", "Relay"]

cdef enum:
    CODE_NORMAL = 1000
    CODE_GOING_AWAY = 1001
    CODE_NONE = 1005
    CODE_ABNORMAL = 1006
    CODE_INTERNAL = 1011
    LOOKS_PER_TIMEOUT = 4       # how often a long timeout is looked at before it is up
    LEAVE_PARTS = 4             # of the time to leave: at most one for the client's answer, one for the backend's end
    ROOM_SPARE = 8              # one part in so many, for what the kernel adds to each buffer
    STREAM_READS = 2            # after a full one: the rest of a large message, and the next message
    DISCARD_BYTES = 16384       # thrown away per call
    UTF8_LEAD = 0xC0            # RFC 3629: 11xxxxxx starts a character of several bytes
    UTF8_CONTINUATION = 0x80    # 10xxxxxx


cdef bytearray _NOTHING = bytearray()


cdef class Policy:
    """What a route says about all of its tunnels; one object per route. Seconds, 0 = off."""

    def __init__(
        self,
        *,
        bint is_binary,
        double ping_interval_s,
        double ping_timeout_s,
        double max_read_idle_s,
        double max_write_idle_s,
        double close_timeout_s,
        double read_timeout_s=0.0,
        double write_timeout_s=0.0,
        bint fin_propagate=True,
    ):
        self.is_binary = is_binary
        self.ping_interval_s = ping_interval_s
        self.ping_timeout_s = ping_timeout_s
        self.max_read_idle_s = max_read_idle_s
        self.max_write_idle_s = max_write_idle_s
        self.close_timeout_s = close_timeout_s
        self.read_timeout_s = read_timeout_s
        self.write_timeout_s = write_timeout_s
        self.fin_propagate = fin_propagate


cdef class Leg(Stream):
    """One end of a tunnel. Its descriptor is written to with send(2), and read by the hub or by the loop's transport.

    in      fd  connected and non-blocking; whoever reads it closes it: the transport, or after `own` the leg
    bound   holds at most what one push left unsent, and the control frames that came meanwhile
    """

    def __cinit__(self):
        self.holds = HOLD_START
        self.may_have_failed = True

    def __init__(self, Hub hub not None, int fd):
        self.hub = hub
        self.fd = fd

    # --- what the hub calls

    def own(self):
        """The descriptor is the leg's from here on, and what comes is read at once. raises OSError"""
        self.hub.seat(self)
        self.is_own = True
        self.holds &= ~<unsigned>HOLD_START
        self.rearm()

    cdef int ready(self, uint32_t events) except -1:  # hot
        cdef Relay relay = self.relay       # it may end in here, and with it all else that holds it
        if relay is None:
            return 0
        if self.queue_bytes and events & ~<uint32_t>EPOLLIN:
            self.flush()
        if self.wanted & EPOLLIN and events & ~<uint32_t>EPOLLOUT:
            self.may_have_failed = events & EPOLLERR != 0
            return self.read()
        return 0

    cdef int fail(self) except -1:
        cdef Relay relay = self.relay
        return 0 if relay is None else relay.broke()

    cdef int read(self) except -1:  # hot
        """Read once; if something is left, the hub says so when the others had their turn."""
        cdef Hub hub = self.hub
        cdef ssize_t n = self.fetch(hub.base, self.next_read() if self.stream else hub.read_bytes)
        if n > 0:
            if <size_t>n >= hub.read_bytes or (self.tls is not None and self.tls.has_more):
                self.stream = STREAM_READS
            elif self.stream:
                self.stream -= 1
            return self.take(<size_t>n)
        if n == 0:
            return self.read_end()
        if n != -EAGAIN and n != -EINTR:
            return self.read_failed()
        return 0

    cdef size_t next_read(self) except? 0:
        """How much of a stream to read at once: more where the other leg takes so much of it that no more than usual
        is left over."""
        cdef Hub hub = self.hub
        cdef Relay relay = self.relay
        cdef Leg other = relay.backend if self is relay.client else relay.client
        cdef size_t over = hub.bulk_bytes - hub.read_bytes
        return hub.bulk_bytes if other.room() >= over + over // ROOM_SPARE else hub.read_bytes

    cdef int read_end(self) except -1:
        """The peer says no more."""
        cdef int error = 0
        cdef unsigned length = sizeof(error)
        # an EOF may hide an error: of a reset behind it, or of a hang-up that libuv reports after a partial read as EOF
        if self.may_have_failed and self.fd >= 0:
            if getsockopt(self.fd, SOL_SOCKET, SO_ERROR, &error, &length) == 0 and error:
                self.is_reset = True
                self.mark_write_dead(error)
        self.is_read_ended = True
        self.rearm()
        return self.leave()

    cdef int read_failed(self) except -1:
        """The peer went away with an error."""
        self.is_reset = True
        self.is_read_ended = True
        self.mark_write_dead(0)
        self.rearm()
        return self.leave()

    cdef int take(self, size_t n) except -1:
        """n bytes lie in the hub's buffer."""
        raise NotImplementedError

    cdef int leave(self) except -1:
        """Tell the tunnel that this leg says no more."""
        raise NotImplementedError

    # --- what the transport calls

    def get_buffer(self, Py_ssize_t hint):
        return self.hub.view

    def buffer_updated(self, Py_ssize_t n):  # hot
        if self.relay is not None:
            self.count_turn(n)
            self.take(n)

    def connection_made(self, transport):
        """The backend's transport exists and starts to read as soon as this returns."""
        if self.is_closed:      # the tunnel was aborted meanwhile
            transport.abort()
            return
        self.transport = transport
        self.holds &= ~<unsigned>HOLD_START

    def eof_received(self):
        """True: the transport stays open, for writing and until the tunnel ends."""
        relay = self.relay      # see `ready`
        if relay is not None:
            self.read_end()
        return True

    def connection_lost(self, exc):
        """The transport is being closed: by us, or because reading failed."""
        relay = self.relay      # see `ready`
        if self.is_closed or relay is None:
            return
        if exc is not None:
            self.is_reset = True
        self.transport = None
        self.is_read_ended = True
        self.mark_write_dead(0)
        self.fd = -1
        self.is_closed = True
        self.leave()

    def end_turn(self):
        """The others had theirs: read on."""
        self.release(HOLD_TURN)

    # --- reading

    cdef int count_turn(self, size_t n) except -1:  # hot
        if n < self.hub.read_bytes:
            self.turn = 0       # the socket is empty: libuv ends the turn by itself
            return 0
        self.turn += n
        if self.turn >= self.hub.turn_bytes:
            self.turn = 0
            self.hold(HOLD_TURN)
            self.hub.loop.call_soon(self.end_turn)
        return 0

    cdef int hold(self, unsigned reason) except -1:
        cdef bint was_reading = self.holds == 0
        self.holds |= reason
        if self.is_own:
            return self.rearm()
        if was_reading and not self.is_read_ended and self.transport is not None:
            self.transport.pause_reading()
        return 0

    cdef int release(self, unsigned reason) except -1:
        cdef bint was_held = self.holds != 0
        self.holds &= ~reason
        if self.is_own:
            return self.rearm()
        if was_held and self.holds == 0 and not self.is_read_ended and self.transport is not None:
            self.transport.resume_reading()
        return 0

    cdef int rearm(self) except -1:
        """Have the hub watch for what this leg waits for. A descriptor of a transport has a seat while it is full."""
        cdef uint32_t events = EPOLLOUT if self.queue_bytes else 0
        if self.is_own:
            if self.is_closed:
                return 0
            if self.holds == 0 and not self.is_read_ended:
                events |= EPOLLIN
        elif events == 0:
            return self.hub.unseat(self)
        elif self.seating == 0:
            self.hub.seat(self)
        return self.want(events)

    # --- writing

    cdef int push(self, const uint8_t* p, size_t n) except -1:  # hot; p is the caller's, and not kept
        """Send n bytes, or keep what the socket does not take."""
        cdef bint was_queued = self.queue_bytes != 0
        cdef int error
        if self.is_write_dead or self.is_shut_wanted:
            return 0
        error = self.put(p, n)
        if error:
            return self.mark_write_dead(error)
        self.pushed += n
        if self.queue_bytes and not was_queued:
            self.queued()
        return 0

    cdef int queued(self) except -1:
        self.rearm()
        return self.relay.queue_filled(self)

    cdef int flush(self) except -1:
        """Send from the queue what the socket takes now."""
        cdef int error = self.pour()
        if error:
            return self.mark_write_dead(error)
        if self.queue_bytes:
            return 0
        self.rearm()
        if self.is_shut_wanted:
            self.shut()
        if self.relay is not None:
            self.relay.queue_emptied(self)
        return 0

    cdef int shut(self) except -1:
        """No more will be pushed: shut down for writing, behind what still waits."""
        self.is_shut_wanted = True
        if self.queue_bytes or self.is_shut or self.is_write_dead:
            return 0
        self.shut_down()
        if self.queue_bytes:
            return self.rearm()     # close_notify waits, and `flush` comes back here
        self.is_shut = True
        return 0

    cdef int mark_write_dead(self, int error) except -1:
        """The peer takes nothing more, and nobody waits for it; what it has said is still to be read."""
        if self.is_write_dead:
            return 0
        self.is_write_dead = True
        if error == ECONNRESET:
            self.is_reset = True
        if self.queue_bytes:
            self.drop_queue()
            if self.relay is not None:
                self.relay.queue_emptied(self)
        return 0

    cdef int drop_queue(self) except -1:
        self.pushed -= self.queue_bytes
        self.forget_queue()
        return self.rearm()

    cdef int close(self) except -1:
        """Release the socket now; nobody waits for it any more. What the kernel has taken it still delivers."""
        cdef bint was_queued = self.queue_bytes != 0
        cdef bint is_handed_over
        if self.is_closed:
            return 0
        if was_queued:
            self.hand_over()
        is_handed_over = was_queued and self.queue_bytes == 0
        if self.queue_bytes == 0 and not self.is_write_dead:
            self.part()
        if not self.is_read_ended:
            self.discard()
        self.mark_write_dead(0)
        if is_handed_over and self.relay is not None:
            self.relay.queue_emptied(self)
        if self.is_closed:
            return 0            # by the tunnel's end, to which the dropped queue has led
        self.is_closed = True
        self.is_read_ended = True
        if self.is_own:
            self.hub.unseat(self)
            close_fd(self.fd)
        self.fd = -1
        transport, self.transport = self.transport, None
        if transport is not None:
            transport.abort()
        return 0

    cdef int hand_over(self) noexcept:
        """Before a close: let the kernel take what waits, for a peer that is slow; twice its usual room if need be."""
        cdef int room = 0
        cdef unsigned length = sizeof(room)
        self.pour()
        if self.queue_bytes and getsockopt(self.fd, SOL_SOCKET, SO_SNDBUF, &room, &length) == 0:
            setsockopt(self.fd, SOL_SOCKET, SO_SNDBUF, &room, length)   # the kernel doubles what it is told
            self.pour()
        return 0

    cdef int discard(self) noexcept:
        """Before a close: read what nobody will. Unread input makes the kernel send RST, which destroys what is still
        on its way to the peer."""
        cdef uint8_t scrap[DISCARD_BYTES]
        cdef size_t left = self.unread() + self.hub.turn_bytes
        cdef ssize_t r
        while left:
            r = recv(self.fd, scrap, DISCARD_BYTES, MSG_DONTWAIT)
            if r <= 0:
                break
            left -= min(left, <size_t>r)
        return 0

    # --- is the peer taking what is sent?

    cdef bint has_moved(self) noexcept:
        """Has the peer taken anything since the last call? Counts what its kernel acknowledged."""
        cdef int unacked = 0
        cdef uint64_t sent = self.pushed - self.queue_bytes
        cdef bint moved
        if self.fd < 0:
            return False
        ioctl(self.fd, SIOCOUTQ, &unacked)
        moved = sent != self.seen_sent or unacked != self.seen_unacked
        self.seen_sent = sent
        self.seen_unacked = unacked
        return moved

    cdef bint is_flushed(self) noexcept:
        """Has the peer's kernel everything? As of the last `has_moved`."""
        return self.queue_bytes == 0 and self.seen_unacked == 0

    cdef size_t unread(self) except? 0:
        """Bytes that the kernel holds for us."""
        cdef int arrived = 0
        if self.fd >= 0:
            ioctl(self.fd, FIONREAD, &arrived)
        return arrived


cdef class _ClientLeg(Leg):
    cdef int take(self, size_t n) except -1:  # hot
        cdef Relay relay = self.relay
        return 0 if relay is None else relay.from_client(self.hub.base, n)

    cdef int leave(self) except -1:
        cdef Relay relay = self.relay
        return 0 if relay is None else relay.client_left()


cdef class _BackendLeg(Leg):
    cdef int take(self, size_t n) except -1:  # hot
        cdef Relay relay = self.relay
        return 0 if relay is None else relay.from_backend(self.hub.base, n)

    cdef int leave(self) except -1:
        cdef Relay relay = self.relay
        return 0 if relay is None else relay.backend_left()


class ClientLeg(_ClientLeg, BufferedProtocol):
    """The leg that speaks WebSocket. Plain asyncio asks for the base class by name."""

    __slots__ = ()


class BackendLeg(_BackendLeg, BufferedProtocol):
    """The leg that speaks plain bytes."""

    __slots__ = ()


cdef class Relay:
    """One tunnel, from the 101 to the release of both legs.

    in      hub, policy
            client, backend   legs over connected sockets
            session           told of the end: `backend_ended() -> int` gives the close code for a backend that
                              ended its connection, or 0: `verdict(code)` follows; `ended()` comes last, once
            is_binary         frames to the client are binary whatever the route says (subprotocol)
            is_pipe           bytes are passed on as they are, and each side's end to the other: no frame is looked at,
                              none is made, and `close_code` is 1005 (none was seen) unless something broke
    bound   one read per direction (Leg), one PONG, 3 bytes of a character
    source  RFC 6455; the table of endings: docs/architecture.md
    """

    def __init__(self, Hub hub not None, Policy policy not None, _ClientLeg client not None,
                 _BackendLeg backend not None, session, bint is_binary=False, bint is_pipe=False):
        self.hub = hub
        self.policy = policy
        self.client = client
        self.backend = backend
        self.session = session
        self.parser = FrameParser()
        self.is_pipe = is_pipe
        self.opcode = OP_BINARY if is_binary or policy.is_binary else OP_TEXT
        self.client_seen_s = self.backend_seen_s = self.client_took_s = self.backend_took_s = hub.now_s
        self.deadline_s = INFINITY
        client.relay = self
        backend.relay = self

    # --- what the server calls

    def open(self, transport):
        """Take over the client's transport, which is paused and has written everything, the 101 included.

        raises  ConnectionResetError when it is about to say that the connection is lost
        """
        if isinstance(transport, HubTransport):
            self.inherit(self.client, transport, "client")
        elif transport is self.client:
            if self.client.is_write_dead:
                raise ConnectionResetError("the client is gone")
        else:
            self.client.transport = transport
            transport.set_protocol(self.client)

    def adopt(self, HubTransport transport not None):
        """Take over the connection of a backend that has been asked and has answered, likewise."""
        self.inherit(self.backend, transport, "backend")

    cdef int inherit(self, Leg leg, HubTransport plain, str who) except -1:
        if plain.is_ending or plain.queue_bytes:
            raise ConnectionResetError(f"the {who} is gone")
        plain.protocol = None
        self.hub.pass_on(plain, leg)
        plain.fd = -1
        leg.is_own = True
        return 0

    def join(self, bytearray leftover not None, bint is_at_eof, bytearray said not None=_NOTHING,
             bint is_backend_at_eof=False):
        """Both legs are attached: let bytes flow, first those that came behind the request head, and behind that of
        an adopted backend's answer.

        in      is_at_eof   the client has ended its side already, and no transport will say so again; likewise
                            is_backend_at_eof
        """
        cdef uint16_t leave_code = self.leave_code
        self.leave_code = 0
        if self.state == STATE_ENDED:
            return
        self.hub.wheel.add(self, self.hub.now_s)
        if self.backend.holds and self.backend.transport is not None:
            self.backend.transport.pause_reading()
        if len(leftover):
            self.from_client(<uint8_t*>PyByteArray_AS_STRING(leftover), len(leftover))
        if is_at_eof:
            self.client.read_end()
        if len(said):
            self.from_backend(<uint8_t*>PyByteArray_AS_STRING(said), len(said))
        if is_backend_at_eof:
            self.backend.read_end()
        self.client.release(HOLD_START)
        self.backend.release(HOLD_START)
        if leave_code:
            self.leave(leave_code, self.deadline_s - self.hub.now_s)

    def leave(self, uint16_t code, double within_s=INFINITY):
        """The server goes away: deliver what has arrived, end after the message under way, CLOSE with `code`.

        in      within_s    how long all of it may take, however slow anybody is. A message may come in until half of
                            that is left, or twice close-timeout; the backend may talk to a client that takes what it
                            says until a quarter is left, or close-timeout; that is for the client to answer.
        bound   without `within_s`: close-timeout for each of them, counted from the last sign of life
        """
        if self.state == STATE_ENDED:
            return
        self.deadline_s = self.hub.now_s + within_s
        self.reserve_s = min(self.policy.close_timeout_s, within_s / LEAVE_PARTS)
        if self.state == STATE_OPEN:
            self.leave_code = code
            if self.client.holds & HOLD_START:
                return      # `join` comes back to it, once what came behind the head is on its way
            self.leave_s = self.hub.now_s
            self.leave_bytes = self.client.unread()
            self.leave_at_boundary()
        else:
            self.is_input_kept = False
            self.settle()
        if self.state != STATE_ENDED:
            self.hub.wheel.add(self, self.hub.now_s)

    def abort(self, uint16_t code):
        """End now: what has arrived goes on as far as it can, then CLOSE with `code` if none was sent; both sockets are
        released. A peer that is slow gets what the kernel could take over; one that goes on sending may be reset."""
        if self.state != STATE_ENDED and not self.client.holds & HOLD_START:
            self.sweep(self.client, self.backend)
            self.sweep(self.backend, self.client)
        if self.state == STATE_ENDED:
            return
        if self.close_code == 0:
            self.close_code = code
            self.closed_by = "server"
        if not self.is_close_sent:
            self.send_close(code)
        self.end()

    def verdict(self, uint16_t code):
        """The close code for a backend that ended while its process was exiting."""
        if self.is_verdict_awaited:
            self.is_verdict_awaited = False
            self.answer_code = code
            self.close_code = code
            self.settle()

    @property
    def messages_in(self):
        """Messages of the client that ended."""
        return self.parser.messages

    @property
    def is_open(self):
        return self.state == STATE_OPEN

    def due(self, double now_s):
        """Called by the timer wheel; the next time to look, or None."""
        cdef double next_s
        if self.state == STATE_ENDED:
            return None
        if self.state == STATE_OPEN:
            next_s = self.look_open(now_s)
        else:
            next_s = self.look_ending(now_s)
        if self.state == STATE_ENDED or next_s == INFINITY:
            return None
        return next_s

    # --- the way of the bytes

    cdef int from_client(self, uint8_t* p, size_t n) except -1:  # hot; p is the hub's buffer, valid in this call
        cdef size_t at = 0, out = 0, used = 0, made = 0
        cdef Event event = EVENT_NONE
        cdef int64_t* count = self.hub.count
        cdef uint64_t messages = self.parser.messages
        self.client_seen_s = self.hub.now_s
        self.is_ping_out = False
        if self.is_pipe:
            at = out = n
        while at < n:
            event = self.parser.run(p + at, n - at, p + out, &used, &made)
            at += used
            out += made
            if event == EVENT_PING:
                self.answer_ping()
            elif event == EVENT_PONG:
                self.pongs += 1
            elif event != EVENT_NONE:
                break
        count[MESSAGES_IN] += <int64_t>(self.parser.messages - messages)
        if out and not self.is_client_done:
            self.bytes_in += out
            count[BYTES_IN] += <int64_t>out
            self.backend.push(p, out)
        if event == EVENT_CLOSE:
            self.client_closed()
        elif event == EVENT_ERROR:
            self.client_failed()
        elif self.leave_code:
            self.leave_bytes = min(self.leave_bytes - min(n, self.leave_bytes), self.client.unread())
            self.leave_at_boundary()
        return 0

    cdef int leave_at_boundary(self) except -1:
        if self.state == STATE_OPEN and self.leave_bytes == 0 and self.parser.at_boundary():
            self.begin_draining(self.leave_code, self.leave_code, "server")
        return 0

    cdef int sweep(self, Leg leg, Leg other) except -1:
        """Pass on what has arrived on a leg, as far as the other one takes it."""
        cdef size_t left = leg.unread()
        cdef ssize_t r
        while left and other.queue_bytes == 0:
            r = leg.fetch(self.hub.base, self.hub.read_bytes)
            if r <= 0:
                break
            left -= min(left, <size_t>r)
            if leg is self.client:
                self.from_client(self.hub.base, r)
            else:
                self.from_backend(self.hub.base, r)
        return 0

    cdef int from_backend(self, uint8_t* p, size_t n) except -1:  # hot; p has HEADROOM bytes in front
        if self.is_backend_done:
            return 0
        self.backend_seen_s = self.hub.now_s
        if self.is_pipe:
            self.bytes_out += n
            self.hub.count[BYTES_OUT] += <int64_t>n
            return self.client.push(p, n)
        if self.opcode == OP_BINARY:
            return self.send_frame(p, n)
        return self.send_text(p, n)

    cdef int send_text(self, uint8_t* p, size_t n) except -1:  # hot
        """Send whole characters; hold back an unfinished one (at most 3 bytes)."""
        cdef size_t held = self.text.held
        cdef size_t good = utf8_feed(&self.text, p, n)
        cdef size_t whole
        if held:
            p -= held
            memcpy(p, self.text_held, held)
        if good == n:
            whole = held + n - self.text.held
            memcpy(self.text_held, p + whole, self.text.held)
            if whole:
                self.send_frame(p, whole)
            return 0
        whole = _whole_characters(p, held + good)
        if whole:
            self.send_frame(p, whole)
        self.is_text_broken = True
        self.is_backend_done = True
        self.begin_closing(CODE_INTERNAL, "server")
        return 0

    cdef int send_frame(self, uint8_t* payload, size_t n) except -1:  # hot
        cdef size_t header = header_before(payload, self.opcode, n)
        cdef int64_t* count = self.hub.count
        self.bytes_out += n
        self.messages_out += 1
        count[BYTES_OUT] += <int64_t>n
        count[MESSAGES_OUT] += 1
        return self.client.push(payload - header, header + n)

    cdef int answer_ping(self) except -1:
        """PONG with the PING's payload; behind a full queue only the latest is kept (RFC 6455 §5.5.3)."""
        cdef uint8_t frame[SERVER_HEADER_MAX + 125]
        cdef uint8_t* payload = frame + SERVER_HEADER_MAX
        cdef size_t n = self.parser.control_length
        cdef size_t header = header_before(payload, OP_PONG, n)
        if self.is_close_sent:
            return 0
        memcpy(payload, self.parser.control, n)
        if self.client.queue_bytes:
            memcpy(self.pong, payload - header, header + n)
            self.pong_bytes = <uint8_t>(header + n)
            return 0
        return self.client.push(payload - header, header + n)

    # --- back-pressure

    cdef int queue_filled(self, Leg leg) except -1:
        if leg is self.client:
            self.backend.hold(HOLD_QUEUE)
        else:
            self.client.hold(HOLD_QUEUE)
        return 0

    cdef int queue_emptied(self, Leg leg) except -1:
        """A queue is gone, sent or dropped: the other leg may go on."""
        cdef size_t n = self.pong_bytes
        if leg is self.client:
            self.pong_bytes = 0
            if n and not self.is_close_sent:
                self.client.push(self.pong, n)
            if self.client.queue_bytes == 0:
                self.backend_seen_s = self.backend_took_s = self.hub.now_s   # it was held: its silence begins now
                self.backend.release(HOLD_QUEUE)
        else:
            self.client_seen_s = self.hub.now_s                              # likewise
            self.client.release(HOLD_QUEUE)
        return self.settle()

    # --- endings: each event says what it knows, `settle` does what follows from all of them

    cdef int client_closed(self) except -1:
        """CLOSE from the client: its payload ends here; the backend may finish; then the same code goes back."""
        self.is_close_received = True
        self.begin_draining(self.parser.close_code, self.parser.close_code, "client")
        return self.settle()

    cdef int client_failed(self) except -1:
        """The client broke the protocol: what it sent before is delivered, and it is told at once."""
        return self.fail(self.parser.close_code)

    cdef int client_left(self) except -1:
        """EOF or reset from the client."""
        if not self.is_close_received and (self.state == STATE_OPEN or self.is_verdict_awaited):
            self.is_input_kept = not self.policy.fin_propagate
            self.begin_draining(CODE_NONE if self.is_pipe and not self.client.is_reset else CODE_ABNORMAL, 0, "client")
        self.is_client_done = True
        return self.settle()

    cdef int backend_left(self) except -1:
        """EOF or reset from the backend: what it said has been pushed."""
        cdef uint16_t code
        if self.is_backend_done:
            return self.settle()
        self.is_backend_done = True
        if self.text.held and not self.backend.is_reset:
            self.is_text_broken = True
            return self.begin_closing(CODE_INTERNAL, "server")
        if self.state != STATE_OPEN:
            return self.settle()
        if self.backend.is_reset:
            return self.begin_closing(CODE_INTERNAL, "backend")
        if self.is_pipe:
            return self.begin_closing(CODE_NONE, "backend")
        code = self.session.backend_ended()
        if code:
            return self.begin_closing(code, "backend")
        self.is_verdict_awaited = True
        self.closed_by = "backend"
        return self.begin_ending(STATE_DRAINING)

    cdef int begin_draining(self, uint16_t code, uint16_t answer, str who) except -1:
        """The client's input has ended: let the backend finish, then CLOSE with `answer` (0: none)."""
        self.is_client_done = True
        if self.state == STATE_OPEN or (self.state == STATE_DRAINING and not self.is_close_sent):
            self.close_code = code
            self.closed_by = who
            self.answer_code = answer
            self.is_verdict_awaited = False
            if self.state == STATE_OPEN:
                self.begin_ending(STATE_DRAINING)
        return self.settle()

    cdef int begin_closing(self, uint16_t code, str who) except -1:
        """Nothing more is to be said to the client than CLOSE with `code`; its answer is awaited."""
        cdef bint is_open = self.state == STATE_OPEN
        if is_open or self.state == STATE_DRAINING:
            if is_open or self.is_verdict_awaited or self.answer_code:
                self.answer_code = code     # otherwise the client has left, and is told nothing
            self.close_code = code
            self.closed_by = who
            self.is_verdict_awaited = False
        if is_open:
            self.begin_ending(STATE_DRAINING)
        return self.settle()

    cdef int fail(self, uint16_t code) except -1:
        """Give up on the client: CLOSE at once, nothing more of either side is forwarded."""
        self.is_close_received = True
        self.is_client_done = True
        self.is_backend_done = True
        return self.begin_closing(code, "server")

    cdef int send_close(self, uint16_t code) except -1:
        cdef uint8_t frame[SERVER_HEADER_MAX + 2]
        cdef uint8_t* payload = frame + SERVER_HEADER_MAX
        cdef size_t n = 0 if code == CODE_NONE else 2
        cdef size_t header = header_before(payload, OP_CLOSE, n)
        payload[0] = <uint8_t>(code >> 8)
        payload[1] = <uint8_t>(code & 0xFF)
        self.is_close_sent = True
        if self.is_pipe:
            return 0        # whatever is under way is not ours to interrupt
        self.client.is_end_next = self.is_close_received or self.client.is_read_ended   # see `settle`
        return self.client.push(payload - header, header + n)

    cdef int begin_ending(self, State state) except -1:
        """From here on the tunnel is looked at often."""
        if self.state == STATE_OPEN:
            self.ending_s = self.hub.now_s
        self.state = state
        self.looked_s = self.hub.now_s
        self.budget_s = self.policy.close_timeout_s
        self.hub.wheel.add(self, self.hub.now_s)
        return 0

    cdef int settle(self) except -1:
        """Do whatever follows from what is known. Idempotent; may end the tunnel."""
        cdef bint is_client_over, is_backend_over
        if self.state == STATE_OPEN or self.state == STATE_ENDED:
            return 0
        if self.is_input_kept and (self.is_backend_done or self.client.is_write_dead):
            self.is_input_kept = False      # nobody talks, or nobody listens
        if self.is_client_done and not self.is_input_kept:
            self.backend.shut()
        if self.state == STATE_DRAINING and self.is_backend_done and not self.is_verdict_awaited:
            self.begin_ending(STATE_CLOSING)
            if self.answer_code and not self.is_close_sent:
                self.send_close(self.answer_code)
            if self.state == STATE_ENDED:
                return 0
        if self.state == STATE_CLOSING and (self.is_close_received or self.client.is_read_ended or self.is_pipe):
            self.client.shut()
        is_client_over = self.client.is_read_ended and (self.client.is_shut or self.client.is_write_dead)
        is_backend_over = self.backend.is_read_ended and (self.backend.is_shut or self.backend.is_write_dead)
        if is_client_over and self.state == STATE_CLOSING:
            self.client.close()
        if is_backend_over:
            self.backend.close()
            if self.state == STATE_CLOSING and is_client_over:
                self.end()
        return 0

    cdef int end(self) except -1:
        """Release both legs and say so, once."""
        if self.state == STATE_ENDED:
            return 0
        self.state = STATE_ENDED
        self.hub.wheel.discard(self)
        self.client.relay = None
        self.backend.relay = None
        self.client.close()
        self.backend.close()
        session, self.session = self.session, None
        session.ended()
        return 0

    cdef int broke(self) except -1:
        """A fault of ours came up: end this tunnel."""
        if self.state == STATE_ENDED:
            return 0
        self.close_code = CODE_INTERNAL
        self.closed_by = "server"
        if not self.is_close_sent:
            self.send_close(CODE_INTERNAL)
        return self.end()

    # --- time

    cdef double look_open(self, double now_s) except -1:
        """Stalls, silence and PINGs of an open tunnel; when to look again."""
        cdef Policy policy = self.policy
        cdef double next_s = INFINITY
        cdef double at_s
        cdef double backend_stall_s = policy.max_write_idle_s
        if self.leave_code:
            next_s = self.look_leaving(now_s)
            if self.state != STATE_OPEN:
                return now_s
        if self.client.has_moved() or self.client.is_flushed():
            self.client_took_s = now_s
        if self.backend.has_moved() or self.backend.queue_bytes == 0 or self.backend.holds & HOLD_QUEUE:
            self.backend_took_s = now_s     # one that waits for the client itself may well not read meanwhile
        if policy.write_timeout_s > 0 and not 0 < backend_stall_s < policy.write_timeout_s:
            backend_stall_s = policy.write_timeout_s
        if backend_stall_s > 0:
            if now_s - self.backend_took_s >= backend_stall_s:
                self.fail(CODE_INTERNAL)
                return now_s
            next_s = min(next_s, now_s + backend_stall_s / LOOKS_PER_TIMEOUT)
        if policy.max_write_idle_s > 0 and now_s - self.client_took_s >= policy.max_write_idle_s:
            self.client.close()
            self.begin_draining(CODE_ABNORMAL, 0, "server")
            return now_s
        if policy.read_timeout_s > 0:
            at_s = policy.read_timeout_s + (self.backend_seen_s if self.backend.holds == 0 else now_s)
            if now_s >= at_s:
                if self.backend.unread() == 0:      # else it is we who were late; likewise below
                    self.is_backend_done = True
                    self.begin_closing(CODE_INTERNAL, "server")
                return now_s
            next_s = min(next_s, at_s)
        if policy.max_read_idle_s > 0:
            at_s = policy.max_read_idle_s + (self.client_seen_s if self.client.holds == 0 else now_s)
            if now_s >= at_s:
                if self.client.unread() == 0:
                    self.begin_draining(CODE_GOING_AWAY, CODE_GOING_AWAY, "server")
                return now_s
            next_s = min(next_s, at_s)
        if policy.ping_interval_s > 0:
            if self.client.holds != 0:
                self.ping_s = now_s     # a client that we do not read cannot answer
                at_s = now_s + policy.ping_timeout_s
            elif self.is_ping_out:
                at_s = max(self.ping_s, self.client_seen_s) + policy.ping_timeout_s
                if now_s >= at_s:
                    if self.client.unread() == 0:
                        self.fail(CODE_INTERNAL)
                    return now_s
            elif not self.client.is_flushed():
                at_s = INFINITY         # not idle, and a PING would wait too: max-write-idle watches over this
            else:
                at_s = max(self.client_seen_s, self.backend_seen_s) + policy.ping_interval_s
                if now_s >= at_s:
                    self.send_ping()
                    self.ping_s = now_s
                    at_s = now_s + policy.ping_timeout_s
            next_s = min(next_s, at_s, now_s + policy.ping_interval_s)
        return next_s

    cdef double look_leaving(self, double now_s) except -1:
        """A message that holds up the server's leave may go on for as long as it comes in, within the time to leave."""
        cdef double silent_s = max(self.client_seen_s, self.leave_s)
        cdef double until_s = self.deadline_s - self.reserve_s - self.reserve_s
        if self.client.holds or self.client.unread():
            silent_s = now_s        # it is we who do not read
        if now_s >= min(silent_s + self.policy.close_timeout_s, until_s):
            self.begin_draining(self.leave_code, self.leave_code, "server")
        return min(silent_s + self.policy.close_timeout_s, until_s)

    cdef double look_ending(self, double now_s) except -1:
        """An ending may last as long as the side that it waits for takes in what it is owed, then close-timeout.

        Being held up by the other side's slowness does not count either, within max-write-idle. Where the server leaves
        within a given time, that is the bound, and a backend may talk for as long as somebody listens.
        """
        cdef bint has_moved = False
        cdef bint is_held_up
        cdef bint may_talk = self.is_input_kept or self.deadline_s != INFINITY
        cdef double until_s = self.deadline_s if self.state == STATE_CLOSING else self.deadline_s - self.reserve_s
        if self.is_client_done and self.backend.has_moved():
            has_moved = True
        if (self.state == STATE_CLOSING or may_talk) and self.client.has_moved():
            has_moved = True
        if self.state == STATE_DRAINING:
            is_held_up = self.backend.holds & HOLD_QUEUE != 0
        else:
            is_held_up = not self.is_client_done and self.client.holds & HOLD_QUEUE != 0
        if is_held_up and self.policy.max_write_idle_s > 0:
            is_held_up = now_s - self.ending_s < self.policy.max_write_idle_s
        if has_moved:
            self.budget_s = self.policy.close_timeout_s
        elif not is_held_up:
            self.budget_s -= now_s - self.looked_s
        self.looked_s = now_s
        if self.is_input_kept and self.client.is_write_dead:
            self.settle()
        if self.budget_s <= 0 or now_s >= until_s:
            if self.state == STATE_CLOSING:
                self.end()
                return now_s
            if self.is_verdict_awaited:
                self.verdict(CODE_INTERNAL)
            self.is_backend_done = True
            self.backend.close()        # it had its time, and no second one while the client has its own
            self.settle()
            return now_s
        return min(now_s + min(self.policy.close_timeout_s / LOOKS_PER_TIMEOUT, self.hub.look_s), until_s)

    cdef int send_ping(self) except -1:
        """An empty PING; any byte that the client sends from now on answers it."""
        cdef uint8_t frame[SERVER_HEADER_MAX]
        cdef uint8_t* payload = frame + SERVER_HEADER_MAX
        cdef size_t header = header_before(payload, OP_PING, 0)
        self.is_ping_out = True
        return self.client.push(payload - header, header)


cdef size_t _whole_characters(const uint8_t* p, size_t n) noexcept:
    """How many of n bytes, all of which may begin a valid text, are whole characters (RFC 3629 §3)."""
    cdef size_t back = 1
    cdef uint8_t lead
    while back <= TEXT_HELD_MAX and back <= n:
        lead = p[n - back]
        if lead >= UTF8_LEAD:
            # 110xxxxx wants 2 bytes, 1110xxxx 3, 11110xxx 4
            return n - back if back < <size_t>(2 + (lead >= 0xE0) + (lead >= 0xF0)) else n
        if lead < UTF8_CONTINUATION:
            return n
        back += 1
    return n
