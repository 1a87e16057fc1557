/* lock.h: who holds what, how to wait for it, how to learn that its holder is dead, and what a fork does to it.
 *
 * Every lock word carries its owner. In a private table the owner is the process's fork generation: a child has another one
 * than its parent, so a word that a thread of the parent held at the instant of the fork reads as 'owner dead' in the
 * child, which takes it over. In a shared table it is a place in the table's list of members and how often that place has
 * been given away; shared.h finds out who lives.
 *
 * Two kinds of lock:
 *   - a slot's meta word has its owner in the low 16 bits (slot.h);
 *   - nl_lock, a 32-bit word, guards a segment, the directory, the slab's free slots or the chunks.
 * Nobody calls the system or allocates under either, or runs a line of Python; page faults, a waiter's yields and its question
 * whether the owner lives are the exceptions. Quick calls try for a bounded number of spins and give up holding nothing. Waiting
 * calls spin, yield, ask, and in a shared table give up after stall_ns. A live owner is never robbed.
 *
 * Who takes a word over from the dead *inherits* it, and mends what it guards: a slot needs nothing (its log is always whole), a
 * segment is recounted, the slab's and the chunks' last change is finished. What mends may itself be cut short anywhere.
 */
#ifndef NL_LOCK_H
#define NL_LOCK_H

#include "atomic.h"
#include "clock.h"
#include "counters.h"
#include "point.h"

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
static inline void nl_yield(void) { SwitchToThread(); }
static inline void nl_nap(void) { Sleep(1); }
#else
#include <pthread.h>
#include <sched.h>
static inline void nl_yield(void) { sched_yield(); }
static inline void nl_nap(void) {
    const struct timespec t = {0, 200000};
    nanosleep(&t, NULL);
}
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

enum { NL_TRIES = 2, NL_PAUSES = 256 }; /* quickly: after 256 pauses and after 512 more, some microseconds each */

/* --- forks ------------------------------------------------------------------------------------------------------ */

static struct {
    uint32_t generation;   /* 1 .. 65535; 0 in a lock word means free */
    uint32_t closed;       /* forks that are about to happen: no slow path may begin */
    uint32_t running;      /* slow paths under way */
    void (*in_child)(void); /* what shared.h has to do there */
} nl_process = {1, 0, 0, NULL};

/* The gate. Work that passes through states which nobody could repair (a split half done, a chunk in nobody's log) runs
 * between enter and leave. A fork waits until all such work is done and lets none begin, so that a child never sees any of
 * it. One may enter while owning a slot; so within the gate nobody waits for a slot. Who is within may enter again. */
#if !defined(NL_GATE_DEPTH) /* (a test build that simulates its threads has one for each) */
#if defined(_MSC_VER)
static __declspec(thread) uint32_t nl_gate_depth;
#else
static __thread uint32_t nl_gate_depth;
#endif
#define NL_GATE_DEPTH nl_gate_depth
#endif

static inline void nl_gate_enter_now(void) {
    if (NL_GATE_DEPTH++) return;
    for (;;) {
        nl_add32(&nl_process.running, 1);
        nl_fence_full(); /* our count before our look at `closed`; fork's handler does it the other way round */
        if (NL_LIKELY(!nl_load32(&nl_process.closed))) return;
        nl_add32(&nl_process.running, (uint32_t)-1);
        nl_yield();
    }
}

