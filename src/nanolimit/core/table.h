/* table.h: the whole: a bounded set of keys and their logs, that many threads use at once.
 *
 *      fingerprint --low bits--> directory --> segment --bucket, tag--> slot id --> slot (in the slab) --> chunk, if long
 *
 *   directory   u32 segment numbers; doubles in place. The only pointers are this process's own, to where the regions begin:
 *               everything stored is a number, so that the same bytes can serve in a file.
 *   segment     splits in two when 690 of its 768 places are taken: extendible hashing (Fagin, Nievergelt, Pippenger and
 *               Strong, 1979), so no call ever moves more than one segment's entries. A shared table (shared.h) has all its
 *               segments from the start, 560 keys to each, and none ever splits.
 *   slot        48 bytes that never move. A key that holds no live stamp is idle: it holds no information, and its slot goes
 *               to whoever needs one. A hand walks the slab, a few slots an insert, and finds them; that is all the expiry.
 *
 * How a check goes: find the slot without locks; deny without locks (log.h); else take the slot and count. A key that was not
 * found is looked for again under its segment's lock, and inserted there.
 *
 * Order of locks: segment, then slot, then directory, slab or chunks. Under a segment's lock slots are only tried, never
 * waited for (an owned slot isn't idle); nobody waits for a segment while owning a slot.
 */
#ifndef NL_TABLE_H
#define NL_TABLE_H

#include "counters.h"
#include "meter.h"
#include "run.h"
#include "segment.h"
#include "top.h"

/* Slots that the hand looks at: at every insert into a table of at least so many; for one to displace; when none is free;
 * and up to which size it then looks at all of them. */
enum { NL_HAND_STEP = 4, NL_HAND_FROM = 1024, NL_HAND_FEW = 32, NL_HAND_LAST = 256, NL_HAND_WHOLE = 16384 };
enum { NL_QUOTAS_MOST = 8 }; /* of a limiter, which has a table for each */
enum { NL_ON_FULL_ALLOW, NL_ON_FULL_DENY, NL_ON_FULL_EVICT };
enum { NL_KEY_STR1, NL_KEY_STR2, NL_KEY_STR4, NL_KEY_BYTES, NL_KEY_INT, NL_KEY_INT_NEGATIVE, NL_KEY_INT_LARGE, NL_KEY_UUID,
       NL_KEY_ADDRESS, NL_KEY_TUPLE, NL_KEY_KINDS };
/* Why a call must not take the short way; all off in a plain limiter. */
enum {
    NL_FLAG_CLOSED = 1,
    NL_FLAG_CLOCK = 2,
    NL_FLAG_EVENTS = 4,
    NL_FLAG_CHILD = 8,     /* of a fork: not yet a member of the table */
    NL_FLAG_ALGORITHM = 16, /* it counts by meters, or in runs: has a short way of its own */
    NL_FLAG_POLICY = 32,    /* there is more to a key than its log (record.h), or denials are not enforced */
    NL_FLAG_TOP = 64        /* somebody wants to know who is denied most (top.h) */
};

typedef struct { /* stored: what all users of the table share */
    uint64_t secret[2];
    uint64_t window_ns;
    uint32_t limit;     /* may change at run time */
    uint32_t mask;      /* the directory's size - 1 */
    uint32_t policies;  /* NL_FLAG_POLICY, once a process has said something of a key (record.h), for those that come later */
    uint32_t segments;  /* made so far; in a shared table all that there are */
    uint32_t dropped;   /* of them, with their page handed back */
    nl_lock directory_lock;
    nl_slab_state slab;
    nl_chunk_state chunks;
    nl_counters counters;
} nl_head;

enum { NL_REGION_HEADER, NL_REGION_MEMBERS, NL_REGION_HEAD, NL_REGION_DIRECTORY, NL_REGION_SEGMENTS, NL_REGION_BUCKETS, NL_REGION_BITMAP,
       NL_REGION_SLOTS, NL_REGION_SPANS, NL_REGION_SETS, NL_REGION_CHUNKS, NL_REGION_TOP, NL_REGIONS };

typedef struct nl_table { /* one process's view of a table */
    uint32_t *flags;    /* own_flags; of a member of a shared table, its place's, where others can reach them */
    uint32_t own_flags;
    uint32_t on_full;
    int clock;          /* which one tells the time, if no callable does */
    nl_rule rule;
    nl_head *head;
    uint32_t *directory;
    nl_bucket *buckets;
    nl_segment *segments;
    uint64_t *stripe;   /* the counters of whoever holds this process's GIL */
    nl_party us;
    nl_slab slab;
    nl_chunks chunks;
    nl_top top;         /* of a shared table always; of a private one if it is told to keep it, in memory of its own */
    nl_region memory, directory_region, segment_region, bucket_region;
    uint32_t number;    /* which of a limiter's tables: they share a secret (claim.h) */
    uint32_t splits_begun, splits_done; /* in private memory, the only place where segments split */
    struct nl_table *successor;   /* the table that takes this one's keys, each when it is next asked for (successor.h), */
    struct nl_table *predecessor; /* and the one whose keys this one takes, */
    uint32_t succeeded, succeeds; /* if these say so; the second until it has them all */
    uint64_t moved_ns;            /* when it took the other's place */
    nl_outcome (*take_key)(struct nl_table *, nl_fingerprint, nl_patience); /* moves a key here, if the other still has it */
    const struct nl_policy *policy; /* whose blocks may be looked for before anything else: by the same fingerprints, and enforced */
    struct nl_table *former;      /* whose memory is kept until nobody can be inside any more */
    size_t page_bytes;
    nl_hash_seed seeds[NL_KEY_KINDS];
} nl_table;

typedef struct {
    uint32_t limit;
    uint64_t window_ns;
    uint32_t max_keys;
    uint32_t on_full;
    uint64_t secret[2];
    uint32_t typical; /* a shared table's: how many stamps (or runs) a live key holds on average, for which there is memory */
    uint32_t algorithm;
    uint32_t max_log; /* a bound of a log's runs (run.h), or 0 */
    uint32_t track_top; /* a shared table's: the keys that top.h has room for */
} nl_config; /* the limit is the largest one that there can be room for; which one holds, the head says */

/* The flags are read always and changed rarely, by any thread; and once they move, when a process joins a shared table. */
static inline void nl_flags_set(nl_table *t, uint32_t flag, bool on) {
    for (;;) {
        uint32_t *flags = t->flags, seen = nl_load32(flags);
        if (nl_cas32(flags, seen, on ? seen | flag : seen & ~flag) && flags == t->flags) return;
    }
}

