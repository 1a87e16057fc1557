/* log.h: one key's log: read it, deny by it, add to it. Knows slots, rings and chunks; knows nothing of how a slot is found.
 *
 * Deny: nothing is locked and nothing written. meta, the one stamp that decides, meta again, the fingerprint last; if nothing
 *       changed, the stamp was the one that meta spoke of, and the key was this key.
 * Allow: take the slot, look again, write stamps outside the published range, commit by one store of meta. Where a stamp
 *       would overwrite a published one, the log without its expired stamps is published first, still owned.
 *
 * So every state that anyone can ever see, readers or the heirs of a dead owner, is the log before or the log after.
 */
#ifndef NL_LOG_H
#define NL_LOG_H

#include "chunk.h"
#include "slot.h"

/* How requests are counted: stamp by stamp, as here, or by a meter (meter.h). Numbers that stand in files. */
enum { NL_SLIDING_LOG, NL_GCRA, NL_FIXED_WINDOW, NL_SLIDING_COUNTER, NL_ALGORITHMS };
/* In a rule, but in no file: a sliding log that is kept in runs (run.h), because of its limit or of its max_log. */
enum { NL_RUNS = NL_ALGORITHMS };
enum { NL_METER_LIMIT_MOST = 1 << 24, NL_RUNS_LIMIT_MOST = 1 << 24, NL_MAX_LOG_LEAST = 16 };

typedef struct { /* a quota in ticks, and how slots are packed for it */
    uint64_t tick_ns;
    uint32_t window; /* ticks, rounded up */
    uint32_t limit;
    uint32_t algorithm;
    uint32_t interval, interval_part; /* window / limit, and what is left: for gcra, which adds it most */
    uint32_t max_log, slot; /* runs: from so many on, stamps are moved up to multiples of `slot` ticks; 0: they never are */
    nl_shape shape;
} nl_rule;

static inline nl_shape nl_runs_shape(void) { /* a log of runs is a log of one stamp, its newest, which may be in a chunk */
    nl_shape s = nl_shape_of(1, 1);
    s.has_chunks = 1;
    s.inline_stamps = NL_REFERENCES;
    return s;
}

static inline nl_rule nl_rule_of(uint32_t limit, uint64_t window_ns, uint32_t algorithm, uint32_t max_log) {
    nl_rule rule;
    rule.tick_ns = nl_tick_ns_of(window_ns);
    rule.window = (uint32_t)((window_ns + rule.tick_ns - 1) / rule.tick_ns);
    rule.limit = limit;
    rule.algorithm = algorithm;
    rule.interval = rule.window / limit;
    rule.interval_part = rule.window % limit;
    rule.max_log = max_log;
    rule.slot = max_log > 1 ? (rule.window + max_log / 2 - 1) / (max_log / 2) : 0;
    if (!algorithm && (limit > NL_LIMIT_MOST || rule.slot)) rule.algorithm = NL_RUNS;
    rule.shape = rule.algorithm == NL_RUNS ? nl_runs_shape() : nl_shape_of(algorithm ? 1 : limit, rule.tick_ns); /* a meter is a log of one stamp */
    return rule;
}

/* The largest limit that a slot of this shape can count to. */
static inline uint32_t nl_rule_most(const nl_rule *rule) {
    if (rule->algorithm) return NL_METER_LIMIT_MOST;
    return !rule->shape.has_chunks ? rule->shape.inline_stamps : rule->shape.field_mask;
}

/* The largest limit for which a table's slots look the same. */
static inline uint32_t nl_limit_rounded(uint32_t limit) {
    return limit <= 6 ? 6 : limit <= NL_LIMIT_MOST ? (1u << nl_bit_length32(limit)) - 1 : NL_RUNS_LIMIT_MOST;
}

static inline uint32_t nl_limit_most(uint32_t algorithm) { return algorithm ? NL_METER_LIMIT_MOST : NL_RUNS_LIMIT_MOST; }

NL_ALWAYS_INLINE nl_now nl_rule_now(const nl_rule *rule, uint64_t now_ns) {
    return nl_now_of(now_ns, rule->tick_ns);
}

