/* What stands behind every server under test: as little as a backend can be.
 *
 *     backend MODE LISTEN COUNTERS         (LISTEN: a TCP port, or unix:PATH)
 *     backend MODE --stdio COUNTERS CPU    (one tunnel on stdin and stdout, for servers that start a program for each)
 *
 * echo   everything comes back, and a tunnel that begins with STAND_STILL is not read any further
 * pour   the stream of common.h, as fast as it is taken; what comes in is not read
 * sink   everything is taken, checked against that stream, and nothing said
 * deaf   nothing is read
 * http   a GET of /N is answered with the first N bytes of the stream, an upgrade with 101, and then everything comes back
 *
 * Ends when its standard input ends (not with --stdio: there it ends with its tunnel).
 */
#include "common.h"

#include <poll.h>
#include <sched.h>

#define READ_BYTES (128 * 1024)

#define HEAD_BYTES 8192 /* of a request */
#define ANSWER_HEAD_BYTES 256
/* What belongs to the one key that the bench's client has. */
#define SWITCHED "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" \
                 "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"

enum mode { ECHO, POUR, SINK, DEAF, HTTP };
#define MODES 5
static const char *const modes[MODES] = {"echo", "pour", "sink", "deaf", "http"};

struct conn {
    int fd;
    bool waits;      /* for its next turn, in `waiting` */
    bool gone;
    bool has_begun;
    bool is_pipe;    /* everything comes back */
    char *head;      /* owned; of the request that is being read */
    size_t head_bytes;
    uint64_t offset; /* of the stream that is poured or checked */
    uint8_t *kept;   /* owned; what could not be echoed yet */
    size_t kept_at, kept_bytes;
    struct conn *next;
};

static enum mode mode;
static int epoll;
static struct counters *counters;
static struct conn *waiting, *gone;
static uint8_t buffer[READ_BYTES];

static void end(struct conn *c)
{
    if (c->gone)
        return;
    c->gone = true;
    close(c->fd);
    if (!c->waits) {
        c->next = gone;
        gone = c;
    }
}

static void wait_for_turn(struct conn *c)
{
    if (c->waits || c->gone)
        return;
    c->waits = true;
    c->next = waiting;
    waiting = c;
}

static void check(struct conn *c, size_t n)
{
    if (!pattern_same(buffer, n, c->offset))
        count(&counters->wrong_bytes, n);
    c->offset += n;
}

/* Takes n bytes of a request from the buffer and puts the answer there: its length, or 0 while there is none. */
static size_t answer(struct conn *c, size_t n)
{
    size_t before = c->head_bytes;
    if (c->head == NULL)
        c->head = must_have(malloc(HEAD_BYTES + 1));
    if (n > HEAD_BYTES - before) {
        end(c);
        return 0;
    }
    memcpy(c->head + before, buffer, n);
    c->head_bytes += n;
    c->head[c->head_bytes] = 0;
    char *rest = strstr(c->head, "\r\n\r\n");
    if (rest == NULL)
        return 0;
    rest += 4;
    size_t rest_bytes = c->head_bytes - (size_t)(rest - c->head), size = 0, at;
    c->head_bytes = 0;
    if (strcasestr(c->head, "\r\nUpgrade: websocket\r\n") != NULL) {
        c->is_pipe = true;
        at = sizeof SWITCHED - 1;
        memcpy(buffer, SWITCHED, at);
        memcpy(buffer + at, rest, rest_bytes);
        return at + rest_bytes;
    }
    if (rest_bytes > 0 || sscanf(c->head, "GET /%zu ", &size) != 1 || size > READ_BYTES - ANSWER_HEAD_BYTES) {
        end(c);
        return 0;
    }
    at = (size_t)sprintf((char *)buffer, "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
                                         "Content-Length: %zu\r\n\r\n", size);
    pattern_copy(buffer + at, size, 0);
    return at + size;
}

static bool is_told_to_stand_still(size_t n)
{
    const size_t words = sizeof STAND_STILL - 1;
    return n >= words && memcmp(buffer, STAND_STILL, words) == 0;
}

