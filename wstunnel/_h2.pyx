# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, freethreading_compatible=True
"""HTTP/2 below its control frames: DATA and both flow-control windows, in C and past h2.

`H2Wire` is the socket. It cuts what it reads into frames (RFC 9113 §4). DATA of tunnels goes to their relays where it
lies, as it comes; WINDOW_UPDATE and PING are answered here; every other frame is handed to net/h2.py as a whole, for
h2, which keeps HPACK, settings and the states of streams. h2 sees no WINDOW_UPDATE and sends no DATA with a payload,
so what may be sent is known here alone. What a client may send on a plain request is known to h2 alone, on a tunnel
here alone; on the connection, each side opens again what it has taken.

`H2Leg` is one stream, as the relay knows a client. A short window leaves bytes in its queue as a short write does for a
socket. What all streams send within one wake of the hub leaves with one call.

bound   a stream holds one read for its client and one window from it. The connection holds what one wake has gathered
        (OUT_BYTES) and control frames in the same measure, beyond which it is not read; one control frame; one read
        that is left for the next turn
source  RFC 9113 §4-§6, RFC 8441; robustness goal 19
"""

from collections import deque

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EAGAIN, ECONNRESET, EINTR
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memcpy, memmove
from posix.unistd cimport close as close_fd

import os

from wstunnel._hub cimport EPOLLERR, EPOLLIN, EPOLLOUT, Hub, HubTransport, Stream, ssize_t
from wstunnel._relay cimport HOLD_START, _ClientLeg

cdef extern from "<sys/ioctl.h>" nogil:
    enum: FIONREAD
    int ioctl(int fd, unsigned long request, ...)

cdef extern from "<linux/sockios.h>":
    enum: SIOCOUTQ

__all__ = ["H2Leg", "H2Wire"]

cdef enum:                      # RFC 9113 §6, §4.2
    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9
    FLAG_END_STREAM = 1
    FLAG_ACK = 1
    FLAG_END_HEADERS = 4
    FLAG_PADDED = 8
    ID_MASK = 0x7FFFFFFF
    STREAM_ID_AT = 5            # in the head of a frame
    PING_BYTES = 8
    WINDOW_UPDATE_BYTES = 4
    RST_STREAM_BYTES = 4

cdef enum:                      # §7
    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    FLOW_CONTROL_ERROR = 3
    FRAME_SIZE_ERROR = 6
    CANCEL = 8
    ENHANCE_YOUR_CALM = 11

cdef enum:
    OUT_BYTES = 65536           # gathered before it is sent at once
    OUT_FIRST_BYTES = 1024
    WINDOW_PARTS = 2            # a window is opened again when one of so many parts of it has been taken

cdef enum:
    SHORT_BYTES = 1024          # DATA that a window has cut to less is worth less

# What limits.H2Limits speaks of. Credit is spent on what is costly here, and comes back with answers and time.
cdef double COST_FRAME = 1.0    # one that says nothing
cdef double COST_LATE = 0.1     # DATA or reset of a stream that is over: it may have been on its way
cdef double COST_SETTINGS = 10.0
cdef double COST_CONTINUATION = 10.0
cdef double COST_RESET = 2.0    # of a stream that was opened for nothing
cdef double WORTH_ANSWER = 1.0  # to a plain request
# Frames that cost next to nothing here, and that clients send about what they are sent: they are free for as long as
# there is something that they may be about. Beyond that each is a COST_FRAME.
cdef double FREE_PER_FRAME = 2.0    # DATA: the client may open both windows for each
cdef double FREE_MAX = 65536.0
cdef double FREE_PER_ANSWER = 3.0   # Firefox opens the window of each request, others reorder them

cdef int64_t WINDOW_MAX = 0x7FFFFFFF
cdef int64_t FIRST_WINDOW = 65535   # §6.9.2: of the connection, and of streams before SETTINGS
cdef bytes PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


cdef uint32_t _word_at(const uint8_t* p) noexcept:
    """4 bytes as the wire has them, the highest first."""
    return (<uint32_t>p[0] << 24) | (<uint32_t>p[1] << 16) | (<uint32_t>p[2] << 8) | p[3]


cdef int _put_word(uint8_t* p, uint32_t word) noexcept:
    p[0] = <uint8_t>(word >> 24)
    p[1] = <uint8_t>(word >> 16)
    p[2] = <uint8_t>(word >> 8)
    p[3] = <uint8_t>word
    return 0