typedef enum { /* bits */
    NL_DENIED = 0,
    NL_ALLOWED = 1,
    NL_UNTRACKED = 2,   /* no room: decided by on_full */
    NL_DISPLACED = 4,   /* a live key lost its log to this one (or several did; the table has counted them) */
    NL_WOULD_WAIT = 8,  /* somebody is at it: nothing was counted, nothing is held; ask again and wait */
    NL_GONE = 16,       /* the slot is another key's by now: find again */
    NL_NO_CHUNK = 32,   /* the log must grow, and there is no memory committed for it */
    NL_UNDECIDED = 64,  /* a denial could not be shown without the slot */
    NL_BLOCKED = 128,   /* the key is blocked, whatever its log says (record.h) */
    NL_EXEMPT = 256,    /* the key is not limited */
    NL_MOVED = 512,     /* the table has a successor, and the key is there (successor.h): ask that one */
} nl_outcome;

typedef struct { /* a log at one instant */
    nl_ring ring;
    uint32_t head, count; /* as published */
    uint32_t expired;     /* the oldest so many are out */
    uint32_t used;        /* count - expired */
    uint32_t newest;      /* low bits; if count */
    uint64_t newest_tick; /* in full; if used */
} nl_log;

typedef struct { /* what a Decision is made of: units that count, and the stamps that matter, as full ticks */
    uint64_t now_ns;
    uint64_t newest_tick, oldest_tick, deciding_tick; /* newest and oldest: if used; deciding: if denied */
    uint32_t used;                                    /* after the decision */
    uint32_t limit;
} nl_view;

NL_ALWAYS_INLINE nl_ring nl_ring_of(const nl_rule *rule, const nl_chunks *chunks, const nl_slot *slot, uint64_t meta) {
    uint32_t selector = nl_meta_selector(meta);
    if (NL_LIKELY(!selector)) {
        nl_ring ring = {(uint32_t *)(uintptr_t)slot->ring, rule->shape.inline_stamps};
        return ring;
    }
    return nl_chunk_ring(chunks, nl_load32(&slot->ring[NL_REFERENCES + (selector & 1)]));
}

/* Decodes the log. Without the slot's owner what comes out may be nonsense until meta proves unchanged; it is bounded
 * nonsense: no index leaves its ring. False: not even that. */
NL_ALWAYS_INLINE bool nl_log_read(const nl_rule *rule, const nl_chunks *chunks, const nl_slot *slot, uint64_t meta, nl_now now,
                                  nl_log *log) {
    log->head = nl_meta_head(rule->shape, meta);
    log->count = log->expired = nl_meta_count(rule->shape, meta);
    log->ring = nl_ring_of(rule, chunks, slot, meta);
    log->used = 0;
    log->newest = 0;
    log->newest_tick = 0;
    if (NL_UNLIKELY(log->head >= log->ring.capacity || log->count > log->ring.capacity)) return false;
    if (!log->count) return true;
    log->newest = nl_load32_acquire(nl_ring_at(log->ring, log->head, log->count - 1)); /* the other stamps are no older: nl_log_held */
    uint64_t epoch = now.tick >> NL_EPOCH_SHIFT;
    int64_t since = nl_slot_epochs_since(rule->shape, slot, meta, epoch);
    if (since >= 2) return true; /* more than 2^30 ticks, so more than a window */
    uint32_t tick = (uint32_t)now.tick;
    if (since < 0 || (int32_t)(tick - log->newest) < 0) tick = log->newest - 1; /* time never runs backwards inside a key */
    log->expired = nl_ring_expired(log->ring, log->head, log->count, tick, rule->window);
    log->used = log->count - log->expired;
    const uint32_t low = (1u << NL_EPOCH_SHIFT) - 1;
    log->newest_tick = ((epoch - (uint64_t)since) << NL_EPOCH_SHIFT) | (log->newest & low);
    return true;
}

NL_ALWAYS_INLINE uint64_t nl_log_tick(const nl_log *log, uint32_t i) { /* of published stamp i, in full */
    return log->newest_tick - (log->newest - nl_ring_get(log->ring, log->head, i));
}

static inline void nl_view_empty(nl_view *view, uint32_t limit, uint64_t now_ns) { /* of a key without a log */
    view->now_ns = now_ns;
    view->limit = limit;
    view->used = 0;
    view->newest_tick = view->oldest_tick = view->deciding_tick = 0;
}

