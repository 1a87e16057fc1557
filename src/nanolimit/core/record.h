/* record.h: what stands of a key besides its log: a limit of its own, that it is exempt, its denials in a row, a block.
 *
 * Records live in a table of their own, made when the first one is written: limiters without any pay nothing, and a key without one
 * pays a look at one line. A key's records lie beside each other there: their fingerprints differ in the high word only.
 *
 *   record            end                                  word                                  more
 *   quota i's limit   never                                limit : 31 | exempt : 1 (quota 0's)   0
 *   penalty           when it is forgiven, or, with        blocked : 1 | level : 15 |            how long after a block's end, or after
 *                     nothing to forgive, the block's end  denials in a row : 16                 the last denial, that is, in ms
 *                                                          (of a block: 1 if it was set by hand)
 *
 * A record is what a meter is (meter.h), a stamp and two words in one of two places. The stamp is a window of the records' table
 * before its end, wherever that may lie: so whatever looks for idle logs finds the records that say nothing any more.
 *
 * Whose limit or block is changed while a request of his is being decided may have it decided by either.
 */
#ifndef NL_RECORD_H
#define NL_RECORD_H

#include "claim.h"

enum { NL_RECORD_PENALTY, NL_RECORD_QUOTA /* + the quota's number */ };
enum { NL_STRIKES_MOST = 0xffff, NL_LEVEL_MOST = 0x7fff, NL_LEVEL_SHIFT = 16 };
#define NL_RECORD_FLAG 0x80000000u /* blocked, or exempt */
#define NL_RECORD_WINDOW_NS ((uint64_t)1000 << NL_EPOCH_SHIFT) /* so that a tick is a microsecond */
#define NL_RECORD_TICK_NS 1000u
#define NL_RECORD_NEVER (NL_TIME_END_NS / NL_RECORD_TICK_NS)

typedef struct {
    uint64_t end; /* tick from which on it says nothing; 0: there is none */
    uint32_t word, more;
} nl_record;

typedef struct nl_policy { /* what a limiter's policies are */
    nl_table *records;
    uint32_t after;      /* denials in a row that lead to a block; 0: they don't */
    uint32_t forgive_ms; /* without a denial, and all is forgotten */
    double base_s, factor, maximum_s; /* the first block, how much longer the next one is, the longest */
    uint32_t prolong;    /* requests in a block begin it anew */
    uint32_t quotas;     /* some keys may have limits of their own */
    uint32_t penalties;  /* some keys may have a penalty */
} nl_policy;

typedef enum { NL_STAGE_STANDING, NL_STAGE_LOGS, NL_STAGE_PENALTY } nl_stage;

typedef struct { /* one request on its way through a limiter's policies */
    nl_fingerprint fp;   /* as of the records' table */
    nl_now now;          /* in its ticks */
    nl_stage stage;
    bool limits_known;   /* the claims have their limits, */
    bool exempt;         /* or the key has none */
    bool struck_before;  /* it was denied before, in a row */
    bool blocks;         /* this request's denial led to a block */
    uint64_t blocked_ns; /* until when it is blocked */
    nl_outcome outcome;  /* of the logs */
} nl_standing;

NL_ALWAYS_INLINE nl_fingerprint nl_record_key(nl_fingerprint fp, uint32_t what) {
    fp.hi ^= 0x9e3779b97f4a7c15u * (what + 1);
    return fp;
}

/* The words of a slot as a record. False: they make none (without the owner: the slot changed). */
NL_ALWAYS_INLINE bool nl_record_of(const nl_table *t, const nl_slot *slot, uint64_t meta, nl_now now, nl_meter *m, nl_record *r) {
    bool some;
    r->end = 0;
    r->word = r->more = 0;
    if (NL_UNLIKELY(!nl_meter_load(NL_GCRA, slot, meta, now, m, &some))) return false;
    if (!some || m->stamp + t->rule.window <= now.tick) return true;
    r->end = m->stamp + t->rule.window;
    r->word = m->word;
    r->more = m->before;
    return true;
}

