/* run.h: one key's log where the limit is large: runs of units that were counted at the same tick, in pieces that are never copied.
 * Knows slots and chunks; knows nothing of how a slot is found.
 *
 *   one run          the slot     ring[0..1] ring[2..3]     two places: tick | units, and whether the tick was moved up
 *   up to 1,018      a root       12 words: two places | life | kept | runs, as a ring
 *   more             a root, class 4, of 32 entries -> indexes of 1,024 entries -> pieces of 1,024 runs, numbered modulo 2^32
 *
 *   a place in a root    newest tick | version | total | base | first | count, and two flags
 *   a run                tick | units counted up to and with it; where it is in a piece, less what both entries above it say
 *   an entry             reference | units that everything below it has more
 *
 * Ticks are their low 32 bits, units are counted from the log's beginning modulo 2^32; so what any stretch of runs holds is the
 * difference of two words, and the run that decides a denial is found by binary search. The newest run stands in the place
 * and not among the others: more units at its tick change the place alone. `base` is the total before run `first`.
 *
 * To the rest of the engine a log of runs is a log of exactly one stamp, as a meter is (meter.h): meta's count is 1, its head says which
 * place is published, and that place begins with the newest tick; so the hand, the walks and len() find idle logs of runs as others.
 *
 * Deny: nothing is locked and nothing written. meta, the version, the rest of the place, some runs; the fingerprint, meta again, life and
 * version again, the fingerprint last. Allow: take the slot, look again, write a run outside the published ones and the place that is
 * not published, commit by one store of meta.
 *
 * Why that is enough: meta may come back to the same value when two others have counted. But the version is the first word of a place
 * that is read and the last that is written, and grows with each writing: who read an old version with any newer word then finds
 * another meta, or that meta's newer version. A root that was another log's in between has another life: the number of its taking.
 *
 * Pieces. A chunk of a log is taken and given back through the one field that refers to it (chunk.h), and entries beyond the published
 * runs say nothing: what a dead owner had taken is used by the next who comes as far, or given back with the log. Entries of a root and
 * of an index are zeros before anything refers to it, and a root has entries only if its life is odd. Pieces that have left the window
 * are given back by later calls, a few each (`kept` is the first that may be there still), so that a call's work is bounded: it copies
 * 1,018 runs at most, and takes three chunks and gives back four. Only who forgets a log gives all its pieces back at once, owning a
 * slot that nobody else waits for; and who refunds gives back those that he refunds.
 *
 * max_log. While so many runs or more are in the window, new stamps are moved up to a multiple of `slot` ticks, of which max_log / 2 make
 * a window: so there are at most max_log / 2 + 2 of those besides. A stamp that was moved up leaves late, by less than
 * a slot, and never early. Time is not taken to have come as far as such a stamp: now is at least a slot before it.
 */
#ifndef NL_RUN_H
#define NL_RUN_H

#include "log.h"

enum { NL_RUNS_NEWEST, NL_RUNS_VERSION, NL_RUNS_TOTAL, NL_RUNS_BASE, NL_RUNS_FIRST, NL_RUNS_COUNT, NL_RUNS_PLACE }; /* words of a place */
enum {
    NL_RUNS_LIFE = 2 * NL_RUNS_PLACE,
    NL_RUNS_KEPT,
    NL_RUNS_HEAD,                   /* so many words before the runs or entries of a root */
    NL_RUNS_OTHER = 2,              /* head ^ so much is the other place in a slot; in a root, ^ NL_RUNS_PLACE */
    NL_PIECE_SHIFT = 10,            /* a piece: 2^10 runs; an index: 2^10 entries */
    NL_PIECE_RUNS = 1 << NL_PIECE_SHIFT,
    NL_PIECE_CLASS = 8,
    NL_PIECE_WORDS = 2 * NL_PIECE_RUNS,
    NL_INDEX_SHIFT = 2 * NL_PIECE_SHIFT,
    NL_ROOT_ENTRIES = 32,
    NL_ROOT_CLASS = 4,              /* of a root of entries */
    NL_ROOT_WORDS = NL_RUNS_HEAD + 2 * NL_ROOT_ENTRIES,
    NL_RUNS_LEAST_CLASS = 1,        /* of a root of runs */
    NL_RUNS_IN_ROOT = (NL_PIECE_WORDS - NL_RUNS_HEAD) / 2, /* the most, besides the newest */
    NL_RUNS_GIVE_MOST = 4,
};
#define NL_RUNS_MOVED 0x80000000u     /* the newest tick was moved up (in a slot: a bit of its units) */
#define NL_RUNS_REFUNDING 0x40000000u /* units are being taken out from among the runs: no reading without the slot */
#define NL_RUNS_FLAGS (NL_RUNS_MOVED | NL_RUNS_REFUNDING)

typedef struct { /* a log at one instant */
    uint32_t *root;       /* NULL: the slot */
    uint32_t room;        /* runs that a root holds, besides the newest; 0: it holds entries */
    uint32_t life, version;
    uint32_t newest, total, base, first, count; /* as published; count: of the runs besides the newest */
    uint32_t flags;
    uint32_t expired;     /* the oldest so many of them are out */
    uint32_t from;        /* the total before those that count */
    uint32_t used;        /* units that count */
    uint32_t now;         /* low bits; not before the newest, or, if that was moved up, not a slot before it */
    uint64_t newest_tick; /* in full; if used */
} nl_runs;

