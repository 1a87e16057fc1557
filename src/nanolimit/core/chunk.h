/* chunk.h: where logs live that don't fit into a slot.
 *
 * A chunk holds 8, 16, 32 ... 2,048 stamps: class 0 .. 8. Chunks of one class fill spans of 16 KiB; a span is taken by a class
 * when that class has no free chunk, and is nobody's again when its last chunk is freed. What is said of a span (class,
 * free chunks) stands outside it, so a span's pages can go back to the system. Sets of spans (bits.h) say which is nobody's, and
 * which of a class has a free chunk; they only repeat what the spans say.
 *
 * A reference is class : 4 | index : 28, the index counting chunks of that class from the region's start. 0 is no reference:
 * the first span is never used.
 *
 * A chunk is free, or one field refers to it: one of the two reference fields of a slot (slot.h) or, where logs come in pieces, one in
 * another chunk (run.h). Fields that are not published change under the chunks' lock only. Taking marks the chunk and writes the
 * field, giving does it the other way round, and `intent` says
 * meanwhile which chunk and which field. Who inherits the lock ends what was begun: with the chunk free and the field 0. A chunk
 * whose slot's owner died later, before its log was there or after it had moved on, stays in its field, and is given back when
 * that log next moves or goes.
 */
#ifndef NL_CHUNK_H
#define NL_CHUNK_H

#include "bits.h"
#include "memory.h"
#include "ring.h"
#include "slot.h"

enum {
    NL_CHUNK_CLASSES = 9,
    NL_CHUNK_LEAST_SHIFT = 3,              /* class 0: 2^3 stamps */
    NL_CHUNK_UNIT_SHIFT = 5,               /* ... in 2^5 bytes */
    NL_SPAN_SHIFT = 14,                    /* a span is 2^14 bytes */
    NL_SPAN_UNITS = 1 << (NL_SPAN_SHIFT - NL_CHUNK_UNIT_SHIFT),
    NL_SPAN_WORDS = NL_SPAN_UNITS / 64,
    NL_CHUNK_INDEX_BITS = 28,
    NL_SPAN_SETS = NL_CHUNK_CLASSES + 2,   /* one a class: spans with some free chunks; then the two below */
    NL_SPANS_EMPTY = NL_CHUNK_CLASSES,     /* nobody's */
    NL_SPANS_DROPPED = NL_CHUNK_CLASSES + 1, /* of them, those whose pages were handed back: taken last */
};

typedef struct {
    uint64_t class_;                    /* 1 + the class whose chunks it holds; 0: nobody's */
    uint64_t free_bits[NL_SPAN_WORDS];
} nl_span;

typedef struct {
    nl_lock lock;
    uint32_t used;                      /* spans 1 .. used have been taken from the region; later ones are untouched */
    uint32_t dropped;                   /* of them, in the set of dropped ones */
    uint32_t busy;                      /* of them, some class's; one too many for each death at one place */
    uint64_t intent;                    /* slot : 31 | field : 1 | reference : 32; NL_INTENT_INSIDE | reference : 32; or 0 */
    uint64_t inside;                    /* with NL_INTENT_INSIDE: which word of the chunks is the field */
    uint64_t takes;                     /* how often a root of runs was taken: it says so (run.h) */
} nl_chunk_state;

/* Only files need their intent, and these have fewer slots. */
#define NL_INTENT_INSIDE ((uint64_t)1 << 63)

typedef struct {                        /* where this process finds them */
    nl_chunk_state *state;
    nl_region spans;                    /* nl_span each */
    nl_region sets_region;
    nl_region chunks;
    nl_slot *slots;                     /* whose fields refer to chunks */
    uint32_t slots_most;
    nl_bits sets[NL_SPAN_SETS];
} nl_chunks;

/* What taking may say in place of a reference. */
#define NL_CHUNK_NONE 0u
#define NL_CHUNK_UNCOMMITTED 0xffffffffu
#define NL_CHUNK_BUSY 0xfffffffeu

static inline uint64_t nl_chunk_set_bytes(uint64_t chunk_bytes) {
    return chunk_bytes ? NL_SPAN_SETS * 8 * nl_bits_words(chunk_bytes >> NL_SPAN_SHIFT) : 0;
}

static inline void nl_chunks_lay_out(nl_chunks *chunks, nl_slot *slots, uint32_t slots_most) {
    uint64_t spans = chunks->chunks.bytes >> NL_SPAN_SHIFT;
    chunks->slots = slots;
    chunks->slots_most = slots_most;
    for (uint64_t set = 0; spans && set < NL_SPAN_SETS; set++)
        nl_bits_lay_out(&chunks->sets[set], (uint64_t *)(void *)chunks->sets_region.base + set * nl_bits_words(spans), spans);
}

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

