/* tags.h: which of a bucket's twelve tags equal one? In one step where the processor has 16-byte vectors, else in words.
 *
 * The answer is a set of bits: nl_first_hit tells the place of the lowest, hits &= hits - 1 leaves the rest.
 */
#ifndef NL_TAGS_H
#define NL_TAGS_H

#include "atomic.h"

enum { NL_BUCKET_ENTRIES = 12 };

#if (defined(__SSE2__) || defined(_M_X64)) && !defined(NL_PORTABLE_TAGS)
#include <emmintrin.h>

/* Bit i: place i. The two words are read at once; readers without a lock may get one old and one new, as they may anyway. */
NL_ALWAYS_INLINE uint64_t nl_tags_match(const uint64_t tags[2], uint32_t tag) {
    __m128i all = _mm_loadu_si128((const __m128i *)(const void *)tags);
    return (uint64_t)_mm_movemask_epi8(_mm_cmpeq_epi8(all, _mm_set1_epi8((char)tag))) & ((1u << NL_BUCKET_ENTRIES) - 1);
}
NL_ALWAYS_INLINE uint32_t nl_first_hit(uint64_t hits) { return nl_lowest_bit64(hits); }

#else

#define NL_BYTES(x) (0x0101010101010101u * (uint64_t)(x))
NL_ALWAYS_INLINE uint64_t nl_zero_bytes(uint64_t word) { /* 0x80 in each byte that is 0; exact */
    return ~(((word & NL_BYTES(0x7f)) + NL_BYTES(0x7f)) | word | NL_BYTES(0x7f));
}
/* Bit 8i+7: place i of the first eight; bit 8i+3: place 8+i. */
NL_ALWAYS_INLINE uint64_t nl_tags_match(const uint64_t tags[2], uint32_t tag) {
    uint64_t first = nl_load64(&tags[0]) ^ NL_BYTES(tag), second = nl_load64(&tags[1]) ^ NL_BYTES(tag);
    return nl_zero_bytes(first) | (nl_zero_bytes(second) & 0x80808080u) >> 4;
}
NL_ALWAYS_INLINE uint32_t nl_first_hit(uint64_t hits) {
    uint32_t bit = nl_lowest_bit64(hits);
    return (bit >> 3) + 8 - ((bit & 4) << 1);
}

#endif

#endif
