/* claim.h: several logs at once, all or nothing: the quotas of one key, or the keys of several limiters.
 *
 * Each claim is a key in a table (a quota has a table of its own: its ticks are its own) with a cost and a limit. If one of them
 * denies, none counts.
 *
 *   1. deny without locks, as one log does (log.h)
 *   2. see that each key has a slot: an empty log is idle, so a slot that is not used after all costs nothing. (If the table has no room for
 *      all of them, one is given the other's: then whoever has one owns it first, nl_claims_hold)
 *   3. own all slots, in one order that is the same in every thread and every process: by the tables' secrets, then by their
 *      numbers, then by the slots' own. While a slot is owned nobody waits for a segment (table.h), so 2 comes before 3, and a
 *      slot that became another key's in between sends us back
 *   4. decide on all; if one denies, let go of all
 *   5. make room where a log must grow; if there is none, let go of all
 *   6. count, one by one, each by its one store, which also lets go of it. A death here has counted in some: never too few
 *
 * So what any two calls that count see of each other is one after the other (two-phase locking: Eswaran, Gray, Lorie and Traiger, 1976).
 * Who owns nothing, a peek or a denial, may see in step 6 that one has counted and, a moment later, that another has not yet.
 */
#ifndef NL_CLAIM_H
#define NL_CLAIM_H

#include "table.h"

enum { NL_CLAIMS_MOST = 64, NL_GONE_MOST = 4 };

typedef struct {
    nl_table *table;
    nl_fingerprint fp;
    uint32_t limit, cost; /* cost 0: always fits, and counts nothing */
    nl_now now;
    nl_slot *slot;
    uint64_t meta;        /* as published, while the slot is owned */
    nl_outcome outcome;   /* of this one by itself: NL_ALLOWED, NL_DENIED, NL_UNTRACKED besides */
    nl_view view;
    union {               /* what it holds, while the slot is owned */
        nl_log log;
        nl_meter meter;
        nl_runs runs;
    };
} nl_claim;

/* Does a come before b in the order of owning? Shared tables have other addresses in each process, but the same secret. */
static inline bool nl_claim_before(const nl_claim *a, const nl_claim *b) {
    const nl_head *x = a->table->head, *y = b->table->head;
    if (x->secret[0] != y->secret[0]) return x->secret[0] < y->secret[0];
    if (x->secret[1] != y->secret[1]) return x->secret[1] < y->secret[1];
    if (a->table->number != b->table->number) return a->table->number < b->table->number;
    return nl_slab_id(&a->table->slab, a->slot) < nl_slab_id(&b->table->slab, b->slot);
}

static inline void nl_claims_sort(nl_claim **order, uint32_t n) { /* few, and mostly in order already */
    for (uint32_t i = 1; i < n; i++)
        for (uint32_t j = i; j && nl_claim_before(order[j], order[j - 1]); j--) {
            nl_claim *other = order[j];
            order[j] = order[j - 1];
            order[j - 1] = other;
        }
}

/* Lets go of the first n, unchanged. */
static inline void nl_claims_let_go(nl_claim **order, uint32_t n) {
    while (n--) nl_slot_commit(order[n]->slot, order[n]->meta);
}

/* --- what differs between a log, a meter and runs ------------------------------------------------------------------------- */

NL_ALWAYS_INLINE nl_outcome nl_claim_deny(const nl_claim *c) {
    const nl_table *t = c->table;
    if (NL_UNLIKELY(t->rule.algorithm == NL_RUNS)) return nl_runs_deny(&t->rule, &t->chunks, c->slot, c->fp, c->now, c->limit, c->cost, NULL);
    if (NL_UNLIKELY(t->rule.algorithm)) return nl_meter_deny(t->rule.algorithm, &t->rule, c->slot, c->fp, c->now, c->limit, c->cost, NULL);
    return nl_log_deny(&t->rule, &t->chunks, c->slot, c->fp, c->now, c->limit, c->cost);
}

