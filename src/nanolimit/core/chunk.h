/* chunk.h: where logs live that don't fit into a slot.
 *
 * A chunk holds 8, 16, 32 ... 2,048 stamps: class 0 .. 8. Chunks of one class fill spans of 16 KiB; a span is taken by a class
 * when that class has no free chunk, and is nobody's again when its last chunk is freed. What is said of a span (class,
 * free chunks) stands outside it, so a span's pages can go back to the system. Taking and freeing are a few steps under one
 * lock, whatever the number of chunks.
 *
 * A reference is class : 4 | index : 28, the index counting chunks of that class from the region's start. 0 is no reference:
 * the first span is never used.
 */
#ifndef NL_CHUNK_H
#define NL_CHUNK_H

#include "lock.h"
#include "memory.h"
#include "ring.h"

enum {
    NL_CHUNK_CLASSES = 9,
    NL_CHUNK_LEAST_SHIFT = 3,              /* class 0: 2^3 stamps */
    NL_CHUNK_UNIT_SHIFT = 5,               /* ... in 2^5 bytes */
    NL_SPAN_SHIFT = 14,                    /* a span is 2^14 bytes */
    NL_SPAN_UNITS = 1 << (NL_SPAN_SHIFT - NL_CHUNK_UNIT_SHIFT),
    NL_CHUNK_INDEX_BITS = 28,
    NL_SPAN_LISTS = NL_CHUNK_CLASSES + 2,  /* one a class: spans with a free chunk; then the two below */
    NL_SPANS_EMPTY = NL_CHUNK_CLASSES,     /* nobody's, their pages still ours */
    NL_SPANS_DROPPED = NL_CHUNK_CLASSES + 1,
};

typedef struct {
    uint32_t next, previous;            /* spans in the same list; 0 ends it */
    uint16_t free_chunks;
    uint16_t class_;
    uint32_t listed;                    /* 0, or 1 + the list that it stands in */
    uint64_t free_bits[NL_SPAN_UNITS / 64];
} nl_span;

typedef struct {
    nl_lock lock;
    uint32_t used;                      /* spans 1 .. used have been taken from the region; later ones are untouched */
    uint32_t dropped;                   /* of them, in the list of dropped ones */
    uint32_t first[NL_SPAN_LISTS];
} nl_chunk_state;

typedef struct {                        /* where this process finds them */
    nl_chunk_state *state;
    nl_region spans;                    /* nl_span each */
    nl_region chunks;
} nl_chunks;

enum { NL_CHUNK_NONE = 0, NL_CHUNK_UNCOMMITTED = (int)0xffffffff }; /* what taking may say in place of a reference */

NL_ALWAYS_INLINE uint32_t nl_chunk_class_of(uint32_t stamps) { /* the least class that holds so many */
    uint32_t bits = nl_bit_length32(stamps - 1);
    return bits <= NL_CHUNK_LEAST_SHIFT ? 0 : bits - NL_CHUNK_LEAST_SHIFT;
}

/* Range-checked before it is followed: a reference read without a lock may be anything. */
NL_ALWAYS_INLINE nl_ring nl_chunk_ring(const nl_chunks *chunks, uint32_t reference) {
    nl_ring none = {NULL, 0};
    uint32_t class_ = reference >> NL_CHUNK_INDEX_BITS;
    uint64_t at = (uint64_t)(reference & ((1u << NL_CHUNK_INDEX_BITS) - 1)) << (NL_CHUNK_UNIT_SHIFT + class_);
    uint64_t bytes = (uint64_t)1 << (NL_CHUNK_UNIT_SHIFT + class_);
    if (NL_UNLIKELY(class_ >= NL_CHUNK_CLASSES || at + bytes > nl_load64(&chunks->chunks.committed))) return none;
    nl_ring ring = {(uint32_t *)(void *)(chunks->chunks.base + at), 1u << (NL_CHUNK_LEAST_SHIFT + class_)};
    return ring;
}

NL_ALWAYS_INLINE nl_span *nl_span_at(const nl_chunks *chunks, uint32_t span) {
    return &((nl_span *)(void *)chunks->spans.base)[span];
}

static inline void nl_span_unlist(nl_chunks *chunks, uint32_t at) {
    nl_span *span = nl_span_at(chunks, at);
    if (span->previous) nl_span_at(chunks, span->previous)->next = span->next;
    else chunks->state->first[span->listed - 1] = span->next;
    if (span->next) nl_span_at(chunks, span->next)->previous = span->previous;
    span->listed = 0;
}

static inline void nl_span_list(nl_chunks *chunks, uint32_t at, uint32_t list) {
    nl_span *span = nl_span_at(chunks, at);
    span->previous = 0;
    span->next = chunks->state->first[list];
    if (span->next) nl_span_at(chunks, span->next)->previous = at;
    chunks->state->first[list] = at;
    span->listed = list + 1;
}