typedef struct {
    uint32_t tick, total;
} nl_run;

/* --- where runs are ------------------------------------------------------------------------------------------------- */

NL_ALWAYS_INLINE uint32_t *nl_runs_entry(uint32_t *root, uint32_t number) {
    return root + NL_RUNS_HEAD + 2 * (number >> NL_INDEX_SHIFT & (NL_ROOT_ENTRIES - 1));
}

/* The entry of a piece, in an index. NULL: there is no such index, of a log that changes meanwhile. */
NL_ALWAYS_INLINE uint32_t *nl_index_entry(const nl_chunks *chunks, uint32_t reference, uint32_t number) {
    nl_ring ring = nl_chunk_ring(chunks, reference);
    return ring.capacity == NL_PIECE_WORDS ? ring.stamps + 2 * (number >> NL_PIECE_SHIFT & (NL_PIECE_RUNS - 1)) : NULL;
}

/* Run i of those that are published, or the one behind them; *above: what its total is more than its word. NULL: as above. */
NL_ALWAYS_INLINE uint32_t *nl_runs_at(const nl_chunks *chunks, const nl_runs *r, uint32_t i, uint32_t *above) {
    uint32_t at = r->first + i;
    *above = 0;
    if (r->room) return r->root + NL_RUNS_HEAD + 2 * (at >= r->room ? at - r->room : at);
    if (!r->root) return NULL;
    uint32_t *entry = nl_runs_entry(r->root, at), *below = nl_index_entry(chunks, nl_load32(entry), at);
    if (!below) return NULL;
    nl_ring piece = nl_chunk_ring(chunks, nl_load32(below));
    if (piece.capacity != NL_PIECE_WORDS) return NULL;
    *above = nl_load32(entry + 1) + nl_load32(below + 1);
    return piece.stamps + 2 * (at & (NL_PIECE_RUNS - 1));
}

NL_ALWAYS_INLINE nl_run nl_runs_get(const nl_chunks *chunks, const nl_runs *r, uint32_t i) {
    nl_run run = {r->newest, r->total};
    uint32_t above;
    if (i >= r->count) return run;
    const uint32_t *at = nl_runs_at(chunks, r, i, &above);
    if (!at) return run;
    run.tick = nl_load32(at);
    run.total = nl_load32(at + 1) + above;
    return run;
}

/* The first run, from the low-th on, up to which there are so many units above `from`; r->count: the newest. */
NL_ALWAYS_INLINE uint32_t nl_runs_find(const nl_chunks *chunks, const nl_runs *r, uint32_t low, uint32_t from, uint32_t units) {
    uint32_t high = r->count;
    if (low < high && nl_runs_get(chunks, r, low).total - from >= units) return low;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (nl_runs_get(chunks, r, middle).total - from >= units) high = middle;
        else low = middle + 1;
    }
    return low;
}

NL_ALWAYS_INLINE uint64_t nl_runs_tick(const nl_runs *r, uint32_t tick) { return r->newest_tick - (uint32_t)(r->newest - tick); }

/* --- read ------------------------------------------------------------------------------------------------------------ */

/* The published place. Without the slot's owner it may be nonsense until nl_runs_held; but no index leaves its chunk. False: not even
 * that. */
NL_ALWAYS_INLINE bool nl_runs_load(const nl_chunks *chunks, const nl_slot *slot, uint64_t meta, nl_runs *r) {
    const uint32_t selector = nl_meta_selector(meta), head = nl_meta_head(nl_runs_shape(), meta);
    memset(r, 0, sizeof *r);
    if (!selector) {
        if (head > NL_RUNS_OTHER) return false;
        r->newest = nl_load32_acquire(&slot->ring[head]);
        uint32_t units = nl_load32(&slot->ring[head + 1]);
        r->total = units & ~NL_RUNS_FLAGS;
        r->flags = units & NL_RUNS_MOVED;
        return true;
    }
    nl_ring ring = nl_chunk_ring(chunks, nl_load32(&slot->ring[NL_REFERENCES + (selector & 1)]));
    if (ring.capacity <= NL_RUNS_HEAD || (head && head != NL_RUNS_PLACE)) return false;
    const uint32_t *place = ring.stamps + head;
    r->root = ring.stamps;
    r->life = nl_load32_acquire(ring.stamps + NL_RUNS_LIFE); /* first: whose log is read must be known from the first word on */
    r->version = nl_load32_acquire(place + NL_RUNS_VERSION);
    r->newest = nl_load32(place + NL_RUNS_NEWEST);
    r->total = nl_load32(place + NL_RUNS_TOTAL);
    r->base = nl_load32(place + NL_RUNS_BASE);
    r->first = nl_load32(place + NL_RUNS_FIRST);
    r->count = nl_load32(place + NL_RUNS_COUNT);
    r->flags = r->count & NL_RUNS_FLAGS;
    r->count &= ~NL_RUNS_FLAGS;
    if (r->life & 1) return ring.capacity >= NL_ROOT_WORDS && r->count <= (uint32_t)NL_ROOT_ENTRIES << NL_INDEX_SHIFT;
    r->room = (ring.capacity - NL_RUNS_HEAD) / 2;
    return r->first < r->room && r->count <= r->room;
}

