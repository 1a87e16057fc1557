/* hash.h: keys become 128-bit fingerprints.
 *
 * SipHash-1-3 with 128 bits of output (Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012; the 128-bit
 * finalisation is the one of their reference code), under a random secret per table: nobody can aim for a collision, and at
 * 10^9 keys the chance of one anywhere is about 10^-21. Each kind of key (str, bytes, int ...) has a secret of its own,
 * derived from the table's, so that 1, "1" and b"1" are different users although their bytes may be the same.
 */
#ifndef NL_HASH_H
#define NL_HASH_H

#include <string.h>

#include "atomic.h"

typedef struct { uint64_t lo, hi; } nl_fingerprint; /* lo is never 0: a slot whose lo is 0 belongs to nobody */
typedef struct { uint64_t v[4]; } nl_hash_seed;     /* SipHash's initial state under one secret */

NL_ALWAYS_INLINE uint64_t nl_load_le64(const unsigned char *p) {
    uint64_t v;
    memcpy(&v, p, 8);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap64(v);
#endif
    return v;
}

NL_ALWAYS_INLINE uint64_t nl_load_le32(const unsigned char *p) {
    uint32_t v;
    memcpy(&v, p, 4);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap32(v);
#endif
    return v;
}

#define NL_ROTL(x, b) (((x) << (b)) | ((x) >> (64 - (b))))
#define NL_SIP_ROUND(v0, v1, v2, v3)                                                                                   \
    do {                                                                                                               \
        v0 += v1, v2 += v3, v1 = NL_ROTL(v1, 13), v3 = NL_ROTL(v3, 16), v1 ^= v0, v3 ^= v2, v0 = NL_ROTL(v0, 32);      \
        v2 += v1, v0 += v3, v1 = NL_ROTL(v1, 17), v3 = NL_ROTL(v3, 21), v1 ^= v2, v3 ^= v0, v2 = NL_ROTL(v2, 32);      \
    } while (0)

NL_ALWAYS_INLINE nl_hash_seed nl_hash_seed_of(uint64_t k0, uint64_t k1) {
    nl_hash_seed s = {{k0 ^ 0x736f6d6570736575u, k1 ^ 0x646f72616e646f6du ^ 0xee, k0 ^ 0x6c7967656e657261u,
                       k1 ^ 0x7465646279746573u}};
    return s;
}

/* The up to seven bytes behind the last whole word, and the length in the top byte: SipHash's last word. */
NL_ALWAYS_INLINE uint64_t nl_hash_tail(const unsigned char *data, size_t length) {
    size_t n = length & 7;
    uint64_t tail = 0;
    if (length >= 8) {
        if (n) tail = nl_load_le64(data + length - 8) >> (64 - 8 * n);
    } else if (n >= 4) { /* two overlapping loads */
        tail = nl_load_le32(data) | nl_load_le32(data + n - 4) << 8 * (n - 4);
    } else if (n) { /* three overlapping bytes */
        tail = data[0] | (uint64_t)data[n >> 1] << 8 * (n >> 1) | (uint64_t)data[n - 1] << 8 * (n - 1);
    }
    return tail | (uint64_t)length << 56;
}

NL_ALWAYS_INLINE nl_fingerprint nl_hash_words(const nl_hash_seed *seed, const unsigned char *data, size_t words, uint64_t last) {
    uint64_t v0 = seed->v[0], v1 = seed->v[1], v2 = seed->v[2], v3 = seed->v[3];
    for (const unsigned char *end = data + 8 * words; data != end; data += 8) {
        uint64_t m = nl_load_le64(data);
        v3 ^= m;
        NL_SIP_ROUND(v0, v1, v2, v3);
        v0 ^= m;
    }
    v3 ^= last;
    NL_SIP_ROUND(v0, v1, v2, v3);
    v0 ^= last;
    v2 ^= 0xee;
    NL_SIP_ROUND(v0, v1, v2, v3);
    NL_SIP_ROUND(v0, v1, v2, v3);
    NL_SIP_ROUND(v0, v1, v2, v3);
    nl_fingerprint fp;
    fp.lo = v0 ^ v1 ^ v2 ^ v3;
    v1 ^= 0xdd;
    NL_SIP_ROUND(v0, v1, v2, v3);
    NL_SIP_ROUND(v0, v1, v2, v3);
    NL_SIP_ROUND(v0, v1, v2, v3);
    fp.hi = v0 ^ v1 ^ v2 ^ v3;
    return fp;
}

/* The plain hash, as the test vectors know it. */
NL_ALWAYS_INLINE nl_fingerprint nl_hash_raw(const nl_hash_seed *seed, const void *data, size_t length) {
    return nl_hash_words(seed, (const unsigned char *)data, length >> 3, nl_hash_tail((const unsigned char *)data, length));
}

NL_ALWAYS_INLINE nl_fingerprint nl_hash_bytes(const nl_hash_seed *seed, const void *data, size_t length) {
    nl_fingerprint fp = nl_hash_raw(seed, data, length);
    fp.lo += fp.lo == 0;
    return fp;
}

/* As nl_hash_bytes of the word's eight little-endian bytes. */
NL_ALWAYS_INLINE nl_fingerprint nl_hash_word(const nl_hash_seed *seed, uint64_t word) {
    unsigned char bytes[8];
    for (int i = 0; i < 8; i++) bytes[i] = (unsigned char)(word >> (8 * i)); /* one store, to a compiler */
    return nl_hash_bytes(seed, bytes, 8);
}

/* The secret of one kind of key, derived from the table's secret. */
static inline nl_hash_seed nl_hash_derive(const uint64_t secret[2], uint64_t kind) {
    nl_hash_seed master = nl_hash_seed_of(secret[0], secret[1]);
    nl_fingerprint k = nl_hash_word(&master, kind);
    return nl_hash_seed_of(k.lo, k.hi);
}

#endif