/* --- a table's life --------------------------------------------------------------------------------------------- */

static inline uint64_t nl_power_of_two_above(uint64_t n) {
    uint64_t p = 1;
    while (p < n) p <<= 1;
    return p;
}

/* Room to grow for the segments and the directory, and for nothing else. With nothing held. */
static inline bool nl_index_commit(nl_table *t) {
    uint64_t segments = (uint64_t)nl_load32(&t->head->segments) + 4, entries = 2 * ((uint64_t)nl_load32(&t->head->mask) + 1);
    uint64_t most = t->bucket_region.bytes / (NL_SEGMENT_BUCKETS * sizeof(nl_bucket));
    if (segments > most) segments = most;
    if (entries * 4 > t->directory_region.bytes) entries = t->directory_region.bytes / 4;
    return nl_region_commit(&t->segment_region, segments * sizeof(nl_segment), t->page_bytes) &&
           nl_region_commit(&t->bucket_region, segments * NL_SEGMENT_BUCKETS * sizeof(nl_bucket), t->page_bytes) &&
           nl_region_commit(&t->directory_region, entries * 4, t->page_bytes);
}

/* The sizes of the regions, in whole pages; their sum. */
static inline uint64_t nl_table_measure(const nl_config *config, uint64_t header_bytes, uint64_t members, uint64_t segments,
                                        uint64_t directory, uint64_t chunk_bytes, uint64_t page, uint64_t sizes[NL_REGIONS]) {
    chunk_bytes = (chunk_bytes + page - 1) / page * page;
    const uint64_t keys = config->max_keys, spans = chunk_bytes >> NL_SPAN_SHIFT;
    const uint64_t bytes[NL_REGIONS] = {header_bytes,
                                        members * sizeof(nl_member),
                                        sizeof(nl_head),
                                        4 * directory,
                                        segments * sizeof(nl_segment),
                                        segments * NL_SEGMENT_BUCKETS * sizeof(nl_bucket),
                                        nl_slab_bitmap_bytes(keys),
                                        keys * sizeof(nl_slot),
                                        chunk_bytes ? (spans + 2) * sizeof(nl_span) : 0,
                                        nl_chunk_set_bytes(chunk_bytes),
                                        chunk_bytes,
                                        nl_top_bytes(config->track_top)};
    uint64_t sum = 0;
    for (int i = 0; i < NL_REGIONS; i++) sum += sizes[i] = (bytes[i] + page - 1) / page * page;
    return sum;
}

/* Finds the regions in t->memory. What of each is committed is for the caller to say. */
static inline void nl_table_lay_out(nl_table *t, const nl_config *config, const uint64_t sizes[NL_REGIONS]) {
    nl_region *regions[NL_REGIONS] = {[NL_REGION_DIRECTORY] = &t->directory_region, [NL_REGION_SEGMENTS] = &t->segment_region,
                                      [NL_REGION_BUCKETS] = &t->bucket_region,     [NL_REGION_BITMAP] = &t->slab.bitmap,
                                      [NL_REGION_SLOTS] = &t->slab.slots,          [NL_REGION_SPANS] = &t->chunks.spans,
                                      [NL_REGION_SETS] = &t->chunks.sets_region,   [NL_REGION_CHUNKS] = &t->chunks.chunks};
    unsigned char *at = t->memory.base;
    for (int i = 0; i < NL_REGIONS; at += sizes[i++]) {
        if (i == NL_REGION_MEMBERS && sizes[i]) t->us.members = (nl_member *)(void *)at;
        if (i == NL_REGION_HEAD) t->head = (nl_head *)(void *)at;
        if (i == NL_REGION_TOP && sizes[i]) t->top = nl_top_at(at, config->track_top);
        if (!regions[i]) continue;
        regions[i]->base = at;
        regions[i]->bytes = sizes[i];
    }
    t->directory = (uint32_t *)(void *)t->directory_region.base;
    t->segments = (nl_segment *)(void *)t->segment_region.base;
    t->buckets = (nl_bucket *)(void *)t->bucket_region.base;
    t->slab.state = &t->head->slab;
    t->chunks.state = &t->head->chunks;
    t->stripe = t->head->counters.stripes[0];
    nl_slab_lay_out(&t->slab, config->max_keys);
    nl_chunks_lay_out(&t->chunks, nl_slab_slot(&t->slab, 0), config->max_keys);
}

static inline void nl_table_learn(nl_table *t, const nl_head *head) { /* what keys are hashed with */
    for (int kind = 0; kind < NL_KEY_KINDS; kind++) t->seeds[kind] = nl_hash_derive(head->secret, (uint64_t)kind);
}

/* A private table: reserves what max_keys can come to need, commits what an empty table needs. False: the system has no such room. */
static inline bool nl_table_open(nl_table *t, const nl_config *config) {
    memset(t, 0, sizeof *t);
    const uint64_t keys = config->max_keys, page = t->page_bytes = nl_page_bytes();
    const uint64_t segments = keys / 128 + 8; /* they are at least half of 690 full, on average 70 % */
    uint64_t sizes[NL_REGIONS], chunk_bytes = 0;
    t->rule = nl_rule_of(config->limit, config->window_ns, config->algorithm, config->max_log);
    t->own_flags = t->rule.algorithm ? NL_FLAG_ALGORITHM : 0;
    t->flags = &t->own_flags;
    t->on_full = config->on_full;
    t->clock = NL_CLOCK_PRIVATE;
    t->us.me = &nl_process.generation;
    if (t->rule.shape.has_chunks) { /* each key's log in full, and once more for those that are just growing */
        chunk_bytes = 2 * keys * (t->rule.algorithm == NL_RUNS ? 16 : 4) * nl_power_of_two_above(config->limit) + (NL_CHUNK_CLASSES + 1) * ((uint64_t)1 << NL_SPAN_SHIFT);
        if (chunk_bytes > (uint64_t)64 << 30) chunk_bytes = (uint64_t)64 << 30;
        chunk_bytes = chunk_bytes >> NL_SPAN_SHIFT << NL_SPAN_SHIFT;
    }
    t->memory.bytes = nl_table_measure(config, 0, 0, segments, 16 * nl_power_of_two_above(segments), chunk_bytes, page, sizes);
    if (t->memory.bytes > SIZE_MAX || !(t->memory.base = (unsigned char *)nl_reserve((size_t)t->memory.bytes))) return false;
    nl_table_lay_out(t, config, sizes);
    if (!nl_commit(t->head, sizeof(nl_head)) ||
        !nl_region_commit(&t->chunks.sets_region, t->chunks.sets_region.bytes, page)) goto failed;
    t->head->segments = 1; /* segment 0, depth 0: zeros, and the directory's only entry */
    if (!nl_index_commit(t) || !nl_slab_commit(&t->slab, page)) goto failed;
    t->head->window_ns = config->window_ns;
    t->head->limit = config->limit;
    t->head->secret[0] = config->secret[0];
    t->head->secret[1] = config->secret[1];
    nl_table_learn(t, t->head);
    return true;
failed:
    nl_release(t->memory.base, (size_t)t->memory.bytes);
    t->memory.base = NULL;
    return false;
}