/* False: it kept changing, or is another key's. */
static inline bool nl_claim_peek(nl_claim *c) {
    const nl_table *t = c->table;
    if (t->rule.algorithm == NL_RUNS) {
        c->outcome = nl_runs_peek(&t->rule, &t->chunks, c->slot, c->fp, c->now, c->limit, c->cost, &c->view);
        return c->outcome != NL_UNDECIDED;
    }
    if (t->rule.algorithm) {
        c->outcome = nl_meter_peek(&t->rule, c->slot, c->fp, c->now, c->limit, c->cost, &c->view);
        return c->outcome != NL_UNDECIDED;
    }
    if (!nl_log_peek(&t->rule, &t->chunks, c->slot, c->fp, c->now, c->limit, c->cost, &c->view)) return false;
    c->outcome = c->cost && c->view.used + c->cost > c->limit ? NL_DENIED : NL_ALLOWED;
    return true;
}

/* Owning the slot. */
static inline nl_outcome nl_claim_decide(nl_claim *c, bool views) {
    const nl_table *t = c->table;
    if (t->rule.algorithm == NL_RUNS) {
        nl_runs_read_owned(&t->rule, &t->chunks, c->slot, &c->meta, c->now, &c->runs);
        c->outcome = c->cost && c->runs.used + c->cost > c->limit ? NL_DENIED : NL_ALLOWED;
        if (views) nl_runs_view(&t->chunks, &c->runs, c->limit, c->outcome == NL_DENIED ? c->cost : 0, c->now, &c->view);
    } else if (t->rule.algorithm) {
        if (NL_UNLIKELY(!nl_meter_read(&t->rule, c->slot, c->meta, c->now, c->limit, &c->meter))) c->meter.live = false, c->meta = 0;
        c->outcome = nl_meter_fits(&t->rule, &c->meter, c->limit, c->cost) ? NL_ALLOWED : NL_DENIED;
        if (views) nl_meter_view(&t->rule, &c->meter, c->limit, c->cost, c->now, &c->view);
    } else {
        nl_log_read_owned(&t->rule, &t->chunks, c->slot, &c->meta, c->now, &c->log);
        c->outcome = c->cost && c->log.used + c->cost > c->limit ? NL_DENIED : NL_ALLOWED;
        if (views) nl_log_view(&c->log, c->limit, c->outcome == NL_DENIED ? c->cost : 0, c->now, &c->view);
    }
    return c->outcome;
}

static inline nl_outcome nl_claim_make_room(nl_claim *c, nl_patience patience) {
    nl_table *t = c->table;
    if (t->rule.algorithm == NL_RUNS && c->cost)
        return nl_runs_make_room(&t->us, &t->rule, &t->chunks, c->slot, &c->meta, &c->runs, c->now, patience);
    if (t->rule.algorithm) return NL_ALLOWED;
    return nl_log_make_room(&t->us, &t->rule, &t->chunks, c->slot, &c->meta, &c->log, c->now, c->cost, patience);
}

static inline void nl_claim_count(nl_claim *c, bool views, nl_patience patience) {
    nl_table *t = c->table;
    nl_view *view = views ? &c->view : NULL;
    if (!c->cost) nl_slot_commit(c->slot, c->meta);
    else if (t->rule.algorithm == NL_RUNS) nl_runs_add(&t->us, &t->rule, &t->chunks, c->slot, c->meta, &c->runs, c->now, c->limit, c->cost, view);
    else if (t->rule.algorithm) nl_meter_allow_owned(t->rule.algorithm, &t->rule, c->slot, c->meta, c->now, c->limit, c->cost, view);
    else nl_log_add(&t->us, &t->rule, &t->chunks, c->slot, c->meta, c->log, c->now, c->limit, c->cost, patience, view);
}

/* --- the steps ------------------------------------------------------------------------------------------------------ */

/* Step 1. True: one denies, and with views all have theirs. */
NL_ALWAYS_INLINE bool nl_claims_deny(nl_claim *claims, uint32_t n, bool views) {
    bool denied = false;
    for (uint32_t i = 0; i < n; i++) {
        nl_claim *c = &claims[i];
        c->outcome = NL_ALLOWED;
        c->slot = nl_find(c->table, c->fp);
        if (!c->slot || !c->cost || nl_claim_deny(c) != NL_DENIED) continue;
        c->outcome = NL_DENIED;
        denied = true;
        if (!views) return true;
    }
    if (!denied) return false;
    denied = false;
    bool seen = true;
    for (uint32_t i = 0; seen && i < n; i++) { /* it may have changed between the two looks */
        nl_claim *c = &claims[i];
        if (!c->slot) {
            nl_view_empty(&c->view, c->limit, c->now.ns);
            continue;
        }
        seen = nl_claim_peek(c);
        denied |= seen && c->outcome == NL_DENIED;
    }
    if (seen && denied) return true;
    for (uint32_t i = 0; i < n; i++) claims[i].outcome = NL_ALLOWED; /* what one of them said is not the answer: none has a say yet */
    return false;
}