/* Reads a record without locks. NL_ALLOWED: there is one. NL_DENIED: there is none. NL_WOULD_WAIT. */
NL_ALWAYS_INLINE nl_outcome nl_record_read(nl_table *t, nl_fingerprint fp, nl_now now, nl_patience patience, nl_record *r) {
    for (;;) {
        nl_slot *slot;
        nl_meter m;
        uint64_t meta;
        r->end = 0;
        if (NL_UNLIKELY(!nl_find_quickly(t, fp, &slot)) && nl_find_locked(t, fp, patience, &slot) == NL_WOULD_WAIT) return NL_WOULD_WAIT;
        if (!slot) return NL_DENIED;
        for (int reading = 0; reading < 6; reading++) {
            meta = nl_load64_acquire(&slot->meta);
            if (NL_LIKELY(nl_record_of(t, slot, meta, now, &m, r) && nl_meter_held(slot, fp, meta, &m))) return r->end ? NL_ALLOWED : NL_DENIED;
        }
        if (!nl_slot_take(&t->us, slot, &meta, patience)) return NL_WOULD_WAIT; /* it keeps changing */
        bool same = nl_slot_is(slot, fp);
        nl_record_of(t, slot, meta, now, &m, r);
        nl_slot_commit(slot, meta);
        if (same) return r->end ? NL_ALLOWED : NL_DENIED;
    }
}

/* Owns a record, which may say nothing yet. As nl_own. */
static inline nl_outcome nl_record_own(nl_table *t, nl_fingerprint fp, nl_now now, nl_patience patience, nl_slot **slot, uint64_t *meta,
                                       nl_record *r) {
    nl_outcome displaced = NL_DENIED, outcome = nl_own(t, fp, now, patience, slot, meta, &displaced);
    nl_meter m;
    if (outcome == NL_ALLOWED && !nl_record_of(t, *slot, *meta, now, &m, r)) *meta = 0; /* a damaged file's */
    return outcome;
}

/* Writes it, and lets go. An end that is over leaves none. */
static inline void nl_record_write(nl_table *t, nl_slot *slot, uint64_t meta, nl_now now, const nl_record *r) {
    nl_meter m;
    memset(&m, 0, sizeof m);
    m.stamp = r->end - t->rule.window;
    m.word = r->word;
    m.before = r->more;
    nl_slab_forget(&t->slab); /* it may say nothing any more earlier than the hand has found */
    nl_slot_commit(slot, r->end > now.tick ? nl_meter_write(slot, meta, &m) : 0);
}

/* --- penalties ------------------------------------------------------------------------------------------------------ */

NL_ALWAYS_INLINE uint32_t nl_penalty_strikes(const nl_record *r) { return r->word & NL_RECORD_FLAG ? 0 : r->word & NL_STRIKES_MOST; }
NL_ALWAYS_INLINE bool nl_penalty_is_earned(const nl_record *r) { return !(r->word & NL_STRIKES_MOST); } /* of a block */
NL_ALWAYS_INLINE uint32_t nl_penalty_level(const nl_record *r) { return r->word >> NL_LEVEL_SHIFT & NL_LEVEL_MOST; }
NL_ALWAYS_INLINE uint64_t nl_penalty_block_end(const nl_record *r) { return r->end - (uint64_t)r->more * 1000000 / NL_RECORD_TICK_NS; }
NL_ALWAYS_INLINE bool nl_penalty_blocks(const nl_record *r, nl_now now) {
    return r->end && r->word & NL_RECORD_FLAG && now.tick < nl_penalty_block_end(r);
}

/* How long the block after `level` earlier ones is: base * factor^level, the maximum at most; in ticks, rounded up. */
static inline uint64_t nl_penalty_ticks(const nl_policy *p, uint32_t level) {
    double seconds = p->base_s;
    for (double factor = p->factor; level && seconds < p->maximum_s; level >>= 1, factor *= factor)
        if (level & 1) seconds *= factor;
    if (!(seconds < p->maximum_s)) seconds = p->maximum_s;
    uint64_t ns = (uint64_t)(seconds * 1e9 + 0.5);
    return (ns + NL_RECORD_TICK_NS - 1) / NL_RECORD_TICK_NS;
}

