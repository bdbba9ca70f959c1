# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, freethreading_compatible=True
"""Client frames out of bytes, bytes into frames, masking and UTF-8: pure computation on memory, no I/O.

The compiled core cimports what `_speedups.pxd` lists. The classes and functions that Python sees are thin
faces of the same code, for library users and for the tests that hold it against wsproto and websockets.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from typing import NamedTuple

__all__ = ["FrameEvent", "FrameParser", "Utf8Validator", "encode_frame", "frame_header", "mask"]


# The two kernels that are worth instructions of their own, each in AVX2 and in plain C, with the same result to
# the bit; import chooses. Every load and store goes through memcpy or loadu: any address will do.
cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    #if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    #define WS_AVX2 1
    #include <immintrin.h>
    #else
    #define WS_AVX2 0
    #endif

    #define WS_STEP 32          /* bytes from which a mask kernel is called: one AVX2 register */
    #define WS_TOP_BITS 0x8080808080808080u
    #define WS_ALIGN_FROM 512   /* bytes from which an aligned destination pays (measured) */

    /* The key for the byte after n more; the key is held as it lies in memory. */
    static inline uint32_t ws_turned(uint32_t key, size_t n)
    {
        const unsigned turn = 8 * (unsigned)(n & 3);
    #if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        return key << turn | key >> ((32 - turn) & 31);
    #else
        return key >> turn | key << ((32 - turn) & 31);
    #endif
    }

    static inline uint64_t ws_doubled(uint32_t key) { return (uint64_t)key << 32 | key; }

    static inline uint64_t ws_load8(const uint8_t *p) { uint64_t word; memcpy(&word, p, 8); return word; }
    static inline void ws_store8(uint8_t *p, uint64_t word) { memcpy(p, &word, 8); }
    static inline uint32_t ws_load4(const uint8_t *p) { uint32_t word; memcpy(&word, p, 4); return word; }
    static inline void ws_store4(uint8_t *p, uint32_t word) { memcpy(p, &word, 4); }

    /* 16 bytes: a register where the compiler knows of such (SSE2, NEON), words elsewhere. */
    typedef uint32_t ws_wide __attribute__((vector_size(16)));
    static inline ws_wide ws_load16(const uint8_t *p) { ws_wide v; memcpy(&v, p, 16); return v; }
    static inline void ws_store16(uint8_t *p, ws_wide v) { memcpy(p, &v, 16); }
    static inline ws_wide ws_spread(uint32_t key) { return (ws_wide){key, key, key, key}; }
    static inline uint64_t ws_folded(ws_wide v) { uint64_t w[2]; memcpy(w, &v, 16); return w[0] | w[1]; }

    /* All of these write a range by its front and its back, which may overlap; whatever is read is read before the
       first store that could reach it, so dst may be src or lie anywhere before it. They return all that they wrote,
       or'ed together: WS_TOP_BITS of it say whether that was ASCII, while it is in registers. */

    /* n < WS_STEP */
    static inline uint64_t ws_mask_short(uint8_t *dst, const uint8_t *src, size_t n, uint32_t key, uint32_t next)
    {
        if (n >= 16) {
            const ws_wide a = ws_load16(src) ^ ws_spread(key), z = ws_load16(src + n - 16) ^ ws_spread(next);
            ws_store16(dst, a);
            ws_store16(dst + n - 16, z);
            return ws_folded(a | z);
        }
        if (n >= 8) {
            const uint64_t a = ws_load8(src) ^ ws_doubled(key), z = ws_load8(src + n - 8) ^ ws_doubled(next);
            ws_store8(dst, a);
            ws_store8(dst + n - 8, z);
            return a | z;
        }
        if (n >= 4) {
            const uint32_t a = ws_load4(src) ^ key, z = ws_load4(src + n - 4) ^ next;
            ws_store4(dst, a);
            ws_store4(dst + n - 4, z);
            return a | z;
        }
        uint8_t keys[4], all = 0;
        memcpy(keys, &key, 4);
        for (size_t i = 0; i < n; i++)
            all |= dst[i] = src[i] ^ keys[i];
        return all;
    }

    /* n >= WS_STEP */
    static uint64_t ws_mask_plain(uint8_t *dst, const uint8_t *src, size_t n, uint32_t key, uint32_t next)
    {
        const ws_wide front = ws_spread(key), back = ws_spread(next);
        const ws_wide y = ws_load16(src + n - 32) ^ back, z = ws_load16(src + n - 16) ^ back;
        ws_wide all = y | z;
        for (size_t i = 0; i + 32 < n; i += 32) {
            const ws_wide a = ws_load16(src + i) ^ front, b = ws_load16(src + i + 16) ^ front;
            ws_store16(dst + i, a);
            ws_store16(dst + i + 16, b);
            all |= a | b;
        }
        ws_store16(dst + n - 32, y);
        ws_store16(dst + n - 16, z);
        return ws_folded(all);
    }

    /* 4 <= n <= 32: are all bytes below 0x80? */
    static inline int ws_is_ascii(const uint8_t *p, size_t n)
    {
        if (n >= 16)
            return (ws_folded(ws_load16(p) | ws_load16(p + n - 16)) & WS_TOP_BITS) == 0;
        if (n >= 8)
            return ((ws_load8(p) | ws_load8(p + n - 8)) & WS_TOP_BITS) == 0;
        return ((ws_load4(p) | ws_load4(p + n - 4)) & (uint32_t)WS_TOP_BITS) == 0;
    }

    /* How many leading bytes are known to be whole, valid characters: none, the caller looks at them all. */
    static size_t ws_utf8_plain(const uint8_t *p, size_t n) { (void)p; (void)n; return 0; }

    #if WS_AVX2
    #define WS_TARGET __attribute__((target("avx2")))

    WS_TARGET static inline __m256i ws_load32(const uint8_t *p) { return _mm256_loadu_si256((const __m256i_u *)p); }
    WS_TARGET static inline void ws_store32(uint8_t *p, __m256i v) { _mm256_storeu_si256((__m256i_u *)p, v); }

    /* n >= WS_STEP */
    WS_TARGET static uint64_t ws_mask_avx2(uint8_t *dst, const uint8_t *src, size_t n, uint32_t key, uint32_t next)
    {
        __m256i keys = _mm256_set1_epi32((int)key);
        const __m256i head = _mm256_xor_si256(ws_load32(src), keys);
        const __m256i tail = _mm256_xor_si256(ws_load32(src + n - 32), _mm256_set1_epi32((int)next));
        __m256i all = _mm256_or_si256(head, tail);
        if (n <= 64) {      /* what follows would do the same */
            ws_store32(dst, head);
            ws_store32(dst + n - 32, tail);
            return _mm256_movemask_epi8(all) == 0 ? 0 : WS_TOP_BITS;
        }
        size_t i = 32;
        if (n >= WS_ALIGN_FROM) {
            i = 32 - ((uintptr_t)dst & 31);
            keys = _mm256_set1_epi32((int)ws_turned(key, i));
        }
        for (; i + 128 <= n; i += 128) {
            const __m256i a = _mm256_xor_si256(ws_load32(src + i), keys);
            const __m256i b = _mm256_xor_si256(ws_load32(src + i + 32), keys);
            const __m256i c = _mm256_xor_si256(ws_load32(src + i + 64), keys);
            const __m256i d = _mm256_xor_si256(ws_load32(src + i + 96), keys);
            ws_store32(dst + i, a);
            ws_store32(dst + i + 32, b);
            ws_store32(dst + i + 64, c);
            ws_store32(dst + i + 96, d);
            all = _mm256_or_si256(all, _mm256_or_si256(_mm256_or_si256(a, b), _mm256_or_si256(c, d)));
        }
        for (; i + 32 < n; i += 32) {
            const __m256i a = _mm256_xor_si256(ws_load32(src + i), keys);
            ws_store32(dst + i, a);
            all = _mm256_or_si256(all, a);
        }
        ws_store32(dst, head);
        ws_store32(dst + n - 32, tail);
        return _mm256_movemask_epi8(all) == 0 ? 0 : WS_TOP_BITS;
    }

    /* UTF-8 by table lookup (Keiser and Lemire, "Validating UTF-8 in less than one instruction per byte", 2021).
       Each bit names one way in which a byte cannot follow the one before it. It is set when the table of the first
       byte's high half, that of its low half and that of the second byte's high half all say so. */
    enum {
        WS_SHORT = 1,         /* a lead without its continuation */
        WS_LONG = 2,          /* a continuation after ASCII */
        WS_OVER2 = 4,         /* C0, C1 */
        WS_OVER3 = 8,         /* E0 80..9F */
        WS_SURROGATE = 16,    /* ED A0..BF */
        WS_LARGE = 32,        /* F4 90..BF, F5.. 90..BF */
        WS_EDGE4 = 64,        /* F0 80..8F, F5.. 80..8F */
        WS_PAIR = 128,        /* two continuations: right only as third and fourth byte */
        WS_ANY_LOW = WS_SHORT | WS_LONG | WS_PAIR,
        WS_ANY_CONT = WS_LONG | WS_OVER2 | WS_PAIR,
        WS_BEYOND = WS_ANY_LOW | WS_LARGE | WS_EDGE4
    };
    #define WS_TABLE(...) _mm256_broadcastsi128_si256(_mm_setr_epi8(__VA_ARGS__))

    WS_TARGET static inline __m256i ws_high_half(__m256i v)
    {
        return _mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(15));
    }

    /* The 32 bytes that end n before the last one of v; u is what comes before v. */
    #define WS_SHIFTED(u, v, n) _mm256_alignr_epi8(v, _mm256_permute2x128_si256(u, v, 0x21), 16 - (n))

    /* Not all zero: v holds a fault, or shows one at the end of u. */
    WS_TARGET static inline __m256i ws_faults(__m256i u, __m256i v)
    {
        const __m256i first_high = WS_TABLE(
            WS_LONG, WS_LONG, WS_LONG, WS_LONG, WS_LONG, WS_LONG, WS_LONG, WS_LONG,
            (char)WS_PAIR, (char)WS_PAIR, (char)WS_PAIR, (char)WS_PAIR,
            WS_SHORT | WS_OVER2, WS_SHORT, WS_SHORT | WS_OVER3 | WS_SURROGATE, WS_SHORT | WS_LARGE | WS_EDGE4);
        const __m256i first_low = WS_TABLE(
            (char)(WS_ANY_LOW | WS_OVER2 | WS_OVER3 | WS_EDGE4), (char)(WS_ANY_LOW | WS_OVER2),
            (char)WS_ANY_LOW, (char)WS_ANY_LOW, (char)(WS_ANY_LOW | WS_LARGE),
            (char)WS_BEYOND, (char)WS_BEYOND, (char)WS_BEYOND, (char)WS_BEYOND, (char)WS_BEYOND, (char)WS_BEYOND,
            (char)WS_BEYOND, (char)WS_BEYOND, (char)(WS_BEYOND | WS_SURROGATE), (char)WS_BEYOND, (char)WS_BEYOND);
        const __m256i second_high = WS_TABLE(
            WS_SHORT, WS_SHORT, WS_SHORT, WS_SHORT, WS_SHORT, WS_SHORT, WS_SHORT, WS_SHORT,
            (char)(WS_ANY_CONT | WS_OVER3 | WS_EDGE4), (char)(WS_ANY_CONT | WS_OVER3 | WS_LARGE),
            (char)(WS_ANY_CONT | WS_SURROGATE | WS_LARGE), (char)(WS_ANY_CONT | WS_SURROGATE | WS_LARGE),
            WS_SHORT, WS_SHORT, WS_SHORT, WS_SHORT);
        const __m256i first = WS_SHIFTED(u, v, 1);
        const __m256i wrong = _mm256_and_si256(
            _mm256_and_si256(_mm256_shuffle_epi8(first_high, ws_high_half(first)),
                             _mm256_shuffle_epi8(first_low, _mm256_and_si256(first, _mm256_set1_epi8(15)))),
            _mm256_shuffle_epi8(second_high, ws_high_half(v)));
        /* top bit: two before stands E0.., or three before F0.., so here a second continuation is not wrong but due */
        const __m256i due = _mm256_or_si256(
            _mm256_subs_epu8(WS_SHIFTED(u, v, 2), _mm256_set1_epi8(0xE0 - 0x80)),
            _mm256_subs_epu8(WS_SHIFTED(u, v, 3), _mm256_set1_epi8(0xF0 - 0x80)));
        return _mm256_xor_si256(wrong, _mm256_and_si256(due, _mm256_set1_epi8((char)0x80)));
    }

    /* Where the character begins that p[:n] leaves unfinished; n if none. */
    static inline size_t ws_boundary(const uint8_t *p, size_t n)
    {
        for (size_t back = 1; back <= 3 && back <= n; back++) {
            const uint8_t byte = p[n - back];
            if (byte >= 0xC0)
                return back < (byte >= 0xF0 ? 4u : byte >= 0xE0 ? 3u : 2u) ? n - back : n;
            if (byte < 0x80)
                break;
        }
        return n;
    }

    /* How many leading bytes are ASCII, in steps of 256. */
    WS_TARGET static inline size_t ws_ascii_run(const uint8_t *p, size_t n)
    {
        size_t i = 0;
        for (; n - i >= 256; i += 256) {
            __m256i all = _mm256_setzero_si256();
            for (int k = 0; k < 256; k += 32)
                all = _mm256_or_si256(all, ws_load32(p + i + k));
            if (_mm256_movemask_epi8(all) != 0)
                break;
        }
        return i;
    }

    /* How many leading bytes are known to be whole, valid characters; the caller looks at the rest.
       p begins on a character boundary. */
    WS_TARGET static size_t ws_utf8_avx2(const uint8_t *p, size_t n)
    {
        __m256i before = _mm256_setzero_si256();
        int was_wide = 0;       /* the step before was not ASCII, so it may have left a character open */
        n = ws_boundary(p, n);      /* the zeros behind the last step would be a fault after an open character */
        for (size_t i = ws_ascii_run(p, n); i < n; i += 64) {
            uint8_t rest[64] = {0};
            const uint8_t *step = p + i;
            if (n - i < 64) {
                /* an ASCII end begins before i, so it shows too that the step before left nothing open */
                if (n >= 64
                    && _mm256_movemask_epi8(_mm256_or_si256(ws_load32(p + n - 64), ws_load32(p + n - 32))) == 0)
                    return n;
                step = memcpy(rest, p + i, n - i);
            }
            const __m256i a = ws_load32(step), b = ws_load32(step + 32);
            const int is_wide = _mm256_movemask_epi8(_mm256_or_si256(a, b));
            if (is_wide | was_wide) {
                const __m256i faults = _mm256_or_si256(ws_faults(before, a), ws_faults(a, b));
                if (!_mm256_testz_si256(faults, faults))
                    return ws_boundary(p, i);
            }
            before = b;
            was_wide = is_wide;
        }
        return ws_boundary(p, n);   /* the first cut may have bared another open character */
    }
    #endif

    static uint64_t (*ws_mask_long)(uint8_t *, const uint8_t *, size_t, uint32_t, uint32_t) = ws_mask_plain;
    static size_t (*ws_utf8_known)(const uint8_t *, size_t) = ws_utf8_plain;

    static int ws_has_avx2(void)
    {
    #if WS_AVX2
        __builtin_cpu_init();
        return __builtin_cpu_supports("avx2") != 0;
    #else
        return 0;
    #endif
    }

    static int ws_is_avx2(void) { return ws_mask_long != ws_mask_plain; }

    /* wants_avx2 only where ws_has_avx2 */
    static void ws_choose(int wants_avx2)
    {
        ws_mask_long = ws_mask_plain;
        ws_utf8_known = ws_utf8_plain;
    #if WS_AVX2
        if (wants_avx2) {
            ws_mask_long = ws_mask_avx2;
            ws_utf8_known = ws_utf8_avx2;
        }
    #else
        (void)wants_avx2;
    #endif
    }
    """
    const size_t WS_STEP
    const uint64_t WS_TOP_BITS
    uint32_t ws_turned(uint32_t key, size_t n) noexcept nogil
    uint64_t ws_mask_short(uint8_t* dst, const uint8_t* src, size_t n, uint32_t key, uint32_t next_key) noexcept nogil
    uint64_t ws_mask_long(uint8_t* dst, const uint8_t* src, size_t n, uint32_t key, uint32_t next_key) noexcept nogil
    bint ws_is_ascii(const uint8_t* p, size_t n) noexcept nogil
    size_t ws_utf8_known(const uint8_t* p, size_t n) noexcept nogil
    bint ws_has_avx2() noexcept nogil
    bint ws_is_avx2() noexcept nogil
    void ws_choose(bint wants_avx2) noexcept nogil