/* Step 2. NL_ALLOWED: *n of them, in `order`, have slots; the others pass uncounted, for want of room. NL_DENIED: for want of room.
 * NL_WOULD_WAIT, NL_MOVED. */
static inline nl_outcome nl_claims_place(nl_claim *claims, uint32_t all, nl_claim **order, uint32_t *n, nl_patience patience,
                                         nl_outcome *displaced) {
    bool allowed = true;
    *n = 0;
    for (uint32_t i = 0; i < all; i++) {
        nl_claim *c = &claims[i];
        nl_outcome outcome = NL_ALLOWED;
        if (c->outcome & NL_UNTRACKED) continue;
        if (!c->slot) {
            uint64_t meta;
            outcome = nl_own(c->table, c->fp, c->now, patience, &c->slot, &meta, displaced);
            if (outcome & (NL_WOULD_WAIT | NL_MOVED)) return outcome;
            if (outcome == NL_ALLOWED) nl_slot_commit(c->slot, meta);
        }
        if (outcome == NL_ALLOWED) order[(*n)++] = c;
        else c->outcome = nl_full(c->table, c->limit, c->cost, c->now, &c->view);
        allowed &= (c->outcome & NL_ALLOWED) != 0;
    }
    return allowed ? NL_ALLOWED : NL_DENIED;
}

/* Step 3. NL_ALLOWED: all are owned. NL_GONE, NL_WOULD_WAIT: none is. */
static inline nl_outcome nl_claims_own(nl_claim **order, uint32_t n, nl_patience patience) {
    for (uint32_t i = 0; i < n; i++) {
        nl_claim *c = order[i];
        if (NL_UNLIKELY(i && order[i - 1]->slot == c->slot)) { /* freed by somebody, and given to another of these keys: not ours twice */
            nl_claims_let_go(order, i);
            return NL_GONE;
        }
        bool owned = nl_slot_take(&c->table->us, c->slot, &c->meta, patience);
        if (owned && NL_LIKELY(nl_slot_is(c->slot, c->fp))) continue;
        if (owned) nl_slot_commit(c->slot, c->meta);
        nl_claims_let_go(order, i);
        return owned ? NL_GONE : NL_WOULD_WAIT;
    }
    return NL_ALLOWED;
}

/* Steps 2 and 3 the other way round, for a table that may have no room for all of them: an empty log is idle, so what one of them was given
 * in step 2 the next one may be given again, for ever. Whoever has a slot owns it while the others look for theirs; as slots are owned then,
 * they wait for nothing. NL_ALLOWED: all that can be tracked are owned; else none is. */
static NL_NOINLINE nl_outcome nl_claims_hold(nl_claim *claims, uint32_t all, nl_claim **order, uint32_t *n, nl_patience patience,
                                             nl_outcome *displaced) {
    uint32_t owned = 0;
    bool allowed = true;
    for (uint32_t i = 0; i < all; i++)
        if (claims[i].slot) order[owned++] = &claims[i];
    nl_claims_sort(order, owned);
    *n = owned;
    nl_outcome outcome = nl_claims_own(order, owned, patience);
    for (uint32_t i = 0; i < all && outcome == NL_ALLOWED; i++) {
        nl_claim *c = &claims[i];
        if (c->slot) continue;
        outcome = nl_own(c->table, c->fp, c->now, NL_HOLDING, &c->slot, &c->meta, displaced);
        if (outcome & (NL_WOULD_WAIT | NL_MOVED)) {
            nl_claims_let_go(order, owned);
            return outcome & NL_MOVED ? outcome : NL_GONE; /* somebody is at it: from the beginning */
        }
        if (outcome == NL_ALLOWED) order[owned++] = c;
        else c->outcome = nl_full(c->table, c->limit, c->cost, c->now, &c->view);
        allowed &= (c->outcome & NL_ALLOWED) != 0;
        outcome = NL_ALLOWED;
    }
    *n = owned;
    if (outcome != NL_ALLOWED || allowed) return outcome;
    nl_claims_let_go(order, owned);
    return NL_DENIED;
}