/* The bits that a class's chunks have in word i of a span that has them all free. */
NL_ALWAYS_INLINE uint64_t nl_span_full_word(uint32_t class_, uint32_t i) {
    uint32_t chunks_in_span = NL_SPAN_UNITS >> class_;
    return chunks_in_span >= 64 * (i + 1) ? ~(uint64_t)0 : chunks_in_span > 64 * i ? ((uint64_t)1 << (chunks_in_span - 64 * i)) - 1 : 0;
}

typedef struct {
    uint32_t class_, span, bit;
} nl_chunk_place;

/* False: there is no such chunk. */
static inline bool nl_chunk_find(const nl_chunks *chunks, uint32_t reference, nl_chunk_place *place) {
    place->class_ = reference >> NL_CHUNK_INDEX_BITS;
    if (place->class_ >= NL_CHUNK_CLASSES) return false;
    uint32_t index = reference & ((1u << NL_CHUNK_INDEX_BITS) - 1), shift = NL_SPAN_SHIFT - NL_CHUNK_UNIT_SHIFT - place->class_;
    place->span = index >> shift;
    place->bit = index & ((1u << shift) - 1);
    return place->span && place->span <= nl_load32(&chunks->state->used) && place->span < chunks->chunks.bytes >> NL_SPAN_SHIFT;
}

/* Puts a span, after one of its chunks of that class came or went, into the sets that it belongs to. Under the lock. */
static inline void nl_span_file(nl_chunks *chunks, uint32_t at, uint32_t class_) {
    nl_span *span = nl_span_at(chunks, at);
    bool some = false, all = true, named = span->class_ == class_ + 1;
    for (uint32_t i = 0; i < NL_SPAN_WORDS; i++) {
        uint64_t full = nl_span_full_word(class_, i), free_bits = nl_load64(&span->free_bits[i]) & full;
        some |= free_bits != 0;
        all &= free_bits == full;
    }
    if (named && all) {
        nl_store64(&span->class_, 0);
        nl_store32(&chunks->state->busy, chunks->state->busy - 1);
        named = false;
    }
    if (named && some) nl_bits_add(&chunks->sets[class_], at);
    else nl_bits_remove(&chunks->sets[class_], at);
    if (!span->class_) nl_bits_add(&chunks->sets[NL_SPANS_EMPTY], at);
    else nl_bits_remove(&chunks->sets[NL_SPANS_EMPTY], at);
}

static inline void nl_chunk_set_free(nl_chunks *chunks, const nl_chunk_place *place) {
    nl_span *span = nl_span_at(chunks, place->span);
    uint64_t *word = &span->free_bits[place->bit / 64];
    if (span->class_ == place->class_ + 1) nl_store64(word, nl_load64(word) | (uint64_t)1 << place->bit % 64);
    nl_span_file(chunks, place->span, place->class_);
}

/* `inside`: the field is a chunk's, not a slot's. */
NL_ALWAYS_INLINE void nl_chunk_intend(nl_chunks *chunks, uint32_t *field, uint32_t reference, bool inside) {
    if (inside) {
        nl_store64(&chunks->state->inside, (uint64_t)(field - (uint32_t *)(void *)chunks->chunks.base));
        nl_store64_release(&chunks->state->intent, NL_INTENT_INSIDE | reference);
        nl_fence_release();
        return;
    }
    uint64_t word = (uint64_t)(field - (uint32_t *)(void *)chunks->slots), slot = word / (sizeof(nl_slot) / 4);
    uint64_t second = word - slot * (sizeof(nl_slot) / 4) != offsetof(nl_slot, ring) / 4 + NL_REFERENCES;
    nl_store64_release(&chunks->state->intent, slot << 33 | second << 32 | reference);
    nl_fence_release();
}

/* Ends what a dead owner of the lock had begun. */
static NL_COLD void nl_chunks_mend(nl_chunks *chunks) {
    uint64_t intent = nl_load64(&chunks->state->intent), slot = intent >> 33, word = nl_load64(&chunks->state->inside);
    const bool inside = intent & NL_INTENT_INSIDE;
    nl_chunk_place place;
    NL_POINT(repair_began);
    if (intent && (inside ? word < chunks->chunks.bytes / 4 : slot < chunks->slots_most) &&
        nl_chunk_find(chunks, (uint32_t)intent, &place)) {
        uint32_t *field = (uint32_t *)(void *)chunks->chunks.base + word;
        if (!inside) field = &chunks->slots[slot].ring[NL_REFERENCES + (intent >> 32 & 1)];
        nl_chunk_set_free(chunks, &place);
        if (nl_load32(field) == (uint32_t)intent) nl_store32(field, 0);
    }
    nl_store64_release(&chunks->state->intent, 0);
    NL_POINT(repair_done);
}

