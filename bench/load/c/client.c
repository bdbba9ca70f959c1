/* The load: clients of one server, in closed loops, that cost less than any server does.
 *
 *     client --mode MODE --to ADDRESS [--connections N] [--size BYTES] [--in-flight N] [--seconds S] [--warm-up S]
 *            [--raw] [--mirrored] [--check] [--path P] [--greedy N] [--greedy-size BYTES] [--counters FILE]
 *            [--tls] [--h2] [--tunnels N] [--stalled N] [--stalled-by client|backend]
 *
 * echo      every connection keeps IN-FLIGHT messages under way; a message is done when as many bytes came back
 * upload    every connection sends as fast as it is taken
 * download  every connection reads what a pouring backend says
 * churn     every connection is made, upgraded, echoes one message, is closed with the close handshake, and again
 * get       every connection asks for SIZE bytes, GET /SIZE, and again when the answer is whole; no WebSocket
 * hold      connections are made and kept, and nothing is said
 * deaf      connections are made, and nothing is read
 * flood     connections are made, and sent to as fast as it is taken
 *
 * --raw     no WebSocket: what is sent is the stream of common.h, cut into pieces that are as long as the frames would be
 * --mirrored  frames come back as they were sent, masked
 * --check   what comes back is compared with what it must be; costs time, so not for measuring
 * --greedy  as many connections more, with messages of --greedy-size, whose messages and latencies are not counted
 * --tls     TLS 1.3 below everything; the server's certificate is not looked at
 * --h2      tunnels are HTTP/2 streams (RFC 8441), with TLS by ALPN and without by prior knowledge; for echo, upload,
 *           download, churn and hold. --connections is then the number of tunnels
 * --tunnels how many of them share a connection (default: 1; churn always has 1)
 * --stalled as many tunnels more, on the first connection, that stand still: what they echo is not let in
 *           (client), or their backend is told not to read (backend), while they go on sending as fast as they may.
 *           They do so before the others begin, and stalled_bytes is what they moved while those were measured
 *
 * Says "connected" when every connection is, then waits for a line on standard input: "go PID ..." with the processes of
 * the server (then "/", then those of the backend) starts the measurement; hold, deaf and flood last until standard
 * input ends. The result is one line of JSON. Frames are binary and masked; those that are not checked
 * are made once, since the same bytes may be sent for ever.
 */
#include "h2.h"
#include "wire.h"

#include <getopt.h>

#define READ_BYTES (256 * 1024)
#define BATCH_BYTES (128 * 1024) /* that an upload sends at a time, at least */
#define RAMP 64                  /* connections that are being made at once */
#define CONNECT_WITHIN_S 120
#define MESSAGE_WITHIN_S 10
#define STALL_S 30 /* without any progress at all means that something hangs */
#define HEAD_BYTES 4096
#define MAX_PIDS 4096
#define OUT_BYTES (256 * 1024) /* that a connection with several tunnels has ready at most */
#define STILL_S 0.1 /* without a byte: it stands still */
#define ADDRESSES 8 /* of 127.0.0.0/8 that connections come from, since a port stays taken for a while */

enum mode { ECHO, UPLOAD, DOWNLOAD, CHURN, GET, HOLD, DEAF, FLOOD };
#define MODES 8
static const char *const modes[MODES] = {"echo", "upload", "download", "churn", "get", "hold", "deaf", "flood"};

enum state { NEW, SHAKING, OPEN, CLOSING, OVER };
enum link_state { UNMADE, CONNECTING, SECURING, SETTLING, UP, DOWN };

struct kind { /* of messages: what a connection says */
    size_t size, frame_bytes;
    unsigned in_flight;
    bool is_counted, is_stalled;
    uint8_t *batch; /* owned; the same frame over and over, one more than is ever due */
    size_t batch_bytes;
};

/* A connection, with one tunnel on it or, over HTTP/2, with one or more. */
struct link {
    struct wire wire;
    enum link_state state;
    bool waits; /* for its next turn */
    bool is_heard; /* just now: what is said meanwhile goes out in one piece afterwards */
    uint64_t life; /* another number whenever it is made anew */
    struct conn *tunnels;
    size_t tunnels_n;
    struct link *next;

    /* HTTP/2 */
    uint8_t head[H2_HEAD]; /* of the frame that is being read */
    uint8_t head_bytes, type, flags;
    uint32_t stream, frame_left, control_bytes;
    uint8_t control[1024]; /* its payload, if it is not DATA */
    uint32_t peer_window;  /* of a new stream */
    int64_t window;        /* bytes of payload that may be sent yet */
    uint32_t unreturned;   /* bytes that were heard and not yet granted anew */
    uint8_t *out;          /* owned; frames to be sent */
    size_t out_at, out_bytes, out_capacity;
    bool is_short;         /* of room or of window: some tunnel has something to say */
};

struct conn {
    struct link *link;
    enum state state;
    struct kind *kind;
    uint64_t begun_ns;
    int64_t window; /* of its stream */
    uint32_t unreturned;

    uint8_t *http; /* owned; the head of an answer, until it is whole */
    size_t http_bytes;

    uint8_t head[14]; /* of the frame that is being read */
    uint8_t head_bytes, opcode;
    uint64_t payload_left; /* of the frame, or of the answer to a GET */
    unsigned mask_at;
    uint8_t control[125];
    uint8_t control_bytes;

    uint64_t due_bytes;   /* yet to be sent, of */
    size_t batch_at;      /* the batch, from here on; or, if checked, of */
    uint8_t *own;         /* owned */
    size_t own_at, own_capacity;

    uint64_t phase, said, heard; /* of the checked stream; bytes of payload */
    size_t heard_of_message;
    uint64_t *sent_at_ns; /* owned; a ring, one for each message in flight */
    unsigned oldest;
};

/* Latencies with 1.6 % of error: 64 buckets for every power of two of nanoseconds. */
#define BUCKETS (128 + 57 * 64)
static uint64_t buckets[BUCKETS], latency_max, latencies;

