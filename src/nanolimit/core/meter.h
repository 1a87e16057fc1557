/* meter.h: the algorithms that count in a few words what the log keeps stamp by stamp. Knows slots and rules; knows nothing of how a
 * slot is found.
 *
 *      ring[0..2]  ring[3..5]     two places of three words; meta's head, 0 or 3, says which is published
 *
 *   algorithm        ring[head]: the stamp                ring[head + 1]            ring[head + 2]
 *   gcra             ceil(TAT) - window                   units since `start`       the limit that the stamp was computed for
 *   fixed-window     the window's start                   units in it               0
 *   sliding-counter  the current window's start + window  units in it               units in the one before
 *
 * gcra is the bucket that fills evenly: TAT, in ticks, is when it will be full again, start + units * window / limit: an exact fraction, so
 * nothing drifts. `start`, a whole tick, is when it was last full; it is not kept, for stamp, units and limit tell it. When more than
 * `limit` units have been counted since, `limit` of them are left out and `start` is a window later, which is the same TAT; a bit
 * (NL_GCRA_SPENT) says that `start` is no instant of the past any more. Until then whatever makes no more than `limit` units fits: it
 * needs no clock, and no burst from a full bucket loses its last unit to rounding. Afterwards it fits if TAT is then at most a window ahead.
 * If the limit changes, what was counted stays so many units since `start`.
 *
 * To the rest of the engine a meter is a log of exactly one stamp: count 1, and the epoch is the stamp's. The stamp is chosen so that it
 * is a window old exactly when the state tells nothing any more: so the hand, the walks and len() find idle meters as they find idle
 * logs, and know nothing of meters. It may lie in the future (sliding-counter) or before time began (gcra), and so is a number
 * modulo 2^64, compared by the sign of differences.
 *
 * Deny: nothing is locked and nothing written. meta, the three words, the fingerprint, meta again, the stamp again, the fingerprint last.
 * Allow: take the slot, look again, write the place that is not published, commit by one store of meta. Whoever comes, a reader or the
 * heir of a dead owner, finds the state before or the state after.
 *
 * Why the stamp is read twice: meta may come back to the same value when two others have counted, each in his place. The stamp is the
 * first word that is read and the last that is written: so a new stamp comes with new words; and who read an old one with a new word, and
 * then finds meta as it was, finds the new stamp behind it. While a key lives its stamp never goes back, so if it is the same both times,
 * no window has begun in between, and each of the other words is that window's: units that some instant of the reading had. (Of a key
 * that is forgotten and comes back in the same tick, the units in the window before, read last, are 0.)
 *
 * Rounding is the log's: stamps up, now down; never a unit too many, opening less than a tick late, and not late at all on the grid.
 * Time never runs backwards inside a key: now is the clock's, or the earliest instant at which the state can have come about.
 */
#ifndef NL_METER_H
#define NL_METER_H

#include "log.h"

enum { NL_METER_OTHER = 3 }; /* head ^ NL_METER_OTHER is the other place */
#define NL_GCRA_SPENT 0x80000000u

typedef struct { /* a state as it is at one instant: windows that are over have been moved on */
    uint64_t now;    /* tick: the clock's, unless that went back */
    uint64_t stamp;  /* in full */
    uint64_t kept;   /* gcra: the stamp in the slot, by which it falls idle; another one if the limit has changed */
    uint32_t word, before; /* ring[head + 1]; ring[head + 2] */
    uint32_t seen;   /* the stamp as it was read */
    uint64_t start;  /* gcra: when the bucket was full; a whole tick */
    uint32_t part;   /* gcra: the fraction of TAT's tick, in 1/limit; TAT = stamp + window - (part != 0) + part / limit */
    bool live;       /* if not, the rest says nothing */
    uint32_t algorithm; /* the rule's; here, so that the compiler knows it where the caller does */
} nl_meter;

/* Every table of meters has this shape: nl_shape_of(6). */
NL_ALWAYS_INLINE nl_shape nl_meter_shape(void) {
    nl_shape s = {7, NL_HEAD_SHIFT + 3, NL_HEAD_SHIFT + 6, 6, 0, 0};
    return s;
}

