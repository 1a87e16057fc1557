/* slot.h: what is kept of a key: 48 bytes, and how one word of them commits everything.
 *
 *      fingerprint lo, hi | meta                                                  | ring[0..5]
 *      16 bytes           | epoch : 46-2b | count : b | head : b | selector : 2 | owner : 16 |  24 bytes
 *
 * Stamps are ticks (ring.h) of which the ring holds the low 32 bits. `count` of them, from position `head` on, are the log;
 * epoch is T >> 30 of the newest one. A single store of meta publishes a new log and releases its owner, so a thread
 * that dies anywhere leaves either the old log or the new one. Count 0: an empty log, which holds no information.
 *
 * b is as small as the limit allows: 3 bits up to a limit of 7. `nl_shape` says what follows from the limit:
 *
 *   limit <= 6     ring[0..5] is the log                                          selector 0
 *   limit >= 7     ring[0..3] is the log while it has at most 4 stamps            selector 0
 *                  ring[4] or ring[5] refers to a chunk that holds the log        selector 1 or 2: growing writes the other
 *                  (chunk.h)                                                      field, then meta: one store commits
 *                  A field that is not selected is 0, or refers to a chunk that a dead owner left over (chunk.h).
 *   ... and where 46-2b bits of epoch don't reach over all times (limits above 63 with short windows), ring[3] is the
 *   *era*: an epoch at or before the newest stamp's, less than 2^(46-2b) before it, so that the epoch is known in full.
 *
 * Meters (meter.h) and logs of runs (run.h) pass for logs of one stamp. Selector 3 is kept for an extension record.
 */
#ifndef NL_SLOT_H
#define NL_SLOT_H

#include "hash.h"
#include "lock.h"

typedef struct {
    uint64_t fingerprint[2]; /* changes only while the segment's lock and the slot's owner are both held; zeros: a free slot */
    uint64_t meta;
    uint32_t ring[6];
} nl_slot;

enum {
    NL_OWNER_MASK = 0xffff,
    NL_SELECTOR_SHIFT = 16,
    NL_HEAD_SHIFT = 18,
    NL_LIMIT_MOST = 2047, /* of a log that is kept stamp by stamp; above, it is kept in runs (run.h) */
    NL_REFERENCES = 4,    /* ring[4] and ring[5] */
    NL_ERA = 3,           /* ring[3] */
};

typedef struct {
    uint32_t field_mask;  /* of head and of count */
    uint8_t count_shift;
    uint8_t epoch_shift;
    uint8_t inline_stamps; /* how many the slot itself holds */
    uint8_t has_chunks;
    uint8_t has_era;
} nl_shape;

static inline nl_shape nl_shape_of(uint32_t limit, uint64_t tick_ns) {
    nl_shape s;
    uint32_t bits = nl_bit_length32(limit);
    if (bits < 3) bits = 3;
    s.field_mask = (1u << bits) - 1;
    s.count_shift = (uint8_t)(NL_HEAD_SHIFT + bits);
    s.epoch_shift = (uint8_t)(NL_HEAD_SHIFT + 2 * bits);
    s.has_chunks = limit > 6;
    /* Times are below 2^62 ns, so epochs need 62 - 30 - log2(tick) bits, and one for the sign of a difference. */
    uint32_t tick_bits = tick_ns >> 31 ? 31 : nl_bit_length32((uint32_t)tick_ns) - 1;
    s.has_era = 64u - s.epoch_shift + tick_bits < 33;
    s.inline_stamps = !s.has_chunks ? 6 : s.has_era ? 3 : 4;
    return s;
}