static enum mode mode;
static bool is_raw, is_mirrored, checks, is_tls, is_h2, stalls_backend;
static struct address server;
static const char *path = "/";
static double seconds = 1, warm_up = 0.2;
static struct kind plain = {.size = 64, .in_flight = 1, .is_counted = true}, greedy = {.size = 1 << 20, .in_flight = 1};
static struct kind stalled = {.size = 4096, .in_flight = 1, .is_stalled = true};
static size_t connections = 1, greedy_connections, stalled_tunnels, tunnels_each = 1, all, all_links;
static struct conn *conns;
static struct link *links, *waiting;
static int epoll;
static bool is_going, is_counting;
static uint64_t messages, payload_bytes, greedy_bytes, stalled_bytes, lost, progress, attempts;
static size_t open_now, opening;
static uint8_t buffer[READ_BYTES];
static char request[1024];
static size_t request_bytes;
static const uint8_t key[4] = {0x37, 0xfa, 0x21, 0x3d};
static char first_loss[256];
static struct counters *counters;

/* ---- latencies ---- */

static void record(uint64_t ns)
{
    size_t i = (size_t)ns;
    if (ns >= 128) {
        unsigned e = 63u - (unsigned)__builtin_clzll(ns);
        i = 128 + (size_t)(e - 7) * 64 + ((ns >> (e - 6)) & 63);
    }
    buckets[i]++;
    latencies++;
    if (ns > latency_max)
        latency_max = ns;
}

static uint64_t at_most(size_t bucket)
{
    if (bucket < 128)
        return bucket;
    unsigned e = (unsigned)(bucket - 128) / 64 + 7;
    return ((64 + ((bucket - 128) & 63) + 1) << (e - 6)) - 1;
}

static double percentile_us(double share)
{
    uint64_t rank = (uint64_t)(share * (double)latencies), seen = 0;
    for (size_t i = 0; i < BUCKETS; i++)
        if ((seen += buckets[i]) > rank)
            return (double)(at_most(i) < latency_max ? at_most(i) : latency_max) / 1e3;
    return (double)latency_max / 1e3;
}

/* ---- frames ---- */

static size_t write_head(uint8_t *to, uint8_t opcode, uint64_t n)
{
    size_t at = 2;
    to[0] = 0x80 | opcode;
    if (n < 126) {
        to[1] = (uint8_t)(0x80 | n);
    } else {
        size_t width = n < 65536 ? 2 : 8;
        to[1] = 0x80 | (width == 2 ? 126 : 127);
        for (size_t i = 0; i < width; i++)
            to[at++] = (uint8_t)(n >> (8 * (width - 1 - i)));
    }
    memcpy(to + at, key, 4);
    return at + 4;
}

static size_t write_message(uint8_t *to, const struct kind *kind, uint64_t offset)
{
    if (mode == GET) {
        memcpy(to, request, request_bytes);
        return request_bytes;
    }
    if (is_raw) {
        pattern_copy(to, kind->frame_bytes, offset);
        return kind->frame_bytes;
    }
    size_t head = write_head(to, 2, kind->size);
    pattern_copy(to + head, kind->size, offset);
    for (size_t i = 0; i < kind->size; i++)
        to[head + i] ^= key[i & 3];
    return head + kind->size;
}

static void prepare(struct kind *kind, bool streams)
{
    uint8_t head[14];
    kind->frame_bytes = mode == GET ? request_bytes : write_head(head, 2, kind->size) + kind->size;
    if (is_raw)
        kind->size = kind->frame_bytes; /* the floor moves as many bytes as there are on the wire */
    size_t frames = streams ? BATCH_BYTES / kind->frame_bytes + 1 : kind->in_flight;
    kind->batch_bytes = (frames + 1) * kind->frame_bytes;
    kind->batch = must_have(malloc(kind->batch_bytes));
    for (size_t i = 0; i <= frames; i++)
        write_message(kind->batch + i * kind->frame_bytes, kind, 0);
}

/* ---- one connection ---- */

static void open_again(struct link *l);
static void opened(struct conn *c);

/* Ends the connection, with whatever tunnels are on it. */
static void drop(struct link *l)
{
    wire_close(&l->wire);
    l->state = DOWN;
    for (struct conn *c = l->tunnels; c < l->tunnels + l->tunnels_n; c++) {
        if (c->state == OPEN || c->state == CLOSING)
            open_now--;
        else if (c->state == SHAKING)
            opening--;
        c->state = OVER;
        free(c->http);
        c->http = NULL;
    }
}

__attribute__((format(printf, 2, 3))) static void lose(struct link *l, const char *format, ...)
{
    lost++;
    if (first_loss[0] == 0) {
        va_list said;
        va_start(said, format);
        vsnprintf(first_loss, sizeof first_loss, format, said);
        va_end(said);
        for (char *p = first_loss; *p; p++)
            if (*p < ' ' || *p == '"' || *p == '\\' || *p > '~')
                *p = '.';
    }
    drop(l);
}

static void wait_for_turn(struct link *l)
{
    if (!l->waits) {
        l->waits = true;
        l->next = waiting;
        waiting = l;
    }
}

/* ---- HTTP/2, outwards ---- */

/* Room for n more bytes of frames. */
static uint8_t *room(struct link *l, size_t n)
{
    if (l->out_at == l->out_bytes)
        l->out_at = l->out_bytes = 0;
    if (l->out_bytes + n > l->out_capacity && l->out_at > 0) {
        memmove(l->out, l->out + l->out_at, l->out_bytes - l->out_at);
        l->out_bytes -= l->out_at;
        l->out_at = 0;
    }
    if (l->out_bytes + n > l->out_capacity) {
        l->out_capacity = l->out_bytes + 2 * n;
        l->out = must_have(realloc(l->out, l->out_capacity));
    }
    return l->out + l->out_bytes;
}

static void push(struct link *l)
{
    if (l->out_at == l->out_bytes || l->state < SETTLING || l->state == DOWN)
        return;
    ssize_t n = wire_send(&l->wire, l->out + l->out_at, l->out_bytes - l->out_at);
    if (n >= 0)
        l->out_at += (size_t)n;
    else if (errno != EAGAIN)
        lose(l, "sending: %s", wire_error());
}