/* Moves a state on to `m->now`, which is the clock's. */
NL_ALWAYS_INLINE void nl_meter_move_on(const nl_rule *rule, uint32_t limit, nl_meter *m) {
    int64_t age = (int64_t)(m->now - m->stamp), window = rule->window;
    m->live = age < window;
    if (!m->live) return;
    if (m->algorithm == NL_SLIDING_COUNTER) {
        if (age >= 0) m->before = m->word, m->word = 0, m->stamp += rule->window;
        else if (age < -window) m->now = m->stamp - rule->window;
        return;
    }
    if (age < 0) m->now = m->stamp; /* gcra: whoever counted last saw TAT at most a window ahead */
    if (m->algorithm == NL_GCRA) {
        const uint64_t ticks = (uint64_t)rule->window * (m->word & ~NL_GCRA_SPENT); /* below 2^54 */
        m->kept = m->stamp;
        const uint64_t whole = ticks / limit;
        m->part = (uint32_t)(ticks % limit);
        if (NL_UNLIKELY(m->before != limit)) { /* it has changed (0 is a damaged file's) */
            const uint64_t was = m->before ? m->before : limit;
            m->stamp += whole + (m->part != 0) - ticks / was - (ticks % was != 0);
            m->before = limit;
            m->live = (int64_t)(m->now - m->stamp) < window;
        }
        m->start = m->stamp + rule->window - whole - (m->part != 0);
    }
}

/* The words as they are, and whether they are worth moving on: *some. */
NL_ALWAYS_INLINE bool nl_meter_load(uint32_t algorithm, const nl_slot *slot, uint64_t meta, nl_now now, nl_meter *m, bool *some) {
    m->algorithm = algorithm;
    const nl_shape s = nl_meter_shape();
    uint32_t head = nl_meta_head(s, meta);
    m->now = now.tick;
    m->stamp = m->kept = m->start = 0;
    m->word = m->before = m->part = 0;
    m->live = *some = false;
    m->seen = 0;
    if (NL_UNLIKELY(head > NL_METER_OTHER)) return false;
    const uint32_t stamp = m->seen = nl_load32_acquire(&slot->ring[head]);
    if (!nl_meta_count(s, meta)) return true;
    *some = true;
    m->word = nl_load32_acquire(&slot->ring[head + 1]);
    m->before = nl_load32(&slot->ring[head + 2]);
    uint64_t epoch = now.tick >> NL_EPOCH_SHIFT;
    int64_t since = nl_slot_epochs_since(s, slot, meta, epoch);
    m->stamp = ((epoch - (uint64_t)since) << NL_EPOCH_SHIFT) | (stamp & ((1u << NL_EPOCH_SHIFT) - 1));
    return true;
}

NL_ALWAYS_INLINE bool nl_meter_read_as(uint32_t algorithm, const nl_rule *rule, const nl_slot *slot, uint64_t meta, nl_now now,
                                       uint32_t limit, nl_meter *m) {
    bool some;
    if (!nl_meter_load(algorithm, slot, meta, now, m, &some)) return false;
    if (some) nl_meter_move_on(rule, limit, m);
    return true;
}

/* Without the slot's owner what comes out is to be believed only if nl_meter_held says so afterwards. False: there is no such place (of
 * a slot that is owned: the file is damaged). */
static inline bool nl_meter_read(const nl_rule *rule, const nl_slot *slot, uint64_t meta, nl_now now, uint32_t limit, nl_meter *m) {
    return nl_meter_read_as(rule->algorithm, rule, slot, meta, now, limit, m);
}

/* Was what nl_meter_read gave out the state of this key, at one instant? */
NL_ALWAYS_INLINE bool nl_meter_held(const nl_slot *slot, nl_fingerprint fp, uint64_t meta, const nl_meter *m) {
    if (NL_UNLIKELY(!nl_slot_is(slot, fp))) return false;
    nl_fence_acquire(); /* what follows is read after the words, and after both halves of the fingerprint */
    if (NL_UNLIKELY(nl_load64_acquire(&slot->meta) != meta)) return false;
    const nl_shape s = nl_meter_shape();
    if (NL_UNLIKELY(nl_load32(&slot->ring[nl_meta_head(s, meta)]) != m->seen)) return false;
    return nl_slot_is(slot, fp); /* twice: the slot may go to another key and come back */
}

/* --- the arithmetic ------------------------------------------------------------------------------------------------ */

/* gcra: the stamp of TAT + cost * window / limit. */
NL_ALWAYS_INLINE uint64_t nl_gcra_after(const nl_rule *rule, const nl_meter *m, uint32_t limit, uint32_t cost) {
    uint64_t whole = rule->interval;
    uint32_t part = rule->interval_part;
    if (NL_UNLIKELY(cost != 1 || limit != rule->limit)) {
        uint64_t ticks = (uint64_t)rule->window * cost; /* below 2^54 */
        whole = ticks / limit;
        part = (uint32_t)(ticks % limit);
    }
    part += m->part;
    if (part > limit) part -= limit, whole++; /* (at `limit` it is rounded up below) */
    return m->stamp - (m->part != 0) + whole + (part != 0);
}