/* The same, moved on to now: what is out, and what counts. False: none is left, for want of a stamp or of one in the window. */
NL_ALWAYS_INLINE bool nl_runs_tell_time(const nl_rule *rule, const nl_slot *slot, uint64_t meta, nl_now now, nl_runs *r) {
    const uint64_t epoch = now.tick >> NL_EPOCH_SHIFT;
    if (!nl_meta_count(nl_runs_shape(), meta)) return false;
    const int64_t since = nl_slot_epochs_since(nl_runs_shape(), slot, meta, epoch);
    if (since >= 2) return false;
    r->newest_tick = ((epoch - (uint64_t)since) << NL_EPOCH_SHIFT) | (r->newest & ((1u << NL_EPOCH_SHIFT) - 1));
    uint64_t earliest = r->flags & NL_RUNS_MOVED ? rule->slot : 1;
    earliest = r->newest_tick > earliest ? r->newest_tick - earliest : 0;
    /* time never runs backwards inside a key */
    r->now = (uint32_t)(now.tick < earliest ? earliest : now.tick);
    return !nl_stamp_is_out(r->newest, r->now, rule->window);
}

NL_ALWAYS_INLINE void nl_runs_age(const nl_rule *rule, const nl_chunks *chunks, const nl_slot *slot, uint64_t meta, nl_now now, nl_runs *r) {
    r->expired = r->count;
    r->from = r->total;
    if (!nl_runs_tell_time(rule, slot, meta, now, r)) return;
    uint32_t low = 0, high = r->count;
    if (high && !nl_stamp_is_out(nl_runs_get(chunks, r, 0).tick, r->now, rule->window)) high = 0; /* the usual case */
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (nl_stamp_is_out(nl_runs_get(chunks, r, middle).tick, r->now, rule->window)) low = middle + 1;
        else high = middle;
    }
    r->expired = low;
    r->from = low ? nl_runs_get(chunks, r, low - 1).total : r->base;
    r->used = r->total - r->from;
}

NL_ALWAYS_INLINE bool nl_runs_read(const nl_rule *rule, const nl_chunks *chunks, const nl_slot *slot, uint64_t meta, nl_now now, nl_runs *r) {
    if (!nl_runs_load(chunks, slot, meta, r)) return false;
    nl_runs_age(rule, chunks, slot, meta, now, r);
    return true;
}

/* Owning the slot. What only a damaged file has is read as an empty log. */
static inline void nl_runs_read_owned(const nl_rule *rule, const nl_chunks *chunks, const nl_slot *slot, uint64_t *meta, nl_now now,
                                      nl_runs *r) {
    if (NL_LIKELY(nl_runs_read(rule, chunks, slot, *meta, now, r))) return;
    memset(r, 0, sizeof *r);
    *meta = 0;
}

/* Was what was read one log, this key's, at one instant? */
NL_ALWAYS_INLINE bool nl_runs_held(const nl_chunks *chunks, const nl_slot *slot, nl_fingerprint fp, uint64_t meta, const nl_runs *r) {
    if (NL_UNLIKELY(!nl_slot_is(slot, fp))) return false;
    nl_fence_acquire(); /* what follows is read after the runs, and after both halves of the fingerprint */
    if (NL_UNLIKELY(nl_load64_acquire(&slot->meta) != meta)) return false;
    const uint32_t selector = nl_meta_selector(meta), head = nl_meta_head(nl_runs_shape(), meta);
    if (!selector) {
        if (nl_load32(&slot->ring[head]) != r->newest) return false;
    } else {
        if (nl_chunk_ring(chunks, nl_load32(&slot->ring[NL_REFERENCES + (selector & 1)])).stamps != r->root) return false;
        if (nl_load32(r->root + NL_RUNS_LIFE) != r->life || nl_load32(r->root + head + NL_RUNS_VERSION) != r->version) return false;
    }
    return nl_slot_is(slot, fp); /* twice: the slot may go to another key and come back */
}

static inline void nl_runs_view(const nl_chunks *chunks, const nl_runs *r, uint32_t limit, uint32_t cost, nl_now now, nl_view *view) {
    nl_view_empty(view, limit, now.ns);
    view->used = r->used;
    if (!r->used) return;
    view->newest_tick = r->newest_tick;
    /* (a run all of whose units were refunded may be the oldest) */
    view->oldest_tick = nl_runs_tick(r, nl_runs_get(chunks, r, nl_runs_find(chunks, r, r->expired, r->from, 1)).tick);
    if (r->used + cost > limit)
        view->deciding_tick =
            nl_runs_tick(r, nl_runs_get(chunks, r, nl_runs_find(chunks, r, r->expired, r->from, r->used + cost - limit)).tick);
}