/* A private table, when the last call has left. */
static inline void nl_table_close(nl_table *t) {
    if (t->memory.base) nl_release(t->memory.base, (size_t)t->memory.bytes);
    t->memory.base = NULL;
}

/* The highest place that a process has had; 0 in a private table. */
static inline uint64_t nl_table_places(const nl_table *t) {
    uint64_t places = t->us.members ? nl_load64(&t->us.members[0].pid) : 0;
    return places < NL_MEMBERS ? places : NL_MEMBERS - 1;
}

static inline uint64_t nl_table_count(const nl_table *t, uint32_t what) {
    uint64_t sum = nl_counters_sum(&t->head->counters, what);
    for (uint64_t i = 1; i <= nl_table_places(t); i++) sum += nl_load64(&t->us.members[i].counters[what]);
    return sum;
}

static inline uint64_t nl_table_log_bytes(const nl_table *t) {
    uint64_t bytes = (uint64_t)nl_load32(&t->head->chunks.busy) << NL_SPAN_SHIFT;
    return bytes < t->chunks.chunks.bytes ? bytes : t->chunks.chunks.bytes;
}

static inline uint32_t nl_table_keys(const nl_table *t) { /* slots in use, idle ones included */
    uint32_t freed = nl_load32(&t->head->slab.freed), fresh = nl_load32(&t->head->slab.fresh);
    return fresh > freed ? fresh - freed : 0;
}

/* Pages that were touched and not handed back. */
static inline uint64_t nl_table_bytes(const nl_table *t) {
    const nl_head *h = t->head;
    if (t->us.members) return t->memory.bytes; /* taken as a whole when it was made */
    const uint64_t page = t->page_bytes, segments = nl_load32(&h->segments), fresh = nl_load32(&h->slab.fresh);
    uint64_t bytes[] = {sizeof(nl_head), 4 * ((uint64_t)nl_load32(&h->mask) + 1), segments * sizeof(nl_segment),
                        (segments - nl_load32(&h->dropped)) * NL_SEGMENT_BUCKETS * sizeof(nl_bucket),
                        (fresh - ((uint64_t)nl_load32(&h->slab.dropped) << NL_BLOCK_SHIFT)) * sizeof(nl_slot), nl_slab_bit_bytes(&t->slab, fresh),
                        (uint64_t)nl_load32(&h->chunks.used) * sizeof(nl_span),
                        (uint64_t)(nl_load32(&h->chunks.used) - nl_load32(&h->chunks.dropped)) << NL_SPAN_SHIFT};
    uint64_t sum = 0;
    for (int i = 0; i < 8; i++) sum += (bytes[i] + page - 1) / page * page;
    return sum;
}

/* The table whose keys this one takes; the one that takes this one's. */
NL_ALWAYS_INLINE nl_table *nl_table_before(const nl_table *t) { return nl_load32_acquire(&t->succeeds) ? t->predecessor : NULL; }
NL_ALWAYS_INLINE nl_table *nl_table_after(const nl_table *t) { return nl_load32_acquire(&t->succeeded) ? t->successor : NULL; }

/* --- find ------------------------------------------------------------------------------------------------------- */

NL_ALWAYS_INLINE nl_bucket *nl_segment_buckets(const nl_table *t, uint32_t segment) {
    return t->buckets + (size_t)segment * NL_SEGMENT_BUCKETS;
}

NL_ALWAYS_INLINE uint32_t nl_segment_of(const nl_table *t, nl_fingerprint fp) {
    return nl_load32_acquire(&t->directory[(uint32_t)fp.lo & nl_load32_acquire(&t->head->mask)]);
}

NL_ALWAYS_INLINE nl_slot *nl_find(const nl_table *t, nl_fingerprint fp) {
    return nl_segment_find(nl_segment_buckets(t, nl_segment_of(t, fp)), &t->slab, fp);
}

/* For batches: ask for the bucket; then, when it has come, for the slot. */
NL_ALWAYS_INLINE void nl_prefetch_bucket(const nl_table *t, nl_fingerprint fp) {
    NL_PREFETCH(&nl_segment_buckets(t, nl_segment_of(t, fp))[nl_home_of(fp)]);
}
NL_ALWAYS_INLINE void nl_prefetch_slot(const nl_table *t, nl_fingerprint fp) {
    const nl_bucket *bucket = &nl_segment_buckets(t, nl_segment_of(t, fp))[nl_home_of(fp)];
    uint64_t hits = nl_tags_match(bucket->tags, nl_tag_of(fp));
    if (!hits) return;
    const char *slot = (const char *)nl_slab_slot(&t->slab, nl_load32(&bucket->ids[nl_first_hit(hits)]));
    NL_PREFETCH(slot);
    NL_PREFETCH(slot + sizeof(nl_slot) - 1);
}

static inline bool nl_segment_enter(nl_table *t, uint32_t number, nl_patience patience) {
    nl_segment *segment = &t->segments[number];
    nl_taking taking = nl_lock_take(&t->us, &segment->lock, patience);
    if (NL_UNLIKELY(taking == NL_INHERITED))
        nl_segment_mend(segment, number, nl_segment_buckets(t, number), &t->slab, t->directory, nl_load32(&t->head->mask));
    if (taking != NL_BUSY) NL_POINT(segment_locked);
    return taking != NL_BUSY;
}

/* Locks the segment that covers a fingerprint. NULL: no patience left. */
static inline nl_segment *nl_segment_lock(nl_table *t, nl_fingerprint fp, nl_patience patience, uint32_t *number) {
    for (;;) {
        *number = nl_segment_of(t, fp);
        nl_segment *segment = &t->segments[*number];
        if (!nl_segment_enter(t, *number, patience)) return NULL;
        if ((fp.lo & (((uint64_t)1 << segment->depth) - 1)) == segment->prefix) return segment;
        nl_unlock(&segment->lock); /* it was split while we came */
    }
}