static inline void nl_gate_leave_now(void) {
    if (--NL_GATE_DEPTH) return;
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
    if (nl_process.in_child) nl_process.in_child();
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

/* --- owners ------------------------------------------------------------------------------------------------------ */

/* A process at a shared table. An owner's 16 bits are its place : 11 | the low bits of its serial : 5. */
enum { NL_MEMBERS = 1 << 11, NL_SERIAL_BITS = 5, NL_SERIALS = 1 << NL_SERIAL_BITS };
enum { NL_MEMBER_FREE, NL_MEMBER_ALIVE, NL_MEMBER_DEAD, NL_MEMBER_STATE = 3, NL_MEMBER_UNCLEAN = 4, NL_MEMBER_SHIFT = 3 };

typedef struct {
    uint64_t word;     /* serial : 61 | did one of its processes die since the last walk : 1 | state : 2 */
    uint64_t pid;      /* in that process's own namespace: for people. (Of place 0, which nobody gets: the highest place ever taken) */
    uint64_t counters[NL_STRIPE_WORDS - 3];
    uint32_t flags, unused; /* its process's flags (table.h) */
} nl_member;

struct nl_shared; /* shared.h's part */

typedef struct nl_party { /* whom a table is used by: us, and how to learn of others */
    const uint32_t *me;   /* our owner id; 0: not yet a member (a forked child) */
    nl_member *members;   /* NULL: a private table */
    uint64_t stall_ns;    /* how long to wait for an owner that lives */
    struct nl_shared *shared;
    void (*ask)(const struct nl_party *, uint32_t owner); /* marks the owner's place dead if it is */
} nl_party;

enum { NL_ASK_AFTER_NS = 2000000, NL_BRIEF_NS = 50000000 };

NL_ALWAYS_INLINE uint32_t nl_me(const nl_party *us) { return nl_load32(us->me); }

/* Private: an owner other than oneself is a thread of the process that forked us, and not here. Shared: what its place says. */
static NL_NOINLINE bool nl_owner_is_dead(const nl_party *us, uint32_t owner) {
    if (owner == nl_me(us)) return false;
    if (!us->members) return true;
    uint64_t word = nl_load64_acquire(&us->members[owner >> NL_SERIAL_BITS & (NL_MEMBERS - 1)].word);
    return (word & NL_MEMBER_STATE) != NL_MEMBER_ALIVE || (word >> NL_MEMBER_SHIFT & (NL_SERIALS - 1)) != (owner & (NL_SERIALS - 1));
}

/* For those who meet a foreign owner without waiting for it: else nobody might ever ask whether it lives. Not under a lock. */
static NL_NOINLINE void nl_ask_about(const nl_party *us, uint32_t owner) {
    if (us->members && owner && owner != nl_me(us) && !nl_owner_is_dead(us, owner)) us->ask(us, owner);
}

/* The states that a private table's gate hides are mended in a shared one. */
static inline void nl_gate_enter(const nl_party *us) {
    if (!us->members) nl_gate_enter_now();
}
static inline void nl_gate_leave(const nl_party *us) {
    if (!us->members) nl_gate_leave_now();
}

typedef enum { NL_QUICKLY, NL_WAITING, NL_BRIEFLY, NL_HOLDING } nl_patience; /* a few spins; until it stalls; 50 ms at most; a few, owning slots */

typedef struct {
    uint32_t tries;
    uint64_t began_ns;
    uint64_t word;
} nl_wait;

/* Between two tries for a word with an owner (its low 16 bits; 0: not known). False: no more of them. A word that changes is not
 * stalled, however often others are faster: the time counts from its last change. */
static NL_NOINLINE bool nl_wait_on(const nl_party *us, nl_wait *w, nl_patience patience, uint64_t word) {
    const uint32_t owner = (uint32_t)word & 0xffff;
    if (w->tries < NL_TRIES) { /* away from the word for long enough that its owner gets on: see docs/design.md */
        for (uint32_t i = 0; i < (uint32_t)NL_PAUSES << w->tries; i++) nl_pause();
        w->tries++;
        return true;
    }
    if (patience == NL_QUICKLY || patience == NL_HOLDING) return false;
    if (!us->members) {
        nl_yield();
        return true;
    }
    uint64_t now_ns = nl_clock_ns(NL_CLOCK_PRIVATE);
    if (!w->began_ns || word != w->word) w->began_ns = now_ns, w->word = word;
    uint64_t waited_ns = now_ns - w->began_ns;
    if (waited_ns < NL_ASK_AFTER_NS) {
        nl_yield();
        return true;
    }
    if (owner && owner != nl_me(us)) {
        us->ask(us, owner);
        if (nl_owner_is_dead(us, owner)) return true; /* however late we ask, for we may have been off the processor: it is there to be taken */
    }
    nl_nap();
    return waited_ns < us->stall_ns && !(patience == NL_BRIEFLY && waited_ns > NL_BRIEF_NS);
}

/* --- nl_lock ---------------------------------------------------------------------------------------------------- */

typedef uint32_t nl_lock; /* the owner, or 0; zeros are a valid lock */
typedef enum { NL_BUSY, NL_TAKEN, NL_INHERITED } nl_taking;

static inline nl_taking nl_lock_try(const nl_party *us, nl_lock *lock) {
    uint32_t owner = nl_load32(lock);
    if (owner && !nl_owner_is_dead(us, owner)) return NL_BUSY;
    if (!nl_cas32(lock, owner, nl_me(us))) return NL_BUSY;
    return owner ? NL_INHERITED : NL_TAKEN;
}

/* NL_BUSY: no patience left. Never in a private table, unless quickly. */
static inline nl_taking nl_lock_take(const nl_party *us, nl_lock *lock, nl_patience patience) {
    nl_wait w = {0, 0, 0};
    for (;;) {
        nl_taking taking = nl_lock_try(us, lock);
        if (taking != NL_BUSY || !nl_wait_on(us, &w, patience, nl_load32(lock))) return taking;
    }
}

NL_ALWAYS_INLINE void nl_unlock(nl_lock *lock) { nl_store32_release(lock, 0); }

#endif