/* NL_DENIED, with its view, or NL_UNDECIDED: it seems to fit, or it changed while we looked: take the slot and see. */
NL_ALWAYS_INLINE nl_outcome nl_runs_deny(const nl_rule *rule, const nl_chunks *chunks, const nl_slot *slot, nl_fingerprint fp, nl_now now,
                                         uint32_t limit, uint32_t cost, nl_view *view) {
    nl_runs r;
    const uint64_t meta = nl_load64_acquire(&slot->meta);
    if (NL_UNLIKELY(!nl_runs_load(chunks, slot, meta, &r)) || r.flags & NL_RUNS_REFUNDING) return NL_UNDECIDED;
    const uint32_t units = r.total - r.base;
    if (units + cost <= limit || !nl_runs_tell_time(rule, slot, meta, now, &r)) return NL_UNDECIDED;
    const uint32_t deciding = nl_runs_find(chunks, &r, 0, r.base, units + cost - limit);
    if (nl_stamp_is_out(nl_runs_get(chunks, &r, deciding).tick, r.now, rule->window)) return NL_UNDECIDED;
    if (view) {
        nl_runs_age(rule, chunks, slot, meta, now, &r);
        nl_runs_view(chunks, &r, limit, cost, now, view);
    }
    return nl_runs_held(chunks, slot, fp, meta, &r) ? NL_DENIED : NL_UNDECIDED;
}

/* Would it fit? Read without the slot. NL_UNDECIDED: it kept changing, or is another key's. */
static inline nl_outcome nl_runs_peek(const nl_rule *rule, const nl_chunks *chunks, const nl_slot *slot, nl_fingerprint fp, nl_now now,
                                      uint32_t limit, uint32_t cost, nl_view *view) {
    for (int reading = 0; reading < 6; reading++) {
        nl_runs r;
        const uint64_t meta = nl_load64_acquire(&slot->meta);
        if (!nl_runs_read(rule, chunks, slot, meta, now, &r) || r.flags & NL_RUNS_REFUNDING) continue;
        nl_runs_view(chunks, &r, limit, cost, now, view);
        if (nl_runs_held(chunks, slot, fp, meta, &r)) return !cost || r.used + cost <= limit ? NL_ALLOWED : NL_DENIED;
    }
    return NL_UNDECIDED;
}

/* --- write ----------------------------------------------------------------------------------------------------------- */

/* Writes the place that is not published, owning the slot. What it returns publishes it. */
static inline uint64_t nl_runs_write(nl_slot *slot, uint64_t meta, nl_runs *r, uint64_t newest_tick) {
    const uint32_t selector = nl_meta_selector(meta);
    uint32_t head = nl_meta_head(nl_runs_shape(), meta);
    if (!r->root) {
        head ^= NL_RUNS_OTHER;
        nl_store32(&slot->ring[head + 1], r->total | r->flags);
        nl_store32_release(&slot->ring[head], r->newest);
    } else {
        head ^= NL_RUNS_PLACE;
        uint32_t *place = r->root + head;
        nl_store32(place + NL_RUNS_NEWEST, r->newest);
        nl_store32(place + NL_RUNS_TOTAL, r->total);
        nl_store32(place + NL_RUNS_BASE, r->base);
        nl_store32(place + NL_RUNS_FIRST, r->first);
        nl_store32(place + NL_RUNS_COUNT, r->count | r->flags);
        nl_store32_release(place + NL_RUNS_VERSION, ++r->version); /* last: see above */
    }
    return nl_meta_of(nl_runs_shape(), selector, head, 1, newest_tick >> NL_EPOCH_SHIFT);
}

/* Forgets, in `r` only, what is out. */
static inline void nl_runs_purge(nl_runs *r) {
    r->first += r->expired;
    if (r->room && r->first >= r->room) r->first -= r->room;
    r->count -= r->expired;
    r->expired = 0;
    r->base = r->from;
}

/* The tick at which units are counted now; *moved: NL_RUNS_MOVED, if it was moved up. */
static inline uint64_t nl_runs_stamp(const nl_rule *rule, const nl_runs *r, nl_now now, uint32_t *moved) {
    uint64_t tick = nl_now_rounded_up(now, rule->tick_ns);
    *moved = 0;
    if (!r->used) return tick;
    if (tick <= r->newest_tick) {
        *moved = r->flags & NL_RUNS_MOVED;
        return r->newest_tick;
    }
    if (rule->slot && r->count - r->expired + 1 >= rule->max_log) {
        *moved = NL_RUNS_MOVED;
        tick = (tick + rule->slot - 1) / rule->slot * rule->slot;
    }
    return tick;
}

/* --- chunks ---------------------------------------------------------------------------------------------------------- */

static inline nl_outcome nl_runs_taken(uint32_t reference) {
    if (reference == NL_CHUNK_NONE || reference == NL_CHUNK_UNCOMMITTED) return NL_NO_CHUNK;
    return reference == NL_CHUNK_BUSY ? NL_WOULD_WAIT : NL_ALLOWED;
}

/* Ends what a dead owner of the slot may have begun with one of its fields: until then a field may refer to a chunk that is free, and
 * may be made 0. Owning the slot, before an unpublished field is followed. False: no patience left. */
static inline bool nl_runs_settle(const nl_party *us, nl_chunks *chunks, nl_patience patience) {
    if (!us->members) return true;
    if (!nl_chunks_lock(us, chunks, patience)) return false;
    nl_unlock(&chunks->state->lock);
    return true;
}

