/* What client, backend and floor share: the content that is checked, the counters, and small words for sockets. */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define EVENTS 512              /* of one epoll_wait */
#define TURN_BYTES (256 * 1024) /* that one connection may move before the others have their turn */

/* A tunnel that begins with these words is not read any further by an echoing backend. */
#define STAND_STILL "Stand still!"

/* Shared between processes through a mapped file: written by backends, read by the client and by the bench. */
struct counters {
    uint64_t accepted;
    uint64_t received_bytes;
    uint64_t sent_bytes;
    uint64_t wrong_bytes; /* that were not what the stream has at that place */
};

__attribute__((noreturn, format(printf, 1, 2))) static inline void die(const char *format, ...)
{
    va_list said;
    va_start(said, format);
    vfprintf(stderr, format, said);
    va_end(said);
    fputc('\n', stderr);
    exit(1);
}

static inline void *must_have(void *memory)
{
    if (memory == NULL)
        die("out of memory");
    return memory;
}

/* Streams are checked against a noise of prime length, so that a lost, doubled or exchanged piece of any usual size
 * shows at once. `phase` lets streams differ. */
#define PERIOD 65521u
static uint8_t pattern[PERIOD];

static inline void make_pattern(void)
{
    uint64_t x = 88172645463325252u;
    for (size_t i = 0; i < PERIOD; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        pattern[i] = (uint8_t)x;
    }
}

static inline void pattern_copy(uint8_t *to, size_t n, uint64_t offset)
{
    for (size_t at = offset % PERIOD, part; n > 0; n -= part, to += part, at = 0) {
        part = n < PERIOD - at ? n : PERIOD - at;
        memcpy(to, pattern + at, part);
    }
}

static inline bool pattern_same(const uint8_t *p, size_t n, uint64_t offset)
{
    for (size_t at = offset % PERIOD, part; n > 0; n -= part, p += part, at = 0) {
        part = n < PERIOD - at ? n : PERIOD - at;
        if (memcmp(p, pattern + at, part) != 0)
            return false;
    }
    return true;
}

static inline uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline void as_many_descriptors_as_allowed(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static inline struct counters *map_counters(const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, sizeof(struct counters)) != 0)
        die("%s: %s", path, strerror(errno));
    void *memory = mmap(NULL, sizeof(struct counters), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED)
        die("%s: %s", path, strerror(errno));
    close(fd);
    return memory;
}

static inline uint64_t counted(const uint64_t *counter)
{
    return __atomic_load_n(counter, __ATOMIC_RELAXED);
}

static inline void count(uint64_t *counter, uint64_t n)
{
    __atomic_fetch_add(counter, n, __ATOMIC_RELAXED);
}

struct address {
    union {
        struct sockaddr any;
        struct sockaddr_in in;
        struct sockaddr_un un;
    } at;
    socklen_t length;
};

/* "unix:PATH", or a TCP port of 127.0.0.1; nothing else is ever reached. */
static inline struct address address_of(const char *text)
{
    struct address a;
    memset(&a, 0, sizeof a);
    if (strncmp(text, "unix:", 5) == 0) {
        a.at.un.sun_family = AF_UNIX;
        if (strlen(text + 5) >= sizeof a.at.un.sun_path)
            die("%s: longer than the path of a UNIX socket may be", text);
        strcpy(a.at.un.sun_path, text + 5);
        a.length = sizeof a.at.un;
    } else {
        char *end;
        unsigned long port = strtoul(text, &end, 10);
        if (*text == 0 || *end != 0 || port == 0 || port > 65535)
            die("%s: take unix:PATH or a TCP port", text);
        a.at.in.sin_family = AF_INET;
        a.at.in.sin_port = htons((uint16_t)port);
        a.at.in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        a.length = sizeof a.at.in;
    }
    return a;
}

static inline int listen_at(const char *text)
{
    struct address a = address_of(text);
    int on = 1, fd = socket(a.at.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (a.at.any.sa_family == AF_UNIX)
        unlink(a.at.un.sun_path);
    else
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (fd < 0 || bind(fd, &a.at.any, a.length) != 0 || listen(fd, 4096) != 0)
        die("cannot listen at %s: %s", text, strerror(errno));
    return fd;
}

static inline void watch(int epoll, int fd, uint32_t events, void *who, int how)
{
    struct epoll_event e = {.events = events, .data.ptr = who};
    if (epoll_ctl(epoll, how, fd, &e) != 0)
        die("epoll_ctl: %s", strerror(errno));
}

static inline void no_delay(int fd)
{
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

#endif