static inline void nl_log_view(const nl_log *log, uint32_t limit, uint32_t cost, nl_now now, nl_view *view) {
    nl_view_empty(view, limit, now.ns);
    view->used = log->used;
    if (!log->used) return;
    view->newest_tick = log->newest_tick;
    view->oldest_tick = nl_log_tick(log, log->expired);
    if (log->used + cost > limit) { /* (a cost above a limit that has just been lowered has no such stamp) */
        uint32_t leaving = log->used + cost - limit;
        view->deciding_tick = nl_log_tick(log, log->expired + (leaving < log->used ? leaving : log->used) - 1);
    }
}

NL_ALWAYS_INLINE bool nl_view_same(const nl_view *a, const nl_view *b) {
    return a->used == b->used && a->newest_tick == b->newest_tick && a->oldest_tick == b->oldest_tick &&
           a->deciding_tick == b->deciding_tick;
}

/* --- deny ------------------------------------------------------------------------------------------------------- */

/* NL_DENIED, or NL_UNDECIDED: it seems to fit, or it changed while we looked: take the slot and see. */
NL_ALWAYS_INLINE nl_outcome nl_log_deny(const nl_rule *rule, const nl_chunks *chunks, const nl_slot *slot, nl_fingerprint fp,
                                        nl_now now, uint32_t limit, uint32_t cost) {
    uint64_t meta = nl_load64_acquire(&slot->meta); /* acquire: the stamps that it publishes */
    uint32_t count = nl_meta_count(rule->shape, meta);
    if (count + cost <= limit) return NL_UNDECIDED; /* nothing need leave */
    int64_t since = nl_slot_epochs_since(rule->shape, slot, meta, now.tick >> NL_EPOCH_SHIFT);
    if (since >= 2) return NL_UNDECIDED;
    nl_ring ring = nl_ring_of(rule, chunks, slot, meta);
    uint32_t head = nl_meta_head(rule->shape, meta), i = count + cost - limit - 1;
    if (NL_UNLIKELY(head >= ring.capacity || i >= ring.capacity)) return NL_UNDECIDED;
    /* All stamps are within a window of the newest, so if now is behind the newest, this one has not left either. */
    if (since >= 0 && nl_stamp_is_out(nl_ring_get(ring, head, i), (uint32_t)now.tick, rule->window)) return NL_UNDECIDED;
    if (NL_UNLIKELY(!nl_slot_is(slot, fp))) return NL_UNDECIDED;
    nl_fence_acquire(); /* what follows is read after the stamp, and after both halves of the fingerprint */
    if (NL_UNLIKELY(nl_load64_acquire(&slot->meta) != meta)) return NL_UNDECIDED;
    if (nl_meta_selector(meta) && nl_ring_of(rule, chunks, slot, meta).stamps != ring.stamps) return NL_UNDECIDED;
    if (NL_UNLIKELY(!nl_slot_is(slot, fp))) return NL_UNDECIDED; /* twice: the slot may go to another key and come back */
    return NL_DENIED;
}

/* Was what nl_log_read gave out one log, the slot's at one instant? meta alone may come back to the same value after a lap that
 * replaced all stamps; but then the newest, which was read first, is another one now, a window later, or the chunk is. */
NL_ALWAYS_INLINE bool nl_log_held(const nl_rule *rule, const nl_chunks *chunks, const nl_slot *slot, uint64_t meta,
                                  const nl_log *log) {
    nl_fence_acquire(); /* what follows is read after the stamps */
    return nl_load64_acquire(&slot->meta) == meta && nl_ring_of(rule, chunks, slot, meta).stamps == log->ring.stamps &&
           (!log->count || nl_ring_get(log->ring, log->head, log->count - 1) == log->newest);
}

/* The log as a view, read without the slot: twice, and alike, with the right key in between. Once is not enough where several stamps
 * count: the key may be reset and come back in the meantime, even with the same stamps, at the price of one mixed reading; the second
 * reading follows an acquire of meta, so what it finds unchanged was one log. False: it kept changing, or is another key's. */