ws_choose(ws_has_avx2())


cdef enum:
    UTF8_KERNEL_FROM = 16      # bytes; below, the automaton alone is faster (measured)


# The automaton of RFC 3629 §4. The state holds what may come next:
# continuation bytes still missing | least next byte << 8 | greatest next byte << 16.
cdef size_t utf8_step(Utf8* text, const uint8_t* p, size_t n) noexcept nogil:  # hot; p is the caller's, n bytes
    cdef uint32_t state = text.state, held = text.held, byte
    cdef uint64_t word
    cdef size_t i = 0
    while i < n:
        if state == 0:
            while n - i >= 8:
                memcpy(&word, p + i, 8)
                if word & 0x8080808080808080ULL:
                    break
                i += 8
            if i == n:
                break
            byte = p[i]
            if byte >= 0x80:
                if byte < 0xC2 or byte > 0xF4:
                    break
                if byte < 0xE0:
                    state = 0xBF8001
                elif byte < 0xF0:
                    state = 0xBFA002 if byte == 0xE0 else 0x9F8002 if byte == 0xED else 0xBF8002
                else:
                    state = 0xBF9003 if byte == 0xF0 else 0x8F8003 if byte == 0xF4 else 0xBF8003
                held = 1
        else:
            byte = p[i]
            if byte < (state >> 8 & 0xFF) or byte > state >> 16:
                break
            if state & 0xFF == 1:
                state = held = 0
            else:
                state = 0xBF8000 | ((state & 0xFF) - 1)
                held += 1
        i += 1
    text.state = state
    text.held = held
    return i


