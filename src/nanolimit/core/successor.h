/* successor.h: a table in the place of another, which has another window, or room for a larger limit; no log is lost on the way.
 *
 * Private tables only. The old table is told of its successor; from then on it takes no new keys, and nobody finds there what has
 * moved. The new one is used at once: a key that is not in it is first looked for in the old one, and moved. Somebody walks the
 * old one meanwhile and moves the rest; then nothing is left of it but address space, for calls that are still inside.
 *
 * A key moves under its old slot's lock: its log is read, written in the new table, and then the old slot is freed. Who comes to the
 * old slot in between waits; who comes to the new table finds no key there, or one whose slot is owned, and waits as well. All of it
 * is within the gate (lock.h): the child of a fork finds the key in one of the tables.
 *
 * Stamps are rounded up to the new ticks: never one too many. A window that has become longer finds older stamps gone: it is exact
 * after one of them has passed.
 *
 * Order of locks: all of the old table come before all of the new one; nobody who holds anything of the new one waits for the old.
 */
#ifndef NL_SUCCESSOR_H
#define NL_SUCCESSOR_H

#include "walk.h"

enum { NL_MOVING_KEYS = NL_WALK_BUCKETS * NL_BUCKET_ENTRIES };

static inline uint64_t nl_tick_in(const nl_rule *to, const nl_rule *from, uint64_t tick) {
    uint64_t ns = tick * from->tick_ns;
    return ns / to->tick_ns + (ns % to->tick_ns != 0);
}

/* How many of a log's stamps count in the new window too: its newest. */
static inline uint32_t nl_log_left(const nl_rule *to, const nl_rule *from, const nl_log *log, uint64_t now_ns) {
    uint64_t newest = nl_tick_in(to, from, log->newest_tick), now = nl_rule_now(to, now_ns).tick;
    uint32_t out = 0;
    if (now < newest) now = newest - 1;
    while (out < log->used && now - nl_tick_in(to, from, nl_log_tick(log, log->expired + out)) + 1 > to->window) out++;
    return log->used - out;
}

/* Writes a log's stamps into a slot that one owns, and that is empty. NL_NO_CHUNK: there is no memory for them. */
static inline nl_outcome nl_log_adopt(nl_table *t, nl_slot *slot, uint64_t *meta, const nl_rule *from, const nl_log *log, uint32_t count,
                                      nl_patience patience) {
    const nl_shape s = t->rule.shape;
    const uint32_t first = log->used - count;
    const uint64_t newest = nl_tick_in(&t->rule, from, log->newest_tick);
    nl_now now = {newest * t->rule.tick_ns, newest};
    nl_log own;
    nl_log_read_owned(&t->rule, &t->chunks, slot, meta, now, &own);
    if (s.has_era) nl_slot_set_era(&t->us, s, slot, meta, &own, newest >> NL_EPOCH_SHIFT);
    nl_outcome outcome = nl_log_make_room(&t->us, &t->rule, &t->chunks, slot, meta, &own, now, count, patience);
    if (outcome != NL_ALLOWED) return outcome;
    nl_fence_release();
    for (uint32_t i = 0; i < count; i++)
        nl_store32(nl_ring_at(own.ring, 0, i), (uint32_t)nl_tick_in(&t->rule, from, nl_log_tick(log, log->expired + first + i)));
    *meta = nl_meta_of(s, nl_meta_selector(*meta), 0, count, newest >> NL_EPOCH_SHIFT);
    return NL_ALLOWED;
}

/* The same where the new table keeps runs: adds units that were counted at a tick of its own. */
static inline nl_outcome nl_runs_bring(nl_table *t, nl_slot *slot, uint64_t *meta, uint64_t tick, uint32_t units) {
    const nl_now now = {tick * t->rule.tick_ns, tick};
    nl_outcome outcome = NL_ALLOWED;
    for (int tries = 0; units && tries < 8; tries++) {
        nl_runs r;
        nl_runs_read_owned(&t->rule, &t->chunks, slot, meta, now, &r);
        outcome = nl_runs_make_room(&t->us, &t->rule, &t->chunks, slot, meta, &r, now, NL_WAITING);
        if (outcome == NL_ALLOWED) {
            *meta = nl_runs_write_more(&t->us, &t->rule, &t->chunks, slot, *meta, &r, now, UINT32_MAX, units, NULL);
            nl_slot_publish(&t->us, slot, *meta);
            return NL_ALLOWED;
        }
        if (!nl_chunks_commit(&t->chunks, t->page_bytes)) break;
    }
    return outcome;
}