NL_ALWAYS_INLINE uint32_t nl_meta_owner(uint64_t meta) { return (uint32_t)meta & NL_OWNER_MASK; }
NL_ALWAYS_INLINE uint32_t nl_meta_selector(uint64_t meta) { return (uint32_t)(meta >> NL_SELECTOR_SHIFT) & 3; }
NL_ALWAYS_INLINE uint32_t nl_meta_head(nl_shape s, uint64_t meta) { return (uint32_t)(meta >> NL_HEAD_SHIFT) & s.field_mask; }
NL_ALWAYS_INLINE uint32_t nl_meta_count(nl_shape s, uint64_t meta) { return (uint32_t)(meta >> s.count_shift) & s.field_mask; }

/* A meta word without an owner. The epoch may be given in full: only its low bits are kept. */
NL_ALWAYS_INLINE uint64_t nl_meta_of(nl_shape s, uint32_t selector, uint32_t head, uint32_t count, uint64_t epoch) {
    return (uint64_t)selector << NL_SELECTOR_SHIFT | (uint64_t)head << NL_HEAD_SHIFT | (uint64_t)count << s.count_shift |
           epoch << s.epoch_shift;
}

/* How many epochs `epoch` (in full) is after the one of the slot's newest stamp. Negative: the clock went back. */
NL_ALWAYS_INLINE int64_t nl_slot_epochs_since(nl_shape s, const nl_slot *slot, uint64_t meta, uint64_t epoch) {
    if (NL_UNLIKELY(s.has_era)) {
        uint64_t era = nl_load32(&slot->ring[NL_ERA]);
        uint64_t kept = ~(uint64_t)0 >> s.epoch_shift;
        return (int64_t)(epoch - (era + (((meta >> s.epoch_shift) - era) & kept)));
    }
    return (int64_t)((epoch - (meta >> s.epoch_shift)) << s.epoch_shift) >> s.epoch_shift;
}

/* --- the slot as a lock ----------------------------------------------------------------------------------------- */

/* Takes the slot; *meta is then what was published, without the owner. A dead owner left a consistent log: taking the word
 * over is all the repair there is. */
NL_ALWAYS_INLINE bool nl_slot_try(const nl_party *us, nl_slot *slot, uint64_t *meta) {
    uint64_t seen = nl_load64(&slot->meta);
    uint32_t owner = nl_meta_owner(seen);
    if (NL_UNLIKELY(owner) && !nl_owner_is_dead(us, owner)) return false;
    *meta = seen & ~(uint64_t)NL_OWNER_MASK;
    return nl_cas64(&slot->meta, seen, *meta | nl_me(us));
}

static NL_NOINLINE bool nl_slot_wait(const nl_party *us, nl_slot *slot, uint64_t *meta, nl_patience patience) {
    nl_wait w = {0, 0, 0};
    while (nl_wait_on(us, &w, patience, nl_load64(&slot->meta)))
        if (nl_slot_try(us, slot, meta)) return true;
    return false;
}

/* Takes the slot, waiting for it with so much patience. */
NL_ALWAYS_INLINE bool nl_slot_take(const nl_party *us, nl_slot *slot, uint64_t *meta, nl_patience patience) {
    return NL_LIKELY(nl_slot_try(us, slot, meta)) || nl_slot_wait(us, slot, meta, patience);
}

/* Publishes `meta` and lets go of the slot, in one store. Everything written before is seen by whoever sees it. */
NL_ALWAYS_INLINE void nl_slot_commit(nl_slot *slot, uint64_t meta) { nl_store64_release(&slot->meta, meta); }

/* Publishes `meta` and keeps the slot. The fence holds all later stores back behind it. */
NL_ALWAYS_INLINE void nl_slot_publish(const nl_party *us, nl_slot *slot, uint64_t meta) {
    nl_store64_release(&slot->meta, meta | nl_me(us));
    nl_fence_release();
}

NL_ALWAYS_INLINE bool nl_slot_is(const nl_slot *slot, nl_fingerprint fp) {
    return nl_load64_acquire(&slot->fingerprint[0]) == fp.lo && nl_load64(&slot->fingerprint[1]) == fp.hi;
}

#endif