cdef class H2Wire(Stream):
    """The socket of one HTTP/2 connection.

    in      hub, fd        connected and non-blocking; closed when the connection is over
            owner          of the connection; called with
                             frame(bytes)       a whole frame that is not served here
                             tunnel_ended(id)   the client has ended a tunnel's stream
                             end_stream(id), reset_stream(id, code)   to be sent
                             fault(code, text)  the client broke a rule, or used up its budget; GOAWAY is to be sent
                             eof()              the client says no more
                             lost(error)        it is over; every leg has been told before
            stream_window  of each stream, from the client
            frame_max      largest payload of a frame
            block_max      longest header block, as it is sent
            turn_frames    control frames that are served before others have their turn
            credit, credit_per_s   budget of odd events, and how it grows with time
            settled_s      a tunnel that was open for so long may be reset for nothing though nobody used it
            leave_s        what a client whose CLOSE was answered has to end its stream
    """

    def __init__(self, Hub hub not None, int fd, owner, *, int64_t stream_window, size_t frame_max, size_t block_max,
                 unsigned turn_frames, double credit, double credit_per_s, double settled_s,
                 double leave_s):
        self.hub = hub
        self.fd = fd
        self.owner = owner
        self.legs = {}
        self.waiting = deque()
        self.window = FIRST_WINDOW
        self.first_window = FIRST_WINDOW
        self.stream_window = stream_window
        self.frame_bytes = self.frame_max = frame_max
        self.block_max = block_max
        self.turn_frames = turn_frames
        self.credit = self.credit_max = credit
        self.credit_per_s = credit_per_s
        self.settled_s = settled_s
        self.leave_s = leave_s
        self.credit_s = hub.now_s
        self.frame = bytearray()

    def __dealloc__(self):
        free(self.out)

    # --- for the owner

    def start(self, Stream before=None, bytes said not None=b""):
        """Read from now on.

        in      before  who had the socket until now, a HubTransport or a Handshake, and what it has read
        raises  ConnectionResetError when that is going
        """
        if before is None:
            self.hub.seat(self)
        else:
            if isinstance(before, HubTransport):
                if (<HubTransport>before).is_ending:
                    self.fd = -1    # that closes it
                    self.is_lost = True
                    raise ConnectionResetError("the client is gone")
                (<HubTransport>before).protocol = None
            self.hub.pass_on(before, self)
            before.fd = -1
        self.rearm()
        if said:
            self.rest = said
            self.go_on()
        elif self.tls is not None and self.tls.has_rest:
            self.read()

    def send(self, bytes data not None):
        """Send whole frames, behind those that wait."""
        if not (self.is_lost or self.is_closing):
            self.append(<const uint8_t*>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))

    def open_stream(self, uint32_t stream_id, owner, bint is_tunnel):
        """The leg of a stream that the client has opened."""
        cdef H2Leg leg = H2Leg.__new__(H2Leg)
        leg.hub = self.hub
        leg.wire = self
        leg.is_own = True
        leg.stream_id = stream_id
        leg.owner = owner
        leg.is_tunnel = is_tunnel
        leg.opened_s = self.hub.now_s
        leg.window = self.first_window
        leg.client_window = self.stream_window
        self.legs[stream_id] = leg
        return leg

    def set_peer(self, first_window=None, frame_bytes=None):
        """The client's settings have changed: what may be sent on each stream at first, and in one frame.

        raises  OverflowError when a window grows beyond 2^31-1 (§6.9.2)
        """
        cdef H2Leg leg
        cdef int64_t by
        if frame_bytes is not None:
            self.frame_bytes = min(<size_t>frame_bytes, self.frame_max)
        if first_window is not None:
            by = first_window - self.first_window
            self.first_window = first_window
            for leg in self.legs.values():
                leg.window += by
                if leg.window > WINDOW_MAX:
                    raise OverflowError("a window of more than 2^31-1 bytes")
                self.line_up(leg)
            self.pump()

    def finish(self):
        """Send what waits, and end our side; what the client still says is thrown away until it ends its own."""
        self.is_closing = True
        self.uncork()
        if self.queue_bytes == 0:
            self.shut_socket()
        self.rearm()

    def abort(self):
        """End now: the client gets what its kernel takes at once."""
        if not self.is_lost:
            self.uncork()
            if self.queue_bytes == 0:
                self.part()
            self.lose(None)

    @property
    def block_age_s(self):
        """How long the header block under way has been; 0: there is none."""
        return self.hub.now_s - self.block_s if self.block_id else 0.0

    def go_on(self):
        """Serve what was left for this turn."""
        rest, self.rest = self.rest, None
        if rest is not None and not self.is_lost:
            try:
                self.parse(<uint8_t*>PyBytes_AS_STRING(rest), PyBytes_GET_SIZE(rest))
            except Exception as error:
                self.hub.report(self, error)
            self.rearm()

    # --- for the hub

    cdef int ready(self, uint32_t events) except -1:  # hot
        if self.queue_bytes and events & ~<uint32_t>EPOLLIN:
            self.flush()
        if self.wanted & EPOLLIN and events & ~<uint32_t>EPOLLOUT:
            self.read()
        elif self.is_at_eof and events & EPOLLERR:
            self.lose(None)     # it does not listen either
        return 0

    cdef int fail(self) except -1:
        return self.lose(None)

    cdef int read(self) except -1:  # hot
        cdef Hub hub = self.hub
        cdef ssize_t n = self.fetch(hub.inbox, hub.bulk_bytes)
        if n > 0:
            if self.is_closing:
                return 0
            return self.parse(hub.inbox, <size_t>n)
        if n == 0:
            return self.end_input()
        if n != -EAGAIN and n != -EINTR:
            return self.lose(OSError(<int>-n, os.strerror(<int>-n)))
        return 0

    cdef int queued(self) except -1:
        return self.rearm()

    cdef int end_input(self) except -1:
        """The client says no more, on any stream; what it is owed is still sent, as far as the windows are open."""
        cdef H2Leg leg
        if self.is_shut:
            return self.lose(None)
        self.is_at_eof = True
        self.rearm()
        for leg in list(self.legs.values()):
            leg.read_end()
            leg.give_up()
        self.owner.eof()
        return 0

    cdef int catch_up(self) except -1:
        """Read what has arrived: somebody wants to know that nothing is left unread."""
        cdef int arrived = 0
        cdef ssize_t n
        if self.is_parsing or self.is_lost or self.is_at_eof or self.is_closing:
            return 0
        ioctl(self.fd, FIONREAD, &arrived)
        while not (self.is_lost or self.is_closing):
            if self.rest is not None:
                self.go_on()
                continue
            if arrived <= 0:
                break
            n = self.fetch(self.hub.inbox, self.hub.bulk_bytes)
            if n <= 0:
                break       # whatever it is, it is told when the hub reads
            arrived -= <int>n
            self.parse(self.hub.inbox, <size_t>n)
        return 0

    cdef int flush(self) except -1:
        cdef int error = self.pour()
        if error:
            return self.lose(OSError(error, os.strerror(error)))
        if self.queue_bytes == 0:
            if self.is_closing:
                self.shut_socket()
            else:
                self.pump()
        return self.rearm()

    cdef int rearm(self) except -1:
        cdef uint32_t events = EPOLLOUT if self.queue_bytes else 0
        if self.seating == 0 or self.is_lost:
            return 0
        if not self.is_at_eof and self.rest is None and self.queue_bytes <= OUT_BYTES + OUT_BYTES:
            events |= EPOLLIN
        elif self.is_at_eof:
            events |= EPOLLERR
        return self.want(events)

    cdef int shut_socket(self) except -1:
        if not self.is_shut:
            self.shut_down()
            if self.queue_bytes:
                return 0        # close_notify waits, and `flush` comes back here
            self.is_shut = True
            if self.is_at_eof:
                self.lose(None)
        return 0

    cdef int lose(self, error) except -1:
        """The connection is over: tell every leg, and the owner in a call of its own, once."""
        cdef H2Leg leg
        if self.is_lost:
            return 0
        self.is_lost = True
        self.forget_queue()
        self.out_bytes = 0
        self.rest = None
        self.want(0)
        for leg in list(self.legs.values()):
            leg.fall()
        self.hub.loop.call_soon(self.release, error)
        return 0

    def release(self, error):
        """Called by the loop, once."""
        cdef H2Leg leg
        cdef int fd = self.fd
        if fd < 0:
            return
        self.hub.unseat(self)
        self.fd = -1
        owner, self.owner = self.owner, None
        self.legs.clear()
        for leg in self.waiting:
            leg.is_waiting = False
        self.waiting.clear()
        try:
            owner.lost(error)
        finally:
            close_fd(fd)

    # --- frames from the client

    cdef int parse(self, uint8_t* p, size_t n) except -1:  # hot; p is valid in this call
        cdef size_t at = 0, m
        self.is_parsing = True
        self.turn = self.turn_frames
        try:
            while at < n and not (self.is_lost or self.is_closing):
                if self.turn == 0:
                    self.rest = PyBytes_FromStringAndSize(<char*>p + at, n - at)
                    self.hub.loop.call_soon(self.go_on)
                    self.rearm()
                    break
                if self.head_bytes < FRAME_HEAD:
                    if self.preface < <unsigned>len(PREFACE):
                        m = min(n - at, <size_t>len(PREFACE) - self.preface)
                        if memcmp(p + at, PyBytes_AS_STRING(PREFACE) + self.preface, m):
                            return self.fault(PROTOCOL_ERROR, "no preface of HTTP/2")
                        self.preface += <unsigned>m
                        at += m
                        continue
                    m = min(n - at, <size_t>FRAME_HEAD - self.head_bytes)
                    memcpy(self.head + self.head_bytes, p + at, m)
                    self.head_bytes += <unsigned>m
                    at += m
                    if self.head_bytes < FRAME_HEAD:
                        break
                    self.begin_frame()
                else:
                    m = min(n - at, <size_t>self.left)
                    if self.way == WAY_TUNNEL:
                        m = self.feed_tunnel(p + at, m)
                    elif self.way == WAY_CONTROL:
                        self.frame += (<const uint8_t[:m]>(p + at))
                    elif self.way == WAY_SMALL:
                        memcpy(self.small + (SMALL_PAYLOAD - self.left), p + at, m)
                    self.left -= <uint32_t>m
                    at += m
                if self.left == 0 and not (self.is_lost or self.is_closing):
                    self.head_bytes = 0
                    self.end_frame()
            self.pass_run()
        finally:
            self.is_parsing = False
            self.run_bytes = 0
            self.run_leg = None
        return 0

    cdef int begin_frame(self) except -1:  # hot
        cdef uint32_t n = (<uint32_t>self.head[0] << 16) | (<uint32_t>self.head[1] << 8) | self.head[2]
        self.type = self.head[3]
        self.flags = self.head[4]
        self.stream_id = _word_at(self.head + STREAM_ID_AT) & ID_MASK
        self.left = n
        self.padding = 0
        self.is_padding_due = False
        self.leg = None
        if self.run_bytes and (self.type != DATA or self.stream_id != self.run_leg.stream_id):
            self.pass_run()
        if n > self.frame_max:
            return self.fault(FRAME_SIZE_ERROR, f"a frame of {n} bytes, {self.frame_max} are allowed")
        if self.block_id:
            self.way = WAY_CONTROL      # only CONTINUATION may come: h2 says so
        elif self.type == DATA:
            self.begin_data(n)
        elif self.type == WINDOW_UPDATE:
            self.way = WAY_SMALL
            if n != WINDOW_UPDATE_BYTES:
                return self.fault(FRAME_SIZE_ERROR, "a WINDOW_UPDATE has 4 bytes")
        elif self.type == PING:
            self.way = WAY_SMALL
            if n != PING_BYTES or self.stream_id:
                return self.fault(FRAME_SIZE_ERROR if n != PING_BYTES else PROTOCOL_ERROR,
                                  "a PING has 8 bytes and belongs to no stream")
        elif self.type == PRIORITY or self.type > CONTINUATION:
            self.way = WAY_NOWHERE      # §5.3.1, §5.5
            self.charge_idle("frames that say nothing")
        elif (self.type == RST_STREAM and n == RST_STREAM_BYTES and self.was_opened()
                and self.stream_id not in self.legs):
            self.way = WAY_NOWHERE      # over, and h2 would only say so
            self.charge_reset()
        else:
            self.way = WAY_CONTROL
        if self.way == WAY_CONTROL:
            del self.frame[:]
            self.frame += (<const uint8_t[:FRAME_HEAD]>self.head)
            if self.type == HEADERS or self.type == CONTINUATION:
                self.block_bytes += n
                if self.block_bytes > self.block_max:
                    return self.fault(ENHANCE_YOUR_CALM, f"a header block of more than {self.block_max} bytes")
                if self.type == CONTINUATION:
                    self.charge(COST_CONTINUATION, "CONTINUATION frames")
                elif self.stream_id <= self.highest:
                    self.charge(COST_FRAME, "trailers")
            elif self.type == SETTINGS:
                self.charge(COST_SETTINGS, "SETTINGS")
            elif self.type == RST_STREAM:
                self.charge_reset()
        return 0

    cdef bint was_opened(self) noexcept:
        """Has the client had the stream of this frame?"""
        return self.stream_id <= self.highest and self.stream_id & 1

    cdef int begin_data(self, size_t n) except -1:  # hot
        found = self.legs.get(self.stream_id)
        cdef H2Leg leg = <H2Leg>found if found is not None else None
        if n == 0 and not self.flags & FLAG_END_STREAM:
            self.charge(COST_FRAME, "empty frames")
        if leg is None and self.was_opened():
            self.way = WAY_NOWHERE
            self.count_arrived(n)
            return self.charge(COST_LATE, "DATA of streams that are over")
        if leg is None or not leg.is_tunnel or leg.is_read_ended:
            self.way = WAY_CONTROL
            return 0
        self.way = WAY_TUNNEL
        self.leg = leg
        if <int64_t>n > leg.client_window:
            return self.fault(FLOW_CONTROL_ERROR, "more DATA than the window of a stream allows")
        leg.client_window -= n
        leg.taken += n
        self.count_arrived(n)
        if self.flags & FLAG_PADDED:
            if n == 0:
                return self.fault(FRAME_SIZE_ERROR, "padding without its length")
            self.is_padding_due = True
        return 0

    cdef int feed_tunnel(self, uint8_t* p, size_t n) except -1:  # hot; the number of bytes used, all if it can
        cdef size_t payload
        if self.is_padding_due:
            self.is_padding_due = False
            if p[0] >= self.left:
                self.fault(PROTOCOL_ERROR, "more padding than payload")
                return <int>n
            self.padding = p[0]
            if self.left == self.padding + 1u and not self.flags & FLAG_END_STREAM:
                self.charge(COST_FRAME, "padding of nothing")
            return 1
        payload = min(n, <size_t>(self.left - self.padding))
        if payload == 0:
            return <int>n
        if self.run_bytes == 0:
            self.run = p
            self.run_leg = self.leg
        else:
            memmove(self.run + self.run_bytes, p, payload)  # over the head of its frame
        self.run_bytes += payload
        return <int>payload

    cdef int count_arrived(self, size_t n) except -1:  # hot
        """The connection's own window is opened again for what h2 does not see."""
        self.arrived += n
        if self.arrived >= WINDOW_MAX // WINDOW_PARTS:
            self.open_window(0, self.arrived)
            self.arrived = 0
        return 0

    cdef int pass_run(self) except -1:  # hot
        """What has come on one stream leaves in one piece, in however many frames it came."""
        cdef H2Leg leg = self.run_leg
        cdef size_t n = self.run_bytes
        if n:
            self.run_bytes = 0
            self.run_leg = None
            leg.arrive(self.run, n)
            leg.give_back()
        return 0

    cdef int end_frame(self) except -1:  # hot
        cdef H2Leg leg = self.leg
        if self.way == WAY_TUNNEL:
            self.leg = None
            if self.flags & FLAG_END_STREAM:
                self.pass_run()
            if self.run_bytes == 0:
                leg.give_back()     # padding
            if self.flags & FLAG_END_STREAM and not leg.is_closed:
                self.owner.tunnel_ended(self.stream_id)
            return 0
        if self.way == WAY_SMALL:
            return self.end_small()
        if self.way == WAY_CONTROL:
            return self.end_control()
        return 0

    cdef int end_control(self) except -1:
        cdef bytes whole = bytes(self.frame)
        del self.frame[:]
        if self.type == HEADERS or self.type == CONTINUATION:
            if self.type == HEADERS and self.stream_id > self.highest:
                self.highest = self.stream_id
            if self.type == HEADERS:
                self.block_s = self.hub.now_s
            self.block_id = 0 if self.flags & FLAG_END_HEADERS else self.stream_id
            if self.block_id == 0:
                self.block_bytes = 0
        elif self.type == DATA and self.flags & FLAG_PADDED and not self.flags & FLAG_END_STREAM:
            if len(whole) > FRAME_HEAD and len(whole) == FRAME_HEAD + 1 + whole[FRAME_HEAD]:
                self.charge(COST_FRAME, "padding of nothing")
                if self.is_closing:
                    return 0
        self.turn -= 1
        if self.type == GOAWAY and self.block_id == 0:
            self.charge(COST_SETTINGS, "GOAWAY")
            self.owner.goaway()     # h2 would say nothing more; the client may well listen
        else:
            self.owner.frame(whole)
        return 0

    cdef int end_small(self) except -1:
        if self.type == PING:
            if self.flags & FLAG_ACK:
                return self.charge(COST_FRAME, "answers to PING")
            self.charge_idle("PING")
            if self.is_closing:
                return 0
            self.append_head(PING_BYTES, PING, FLAG_ACK, 0)
            return self.append(self.small, PING_BYTES)
        self.charge_idle("WINDOW_UPDATE")
        if self.is_closing:
            return 0
        return self.window_update(_word_at(self.small + SMALL_PAYLOAD - WINDOW_UPDATE_BYTES) & ID_MASK)

    cdef int window_update(self, uint32_t increment) except -1:
        cdef H2Leg leg
        if increment == 0:
            return self.fault(PROTOCOL_ERROR, "a WINDOW_UPDATE of nothing")
        if self.stream_id == 0:
            self.window += increment
            if self.window > WINDOW_MAX:
                return self.fault(FLOW_CONTROL_ERROR, "a window of more than 2^31-1 bytes")
            return self.pump()
        found = self.legs.get(self.stream_id)
        if found is None:
            if not self.was_opened():
                return self.fault(PROTOCOL_ERROR, "a WINDOW_UPDATE for a stream that was never opened")
            return 0
        leg = <H2Leg>found
        leg.window += increment
        if leg.window > WINDOW_MAX:
            return self.fault(FLOW_CONTROL_ERROR, "a window of more than 2^31-1 bytes")
        self.line_up(leg)
        return self.pump()

    # --- the budget

    cdef int charge(self, double cost, str what) except -1:
        """One odd event. Beyond the budget the connection ends."""
        cdef double now_s = self.hub.now_s
        self.credit = min(self.credit_max, self.credit + (now_s - self.credit_s) * self.credit_per_s) - cost
        self.credit_s = now_s
        if self.credit < 0:
            return self.fault(ENHANCE_YOUR_CALM, f"too many odd frames, the last ones: {what}")
        return 0

    cdef int charge_idle(self, str what) except -1:
        """A frame that may be about what the client was sent."""
        if self.free >= 1:
            self.free -= 1
            return 0
        return self.charge(COST_FRAME, what)

    cdef int charge_reset(self) except -1:
        """The client resets a stream, for nothing if that was answered and used. source  CVE-2023-44487"""
        cdef H2Leg leg
        found = self.legs.get(self.stream_id)
        if found is None:
            return self.charge(COST_LATE, "resets of streams that are over")
        leg = <H2Leg>found
        if leg.is_answered and (leg.pushed or self.hub.now_s - leg.opened_s >= self.settled_s):
            return 0
        return self.charge(COST_RESET, "streams that were opened and reset")

    def note_answer(self, H2Leg leg not None):
        """A stream has its answer, or its tunnel."""
        leg.is_answered = True
        if not leg.is_tunnel:
            self.credit = min(self.credit_max, self.credit + WORTH_ANSWER)
        self.free = min(self.free + FREE_PER_ANSWER, FREE_MAX)

    def note_reset(self):
        """The owner has reset a stream because of the client's fault. source  CVE-2025-8671"""
        self.charge(COST_RESET, "streams that had to be reset")

    cdef int fault(self, uint32_t code, str text) except -1:
        self.pass_run()         # it came before the fault
        if not (self.is_lost or self.is_closing):
            self.owner.fault(code, text)
        return 0

    # --- frames to the client

    cdef int append(self, const uint8_t* p, size_t n) except -1:  # hot; p is the caller's
        """Gather n bytes."""
        cdef uint8_t* grown
        cdef size_t room
        if self.is_lost:
            return 0
        if self.out is NULL:
            self.out = self.hub.take_spare(&self.out_room)
        room = self.out_room
        if self.out_bytes + n > room:
            if room == 0:
                room = OUT_FIRST_BYTES
            while room < self.out_bytes + n:
                room += room
            grown = <uint8_t*>realloc(self.out, room)
            if grown is NULL:
                raise MemoryError()
            self.out = grown
            self.out_room = room
        memcpy(self.out + self.out_bytes, p, n)
        self.out_bytes += n
        if not self.is_corked:
            self.is_corked = True
            self.hub.cork(self)
        return 0

    cdef int append_head(self, size_t n, uint8_t type, uint8_t flags, uint32_t stream_id) except -1:  # hot
        cdef uint8_t head[FRAME_HEAD]
        head[0] = <uint8_t>(n >> 16)
        head[1] = <uint8_t>(n >> 8)
        head[2] = <uint8_t>n
        head[3] = type
        head[4] = flags
        _put_word(head + STREAM_ID_AT, stream_id)
        return self.append(head, FRAME_HEAD)

    cdef int open_window(self, uint32_t stream_id, int64_t by) except -1:
        cdef uint8_t word[WINDOW_UPDATE_BYTES]
        _put_word(word, <uint32_t>by)
        self.append_head(WINDOW_UPDATE_BYTES, WINDOW_UPDATE, 0, stream_id)
        return self.append(word, WINDOW_UPDATE_BYTES)

    cdef int uncork(self) except -1:
        """Send what was gathered."""
        self.is_corked = False
        if self.out_bytes:
            self.spill()
        if self.out is not NULL:
            self.hub.give_spare(self.out, self.out_room)
        self.out = NULL
        self.out_room = 0
        return 0

    cdef size_t send_data(self, H2Leg leg, const uint8_t* p, size_t n) except? 0:  # hot
        """Send as much of n bytes as both windows and the socket allow; how much that was."""
        cdef size_t sent = 0, m
        cdef int64_t window
        while sent < n and self.queue_bytes == 0 and not self.is_lost:
            window = min(self.window, leg.window)
            if window <= 0:
                break
            m = min(n - sent, self.frame_bytes)
            if <int64_t>m > window:
                m = <size_t>window
            self.append_head(m, DATA, 0, leg.stream_id)
            self.append(p + sent, m)
            self.window -= m
            leg.window -= m
            sent += m
            self.free += FREE_PER_FRAME * m / SHORT_BYTES if sent < n and m < SHORT_BYTES else FREE_PER_FRAME
            self.free = min(self.free, FREE_MAX)
            if self.out_bytes >= OUT_BYTES:
                self.spill()
        return sent

    cdef int spill(self) except -1:
        """As `uncork`, before the time."""
        cdef int error
        cdef size_t n = self.out_bytes
        self.out_bytes = 0
        error = self.put(self.out, n)
        if error:
            return self.lose(OSError(error, os.strerror(error)))
        if self.queue_bytes:
            self.rearm()
        return 0

    cdef int line_up(self, H2Leg leg) except -1:
        """A stream that has something to send, and a window for it, waits for its turn."""
        if leg.queue_bytes and leg.window > 0 and not leg.is_waiting:
            leg.is_waiting = True
            self.waiting.append(leg)
        return 0

    cdef int pump(self) except -1:
        """Let streams that wait send in turn, a frame each, for as long as there is room."""
        cdef H2Leg leg
        while self.waiting and self.queue_bytes == 0 and self.window > 0 and not self.is_lost:
            leg = self.waiting.popleft()
            leg.is_waiting = False
            if leg.queue_bytes and leg.window > 0:
                leg.send_some()
        return 0

    cdef int unacknowledged(self) noexcept:
        cdef int n = 0
        if self.fd >= 0:
            ioctl(self.fd, SIOCOUTQ, &n)
        return n


