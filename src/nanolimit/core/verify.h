/* verify.h: does every invariant hold? For tests: it walks everything, and nobody else may be at the table meanwhile.
 *
 *   index    each entry's slot has a fingerprint that belongs into that segment and can be found; `used` and `passed` agree
 *            with the entries; each directory entry leads to the segment that covers it
 *   slots    each slot is in the index, or free and all zeros, once; nobody owns one. In a shared table dead owners may have left
 *            orphans, which hold no stamps
 *   logs     head and count lie within their ring; stamps ascend and are within a window of the newest; no more than the limit
 *   meters   one stamp, at one of the two places; units and fractions below what they are counted against; not without any
 *   runs     ticks ascend, and so do totals; all of their pieces are there; no more units than the limit
 *   chunks   each chunk belongs to one log or is free; in a shared table one may be left over in a field that is not selected
 */
#ifndef NL_VERIFY_H
#define NL_VERIFY_H

#include <stdio.h>
#include <stdlib.h>

#include "table.h"

#define NL_BROKEN(...) return snprintf(message, bytes, __VA_ARGS__), message

static inline const char *nl_verify_chunk(const nl_table *t, uint32_t id, uint32_t reference, uint64_t *chunks, char *message,
                                          size_t bytes) {
    nl_chunk_place place;
    nl_ring ring = nl_chunk_ring(&t->chunks, reference);
    if (!nl_chunk_find(&t->chunks, reference, &place)) NL_BROKEN("slot %u refers to a chunk that there is not: %x", id, reference);
    nl_span *span = nl_span_at(&t->chunks, place.span);
    uint64_t unit = (uint64_t)((unsigned char *)ring.stamps - t->chunks.chunks.base) >> NL_CHUNK_UNIT_SHIFT;
    if (span->class_ != place.class_ + 1) NL_BROKEN("slot %u: its chunk is of another class than its span", id);
    if (span->free_bits[place.bit / 64] >> place.bit % 64 & 1) NL_BROKEN("slot %u: its chunk is free", id);
    for (uint64_t i = 0; i < ring.capacity >> NL_CHUNK_LEAST_SHIFT; i++, unit++) {
        if (chunks[unit / 64] >> unit % 64 & 1) NL_BROKEN("slot %u: its chunk is another log's too", id);
        chunks[unit / 64] |= (uint64_t)1 << unit % 64;
    }
    return NULL;
}

/* The chunks below a root of runs. */
static inline const char *nl_verify_pieces(const nl_table *t, uint32_t id, uint32_t reference, uint64_t *chunks, char *message, size_t bytes) {
    nl_ring root = nl_chunk_ring(&t->chunks, reference);
    const char *broken = NULL;
    if (root.capacity < NL_ROOT_WORDS || !(root.stamps[NL_RUNS_LIFE] & 1)) return NULL;
    for (uint32_t i = 0; i < NL_ROOT_ENTRIES && !broken; i++) {
        uint32_t index = root.stamps[NL_RUNS_HEAD + 2 * i];
        if (!index) continue;
        nl_ring below = nl_chunk_ring(&t->chunks, index);
        if (below.capacity != NL_PIECE_WORDS) NL_BROKEN("slot %u: entry %u of its root is no index: %x", id, i, index);
        broken = nl_verify_chunk(t, id, index, chunks, message, bytes);
        for (uint32_t k = 0; k < NL_PIECE_RUNS && !broken; k++) {
            uint32_t piece = below.stamps[2 * k];
            if (piece && nl_chunk_ring(&t->chunks, piece).capacity != NL_PIECE_WORDS) NL_BROKEN("slot %u: entry %u of an index is no piece: %x", id, k, piece);
            if (piece) broken = nl_verify_chunk(t, id, piece, chunks, message, bytes);
        }
    }
    return broken;
}

