/* The floor: a relay of bytes from TCP to a UNIX socket in bare C, with nothing of WebSocket in it.
 *
 *     floor LISTEN BACKEND        (a TCP port, or unix:PATH)
 *
 * One thread, level-triggered epoll, one buffer for all, two epoll registrations a tunnel. What cannot be written at
 * once is kept, and its source is not read until it is gone. An end of input is handed on as one.
 */
#include "common.h"

#define READ_BYTES (128 * 1024)
#define SPARES 64 /* buffers that wait for being used again */

struct leg {
    int fd;
    uint32_t events; /* that epoll watches now */
    bool no_more_input;
    uint8_t *kept; /* owned, READ_BYTES long; what the other leg said and this one did not take yet */
    size_t kept_at, kept_bytes;
    struct leg *other;
};

struct tunnel {
    struct leg client, backend;
    bool dead;
    struct tunnel *next_dead;
};

static int epoll;
static struct tunnel *dead; /* freed after the events of the round, which may still name them */
static uint8_t *buffer;         /* owned; changes places with what has to be kept, so that nothing is copied */
static uint8_t *spare[SPARES];
static size_t spares;

static uint8_t *a_buffer(void)
{
    return spares ? spare[--spares] : must_have(malloc(READ_BYTES));
}

static void give_back(uint8_t *used)
{
    if (used == NULL || spares == SPARES)
        free(used);
    else
        spare[spares++] = used;
}

static struct tunnel *tunnel_of(struct leg *leg)
{
    bool is_client = leg->other > leg;
    size_t at = is_client ? offsetof(struct tunnel, client) : offsetof(struct tunnel, backend);
    return (struct tunnel *)((uint8_t *)leg - at);
}

static void end(struct tunnel *t)
{
    if (t->dead)
        return;
    t->dead = true;
    close(t->client.fd);
    close(t->backend.fd);
    t->next_dead = dead;
    dead = t;
}

static void look_for(struct leg *leg)
{
    uint32_t events = leg->kept_bytes ? EPOLLOUT : 0;
    if (!leg->no_more_input && !leg->other->kept_bytes)
        events |= EPOLLIN;
    if (events != leg->events) {
        watch(epoll, leg->fd, events, leg, EPOLL_CTL_MOD);
        leg->events = events;
    }
}

static void end_if_done(struct tunnel *t)
{
    bool quiet = !t->client.kept_bytes && !t->backend.kept_bytes;
    if (quiet && t->client.no_more_input && t->backend.no_more_input)
        end(t);
}

static bool is_fatal(ssize_t n)
{
    return n < 0 && errno != EAGAIN && errno != EINTR;
}

static void flush(struct leg *leg)
{
    ssize_t n = send(leg->fd, leg->kept + leg->kept_at, leg->kept_bytes, MSG_NOSIGNAL);
    if (is_fatal(n)) {
        end(tunnel_of(leg));
        return;
    }
    if (n > 0)
        leg->kept_at += (size_t)n, leg->kept_bytes -= (size_t)n;
    if (leg->kept_bytes)
        return;
    give_back(leg->kept);
    leg->kept = NULL;
    if (leg->other->no_more_input)
        shutdown(leg->fd, SHUT_WR);
    look_for(leg);
    look_for(leg->other);
    end_if_done(tunnel_of(leg));
}

static void relay(struct leg *from)
{
    struct leg *to = from->other;
    ssize_t n = recv(from->fd, buffer, READ_BYTES, 0);
    if (is_fatal(n)) {
        end(tunnel_of(from));
        return;
    }
    if (n < 0)
        return;
    if (n == 0) {
        from->no_more_input = true;
        shutdown(to->fd, SHUT_WR);
        look_for(from);
        end_if_done(tunnel_of(from));
        return;
    }
    ssize_t sent = send(to->fd, buffer, (size_t)n, MSG_NOSIGNAL);
    if (is_fatal(sent)) {
        end(tunnel_of(from));
        return;
    }
    if (sent < 0)
        sent = 0;
    if (sent < n) {
        to->kept = buffer, to->kept_at = (size_t)sent, to->kept_bytes = (size_t)(n - sent);
        buffer = a_buffer();
        look_for(to);
        look_for(from);
    }
}

static void take(int listener, const struct address *backend)
{
    for (int i = 0; i < 64; i++) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        no_delay(fd);
        int there = socket(backend->at.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (there < 0 || (connect(there, &backend->at.any, backend->length) != 0 && errno != EINPROGRESS)) {
            fprintf(stderr, "floor: cannot connect the backend: %s\n", strerror(errno));
            close(fd);
            if (there >= 0)
                close(there);
            continue;
        }
        struct tunnel *t = must_have(calloc(1, sizeof *t));
        t->client = (struct leg){.fd = fd, .events = EPOLLIN, .other = &t->backend};
        t->backend = (struct leg){.fd = there, .events = EPOLLIN, .other = &t->client};
        watch(epoll, fd, EPOLLIN, &t->client, EPOLL_CTL_ADD);
        watch(epoll, there, EPOLLIN, &t->backend, EPOLL_CTL_ADD);
    }
}

int main(int argc, char **argv)
{
    if (argc != 3)
        die("usage: floor LISTEN BACKEND");
    as_many_descriptors_as_allowed();
    struct address backend = address_of(argv[2]);
    int listener = listen_at(argv[1]);
    struct epoll_event events[EVENTS];
    buffer = a_buffer();
    epoll = epoll_create1(EPOLL_CLOEXEC);
    watch(epoll, listener, EPOLLIN, NULL, EPOLL_CTL_ADD);
    for (;;) {
        int n = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            struct leg *leg = events[i].data.ptr;
            if (leg == NULL) {
                take(listener, &backend);
                continue;
            }
            struct tunnel *t = tunnel_of(leg);
            if (!t->dead && (events[i].events & EPOLLOUT))
                flush(leg);
            if (!t->dead && (events[i].events & EPOLLIN))
                relay(leg);
            else if (!t->dead && (events[i].events & (EPOLLHUP | EPOLLERR)) && !(events[i].events & EPOLLOUT))
                end(t); /* gone in both directions while nobody reads it, which no program of this bench does on purpose */
        }
        while (dead) {
            struct tunnel *t = dead;
            dead = t->next_dead;
            give_back(t->client.kept);
            give_back(t->backend.kept);
            free(t);
        }
    }
}