/* A span for a class that has no free chunk. Under the lock. 0: no room; NL_CHUNK_UNCOMMITTED: call nl_chunks_commit first. */
static inline uint32_t nl_span_take(nl_chunks *chunks, uint32_t class_) {
    nl_chunk_state *state = chunks->state;
    uint32_t at = state->first[NL_SPANS_EMPTY];
    if (!at && (at = state->first[NL_SPANS_DROPPED])) nl_store32(&state->dropped, state->dropped - 1);
    if (at) {
        nl_span_unlist(chunks, at);
    } else {
        at = state->used + 1;
        uint64_t end = ((uint64_t)at + 1) << NL_SPAN_SHIFT;
        if (end > chunks->chunks.bytes || end > (uint64_t)1 << (NL_CHUNK_INDEX_BITS + NL_CHUNK_UNIT_SHIFT + class_)) return 0;
        if (end > nl_load64(&chunks->chunks.committed) || ((uint64_t)at + 1) * sizeof(nl_span) > nl_load64(&chunks->spans.committed))
            return (uint32_t)NL_CHUNK_UNCOMMITTED;
        nl_store32(&state->used, at);
    }
    nl_span *span = nl_span_at(chunks, at);
    uint32_t chunks_in_span = NL_SPAN_UNITS >> class_;
    span->class_ = (uint16_t)class_;
    span->free_chunks = (uint16_t)chunks_in_span;
    for (uint32_t i = 0; i < NL_SPAN_UNITS / 64; i++)
        span->free_bits[i] = chunks_in_span >= 64 * (i + 1) ? ~(uint64_t)0
                             : chunks_in_span > 64 * i      ? ((uint64_t)1 << (chunks_in_span - 64 * i)) - 1
                                                            : 0;
    nl_span_list(chunks, at, class_);
    return at;
}

/* A chunk's reference, or NL_CHUNK_NONE, or NL_CHUNK_UNCOMMITTED. Within the gate; may be called owning a slot. */
static inline uint32_t nl_chunk_take(nl_chunks *chunks, uint32_t class_) {
    nl_chunk_state *state = chunks->state;
    nl_lock_wait(&state->lock);
    uint32_t at = state->first[class_], reference = NL_CHUNK_NONE;
    if (!at) at = nl_span_take(chunks, class_);
    if (at == (uint32_t)NL_CHUNK_UNCOMMITTED) reference = at;
    else if (at) {
        nl_span *span = nl_span_at(chunks, at);
        uint32_t word = 0;
        while (!span->free_bits[word]) word++;
        uint32_t bit = nl_lowest_bit64(span->free_bits[word]);
        span->free_bits[word] &= span->free_bits[word] - 1;
        if (!--span->free_chunks) nl_span_unlist(chunks, at);
        reference = class_ << NL_CHUNK_INDEX_BITS | ((at << (NL_SPAN_SHIFT - NL_CHUNK_UNIT_SHIFT - class_)) + 64 * word + bit);
    }
    nl_unlock(&state->lock);
    return reference;
}

/* Within the gate, after the commit that left the chunk behind. */
static inline void nl_chunk_give(nl_chunks *chunks, uint32_t reference) {
    nl_chunk_state *state = chunks->state;
    uint32_t class_ = reference >> NL_CHUNK_INDEX_BITS, index = reference & ((1u << NL_CHUNK_INDEX_BITS) - 1);
    uint32_t per_span_shift = NL_SPAN_SHIFT - NL_CHUNK_UNIT_SHIFT - class_;
    uint32_t at = index >> per_span_shift, bit = index & ((1u << per_span_shift) - 1);
    nl_lock_wait(&state->lock);
    nl_span *span = nl_span_at(chunks, at);
    NL_ASSERT(span->class_ == class_ && !(span->free_bits[bit / 64] >> bit % 64 & 1));
    span->free_bits[bit / 64] |= (uint64_t)1 << bit % 64;
    if (!span->free_chunks++) nl_span_list(chunks, at, class_);
    if (span->free_chunks == NL_SPAN_UNITS >> class_) {
        nl_span_unlist(chunks, at);
        nl_span_list(chunks, at, NL_SPANS_EMPTY);
    }
    nl_unlock(&state->lock);
}

/* Makes room for one more span. With nothing held. False: there is none. */
static inline bool nl_chunks_commit(nl_chunks *chunks, size_t page_bytes) {
    uint64_t spans = (uint64_t)nl_load32(&chunks->state->used) + 2;
    return nl_region_commit(&chunks->spans, spans * sizeof(nl_span), page_bytes) &&
           nl_region_commit(&chunks->chunks, spans << NL_SPAN_SHIFT, page_bytes);
}

/* Hands the pages of spans that are nobody's back to the system, one span at a time, off its list meanwhile. */
static inline void nl_chunks_drop(nl_chunks *chunks, size_t page_bytes) {
    nl_chunk_state *state = chunks->state;
    if (page_bytes > (size_t)1 << NL_SPAN_SHIFT) return; /* no span has a page of its own */
    for (uint32_t at = 1; at;) {
        nl_gate_enter();
        nl_lock_wait(&state->lock);
        if ((at = state->first[NL_SPANS_EMPTY])) nl_span_unlist(chunks, at);
        nl_unlock(&state->lock);
        if (at) {
            nl_drop(chunks->chunks.base + ((uint64_t)at << NL_SPAN_SHIFT), (size_t)1 << NL_SPAN_SHIFT);
            nl_lock_wait(&state->lock);
            nl_span_list(chunks, at, NL_SPANS_DROPPED);
            nl_store32(&state->dropped, state->dropped + 1);
            nl_unlock(&state->lock);
        }
        nl_gate_leave();
    }
}

#endif