/* gcra: the stamp with so many units since `start`. */
NL_ALWAYS_INLINE uint64_t nl_gcra_stamp(const nl_rule *rule, uint64_t start, uint32_t units, uint32_t limit) {
    return start - rule->window + ((uint64_t)rule->window * units + limit - 1) / limit;
}

/* sliding-counter: how much of the window before still counts, in units times ticks. */
NL_ALWAYS_INLINE uint64_t nl_counter_before(const nl_meter *m) {
    return m->before * (m->stamp - m->now); /* the stamp is the current window's end: below 2^54 */
}

/* sliding-counter: the tick from which on `cost` fits, which does not fit now.
 * In this window, e ticks after its start, that is where before * (window - e) <= (limit - word - cost) * window; in the next one
 * `word` takes the place of `before`, and nothing that of `word`. */
static inline uint64_t nl_counter_instant(const nl_rule *rule, const nl_meter *m, uint32_t limit, uint32_t cost) {
    uint64_t end = m->stamp, counted = m->before, room;
    if (m->word + cost <= limit) {
        room = limit - m->word - cost;
    } else {
        end += rule->window;
        counted = m->word;
        room = cost < limit ? limit - cost : 0;
    }
    uint64_t left = counted ? room * rule->window / counted : rule->window; /* so long before the window's end */
    return end - (left < rule->window ? left : rule->window);
}

/* Does so much fit? */
NL_ALWAYS_INLINE bool nl_meter_fits(const nl_rule *rule, const nl_meter *m, uint32_t limit, uint32_t cost) {
    if (NL_UNLIKELY(!cost)) return true;
    if (!m->live) return cost <= limit; /* a limit may have just been lowered */
    if (m->algorithm == NL_GCRA) {
        if (m->word + cost <= limit) return true; /* (NL_GCRA_SPENT is above all limits) */
        return (int64_t)(nl_gcra_after(rule, m, limit, cost) - m->now) <= 0;
    }
    if (m->word + cost > limit) return false;
    return m->algorithm == NL_FIXED_WINDOW || nl_counter_before(m) <= (uint64_t)(limit - m->word - cost) * rule->window;
}

/* Counts it, in `m` only. */
NL_ALWAYS_INLINE void nl_meter_add(const nl_rule *rule, nl_meter *m, nl_now now, uint32_t limit, uint32_t cost) {
    const uint64_t up = nl_now_rounded_up(now, rule->tick_ns);
    if (m->algorithm == NL_GCRA) {
        uint64_t start = up;
        /* (TAT may pass before the tick has: then the bucket is full at its end) */
        if (m->live && (int64_t)(up - m->stamp) < (int64_t)rule->window) {
            start = m->start;
            cost += m->word & ~NL_GCRA_SPENT;
            m->word &= NL_GCRA_SPENT;
        } else {
            m->word = 0;
        }
        m->stamp = m->kept = nl_gcra_stamp(rule, start, cost, limit);
        if (cost > limit) m->word = NL_GCRA_SPENT, cost = (cost - 1) % limit + 1;
        m->word |= cost;
        m->part = (uint32_t)((uint64_t)rule->window * cost % limit);
        m->before = limit;
        m->now = (int64_t)(now.tick - m->stamp) < 0 ? m->stamp : now.tick; /* as whoever reads it next will say */
    } else if (m->live) {
        m->word += cost;
    } else {
        m->stamp = m->now = up;
        if (m->algorithm == NL_SLIDING_COUNTER) m->stamp += rule->window;
        m->word = cost;
        m->before = 0;
    }
    m->live = true;
}

