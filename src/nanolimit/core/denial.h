/* denial.h: what a store beyond this machine has refused, told to all processes of the machine. Knows records (record.h).
 *
 * A table of its own, for nothing but this: so a flood of denied keys takes no room from what is said of keys, a key that somebody has
 * blocked by hand stays blocked when a denial is forgotten, and nothing here is ever taken for a block, counted or told to anybody.
 * It is a cache. Whatever does not fit, or would have to wait, is left out; whoever does not find a denial asks the store.
 *
 *   record       end                                      word                     more
 *   stands       when it is over                          the cost, 0: none        how long before the end the answer came; 0: only
 *                                                                                  the time is known, not the answer
 *   reset        the reset, and so long after it ...      1                        ... as it is kept
 *   answer 0..2  that of the denial to which it belongs   a third of the rest of the answer, in 64 bits
 *
 * All in ticks of a microsecond. The end of a denial is rounded down: it never lasts longer than the store has said.
 *
 * An answer has more words than a record. What holds its parts together is the denial's end: all that have it are of this very answer.
 * For a denial that has an answer gives way only to one that ends later (or to one of a lower cost, which ends in the same microsecond
 * once in a blue moon; then the same is said of the same log).
 *
 * What was asked before a reset and comes after it must not be kept. Who resets writes when, and then looks for the denial; who keeps one
 * writes it, and then looks for a reset. One of them sees the other.
 */
#ifndef NL_DENIAL_H
#define NL_DENIAL_H

#include "record.h"

enum { NL_DENIAL_STANDS, NL_DENIAL_RESET, NL_DENIAL_ANSWER, NL_ANSWER_PARTS = 3 };

typedef struct {
    uint64_t end;  /* tick from which on it may fit */
    uint32_t cost; /* what was refused, and with it all that costs more */
    uint32_t told; /* ticks before the end: when the answer came; 0: it is not known */
    uint64_t answer[NL_ANSWER_PARTS];
} nl_denial;

/* A record if it can be read at once: no lock, no wait, nothing written. 1; 0: there is none; -1: it kept changing. */
NL_ALWAYS_INLINE int nl_denial_look(const nl_table *t, nl_fingerprint fp, uint32_t what, nl_now now, nl_record *r) {
    nl_meter m;
    fp = nl_record_key(fp, what);
    for (int reading = 0; reading < 6; reading++) {
        const nl_slot *slot = nl_find(t, fp);
        if (!slot) return 0; /* for certain: a shared table's segments don't split */
        const uint64_t meta = nl_load64_acquire(&slot->meta);
        if (NL_LIKELY(nl_record_of(t, slot, meta, now, &m, r) && nl_meter_held(slot, fp, meta, &m))) return r->end != 0;
    }
    return -1;
}

/* Is so much denied? What ends later than `most` ticks from now was written by nobody who kept to the rules. */
NL_ALWAYS_INLINE bool nl_denial_find(const nl_table *t, nl_fingerprint fp, nl_now now, uint32_t cost, uint64_t most, nl_denial *d) {
    nl_record r;
    if (nl_denial_look(t, fp, NL_DENIAL_STANDS, now, &r) != 1 || !r.word || cost < r.word || r.end - now.tick > most) return false;
    d->end = r.end;
    d->cost = r.word;
    d->told = r.more;
    return true;
}

/* The answer that a denial found just now came with. False: it is not here, or not any more. */
static inline bool nl_denial_answer(const nl_table *t, nl_fingerprint fp, nl_now now, nl_denial *d) {
    nl_record r;
    if (!d->told) return false;
    for (uint32_t i = 0; i < NL_ANSWER_PARTS; i++) {
        if (nl_denial_look(t, fp, NL_DENIAL_ANSWER + i, now, &r) != 1 || r.end != d->end) return false;
        d->answer[i] = (uint64_t)r.word << 32 | r.more;
    }
    return true;
}

