/* counters.h: what a table has decided. A relaxed addition in a stripe of one's own, 128 bytes from the next one: counters
 * in one place cost a third of the scaling. Reading sums the stripes.
 */
#ifndef NL_COUNTERS_H
#define NL_COUNTERS_H

#include "atomic.h"

enum { NL_COUNT_ALLOWED, NL_COUNT_DENIED, NL_COUNT_OVERFLOWED, NL_COUNT_EVICTED, NL_COUNT_STALLED, NL_COUNT_WOULD_DENY,
       NL_COUNTS };
enum { NL_STRIPES = 8, NL_STRIPE_WORDS = 128 / 8 };

typedef struct {
    uint64_t stripes[NL_STRIPES][NL_STRIPE_WORDS];
} nl_counters;

/* Any thread: threads may share a stripe. */
NL_ALWAYS_INLINE void nl_count(nl_counters *counters, uint32_t stripe, uint32_t what, uint64_t n) {
    nl_add64(&counters->stripes[stripe % NL_STRIPES][what], n);
}

/* For callers that one lock of their own keeps apart (the GIL): a stripe that is theirs needs no locked addition. It is stripe 0,
 * or in a shared table, where each process has a GIL of its own, the process's. */
NL_ALWAYS_INLINE void nl_count_serial(uint64_t *stripe, uint32_t what, uint64_t n) {
    nl_store64(&stripe[what], nl_load64(&stripe[what]) + n);
}

static inline uint64_t nl_counters_sum(const nl_counters *counters, uint32_t what) {
    uint64_t sum = 0;
    for (int i = 0; i < NL_STRIPES; i++) sum += nl_load64(&counters->stripes[i][what]);
    return sum;
}

/* A stripe for the calling thread, 1 .. 7: from the thread's own address, which costs one instruction where there is one. */
NL_ALWAYS_INLINE uint32_t nl_my_stripe(void) {
#if (defined(__x86_64__) || defined(__aarch64__)) && defined(__linux__) && defined(__GNUC__) && (__GNUC__ >= 11 || defined(__clang__))
    uint64_t self = (uint64_t)(uintptr_t)__builtin_thread_pointer();
#else
    static
#if defined(_MSC_VER)
        __declspec(thread)
#else
        __thread
#endif
            char here;
    uint64_t self = (uint64_t)(uintptr_t)&here;
#endif
    return 1 + (uint32_t)((self >> 6) * 0x9e3779b97f4a7c15u >> 32) % (NL_STRIPES - 1);
}

#endif