cdef class H2Leg(_ClientLeg):
    """One stream: of a tunnel, or of a plain request and its answer. Made by `H2Wire.open_stream`.

    in      owner   told `drained()` when nothing waits any more, `fallen()` when the client has reset the stream or the
                    connection is over, neither while a relay has the leg; and `closed()`, once
    """

    # --- for net/h2.py

    def write(self, bytes data not None):
        """Send, or keep what the windows do not allow."""
        if len(data):
            self.push(<const uint8_t*>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))

    def end(self):
        """Say no more, behind what waits."""
        self.shut()

    def note_ended(self):
        """END_STREAM has been sent with what came before."""
        self.is_shut_wanted = self.is_shut = True

    def end_input(self):
        """The client has ended its side."""
        self.read_end()

    def close_stream(self):
        """Nothing more of it is of interest."""
        self.close()

    def forget(self):
        """It was refused, and never was."""
        self.is_reset_sent = True
        self.owner = None
        self.close()

    @property
    def is_over(self):
        """Has the client reset it, or has the connection ended?"""
        return self.is_write_dead

    def was_reset(self):
        """The client has reset the stream: nothing more is sent, and nothing comes."""
        self.is_reset_sent = True
        self.fall()

    def reset(self, uint32_t code):
        """Reset it, unless that is done; what waits is dropped."""
        cdef H2Wire wire = self.wire
        if wire is not None and not wire.is_lost and not self.is_reset_sent:
            self.is_reset_sent = True
            wire.owner.reset_stream(self.stream_id, code)
        self.close()

    def take_early(self):
        """What has come before the tunnel was there, and whether that is all."""
        early, self.early = self.early, None
        return bytes(early or b""), self.is_read_ended

    @property
    def waiting_bytes(self):
        return self.queue_bytes

    # --- for the wire

    cdef int arrive(self, uint8_t* p, size_t n) except -1:  # hot
        """Payload of a tunnel's DATA."""
        if self.relay is not None and not self.holds & HOLD_START:
            return self.relay.from_client(p, n)
        if not self.is_closed:
            if self.early is None:
                self.early = bytearray()
            self.early += (<const uint8_t[:n]>p)
        return 0

    cdef int give_back(self) except -1:  # hot
        """Let the client send again what has been taken, unless this leg does not read."""
        if self.holds == 0 and self.taken >= self.wire_window() // WINDOW_PARTS and not self.is_read_ended:
            self.wire.open_window(self.stream_id, self.taken)
            self.client_window += self.taken
            self.taken = 0
        return 0

    cdef int64_t wire_window(self) noexcept:
        return WINDOW_MAX if self.wire is None or self.wire.is_lost else self.wire.stream_window

    cdef int send_some(self) except -1:
        """A frame of what waits."""
        cdef H2Wire wire = self.wire
        cdef size_t sent = wire.send_data(self, self.queue + self.queue_start, min(self.queue_bytes, wire.frame_bytes))
        self.queue_start += sent
        self.queue_bytes -= sent
        if self.queue_bytes == 0:
            return self.emptied()
        wire.line_up(self)
        return self.give_up()

    cdef int give_up(self) except -1:
        """A client that says no more opens no window any more: what waits for one waits in vain."""
        cdef H2Wire wire = self.wire
        if wire is not None and wire.is_at_eof and self.queue_bytes and min(self.window, wire.window) <= 0:
            if self.relay is None:
                return self.fall()
            self.hub.loop.call_soon(self.was_reset)     # not within a push of the relay
        return 0

    cdef int emptied(self) except -1:
        self.forget_queue()
        if self.is_shut_wanted:
            self.shut()
        if self.relay is not None:
            return self.relay.queue_emptied(self)
        if self.owner is not None:
            self.owner.drained()
        return 0

    cdef int fall(self) except -1:
        """The stream is over, by the client's word or with its connection."""
        if self.relay is not None:
            if self.is_read_ended:
                self.is_reset = True
                self.mark_write_dead(ECONNRESET)
                return self.relay.settle()
            return self.read_failed()
        self.is_reset = True
        self.is_read_ended = True
        self.mark_write_dead(ECONNRESET)
        if self.owner is not None:
            self.owner.fallen()
        return 0

    # --- as a leg

    cdef int rearm(self) except -1:
        return self.give_back()

    cdef int push(self, const uint8_t* p, size_t n) except -1:  # hot; p is the caller's, and not kept
        cdef size_t sent
        cdef H2Wire wire = self.wire
        if self.is_write_dead or self.is_shut_wanted or wire is None:
            return 0
        self.pushed += n
        if self.queue_bytes:
            return self.keep(p, n)
        sent = wire.send_data(self, p, n)
        if sent < n and not self.is_write_dead:
            self.keep(p + sent, n - sent)
            wire.line_up(self)
            if self.relay is not None:
                self.relay.queue_filled(self)
            self.give_up()
        return 0

    cdef int shut(self) except -1:
        self.is_shut_wanted = True
        if self.queue_bytes or self.is_shut or self.is_write_dead or self.wire is None:
            return 0
        self.is_shut = True
        self.wire.owner.end_stream(self.stream_id)
        if self.relay is not None and self.relay.is_close_received and not self.is_read_ended:
            self.hub.loop.call_later(self.wire.leave_s, self.leave_it)
        return 0

    def leave_it(self):
        """Called by the loop: both sides have said CLOSE, and the client, unlike a browser, does not end its own."""
        if self.wire is not None and not self.is_read_ended:
            self.is_reset_sent = True
            self.wire.owner.reset_stream(self.stream_id, NO_ERROR)
            self.read_end()

    cdef int close(self) except -1:
        """The stream is over for us: tell the client, if it does not know."""
        cdef H2Wire wire = self.wire
        cdef bint is_handed_over = False
        if self.is_closed:
            return 0
        if wire is not None and self.queue_bytes:
            is_handed_over = wire.send_data(self, self.queue + self.queue_start, self.queue_bytes) == self.queue_bytes
            if is_handed_over:
                self.forget_queue()
        if self.queue_bytes == 0 and not self.is_reset_sent:
            self.shut()
        if wire is not None and not wire.is_lost and not self.is_reset_sent:
            if not (self.is_read_ended and self.is_shut):
                self.is_reset_sent = True
                wire.owner.reset_stream(self.stream_id, NO_ERROR if self.is_shut else CANCEL)
        self.mark_write_dead(0)
        if is_handed_over and self.relay is not None:
            self.relay.queue_emptied(self)
        if self.is_closed:
            return 0            # by the tunnel's end, to which the dropped queue has led
        self.is_closed = True
        self.is_read_ended = True
        if self.is_waiting and wire is not None:
            self.is_waiting = False     # the connection may never have room again
            wire.waiting.remove(self)
        self.wire = None
        self.early = None
        owner, self.owner = self.owner, None
        if wire is not None:
            wire.legs.pop(self.stream_id, None)     # it is not there any more when the connection went first
        if owner is not None:
            owner.closed()
        return 0

    cdef bint has_moved(self) noexcept:
        """Has the client taken anything since the last call, as far as its connection tells?"""
        cdef int unacked = 0 if self.wire is None else self.wire.unacknowledged()
        cdef uint64_t sent = self.pushed - self.queue_bytes
        self.has_peer_moved = sent != self.seen_sent or unacked != self.seen_unacked
        self.seen_sent = sent
        self.seen_unacked = unacked
        return self.has_peer_moved

    cdef bint is_flushed(self) noexcept:
        """Others send over the same connection: what it has not acknowledged need not be ours."""
        return self.queue_bytes == 0 and (self.seen_unacked == 0 or self.has_peer_moved)

    cdef size_t unread(self) except? 0:
        """Nothing: what the kernel holds for the connection is read first."""
        if self.wire is not None:
            self.wire.catch_up()
        return 0

    cdef size_t room(self) noexcept:
        if self.wire is None or self.queue_bytes or self.wire.queue_bytes:
            return 0
        return <size_t>max(min(self.window, self.wire.window), 0)