static inline bool nl_log_peek(const nl_rule *rule, const nl_chunks *chunks, const nl_slot *slot, nl_fingerprint fp, nl_now now,
                               uint32_t limit, uint32_t cost, nl_view *view) {
    nl_view before = {0, 0, 0, 0, 0, 0};
    nl_log log;
    uint64_t meta = 0, last_meta = 0;
    uint32_t *last_stamps = NULL;
    for (int reading = 0; reading < 6; reading++) {
        meta = nl_load64_acquire(&slot->meta);
        if (!nl_log_read(rule, chunks, slot, meta, now, &log)) return false;
        nl_log_view(&log, limit, cost, now, view);
        nl_fence_acquire();
        if (!nl_slot_is(slot, fp)) return false;
        if (reading && meta == last_meta && log.ring.stamps == last_stamps && nl_view_same(view, &before)) return true;
        before = *view;
        last_meta = meta;
        last_stamps = log.ring.stamps;
        nl_fence_acquire();
    }
    return false;
}

/* --- allow ------------------------------------------------------------------------------------------------------ */

/* The era that the log will need with a stamp in `epoch`. Moving it on changes no epoch that can be read; only a log that
 * has expired altogether may be out of its reach, and is emptied first. */
static inline void nl_slot_set_era(const nl_party *us, nl_shape s, nl_slot *slot, uint64_t *meta, nl_log *log, uint64_t epoch) {
    uint64_t reach = ~(uint64_t)0 >> s.epoch_shift;
    if (log->count && epoch - nl_load32(&slot->ring[NL_ERA]) <= reach) return;
    if (log->used) {
        nl_store32(&slot->ring[NL_ERA], (uint32_t)(log->newest_tick >> NL_EPOCH_SHIFT));
    } else {
        *meta = nl_meta_of(s, nl_meta_selector(*meta), 0, 0, 0);
        log->head = log->count = log->expired = 0;
        nl_slot_publish(us, slot, *meta);
        nl_store32(&slot->ring[NL_ERA], (uint32_t)epoch);
    }
}

/* Which ring a log of so many stamps should have: grow when full; come back when four times too large. 0: the slot's own. */
NL_ALWAYS_INLINE uint32_t nl_log_capacity_for(nl_shape s, uint32_t selector, uint32_t capacity, uint32_t stamps) {
    if (NL_LIKELY(stamps <= capacity && (!selector || (stamps > s.inline_stamps && 4 * stamps > capacity)))) return capacity;
    if (stamps <= s.inline_stamps) return selector ? 0 : capacity;
    return 1u << (NL_CHUNK_LEAST_SHIFT + nl_chunk_class_of(stamps));
}

/* The newest comes last, behind all others of its log: who reads the newest first (nl_log_read) then reads no older ones. */
NL_ALWAYS_INLINE void nl_ring_put(nl_ring ring, uint32_t head, uint32_t at, uint32_t stamp, uint32_t cost) {
    for (uint32_t i = 0; i + 1 < cost; i++) nl_store32(nl_ring_at(ring, head, at + i), stamp);
    nl_store32_release(nl_ring_at(ring, head, at + cost - 1), stamp);
}

/* Writes the log, with its new stamps, into another ring, and commits; a cost of 0 keeps the slot, with *moved_meta. Owning the slot;
 * copies at most 2,047 stamps. NL_ALLOWED; NL_NO_CHUNK or NL_WOULD_WAIT: no chunk is to be had, and nothing is changed. */