static inline const char *nl_verify_runs(const nl_table *t, uint32_t id, const nl_slot *slot, char *message, size_t bytes) {
    nl_runs r;
    uint32_t above;
    if (!nl_runs_load(&t->chunks, slot, slot->meta, &r)) NL_BROKEN("slot %u: its runs are nowhere", id);
    if (!nl_meta_count(t->rule.shape, slot->meta)) return NULL;
    const uint32_t units = r.total - r.base;
    if (!units || (units > t->rule.limit && units > t->head->limit)) NL_BROKEN("slot %u: %u units, the limit is %u", id, units, t->rule.limit);
    nl_run before = {0, r.base};
    for (uint32_t i = 0; i <= r.count; i++) {
        nl_run run = nl_runs_get(&t->chunks, &r, i);
        if (i < r.count && !nl_runs_at(&t->chunks, &r, i, &above)) NL_BROKEN("slot %u: run %u of %u has no piece", id, i, r.count);
        if (r.newest - run.tick > t->rule.window + t->rule.slot) NL_BROKEN("slot %u: run %u is %u ticks older than the newest", id, i, r.newest - run.tick);
        if (i && run.tick - before.tick - 1 >= t->rule.window + t->rule.slot) NL_BROKEN("slot %u: runs %u and %u are out of order", id, i - 1, i);
        if (run.total - before.total > units || (i == r.count && run.total == before.total)) NL_BROKEN("slot %u: run %u has %u units of %u", id, i, run.total - before.total, units);
        before = run;
    }
    if (t->rule.max_log && r.count > t->rule.max_log + t->rule.max_log / 2 + 2) NL_BROKEN("slot %u: %u runs, max_log is %u", id, r.count, t->rule.max_log);
    return NULL;
}

/* The chunks that a slot's two fields refer to. */
static inline const char *nl_verify_fields(const nl_table *t, uint32_t id, const nl_slot *slot, uint64_t *chunks, char *message,
                                           size_t bytes) {
    uint32_t selector = nl_meta_selector(slot->meta);
    for (uint32_t i = 0; t->rule.shape.has_chunks && i < 2; i++) {
        const char *broken;
        bool selected = selector && (selector & 1) == i;
        if (!slot->ring[NL_REFERENCES + i]) continue;
        if (!selected && !t->us.members) NL_BROKEN("slot %u: a field that is not selected refers to a chunk", id);
        if ((broken = nl_verify_chunk(t, id, slot->ring[NL_REFERENCES + i], chunks, message, bytes))) return broken;
        if (t->rule.algorithm != NL_RUNS) continue;
        if ((broken = nl_verify_pieces(t, id, slot->ring[NL_REFERENCES + i], chunks, message, bytes))) return broken;
    }
    return NULL;
}

static inline const char *nl_verify_meter(const nl_table *t, uint32_t id, const nl_slot *slot, char *message, size_t bytes) {
    uint32_t head = nl_meta_head(t->rule.shape, slot->meta), count = nl_meta_count(t->rule.shape, slot->meta);
    nl_shape s = nl_meter_shape();
    if (s.field_mask != t->rule.shape.field_mask || s.count_shift != t->rule.shape.count_shift || s.epoch_shift != t->rule.shape.epoch_shift)
        NL_BROKEN("meters have another shape than their table");
    if (!count) return NULL;
    if (count != 1 || (head != 0 && head != NL_METER_OTHER)) NL_BROKEN("slot %u: head %u, count %u are no meter's", id, head, count);
    if (t->us.members && t->number >= NL_QUOTAS_MOST) return NULL; /* a file of records, whose words may be any */
    uint32_t word = slot->ring[head + 1], before = slot->ring[head + 2];
    if (t->rule.algorithm == NL_GCRA) word &= ~NL_GCRA_SPENT;
    if (!word || word > NL_METER_LIMIT_MOST || (t->rule.algorithm == NL_GCRA && word > before))
        NL_BROKEN("slot %u: a meter of %u, %u", id, word, before);
    if (before && t->rule.algorithm == NL_FIXED_WINDOW) NL_BROKEN("slot %u: %u units before a fixed window", id, before);
    if (before > NL_METER_LIMIT_MOST) NL_BROKEN("slot %u: %u units in the window before", id, before);
    return NULL;
}