/* All of a log of stamps, or of runs. As many steps as it has of them. */
static inline nl_outcome nl_runs_adopt(nl_table *t, nl_slot *slot, uint64_t *meta, const nl_table *from, const nl_log *log,
                                       const nl_runs *runs) {
    nl_outcome outcome = NL_ALLOWED;
    if (runs) {
        uint32_t before = runs->from;
        for (uint32_t i = runs->expired; i <= runs->count && outcome == NL_ALLOWED; i++) {
            nl_run run = nl_runs_get(&from->chunks, runs, i);
            outcome = nl_runs_bring(t, slot, meta, nl_tick_in(&t->rule, &from->rule, nl_runs_tick(runs, run.tick)), run.total - before);
            before = run.total;
        }
        return outcome;
    }
    for (uint32_t i = 0, n; i < log->used && outcome == NL_ALLOWED; i += n) {
        const uint64_t tick = nl_log_tick(log, log->expired + i);
        for (n = 1; i + n < log->used && nl_log_tick(log, log->expired + i + n) == tick;) n++;
        outcome = nl_runs_bring(t, slot, meta, nl_tick_in(&t->rule, &from->rule, tick), n);
    }
    return outcome;
}

/* The same of a meter's state, which is not rounded but for its times: gcra keeps how full the bucket is, the others their windows'
 * beginnings and what was counted in them. */
static inline uint64_t nl_meter_adopt(nl_table *t, nl_slot *slot, uint64_t meta, const nl_rule *from, nl_meter m, nl_now now, uint32_t limit) {
    const nl_rule *to = &t->rule;
    if (m.algorithm == NL_GCRA) {
        nl_view view;
        uint32_t most = nl_load32(&t->head->limit);
        nl_meter_view(from, &m, limit, 0, now, &view);
        uint32_t units = view.used < most ? view.used : most;
        nl_meter full = m;
        full.live = false;
        if (!units) return 0;
        nl_meter_add(to, &full, nl_rule_now(to, now.ns), most, units);
        return nl_meter_write(slot, meta, &full);
    }
    uint64_t start = m.algorithm == NL_FIXED_WINDOW ? m.stamp : m.stamp - from->window;
    m.stamp = nl_tick_in(to, from, start) + (m.algorithm == NL_FIXED_WINDOW ? 0 : to->window);
    return nl_meter_write(slot, meta, &m);
}

/* Of a slot of the old table that one owns: gives the new one its log. NL_ALLOWED, or NL_WOULD_WAIT: nothing was done. Where there is
 * no room, the log is lost, and counted as evicted. Within the gate. */
static inline nl_outcome nl_move_log(nl_table *from, nl_slot *slot, uint64_t meta, nl_table *to, nl_fingerprint fp) {
    nl_outcome displaced = NL_DENIED, outcome;
    const uint32_t limit = nl_load32(&from->head->limit);
    const nl_now now = nl_rule_now(&from->rule, nl_load64(&to->moved_ns));
    const uint32_t kept_as = from->rule.algorithm;
    const bool is_meter = kept_as && kept_as != NL_RUNS;
    uint32_t left = 0;
    nl_slot *own;
    uint64_t own_meta;
    nl_log log;
    nl_runs runs;
    nl_meter m;
    memset(&log, 0, sizeof log); /* (a compiler that does not see which of them is read, warns) */
    memset(&m, 0, sizeof m);
    if (kept_as == NL_RUNS) {
        nl_runs_read_owned(&from->rule, &from->chunks, slot, &meta, now, &runs);
        left = runs.used;
    } else if (is_meter) {
        left = nl_meter_read(&from->rule, slot, meta, now, limit, &m) && m.live;
    } else {
        nl_log_read_owned(&from->rule, &from->chunks, slot, &meta, now, &log);
        if (log.used) left = nl_log_left(&to->rule, &from->rule, &log, now.ns);
    }
    if (!left) return NL_ALLOWED;
    outcome = nl_own_here(to, fp, nl_rule_now(&to->rule, now.ns), NL_QUICKLY, &own, &own_meta, &displaced);
    if (outcome == NL_WOULD_WAIT) return NL_WOULD_WAIT;
    if (outcome == NL_ALLOWED && is_meter) {
        own_meta = nl_meter_adopt(to, own, own_meta, &from->rule, m, now, limit);
    } else if (outcome == NL_ALLOWED && to->rule.algorithm == NL_RUNS) {
        outcome = nl_runs_adopt(to, own, &own_meta, from, &log, kept_as == NL_RUNS ? &runs : NULL);
    } else if (outcome == NL_ALLOWED) {
        /* The slot is in the index: it must not be let go of, empty, for want of memory. So for once memory is asked for under a lock. */
        for (int tries = 0; tries < 8; tries++) {
            outcome = nl_log_adopt(to, own, &own_meta, &from->rule, &log, left, NL_WAITING);
            if (outcome == NL_ALLOWED || !nl_chunks_commit(&to->chunks, to->page_bytes)) break;
        }
    }
    if (!(outcome & NL_UNTRACKED)) nl_slot_commit(own, own_meta);
    if (outcome != NL_ALLOWED) nl_count(&to->head->counters, nl_my_stripe(), NL_COUNT_EVICTED, 1);
    return NL_ALLOWED;
}

