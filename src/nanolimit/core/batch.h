/* batch.h: many checks at once, in order, as if one by one; their cache misses overlap.
 *
 * A check of a key among millions waits three times for memory: bucket, slot, and the pages' addresses of both. A group asks
 * for all its buckets, then for all its slots, and then checks.
 */
#ifndef NL_BATCH_H
#define NL_BATCH_H

#include "table.h"

enum { NL_GROUP = 32 };

typedef struct {
    uint64_t allowed, denied, untracked, stalled;
} nl_tally;

NL_ALWAYS_INLINE void nl_tally_add(nl_tally *tally, nl_outcome outcome) {
    tally->allowed += (outcome & NL_ALLOWED) != 0;
    tally->denied += (outcome & NL_ALLOWED) == 0;
    tally->untracked += (outcome & NL_UNTRACKED) != 0;
}

static inline void nl_tally_count(nl_counters *counters, uint32_t stripe, const nl_tally *tally) {
    if (tally->allowed) nl_count(counters, stripe, NL_COUNT_ALLOWED, tally->allowed);
    if (tally->denied) nl_count(counters, stripe, NL_COUNT_DENIED, tally->denied);
    if (tally->untracked) nl_count(counters, stripe, NL_COUNT_OVERFLOWED, tally->untracked);
    if (tally->stalled) nl_count(counters, stripe, NL_COUNT_STALLED, tally->stalled);
}

NL_ALWAYS_INLINE void nl_check_group_of(nl_table *t, const nl_fingerprint *fps, uint32_t n, uint64_t now_ns, uint32_t cost,
                                        bool stalled_allows, unsigned char *outcomes, nl_tally *tally, bool meters) {
    for (uint32_t i = 0; i < n; i++) nl_prefetch_bucket(t, fps[i]);
    for (uint32_t i = 0; i < n; i++) nl_prefetch_slot(t, fps[i]);
    for (uint32_t i = 0; i < n; i++) {
        nl_outcome outcome = meters ? nl_meter_check(t, fps[i], now_ns, cost, NL_WAITING, NULL)
                                    : nl_check(t, fps[i], now_ns, cost, NL_WAITING, NULL);
        for (nl_table *at = t; NL_UNLIKELY(outcome & NL_MOVED);)
            outcome = (nl_outcome)(nl_check_any(at = nl_table_after(at), fps[i], now_ns, cost, NL_WAITING, NULL) | (outcome & NL_DISPLACED));
        if (NL_UNLIKELY(outcome & NL_WOULD_WAIT)) {
            outcome = (nl_outcome)(outcome | (stalled_allows ? NL_ALLOWED : NL_DENIED));
            tally->stalled++;
        }
        outcomes[i] = (unsigned char)outcome;
        nl_tally_add(tally, outcome);
    }
}

/* n <= NL_GROUP; outcomes[i] is an nl_outcome; NL_WOULD_WAIT in it: it stalled, and was answered so. Waits where it must: call it
 * without the GIL. */
static inline void nl_check_group(nl_table *t, const nl_fingerprint *fps, uint32_t n, uint64_t now_ns, uint32_t cost,
                                  bool stalled_allows, unsigned char *outcomes, nl_tally *tally) {
    if (t->rule.algorithm) nl_check_group_of(t, fps, n, now_ns, cost, stalled_allows, outcomes, tally, true);
    else nl_check_group_of(t, fps, n, now_ns, cost, stalled_allows, outcomes, tally, false);
}

#endif