/* Gives back an index, and the pieces that it may have. Within the gate, settled. */
static inline void nl_runs_give_index(const nl_party *us, nl_chunks *chunks, uint32_t *entry) {
    nl_ring index = nl_chunk_ring(chunks, nl_load32(entry));
    for (uint32_t i = 0; nl_load32(entry) && index.capacity == NL_PIECE_WORDS && i < NL_PIECE_RUNS; i++) {
        if (!nl_load32(index.stamps + 2 * i)) continue;
        nl_chunk_give_as(us, chunks, index.stamps + 2 * i, true);
        if (nl_load32(index.stamps + 2 * i)) return; /* no patience left for the lock: the rest stays too, to be found */
    }
    nl_chunk_give_as(us, chunks, entry, true);
}

/* Gives back the root that a slot's unpublished field refers to, if to any, and all below it. Within the gate. */
static NL_NOINLINE void nl_runs_give(const nl_party *us, nl_chunks *chunks, uint32_t *field) {
    if (!nl_load32(field) || !nl_runs_settle(us, chunks, NL_BRIEFLY) || !nl_load32(field)) return;
    nl_ring root = nl_chunk_ring(chunks, nl_load32(field));
    if (root.capacity >= NL_ROOT_WORDS && nl_load32(root.stamps + NL_RUNS_LIFE) & 1) {
        for (uint32_t i = 0; i < NL_ROOT_ENTRIES; i++) {
            uint32_t *entry = root.stamps + NL_RUNS_HEAD + 2 * i;
            if (nl_load32(entry)) nl_runs_give_index(us, chunks, entry);
            if (nl_load32(entry)) return;
        }
    }
    nl_chunk_give(us, chunks, field);
}

/* Sees that run `number` has a piece. `begins`: it is the first there. Within the gate. NL_ALLOWED; NL_NO_CHUNK or NL_WOULD_WAIT: none
 * is to be had. */
static nl_outcome nl_runs_extend(const nl_party *us, nl_chunks *chunks, uint32_t *root, uint32_t number, bool begins, nl_patience patience) {
    uint32_t *entry = nl_runs_entry(root, number), *below;
    const uint32_t indexes = ((number >> NL_INDEX_SHIFT) - (nl_load32(root + NL_RUNS_KEPT) >> NL_PIECE_SHIFT)) & 0xfff;
    nl_outcome outcome;
    if (begins && !nl_runs_settle(us, chunks, patience)) return NL_WOULD_WAIT;
    if (indexes >= NL_ROOT_ENTRIES) return NL_NO_CHUNK; /* so many runs can't count; it takes as many that were refunded */
    if (!nl_load32(entry)) {
        outcome = nl_runs_taken(nl_chunk_take_as(us, chunks, entry, NL_PIECE_CLASS, patience, true, NL_PIECE_WORDS, 0));
        if (outcome != NL_ALLOWED) return outcome;
    }
    below = nl_index_entry(chunks, nl_load32(entry), number);
    if (!below) return NL_NO_CHUNK; /* a damaged file */
    if (nl_load32(below)) return NL_ALLOWED;
    outcome = nl_runs_taken(nl_chunk_take_as(us, chunks, below, NL_PIECE_CLASS, patience, true, 0, 0));
    nl_fence_release(); /* the chunk may have been another key's: whoever still reads it there sees that key's meta change */
    return outcome;
}

/* Gives back some pieces that had left the window when the log was last published. Owning the slot. */
static inline void nl_runs_drain(const nl_party *us, nl_chunks *chunks, const nl_runs *r) {
    uint32_t kept = nl_load32(r->root + NL_RUNS_KEPT);
    if (NL_LIKELY(kept == r->first >> NL_PIECE_SHIFT)) return;
    nl_gate_enter(us);
    const bool settled = nl_runs_settle(us, chunks, NL_BRIEFLY);
    for (int i = 0; i < NL_RUNS_GIVE_MOST && settled && kept != r->first >> NL_PIECE_SHIFT; i++) {
        uint32_t *entry = nl_runs_entry(r->root, kept << NL_PIECE_SHIFT);
        uint32_t *below = nl_index_entry(chunks, nl_load32(entry), kept << NL_PIECE_SHIFT);
        if (below) {
            nl_chunk_give_as(us, chunks, below, true);
            if (nl_load32(below)) break;
        }
        kept = (kept + 1) & (UINT32_MAX >> NL_PIECE_SHIFT);
        if (!(kept & (NL_PIECE_RUNS - 1))) { /* it was the last of its index */
            nl_runs_give_index(us, chunks, entry);
            if (nl_load32(entry)) break;
        }
        nl_store32(r->root + NL_RUNS_KEPT, kept);
    }
    nl_gate_leave(us);
}

/* The class of a root for so many runs besides the newest. */
NL_ALWAYS_INLINE uint32_t nl_runs_class(uint32_t runs) {
    if (runs > NL_RUNS_IN_ROOT) return NL_ROOT_CLASS;
    uint32_t class_ = nl_chunk_class_of(NL_RUNS_HEAD + 2 * runs);
    return class_ < NL_RUNS_LEAST_CLASS ? NL_RUNS_LEAST_CLASS : class_;
}

/* Writes what counts of the log to where there is room for so many runs besides the newest (0: the slot), and publishes it there, still
 * owning the slot. NL_ALLOWED; NL_NO_CHUNK or NL_WOULD_WAIT: no chunk is to be had, and nothing is changed. */