static NL_NOINLINE nl_outcome nl_log_move(const nl_party *us, const nl_rule *rule, nl_chunks *chunks, nl_slot *slot, uint64_t *moved_meta,
                                          const nl_log *log, uint32_t capacity, uint32_t stamp, uint32_t cost, uint64_t epoch,
                                          nl_patience patience) {
    uint64_t meta = *moved_meta;
    uint32_t selector = nl_meta_selector(meta), to_selector = !capacity ? 0 : selector == 1 ? 2 : 1;
    uint32_t *left = &slot->ring[NL_REFERENCES + (selector & 1)], *other = &slot->ring[NL_REFERENCES + !(selector & 1)];
    uint32_t *field = &slot->ring[NL_REFERENCES + (to_selector & 1)];
    nl_ring to = {slot->ring, rule->shape.inline_stamps};
    nl_gate_enter(us);
    nl_chunk_give(us, chunks, other); /* what a dead owner left over; but for that, all fields that are not selected are 0 */
    if (!selector) nl_chunk_give(us, chunks, left);
    if (capacity) {
        uint32_t reference = nl_load32(field) ? NL_CHUNK_BUSY : nl_chunk_take(us, chunks, field, nl_chunk_class_of(capacity), patience);
        if (reference == NL_CHUNK_NONE || reference == NL_CHUNK_UNCOMMITTED || reference == NL_CHUNK_BUSY) {
            nl_gate_leave(us);
            return reference == NL_CHUNK_BUSY ? NL_WOULD_WAIT : NL_NO_CHUNK;
        }
        nl_fence_release(); /* the chunk may have been another key's: whoever still reads it there sees that key's meta change */
        to = nl_chunk_ring(chunks, reference);
    }
    for (uint32_t i = 0; i < log->used; i++) nl_store32(&to.stamps[i], nl_ring_get(log->ring, log->head, log->expired + i));
    if (cost) nl_ring_put(to, 0, log->used, stamp, cost);
    NL_POINT(move_copied);
    nl_slot_publish(us, slot, meta = nl_meta_of(rule->shape, to_selector, 0, log->used + cost, epoch));
    NL_POINT(move_published);
    if (selector) nl_chunk_give(us, chunks, left); /* still owned: the field is nobody else's */
    NL_POINT(move_given);
    if (cost) nl_slot_commit(slot, meta);
    *moved_meta = meta;
    nl_gate_leave(us);
    return NL_ALLOWED;
}

/* Owning the slot. What only a damaged file has is read as an empty log. */
NL_ALWAYS_INLINE void nl_log_read_owned(const nl_rule *rule, const nl_chunks *chunks, const nl_slot *slot, uint64_t *meta, nl_now now,
                                        nl_log *log) {
    if (NL_LIKELY(nl_log_read(rule, chunks, slot, *meta, now, log))) return;
    log->count = log->used = log->expired = log->head = 0;
    *meta = 0;
    log->ring = nl_ring_of(rule, chunks, slot, *meta);
}

/* Adds to the log of a slot that one owns, which has room for it in the window; lets go of the slot in every case. */
NL_ALWAYS_INLINE nl_outcome nl_log_add(const nl_party *us, const nl_rule *rule, nl_chunks *chunks, nl_slot *slot, uint64_t meta,
                                       nl_log log, nl_now now, uint32_t limit, uint32_t cost, nl_patience patience, nl_view *view) {
    uint64_t tick = nl_now_rounded_up(now, rule->tick_ns);
    if (log.used && tick < log.newest_tick) tick = log.newest_tick;
    uint32_t stamp = (uint32_t)tick, stamps = log.used + cost;
    uint64_t epoch = tick >> NL_EPOCH_SHIFT;
    if (view) {
        nl_log_view(&log, limit, 0, now, view);
        view->newest_tick = tick;
        if (!log.used) view->oldest_tick = tick;
        view->used = stamps;
    }
    nl_fence_release(); /* whoever sees a stamp that we write now sees, after an acquire fence, that meta has changed */
    if (NL_UNLIKELY(rule->shape.has_era)) nl_slot_set_era(us, rule->shape, slot, &meta, &log, epoch);
    uint32_t selector = nl_meta_selector(meta);
    uint32_t capacity = nl_log_capacity_for(rule->shape, selector, log.ring.capacity, stamps);
    if (NL_UNLIKELY(capacity != log.ring.capacity)) {
        nl_outcome moved = nl_log_move(us, rule, chunks, slot, &meta, &log, capacity, stamp, cost, epoch, patience);
        if (moved == NL_ALLOWED) return NL_ALLOWED;
        capacity = log.ring.capacity; /* it could have been a smaller one, but need not */
        if (stamps > capacity) {
            nl_slot_commit(slot, meta);
            return moved;
        }
    }
    uint32_t head = log.head + log.expired;
    if (head >= capacity) head -= capacity;
    if (log.count + cost > capacity) /* the new stamps go where expired ones are still published */
        nl_slot_publish(us, slot, nl_meta_of(rule->shape, selector, head, log.used, log.newest_tick >> NL_EPOCH_SHIFT));
    NL_POINT(accept_purged);
    nl_ring_put(log.ring, head, log.used, stamp, cost);
    NL_POINT(accept_stamped);
    nl_slot_commit(slot, nl_meta_of(rule->shape, selector, head, stamps, epoch));
    NL_POINT(accept_committed);
    return NL_ALLOWED;
}

