/* walk.h: what must look at every key: how many there are, forget all, drop the idle ones. In small steps, holding one
 * segment's lock for 16 buckets at a time; nothing here is called with the GIL held.
 */
#ifndef NL_WALK_H
#define NL_WALK_H

#include "table.h"

enum { NL_WALK_BUCKETS = 16 };

/* Keys with a live stamp, while others go on. */
static inline uint64_t nl_walk_count(const nl_table *t, uint64_t now_ns) {
    nl_now now = nl_rule_now(&t->rule, now_ns);
    uint64_t live = 0;
    uint32_t fresh = nl_load32_acquire(&t->head->slab.fresh);
    for (uint32_t id = 0; id < fresh; id++) {
        const nl_slot *slot = nl_slab_slot(&t->slab, id);
        for (int tries = 0; tries < 100; tries++) {
            uint64_t meta = nl_load64_acquire(&slot->meta);
            nl_log log;
            if (!nl_log_read(&t->rule, &t->chunks, slot, meta, now, &log)) continue;
            if (!nl_log_held(&t->rule, &t->chunks, slot, meta, &log)) continue;
            live += log.used != 0;
            break;
        }
    }
    return live;
}

/* The keys of 16 buckets of a segment, at most NL_WALK_BUCKETS * NL_BUCKET_ENTRIES. Of a private table. */
static inline uint32_t nl_walk_read(nl_table *t, uint32_t number, uint32_t first, nl_fingerprint *fps) {
    const nl_bucket *buckets = nl_segment_buckets(t, number);
    uint32_t n = 0;
    nl_gate_enter(&t->us);
    nl_segment_enter(t, number, NL_WAITING);
    for (uint32_t at = first; t->segments[number].used && at < first + NL_WALK_BUCKETS; at++) {
        for (uint32_t i = 0; i < NL_BUCKET_ENTRIES; i++) {
            if (!(buckets[at].tags[i >> 3] >> 8 * (i & 7) & 0xff)) continue;
            const nl_slot *slot = nl_slab_slot(&t->slab, buckets[at].ids[i]);
            nl_fingerprint fp = {nl_load64(&slot->fingerprint[0]), nl_load64(&slot->fingerprint[1])};
            if (fp.lo) fps[n++] = fp;
        }
    }
    nl_unlock(&t->segments[number].lock);
    nl_gate_leave(&t->us);
    return n;
}

/* Frees keys of 16 buckets of a segment: the idle ones, or all. Returns how many; *busy: some were being used. */
static inline uint32_t nl_walk_step(nl_table *t, uint32_t number, uint32_t first, nl_now now, bool live_too, uint64_t *busy, bool *stalled) {
    uint32_t ids[NL_WALK_BUCKETS * NL_BUCKET_ENTRIES], freed = 0;
    nl_segment *segment = &t->segments[number];
    nl_bucket *buckets = nl_segment_buckets(t, number);
    nl_gate_enter(&t->us);
    if (!nl_segment_enter(t, number, NL_WAITING)) {
        *stalled = true;
        nl_gate_leave(&t->us);
        return 0;
    }
    if (live_too) nl_slab_forget(&t->slab);
    for (uint32_t at = first; segment->used && at < first + NL_WALK_BUCKETS; at++)
        for (uint32_t i = 0; i < NL_BUCKET_ENTRIES; i++) NL_PREFETCH(nl_slab_slot(&t->slab, buckets[at].ids[i]));
    for (uint32_t at = first; segment->used && at < first + NL_WALK_BUCKETS; at++) {
        for (uint32_t i = 0; i < NL_BUCKET_ENTRIES; i++) {
            if (!(buckets[at].tags[i >> 3] >> 8 * (i & 7) & 0xff)) continue;
            uint32_t id = buckets[at].ids[i];
            if (id >= t->slab.most) continue; /* only in a damaged file */
            nl_slot *slot = nl_slab_slot(&t->slab, id);
            uint64_t meta;
            if (!nl_slot_try(&t->us, slot, &meta)) {
                *busy = nl_load64(&slot->meta);
                continue;
            }
            if (!live_too && !nl_slot_is_idle(t, slot, meta, now)) {
                nl_slot_commit(slot, meta);
                continue;
            }
            nl_fingerprint fp = {slot->fingerprint[0], slot->fingerprint[1]};
            nl_free_slot(t, segment, buckets, fp, slot);
            ids[freed++] = id;
        }
    }
    nl_unlock(&segment->lock);
    NL_POINT(walk_freed);
    for (uint32_t i = 0; i < freed; i++) nl_slot_scrub(t, nl_slab_slot(&t->slab, ids[i]));
    if (freed) nl_slab_give(&t->us, &t->slab, ids, freed);
    nl_gate_leave(&t->us);
    return freed;
}