static NL_NOINLINE nl_outcome nl_runs_move(const nl_party *us, nl_chunks *chunks, nl_slot *slot, uint64_t *moved_meta, nl_runs *r,
                                           uint32_t runs, nl_patience patience) {
    const uint64_t meta = *moved_meta;
    const uint32_t selector = nl_meta_selector(meta), to_selector = !runs ? 0 : selector == 1 ? 2 : 1;
    uint32_t *left = &slot->ring[NL_REFERENCES + (selector & 1)], *other = &slot->ring[NL_REFERENCES + !(selector & 1)];
    uint32_t *field = &slot->ring[NL_REFERENCES + (to_selector & 1)];
    nl_runs to = {.newest = r->newest, .total = r->total, .base = r->from, .flags = r->flags & NL_RUNS_MOVED, .version = r->version,
                  .newest_tick = r->newest_tick, .used = r->used, .from = r->from, .now = r->now};
    nl_outcome outcome = NL_ALLOWED;
    nl_gate_enter(us);
    nl_runs_give(us, chunks, other); /* what a dead owner left over; but for that, all fields that are not selected are 0 */
    if (!selector) nl_runs_give(us, chunks, left);
    if (runs) {
        const bool pieces = runs > NL_RUNS_IN_ROOT;
        const uint32_t class_ = nl_runs_class(runs);
        uint32_t reference = NL_CHUNK_BUSY;
        if (!nl_load32(field))
            reference = nl_chunk_take_as(us, chunks, field, class_, patience, false, pieces ? NL_ROOT_WORDS : NL_RUNS_HEAD, NL_RUNS_LIFE);
        outcome = nl_runs_taken(reference);
        if (outcome == NL_ALLOWED) {
            nl_ring ring = nl_chunk_ring(chunks, reference);
            to.root = ring.stamps;
            to.room = pieces ? 0 : (ring.capacity - NL_RUNS_HEAD) / 2;
            to.life = nl_load32(to.root + NL_RUNS_LIFE) | pieces;
            if (pieces) {
                nl_store32_release(to.root + NL_RUNS_LIFE, to.life);
                outcome = nl_runs_extend(us, chunks, to.root, 0, true, patience);
                if (outcome != NL_ALLOWED) nl_runs_give(us, chunks, field);
            }
        }
    } else {
        to.total -= to.base;
        to.base = to.from = 0;
    }
    if (outcome != NL_ALLOWED) {
        nl_gate_leave(us);
        return outcome;
    }
    nl_fence_release(); /* the chunk may have been another log's: whoever still reads that there sees the new life */
    for (uint32_t i = r->expired, above; r->used && i < r->count; i++, to.count++) {
        nl_run run = nl_runs_get(chunks, r, i);
        uint32_t *at = nl_runs_at(chunks, &to, to.count, &above);
        nl_store32(at, run.tick);
        nl_store32(at + 1, run.total - above);
    }
    const uint64_t written = nl_runs_write(slot, nl_meta_of(nl_runs_shape(), to_selector, 0, 1, 0), &to, to.newest_tick);
    NL_POINT(move_copied);
    /* (an empty log stays empty) */
    *moved_meta = r->used ? written : nl_meta_of(nl_runs_shape(), to_selector, nl_meta_head(nl_runs_shape(), written), 0, 0);
    nl_slot_publish(us, slot, *moved_meta);
    NL_POINT(move_published);
    if (selector) nl_runs_give(us, chunks, left); /* still owned: the field is nobody else's */
    NL_POINT(move_given);
    nl_gate_leave(us);
    *r = to;
    return NL_ALLOWED;
}

/* Sees that adding can't fail. The log stays what it is, and the slot owned. NL_ALLOWED; or as nl_runs_move. */
static inline nl_outcome nl_runs_make_room(const nl_party *us, const nl_rule *rule, nl_chunks *chunks, nl_slot *slot, uint64_t *meta,
                                           nl_runs *r, nl_now now, nl_patience patience) {
    uint32_t moved, runs = 0;
    const bool one_more = nl_runs_stamp(rule, r, now, &moved) != r->newest_tick;
    if (r->used) runs = r->count - r->expired + one_more;
    if (!r->root) return runs ? nl_runs_move(us, chunks, slot, meta, r, runs, patience) : NL_ALLOWED;
    if (r->room) {
        if (runs > r->room) return nl_runs_move(us, chunks, slot, meta, r, runs, patience);
        /* back where four times less would do; but it need not */
        if (4 * runs <= r->room && (!runs || nl_runs_class(runs) < nl_chunk_class_of(NL_RUNS_HEAD + 2 * r->room)) &&
            nl_runs_move(us, chunks, slot, meta, r, runs, patience) == NL_WOULD_WAIT)
            return NL_WOULD_WAIT;
        return NL_ALLOWED;
    }
    /* pieces; and back when all but the last are given back */
    if (4 * runs <= NL_RUNS_IN_ROOT && nl_load32(r->root + NL_RUNS_KEPT) == (r->first + r->expired) >> NL_PIECE_SHIFT &&
        nl_runs_move(us, chunks, slot, meta, r, runs, patience) == NL_ALLOWED)
        return NL_ALLOWED;
    if (!r->used || !one_more) return NL_ALLOWED;
    const uint32_t number = r->first + r->count;
    nl_gate_enter(us);
    nl_outcome outcome = nl_runs_extend(us, chunks, r->root, number, !r->count || !(number & (NL_PIECE_RUNS - 1)), patience);
    nl_gate_leave(us);
    return outcome;
}