static inline void nl_penalty_block(nl_record *r, nl_now now, uint64_t ticks, uint32_t level, uint32_t forgive_ms) {
    r->end = nl_now_rounded_up(now, NL_RECORD_TICK_NS) + ticks + (uint64_t)forgive_ms * 1000000 / NL_RECORD_TICK_NS;
    r->word = NL_RECORD_FLAG | level << NL_LEVEL_SHIFT;
    r->more = forgive_ms;
}

/* A denial: one more in a row, and a block if there are enough. NL_ALLOWED, or NL_WOULD_WAIT. Where there is no room for its record it
 * goes unrecorded, and is counted among the records' overflows. */
static NL_NOINLINE nl_outcome nl_penalty_strike(const nl_policy *p, nl_standing *s, nl_patience patience) {
    nl_table *t = p->records;
    nl_record r;
    nl_slot *slot;
    uint64_t meta;
    nl_outcome outcome = nl_record_own(t, nl_record_key(s->fp, NL_RECORD_PENALTY), s->now, patience, &slot, &meta, &r);
    if (outcome == NL_WOULD_WAIT) return NL_WOULD_WAIT;
    if (outcome != NL_ALLOWED) {
        nl_count(&t->head->counters, nl_my_stripe(), NL_COUNT_OVERFLOWED, 1);
        return NL_ALLOWED;
    }
    if (nl_penalty_blocks(&r, s->now)) { /* others were faster */
        s->blocked_ns = nl_penalty_block_end(&r) * NL_RECORD_TICK_NS;
        nl_slot_commit(slot, meta);
        return NL_ALLOWED;
    }
    uint32_t level = r.end ? nl_penalty_level(&r) : 0, strikes = (r.end ? nl_penalty_strikes(&r) : 0) + 1;
    if (strikes >= p->after) {
        nl_penalty_block(&r, s->now, nl_penalty_ticks(p, level), level < NL_LEVEL_MOST ? level + 1 : level, p->forgive_ms);
        s->blocked_ns = nl_penalty_block_end(&r) * NL_RECORD_TICK_NS;
        s->blocks = true;
    } else {
        nl_penalty_block(&r, s->now, 0, level, p->forgive_ms);
        r.word = level << NL_LEVEL_SHIFT | strikes;
    }
    nl_record_write(t, slot, meta, s->now, &r);
    return NL_ALLOWED;
}

/* A request that was allowed: the denials in a row end. How often it was blocked is not forgotten by that. */
static NL_NOINLINE nl_outcome nl_penalty_absolve(const nl_policy *p, const nl_standing *s, nl_patience patience) {
    nl_record r;
    nl_slot *slot;
    uint64_t meta;
    nl_outcome outcome = nl_record_own(p->records, nl_record_key(s->fp, NL_RECORD_PENALTY), s->now, patience, &slot, &meta, &r);
    if (outcome != NL_ALLOWED) return outcome == NL_WOULD_WAIT ? outcome : NL_ALLOWED;
    if (!r.end || !nl_penalty_strikes(&r)) {
        nl_slot_commit(slot, meta);
        return NL_ALLOWED;
    }
    r.word &= ~(uint32_t)NL_STRIKES_MOST;
    if (!nl_penalty_level(&r)) r.end = 0;
    nl_record_write(p->records, slot, meta, s->now, &r);
    return NL_ALLOWED;
}

