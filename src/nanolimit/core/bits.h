/* bits.h: a set of numbers below a bound, and the least of them in a few steps.
 *
 * A bit a number; above it, a bit a word that is not 0; and so on, up to one word. The levels above are only a summary: after
 * whoever changed a word has died, nl_bits_fix makes them agree with it again. Changes happen under the lock of what the
 * set belongs to. The lowest level comes last in memory, so that it can be committed as it grows.
 */
#ifndef NL_BITS_H
#define NL_BITS_H

#include "atomic.h"

enum { NL_BITS_LEVELS = 6 }; /* 64^6 > 2^32 */
#define NL_NO_BIT UINT64_MAX

typedef struct {
    uint64_t *levels[NL_BITS_LEVELS]; /* [0]: a bit a number */
    uint64_t words[NL_BITS_LEVELS];
    int count;
} nl_bits;

static inline uint64_t nl_words_for(uint64_t bits) { return (bits + 63) / 64; }

/* How many words a set of numbers below `bound` takes in all. */
static inline uint64_t nl_bits_words(uint64_t bound) {
    uint64_t sum = 0, words = bound;
    do sum += words = nl_words_for(words);
    while (words > 1);
    return sum;
}

/* Words of zeros are an empty set. */
static inline void nl_bits_lay_out(nl_bits *b, uint64_t *at, uint64_t bound) {
    uint64_t words = bound;
    b->count = 0;
    do b->words[b->count++] = words = nl_words_for(words);
    while (words > 1);
    for (int level = b->count; level--; at += b->words[level]) b->levels[level] = at;
}

/* Makes the levels above agree with word `at` of the lowest. */
static inline void nl_bits_fix(nl_bits *b, uint64_t at) {
    for (int level = 1; level < b->count; level++, at >>= 6) {
        uint64_t *above = &b->levels[level][at >> 6], bit = (uint64_t)1 << (at & 63);
        nl_store64(above, nl_load64(&b->levels[level - 1][at]) ? nl_load64(above) | bit : nl_load64(above) & ~bit);
    }
}

static inline void nl_bits_put(nl_bits *b, uint64_t at, uint64_t word) {
    nl_store64(&b->levels[0][at], word);
    nl_bits_fix(b, at);
}

NL_ALWAYS_INLINE bool nl_bits_has(const nl_bits *b, uint64_t i) { return nl_load64(&b->levels[0][i >> 6]) >> (i & 63) & 1; }
static inline void nl_bits_add(nl_bits *b, uint64_t i) {
    nl_bits_put(b, i >> 6, nl_load64(&b->levels[0][i >> 6]) | (uint64_t)1 << (i & 63));
}
static inline void nl_bits_remove(nl_bits *b, uint64_t i) {
    nl_bits_put(b, i >> 6, nl_load64(&b->levels[0][i >> 6]) & ~((uint64_t)1 << (i & 63)));
}

/* The least number in the set; NL_NO_BIT: it is empty. (A summary that promises what is not there is a damaged file's.) */
static inline uint64_t nl_bits_first(nl_bits *b) {
    for (int tries = 0; tries < 64; tries++) {
        uint64_t at = 0;
        int level = b->count;
        while (level--) {
            uint64_t word = at < b->words[level] ? nl_load64(&b->levels[level][at]) : 0;
            if (!word) break;
            at = at << 6 | nl_lowest_bit64(word);
        }
        if (level < 0) return at;
        if (level == b->count - 1) break;
        for (int above = level + 1; above < b->count; above++, at >>= 6) { /* mend it, and look again */
            uint64_t *word = &b->levels[above][at >> 6];
            nl_store64(word, nl_load64(word) & ~((uint64_t)1 << (at & 63)));
            if (nl_load64(word)) break;
        }
    }
    return NL_NO_BIT;
}

#endif