/* Units that count, and the instants at which they will do so no more, as stamps: a Decision adds the window to each. */
static inline void nl_meter_view(const nl_rule *rule, const nl_meter *m, uint32_t limit, uint32_t cost, nl_now now, nl_view *view) {
    const uint64_t window = rule->window;
    const bool fits = nl_meter_fits(rule, m, limit, cost);
    view->now_ns = now.ns;
    view->limit = limit;
    view->used = 0;
    view->newest_tick = view->oldest_tick = view->deciding_tick = 0;
    if (!m->live) return;
    view->newest_tick = view->oldest_tick = view->deciding_tick = m->stamp;
    if (m->algorithm == NL_FIXED_WINDOW) {
        view->used = m->word;
    } else if (m->algorithm == NL_GCRA) {
        const int64_t over = (int64_t)(m->now - m->stamp) + (m->part != 0); /* now + window - TAT, rounded up */
        uint64_t room = over < 0 || (!over && m->part) ? 0 : ((uint64_t)over * limit - m->part) / window;
        if (m->word < limit && room < limit - m->word) room = limit - m->word;
        view->used = room < limit ? limit - (uint32_t)room : 0;
        view->oldest_tick = nl_gcra_after(rule, m, limit, (uint32_t)room + 1) - window;
        if (!fits) view->deciding_tick = nl_gcra_after(rule, m, limit, cost) - window;
        uint64_t *ticks[] = {&view->newest_tick, &view->oldest_tick, &view->deciding_tick};
        for (int i = 0; i < 3; i++) /* not beyond where it falls idle */
            if ((int64_t)(*ticks[i] - m->kept) > 0) *ticks[i] = m->kept;
    } else {
        view->used = m->word + (uint32_t)((nl_counter_before(m) + window - 1) / window);
        if (!m->word) view->newest_tick -= window;
        view->oldest_tick = nl_counter_instant(rule, m, limit, view->used < limit ? limit - view->used + 1 : 1) - window;
        if (!fits) view->deciding_tick = nl_counter_instant(rule, m, limit, cost) - window;
    }
}

/* --- in the slot ---------------------------------------------------------------------------------------------------- */

/* Writes a state into the place that is not published. Owning the slot, whose published meta is `meta`. What it returns publishes it:
 * nl_slot_commit. */
NL_ALWAYS_INLINE uint64_t nl_meter_write(nl_slot *slot, uint64_t meta, const nl_meter *m) {
    const nl_shape s = nl_meter_shape();
    uint32_t head = nl_meta_head(s, meta) ? 0 : NL_METER_OTHER;
    nl_fence_release(); /* whoever sees a word that we write now sees, after an acquire fence, that meta has changed */
    nl_store32(&slot->ring[head + 1], m->word);
    nl_store32(&slot->ring[head + 2], m->before);
    nl_store32_release(&slot->ring[head], (uint32_t)m->stamp); /* last: see above */
    return nl_meta_of(s, 0, head, 1, (uint64_t)((int64_t)m->stamp >> NL_EPOCH_SHIFT)); /* its sign too */
}

/* Gives back `cost` units that were counted at `tick` (in full: the m->now of the nl_meter that counted them), as far as they still
 * count. Owning the slot; `m` is what nl_meter_read gave. The meta to commit: 0, an empty log, if nothing is left. Either way the slot
 * may fall idle earlier than the hand has found: nl_slab_forget, before it is committed.
 *   gcra             TAT goes back by their share less what has leaked since: as if they had leaked before all others, which is never
 *                    too much. (With and without them the bucket differs by their share at first, and by less only as one leaks.)
 *   fixed-window     if their window is not over
 *   sliding-counter  from the window, current or before, that they were counted in */
static inline uint64_t nl_meter_refund(const nl_rule *rule, nl_slot *slot, uint64_t meta, nl_meter *m, uint64_t tick, uint32_t limit,
                                       uint32_t cost) {
    const int64_t window = rule->window;
    if (!m->live || !cost) return meta;
    if (m->algorithm == NL_GCRA) {
        int64_t leaked = (int64_t)(m->now - tick);
        uint32_t units = m->word & ~NL_GCRA_SPENT, spent = m->word & NL_GCRA_SPENT;
        uint64_t start = m->start;
        if (leaked < 0) leaked = 0;
        if (cost > limit) cost = limit;
        if (leaked >= window || (uint64_t)leaked * limit >= (uint64_t)rule->window * cost) return meta;
        if (cost >= units && !spent) return 0; /* since it was full there was nothing else */
        if (cost >= units) units += limit, start -= rule->window; /* the same TAT */
        m->stamp = nl_gcra_stamp(rule, start + (uint64_t)leaked, units - cost, limit);
        m->word = (units - cost) | (leaked ? NL_GCRA_SPENT : spent);
        if ((int64_t)(m->now - m->stamp) >= window) return 0;
    } else {
        const uint64_t start = m->algorithm == NL_FIXED_WINDOW ? m->stamp : m->stamp - rule->window;
        const int64_t at = (int64_t)(tick - start);
        uint32_t *units = &m->word;
        if (at >= window) return meta;
        if (at < 0) {
            if (m->algorithm == NL_FIXED_WINDOW || at < -window) return meta;
            units = &m->before;
        }
        *units -= cost < *units ? cost : *units;
        if (!m->word && !m->before) return 0;
        if (!m->word) m->word = m->before, m->before = 0, m->stamp -= rule->window; /* as it was before that window was moved on to */
    }
    return nl_meter_write(slot, meta, m);
}