static inline bool nl_chunks_lock(const nl_party *us, nl_chunks *chunks, nl_patience patience) {
    nl_taking taking = nl_lock_take(us, &chunks->state->lock, patience);
    if (NL_UNLIKELY(taking == NL_INHERITED)) nl_chunks_mend(chunks);
    return taking != NL_BUSY;
}

/* A span with a free chunk of a class. Under the lock. 0: no room; NL_CHUNK_UNCOMMITTED: call nl_chunks_commit first. */
static inline uint32_t nl_span_choose(nl_chunks *chunks, uint32_t class_) {
    nl_chunk_state *state = chunks->state;
    const int sets[] = {(int)class_, NL_SPANS_EMPTY, NL_SPANS_DROPPED};
    for (int i = 0; i < 3; i++) {
        uint64_t at = nl_bits_first(&chunks->sets[sets[i]]);
        if (at && at <= state->used) return (uint32_t)at; /* (NL_NO_BIT is above all) */
    }
    uint64_t at = (uint64_t)state->used + 1, end = (at + 1) << NL_SPAN_SHIFT;
    if (end > chunks->chunks.bytes || end > (uint64_t)1 << (NL_CHUNK_INDEX_BITS + NL_CHUNK_UNIT_SHIFT + class_)) return 0;
    if (end > nl_load64(&chunks->chunks.committed) || (at + 1) * sizeof(nl_span) > nl_load64(&chunks->spans.committed))
        return NL_CHUNK_UNCOMMITTED;
    return (uint32_t)at;
}

/* Gives a span without a class the class whose chunks it shall hold. */
static inline void nl_span_name(nl_chunks *chunks, uint32_t at, uint32_t class_) {
    nl_span *span = nl_span_at(chunks, at);
    if (nl_bits_has(&chunks->sets[NL_SPANS_DROPPED], at)) {
        nl_bits_remove(&chunks->sets[NL_SPANS_DROPPED], at);
        nl_store32(&chunks->state->dropped, chunks->state->dropped - 1);
    }
    if (at > chunks->state->used) nl_store32(&chunks->state->used, at);
    for (uint32_t i = 0; i < NL_SPAN_WORDS; i++) nl_store64(&span->free_bits[i], nl_span_full_word(class_, i));
    nl_fence_release();
    nl_store32(&chunks->state->busy, chunks->state->busy + 1); /* first: it may come to be too high, never below 0 */
    nl_store64(&span->class_, class_ + 1);
    NL_POINT(chunk_span_named);
}

/* Makes the first words of a chunk that is being taken zeros, before any field refers to it; at `life` (0: nowhere) it says twice the
 * number of the taking. Under the lock. */
static inline void nl_chunk_clear(nl_chunks *chunks, uint32_t reference, uint32_t words, uint32_t life) {
    uint32_t *at = nl_chunk_ring(chunks, reference).stamps;
    nl_fence_release(); /* it may have been another log's: whoever still reads it there sees that log's meta change */
    for (uint32_t i = 0; i < words; i++) nl_store32(&at[i], 0);
    if (life) {
        nl_store64(&chunks->state->takes, chunks->state->takes + 1);
        nl_store32(&at[life], (uint32_t)chunks->state->takes << 1);
    }
    nl_fence_release();
}

/* Takes a chunk and writes its reference into an unpublished field of a slot that one owns, or (inside) of a chunk of its log. `clear`,
 * `life`: as above. The reference, or NL_CHUNK_NONE, NL_CHUNK_UNCOMMITTED or NL_CHUNK_BUSY. Within the gate. */
