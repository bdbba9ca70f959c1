/* As much of HTTP/2 (RFC 9113) and of its CONNECT for WebSocket (RFC 8441) as a client that asks for nothing else needs:
 * what it says, byte for byte, and whether an answer is a 200. */
#ifndef BENCH_H2_H
#define BENCH_H2_H

#include "common.h"

#define H2_HEAD 9
#define H2_FRAME 16384             /* the longest payload: nobody is asked for more, and nobody gets more */
#define H2_WINDOW 65535            /* of everything that nobody spoke of */
#define H2_OUR_STREAM (1u << 20)   /* bytes that a stream may send us ahead */
#define H2_OUR_CONNECTION (1u << 24)

enum { H2_DATA, H2_HEADERS, H2_RST_STREAM = 3, H2_SETTINGS, H2_PING = 6, H2_GOAWAY, H2_WINDOW_UPDATE };
enum { H2_END_STREAM = 1, H2_ACK = 1, H2_END_HEADERS = 4, H2_PADDED = 8, H2_PRIORITY = 32 };
enum { H2_ENABLE_PUSH = 2, H2_MAX_STREAMS, H2_INITIAL_WINDOW, H2_CONNECT_PROTOCOL = 8 };

static inline uint8_t *put_number(uint8_t *to, uint32_t n, unsigned bytes)
{
    while (bytes-- > 0)
        *to++ = (uint8_t)(n >> (8 * bytes));
    return to;
}

static inline uint32_t number_at(const uint8_t *p, unsigned bytes)
{
    uint32_t n = 0;
    while (bytes-- > 0)
        n = n << 8 | *p++;
    return n;
}

static inline uint8_t *put_head(uint8_t *to, size_t n, uint8_t type, uint8_t flags, uint32_t stream)
{
    to = put_number(to, (uint32_t)n, 3);
    *to++ = type;
    *to++ = flags;
    return put_number(to, stream, 4);
}

static inline uint8_t *put_window_update(uint8_t *to, uint32_t stream, uint32_t bytes)
{
    return put_number(put_head(to, 4, H2_WINDOW_UPDATE, 0, stream), bytes, 4);
}

static inline uint8_t *put_setting(uint8_t *to, unsigned name, uint32_t value)
{
    return put_number(put_number(to, name, 2), value, 4);
}

/* What a connection begins with. */
static inline uint8_t *put_preface(uint8_t *to)
{
    static const char magic[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    memcpy(to, magic, sizeof magic - 1);
    to = put_head(to + sizeof magic - 1, 12, H2_SETTINGS, 0, 0);
    to = put_setting(to, H2_ENABLE_PUSH, 0);
    to = put_setting(to, H2_INITIAL_WINDOW, H2_OUR_STREAM);
    return put_window_update(to, 0, H2_OUR_CONNECTION - H2_WINDOW);
}

/* HPACK, literals without Huffman coding that nobody has to remember (RFC 7541 §6.2.2); strings of less than 127 bytes. */
static inline uint8_t *put_text(uint8_t *to, const char *text)
{
    size_t n = strlen(text);
    *to++ = (uint8_t)n;
    memcpy(to, text, n);
    return to + n;
}

static inline uint8_t *put_field(uint8_t *to, uint8_t known, const char *name, const char *value)
{
    *to++ = known;
    return put_text(known ? to : put_text(to, name), value);
}

enum { HPACK_AUTHORITY = 1, HPACK_METHOD, HPACK_PATH = 4, HPACK_HTTP = 0x86, HPACK_HTTPS = 0x87, HPACK_200 = 0x88 };

static inline uint8_t *put_request(uint8_t *to, uint32_t stream, const char *path, bool is_tls)
{
    uint8_t *block = to + H2_HEAD, *end = put_field(block, HPACK_METHOD, "", "CONNECT");
    *end++ = is_tls ? HPACK_HTTPS : HPACK_HTTP;
    end = put_field(end, HPACK_PATH, "", path);
    end = put_field(end, HPACK_AUTHORITY, "", "localhost");
    end = put_field(end, 0, ":protocol", "websocket");
    end = put_field(end, 0, "sec-websocket-version", "13");
    put_head(to, (size_t)(end - block), H2_HEADERS, H2_END_HEADERS, stream);
    return end;
}

/* Whether the head of an answer begins with ":status: 200", after what it may say about the size of its table. */
static inline bool is_200(const uint8_t *block, size_t n)
{
    size_t i = 0;
    while (i < n && (block[i] & 0xe0) == 0x20)
        if ((block[i++] & 0x1f) == 0x1f)
            while (i < n && block[i++] & 0x80)
                ;
    return i < n && block[i] == HPACK_200;
}

#endif
