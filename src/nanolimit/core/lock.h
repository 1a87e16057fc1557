/* lock.h: who holds what, how to wait for it, and what a fork does to it.
 *
 * Every lock word carries its owner. In a private table the owner is the process's fork generation: a child has another one
 * than its parent, so a word that a thread of the parent held at the instant of the fork reads as 'owner dead' in the
 * child, which takes it over. (What such an owner leaves behind is a consistent state: see table.h.)
 *
 * Two kinds of lock:
 *   - a slot's meta word has its owner in the low 16 bits (slot.h, table.h);
 *   - nl_lock, a 32-bit word, guards a segment, the directory, the slab's free slots or the chunks.
 * Nobody sleeps under either, calls the system, allocates, or runs a line of Python (page faults excepted). Quick calls
 * try for a bounded number of spins and give up holding nothing; waiting calls spin, then yield.
 */
#ifndef NL_LOCK_H
#define NL_LOCK_H

#include "atomic.h"

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
static inline void nl_yield(void) { SwitchToThread(); }
#else
#include <pthread.h>
#include <sched.h>
static inline void nl_yield(void) { sched_yield(); }
#endif

NL_ALWAYS_INLINE void nl_pause(void) {
#if defined(_MSC_VER)
    YieldProcessor();
#elif defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

enum { NL_QUICK_SPINS = 200, NL_SPINS_BEFORE_YIELD = 200 };

/* Between two tries: spin at first, then let others run. */
static inline void nl_back_off(int tries) {
    if (tries < NL_SPINS_BEFORE_YIELD) nl_pause();
    else nl_yield();
}

/* --- the process, as an owner ----------------------------------------------------------------------------------- */

static struct {
    uint32_t generation; /* 1 .. 65535; 0 in a lock word means free */
    uint32_t closed;     /* forks that are about to happen: no slow path may begin */
    uint32_t running;    /* slow paths under way */
} nl_process = {1, 0, 0};

NL_ALWAYS_INLINE uint32_t nl_me(void) { return nl_load32(&nl_process.generation); }

/* The gate. Work that passes through states which nobody could repair (a split half done, a chunk in nobody's log) runs
 * between enter and leave. A fork waits until all such work is done and lets none begin, so that a child never sees any of
 * it. One may enter while owning a slot; so within the gate nobody waits for a slot, and nobody enters twice. */
static inline void nl_gate_enter(void) {
    for (;;) {
        nl_add32(&nl_process.running, 1);
        nl_fence_full(); /* our count before our look at `closed`; fork's handler does it the other way round */
        if (NL_LIKELY(!nl_load32(&nl_process.closed))) return;
        nl_add32(&nl_process.running, (uint32_t)-1);
        nl_yield();
    }
}

static inline void nl_gate_leave(void) {
    nl_fence_release();
    nl_add32(&nl_process.running, (uint32_t)-1);
}

#if !defined(_WIN32)
static void nl_before_fork(void) {
    nl_add32(&nl_process.closed, 1); /* a count: C code may fork in two threads at once */
    nl_fence_full();
    while (nl_load32_acquire(&nl_process.running)) nl_yield();
}
static void nl_after_fork_in_parent(void) { nl_add32(&nl_process.closed, (uint32_t)-1); }
static void nl_after_fork_in_child(void) {
    nl_process.generation = nl_process.generation % 65535 + 1;
    nl_process.running = 0;
    nl_process.closed = 0;
}
#endif

/* Once a process, before the first table. */
static inline int nl_process_init(void) {
#if defined(_WIN32)
    return 0;
#else
    return pthread_atfork(nl_before_fork, nl_after_fork_in_parent, nl_after_fork_in_child);
#endif
}

/* An owner other than oneself, in memory that only this process has, is a thread of the process that forked us: it is not
 * here. The shared table will ask its process table instead. */
NL_ALWAYS_INLINE bool nl_owner_is_dead(uint32_t owner) { return owner != nl_me(); }

/* --- nl_lock ---------------------------------------------------------------------------------------------------- */

typedef uint32_t nl_lock; /* the owner, or 0; zeros are a valid lock */

NL_ALWAYS_INLINE bool nl_lock_try(nl_lock *lock) {
    uint32_t owner = nl_load32(lock);
    if (owner && !nl_owner_is_dead(owner)) return false;
    return nl_cas32(lock, owner, nl_me());
}

static inline bool nl_lock_quick(nl_lock *lock) {
    for (int i = 0; i < NL_QUICK_SPINS; i++) {
        if (nl_lock_try(lock)) return true;
        nl_pause();
    }
    return false;
}

static inline void nl_lock_wait(nl_lock *lock) {
    for (int tries = 0; !nl_lock_try(lock); tries++) nl_back_off(tries);
}

NL_ALWAYS_INLINE void nl_unlock(nl_lock *lock) { nl_store32_release(lock, 0); }

#endif