cdef size_t utf8_feed(Utf8* text, const uint8_t* p, size_t n) noexcept nogil:  # hot; p is the caller's, n bytes
    cdef size_t i = 0
    if text.state == 0 and 4 <= n <= 32 and ws_is_ascii(p, n):
        return n
    if n >= UTF8_KERNEL_FROM:
        while text.state != 0 and i < 3:
            if utf8_step(text, p + i, 1) == 0:
                return i
            i += 1
        i += ws_utf8_known(p + i, n - i)
    return i + utf8_step(text, p + i, n - i)


cdef uint32_t mask_to(uint8_t* dst, const uint8_t* src, size_t n, uint32_t key) noexcept nogil:  # hot
    cdef uint32_t following = ws_turned(key, n)
    if n < WS_STEP:
        ws_mask_short(dst, src, n, key, following)
    else:
        ws_mask_long(dst, src, n, key, following)
    return following


cdef size_t header_before(uint8_t* payload, uint8_t opcode, uint64_t length) noexcept nogil:  # hot
    cdef uint8_t* h = payload - SERVER_HEADER_MAX
    cdef int k
    if length < 126:
        h[8] = 0x80 | opcode
        h[9] = <uint8_t>length
        return 2
    if length < 65536:
        h[6] = 0x80 | opcode
        h[7] = 126
        h[8] = <uint8_t>(length >> 8)
        h[9] = <uint8_t>length
        return 4
    h[0] = 0x80 | opcode
    h[1] = 127
    for k in range(8):
        h[2 + k] = <uint8_t>(length >> (56 - 8 * k))
    return SERVER_HEADER_MAX