/* --- allow ----------------------------------------------------------------------------------------------------------- */

/* Adds to the log of a slot that one owns, which has room for it; what it returns publishes it: nl_slot_commit. */
static inline uint64_t nl_runs_write_more(const nl_party *us, const nl_rule *rule, nl_chunks *chunks, nl_slot *slot, uint64_t meta,
                                          nl_runs *r, nl_now now, uint32_t limit, uint32_t cost, nl_view *view) {
    uint32_t moved, above;
    const uint64_t tick = nl_runs_stamp(rule, r, now, &moved);
    if (view) {
        nl_runs_view(chunks, r, limit, 0, now, view);
        view->newest_tick = tick;
        if (!r->used) view->oldest_tick = tick;
        view->used = r->used + cost;
    }
    nl_fence_release(); /* whoever sees a word that we write now sees, after an acquire fence, that meta has changed */
    if (r->root && !r->room) nl_runs_drain(us, chunks, r);
    if (!r->used) { /* from the beginning; but the numbers of runs in pieces go on */
        r->first = r->room ? 0 : r->first + r->count;
        r->count = r->expired = 0;
        r->base = r->from = r->total;
        if (!r->root) r->total = r->base = r->from = 0;
    } else if (tick != r->newest_tick) {
        if (r->room && r->count == r->room) { /* the newest goes where one that is out is still published */
            nl_runs_purge(r);
            r->flags &= NL_RUNS_MOVED;
            meta = nl_runs_write(slot, meta, r, r->newest_tick);
            nl_slot_publish(us, slot, meta);
        }
        uint32_t *at = nl_runs_at(chunks, r, r->count, &above);
        NL_POINT(accept_purged);
        if (at) { /* (else the file is damaged) */
            nl_store32(at, r->newest);
            nl_store32(at + 1, r->total - above);
        }
        r->count++;
    }
    nl_runs_purge(r);
    r->newest = (uint32_t)tick;
    r->total += cost;
    r->flags = moved;
    return nl_runs_write(slot, meta, r, tick);
}

/* The same, and lets go of the slot. */
static inline void nl_runs_add(const nl_party *us, const nl_rule *rule, nl_chunks *chunks, nl_slot *slot, uint64_t meta, nl_runs *r,
                               nl_now now, uint32_t limit, uint32_t cost, nl_view *view) {
    meta = nl_runs_write_more(us, rule, chunks, slot, meta, r, now, limit, cost, view);
    NL_POINT(accept_stamped);
    nl_slot_commit(slot, meta);
    NL_POINT(accept_committed);
}

/* Decides and counts, owning the slot, whose published meta is `meta`; lets go of it in every case. */
static NL_NOINLINE nl_outcome nl_runs_allow_owned(const nl_party *us, const nl_rule *rule, nl_chunks *chunks, nl_slot *slot, uint64_t meta,
                                                  nl_now now, uint32_t limit, uint32_t cost, nl_patience patience, nl_view *view) {
    nl_runs r;
    nl_outcome outcome = NL_DENIED;
    nl_runs_read_owned(rule, chunks, slot, &meta, now, &r);
    if (r.used + cost > limit) {
        if (view) nl_runs_view(chunks, &r, limit, cost, now, view);
    } else if ((outcome = nl_runs_make_room(us, rule, chunks, slot, &meta, &r, now, patience)) == NL_ALLOWED) {
        nl_runs_add(us, rule, chunks, slot, meta, &r, now, limit, cost, view);
        return NL_ALLOWED;
    }
    nl_slot_commit(slot, meta);
    return outcome;
}

/* Takes the slot first. */
static inline nl_outcome nl_runs_allow(const nl_party *us, const nl_rule *rule, nl_chunks *chunks, nl_slot *slot, nl_fingerprint fp,
                                       nl_now now, uint32_t limit, uint32_t cost, nl_patience patience, nl_view *view) {
    uint64_t meta;
    if (NL_UNLIKELY(!nl_slot_take(us, slot, &meta, patience))) return NL_WOULD_WAIT;
    NL_POINT(slot_owned);
    if (NL_UNLIKELY(!nl_slot_is(slot, fp))) {
        nl_slot_commit(slot, meta);
        return NL_GONE;
    }
    return nl_runs_allow_owned(us, rule, chunks, slot, meta, now, limit, cost, patience, view);
}

/* --- refund ---------------------------------------------------------------------------------------------------------- */