/* Was the key reset since that tick, or may it have been? */
static inline bool nl_denial_is_reset(const nl_table *t, nl_fingerprint fp, nl_now now, uint64_t since) {
    nl_record r;
    int found = nl_denial_look(t, fp, NL_DENIAL_RESET, now, &r);
    return found < 0 || (found && since <= r.end - r.more);
}

/* Keeps what was asked for at tick `sent`. NL_ALLOWED: it is kept, or need not be. NL_UNTRACKED: there is no room. NL_WOULD_WAIT: all may be
 * asked for again. */
static NL_NOINLINE nl_outcome nl_denial_put(nl_table *t, nl_fingerprint fp, nl_now now, uint64_t sent, uint64_t most, const nl_denial *d,
                                            nl_patience patience) {
    nl_record r;
    nl_slot *slot;
    uint64_t meta;
    if (d->end <= now.tick || nl_denial_is_reset(t, fp, now, sent)) return NL_ALLOWED;
    const nl_fingerprint stands = nl_record_key(fp, NL_DENIAL_STANDS);
    nl_outcome outcome = nl_record_own(t, stands, now, patience, &slot, &meta, &r);
    if (outcome != NL_ALLOWED) return outcome;
    const bool says_it = r.end >= d->end && r.end - now.tick <= most && r.word && r.word <= d->cost;
    const bool begun = r.end == d->end && r.word == d->cost && r.more == d->told; /* by ourselves, who had to wait */
    if (says_it && !begun && (!d->told || r.more || r.word < d->cost)) { /* (of the same cost, an answer is better than none) */
        nl_slot_commit(slot, meta);
        return NL_ALLOWED;
    }
    r.end = d->end;
    r.word = d->cost;
    r.more = d->told;
    nl_record_write(t, slot, meta, now, &r);
    for (uint32_t i = 0; d->told && i < NL_ANSWER_PARTS; i++) {
        outcome = nl_record_own(t, nl_record_key(fp, NL_DENIAL_ANSWER + i), now, patience, &slot, &meta, &r);
        if (outcome != NL_ALLOWED) break;
        r.end = d->end;
        r.word = (uint32_t)(d->answer[i] >> 32);
        r.more = (uint32_t)d->answer[i];
        nl_record_write(t, slot, meta, now, &r);
    }
    nl_fence_full(); /* our denial, then our look for a reset; see nl_denial_forget */
    if (NL_UNLIKELY(nl_denial_is_reset(t, fp, now, sent)) && nl_record_own(t, stands, now, patience, &slot, &meta, &r) == NL_ALLOWED) {
        if (r.end == d->end) r.end = 0;
        nl_record_write(t, slot, meta, now, &r);
    }
    return outcome == NL_WOULD_WAIT ? outcome : NL_ALLOWED;
}

/* Forgets a key's denial, and for `keep` ticks those that were asked for before now. NL_ALLOWED, NL_UNTRACKED: there was no room for
 * the second; or NL_WOULD_WAIT: not all was done. */
static NL_NOINLINE nl_outcome nl_denial_forget(nl_table *t, nl_fingerprint fp, nl_now now, uint32_t keep, nl_patience patience) {
    nl_record r;
    nl_slot *slot;
    uint64_t meta;
    const nl_fingerprint stands = nl_record_key(fp, NL_DENIAL_STANDS);
    nl_outcome outcome = nl_record_own(t, nl_record_key(fp, NL_DENIAL_RESET), now, patience, &slot, &meta, &r);
    if (outcome == NL_ALLOWED) {
        if (!r.end || r.end - r.more < now.tick) r.end = now.tick + keep, r.more = keep;
        r.word = 1;
        nl_record_write(t, slot, meta, now, &r);
    }
    nl_fence_full(); /* our reset, then our look for a denial */
    if (!nl_find(t, stands)) return outcome;
    nl_outcome owned = nl_record_own(t, stands, now, patience, &slot, &meta, &r);
    if (owned != NL_ALLOWED) return owned;
    r.end = 0;
    nl_record_write(t, slot, meta, now, &r);
    return outcome;
}

#endif