# Length of the client frame header at h, of which `got` >= 1 bytes are there: 0 while more of it must come,
# -1 as soon as those that are there show that it is refused. `message` is the opcode of the message under way, or 0.
cdef inline int header_length(const uint8_t* h, size_t got, uint8_t message) noexcept nogil:  # hot
    cdef uint8_t opcode = h[0] & 0x0F, length
    if h[0] & 0x70:
        return -1
    if opcode & 0x08:
        if opcode > OP_PONG or not h[0] & 0x80:
            return -1
    elif opcode > OP_BINARY or (opcode == OP_CONTINUATION) == (message == 0):
        return -1
    if got < 2:
        return 0
    if not h[1] & 0x80:
        return -1
    length = h[1] & 0x7F
    if opcode & 0x08 and (length > CONTROL_MAX or (opcode == OP_CLOSE and length == 1)):
        return -1
    if length < 126:
        return 6 if got >= 6 else 0
    if length == 126:
        if got >= 4 and h[2] == 0 and h[3] < 126:
            return -1
        return 8 if got >= 8 else 0
    if got >= 3 and h[2] & 0x80:
        return -1
    if got >= 8 and not (h[2] | h[3] | h[4] | h[5] | h[6] | h[7]):
        return -1
    return CLIENT_HEADER_MAX if got >= CLIENT_HEADER_MAX else 0