/* As nl_find; false: it may be there although it was not found. A reader misses what is there only while a segment splits. */
NL_ALWAYS_INLINE bool nl_find_quickly(const nl_table *t, nl_fingerprint fp, nl_slot **slot) {
    uint32_t done = nl_load32_acquire(&t->splits_done);
    if (NL_LIKELY((*slot = nl_find(t, fp)) != NULL)) return true;
    nl_fence_acquire(); /* who saw anything of a split sees now that it has begun */
    return nl_load32(&t->splits_begun) == done;
}

/* As nl_find, but what it does not find is not there. NL_ALLOWED; *slot may be NULL. Or NL_WOULD_WAIT. */
static inline nl_outcome nl_find_locked(nl_table *t, nl_fingerprint fp, nl_patience patience, nl_slot **slot) {
    uint32_t number;
    nl_gate_enter(&t->us);
    nl_segment *segment = nl_segment_lock(t, fp, patience, &number);
    if (segment) {
        *slot = nl_segment_find(nl_segment_buckets(t, number), &t->slab, fp);
        nl_unlock(&segment->lock);
    }
    nl_gate_leave(&t->us);
    return segment ? NL_ALLOWED : NL_WOULD_WAIT;
}

/* Looks for a key where a miss counts. NL_ALLOWED; *slot may be NULL. NL_WOULD_WAIT. NL_MOVED: it is not here any more, nor will be. */
static inline nl_outcome nl_find_surely(nl_table *t, nl_fingerprint fp, nl_patience patience, nl_slot **slot) {
    if (NL_LIKELY((*slot = nl_find(t, fp)) != NULL)) return NL_ALLOWED;
    if (NL_UNLIKELY(nl_table_before(t)) && t->take_key(t, fp, patience) == NL_WOULD_WAIT) return NL_WOULD_WAIT;
    nl_outcome outcome = nl_find_locked(t, fp, patience, slot);
    return outcome == NL_ALLOWED && !*slot && NL_UNLIKELY(nl_table_after(t)) ? NL_MOVED : outcome;
}

/* --- removing ---------------------------------------------------------------------------------------------------- */

/* Takes a key's slot in hand, under its segment's lock, owning the slot: first it is empty, then nobody's, then not in the index.
 * What its reference fields refer to stays there until nl_slot_scrub. */
static inline void nl_free_slot(nl_table *t, nl_segment *segment, nl_bucket *buckets, nl_fingerprint fp, nl_slot *slot) {
    nl_slot_publish(&t->us, slot, 0);
    NL_POINT(free_emptied);
    nl_store64(&slot->fingerprint[0], 0);
    nl_store64(&slot->fingerprint[1], 0);
    NL_POINT(free_fingerprint);
    nl_segment_remove(segment, buckets, fp, nl_slab_id(&t->slab, slot));
    NL_POINT(free_removed);
}

/* Of a slot in hand: gives back the chunks that it refers to, and leaves zeros. Within the gate, with no segment locked. */
static inline void nl_slot_scrub(nl_table *t, nl_slot *slot) {
    const int stamps = t->rule.shape.has_chunks ? NL_REFERENCES : 6;
    for (int i = NL_REFERENCES; i < 6 && t->rule.algorithm == NL_RUNS; i++) nl_runs_give(&t->us, &t->chunks, &slot->ring[i]);
    for (int i = NL_REFERENCES; i < 6 && stamps == NL_REFERENCES; i++) nl_chunk_give(&t->us, &t->chunks, &slot->ring[i]);
    for (int i = 0; i < stamps; i++) nl_store32(&slot->ring[i], 0);
}

NL_ALWAYS_INLINE bool nl_slot_is_idle(const nl_table *t, const nl_slot *slot, uint64_t meta, nl_now now) {
    nl_log log;
    return !nl_log_read(&t->rule, &t->chunks, slot, meta, now, &log) || !log.used;
}

/* Removes a key if it is idle, or whatever it is. Within the gate. True: the slot is in the caller's hand now. */
static inline bool nl_remove(nl_table *t, nl_fingerprint fp, nl_slot *slot, nl_now now, bool live_too) {
    uint32_t number;
    uint64_t meta;
    bool removed = false;
    nl_segment *segment = nl_segment_lock(t, fp, NL_QUICKLY, &number);
    if (!segment) {
        nl_ask_about(&t->us, nl_load32(&t->segments[number].lock));
        return false;
    }
    if (nl_slot_is(slot, fp) && nl_slot_try(&t->us, slot, &meta)) {
        removed = nl_slot_is(slot, fp) && (live_too || nl_slot_is_idle(t, slot, meta, now));
        if (removed) nl_free_slot(t, segment, nl_segment_buckets(t, number), fp, slot);
        else nl_slot_commit(slot, meta);
    }
    nl_unlock(&segment->lock);
    if (removed) nl_slot_scrub(t, slot);
    return removed;
}

typedef struct {
    nl_slot *oldest;        /* of the live keys that the hand saw, the one idle longest */
    int64_t oldest_tick;    /* its newest stamp (a meter's may lie before time began) */
    bool saw_only_live;
} nl_hand_view;

/* The hand: looks at the next slots of the slab for an idle one, takes it and stops behind it; NL_NO_SLOT if there is none
 * among so many. Within the gate. */
static inline uint32_t nl_hand(nl_table *t, nl_now now, uint32_t steps, nl_hand_view *view) {
    nl_slab_state *state = t->slab.state;
    uint32_t fresh = nl_load32_acquire(&state->fresh), at = nl_load32(&state->hand), id = NL_NO_SLOT;
    if (NL_UNLIKELY(fresh > t->slab.most)) fresh = t->slab.most; /* only in a damaged file */
    view->oldest = NULL;
    view->oldest_tick = INT64_MAX;
    view->saw_only_live = true;
    for (uint32_t i = 0; i < steps && fresh; i++, at++) {
        if (at >= fresh) at = 0;
        nl_slot *slot = nl_slab_slot(&t->slab, at);
        nl_fingerprint fp = {nl_load64_acquire(&slot->fingerprint[0]), nl_load64(&slot->fingerprint[1])};
        uint64_t meta = nl_load64_acquire(&slot->meta);
        nl_log log;
        if (NL_UNLIKELY(nl_meta_owner(meta))) nl_ask_about(&t->us, nl_meta_owner(meta));
        bool seen = fp.lo && nl_log_read(&t->rule, &t->chunks, slot, meta, now, &log) &&
                    nl_log_held(&t->rule, &t->chunks, slot, meta, &log);
        if (seen && log.used) {
            if ((int64_t)log.newest_tick < view->oldest_tick) view->oldest_tick = (int64_t)log.newest_tick, view->oldest = slot;
            continue;
        }
        if (fp.lo ? seen && nl_remove(t, fp, slot, now, false) : t->us.members && nl_slab_claim(&t->us, &t->slab, at)) {
            if (!fp.lo) nl_slot_scrub(t, slot);
            id = at++;
            NL_POINT(hand_took);
            break;
        }
        view->saw_only_live = false; /* free, or in somebody's hands */
    }
    nl_store32(&state->hand, at);
    return id;
}

