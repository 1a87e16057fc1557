/* ring.h: the sliding window's arithmetic. No locks, no layout of tables: stamps and a now go in, numbers come out.
 *
 * Time is counted in ticks: the smallest 1-2-5 x 10^k nanoseconds of which at most 2^30 make a window (under 2.5e-9 of it).
 * The window is rounded up to ticks, stamps are rounded up, now is rounded down: never one request too many, and opening
 * less than a tick late; windows and times on the grid lose nothing. A stamp counts while now - stamp < window.
 *
 * A ring keeps the low 32 bits of its ticks, oldest first, all within one window (at most 2^30 ticks) of the newest. Who asks
 * knows by the epochs that now is less than 2^31 ticks after the newest stamp or less than 2^30 before it, so differences
 * modulo 2^32 are exact.
 */
#ifndef NL_RING_H
#define NL_RING_H

#include "atomic.h"

enum { NL_EPOCH_SHIFT = 30 };

static inline uint64_t nl_tick_ns_of(uint64_t window_ns) {
    uint64_t tick = 1;
    for (int step = 0; (window_ns + tick - 1) / tick > (uint64_t)1 << NL_EPOCH_SHIFT; step++)
        tick = step % 3 == 1 ? tick / 2 * 5 : tick * 2; /* 1 2 5 10 20 50 ... */
    return tick;
}

typedef struct {
    uint64_t ns;
    uint64_t tick; /* rounded down */
} nl_now;

NL_ALWAYS_INLINE nl_now nl_now_of(uint64_t ns, uint64_t tick_ns) {
    nl_now now = {ns, ns / tick_ns}; /* a multiplier in the division's place would drift, and is no faster here (docs/design.md) */
    return now;
}

NL_ALWAYS_INLINE uint64_t nl_now_rounded_up(nl_now now, uint64_t tick_ns) { return now.tick + (now.tick * tick_ns != now.ns); }

typedef struct {
    uint32_t *stamps;
    uint32_t capacity; /* 0: a reference that led nowhere, read while its slot changed */
} nl_ring;

/* Stamp i of a log that begins at head; i < capacity. */
NL_ALWAYS_INLINE uint32_t *nl_ring_at(nl_ring ring, uint32_t head, uint32_t i) {
    uint32_t at = head + i;
    return &ring.stamps[at >= ring.capacity ? at - ring.capacity : at];
}

NL_ALWAYS_INLINE uint32_t nl_ring_get(nl_ring ring, uint32_t head, uint32_t i) { return nl_load32(nl_ring_at(ring, head, i)); }

/* Is a stamp out, for a now that may lie up to a window before it? */
NL_ALWAYS_INLINE bool nl_stamp_is_out(uint32_t stamp, uint32_t now, uint32_t window) {
    return now - stamp + (1u << NL_EPOCH_SHIFT) >= window + (1u << NL_EPOCH_SHIFT);
}

/* How many of the log's stamps are out: they are its oldest, so a binary search finds the first that is not. */
NL_ALWAYS_INLINE uint32_t nl_ring_expired(nl_ring ring, uint32_t head, uint32_t count, uint32_t now, uint32_t window) {
    if (!count || !nl_stamp_is_out(nl_ring_get(ring, head, 0), now, window)) return 0; /* the usual case */
    uint32_t out = 1, live = count; /* stamp out-1 is out; stamp `live`, if there is one, is not */
    while (out < live) {
        uint32_t middle = out + (live - out) / 2;
        if (nl_stamp_is_out(nl_ring_get(ring, head, middle), now, window)) out = middle + 1;
        else live = middle;
    }
    return out;
}

#endif