/* Edge-triggered: a read that comes back short has emptied the socket, and whatever comes later is a new edge. */
static void serve(struct conn *c)
{
    for (size_t turn = 0; turn < TURN_BYTES;) {
        ssize_t n;
        if (mode == POUR) {
            size_t at = c->offset % PERIOD;
            n = send(c->fd, pattern + at, PERIOD - at, MSG_NOSIGNAL);
            if (n < 0) {
                if (errno != EAGAIN)
                    end(c);
                return;
            }
            count(&counters->sent_bytes, (uint64_t)n);
            c->offset += (uint64_t)n, turn += (size_t)n;
            continue;
        }
        if (c->kept_bytes) {
            n = send(c->fd, c->kept + c->kept_at, c->kept_bytes, MSG_NOSIGNAL);
            if (n < 0) {
                if (errno != EAGAIN)
                    end(c);
                return;
            }
            count(&counters->sent_bytes, (uint64_t)n);
            c->kept_at += (size_t)n, c->kept_bytes -= (size_t)n;
            if (c->kept_bytes)
                continue;
            free(c->kept);
            c->kept = NULL;
        }
        n = recv(c->fd, buffer, READ_BYTES, 0);
        if (n == 0 || (n < 0 && errno != EAGAIN)) {
            end(c);
            return;
        }
        if (n < 0)
            return;
        count(&counters->received_bytes, (uint64_t)n);
        turn += (size_t)n;
        if (mode == ECHO && !c->has_begun && is_told_to_stand_still((size_t)n)) {
            watch(epoll, c->fd, 0, c, EPOLL_CTL_MOD);
            return;
        }
        c->has_begun = true;
        size_t due = mode == HTTP && !c->is_pipe ? answer(c, (size_t)n) : (size_t)n;
        if (c->gone)
            return;
        if (mode == SINK) {
            check(c, (size_t)n);
        } else if (due > 0) {
            ssize_t sent = send(c->fd, buffer, due, MSG_NOSIGNAL);
            if (sent < 0 && errno != EAGAIN) {
                end(c);
                return;
            }
            sent = sent < 0 ? 0 : sent;
            count(&counters->sent_bytes, (uint64_t)sent);
            if ((size_t)sent < due) {
                c->kept_at = 0, c->kept_bytes = due - (size_t)sent;
                c->kept = must_have(malloc(c->kept_bytes));
                memcpy(c->kept, buffer + sent, c->kept_bytes);
                continue;
            }
        }
        if (n < READ_BYTES)
            return;
    }
    wait_for_turn(c);
}

static void take(int listener)
{
    for (int i = 0; i < 64; i++) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        no_delay(fd);
        struct conn *c = must_have(calloc(1, sizeof *c));
        c->fd = fd;
        count(&counters->accepted, 1);
        uint32_t events = mode == DEAF ? 0 : mode == POUR ? EPOLLOUT | EPOLLRDHUP : EPOLLIN | EPOLLOUT;
        watch(epoll, fd, events | EPOLLET, c, EPOLL_CTL_ADD);
    }
}

static void serve_many(const char *where)
{
    static int listener_tag, input_tag;
    struct epoll_event events[EVENTS];
    int listener = listen_at(where);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    watch(epoll, listener, EPOLLIN, &listener_tag, EPOLL_CTL_ADD);
    watch(epoll, STDIN_FILENO, EPOLLIN, &input_tag, EPOLL_CTL_ADD);
    puts("ready");
    fflush(stdout);
    for (;;) {
        int n = epoll_wait(epoll, events, EVENTS, waiting ? 0 : -1);
        struct conn *turns = waiting;
        waiting = NULL;
        while (turns) {
            struct conn *c = turns;
            turns = c->next;
            c->waits = false;
            if (c->gone) {
                c->next = gone;
                gone = c;
            } else {
                serve(c);
            }
        }
        for (int i = 0; i < n; i++) {
            void *who = events[i].data.ptr;
            if (who == &listener_tag)
                take(listener);
            else if (who == &input_tag)
                return;
            else if (((struct conn *)who)->gone)
                continue;
            else if (mode == DEAF || (mode == POUR && events[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)))
                end(who);
            else
                serve(who);
        }
        while (gone) {
            struct conn *c = gone;
            gone = c->next;
            free(c->kept);
            free(c->head);
            free(c);
        }
    }
}

static bool write_all(const uint8_t *p, size_t n)
{
    while (n > 0) {
        ssize_t wrote = write(STDOUT_FILENO, p, n);
        if (wrote < 0 && errno != EINTR)
            return false;
        if (wrote > 0)
            p += wrote, n -= (size_t)wrote, count(&counters->sent_bytes, (uint64_t)wrote);
    }
    return true;
}

static void serve_one(void)
{
    struct conn c = {0};
    count(&counters->accepted, 1);
    while (mode == DEAF)
        if (poll(&(struct pollfd){.fd = STDIN_FILENO}, 1, -1) > 0)
            return;
    while (mode == POUR) {
        size_t at = c.offset % PERIOD;
        if (!write_all(pattern + at, PERIOD - at))
            return;
        c.offset += PERIOD - at;
    }
    for (;;) {
        ssize_t n = read(STDIN_FILENO, buffer, READ_BYTES);
        if (n <= 0)
            return;
        count(&counters->received_bytes, (uint64_t)n);
        if (mode == SINK)
            check(&c, (size_t)n);
        else if (!write_all(buffer, (size_t)n))
            return;
    }
}

int main(int argc, char **argv)
{
    size_t i = 0;
    bool is_stdio = argc == 5 && strcmp(argv[2], "--stdio") == 0;
    while (argc >= 4 && i < MODES && strcmp(argv[1], modes[i]) != 0)
        i++;
    if ((argc != 4 && !is_stdio) || i == MODES || (is_stdio && i == HTTP))
        die("usage: backend echo|pour|sink|deaf|http LISTEN COUNTERS, or MODE --stdio COUNTERS CPU");
    mode = (enum mode)i;
    make_pattern();
    counters = map_counters(argv[3]);
    signal(SIGPIPE, SIG_IGN);
    as_many_descriptors_as_allowed();
    if (is_stdio) {
        cpu_set_t cpu; /* the server's own would be ours otherwise */
        CPU_ZERO(&cpu);
        CPU_SET((size_t)atoi(argv[4]), &cpu);
        sched_setaffinity(0, sizeof cpu, &cpu);
        serve_one();
    } else {
        serve_many(argv[2]);
    }
    return 0;
}