# Is this, as most are, the header of an unfragmented text or binary message of fewer than 126 bytes? header_length
# says the same of it, with more tests (measured: 24 instructions).
cdef inline bint is_short_message(const uint8_t* h) noexcept nogil:  # hot
    return <uint8_t>(h[0] - (0x80 | OP_TEXT)) <= OP_BINARY - OP_TEXT and <uint8_t>(h[1] - 0x80) < 126


# The payload length in a header of `size` bytes that header_length accepted.
cdef inline uint64_t payload_length(const uint8_t* h, int size) noexcept nogil:  # hot
    cdef uint64_t length = 0
    cdef int k
    if size == 6:
        return h[1] & 0x7F
    for k in range(2, size - 4):
        length = length << 8 | h[k]
    return length


# May a peer send this code (RFC 6455 §7.4, and the IANA registry's 1012-1014)?
cdef inline bint is_close_code(uint16_t code) noexcept nogil:
    return (1000 <= code <= 1003) or (1007 <= code <= 1014) or (3000 <= code <= 4999)


# The control frame under way is whole: what it says.
cdef Event control_event(FrameParser self) noexcept nogil:
    cdef Utf8 reason
    cdef size_t n = self.control_length
    if self.opcode == OP_PING:
        return EVENT_PING
    if self.opcode == OP_PONG:
        return EVENT_PONG
    if n == 0:
        self.close_code = 1005
        return EVENT_CLOSE
    self.close_code = <uint16_t>(self.control[0] << 8 | self.control[1])
    if not is_close_code(self.close_code):
        self.close_code = 1002
        return EVENT_ERROR
    reason.state = reason.held = 0
    if utf8_feed(&reason, &self.control[2], n - 2) != n - 2 or reason.held:
        self.close_code = 1007
        return EVENT_ERROR
    return EVENT_CLOSE