/* Frames of a tunnel's stream, as far as both windows go: how many of these bytes have become some. */
static ssize_t send_data(struct conn *c, const uint8_t *from, size_t n)
{
    struct link *l = c->link;
    size_t ready = l->out_bytes - l->out_at, most = ready < OUT_BYTES ? OUT_BYTES - ready : 0;
    int64_t window = c->window < l->window ? c->window : l->window;
    if (window < (int64_t)most)
        most = window > 0 ? (size_t)window : 0;
    if (n > most) {
        n = most;
        l->is_short = true;
    }
    if (n == 0) {
        errno = EAGAIN;
        return -1;
    }
    c->window -= (int64_t)n, l->window -= (int64_t)n;
    for (size_t left = n, part; left > 0; left -= part, from += part) {
        part = left < H2_FRAME ? left : H2_FRAME;
        uint8_t *to = put_head(room(l, H2_HEAD + part), part, H2_DATA, 0, 1 + 2 * (uint32_t)(c - l->tunnels));
        memcpy(to, from, part);
        l->out_bytes += H2_HEAD + part;
    }
    if (!l->is_heard)
        push(l);
    return (ssize_t)n;
}

static ssize_t send_some(struct conn *c, const uint8_t *from, size_t n)
{
    return is_h2 ? send_data(c, from, n) : wire_send(&c->link->wire, from, n);
}

/* ---- one tunnel ---- */

/* Makes one more message due; checked ones are written where the connection keeps its own. */
static void say(struct conn *c)
{
    struct kind *kind = c->kind;
    if (!checks) {
        c->due_bytes += kind->frame_bytes;
        return;
    }
    if (c->own_at + c->due_bytes + kind->frame_bytes > c->own_capacity) {
        memmove(c->own, c->own + c->own_at, c->due_bytes);
        c->own_at = 0;
        if (c->due_bytes + kind->frame_bytes > c->own_capacity) {
            c->own_capacity = c->due_bytes + kind->frame_bytes * 2;
            c->own = must_have(realloc(c->own, c->own_capacity));
        }
    }
    c->due_bytes += write_message(c->own + c->own_at + c->due_bytes, kind, c->phase + c->said);
    c->said += kind->size;
}

static void flush(struct conn *c)
{
    struct kind *kind = c->kind;
    bool streams = mode == UPLOAD || mode == FLOOD || kind->is_stalled;
    for (size_t turn = 0;;) {
        if (streams && c->state == OPEN && c->due_bytes < BATCH_BYTES)
            do
                say(c);
            while (c->due_bytes < BATCH_BYTES);
        if (c->due_bytes == 0)
            return;
        const uint8_t *from = checks ? c->own + c->own_at : kind->batch + c->batch_at;
        size_t most = checks ? c->due_bytes : kind->batch_bytes - c->batch_at;
        size_t asked = c->due_bytes < most ? c->due_bytes : most;
        ssize_t n = send_some(c, from, asked);
        if (n < 0) {
            if (errno != EAGAIN)
                lose(c->link, "sending: %s", wire_error());
            return;
        }
        c->due_bytes -= (size_t)n;
        if (checks)
            c->own_at += (size_t)n;
        else
            c->batch_at = (c->batch_at + (size_t)n) % kind->frame_bytes;
        progress += (size_t)n;
        if (streams && is_counting)
            *(kind->is_stalled ? &stalled_bytes : &payload_bytes) += (size_t)n;
        if ((size_t)n < asked || c->link->state == DOWN)
            return; /* full: there will be an edge, or a window */
        if ((turn += (size_t)n) >= TURN_BYTES) {
            c->link->is_short = true;
            wait_for_turn(c->link);
            return;
        }
    }
}

static void begin_messages(struct conn *c)
{
    uint64_t now = now_ns();
    for (unsigned i = 0; i < c->kind->in_flight; i++) {
        say(c);
        c->sent_at_ns[i] = now;
    }
    c->oldest = 0;
    flush(c);
}

static void say_control(struct conn *c, uint8_t opcode, const uint8_t *payload, size_t n)
{
    uint8_t frame[2 + 4 + 125];
    if (c->due_bytes != 0)
        return; /* in the middle of a message: the traffic itself shows that we live */
    size_t head = write_head(frame, opcode, n);
    for (size_t i = 0; i < n; i++)
        frame[head + i] = payload[i] ^ key[i & 3];
    if (send_some(c, frame, head + n) != (ssize_t)(head + n))
        lose(c->link, "sending a control frame: %s", wire_error());
}

static void leave(struct conn *c)
{
    c->state = CLOSING;
    if (is_raw)
        wire_shut(&c->link->wire);
    else
        say_control(c, 8, (const uint8_t[]){0x03, 0xe8}, 2);
}

static void left(struct conn *c)
{
    drop(c->link);
    progress++;
    if (is_counting) {
        messages++;
        record(now_ns() - c->begun_ns);
    }
    if (is_going)
        open_again(c->link);
}

/* Payload in the order of the stream. */
static void hear(struct conn *c, const uint8_t *p, size_t n)
{
    struct kind *kind = c->kind;
    if (checks && !pattern_same(p, n, mode == GET ? c->heard_of_message : c->phase + c->heard)) {
        lose(c->link, "content differs within %zu bytes from byte %llu on", n, (unsigned long long)c->heard);
        return;
    }
    c->heard += n;
    progress += n;
    if (kind->is_stalled) {
        stalled_bytes += is_counting ? n : 0;
        return;
    }
    if (is_counting)
        *(kind->is_counted ? &payload_bytes : &greedy_bytes) += n;
    if (mode != ECHO && mode != CHURN && mode != GET)
        return;
    c->heard_of_message += n;
    if (c->heard_of_message < kind->size)
        return;
    if (c->state == SHAKING) { /* the first answer to a GET: the server is there */
        c->heard_of_message = 0;
        opened(c);
        return;
    }
    if (mode == CHURN) {
        if (c->state == OPEN)
            leave(c);
        return;
    }
    uint64_t now = now_ns();
    while (c->heard_of_message >= kind->size) {
        c->heard_of_message -= kind->size;
        if (is_counting && kind->is_counted) {
            messages++;
            record(now - c->sent_at_ns[c->oldest]);
        }
        say(c);
        c->sent_at_ns[c->oldest] = now;
        c->oldest = c->oldest + 1 == kind->in_flight ? 0 : c->oldest + 1;
    }
}