/* --- inserting --------------------------------------------------------------------------------------------------- */

/* A slot when none is free. A table of up to 16,384 keys is searched whole, and if all are live it is known until when:
 * so the first max_keys live keys always fit, and a flood of unknown keys costs nothing. A larger one is searched for 256
 * slots; the hand's steps at each earlier insert make it likely that there was a free one. */
static inline uint32_t nl_slot_reclaim(nl_table *t, nl_now now, bool may_displace, nl_outcome *displaced) {
    nl_slab_state *state = t->slab.state;
    uint32_t fresh = nl_load32(&state->fresh), forgotten = nl_load32(&state->forgotten);
    nl_hand_view view;
    bool known_full = now.tick < nl_load64(&state->full_until), whole = fresh <= NL_HAND_WHOLE && !known_full;
    if (known_full && !may_displace) return NL_NO_SLOT;
    uint32_t id = nl_hand(t, now, whole ? fresh : known_full ? NL_HAND_FEW : NL_HAND_LAST, &view);
    if (id != NL_NO_SLOT) return id;
    if (whole && view.saw_only_live && view.oldest)
        nl_slab_is_full_until(&t->slab, (uint64_t)view.oldest_tick + t->rule.window, forgotten);
    if (!may_displace || !view.oldest) return NL_NO_SLOT;
    nl_fingerprint fp = {nl_load64_acquire(&view.oldest->fingerprint[0]), nl_load64(&view.oldest->fingerprint[1])};
    if (!fp.lo || !nl_remove(t, fp, view.oldest, now, true)) return NL_NO_SLOT;
    nl_count(&t->head->counters, nl_my_stripe(), NL_COUNT_EVICTED, 1); /* here: a call that has to begin anew may displace again */
    *displaced = NL_DISPLACED;
    return nl_slab_id(&t->slab, view.oldest);
}

/* A slot in hand for a new key; NL_NO_SLOT: full; NL_SLOT_STALLED: no patience left. Within the gate. */
static inline uint32_t nl_slot_supply(nl_table *t, nl_now now, bool may_displace, nl_patience patience, nl_outcome *displaced) {
    uint32_t id;
    nl_hand_view view;
    nl_wait w = {0, 0, 0};
    uint64_t busy = 0;
    if (nl_load32(&t->head->slab.fresh) >= NL_HAND_FROM && (id = nl_hand(t, now, NL_HAND_STEP, &view)) != NL_NO_SLOT) return id;
    for (;;) {
        id = nl_slab_take(&t->us, &t->slab, patience, &busy);
        if (id == NL_SLOT_UNCOMMITTED && nl_slab_commit(&t->slab, t->page_bytes)) continue;
        if (id != NL_SLOT_BUSY) break;
        if (!nl_wait_on(&t->us, &w, patience, busy)) return NL_SLOT_STALLED;
    }
    return id == NL_NO_SLOT || id == NL_SLOT_UNCOMMITTED ? nl_slot_reclaim(t, now, may_displace, displaced) : id;
}

typedef enum { NL_SPLIT_DONE, NL_SPLIT_UNCOMMITTED, NL_SPLIT_IMPOSSIBLE } nl_split_outcome;

/* A number for the new segment, and a directory large enough for it. Under the directory's lock. */
static inline nl_split_outcome nl_split_prepare(nl_table *t, uint32_t depth, uint32_t *number) {
    nl_head *h = t->head;
    uint64_t entries = (uint64_t)h->mask + 1, segments = (uint64_t)h->segments + 1;
    bool doubles = (uint64_t)1 << depth == entries;
    if (depth == NL_DEPTH_MOST || segments * NL_SEGMENT_BUCKETS * sizeof(nl_bucket) > t->bucket_region.bytes ||
        segments * sizeof(nl_segment) > t->segment_region.bytes || (doubles && 8 * entries > t->directory_region.bytes))
        return NL_SPLIT_IMPOSSIBLE;
    if (segments * NL_SEGMENT_BUCKETS * sizeof(nl_bucket) > nl_load64(&t->bucket_region.committed) ||
        segments * sizeof(nl_segment) > nl_load64(&t->segment_region.committed) ||
        (doubles && 8 * entries > nl_load64(&t->directory_region.committed)))
        return NL_SPLIT_UNCOMMITTED;
    if (doubles) { /* the upper half repeats the lower; who still has the old mask reads the lower */
        for (uint64_t i = 0; i < entries; i++) nl_store32(&t->directory[entries + i], t->directory[i]);
        nl_store32_release(&h->mask, (uint32_t)(2 * entries - 1));
    }
    *number = h->segments;
    nl_store32_release(&h->segments, (uint32_t)segments);
    return NL_SPLIT_DONE;
}

/* Splits a segment, under its lock and within the gate: fill the new one, publish it in the directory, then the old one's
 * depth, then clear what moved. A reader who comes too late for an entry asks again under the lock. */
static NL_NOINLINE nl_split_outcome nl_split_segment(nl_table *t, nl_segment *segment, uint32_t number) {
    nl_split split;
    uint32_t depth = segment->depth, to = 0;
    nl_add32(&t->splits_begun, 1);
    nl_fence_full(); /* before anything that it moves */
    nl_lock_take(&t->us, &t->head->directory_lock, NL_WAITING);
    nl_split_outcome outcome = nl_split_prepare(t, depth, &to);
    nl_unlock(&t->head->directory_lock);
    if (outcome != NL_SPLIT_DONE) {
        nl_add32(&t->splits_done, 1);
        return outcome;
    }
    nl_segment *sibling = &t->segments[to];
    nl_lock_take(&t->us, &sibling->lock, NL_WAITING); /* against walkers; nobody else can have it */
    sibling->depth = (uint16_t)(depth + 1);
    sibling->prefix = segment->prefix | (uint32_t)((uint64_t)1 << depth);
    nl_segment_fill(nl_segment_buckets(t, number), &t->slab, depth, sibling, nl_segment_buckets(t, to), &split);
    nl_lock_take(&t->us, &t->head->directory_lock, NL_WAITING);
    for (uint64_t i = sibling->prefix; i <= t->head->mask; i += (uint64_t)1 << (depth + 1)) nl_store32_release(&t->directory[i], to);
    nl_unlock(&t->head->directory_lock);
    segment->depth = (uint16_t)(depth + 1);
    nl_segment_keep(segment, nl_segment_buckets(t, number), &split);
    nl_unlock(&sibling->lock);
    nl_fence_release();
    nl_add32(&t->splits_done, 1);
    return NL_SPLIT_DONE;
}