class FrameEvent(NamedTuple):
    """What a client said beside its payload.

    kind        "ping", "pong", "close", or "error": it broke a rule
    at          payload bytes of this feed that came before
    close_code  close: the client's, 1005 if it gave none; error: what it is to be told; else 0
    body        ping, pong: the payload; close: the reason; error: empty
    """

    kind: str
    at: int
    close_code: int
    body: bytes


# What an event other than EVENT_NONE says, `at` payload bytes into the feed.
cdef object event_of(FrameParser parser, Event event, size_t at):
    cdef size_t start = 2 if event == EVENT_CLOSE and parser.control_length else 0
    if event == EVENT_ERROR:
        return FrameEvent("error", at, parser.close_code, b"")
    body = PyBytes_FromStringAndSize(<char*>&parser.control[start], parser.control_length - start)
    if event == EVENT_CLOSE:
        return FrameEvent("close", at, parser.close_code, body)
    return FrameEvent("ping" if event == EVENT_PING else "pong", at, 0, body)


# Parse src[:n], the caller's, to dst; the payload bytes made, and every event to `events`.
cdef size_t feed_all(FrameParser parser, const uint8_t* src, size_t n, uint8_t* dst, list events) except? <size_t>-1:
    cdef size_t at = 0, total = 0, used = 0, made = 0
    cdef Event event
    while at < n:
        event = parser.run(src + at, n - at, dst + total, &used, &made)
        at += used
        total += made
        if event != EVENT_NONE:
            events.append(event_of(parser, event, total))
    return total