/* *stalled: an owner that lives kept it from some of them. */
static inline uint64_t nl_walk_free(nl_table *t, uint64_t now_ns, bool live_too, bool *stalled) {
    nl_now now = nl_rule_now(&t->rule, now_ns);
    uint64_t freed = 0;
    *stalled = false;
    for (uint32_t number = 0; number < nl_load32_acquire(&t->head->segments); number++) {
        nl_wait w = {0, 0, 0};
        for (uint32_t first = 0; first < NL_SEGMENT_BUCKETS && !*stalled; first += NL_WALK_BUCKETS) {
            uint64_t busy = 0;
            freed += nl_walk_step(t, number, first, now, live_too, &busy, stalled);
            if (!live_too) nl_ask_about(&t->us, nl_meta_owner(busy)); /* the next walk will know */
            if (!busy || !live_too) continue;
            if (nl_wait_on(&t->us, &w, NL_WAITING, busy)) first -= NL_WALK_BUCKETS; /* wraps and comes back */
            else *stalled = true;
        }
    }
    return freed;
}

/* Hands back the pages of empty segments. The only system call under a lock: nothing else keeps an insert away from the
 * page while it goes, and it takes about a microsecond. */
static inline void nl_walk_drop_segments(nl_table *t) {
    const size_t bytes = NL_SEGMENT_BUCKETS * sizeof(nl_bucket);
    if (bytes % t->page_bytes) return; /* segments share pages */
    for (uint32_t number = 0; number < nl_load32_acquire(&t->head->segments); number++) {
        nl_segment *segment = &t->segments[number];
        nl_gate_enter(&t->us);
        nl_segment_enter(t, number, NL_WAITING);
        if (!segment->used && !segment->dropped) {
            nl_drop(nl_segment_buckets(t, number), bytes);
            segment->dropped = 1;
            nl_add32(&t->head->dropped, 1);
        }
        nl_unlock(&segment->lock);
        nl_gate_leave(&t->us);
    }
}

/* Frees the idle keys, or all, and hands the memory back, which a shared table keeps. */
static inline uint64_t nl_walk_evict(nl_table *t, uint64_t now_ns, bool live_too, bool *stalled) {
    uint64_t freed = nl_walk_free(t, now_ns, live_too, stalled);
    if (t->us.members) return freed;
    nl_walk_drop_segments(t);
    nl_slab_drop(&t->us, &t->slab, t->page_bytes);
    nl_chunks_drop(&t->us, &t->chunks, t->page_bytes);
    return freed;
}

/* Takes over whatever the dead still own, and gives back what they had in hand: afterwards no owner word in the table is one of
 * those that were dead when it began. False: an owner that lives kept it from a lock. */
static inline bool nl_walk_mend(nl_table *t) {
    bool whole = true;
    for (uint32_t number = 0; number < t->head->segments; number++) {
        if (!nl_segment_enter(t, number, NL_BRIEFLY)) whole = false;
        else nl_unlock(&t->segments[number].lock);
    }
    if (!nl_slab_lock(&t->us, &t->slab, NL_BRIEFLY)) whole = false;
    else nl_unlock(&t->head->slab.lock);
    if (!nl_chunks_lock(&t->us, &t->chunks, NL_BRIEFLY)) whole = false;
    else nl_unlock(&t->head->chunks.lock);
    uint32_t fresh = nl_load32_acquire(&t->head->slab.fresh);
    for (uint32_t id = 0; id < fresh && id < t->slab.most; id++) {
        nl_slot *slot = nl_slab_slot(&t->slab, id);
        uint64_t meta = nl_load64(&slot->meta);
        uint32_t owner = nl_meta_owner(meta);
        nl_fingerprint fp = {nl_load64_acquire(&slot->fingerprint[0]), nl_load64(&slot->fingerprint[1])};
        if (fp.lo && owner && nl_owner_is_dead(&t->us, owner)) {
            /* in the index, or, if it has no stamps, perhaps not */
            nl_now now = {0, 0};
            bool freed = !nl_meta_count(t->rule.shape, meta) && nl_remove(t, fp, slot, now, false);
            if (freed) nl_slab_give(&t->us, &t->slab, &id, 1);
            else if (nl_slot_try(&t->us, slot, &meta)) nl_slot_commit(slot, meta);
        } else if (!fp.lo && nl_slab_claim(&t->us, &t->slab, id)) {
            nl_slot_scrub(t, slot);
            nl_slab_give(&t->us, &t->slab, &id, 1);
        } else if (!fp.lo && owner && nl_owner_is_dead(&t->us, owner) && nl_slot_try(&t->us, slot, &meta)) {
            nl_slot_commit(slot, meta); /* free, and somebody died who came too late */
        }
    }
    return whole;
}

#endif