/* The answer for want of room or, in a shared table, because an owner that lives kept all others waiting. */
static inline nl_outcome nl_untracked(bool allowed, uint32_t limit, uint32_t cost, uint64_t now_ns, nl_view *view) {
    if (view) {
        memset(view, 0, sizeof *view);
        view->now_ns = now_ns;
        view->limit = limit;
        view->used = allowed ? cost : limit;
    }
    return (nl_outcome)(NL_UNTRACKED | (allowed ? NL_ALLOWED : NL_DENIED));
}

static inline nl_outcome nl_full(const nl_table *t, uint32_t limit, uint32_t cost, nl_now now, nl_view *view) {
    /* who displaces others is not turned away for want of memory */
    return nl_untracked(t->on_full != NL_ON_FULL_DENY, limit, cost, now.ns, view);
}

/* Looks for a key under its segment's lock, and inserts it where it is not: then *placed, and the slot is owned. NULL: nothing
 * is held; what to do next is in `next`. */
typedef enum { NL_NEXT_AGAIN, NL_NEXT_COMMIT, NL_NEXT_FULL, NL_NEXT_NO_ROOM, NL_NEXT_WAIT, NL_NEXT_MOVED } nl_next;

static inline nl_slot *nl_place(nl_table *t, nl_fingerprint fp, nl_now now, uint32_t *spare, bool *may_split, nl_patience patience,
                                bool *placed, uint64_t *meta, nl_next *next) {
    uint32_t number;
    nl_segment *segment = nl_segment_lock(t, fp, patience, &number);
    *next = NL_NEXT_WAIT;
    if (!segment) return NULL;
    nl_bucket *buckets = nl_segment_buckets(t, number);
    nl_slot *slot = nl_segment_find(buckets, &t->slab, fp);
    *next = NL_NEXT_AGAIN;
    if (slot) {
        /* somebody was faster, or the look without the lock came at a bad moment */
    } else if (NL_UNLIKELY(nl_table_after(t))) {
        *next = NL_NEXT_MOVED; /* under the segment's lock: who looks here for what is to be moved finds all that there will be */
    } else if (*spare >= NL_SLOT_STALLED) {
        *next = *spare == NL_SLOT_STALLED ? NL_NEXT_WAIT : NL_NEXT_FULL;
    } else if (segment->used >= NL_SEGMENT_SPLITS_AT && *may_split && !t->us.members) {
        nl_split_outcome split = nl_split_segment(t, segment, number);
        *may_split = split != NL_SPLIT_IMPOSSIBLE;
        if (split == NL_SPLIT_UNCOMMITTED) *next = NL_NEXT_COMMIT;
    } else {
        /* The entry comes before the fingerprint: who had the slot's address from a time when it was this very key's must not
         * take it over from a dead owner while it is not in the index. */
        if (nl_segment_add(segment, buckets, fp, *spare)) {
            slot = nl_slab_slot(&t->slab, *spare);
            nl_fence_release();
            nl_store64(&slot->fingerprint[1], fp.hi);
            nl_store64_release(&slot->fingerprint[0], fp.lo);
            NL_POINT(insert_fingerprint);
            if (segment->dropped) segment->dropped = 0, nl_add32(&t->head->dropped, (uint32_t)-1);
            /* Earlier than the hand found, if the clock went back. (A bucket may be full again at once.) */
            uint64_t idle_from = now.tick + (t->rule.algorithm == NL_GCRA ? 0 : t->rule.window);
            if (nl_load64(&t->slab.state->full_until) > idle_from) nl_store64(&t->slab.state->full_until, idle_from);
            *spare = NL_NO_SLOT;
            *placed = true;
            *meta = 0; /* what is in hand is published as empty */
        } else {
            *next = NL_NEXT_NO_ROOM; /* in the index: it could not be split */
        }
    }
    nl_unlock(&segment->lock);
    if (*placed) NL_POINT(insert_placed);
    return slot;
}

/* Owns a key's slot, which is inserted if it is not there; *meta is then what it had published. NL_ALLOWED: it is owned. NL_UNTRACKED:
 * there is no room. NL_WOULD_WAIT. NL_MOVED: the table's successor has it, or is to have it. *displaced: NL_DISPLACED if a live key
 * had to make room. */
static NL_NOINLINE nl_outcome nl_own_here(nl_table *t, nl_fingerprint fp, nl_now now, nl_patience patience, nl_slot **owned,
                                          uint64_t *meta, nl_outcome *displaced) {
    bool may_split = true, may_displace = false;
    nl_wait w = {0, 0, 0};
    for (;;) {
        bool placed = false;
        nl_next next = NL_NEXT_AGAIN;
        nl_slot *slot = nl_find(t, fp);
        if (!slot) {
            nl_gate_enter(&t->us);
            uint32_t spare = nl_slot_supply(t, now, may_displace, patience, displaced);
            slot = nl_place(t, fp, now, &spare, &may_split, patience, &placed, meta, &next);
            if (spare < NL_SLOT_STALLED) nl_slab_give(&t->us, &t->slab, &spare, 1);
            nl_gate_leave(&t->us);
        }
        if (!slot) {
            if (next == NL_NEXT_WAIT) return NL_WOULD_WAIT;
            if (next == NL_NEXT_MOVED) return NL_MOVED;
            if (next == NL_NEXT_NO_ROOM) return NL_UNTRACKED;
            if (next == NL_NEXT_COMMIT && !nl_index_commit(t)) may_split = false;
            if (next == NL_NEXT_FULL) { /* now it is certain that the key is new: only then may a live key make room */
                if (t->on_full != NL_ON_FULL_EVICT || !nl_load32(&t->head->slab.fresh)) return NL_UNTRACKED;
                /* all that the hand saw were in use: there will be others, unless it is we who use them */
                if (may_displace && !nl_wait_on(&t->us, &w, patience, 0)) return patience == NL_HOLDING ? NL_UNTRACKED : NL_WOULD_WAIT;
                may_displace = true;
            }
            continue;
        }
        *owned = slot;
        if (placed) return NL_ALLOWED;
        if (NL_UNLIKELY(!nl_slot_take(&t->us, slot, meta, patience))) return NL_WOULD_WAIT;
        NL_POINT(slot_owned);
        if (NL_LIKELY(nl_slot_is(slot, fp))) return NL_ALLOWED;
        nl_slot_commit(slot, *meta); /* another key's by now */
    }
}