static inline const char *nl_verify_log(const nl_table *t, uint32_t id, const nl_slot *slot, uint64_t *chunks, char *message,
                                        size_t bytes) {
    nl_shape s = t->rule.shape;
    uint32_t head = nl_meta_head(s, slot->meta), count = nl_meta_count(s, slot->meta), selector = nl_meta_selector(slot->meta);
    nl_ring ring = nl_ring_of(&t->rule, &t->chunks, slot, slot->meta);
    if (selector == 3 || (selector && !s.has_chunks)) NL_BROKEN("slot %u: selector %u", id, selector);
    if (!ring.capacity || head >= ring.capacity || count > ring.capacity)
        NL_BROKEN("slot %u: head %u, count %u leave a ring of %u", id, head, count, ring.capacity);
    /* more than its limit: that was lowered, or is another one for some key or call */
    if (count > nl_rule_most(&t->rule)) NL_BROKEN("slot %u: %u stamps where there can be %u", id, count, nl_rule_most(&t->rule));
    for (uint32_t i = 0; i < count; i++) {
        uint32_t age = nl_ring_get(ring, head, count - 1) - nl_ring_get(ring, head, i);
        if (age > t->rule.window) NL_BROKEN("slot %u: stamp %u of %u is %u ticks older than the newest", id, i, count, age);
        if (i && nl_ring_get(ring, head, i) - nl_ring_get(ring, head, i - 1) > t->rule.window)
            NL_BROKEN("slot %u: stamps %u and %u are out of order", id, i - 1, i);
    }
    if (count && !s.has_era && ((slot->meta >> s.epoch_shift) & 3) != nl_ring_get(ring, head, count - 1) >> NL_EPOCH_SHIFT)
        NL_BROKEN("slot %u: the epoch is not the newest stamp's", id);
    const char *broken = NULL;
    if (t->rule.algorithm == NL_RUNS) broken = nl_verify_runs(t, id, slot, message, bytes);
    else if (t->rule.algorithm) broken = nl_verify_meter(t, id, slot, message, bytes);
    return broken ? broken : nl_verify_fields(t, id, slot, chunks, message, bytes);
}

