/* A socket to the server, plain or (compiled with -DWITH_TLS) with TLS, that reads and writes as a socket does. */
#ifndef BENCH_WIRE_H
#define BENCH_WIRE_H

#include "common.h"

struct wire {
    int fd;
    bool is_drained; /* the last wire_recv took all that there was: whatever comes later is a new edge */
    void *tls;       /* owned; an SSL, or NULL */
};

#ifdef WITH_TLS
#include <openssl/err.h>
#include <openssl/ssl.h>

/* What everybody who speaks TLS 1.3 has (RFC 8446 §9.1) and browsers ask for first, so that all servers do the same. */
#define CIPHER "TLS_AES_128_GCM_SHA256"
#define GROUP "X25519"

static SSL_CTX *tls; /* NULL: all wires are plain */

/* From now on wires are TLS, with that protocol on top. The server's certificate is not looked at. */
static inline void use_tls(const char *protocol)
{
    uint8_t name[16];
    name[0] = (uint8_t)strlen(protocol);
    memcpy(name + 1, protocol, name[0]);
    tls = SSL_CTX_new(TLS_client_method());
    if (tls == NULL || !SSL_CTX_set_min_proto_version(tls, TLS1_3_VERSION) || !SSL_CTX_set_ciphersuites(tls, CIPHER)
        || !SSL_CTX_set1_groups_list(tls, GROUP) || SSL_CTX_set_alpn_protos(tls, name, name[0] + 1u) != 0)
        die("OpenSSL does not know what is asked for");
    SSL_CTX_set_mode(tls, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_options(tls, SSL_OP_IGNORE_UNEXPECTED_EOF);
    SSL_CTX_set_session_cache_mode(tls, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_read_ahead(tls, 1);
}

/* What the call that returned -1 failed of. */
static inline const char *wire_error(void)
{
    static char text[256];
    unsigned long code = ERR_peek_last_error();
    if (code == 0)
        return strerror(errno);
    ERR_error_string_n(code, text, sizeof text);
    return text;
}

/* 1: what is said from now on arrives; 0: more has to come; -1: it failed. */
static inline int wire_secure(struct wire *w, bool as_h2)
{
    const uint8_t *chosen;
    unsigned length;
    if (tls == NULL)
        return 1;
    if (w->tls == NULL) {
        w->tls = must_have(SSL_new(tls));
        if (!SSL_set_fd(w->tls, w->fd) || !SSL_set_tlsext_host_name((SSL *)w->tls, "localhost"))
            die("out of memory");
    }
    ERR_clear_error();
    int done = SSL_connect(w->tls);
    if (done != 1) {
        int why = SSL_get_error(w->tls, done);
        return why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE ? 0 : -1;
    }
    SSL_get0_alpn_selected(w->tls, &chosen, &length);
    if (as_h2 && (length != 2 || memcmp(chosen, "h2", 2) != 0)) {
        errno = EPROTONOSUPPORT;
        return -1;
    }
    return 1;
}

/* As recv(2). */
static inline ssize_t wire_recv(struct wire *w, uint8_t *to, size_t n)
{
    size_t got = 0, part;
    if (w->tls == NULL) {
        ssize_t taken = recv(w->fd, to, n, 0);
        w->is_drained = taken < (ssize_t)n;
        return taken;
    }
    w->is_drained = false;
    while (got < n) {
        ERR_clear_error();
        if (SSL_read_ex(w->tls, to + got, n - got, &part)) {
            got += part;
            continue;
        }
        int why = SSL_get_error(w->tls, 0);
        w->is_drained = why == SSL_ERROR_WANT_READ;
        if (got > 0 || why == SSL_ERROR_ZERO_RETURN)
            break;
        if (w->is_drained)
            errno = EAGAIN;
        return -1;
    }
    return (ssize_t)got;
}

/* As send(2). What could not be sent has to be offered again, and no less of it. */
static inline ssize_t wire_send(struct wire *w, const uint8_t *from, size_t n)
{
    size_t taken = 0, part;
    if (w->tls == NULL)
        return send(w->fd, from, n, MSG_NOSIGNAL);
    while (taken < n) {
        ERR_clear_error();
        if (SSL_write_ex(w->tls, from + taken, n - taken, &part)) {
            taken += part;
            continue;
        }
        if (SSL_get_error(w->tls, 0) != SSL_ERROR_WANT_WRITE)
            return -1;
        errno = EAGAIN;
        return taken > 0 ? (ssize_t)taken : -1;
    }
    return (ssize_t)taken;
}

/* Says that nothing more comes. */
static inline void wire_shut(struct wire *w)
{
    if (w->tls != NULL && SSL_is_init_finished(w->tls))
        SSL_shutdown(w->tls);
    shutdown(w->fd, SHUT_WR);
}

static inline void wire_close(struct wire *w)
{
    if (w->tls != NULL) {
        if (SSL_is_init_finished(w->tls))
            SSL_shutdown(w->tls);
        SSL_free(w->tls);
        w->tls = NULL;
    }
    if (w->fd >= 0)
        close(w->fd);
    w->fd = -1;
}

#else

static inline void use_tls(const char *protocol)
{
    (void)protocol;
    die("--tls: compiled without it");
}

static inline const char *wire_error(void)
{
    return strerror(errno);
}

static inline int wire_secure(struct wire *w, bool as_h2)
{
    (void)w, (void)as_h2;
    return 1;
}

static inline ssize_t wire_recv(struct wire *w, uint8_t *to, size_t n)
{
    ssize_t taken = recv(w->fd, to, n, 0);
    w->is_drained = taken < (ssize_t)n;
    return taken;
}

static inline ssize_t wire_send(struct wire *w, const uint8_t *from, size_t n)
{
    return send(w->fd, from, n, MSG_NOSIGNAL);
}

static inline void wire_shut(struct wire *w)
{
    shutdown(w->fd, SHUT_WR);
}

static inline void wire_close(struct wire *w)
{
    if (w->fd >= 0)
        close(w->fd);
    w->fd = -1;
}

#endif
#endif