/* The same, after the key's log has come over from the table before, if there is one that still has it. */
static inline nl_outcome nl_own(nl_table *t, nl_fingerprint fp, nl_now now, nl_patience patience, nl_slot **owned, uint64_t *meta,
                                nl_outcome *displaced) {
    if (NL_UNLIKELY(nl_table_before(t)) && !nl_find(t, fp) && t->take_key(t, fp, patience) == NL_WOULD_WAIT) return NL_WOULD_WAIT;
    return nl_own_here(t, fp, now, patience, owned, meta, displaced);
}

/* The slow way: the key is not where it should be, or its log must grow. */
static NL_NOINLINE nl_outcome nl_check_slow(nl_table *t, nl_fingerprint fp, nl_now now, uint32_t limit, uint32_t cost,
                                            nl_patience patience, nl_view *view) {
    nl_outcome displaced = NL_DENIED;
    for (int chunk_tries = 0;;) {
        nl_slot *slot;
        uint64_t meta;
        nl_outcome outcome = nl_own(t, fp, now, patience, &slot, &meta, &displaced);
        if (outcome & (NL_WOULD_WAIT | NL_MOVED)) return (nl_outcome)(outcome | displaced);
        if (outcome == NL_UNTRACKED) return (nl_outcome)(nl_full(t, limit, cost, now, view) | displaced);
        outcome = t->rule.algorithm == NL_RUNS
                      ? nl_runs_allow_owned(&t->us, &t->rule, &t->chunks, slot, meta, now, limit, cost, patience, view)
                  : t->rule.algorithm
                      ? nl_meter_allow_owned(t->rule.algorithm, &t->rule, slot, meta, now, limit, cost, view)
                      : nl_log_allow_owned(&t->us, &t->rule, &t->chunks, slot, meta, now, limit, cost, patience, view);
        if (outcome != NL_NO_CHUNK) return (nl_outcome)(outcome | displaced);
        /* if it is new, it stays, with an empty log: idle */
        nl_store64(&t->slab.state->full_until, 0);
        if (!nl_chunks_commit(&t->chunks, t->page_bytes) || ++chunk_tries > 8) return nl_full(t, limit, cost, now, view);
    }
}

/* --- the verbs --------------------------------------------------------------------------------------------------- */

/* Decides, and counts if it fits. cost in 1 .. limit. `view`: NULL, or filled in. Any thread; time comes from the edge.
 * NL_WOULD_WAIT although it was to wait: it stalled (shared tables only). */
NL_ALWAYS_INLINE nl_outcome nl_check(nl_table *t, nl_fingerprint fp, uint64_t now_ns, uint32_t cost, nl_patience patience, nl_view *view) {
    nl_now now = nl_rule_now(&t->rule, now_ns);
    uint32_t limit = nl_load32(&t->head->limit);
    nl_slot *slot = nl_find(t, fp);
    if (NL_LIKELY(slot != NULL)) {
        if (nl_log_deny(&t->rule, &t->chunks, slot, fp, now, limit, cost) == NL_DENIED &&
            (!view || (nl_log_peek(&t->rule, &t->chunks, slot, fp, now, limit, cost, view) && view->used + cost > limit)))
            return NL_DENIED; /* both: it may have changed between the two looks */
        nl_outcome outcome = nl_log_allow(&t->us, &t->rule, &t->chunks, slot, fp, now, limit, cost, patience, view);
        if (NL_LIKELY(!(outcome & (NL_GONE | NL_NO_CHUNK)))) return outcome;
    }
    return nl_check_slow(t, fp, now, limit, cost, patience, view);
}

NL_ALWAYS_INLINE nl_outcome nl_meter_check_as(uint32_t algorithm, nl_table *t, nl_fingerprint fp, uint64_t now_ns, uint32_t cost,
                                              nl_patience patience, nl_view *view) {
    nl_now now = nl_rule_now(&t->rule, now_ns);
    uint32_t limit = nl_load32(&t->head->limit);
    nl_slot *slot = nl_find(t, fp);
    if (NL_LIKELY(slot != NULL)) {
        if (nl_meter_deny(algorithm, &t->rule, slot, fp, now, limit, cost, view) == NL_DENIED) return NL_DENIED;
        nl_outcome outcome = nl_meter_allow(algorithm, &t->us, &t->rule, slot, fp, now, limit, cost, patience, view);
        if (NL_LIKELY(outcome != NL_GONE)) return outcome;
    }
    return nl_check_slow(t, fp, now, limit, cost, patience, view);
}

/* The same in runs. */
static NL_NOINLINE nl_outcome nl_runs_check(nl_table *t, nl_fingerprint fp, uint64_t now_ns, uint32_t cost, nl_patience patience, nl_view *view) {
    nl_now now = nl_rule_now(&t->rule, now_ns);
    uint32_t limit = nl_load32(&t->head->limit);
    nl_slot *slot = nl_find(t, fp);
    if (NL_LIKELY(slot != NULL)) {
        if (nl_runs_deny(&t->rule, &t->chunks, slot, fp, now, limit, cost, view) == NL_DENIED) return NL_DENIED;
        nl_outcome outcome = nl_runs_allow(&t->us, &t->rule, &t->chunks, slot, fp, now, limit, cost, patience, view);
        if (NL_LIKELY(!(outcome & (NL_GONE | NL_NO_CHUNK)))) return outcome;
    }
    return nl_check_slow(t, fp, now, limit, cost, patience, view);
}

/* The same by a meter, or in runs: the ways of each in code of its own. */
NL_ALWAYS_INLINE nl_outcome nl_meter_check(nl_table *t, nl_fingerprint fp, uint64_t now_ns, uint32_t cost, nl_patience patience,
                                           nl_view *view) {
    if (t->rule.algorithm == NL_GCRA) return nl_meter_check_as(NL_GCRA, t, fp, now_ns, cost, patience, view);
    if (t->rule.algorithm == NL_FIXED_WINDOW) return nl_meter_check_as(NL_FIXED_WINDOW, t, fp, now_ns, cost, patience, view);
    if (t->rule.algorithm == NL_RUNS) return nl_runs_check(t, fp, now_ns, cost, patience, view);
    return nl_meter_check_as(NL_SLIDING_COUNTER, t, fp, now_ns, cost, patience, view);
}

/* By whatever the table counts with. */
static inline nl_outcome nl_check_any(nl_table *t, nl_fingerprint fp, uint64_t now_ns, uint32_t cost, nl_patience patience, nl_view *view) {
    return t->rule.algorithm ? nl_meter_check(t, fp, now_ns, cost, patience, view) : nl_check(t, fp, now_ns, cost, patience, view);
}