static inline const char *nl_verify_segment(const nl_table *t, uint32_t number, uint64_t *slots, uint64_t *chunks, char *message,
                                            size_t bytes) {
    nl_segment *segment = &t->segments[number];
    const nl_bucket *buckets = nl_segment_buckets(t, number);
    uint32_t used = 0, passed[NL_SEGMENT_BUCKETS] = {0};
    if (segment->lock && !nl_owner_is_dead(&t->us, segment->lock)) NL_BROKEN("segment %u is locked", number);
    for (uint64_t i = segment->prefix; !t->us.members && i <= t->head->mask; i += (uint64_t)1 << segment->depth)
        if (t->directory[i] != number) NL_BROKEN("directory[%llu] is %u, not segment %u", (unsigned long long)i, t->directory[i], number);
    for (uint32_t at = 0; at < NL_SEGMENT_BUCKETS; at++) {
        for (uint32_t i = 0; i < NL_BUCKET_ENTRIES; i++) {
            uint32_t tag = buckets[at].tags[i >> 3] >> 8 * (i & 7) & 0xff, id = buckets[at].ids[i];
            if (!tag) continue;
            used++;
            if (id >= nl_load32(&t->head->slab.fresh)) NL_BROKEN("segment %u: slot %u was never used", number, id);
            nl_slot *slot = nl_slab_slot(&t->slab, id);
            nl_fingerprint fp = {slot->fingerprint[0], slot->fingerprint[1]};
            if (!fp.lo) NL_BROKEN("segment %u: slot %u is free", number, id);
            if (nl_tag_of(fp) != tag) NL_BROKEN("segment %u: slot %u has another tag", number, id);
            if (nl_segment_of(t, fp) != number || (fp.lo & (((uint64_t)1 << segment->depth) - 1)) != segment->prefix) NL_BROKEN("slot %u is in the wrong segment", id);
            if (slots[id / 64] >> id % 64 & 1) NL_BROKEN("slot %u is in the index twice", id);
            slots[id / 64] |= (uint64_t)1 << id % 64;
            if (nl_meta_owner(slot->meta) && !nl_owner_is_dead(&t->us, nl_meta_owner(slot->meta))) NL_BROKEN("slot %u is owned", id);
            if (nl_find(t, fp) != slot) NL_BROKEN("slot %u can't be found", id);
            for (uint32_t walk = nl_home_of(fp); walk != at; walk = (walk + 1) & (NL_SEGMENT_BUCKETS - 1)) passed[walk]++;
            const char *broken = nl_verify_log(t, id, slot, chunks, message, bytes);
            if (broken) return broken;
        }
    }
    if (used != segment->used) NL_BROKEN("segment %u says it has %u entries, and has %u", number, segment->used, used);
    for (uint32_t at = 0; at < NL_SEGMENT_BUCKETS; at++)
        if (nl_bucket_passed(buckets[at].tags[1]) != passed[at]) NL_BROKEN("segment %u, bucket %u: wrong count of those that passed", number, at);
    return NULL;
}

static inline const char *nl_verify_orphan(const nl_table *t, uint32_t id, const nl_slot *slot, uint64_t *chunks, char *message,
                                           size_t bytes) {
    uint32_t owner = nl_meta_owner(slot->meta);
    if (!t->us.members) NL_BROKEN("slot %u is lost: neither free nor in the index", id);
    if (owner && !nl_owner_is_dead(&t->us, owner)) NL_BROKEN("slot %u is in the hand of somebody who lives", id);
    if (nl_meta_count(t->rule.shape, slot->meta)) NL_BROKEN("slot %u holds stamps and is not in the index", id);
    return nl_verify_fields(t, id, slot, chunks, message, bytes);
}

static inline const char *nl_verify_free(const nl_table *t, const uint64_t *slots, uint64_t *chunks, uint32_t *orphans, char *message,
                                         size_t bytes) {
    uint32_t fresh = nl_load32(&t->head->slab.fresh), freed = 0;
    for (uint32_t id = 0; id < fresh; id++) {
        bool free = nl_bits_has(&t->slab.free, id), indexed = slots[id / 64] >> id % 64 & 1;
        const nl_slot *slot = nl_slab_slot(&t->slab, id);
        const char *broken;
        freed += free;
        if (free && indexed) NL_BROKEN("slot %u is free and in the index", id);
        if (!free && !indexed) {
            ++*orphans;
            if ((broken = nl_verify_orphan(t, id, slot, chunks, message, bytes))) return broken;
        }
        /* (who came too late for the slot's last key and died while it looked may still be its owner) */
        if (free && (slot->fingerprint[0] || slot->meta & ~(uint64_t)NL_OWNER_MASK || slot->ring[0]))
            NL_BROKEN("slot %u is free and not empty", id);
        if (free && (broken = nl_verify_fields(t, id, slot, chunks, message, bytes))) return broken;
        uint64_t at = id;
        for (int level = 1; free && level < t->slab.free.count; level++)
            if (at >>= 6, !(t->slab.free.levels[level][at >> 6] >> (at & 63) & 1)) NL_BROKEN("slot %u is free, and can't be found", id);
    }
    if (freed != t->head->slab.freed) NL_BROKEN("%u slots are free, %u are counted", freed, t->head->slab.freed);
    uint32_t busy = 0;
    for (uint32_t at = 1; at <= t->head->chunks.used; at++) {
        const nl_span *span = nl_span_at(&t->chunks, at);
        if (!span->class_) {
            if (!nl_bits_has(&t->chunks.sets[NL_SPANS_EMPTY], at) && !nl_bits_has(&t->chunks.sets[NL_SPANS_DROPPED], at))
                NL_BROKEN("span %u is lost: nobody's, and in no set", at);
            continue;
        }
        uint32_t class_ = (uint32_t)span->class_ - 1, free_chunks = 0, in_span = NL_SPAN_UNITS >> class_;
        busy++;
        for (uint32_t i = 0; i < in_span; i++) {
            uint64_t unit = ((uint64_t)at << (NL_SPAN_SHIFT - NL_CHUNK_UNIT_SHIFT)) + ((uint64_t)i << class_);
            bool free = span->free_bits[i / 64] >> i % 64 & 1;
            free_chunks += free;
            if (!free && !(chunks[unit / 64] >> unit % 64 & 1)) NL_BROKEN("chunk %u of span %u is lost: neither free nor a log's", i, at);
        }
        if ((free_chunks != 0) != nl_bits_has(&t->chunks.sets[class_], at)) NL_BROKEN("span %u has %u free chunks, its set says otherwise", at, free_chunks);
    }
    if (busy != t->head->chunks.busy && !t->us.members) NL_BROKEN("%u spans are some class's, %u are counted", busy, t->head->chunks.busy);
    return NULL;
}