static void hear_control(struct conn *c)
{
    if (c->opcode == 9) {
        say_control(c, 10, c->control, c->control_bytes);
    } else if (c->opcode == 8) {
        unsigned code = c->control_bytes >= 2 ? (unsigned)c->control[0] << 8 | c->control[1] : 1005;
        if (c->state == CLOSING)
            left(c);
        else
            lose(c->link, "closed with %u after %llu bytes", code, (unsigned long long)c->heard);
    }
}

/* Frames, cut anywhere. Whatever is sent in answer goes out in one piece afterwards. */
static void hear_frames(struct conn *c, uint8_t *p, size_t n)
{
    uint64_t life = c->begun_ns;
    const size_t mask_bytes = is_mirrored ? sizeof key : 0;
    while (n > 0) {
        if (c->payload_left == 0) {
            size_t whole = 2;
            do {
                c->head[c->head_bytes++] = *p++;
                n--;
                if (c->head_bytes >= 2)
                    whole = ((c->head[1] & 127) == 127 ? 10 : (c->head[1] & 127) == 126 ? 4 : 2) + mask_bytes;
            } while (n > 0 && c->head_bytes < whole);
            if (c->head_bytes < whole)
                return;
            whole -= mask_bytes;
            c->mask_at = 0;
            c->head_bytes = 0;
            c->opcode = c->head[0] & 15;
            c->payload_left = c->head[1] & 127;
            if (whole > 2)
                c->payload_left = 0;
            for (size_t i = 2; i < whole; i++)
                c->payload_left = c->payload_left << 8 | c->head[i];
            if ((c->head[1] >> 7) != is_mirrored || c->head[0] & 0x70 || (c->opcode >= 8 && c->payload_left > 125)) {
                lose(c->link, "not a frame that was expected: %02x %02x", c->head[0], c->head[1]);
                return;
            }
            c->control_bytes = 0;
            if (c->opcode >= 8 && c->payload_left == 0)
                hear_control(c);
        }
        size_t part = n < c->payload_left ? n : (size_t)c->payload_left;
        c->payload_left -= part;
        for (size_t i = 0; is_mirrored && checks && i < part; i++)
            p[i] ^= key[c->mask_at++ & 3];
        if (part > 0 && c->opcode >= 8) {
            memcpy(c->control + c->control_bytes, p, part);
            c->control_bytes = (uint8_t)(c->control_bytes + part);
            if (c->payload_left == 0)
                hear_control(c);
        } else if (part > 0) {
            hear(c, p, part);
        }
        if (c->state == OVER || c->begun_ns != life)
            return; /* ended, or ended and begun anew */
        p += part, n -= part;
    }
}

/* The head of an answer: NULL until it is whole, and then how many of these n bytes were its own. */
static char *hear_head(struct conn *c, const uint8_t *p, size_t n, size_t *used)
{
    size_t before = c->http_bytes, taken = n < HEAD_BYTES - before ? n : HEAD_BYTES - before;
    if (c->http == NULL)
        c->http = must_have(malloc(HEAD_BYTES + 1));
    memcpy(c->http + before, p, taken);
    c->http_bytes += taken;
    c->http[c->http_bytes] = 0;
    char *end = memmem(c->http, c->http_bytes, "\r\n\r\n", 4);
    if (end == NULL) {
        if (c->http_bytes == HEAD_BYTES)
            lose(c->link, "an answer without an end");
        return NULL;
    }
    end[2] = 0;
    *used = (size_t)(end + 4 - (char *)c->http) - before;
    c->http_bytes = 0;
    return (char *)c->http;
}

static void hear_answers(struct conn *c, const uint8_t *p, size_t n)
{
    while (n > 0) {
        if (c->payload_left == 0) {
            size_t used;
            const char *head = hear_head(c, p, n, &used), *length;
            if (head == NULL)
                return;
            length = strcasestr(head, "\r\nContent-Length:");
            if (strncmp(head, "HTTP/1.1 200", 12) != 0 || length == NULL || strtoull(length + 17, NULL, 10) != c->kind->size) {
                lose(c->link, "answered with %.200s", head);
                return;
            }
            c->payload_left = c->kind->size;
            p += used, n -= used;
        }
        size_t part = n < c->payload_left ? n : (size_t)c->payload_left;
        c->payload_left -= part;
        if (part > 0)
            hear(c, p, part);
        if (c->state == OVER)
            return;
        p += part, n -= part;
    }
}

static void listen_to(struct conn *c, uint8_t *p, size_t n)
{
    if (mode == GET)
        hear_answers(c, p, n);
    else if (!is_raw)
        hear_frames(c, p, n);
    else
        hear(c, p, n);
}

static void opened(struct conn *c)
{
    c->state = OPEN;
    opening--;
    open_now++;
    progress++;
    if (mode == CHURN)
        begin_messages(c);
    else if (mode == FLOOD)
        flush(c);
}

static void hear_http(struct conn *c, uint8_t *p, size_t n)
{
    size_t used;
    const char *head = hear_head(c, p, n, &used);
    if (head == NULL)
        return;
    if (strncmp(head, "HTTP/1.1 101", 12) != 0) {
        lose(c->link, "answered with %.40s", head);
        return;
    }
    free(c->http);
    c->http = NULL;
    opened(c);
    if (used < n && c->state != OVER)
        hear_frames(c, p + used, n - used);
}

/* ---- HTTP/2, inwards ---- */

/* A little is kept ungranted, so that not every message is worth a frame. */
static void grant(struct link *l, struct conn *c, uint32_t bytes)
{
    l->unreturned += bytes;
    c->unreturned += bytes;
    if (l->unreturned >= H2_OUR_CONNECTION / 2) {
        put_window_update(room(l, H2_HEAD + 4), 0, l->unreturned);
        l->out_bytes += H2_HEAD + 4;
        l->unreturned = 0;
    }
    if (c->unreturned >= H2_OUR_STREAM / 2 && !c->kind->is_stalled) {
        put_window_update(room(l, H2_HEAD + 4), l->stream, c->unreturned);
        l->out_bytes += H2_HEAD + 4;
        c->unreturned = 0;
    }
}