/* Moves a key, if the old table has it. NL_ALLOWED: it is not there any more, nor will be. NL_WOULD_WAIT. */
static inline nl_outcome nl_move_key(nl_table *from, nl_table *to, nl_fingerprint fp, nl_patience patience) {
    nl_wait w = {0, 0, 0};
    for (;;) {
        nl_slot *slot;
        uint64_t meta;
        uint32_t number;
        if (nl_find_locked(from, fp, patience, &slot) == NL_WOULD_WAIT) return NL_WOULD_WAIT;
        if (!slot) return NL_ALLOWED;
        if (!nl_slot_take(&from->us, slot, &meta, patience)) return NL_WOULD_WAIT;
        if (!nl_slot_is(slot, fp)) {
            nl_slot_commit(slot, meta);
            continue;
        }
        nl_gate_enter(&from->us);
        nl_outcome outcome = nl_move_log(from, slot, meta, to, fp);
        if (outcome == NL_ALLOWED) { /* waits for a segment while it owns a slot: who has the segment only tries slots */
            nl_segment *segment = nl_segment_lock(from, fp, NL_WAITING, &number);
            nl_free_slot(from, segment, nl_segment_buckets(from, number), fp, slot);
            nl_unlock(&segment->lock);
            nl_slot_scrub(from, slot);
            uint32_t id = nl_slab_id(&from->slab, slot);
            nl_slab_give(&from->us, &from->slab, &id, 1);
        } else {
            nl_slot_commit(slot, meta);
        }
        nl_gate_leave(&from->us);
        if (outcome == NL_ALLOWED || !nl_wait_on(&from->us, &w, patience, 0)) return outcome;
    }
}

static nl_outcome nl_take_key(nl_table *t, nl_fingerprint fp, nl_patience patience) {
    nl_table *from = nl_table_before(t);
    return from ? nl_move_key(from, t, fp, patience) : NL_ALLOWED;
}

/* Makes `to`, an empty table of the same keys, the successor. Afterwards it is for use, and nl_move_all must be called, once. */
static inline void nl_succeed(nl_table *from, nl_table *to, uint64_t now_ns) {
    to->on_full = from->on_full;
    to->clock = from->clock;
    to->number = from->number + NL_QUOTAS_MOST; /* another table in the order of owning */
    to->moved_ns = now_ns;
    to->take_key = nl_take_key;
    to->predecessor = from;
    nl_store32_release(&to->succeeds, 1);
    from->successor = to;
    nl_store32_release(&from->succeeded, 1);
    nl_fence_full();
}

/* Moves all keys, a few at a time, while others go on. Not with the GIL. */
static inline void nl_move_all(nl_table *from, nl_table *to) {
    bool some = true;
    while (some) { /* once more than needed: an insert may have been under way */
        some = false;
        for (uint32_t number = 0; number < nl_load32_acquire(&from->head->segments); number++) {
            for (uint32_t first = 0; first < NL_SEGMENT_BUCKETS; first += NL_WALK_BUCKETS) {
                nl_fingerprint fps[NL_MOVING_KEYS];
                uint32_t n = nl_walk_read(from, number, first, fps);
                for (uint32_t i = 0; i < n; i++) nl_move_key(from, to, fps[i], NL_WAITING);
                some |= n != 0;
            }
        }
    }
    nl_store32_release(&to->succeeds, 0);
}

/* Hands a table's pages back. Its address space stays, so that whoever is inside finds zeros, not a fault. */
static inline void nl_table_drop(nl_table *t) {
    const uint64_t logs = nl_load64(&t->chunks.chunks.committed); /* others may be about to commit more */
    nl_drop(t->slab.slots.base, nl_load64(&t->slab.slots.committed));
    nl_drop(t->bucket_region.base, nl_load64(&t->bucket_region.committed));
    if (logs) nl_drop(t->chunks.chunks.base, logs);
}

#endif