/* NULL, or what is broken, in words. Locks that the dead left are inherited first. *orphans: slots that are in nobody's hand. */
static inline const char *nl_verify(nl_table *t, uint32_t *orphans, char *message, size_t bytes) {
    const char *broken = NULL;
    uint64_t *slots = (uint64_t *)calloc(nl_words_for(nl_load32(&t->head->slab.fresh)) + 1, 8);
    uint64_t units = ((uint64_t)t->head->chunks.used + 1) << (NL_SPAN_SHIFT - NL_CHUNK_UNIT_SHIFT);
    uint64_t *chunks = (uint64_t *)calloc(nl_words_for(units) + 1, 8);
    *orphans = 0;
    for (uint32_t place = 1; place <= nl_table_places(t); place++)
        nl_ask_about(&t->us, place << NL_SERIAL_BITS | (uint32_t)(nl_load64(&t->us.members[place].word) >> NL_MEMBER_SHIFT & (NL_SERIALS - 1)));
    for (uint32_t number = 0; t->us.members && number < t->head->segments; number++)
        if (nl_segment_enter(t, number, NL_WAITING)) nl_unlock(&t->segments[number].lock);
    if (t->us.members && nl_slab_lock(&t->us, &t->slab, NL_WAITING)) nl_unlock(&t->head->slab.lock);
    if (t->us.members && nl_chunks_lock(&t->us, &t->chunks, NL_WAITING)) nl_unlock(&t->head->chunks.lock);
    for (uint64_t epoch = 0; t->top.base && epoch < NL_TOP_PANES; epoch++) {
        nl_top_pane *pane = nl_top_pane_of(&t->top, epoch);
        nl_taking taking = nl_lock_take(&t->us, &pane->lock, NL_WAITING);
        if (taking == NL_INHERITED) nl_top_repair(&t->top, pane);
        if (!broken) broken = nl_top_verify(&t->top, pane);
        if (taking != NL_BUSY) nl_unlock(&pane->lock);
    }
    if (!slots || !chunks) broken = "no memory to verify with";
    for (uint32_t number = 0; !broken && number < t->head->segments; number++)
        broken = nl_verify_segment(t, number, slots, chunks, message, bytes);
    if (!broken) broken = nl_verify_free(t, slots, chunks, orphans, message, bytes);
    free(slots);
    free(chunks);
    return broken;
}

#endif