/* NL_DENIED, or NL_UNDECIDED: it seems to fit, or it changed while we looked: take the slot and see. */
NL_ALWAYS_INLINE nl_outcome nl_meter_deny(uint32_t algorithm, const nl_rule *rule, const nl_slot *slot, nl_fingerprint fp, nl_now now,
                                          uint32_t limit, uint32_t cost, nl_view *view) {
    nl_meter m;
    bool some;
    uint64_t meta = nl_load64_acquire(&slot->meta);
    if (NL_UNLIKELY(!nl_meter_load(algorithm, slot, meta, now, &m, &some))) return NL_UNDECIDED;
    /* gcra: most denials need no division, for TAT moves on by at least an interval, if that is a tick: with less, what fits depends on
     * the fraction, and if the clock went back `now` is not yet what it will be. (A state that is none has no limit.) */
    if (algorithm != NL_GCRA || view || m.before != limit || limit != rule->limit || m.word + cost <= limit || !rule->interval ||
        (int64_t)(m.stamp + rule->interval - m.now) <= 0) {
        if (some) nl_meter_move_on(rule, limit, &m);
        if (nl_meter_fits(rule, &m, limit, cost)) return NL_UNDECIDED;
    }
    if (NL_UNLIKELY(!nl_meter_held(slot, fp, meta, &m))) return NL_UNDECIDED;
    if (view) nl_meter_view(rule, &m, limit, cost, now, view);
    return NL_DENIED;
}

/* Would it fit? Read without the slot. NL_UNDECIDED: it kept changing, or is another key's. */
static inline nl_outcome nl_meter_peek(const nl_rule *rule, const nl_slot *slot, nl_fingerprint fp, nl_now now, uint32_t limit,
                                       uint32_t cost, nl_view *view) {
    for (int reading = 0; reading < 6; reading++) {
        nl_meter m;
        uint64_t meta = nl_load64_acquire(&slot->meta);
        if (!nl_meter_read(rule, slot, meta, now, limit, &m) || !nl_meter_held(slot, fp, meta, &m)) continue;
        nl_meter_view(rule, &m, limit, cost, now, view);
        return nl_meter_fits(rule, &m, limit, cost) ? NL_ALLOWED : NL_DENIED;
    }
    return NL_UNDECIDED;
}

/* Decides and counts, owning the slot, whose published meta is `meta`; lets go of it in every case. */
NL_ALWAYS_INLINE nl_outcome nl_meter_allow_owned(uint32_t algorithm, const nl_rule *rule, nl_slot *slot, uint64_t meta, nl_now now,
                                                 uint32_t limit, uint32_t cost, nl_view *view) {
    nl_meter m;
    if (NL_UNLIKELY(!nl_meter_read_as(algorithm, rule, slot, meta, now, limit, &m))) m.live = false, meta = 0; /* only a damaged file has such */
    if (!nl_meter_fits(rule, &m, limit, cost)) {
        if (view) nl_meter_view(rule, &m, limit, cost, now, view);
        nl_slot_commit(slot, meta);
        return NL_DENIED;
    }
    nl_meter_add(rule, &m, now, limit, cost);
    if (view) nl_meter_view(rule, &m, limit, 0, now, view);
    meta = nl_meter_write(slot, meta, &m);
    NL_POINT(accept_stamped);
    nl_slot_commit(slot, meta);
    NL_POINT(accept_committed);
    return NL_ALLOWED;
}

/* Takes the slot first. */
NL_ALWAYS_INLINE nl_outcome nl_meter_allow(uint32_t algorithm, const nl_party *us, const nl_rule *rule, nl_slot *slot, nl_fingerprint fp,
                                           nl_now now, uint32_t limit, uint32_t cost, nl_patience patience, nl_view *view) {
    uint64_t meta;
    if (NL_UNLIKELY(!nl_slot_take(us, slot, &meta, patience))) return NL_WOULD_WAIT;
    NL_POINT(slot_owned);
    if (NL_UNLIKELY(!nl_slot_is(slot, fp))) {
        nl_slot_commit(slot, meta);
        return NL_GONE;
    }
    return nl_meter_allow_owned(algorithm, rule, slot, meta, now, limit, cost, view);
}

#endif