cdef class FrameParser:
    """Client frames, streamed: payload goes on as it comes, whatever length the header announced.

    in      bytes of one client, cut anywhere
    out     payload of data messages as one run of bytes; PING, PONG, CLOSE and the first fault as events;
            the same under every cut
    bound   no payload is kept but that of one control frame, 125 bytes; one thread at a time
    source  RFC 6455 §5.1-5.5, §7.4, §8.1
    """

    cdef Event run(self, const uint8_t* src, size_t n, uint8_t* dst, size_t* used, size_t* made) noexcept nogil:  # hot
        # src and dst are the caller's, n bytes each, for the time of this call. The state lives in locals
        # meanwhile: a store to dst might be one to self for all that the compiler knows.
        cdef size_t i = 0, m = 0, take, good
        cdef uint64_t left = self.left
        cdef uint32_t key = self.key, following
        cdef uint64_t all_bits      # of the payload just unmasked, or'ed
        cdef uint8_t opcode = self.opcode, message = self.message
        cdef bint fin = self.fin, in_payload = self.in_payload
        cdef const uint8_t* header
        cdef int size
        cdef Event event = EVENT_NONE
        if self.ended:
            used[0] = n
            made[0] = 0
            return EVENT_NONE
        while i < n:
            if not in_payload:
                if self.spilled == 0:
                    header = src + i
                    if n - i >= CLIENT_HEADER_MAX:    # a constant here folds every test of it (measured: -0.7 ns)
                        if message == 0 and is_short_message(header):
                            size = 6
                        else:
                            size = header_length(header, CLIENT_HEADER_MAX, message)
                    else:
                        size = header_length(header, n - i, message)
                        if size == 0:
                            self.spilled = <uint8_t>(n - i)
                            memcpy(self.spill, header, n - i)
                            i = n
                            break
                    i += <size_t>size     # of no meaning if refused
                else:
                    header = self.spill
                    self.spill[self.spilled] = src[i]
                    self.spilled += 1
                    i += 1
                    size = header_length(header, self.spilled, message)
                    if size == 0:
                        continue
                    self.spilled = 0
                if size < 0:
                    self.close_code = 1002
                    event = EVENT_ERROR
                    break
                opcode = header[0] & 0x0F
                fin = header[0] >> 7
                left = payload_length(header, size)
                memcpy(&key, header + size - 4, 4)
                in_payload = True
                if opcode & 0x08:
                    self.control_length = 0
                elif opcode != OP_CONTINUATION:
                    message = opcode      # self.text is zero: the text before this ended on a character boundary
            take = n - i
            if take > left:
                take = <size_t>left
            if opcode & 0x08:
                key = mask_to(&self.control[self.control_length], src + i, take, key)
                self.control_length += <uint8_t>take
            else:
                following = ws_turned(key, take)
                if take < WS_STEP:
                    all_bits = ws_mask_short(dst + m, src + i, take, key, following)
                else:
                    all_bits = ws_mask_long(dst + m, src + i, take, key, following)
                key = following
                good = take
                if message == OP_TEXT and (all_bits & WS_TOP_BITS or self.text.state):
                    good = utf8_feed(&self.text, dst + m, take)
                m += good
                if good != take:
                    self.close_code = 1007
                    event = EVENT_ERROR
                    break
            i += take
            left -= take
            if left != 0:
                break
            in_payload = False
            if opcode & 0x08:
                self.opcode = opcode
                event = control_event(self)
                break
            if fin:
                if message == OP_TEXT and self.text.held:
                    self.close_code = 1007
                    event = EVENT_ERROR
                    break
                message = 0
                self.messages += 1
        self.left = left
        self.key = key
        self.opcode = opcode
        self.message = message
        self.fin = fin
        self.in_payload = in_payload
        if event == EVENT_CLOSE or event == EVENT_ERROR:
            self.ended = True
        used[0] = n if event == EVENT_ERROR else i
        made[0] = m
        return event

    cdef bint at_boundary(self) noexcept nogil:
        return self.message == 0 and self.spilled == 0 and not self.in_payload

    def feed(self, const uint8_t[::1] data not None):
        """The payload in `data`, and the events in it in order. After a close or an error: nothing."""
        cdef size_t n = <size_t>data.shape[0], total = 0
        events = []
        out = PyBytes_FromStringAndSize(NULL, n)
        if n:
            total = feed_all(self, &data[0], n, <uint8_t*>PyBytes_AS_STRING(out), events)
        return out[:total], events

    def feed_in_place(self, uint8_t[::1] data not None):
        """As `feed`, but the payload is moved to the front of `data`, and its length returned."""
        cdef size_t n = <size_t>data.shape[0], total = 0
        events = []
        if n:
            total = feed_all(self, &data[0], n, &data[0], events)
        return total, events

    @property
    def is_at_boundary(self):
        """Is no message under way and no header or control frame half read?"""
        return <bint>self.at_boundary()


