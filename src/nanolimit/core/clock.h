/* clock.h: nanoseconds that never run backwards. Only the edge (the seam, the tests) reads it: below, time is an argument. */
#ifndef NL_CLOCK_H
#define NL_CLOCK_H

#include <stdint.h>

#define NL_TIME_END_NS ((uint64_t)1 << 62) /* times are in [0, 2^62) ns: 146 years */

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

enum { NL_CLOCK_PRIVATE, NL_CLOCK_SHARED };

static inline uint64_t nl_clock_ns(int which) {
    (void)which;
    static LONGLONG frequency; /* constant since boot; a race writes the same value twice */
    LARGE_INTEGER t;
    if (!frequency) {
        QueryPerformanceFrequency(&t);
        frequency = t.QuadPart;
    }
    QueryPerformanceCounter(&t);
    return (uint64_t)(t.QuadPart / frequency) * 1000000000u + (uint64_t)(t.QuadPart % frequency) * 1000000000u / (uint64_t)frequency;
}
#else
#include <time.h>

/* About 20 ns through the vDSO; the coarse clocks are cheaper and step by 4 ms: not exact. A shared table outlives its processes,
 * and a suspended machine: its clock goes on meanwhile. */
#if defined(__linux__)
enum { NL_CLOCK_PRIVATE = CLOCK_MONOTONIC, NL_CLOCK_SHARED = CLOCK_BOOTTIME };
#else
enum { NL_CLOCK_PRIVATE = CLOCK_MONOTONIC, NL_CLOCK_SHARED = CLOCK_MONOTONIC };
#endif

static inline uint64_t nl_clock_ns(int which) {
    struct timespec t;
    clock_gettime((clockid_t)which, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
#endif

#endif