/* Steps 4 and 5, owning them. NL_ALLOWED: they fit, and there is room. Else none is owned any more, and nothing has changed:
 * NL_DENIED, NL_WOULD_WAIT, or NL_NO_CHUNK: *lacking has none. */
static inline nl_outcome nl_claims_decide(nl_claim **order, uint32_t n, bool views, nl_patience patience, nl_claim **lacking) {
    nl_outcome outcome = NL_ALLOWED;
    for (uint32_t i = 0; i < n; i++) {
        if (nl_claim_decide(order[i], views) != NL_DENIED) continue;
        outcome = NL_DENIED;
        if (!views) break;
    }
    for (uint32_t i = 0; i < n && outcome == NL_ALLOWED; i++) {
        outcome = nl_claim_make_room(order[i], patience);
        *lacking = order[i];
    }
    if (outcome != NL_ALLOWED) nl_claims_let_go(order, n);
    return outcome;
}

/* Decides on all, and counts in all or in none. n in 1 .. NL_CLAIMS_MOST, no two of them the same key of the same table. NL_ALLOWED
 * or NL_DENIED, with NL_UNTRACKED if there was no room for one, NL_DISPLACED if a live key lost its log; or NL_WOULD_WAIT; or NL_MOVED: one of the
 * tables has a successor, which is to be asked. With `views` each has its own, and its own outcome. */
static NL_NOINLINE nl_outcome nl_claims_check(nl_claim *claims, uint32_t n, bool views, nl_patience patience) {
    nl_claim *order[NL_CLAIMS_MOST], *lacking = NULL;
    nl_outcome displaced = NL_DENIED, untracked = NL_DENIED, outcome;
    nl_wait w = {0, 0, 0};
    for (uint32_t i = 0; i < n; i++) nl_prefetch_bucket(claims[i].table, claims[i].fp);
    for (uint32_t i = 0; n > 1 && i < n; i++) nl_prefetch_slot(claims[i].table, claims[i].fp);
    for (int chunk_tries = 0, gone = 0;;) {
        uint32_t tracked;
        if (nl_claims_deny(claims, n, views)) return (nl_outcome)(NL_DENIED | displaced);
        if (NL_LIKELY(gone < NL_GONE_MOST)) {
            outcome = nl_claims_place(claims, n, order, &tracked, patience, &displaced);
            if (outcome == NL_ALLOWED) {
                nl_claims_sort(order, tracked);
                outcome = nl_claims_own(order, tracked, patience);
            }
        } else {
            outcome = nl_claims_hold(claims, n, order, &tracked, patience, &displaced);
        }
        untracked = tracked < n ? NL_UNTRACKED : NL_DENIED;
        if (outcome == NL_ALLOWED) outcome = nl_claims_decide(order, tracked, views, patience, &lacking);
        if (outcome == NL_ALLOWED) break;
        if (outcome == NL_NO_CHUNK) {
            nl_chunks *chunks = &lacking->table->chunks;
            if (nl_chunks_commit(chunks, lacking->table->page_bytes) && ++chunk_tries <= 8) continue;
            outcome = nl_full(lacking->table, lacking->limit, lacking->cost, lacking->now, &lacking->view);
            return (nl_outcome)(outcome | displaced);
        }
        if (outcome == NL_GONE && nl_wait_on(&order[0]->table->us, &w, patience, 0)) {
            gone++;
            continue;
        }
        if (outcome == NL_GONE) outcome = NL_WOULD_WAIT;
        return (nl_outcome)(outcome | displaced | (outcome == NL_DENIED ? untracked : NL_DENIED));
    }
    /* (now they can't fail: they fit, and have room) */
    for (uint32_t i = 0; i < n; i++)
        if (!(claims[i].outcome & NL_UNTRACKED)) nl_claim_count(&claims[i], views, patience);
    return (nl_outcome)(NL_ALLOWED | untracked | displaced);
}

#endif