NL_ALWAYS_INLINE uint32_t nl_chunk_take_as(const nl_party *us, nl_chunks *chunks, uint32_t *field, uint32_t class_, nl_patience patience,
                                           bool inside, uint32_t clear, uint32_t life) {
    if (!nl_chunks_lock(us, chunks, patience)) return NL_CHUNK_BUSY;
    uint32_t at = nl_span_choose(chunks, class_), reference = at;
    if (at && at != NL_CHUNK_UNCOMMITTED) {
        nl_span *span = nl_span_at(chunks, at);
        bool unnamed = at > chunks->state->used || !span->class_;
        uint32_t word = 0;
        if (!unnamed)
            while (word < NL_SPAN_WORDS && !(span->free_bits[word] & nl_span_full_word(class_, word))) word++;
        if (word == NL_SPAN_WORDS || (!unnamed && span->class_ != class_ + 1)) { /* only a damaged file has such */
            nl_bits_remove(&chunks->sets[class_], at);
            nl_bits_remove(&chunks->sets[NL_SPANS_EMPTY], at);
            nl_bits_remove(&chunks->sets[NL_SPANS_DROPPED], at);
            nl_unlock(&chunks->state->lock);
            return NL_CHUNK_NONE;
        }
        uint32_t bit = unnamed ? 0 : 64 * word + nl_lowest_bit64(span->free_bits[word] & nl_span_full_word(class_, word));
        reference = class_ << NL_CHUNK_INDEX_BITS | ((at << (NL_SPAN_SHIFT - NL_CHUNK_UNIT_SHIFT - class_)) + bit);
        nl_chunk_intend(chunks, field, reference, inside);
        NL_POINT(chunk_take_intent);
        if (unnamed) nl_span_name(chunks, at, class_);
        nl_store64(&span->free_bits[bit / 64], span->free_bits[bit / 64] & ~((uint64_t)1 << bit % 64));
        NL_POINT(chunk_take_cleared);
        nl_span_file(chunks, at, class_);
        if (clear) nl_chunk_clear(chunks, reference, clear, life);
        nl_store32(field, reference);
        nl_store64_release(&chunks->state->intent, 0);
    }
    nl_unlock(&chunks->state->lock);
    NL_POINT(chunk_taken);
    return reference;
}

static inline uint32_t nl_chunk_take(const nl_party *us, nl_chunks *chunks, uint32_t *field, uint32_t class_, nl_patience patience) {
    return nl_chunk_take_as(us, chunks, field, class_, patience, false, 0, 0);
}

/* Gives back what an unpublished field of a slot that one owns, or of a chunk of its log, refers to, if to anything. Within the gate,
 * after the publication that left the chunk behind. Whoever can't have the lock leaves it there. */
NL_ALWAYS_INLINE void nl_chunk_give_as(const nl_party *us, nl_chunks *chunks, uint32_t *field, bool inside) {
    nl_chunk_place place;
    if (NL_LIKELY(!nl_load32(field)) || !nl_chunks_lock(us, chunks, NL_BRIEFLY)) return;
    uint32_t reference = nl_load32(field);
    if (reference && nl_chunk_find(chunks, reference, &place)) {
        NL_ASSERT(us->members || nl_span_at(chunks, place.span)->class_ == place.class_ + 1);
        NL_ASSERT(us->members || !(nl_span_at(chunks, place.span)->free_bits[place.bit / 64] >> place.bit % 64 & 1));
        nl_chunk_intend(chunks, field, reference, inside);
        NL_POINT(chunk_give_intent);
        nl_chunk_set_free(chunks, &place);
        NL_POINT(chunk_give_set);
    }
    nl_store32(field, 0);
    nl_store64_release(&chunks->state->intent, 0);
    nl_unlock(&chunks->state->lock);
}

static inline void nl_chunk_give(const nl_party *us, nl_chunks *chunks, uint32_t *field) { nl_chunk_give_as(us, chunks, field, false); }

/* Makes room for one more span. With nothing held. False: there is none. */
static inline bool nl_chunks_commit(nl_chunks *chunks, size_t page_bytes) {
    uint64_t spans = (uint64_t)nl_load32(&chunks->state->used) + 2;
    return nl_region_commit(&chunks->spans, spans * sizeof(nl_span), page_bytes) &&
           nl_region_commit(&chunks->chunks, spans << NL_SPAN_SHIFT, page_bytes);
}

/* Hands the pages of spans that are nobody's back to the system, one span at a time, in no set meanwhile. A private table's only. */
static inline void nl_chunks_drop(const nl_party *us, nl_chunks *chunks, size_t page_bytes) {
    nl_chunk_state *state = chunks->state;
    if (page_bytes > (size_t)1 << NL_SPAN_SHIFT || !chunks->chunks.bytes) return; /* no span has a page of its own */
    for (bool more = true; more;) {
        nl_gate_enter(us);
        nl_chunks_lock(us, chunks, NL_WAITING);
        uint64_t at = nl_bits_first(&chunks->sets[NL_SPANS_EMPTY]);
        if ((more = at != NL_NO_BIT)) nl_bits_remove(&chunks->sets[NL_SPANS_EMPTY], at);
        nl_unlock(&state->lock);
        if (more) {
            nl_drop(chunks->chunks.base + (at << NL_SPAN_SHIFT), (size_t)1 << NL_SPAN_SHIFT);
            nl_chunks_lock(us, chunks, NL_WAITING);
            nl_bits_add(&chunks->sets[NL_SPANS_DROPPED], at);
            nl_store32(&state->dropped, state->dropped + 1);
            nl_unlock(&state->lock);
        }
        nl_gate_leave(us);
    }
}

#endif