/* Everything that waits for room or for the window of the connection. */
static void flush_all(struct link *l)
{
    uint64_t life = l->life;
    l->is_short = false;
    for (size_t i = 0; i < l->tunnels_n && l->life == life && l->state == UP; i++)
        if (l->tunnels[i].state == OPEN && l->tunnels[i].due_bytes > 0)
            flush(&l->tunnels[i]);
}

static struct conn *tunnel_of(struct link *l)
{
    size_t at = l->stream / 2;
    return l->stream % 2 == 1 && at < l->tunnels_n ? &l->tunnels[at] : NULL;
}

static void hear_settings(struct link *l)
{
    bool takes_tunnels = false;
    if (l->flags & H2_ACK)
        return;
    for (const uint8_t *p = l->control; p + 6 <= l->control + l->control_bytes; p += 6) {
        unsigned name = number_at(p, 2);
        uint32_t value = number_at(p + 2, 4);
        if (name == H2_INITIAL_WINDOW) {
            for (size_t i = 0; i < l->tunnels_n; i++)
                l->tunnels[i].window += (int64_t)value - (int64_t)l->peer_window;
            l->peer_window = value;
        } else if (name == H2_MAX_STREAMS && value < l->tunnels_n) {
            lose(l, "takes no more than %u streams", value);
            return;
        } else if (name == H2_CONNECT_PROTOCOL) {
            takes_tunnels = value == 1;
        }
    }
    put_head(room(l, H2_HEAD), 0, H2_SETTINGS, H2_ACK, 0);
    l->out_bytes += H2_HEAD;
    if (l->state == UP)
        return;
    if (!takes_tunnels) {
        lose(l, "takes no CONNECT for WebSocket");
        return;
    }
    l->state = UP;
    for (uint32_t i = 0; i < l->tunnels_n; i++)
        l->out_bytes += (size_t)(put_request(room(l, sizeof request), 1 + 2 * i, path, is_tls) - (l->out + l->out_bytes));
}

static void hear_end_of_stream(struct link *l, struct conn *c)
{
    if (c->state == CLOSING)
        left(c);
    else
        lose(l, "stream ended after %llu bytes", (unsigned long long)c->heard);
}

/* A frame that is whole; of DATA, all that is left to be said about it. */
static void hear_frame(struct link *l)
{
    struct conn *c = tunnel_of(l);
    uint64_t life = l->life;
    uint32_t value = l->control_bytes >= 4 ? number_at(l->control + l->control_bytes - 4, 4) : 0;
    switch (l->type) {
    case H2_DATA:
        if (l->flags & H2_END_STREAM)
            hear_end_of_stream(l, c);
        break;
    case H2_HEADERS:
        if (c == NULL || c->state != SHAKING || l->flags != H2_END_HEADERS || !is_200(l->control, l->control_bytes))
            lose(l, "answered with HEADERS, flags %02x, that begin with %02x", l->flags, l->control[0]);
        else
            opened(c);
        break;
    case H2_RST_STREAM:
        if (c != NULL && c->state == CLOSING && value == 0)
            left(c);
        else
            lose(l, "stream %u reset with %u", l->stream, value);
        break;
    case H2_SETTINGS:
        hear_settings(l);
        break;
    case H2_PING:
        if (!(l->flags & H2_ACK)) {
            memcpy(put_head(room(l, H2_HEAD + 8), 8, H2_PING, H2_ACK, 0), l->control, 8);
            l->out_bytes += H2_HEAD + 8;
        }
        break;
    case H2_GOAWAY:
        lose(l, "sent away with %u", value);
        break;
    case H2_WINDOW_UPDATE:
        if (l->stream == 0)
            l->window += value;
        else if (c != NULL)
            c->window += value;
        if (l->stream == 0)
            flush_all(l);
        else if (c != NULL && c->state == OPEN && c->due_bytes > 0 && l->life == life)
            flush(c);
        break;
    default:
        break; /* what we do not know has to be passed over */
    }
}

static void hear_h2(struct link *l, uint8_t *p, size_t n)
{
    uint64_t life = l->life;
    while (n > 0) {
        if (l->head_bytes < H2_HEAD) {
            size_t part = n < (size_t)(H2_HEAD - l->head_bytes) ? n : (size_t)(H2_HEAD - l->head_bytes);
            memcpy(l->head + l->head_bytes, p, part);
            l->head_bytes = (uint8_t)(l->head_bytes + part);
            p += part, n -= part;
            if (l->head_bytes < H2_HEAD)
                return;
            l->frame_left = number_at(l->head, 3);
            l->type = l->head[3], l->flags = l->head[4];
            l->stream = number_at(l->head + 5, 4) & 0x7fffffff;
            l->control_bytes = 0;
            struct conn *c = tunnel_of(l);
            bool is_data = l->type == H2_DATA;
            if ((is_data && (l->flags & H2_PADDED || c == NULL || c->state < OPEN)) || (!is_data && l->frame_left > sizeof l->control)) {
                lose(l, "a frame of type %u, flags %02x, %u bytes, that nobody expects", l->type, l->flags, l->frame_left);
                return;
            }
        }
        size_t part = n < l->frame_left ? n : l->frame_left;
        l->frame_left -= (uint32_t)part;
        if (part > 0 && l->type == H2_DATA) {
            struct conn *c = tunnel_of(l);
            grant(l, c, (uint32_t)part);
            if (is_raw)
                hear(c, p, part);
            else
                hear_frames(c, p, part);
            if (l->life == life && l->state == UP && c->due_bytes > 0 && mode == ECHO)
                flush(c);
        } else if (part > 0) {
            memcpy(l->control + l->control_bytes, p, part);
            l->control_bytes += (uint32_t)part;
        }
        p += part, n -= part;
        if (l->life == life && l->state != DOWN && l->frame_left == 0) {
            l->head_bytes = 0;
            hear_frame(l);
        }
        if (l->life != life || l->state == DOWN)
            return; /* ended, or ended and begun anew */
    }
}

/* ---- one connection ---- */