/* Decides and counts, owning the slot, whose published meta is `meta`; lets go of it in every case. */
NL_ALWAYS_INLINE nl_outcome nl_log_allow_owned(const nl_party *us, const nl_rule *rule, nl_chunks *chunks, nl_slot *slot, uint64_t meta,
                                               nl_now now, uint32_t limit, uint32_t cost, nl_patience patience, nl_view *view) {
    nl_log log;
    nl_log_read_owned(rule, chunks, slot, &meta, now, &log);
    if (log.used + cost > limit) {
        if (view) nl_log_view(&log, limit, cost, now, view);
        nl_slot_commit(slot, meta);
        return NL_DENIED;
    }
    return nl_log_add(us, rule, chunks, slot, meta, log, now, limit, cost, patience, view);
}

/* Sees that so many more stamps have room, so that adding them can't fail. The log stays what it is, and the slot owned. NL_ALLOWED, or
 * NL_NO_CHUNK or NL_WOULD_WAIT: as nl_log_move. */
NL_ALWAYS_INLINE nl_outcome nl_log_make_room(const nl_party *us, const nl_rule *rule, nl_chunks *chunks, nl_slot *slot, uint64_t *meta,
                                             nl_log *log, nl_now now, uint32_t cost, nl_patience patience) {
    if (NL_LIKELY(log->used + cost <= log->ring.capacity)) return NL_ALLOWED;
    uint32_t capacity = nl_log_capacity_for(rule->shape, nl_meta_selector(*meta), log->ring.capacity, log->used + cost);
    nl_outcome moved = nl_log_move(us, rule, chunks, slot, meta, log, capacity, 0, 0, log->newest_tick >> NL_EPOCH_SHIFT, patience);
    if (moved == NL_ALLOWED) nl_log_read(rule, chunks, slot, *meta, now, log);
    return moved;
}

/* Takes so many of the stamps that count out of the log, from the first-th on, owning the slot; commits. The older ones move up. Each
 * store puts an older stamp in a younger one's place, from the oldest on, so that the log is in order all the way: whoever sees it, an
 * heir too, sees no less than what will be left, and no more than was there. */
static NL_NOINLINE void nl_log_remove(const nl_rule *rule, nl_slot *slot, uint64_t meta, const nl_log *log, uint32_t first, uint32_t n) {
    const uint32_t left = log->used - n;
    uint32_t older[NL_LIMIT_MOST], head = log->head + log->expired;
    uint64_t newest_tick = first + n < log->used ? log->newest_tick : left ? nl_log_tick(log, log->expired + first - 1) : 0;
    nl_fence_release(); /* as where stamps are added */
    if (first + n < log->used) { /* else the youngest go, and nothing moves */
        for (uint32_t i = 0; i < first; i++) older[i] = nl_ring_get(log->ring, log->head, log->expired + i);
        for (uint32_t i = 1; first && i < first + n; i++)
            nl_store32_release(nl_ring_at(log->ring, log->head, log->expired + i), older[i < n ? 0 : i - n]);
        head += n;
    }
    if (head >= log->ring.capacity) head -= log->ring.capacity;
    nl_slot_commit(slot, nl_meta_of(rule->shape, nl_meta_selector(meta), left ? head : 0, left, newest_tick >> NL_EPOCH_SHIFT));
}

/* Takes the slot first. */
NL_ALWAYS_INLINE nl_outcome nl_log_allow(const nl_party *us, const nl_rule *rule, nl_chunks *chunks, nl_slot *slot, nl_fingerprint fp,
                                         nl_now now, uint32_t limit, uint32_t cost, nl_patience patience, nl_view *view) {
    uint64_t meta;
    if (NL_UNLIKELY(!nl_slot_take(us, slot, &meta, patience))) return NL_WOULD_WAIT;
    NL_POINT(slot_owned);
    if (NL_UNLIKELY(!nl_slot_is(slot, fp))) {
        nl_slot_commit(slot, meta);
        return NL_GONE;
    }
    return nl_log_allow_owned(us, rule, chunks, slot, meta, now, limit, cost, patience, view);
}

#endif