cdef class Utf8Validator:
    """Says of a text that comes in pieces where it stops being UTF-8 (RFC 3629)."""

    cdef Utf8 text

    def feed(self, const uint8_t[::1] data not None):
        """How many bytes of `data` continue a valid text: all, or the index of the first that cannot."""
        cdef size_t n = <size_t>data.shape[0]
        return utf8_feed(&self.text, &data[0], n) if n else 0

    @property
    def held(self):
        """Bytes of the unfinished character at the end: 0 to 3."""
        return self.text.held


cdef uint32_t key_word(const uint8_t[::1] key) except? 0:
    cdef uint32_t word = 0
    if key.shape[0] != 4:
        raise ValueError(f"a masking key is 4 bytes, not {key.shape[0]}")
    memcpy(&word, &key[0], 4)
    return word


def mask(const uint8_t[::1] data not None, const uint8_t[::1] key not None):
    """`data` masked, or unmasked, with the 4 bytes of `key` (RFC 6455 §5.3)."""
    cdef uint32_t word = key_word(key)
    out = PyBytes_FromStringAndSize(NULL, data.shape[0])
    if data.shape[0]:
        mask_to(<uint8_t*>PyBytes_AS_STRING(out), &data[0], <size_t>data.shape[0], word)
    return out


def frame_header(int opcode, uint64_t length):
    """The header of an unmasked frame with FIN set, in its shortest form: 2, 4 or 10 bytes."""
    cdef uint8_t room[SERVER_HEADER_MAX]
    cdef size_t size
    if not 0 <= opcode <= 15:
        raise ValueError(f"an opcode is 0 to 15, not {opcode}")
    if length >> 63:
        raise ValueError(f"a payload has fewer than 2**63 bytes, not {length}")
    size = header_before(room + SERVER_HEADER_MAX, <uint8_t>opcode, length)
    return PyBytes_FromStringAndSize(<char*>room + SERVER_HEADER_MAX - size, size)


def encode_frame(int opcode, const uint8_t[::1] payload not None):
    """`payload` as one unmasked frame with FIN set."""
    return frame_header(opcode, <uint64_t>payload.shape[0]) + payload


def _set_kernels(name):
    """For tests: use the "avx2" or the "plain" kernels from now on, and say which were in use.

    raises  ValueError where there is no such kernel, or not on this processor
    """
    before = "avx2" if ws_is_avx2() else "plain"
    if name != "plain" and (name != "avx2" or not ws_has_avx2()):
        raise ValueError(f"no kernels named {name!r} on this processor")
    ws_choose(name == "avx2")
    return before


def _mask_within(uint8_t[::1] data not None, size_t to, size_t start, size_t length, const uint8_t[::1] key not None):
    """For tests: mask `length` bytes at `start` of `data` to `to` <= `start`; the key rotated for what follows."""
    cdef uint32_t word = key_word(key)
    cdef size_t size = <size_t>data.shape[0]
    if to > start or start >= size or length > size - start:
        raise ValueError("the ranges do not lie within the data")
    word = mask_to(&data[to], &data[start], length, word)
    return PyBytes_FromStringAndSize(<char*>&word, 4)