static void receive(struct link *l)
{
    uint64_t life = l->life;
    struct conn *c = l->tunnels;
    for (size_t turn = 0; turn < TURN_BYTES;) {
        ssize_t n = wire_recv(&l->wire, buffer, READ_BYTES);
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0) {
            if (c->state == CLOSING && n == 0)
                left(c);
            else
                lose(l, "ended after %llu bytes: %s", (unsigned long long)c->heard, n ? wire_error() : "end of file");
            return;
        }
        if (is_h2) {
            l->is_heard = true;
            hear_h2(l, buffer, (size_t)n);
            l->is_heard = false;
            if (l->life != life || l->state == DOWN)
                return;
            push(l);
            if (l->is_short && l->out_at == l->out_bytes)
                flush_all(l);
        } else if (c->state == SHAKING && mode != GET) {
            hear_http(c, buffer, (size_t)n);
        } else {
            listen_to(c, buffer, (size_t)n);
        }
        if (l->life != life || l->state == DOWN)
            return;
        if (!is_h2 && c->due_bytes > 0 && (mode == ECHO || mode == GET))
            flush(c);
        if (l->state == DOWN || l->wire.is_drained)
            return;
        turn += (size_t)n;
    }
    wait_for_turn(l);
}

/* The connection is there, and secure: what comes next is HTTP. */
static void greet(struct link *l)
{
    if (is_h2) {
        l->state = SETTLING;
        l->out_bytes += (size_t)(put_preface(room(l, sizeof request)) - l->out);
        push(l);
        return;
    }
    l->state = UP;
    if (is_raw)
        opened(l->tunnels);
    else if (wire_send(&l->wire, (uint8_t *)request, request_bytes) != (ssize_t)request_bytes)
        lose(l, "sending the request: %s", wire_error());
}

static void secure(struct link *l)
{
    int done = wire_secure(&l->wire, is_h2);
    if (done < 0)
        lose(l, "TLS: %s", wire_error());
    else if (done > 0)
        greet(l);
}

static void connected(struct link *l)
{
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(l->wire.fd, SOL_SOCKET, SO_ERROR, &error, &length);
    if (error) {
        lose(l, "connecting: %s", strerror(error));
        return;
    }
    l->state = SECURING;
    secure(l);
}

static void begin_tunnel(struct conn *c, struct link *l, uint64_t now)
{
    uint64_t *ring = c->sent_at_ns;
    uint8_t *own = c->own;
    size_t capacity = c->own_capacity;
    struct kind *kind = c->kind;
    memset(c, 0, sizeof *c);
    c->sent_at_ns = ring, c->own = own, c->own_capacity = capacity, c->kind = kind, c->link = l;
    c->begun_ns = now;
    c->state = SHAKING;
    c->window = H2_WINDOW;
    opening++;
    attempts++;
    c->phase = mode == ECHO || mode == CHURN ? attempts * 7919 : 0;
}

static void open_again(struct link *l)
{
    uint64_t now = now_ns();
    *l = (struct link){.waits = l->waits, .next = l->next, .is_heard = l->is_heard, .life = l->life + 1, .tunnels = l->tunnels,
                       .tunnels_n = l->tunnels_n, .out = l->out, .out_capacity = l->out_capacity,
                       .window = H2_WINDOW, .peer_window = H2_WINDOW, .state = CONNECTING};
    for (size_t i = 0; i < l->tunnels_n; i++)
        begin_tunnel(&l->tunnels[i], l, now);
    int fd = l->wire.fd = socket(server.at.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("socket: %s", strerror(errno));
    if (server.at.any.sa_family == AF_INET) {
        struct sockaddr_in from = {.sin_family = AF_INET};
        int on = 1;
        no_delay(fd);
        setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
        from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + (uint32_t)(attempts % ADDRESSES));
        if (bind(fd, (struct sockaddr *)&from, sizeof from) != 0)
            die("bind: %s", strerror(errno));
    }
    bool is_there = connect(fd, &server.at.any, server.length) == 0;
    if (!is_there && errno != EINPROGRESS) {
        lose(l, "connecting: %s", strerror(errno));
        return;
    }
    watch(epoll, fd, EPOLLIN | EPOLLOUT | EPOLLET, l, EPOLL_CTL_ADD);
    if (is_there)
        connected(l);
}

static void serve(struct link *l, uint32_t events)
{
    if (l->state == CONNECTING && events & (EPOLLOUT | EPOLLERR | EPOLLHUP))
        connected(l);
    else if (l->state == SECURING)
        secure(l);
    if (l->state == UP && mode == DEAF && l->tunnels->state == OPEN) {
        if (events & (EPOLLHUP | EPOLLERR))
            lose(l, "ended while nothing was read");
        return;
    }
    if (l->state == UP && events & EPOLLOUT && is_going) {
        if (is_h2)
            push(l);
        if (!is_h2 && l->tunnels->state >= OPEN)
            flush(l->tunnels);
        else if (is_h2 && l->is_short)
            flush_all(l);
    }
    if ((l->state == SETTLING || l->state == UP) && (events & (EPOLLIN | EPOLLHUP | EPOLLERR) || l->wire.tls != NULL))
        receive(l);
}

static void turn(int timeout_ms)
{
    struct epoll_event events[EVENTS];
    int n = epoll_wait(epoll, events, EVENTS, waiting ? 0 : timeout_ms);
    struct link *turns = waiting;
    waiting = NULL;
    while (turns) {
        struct link *l = turns;
        turns = l->next;
        l->waits = false;
        if (l->state == UP)
            serve(l, EPOLLIN | EPOLLOUT);
    }
    for (int i = 0; i < n; i++)
        if (events[i].data.ptr != NULL)
            serve(events[i].data.ptr, events[i].events);
}

/* ---- the whole ---- */

struct processes {
    pid_t pids[MAX_PIDS];
    uint64_t last_ns[MAX_PIDS];
    size_t n;
};
static struct processes servers, backends;

