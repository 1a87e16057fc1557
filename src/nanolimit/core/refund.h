/* refund.h: units that were counted, given back.
 *
 * A stamp says when, not who: of the units of one key that were counted at the same tick, any will do, they leave at the same
 * time. So what is given back is exactly what was stamped, as long as it still counts; what has left the window by itself is not
 * there to be given back.
 */
#ifndef NL_REFUND_H
#define NL_REFUND_H

#include "table.h"

#define NL_NEWEST UINT64_MAX /* in a tick's place: whatever was counted last */

/* Which of the stamps that count are at `tick`: the first of them, and how many. */
static inline uint32_t nl_log_find(const nl_log *log, uint64_t tick, uint32_t *first) {
    uint32_t low = 0, high = log->used;
    while (low < high) { /* the first that is not before the tick */
        uint32_t middle = low + (high - low) / 2;
        if (nl_log_tick(log, log->expired + middle) < tick) low = middle + 1;
        else high = middle;
    }
    *first = low;
    for (high = low; high < log->used && nl_log_tick(log, log->expired + high) == tick;) high++;
    return high - low;
}

/* A meter doesn't know one unit from another: it gives back what of them can't have leaked or run out since (meter.h). Lets go of the
 * slot. How many fewer count now. */
static inline uint32_t nl_meter_give_back(nl_table *t, nl_slot *slot, uint64_t meta, nl_now now, uint64_t tick, uint32_t units) {
    const uint32_t limit = nl_load32(&t->head->limit);
    nl_view before, after;
    nl_meter m;
    if (!nl_meter_read(&t->rule, slot, meta, now, limit, &m) || !m.live) {
        nl_slot_commit(slot, meta);
        return 0;
    }
    nl_meter_view(&t->rule, &m, limit, 0, now, &before);
    nl_slab_forget(&t->slab);
    uint64_t left = nl_meter_refund(&t->rule, slot, meta, &m, tick == NL_NEWEST ? m.now : tick, limit, units);
    nl_meter_view(&t->rule, &m, limit, 0, now, &after);
    nl_slot_commit(slot, left);
    uint32_t fewer = left == meta ? 0 : left ? before.used - after.used : before.used;
    return fewer < units ? fewer : units;
}

/* Gives back up to `units` of those that were counted at `tick` and still count. *given: how many. NL_ALLOWED, NL_MOVED or NL_WOULD_WAIT. */
static inline nl_outcome nl_refund(nl_table *t, nl_fingerprint fp, uint64_t now_ns, uint64_t tick, uint32_t units, nl_patience patience,
                                   uint32_t *given) {
    nl_now now = nl_rule_now(&t->rule, now_ns);
    *given = 0;
    for (;;) {
        uint32_t first = 0, n = 0;
        uint64_t meta;
        nl_log log;
        nl_slot *slot;
        nl_outcome found = nl_find_surely(t, fp, patience, &slot);
        if (found != NL_ALLOWED) return found;
        if (!slot) return NL_ALLOWED;
        if (!nl_slot_take(&t->us, slot, &meta, patience)) return NL_WOULD_WAIT;
        if (!nl_slot_is(slot, fp)) {
            nl_slot_commit(slot, meta);
            continue;
        }
        if (t->rule.algorithm == NL_RUNS) {
            nl_slab_forget(&t->slab); /* it may be idle earlier than the hand has found */
            *given = nl_runs_refund(&t->us, &t->rule, &t->chunks, slot, meta, now, tick, tick == NL_NEWEST, units);
            return NL_ALLOWED;
        }
        if (t->rule.algorithm) {
            *given = nl_meter_give_back(t, slot, meta, now, tick, units);
            return NL_ALLOWED;
        }
        if (nl_log_read(&t->rule, &t->chunks, slot, meta, now, &log)) {
            if (tick == NL_NEWEST) n = units < log.used ? units : log.used, first = log.used - n;
            else n = nl_log_find(&log, tick, &first);
        }
        if (n > units) first += n - units, n = units;
        if (!n) {
            nl_slot_commit(slot, meta);
            return NL_ALLOWED;
        }
        if (first + n == log.used) nl_slab_forget(&t->slab); /* it will be idle earlier than the hand may have found */
        nl_log_remove(&t->rule, slot, meta, &log, first, n);
        *given = n;
        return NL_ALLOWED;
    }
}

#endif