/* Takes so many units, fewer than count, off the log's end, and commits. */
static inline void nl_runs_cut(const nl_party *us, const nl_rule *rule, nl_chunks *chunks, nl_slot *slot, uint64_t meta, nl_runs *r,
                               uint32_t units) {
    const uint32_t end = r->first + r->count, last = nl_runs_find(chunks, r, r->expired, r->from, r->used - units);
    uint64_t newest_tick = r->newest_tick;
    r->flags &= NL_RUNS_MOVED;
    if (last < r->count) {
        r->newest = nl_runs_get(chunks, r, last).tick;
        newest_tick -= (uint32_t)((uint32_t)r->newest_tick - r->newest);
        r->flags = rule->slot && newest_tick % rule->slot == 0 ? NL_RUNS_MOVED : 0; /* it may have been */
        r->count = last;
    }
    r->total -= units;
    nl_runs_purge(r);
    meta = nl_runs_write(slot, meta, r, newest_tick);
    const uint32_t new_end = r->first + r->count;
    if (r->root && !r->room && end >> NL_PIECE_SHIFT != new_end >> NL_PIECE_SHIFT) {
        nl_gate_enter(us);
        nl_slot_publish(us, slot, meta);
        const bool settled = nl_runs_settle(us, chunks, NL_BRIEFLY);
        for (uint32_t number = end; settled && number >> NL_PIECE_SHIFT != new_end >> NL_PIECE_SHIFT; number -= NL_PIECE_RUNS) {
            uint32_t *entry = nl_runs_entry(r->root, number), *below = nl_index_entry(chunks, nl_load32(entry), number);
            if (number >> NL_INDEX_SHIFT != new_end >> NL_INDEX_SHIFT && !(number >> NL_PIECE_SHIFT & (NL_PIECE_RUNS - 1)))
                nl_runs_give_index(us, chunks, entry);
            else if (below) nl_chunk_give_as(us, chunks, below, true);
        }
        nl_gate_leave(us);
    }
    nl_slot_commit(slot, meta);
}

/* Takes units out of run i, which is not the newest, and commits. All totals from there on are so much less: of the runs of its piece, of
 * the pieces of its index, of the indexes. Going up, each store puts the units one run later; so whoever sees the log, an heir too,
 * sees no fewer than what will be left, and no more than were there. */
static inline void nl_runs_take_out(const nl_party *us, nl_chunks *chunks, nl_slot *slot, uint64_t meta, nl_runs *r, uint32_t i,
                                    uint32_t units) {
    i -= r->expired;
    nl_runs_purge(r);
    r->flags = (r->flags & NL_RUNS_MOVED) | NL_RUNS_REFUNDING;
    meta = nl_runs_write(slot, meta, r, r->newest_tick);
    nl_slot_publish(us, slot, meta);
    const uint32_t begin = r->first + i, last = r->first + r->count - 1;
    for (uint32_t above; i < r->count && (r->room || (r->first + i) >> NL_PIECE_SHIFT == begin >> NL_PIECE_SHIFT); i++) {
        uint32_t *at = nl_runs_at(chunks, r, i, &above);
        if (at) nl_store32_release(at + 1, nl_load32(at + 1) - units);
    }
    for (uint32_t piece = begin >> NL_PIECE_SHIFT; !r->room && piece != last >> NL_PIECE_SHIFT;) {
        piece = (piece + 1) & (UINT32_MAX >> NL_PIECE_SHIFT);
        if (!(piece & (NL_PIECE_RUNS - 1))) break;
        const uint32_t number = piece << NL_PIECE_SHIFT;
        uint32_t *below = nl_index_entry(chunks, nl_load32(nl_runs_entry(r->root, number)), number);
        if (below) nl_store32_release(below + 1, nl_load32(below + 1) - units);
    }
    for (uint32_t index = begin >> NL_INDEX_SHIFT; !r->room && index != last >> NL_INDEX_SHIFT;) {
        index = (index + 1) & (UINT32_MAX >> NL_INDEX_SHIFT);
        uint32_t *entry = nl_runs_entry(r->root, index << NL_INDEX_SHIFT);
        nl_store32_release(entry + 1, nl_load32(entry + 1) - units);
    }
    r->total -= units;
    r->flags &= ~NL_RUNS_REFUNDING;
    nl_slot_commit(slot, nl_runs_write(slot, meta, r, r->newest_tick));
}

/* Gives back up to `units` of those that were counted at `tick`, or (latest) of the last; lets go of the slot. How many. */
static NL_NOINLINE uint32_t nl_runs_refund(const nl_party *us, const nl_rule *rule, nl_chunks *chunks, nl_slot *slot, uint64_t meta,
                                           nl_now now, uint64_t tick, bool latest, uint32_t units) {
    nl_runs r;
    uint32_t i, given = 0;
    nl_runs_read_owned(rule, chunks, slot, &meta, now, &r);
    if (latest) {
        i = r.count;
        given = r.used;
    } else if (r.used) {
        uint32_t low = r.expired, high = r.count;
        while (low < high) {
            uint32_t middle = low + (high - low) / 2;
            if (nl_runs_tick(&r, nl_runs_get(chunks, &r, middle).tick) < tick) low = middle + 1;
            else high = middle;
        }
        i = low;
        nl_run run = nl_runs_get(chunks, &r, i);
        if (nl_runs_tick(&r, run.tick) == tick) given = run.total - (i > r.expired ? nl_runs_get(chunks, &r, i - 1).total : r.from);
    }
    if (given > units) given = units;
    nl_fence_release(); /* as where units are added */
    if (!given) nl_slot_commit(slot, meta);
    else if (given == r.used) /* an empty log, where it is */
        nl_slot_commit(slot, nl_meta_of(nl_runs_shape(), nl_meta_selector(meta), nl_meta_head(nl_runs_shape(), meta), 0, 0));
    else if (i < r.count) nl_runs_take_out(us, chunks, slot, meta, &r, i, given);
    else nl_runs_cut(us, rule, chunks, slot, meta, &r, given);
    return given;
}

#endif