/* What their children that ended took; the kernel gives it in ticks. */
static uint64_t reaped_ns(pid_t pid)
{
    char name[64], text[1024];
    snprintf(name, sizeof name, "/proc/%d/stat", (int)pid);
    int fd = open(name, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    if (n <= 0)
        return 0;
    text[n] = 0;
    long user = 0, system = 0;
    char *after = strrchr(text, ')');
    if (after == NULL || sscanf(after + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %ld %ld", &user, &system) != 2)
        return 0;
    return (uint64_t)(user + system) * 1000000000u / (uint64_t)sysconf(_SC_CLK_TCK);
}

/* All threads of all processes, the ended ones included: the kernel's own clock of each process. */
static uint64_t cpu_ns(struct processes *who)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < who->n; i++) {
        clockid_t clock;
        struct timespec t;
        if (clock_getcpuclockid(who->pids[i], &clock) == 0 && clock_gettime(clock, &t) == 0)
            who->last_ns[i] = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec + reaped_ns(who->pids[i]);
        sum += who->last_ns[i];
    }
    return sum;
}

static void wait_for_go(void)
{
    char line[65536], *at = line, *word;
    struct processes *who = &servers;
    if (fgets(line, sizeof line, stdin) == NULL)
        exit(0);
    if (strncmp(line, "go", 2) != 0)
        die("said %s instead of go", line);
    strtok_r(line, " \n", &at);
    while ((word = strtok_r(NULL, " \n", &at)) != NULL) {
        if (strcmp(word, "/") == 0)
            who = &backends;
        else if (who->n < MAX_PIDS)
            who->pids[who->n++] = atoi(word);
    }
}

static void look_at_progress(void)
{
    static uint64_t seen, seen_ns;
    uint64_t now = now_ns();
    if (progress != seen || seen_ns == 0)
        seen = progress, seen_ns = now;
    else if (now - seen_ns > STALL_S * 1000000000ull)
        snprintf(first_loss, sizeof first_loss, "nothing moved for %d s", STALL_S), lost++;
}

static bool awaits_message(void)
{
    return is_counting && messages == 0 && (mode == ECHO || mode == CHURN || mode == GET);
}

static void run_for(double s)
{
    uint64_t until = now_ns() + (uint64_t)(s * 1e9), now;
    while (lost == 0 && (now = now_ns()) < until) {
        turn((int)((until - now) / 1000000) + 1);
        look_at_progress();
    }
    /* A window in which nothing was done says nothing: a slow server has more time. */
    for (until += MESSAGE_WITHIN_S * 1000000000ull; lost == 0 && awaits_message() && now_ns() < until;)
        turn(10);
}

static void connect_all(void)
{
    uint64_t until = now_ns() + CONNECT_WITHIN_S * 1000000000ull;
    for (size_t made = 0; open_now < all && lost == 0;) {
        while (made < all_links && opening < RAMP && lost == 0)
            open_again(&links[made++]);
        if (open_now < all)
            turn(1000);
        if (now_ns() > until)
            snprintf(first_loss, sizeof first_loss, "%zu of %zu connected within %d s", open_now, all, CONNECT_WITHIN_S), lost++;
    }
}

static void report(uint64_t wall_ns, uint64_t server_ns, uint64_t client_ns, uint64_t backend_ns, uint64_t sunk_bytes)
{
    printf("{\"messages\": %llu, \"payload_bytes\": %llu, \"greedy_bytes\": %llu, \"sunk_bytes\": %llu, \"wall_ns\": %llu, "
           "\"server_cpu_ns\": %llu, \"client_cpu_ns\": %llu, \"backend_cpu_ns\": %llu, \"stalled_bytes\": %llu, \"open\": %zu, \"lost\": %llu, "
           "\"first_loss\": \"%s\"",
           (unsigned long long)messages, (unsigned long long)payload_bytes, (unsigned long long)greedy_bytes,
           (unsigned long long)sunk_bytes, (unsigned long long)wall_ns, (unsigned long long)server_ns,
           (unsigned long long)client_ns, (unsigned long long)backend_ns,
           (unsigned long long)stalled_bytes, open_now, (unsigned long long)lost, first_loss);
    if (latencies)
        printf(", \"latency_us\": {\"p50\": %.3f, \"p90\": %.3f, \"p99\": %.3f, \"p99.9\": %.3f, \"max\": %.3f}",
               percentile_us(.5), percentile_us(.9), percentile_us(.99), percentile_us(.999), (double)latency_max / 1e3);
    puts("}");
    fflush(stdout);
}

/* Lets those that are to be stalled say what they can, until nothing more goes. */
static void stand_still(void)
{
    uint8_t frame[32];
    size_t head = write_head(frame, 2, sizeof STAND_STILL - 1);
    for (size_t i = 0; i < sizeof STAND_STILL - 1; i++)
        frame[head + i] = (uint8_t)(STAND_STILL[i] ^ key[i & 3]);
    for (size_t i = 0; i < all && lost == 0; i++) {
        if (!conns[i].kind->is_stalled)
            continue;
        if (stalls_backend && send_some(&conns[i], frame, head + sizeof STAND_STILL - 1) < 0)
            lose(conns[i].link, "sending: %s", wire_error());
        flush(&conns[i]);
    }
    uint64_t before, until = now_ns() + STALL_S * 1000000000ull;
    do {
        before = progress;
        for (uint64_t still = now_ns() + (uint64_t)(STILL_S * 1e9); lost == 0 && now_ns() < still;)
            turn(10);
        if (now_ns() > until)
            snprintf(first_loss, sizeof first_loss, "what should stand still moves for %d s", STALL_S), lost++;
    } while (lost == 0 && progress != before);
}

static void measure(void)
{
    struct processes self = {.pids = {getpid()}, .n = 1};
    is_going = true;
    if (stalled_tunnels > 0)
        stand_still();
    for (size_t i = 0; i < all; i++) {
        if (conns[i].kind->is_stalled)
            continue;
        if (mode == ECHO || mode == GET)
            begin_messages(&conns[i]);
        else if (mode == CHURN)
            open_again(conns[i].link);
        else if (mode == UPLOAD)
            flush(&conns[i]);
        else
            wait_for_turn(conns[i].link); /* what was said before go is still there to be read */
    }
    run_for(warm_up);
    uint64_t sunk = counters ? counted(&counters->received_bytes) : 0;
    uint64_t wall = now_ns(), servers_ns = cpu_ns(&servers), backends_ns = cpu_ns(&backends), self_ns = cpu_ns(&self);
    is_counting = true;
    run_for(seconds);
    is_counting = false;
    servers_ns = cpu_ns(&servers) - servers_ns, wall = now_ns() - wall, sunk = counters ? counted(&counters->received_bytes) - sunk : 0;
    report(wall, servers_ns, cpu_ns(&self) - self_ns, cpu_ns(&backends) - backends_ns, sunk);
}

static void keep(void)
{
    static struct epoll_event until_input_ends = {.events = EPOLLIN};
    is_going = true;
    for (size_t i = 0; i < all; i++)
        wait_for_turn(conns[i].link); /* edges that came while the others were being connected */
    epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &until_input_ends);
    for (;;) {
        char byte;
        turn(100);
        struct timespec none = {0};
        fd_set input;
        FD_ZERO(&input);
        FD_SET(STDIN_FILENO, &input);
        if (pselect(STDIN_FILENO + 1, &input, NULL, NULL, &none, NULL) > 0 && read(STDIN_FILENO, &byte, 1) <= 0)
            break;
    }
    report(0, 0, 0, 0, 0);
}

