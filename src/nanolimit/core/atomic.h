/* atomic.h: the atomics that the core uses, and nothing else.
 *
 * Every word that two threads (or, in a shared table, two processes) may touch at once is read and written through these
 * functions. Plain `load`/`store` are relaxed: they promise only that the word is not torn. What orders them is written
 * out where it matters: _acquire, _release, the fences, and the compare-and-swap. docs/design.md argues each of them.
 *
 * GCC and Clang have __atomic builtins on every target. MSVC's C compiler has no usable _Atomic, so it gets its interlocked
 * intrinsics; there all loads and stores are volatile, and on ARM64 the barriers are explicit.
 * A test build may bring its own memory (tests/c/weak.c simulates a machine that reorders) by defining NL_ATOMIC_HEADER.
 */
#ifndef NL_ATOMIC_H
#define NL_ATOMIC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__) || defined(__clang__)
#define NL_LIKELY(x) __builtin_expect(!!(x), 1)
#define NL_UNLIKELY(x) __builtin_expect(!!(x), 0)
#define NL_PREFETCH(p) __builtin_prefetch((p), 0, 3)
#define NL_COLD __attribute__((noinline, cold))
#define NL_NOINLINE __attribute__((noinline))
#define NL_ALWAYS_INLINE static inline __attribute__((always_inline))
#else
#define NL_LIKELY(x) (x)
#define NL_UNLIKELY(x) (x)
#define NL_PREFETCH(p) ((void)(p))
#define NL_COLD __declspec(noinline)
#define NL_NOINLINE __declspec(noinline)
#define NL_ALWAYS_INLINE static __forceinline
#endif

/* Consistency checks of a debug build (NANOLIMIT_DEBUG=1); they cost nothing otherwise. */
#ifdef NL_DEBUG
#include <assert.h>
#define NL_ASSERT(condition) assert(condition)
#else
#define NL_ASSERT(condition) ((void)0)
#endif

#if defined(NL_ATOMIC_HEADER)
#include NL_ATOMIC_HEADER

#elif (defined(__GNUC__) || defined(__clang__)) && !defined(NL_FORCE_INTERLOCKED)

#define NL_DEFINE_ATOMICS(bits)                                                                                        \
    NL_ALWAYS_INLINE uint##bits##_t nl_load##bits(const uint##bits##_t *p) {                                           \
        return __atomic_load_n(p, __ATOMIC_RELAXED);                                                                   \
    }                                                                                                                  \
    NL_ALWAYS_INLINE uint##bits##_t nl_load##bits##_acquire(const uint##bits##_t *p) {                                 \
        return __atomic_load_n(p, __ATOMIC_ACQUIRE);                                                                   \
    }                                                                                                                  \
    NL_ALWAYS_INLINE void nl_store##bits(uint##bits##_t *p, uint##bits##_t v) {                                        \
        __atomic_store_n(p, v, __ATOMIC_RELAXED);                                                                      \
    }                                                                                                                  \
    NL_ALWAYS_INLINE void nl_store##bits##_release(uint##bits##_t *p, uint##bits##_t v) {                              \
        __atomic_store_n(p, v, __ATOMIC_RELEASE);                                                                      \
    }                                                                                                                  \
    NL_ALWAYS_INLINE uint##bits##_t nl_add##bits(uint##bits##_t *p, uint##bits##_t v) {                                \
        return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);                                                             \
    }                                                                                                                  \
    /* acquire on success; on failure nothing is ordered */                                                            \
    NL_ALWAYS_INLINE bool nl_cas##bits(uint##bits##_t *p, uint##bits##_t expected, uint##bits##_t desired) {           \
        return __atomic_compare_exchange_n(p, &expected, desired, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);          \
    }
NL_DEFINE_ATOMICS(32)
NL_DEFINE_ATOMICS(64)
#undef NL_DEFINE_ATOMICS

NL_ALWAYS_INLINE void nl_fence_acquire(void) { __atomic_thread_fence(__ATOMIC_ACQUIRE); }
NL_ALWAYS_INLINE void nl_fence_release(void) { __atomic_thread_fence(__ATOMIC_RELEASE); }
NL_ALWAYS_INLINE void nl_fence_full(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

#else /* MSVC, or its intrinsics under another compiler, to try them */

#include <intrin.h>

#if defined(_M_ARM64) || defined(__aarch64__)
#define NL_HARDWARE_FENCE() __dmb(0xB) /* inner shareable, loads and stores */
#else
#define NL_HARDWARE_FENCE() ((void)0) /* x86 keeps load-load, load-store and store-store order by itself */
#endif
NL_ALWAYS_INLINE void nl_fence_acquire(void) { _ReadWriteBarrier(); NL_HARDWARE_FENCE(); _ReadWriteBarrier(); }
NL_ALWAYS_INLINE void nl_fence_release(void) { _ReadWriteBarrier(); NL_HARDWARE_FENCE(); _ReadWriteBarrier(); }
NL_ALWAYS_INLINE void nl_fence_full(void) { static volatile long word; _InterlockedExchangeAdd(&word, 0); }

#define NL_DEFINE_ATOMICS(bits, word, suffix)                                                                          \
    NL_ALWAYS_INLINE uint##bits##_t nl_load##bits(const uint##bits##_t *p) {                                           \
        return *(const volatile uint##bits##_t *)p;                                                                    \
    }                                                                                                                  \
    NL_ALWAYS_INLINE uint##bits##_t nl_load##bits##_acquire(const uint##bits##_t *p) {                                 \
        uint##bits##_t v = *(const volatile uint##bits##_t *)p;                                                        \
        nl_fence_acquire();                                                                                            \
        return v;                                                                                                      \
    }                                                                                                                  \
    NL_ALWAYS_INLINE void nl_store##bits(uint##bits##_t *p, uint##bits##_t v) {                                        \
        *(volatile uint##bits##_t *)p = v;                                                                             \
    }                                                                                                                  \
    NL_ALWAYS_INLINE void nl_store##bits##_release(uint##bits##_t *p, uint##bits##_t v) {                              \
        nl_fence_release();                                                                                            \
        *(volatile uint##bits##_t *)p = v;                                                                             \
    }                                                                                                                  \
    NL_ALWAYS_INLINE uint##bits##_t nl_add##bits(uint##bits##_t *p, uint##bits##_t v) {                                \
        return (uint##bits##_t)_InterlockedExchangeAdd##suffix((volatile word *)p, (word)v);                           \
    }                                                                                                                  \
    NL_ALWAYS_INLINE bool nl_cas##bits(uint##bits##_t *p, uint##bits##_t expected, uint##bits##_t desired) {           \
        return (uint##bits##_t)_InterlockedCompareExchange##suffix((volatile word *)p, (word)desired,                  \
                                                                   (word)expected) == expected;                        \
    }
NL_DEFINE_ATOMICS(32, long, )
NL_DEFINE_ATOMICS(64, long long, 64)
#undef NL_DEFINE_ATOMICS

#endif

/* Bit counting: the one other thing that compilers spell differently. */
NL_ALWAYS_INLINE unsigned nl_lowest_bit64(uint64_t v) { /* v != 0 */
#if defined(__GNUC__) || defined(__clang__)
    return (unsigned)__builtin_ctzll(v);
#else
    unsigned long i;
    _BitScanForward64(&i, v);
    return (unsigned)i;
#endif
}

NL_ALWAYS_INLINE unsigned nl_bit_length32(uint32_t v) { /* 0 for 0 */
    unsigned n = 0;
    while (v) n++, v >>= 1;
    return n;
}

#endif