/* A request in a block, where that begins the block anew. One that was not earned by denials stays as it is. */
static NL_NOINLINE nl_outcome nl_penalty_prolong(const nl_policy *p, nl_standing *s, nl_patience patience) {
    nl_record r;
    nl_slot *slot;
    uint64_t meta;
    nl_outcome outcome = nl_record_own(p->records, nl_record_key(s->fp, NL_RECORD_PENALTY), s->now, patience, &slot, &meta, &r);
    if (outcome != NL_ALLOWED) return outcome == NL_WOULD_WAIT ? outcome : NL_ALLOWED;
    const uint32_t level = nl_penalty_level(&r);
    uint64_t end = nl_now_rounded_up(s->now, NL_RECORD_TICK_NS) + nl_penalty_ticks(p, level - (level != 0));
    if (nl_penalty_blocks(&r, s->now) && nl_penalty_is_earned(&r) && end > nl_penalty_block_end(&r)) {
        r.end += end - nl_penalty_block_end(&r);
        s->blocked_ns = end * NL_RECORD_TICK_NS;
        nl_record_write(p->records, slot, meta, s->now, &r);
    } else {
        nl_slot_commit(slot, meta);
    }
    return NL_ALLOWED;
}

/* --- a request, all of it ------------------------------------------------------------------------------------------- */

/* Puts the limits of a key's own into its claims. NL_ALLOWED|NL_EXEMPT: it has none. NL_UNDECIDED: now the logs decide. NL_WOULD_WAIT. */
static inline nl_outcome nl_policy_limits(const nl_policy *p, nl_claim *claims, uint32_t n, const nl_standing *s,
                                          nl_patience patience) {
    nl_outcome exempt = NL_UNDECIDED;
    for (uint32_t i = 0; p->quotas && i < n; i++) {
        nl_record r;
        nl_outcome outcome = nl_record_read(p->records, nl_record_key(s->fp, NL_RECORD_QUOTA + i), s->now, patience, &r);
        if (outcome == NL_WOULD_WAIT) return NL_WOULD_WAIT;
        if (outcome != NL_ALLOWED) continue;
        if (!i && r.word & NL_RECORD_FLAG) exempt = (nl_outcome)(NL_ALLOWED | NL_EXEMPT);
        const uint32_t limit = r.word & ~NL_RECORD_FLAG, most = nl_rule_most(&claims[i].table->rule);
        if (limit) claims[i].limit = limit < most ? limit : most; /* (records may outlive the table that they were made for) */
    }
    return exempt;
}

/* Is the key blocked? NL_BLOCKED, NL_UNDECIDED or NL_WOULD_WAIT. */
static inline nl_outcome nl_policy_blocked(const nl_policy *p, nl_standing *s, nl_patience patience) {
    nl_record r;
    if (!p->penalties) return NL_UNDECIDED;
    if (nl_record_read(p->records, nl_record_key(s->fp, NL_RECORD_PENALTY), s->now, patience, &r) == NL_WOULD_WAIT) return NL_WOULD_WAIT;
    s->struck_before = r.end && nl_penalty_strikes(&r);
    if (!nl_penalty_blocks(&r, s->now)) return NL_UNDECIDED;
    s->blocked_ns = nl_penalty_block_end(&r) * NL_RECORD_TICK_NS;
    return NL_BLOCKED;
}

/* The usual question, for a quick answer: is it blocked, for certain, and that is all? */
NL_ALWAYS_INLINE bool nl_policy_blocks(const nl_policy *p, nl_fingerprint fp, uint64_t now_ns) {
    const nl_now now = {now_ns, now_ns / NL_RECORD_TICK_NS};
    nl_meter m;
    nl_record r;
    if (!p->penalties || p->prolong) return false;
    fp = nl_record_key(fp, NL_RECORD_PENALTY);
    const nl_slot *slot = nl_find(p->records, fp);
    if (!slot) return false;
    const uint64_t meta = nl_load64_acquire(&slot->meta);
    return nl_record_of(p->records, slot, meta, now, &m, &r) && nl_penalty_blocks(&r, now) && nl_meter_held(slot, fp, meta, &m);
}

/* As nl_claims_check, and what the limiter's policies say besides: NL_BLOCKED with NL_DENIED, NL_EXEMPT with NL_ALLOWED: then the logs
 * were not asked. After NL_WOULD_WAIT it is called again, and goes on where it was. */