static double number(const char *text, const char *what)
{
    char *end;
    double n = strtod(text, &end);
    if (end == text || *end != 0 || n < 0)
        die("--%s %s: take a number", what, text);
    return n;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"mode", 1, 0, 'm'},     {"to", 1, 0, 't'},      {"connections", 1, 0, 'c'}, {"size", 1, 0, 's'},
        {"in-flight", 1, 0, 'f'}, {"seconds", 1, 0, 'd'}, {"warm-up", 1, 0, 'w'},     {"raw", 0, 0, 'r'},
        {"mirrored", 0, 0, 'i'}, {"check", 0, 0, 'k'},   {"path", 1, 0, 'p'},        {"greedy", 1, 0, 'g'},
        {"greedy-size", 1, 0, 'G'}, {"counters", 1, 0, 'n'}, {"tls", 0, 0, 'S'},       {"h2", 0, 0, '2'},
        {"tunnels", 1, 0, 'u'},  {"stalled", 1, 0, 'l'}, {"stalled-by", 1, 0, 'b'},  {0}};
    int option, which, found = -1;
    while ((option = getopt_long(argc, argv, "", options, &which)) != -1) {
        const char *name = option == '?' ? "" : options[which].name;
        switch (option) {
        case 'm':
            for (int i = 0; i < MODES; i++)
                if (strcmp(optarg, modes[i]) == 0)
                    found = i;
            break;
        case 't': server = address_of(optarg); break;
        case 'c': connections = (size_t)number(optarg, name); break;
        case 's': plain.size = (size_t)number(optarg, name); break;
        case 'f': plain.in_flight = (unsigned)number(optarg, name); break;
        case 'd': seconds = number(optarg, name); break;
        case 'w': warm_up = number(optarg, name); break;
        case 'r': is_raw = true; break;
        case 'i': is_mirrored = true; break;
        case 'k': checks = true; break;
        case 'p': path = optarg; break;
        case 'g': greedy_connections = (size_t)number(optarg, name); break;
        case 'G': greedy.size = (size_t)number(optarg, name); break;
        case 'n': counters = map_counters(optarg); break;
        case 'S': is_tls = true; break;
        case '2': is_h2 = true; break;
        case 'u': tunnels_each = (size_t)number(optarg, name); break;
        case 'l': stalled_tunnels = (size_t)number(optarg, name); break;
        case 'b': stalls_backend = strcmp(optarg, "backend") == 0; break;
        default: return 2;
        }
    }
    if (found < 0 || server.length == 0 || plain.size == 0 || plain.in_flight == 0 || optind != argc)
        die("usage: client --mode echo|upload|download|churn|get|hold|deaf|flood --to PORT|unix:PATH ...");
    mode = (enum mode)found;
    if (is_h2 && (is_raw || mode == GET || mode == DEAF || mode == FLOOD))
        die("--h2 is for echo, upload, download, churn and hold, with frames");
    if (tunnels_each == 0 || (tunnels_each > 1 && (!is_h2 || mode == CHURN)) || (stalled_tunnels > 0 && (!is_h2 || mode != ECHO)))
        die("--tunnels and --stalled are for --h2, --stalled is for echo");
    if (strlen(path) >= 127)
        die("--path is too long");
    if (is_tls)
        use_tls(is_h2 ? "h2" : "http/1.1");
    signal(SIGPIPE, SIG_IGN);
    as_many_descriptors_as_allowed();
    make_pattern();
    if (mode == CHURN || mode == GET)
        plain.in_flight = 1;
    if (mode == GET)
        request_bytes = (size_t)snprintf(request, sizeof request, "GET /%zu HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", plain.size);
    else
        request_bytes = (size_t)snprintf(request, sizeof request,
                     "GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                     "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n", path);
    prepare(&plain, mode == UPLOAD || mode == FLOOD);
    prepare(&greedy, false);
    prepare(&stalled, true);
    if (mode != ECHO)
        greedy_connections = 0;
    all = connections + greedy_connections + stalled_tunnels;
    conns = must_have(calloc(all, sizeof *conns));
    links = must_have(calloc(all, sizeof *links));
    epoll = epoll_create1(EPOLL_CLOEXEC);
    for (size_t i = 0; i < all; i++) {
        struct conn *c = &conns[i];
        bool is_stalled = i < stalled_tunnels, is_plain = !is_stalled && i < stalled_tunnels + connections;
        c->kind = is_stalled ? &stalled : is_plain ? &plain : &greedy;
        c->sent_at_ns = must_have(calloc(c->kind->in_flight, sizeof(uint64_t)));
        if (i == 0 || links[all_links - 1].tunnels_n == tunnels_each + (all_links == 1 ? stalled_tunnels : 0))
            links[all_links++] = (struct link){.wire.fd = -1, .tunnels = c};
        c->link = &links[all_links - 1];
        c->link->tunnels_n++;
    }
    if (mode != CHURN)
        connect_all();
    if (lost == 0) {
        puts("connected");
        fflush(stdout);
        if (mode <= GET) {
            wait_for_go();
            measure();
        } else {
            keep();
        }
    } else {
        report(0, 0, 0, 0, 0);
    }
    return 0;
}