static inline nl_outcome nl_peek_here(nl_table *t, nl_fingerprint fp, uint64_t now_ns, uint32_t limit, uint32_t cost,
                                      nl_patience patience, nl_view *view) {
    nl_now now = nl_rule_now(&t->rule, now_ns);
    for (;;) {
        nl_slot *slot;
        nl_outcome found = nl_find_surely(t, fp, patience, &slot);
        if (found != NL_ALLOWED) return found;
        if (!slot) {
            nl_view_empty(view, limit, now_ns);
            return NL_ALLOWED;
        }
        if (t->rule.algorithm == NL_RUNS) {
            nl_outcome outcome = nl_runs_peek(&t->rule, &t->chunks, slot, fp, now, limit, cost, view);
            uint64_t meta;
            nl_runs r;
            if (outcome != NL_UNDECIDED) return outcome;
            if (!nl_slot_take(&t->us, slot, &meta, patience)) return NL_WOULD_WAIT;
            bool same = nl_slot_is(slot, fp);
            if (!nl_runs_read(&t->rule, &t->chunks, slot, meta, now, &r)) r.used = 0; /* a damaged file */
            if (same) nl_runs_view(&t->chunks, &r, limit, cost, now, view);
            nl_slot_commit(slot, meta);
            if (!same) continue;
            return !cost || r.used + cost <= limit ? NL_ALLOWED : NL_DENIED;
        }
        if (t->rule.algorithm) {
            nl_outcome outcome = nl_meter_peek(&t->rule, slot, fp, now, limit, cost, view);
            uint64_t meta;
            nl_meter m;
            if (outcome != NL_UNDECIDED) return outcome;
            if (!nl_slot_take(&t->us, slot, &meta, patience)) return NL_WOULD_WAIT;
            bool same = nl_slot_is(slot, fp);
            if (!nl_meter_read(&t->rule, slot, meta, now, limit, &m)) m.live = false; /* a damaged file */
            nl_slot_commit(slot, meta);
            if (!same) continue;
            nl_meter_view(&t->rule, &m, limit, cost, now, view);
            return nl_meter_fits(&t->rule, &m, limit, cost) ? NL_ALLOWED : NL_DENIED;
        }
        if (!nl_log_peek(&t->rule, &t->chunks, slot, fp, now, limit, cost, view)) { /* it keeps changing: take it */
            uint64_t meta;
            nl_log log;
            if (!nl_slot_take(&t->us, slot, &meta, patience)) return NL_WOULD_WAIT;
            bool same = nl_slot_is(slot, fp);
            if (same && !nl_log_read(&t->rule, &t->chunks, slot, meta, now, &log)) memset(&log, 0, sizeof log); /* a damaged file */
            if (same) nl_log_view(&log, limit, cost, now, view);
            nl_slot_commit(slot, meta);
            if (!same) continue;
        }
        return !cost || view->used + cost <= limit ? NL_ALLOWED : NL_DENIED; /* (a limit may have been lowered) */
    }
}

/* Would it fit? Counts nothing, inserts nothing. NL_ALLOWED, NL_DENIED, NL_MOVED or (quick) NL_WOULD_WAIT. */
static inline nl_outcome nl_peek_at(nl_table *t, nl_fingerprint fp, uint64_t now_ns, uint32_t limit, uint32_t cost, nl_patience patience,
                                    nl_view *view) {
    const bool is_heir = nl_table_before(t) != NULL;
    nl_outcome outcome = nl_peek_here(t, fp, now_ns, limit, cost, patience, view);
    if (outcome & (NL_WOULD_WAIT | NL_MOVED) || view->used) return outcome;
    /* A slot that looks empty may be on its way: in the index here already, and not yet stamped; or its count gone from here, and not
     * yet its fingerprint. */
    nl_fence_acquire();
    if (NL_UNLIKELY(is_heir)) {
        if (t->take_key(t, fp, patience) == NL_WOULD_WAIT) return NL_WOULD_WAIT;
        outcome = nl_peek_here(t, fp, now_ns, limit, cost, patience, view);
        if (outcome & (NL_WOULD_WAIT | NL_MOVED) || view->used) return outcome;
        nl_fence_acquire();
    }
    return NL_UNLIKELY(nl_table_after(t)) ? NL_MOVED : outcome;
}

static inline nl_outcome nl_peek(nl_table *t, nl_fingerprint fp, uint64_t now_ns, uint32_t cost, nl_patience patience, nl_view *view) {
    return nl_peek_at(t, fp, now_ns, nl_load32(&t->head->limit), cost, patience, view);
}

/* Forgets a key. NL_ALLOWED: it had a live stamp; NL_DENIED: not; NL_WOULD_WAIT, NL_MOVED: as above. */
static inline nl_outcome nl_reset(nl_table *t, nl_fingerprint fp, uint64_t now_ns, nl_patience patience) {
    nl_now now = nl_rule_now(&t->rule, now_ns);
    nl_wait w = {0, 0, 0};
    if (NL_UNLIKELY(nl_table_before(t)) && t->take_key(t, fp, patience) == NL_WOULD_WAIT) return NL_WOULD_WAIT;
    for (;;) {
        uint32_t number;
        uint64_t meta, busy = 0;
        bool live = false, freed = false;
        nl_gate_enter(&t->us);
        nl_segment *segment = nl_segment_lock(t, fp, patience, &number);
        nl_slot *slot = NULL;
        if (segment) {
            slot = nl_segment_find(nl_segment_buckets(t, number), &t->slab, fp);
            if (slot && (freed = nl_slot_try(&t->us, slot, &meta))) {
                live = !nl_slot_is_idle(t, slot, meta, now);
                if (live) nl_slab_forget(&t->slab);
                nl_free_slot(t, segment, nl_segment_buckets(t, number), fp, slot);
            } else if (slot) {
                busy = nl_load64(&slot->meta);
            }
            nl_unlock(&segment->lock);
            if (freed) {
                uint32_t id = nl_slab_id(&t->slab, slot);
                nl_slot_scrub(t, slot);
                nl_slab_give(&t->us, &t->slab, &id, 1);
            }
        }
        nl_gate_leave(&t->us);
        if (!segment) return NL_WOULD_WAIT;
        if (!slot && nl_table_after(t)) return NL_MOVED;
        if (!slot || freed) return live ? NL_ALLOWED : NL_DENIED;
        if (!nl_wait_on(&t->us, &w, patience, busy)) return NL_WOULD_WAIT;
    }
}

#endif