static inline nl_outcome nl_policy_check(const nl_policy *p, nl_claim *claims, uint32_t n, nl_standing *s, bool views,
                                         nl_patience patience) {
    nl_outcome outcome;
    if (s->stage == NL_STAGE_STANDING) {
        outcome = nl_policy_blocked(p, s, patience);
        if (outcome == NL_BLOCKED && p->prolong) outcome = (nl_outcome)(NL_BLOCKED | (nl_penalty_prolong(p, s, patience) & NL_WOULD_WAIT));
        if (outcome & NL_WOULD_WAIT) return NL_WOULD_WAIT;
        if (outcome == NL_BLOCKED) return NL_BLOCKED;
        if (s->exempt) return (nl_outcome)(NL_ALLOWED | NL_EXEMPT);
        outcome = NL_UNDECIDED;
        if (!s->limits_known) outcome = nl_policy_limits(p, claims, n, s, patience);
        if (outcome != NL_UNDECIDED) return outcome;
        s->stage = NL_STAGE_LOGS;
        s->outcome = NL_DENIED;
    }
    if (s->stage == NL_STAGE_LOGS) {
        outcome = nl_claims_check(claims, n, views, patience);
        s->outcome = (nl_outcome)((s->outcome & NL_DISPLACED) | outcome);
        if (outcome & (NL_WOULD_WAIT | NL_MOVED)) return s->outcome;
        s->stage = NL_STAGE_PENALTY;
    }
    if (p->after && !(s->outcome & NL_UNTRACKED)) {
        outcome = NL_ALLOWED;
        if (!(s->outcome & NL_ALLOWED)) outcome = nl_penalty_strike(p, s, patience);
        else if (s->struck_before) outcome = nl_penalty_absolve(p, s, patience);
        if (outcome == NL_WOULD_WAIT) return NL_WOULD_WAIT;
    }
    return s->outcome;
}

/* --- what is said of a key ------------------------------------------------------------------------------------------ */

/* Sets the limit of a key's own, or whether it is exempt; 0: it has none, is not. NL_ALLOWED, NL_UNTRACKED: there is no room, or
 * NL_WOULD_WAIT. */
static inline nl_outcome nl_record_set_quota(nl_table *t, nl_fingerprint fp, uint32_t quota, nl_now now, uint32_t word, uint32_t mask,
                                             nl_patience patience) {
    nl_record r;
    nl_slot *slot;
    uint64_t meta;
    nl_outcome outcome = nl_record_own(t, nl_record_key(fp, NL_RECORD_QUOTA + quota), now, patience, &slot, &meta, &r);
    if (outcome != NL_ALLOWED) return outcome;
    r.word = (r.word & ~mask) | word;
    r.more = 0;
    r.end = r.word ? NL_RECORD_NEVER : 0;
    nl_record_write(t, slot, meta, now, &r);
    return NL_ALLOWED;
}

/* Blocks a key for so many ticks; with 0, forgets its block and whatever else it is charged with: *was says whether it was blocked. As
 * above. */
static inline nl_outcome nl_record_set_block(nl_table *t, nl_fingerprint fp, nl_now now, uint64_t ticks, nl_patience patience, bool *was) {
    nl_record r;
    nl_slot *slot;
    uint64_t meta;
    nl_outcome outcome = nl_record_own(t, nl_record_key(fp, NL_RECORD_PENALTY), now, patience, &slot, &meta, &r);
    if (outcome != NL_ALLOWED) return outcome;
    *was = nl_penalty_blocks(&r, now);
    const uint32_t level = r.end ? nl_penalty_level(&r) : 0;
    nl_penalty_block(&r, now, ticks, level, level ? r.more : 0);
    r.word |= 1;
    if (!ticks) r.end = 0;
    nl_record_write(t, slot, meta, now, &r);
    return NL_ALLOWED;
}

#endif
