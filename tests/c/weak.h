/* weak.h: a simulated machine that orders memory as little as C11 lets it. The core runs on it unchanged: atomic.h takes its
 * atomics from here (NL_ATOMIC_HEADER).
 *
 * The model is the view-based one of "A Promising Semantics for Relaxed-Memory Concurrency" (Kang, Hur, Lahav, Vafeiadis and
 * Dreyer, 2017) without its promises. A location is an address that an atomic touched. Its *history* is the list of all that
 * was ever stored there, in order; an entry is a *message*: value and view. A *view* says of every location how far into its
 * history somebody must have got. A thread has three:
 *
 *   now      what it has seen: a load may give any message of the history that is not before this one
 *   pending  views of messages that it read relaxed; an acquire fence makes them its `now`
 *   released its `now` at its last release fence: what messages of relaxed stores carry
 *
 *   load             picks a message at random from now[location] on; its view joins `pending`; acquire: joins `now` too
 *   store            goes to the end of the history, carries `released`; release: carries `now`
 *   add, cas         read the newest message, acquire on a cas that succeeds; the new message carries that one's view on (a
 *                    release sequence). A cas may fail by an older message, as a load may give it
 *   acquire fence    now = pending          release fence    released = now
 *   full fence       both, and joins `now` with one view that all full fences share
 *
 * Left out: stores into the middle of a history (all words of the core that several threads store to are under a lock or
 * changed by cas), and loads that see what is stored later in their own thread (no promises).
 *
 * Plain accesses go to real memory, in which every location has its newest value. That is right for words under a lock that
 * works, which the core's plain words are; and whether locks work is seen on their atomic words. The first touch of a
 * location takes real memory as a message that everybody has seen. If real memory was changed by a plain store since,
 * then that becomes the newest message, and all threads have seen it.
 *
 * Threads are coroutines; at every atomic operation a seeded scheduler may go on with another one. Outside weak_run() atomics go
 * straight to memory.
 */
#ifndef NL_WEAK_H
#define NL_WEAK_H

#include <sched.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

enum {
    WEAK_THREADS = 6,
    WEAK_LOCATIONS = 512,
    WEAK_MESSAGES = 8192,
    WEAK_HISTORY = 256,
    WEAK_STACK = 256 << 10,
    WEAK_OPERATIONS = 200000, /* more than any run needs: somebody waits for ever */
};

typedef struct {
    uint16_t at[WEAK_LOCATIONS];
} weak_view;

typedef struct {
    uint64_t value;
    weak_view view;
} weak_message;

typedef struct {
    void *address;
    uint32_t bytes;
    uint32_t messages;
    uint16_t history[WEAK_HISTORY];
} weak_location;

typedef struct {
    weak_view now, pending, released;
    ucontext_t context;
    jmp_buf resume;
    bool begun, done;
    char *stack;
} weak_thread;

static struct {
    weak_location locations[WEAK_LOCATIONS];
    weak_message messages[WEAK_MESSAGES];
    uint16_t index[4 * WEAK_LOCATIONS]; /* of addresses: 1 + the location */
    uint32_t used_locations, used_messages;
    weak_view full; /* what full fences share */
    weak_thread threads[WEAK_THREADS];
    int count, current; /* -1: no machine, straight to memory */
    uint64_t random;
    uint32_t switch_odds, stale_odds; /* of 256 */
    uint64_t operations;
    jmp_buf end;
    void (*program)(int thread);
    void (*on_store)(void *address, uint64_t value, uint32_t location, uint32_t at); /* the checker's ear */
    void (*on_cas)(void *address, uint64_t before);
} weak = {.current = -1};

/* How deep each is in the gate (lock.h); the last one: without a machine. */
static uint32_t weak_depths[WEAK_THREADS + 1];
#define NL_GATE_DEPTH weak_depths[weak.current < 0 ? WEAK_THREADS : weak.current]

static uint64_t weak_random(void) { /* splitmix64 */
    uint64_t z = weak.random += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}
static uint32_t weak_below(uint32_t n) { return (uint32_t)(weak_random() >> 32) % n; }

static void weak_fail(const char *what); /* weak.c: prints scenario and seed, and ends */

static void weak_join(weak_view *into, const weak_view *from) {
    for (uint32_t i = 0; i < weak.used_locations; i++)
        if (into->at[i] < from->at[i]) into->at[i] = from->at[i];
}

static uint64_t weak_read(const void *p, uint32_t bytes) {
    if (bytes == 4) return *(const uint32_t *)p;
    return *(const uint64_t *)p;
}
static void weak_write(void *p, uint32_t bytes, uint64_t v) {
    if (bytes == 4) *(uint32_t *)p = (uint32_t)v;
    else *(uint64_t *)p = v;
}

/* --- threads ------------------------------------------------------------------------------------------------------ */

static void weak_go(int next) {
    weak_thread *from = &weak.threads[weak.current], *to = &weak.threads[next];
    if (from == to) return;
    weak.current = next;
    if (_setjmp(from->resume)) return;
    if (to->begun) _longjmp(to->resume, 1);
    to->begun = true;
    setcontext(&to->context);
}

static int weak_other(void) { /* a thread that is not done; the current one if there is no other */
    int left[WEAK_THREADS], n = 0;
    for (int i = 0; i < weak.count; i++)
        if (!weak.threads[i].done && i != weak.current) left[n++] = i;
    return n ? left[weak_below((uint32_t)n)] : weak.current;
}

static void weak_step(void) {
    if (++weak.operations > WEAK_OPERATIONS) weak_fail("threads wait for each other for ever");
    if (weak_below(256) < weak.switch_odds) weak_go(weak_other());
}

static int weak_yield(void) {
    if (weak.current >= 0) weak_go(weak_other());
    return 0;
}
#define sched_yield() weak_yield()

static void weak_begin(void) {
    weak.program(weak.current);
    weak.threads[weak.current].done = true;
    int next = weak_other();
    if (next == weak.current) _longjmp(weak.end, 1);
    weak_go(next);
}

/* Runs program(0) .. program(count - 1) to their ends, or until weak_stop(). */
static void weak_run(int count, void (*program)(int)) {
    memset(weak.index, 0, sizeof weak.index);
    memset(&weak.full, 0, sizeof weak.full);
    weak.used_locations = weak.used_messages = 0;
    weak.operations = 0;
    weak.count = count;
    weak.program = program;
    for (int i = 0; i < count; i++) {
        weak_thread *thread = &weak.threads[i];
        memset(&thread->now, 0, 3 * sizeof(weak_view));
        thread->begun = thread->done = false;
        if (!thread->stack) thread->stack = malloc(WEAK_STACK);
        getcontext(&thread->context);
        thread->context.uc_stack.ss_sp = thread->stack;
        thread->context.uc_stack.ss_size = WEAK_STACK;
        thread->context.uc_link = NULL;
        makecontext(&thread->context, weak_begin, 0);
    }
    if (!_setjmp(weak.end)) {
        weak.current = (int)weak_below((uint32_t)count);
        weak.threads[weak.current].begun = true;
        setcontext(&weak.threads[weak.current].context);
    }
    weak.current = -1;
}

static void weak_stop(void) { _longjmp(weak.end, 1); } /* all threads stand still for ever where they are */

/* --- memory ------------------------------------------------------------------------------------------------------- */

static uint32_t weak_push(weak_location *location, uint64_t value, const weak_view *view) {
    if (location->messages == WEAK_HISTORY || weak.used_messages == WEAK_MESSAGES) weak_fail("the history is too long");
    weak_message *message = &weak.messages[weak.used_messages];
    message->value = value;
    if (view) message->view = *view;
    else memset(&message->view, 0, sizeof message->view);
    location->history[location->messages] = (uint16_t)weak.used_messages++;
    return location->messages++;
}

static weak_message *weak_at(const weak_location *location, uint32_t at) { return &weak.messages[location->history[at]]; }

static uint32_t weak_locate(const void *p, uint32_t bytes) {
    uint32_t at = (uint32_t)((uintptr_t)p * 0x9e3779b97f4a7c15u >> 40) % (4 * WEAK_LOCATIONS);
    while (weak.index[at] && weak.locations[weak.index[at] - 1].address != p) at = (at + 1) % (4 * WEAK_LOCATIONS);
    if (!weak.index[at]) {
        if (weak.used_locations == WEAK_LOCATIONS) weak_fail("too many locations");
        weak_location *fresh = &weak.locations[weak.used_locations++];
        fresh->address = (void *)(uintptr_t)p;
        fresh->bytes = bytes;
        fresh->messages = 0;
        weak_push(fresh, weak_read(p, bytes), NULL);
        weak.index[at] = (uint16_t)weak.used_locations;
        /* views that were made before say 0 of it, which is true */
    }
    uint32_t number = weak.index[at] - 1u;
    weak_location *location = &weak.locations[number];
    if (location->bytes != bytes) weak_fail("a word is used with two widths");
    if (weak_at(location, location->messages - 1)->value != weak_read(p, bytes)) {
        uint32_t newest = weak_push(location, weak_read(p, bytes), NULL);
        for (int i = 0; i < weak.count; i++) weak.threads[i].now.at[number] = weak.threads[i].pending.at[number] = (uint16_t)newest;
    }
    return number;
}

static void weak_see(weak_thread *thread, uint32_t number, uint32_t at, bool acquire) {
    const weak_view *view = &weak_at(&weak.locations[number], at)->view;
    weak_join(&thread->pending, view);
    if (acquire) weak_join(&thread->now, view);
    if (thread->now.at[number] < at) thread->now.at[number] = (uint16_t)at;
    if (thread->pending.at[number] < at) thread->pending.at[number] = (uint16_t)at;
}

static uint64_t weak_load(const void *p, uint32_t bytes, bool acquire) {
    if (weak.current < 0) return weak_read(p, bytes);
    weak_step();
    weak_thread *thread = &weak.threads[weak.current];
    uint32_t number = weak_locate(p, bytes);
    weak_location *location = &weak.locations[number];
    uint32_t newest = location->messages - 1, at = newest, least = thread->now.at[number];
    if (least < newest && weak_below(256) < weak.stale_odds) at = least + weak_below(newest - least + 1);
    weak_see(thread, number, at, acquire);
    return weak_at(location, at)->value;
}

static void weak_append(void *p, uint32_t number, uint64_t v, weak_view *view) {
    weak_thread *thread = &weak.threads[weak.current];
    weak_location *location = &weak.locations[number];
    weak_write(p, location->bytes, v);
    uint32_t at = weak_push(location, v, view);
    weak_at(location, at)->view.at[number] = (uint16_t)at;
    thread->now.at[number] = thread->pending.at[number] = (uint16_t)at;
    if (weak.on_store) weak.on_store(p, v, number, at);
}

static void weak_store(void *p, uint32_t bytes, uint64_t v, bool release) {
    if (weak.current < 0) {
        weak_write(p, bytes, v);
        return;
    }
    weak_step();
    weak_thread *thread = &weak.threads[weak.current];
    weak_append(p, weak_locate(p, bytes), v, release ? &thread->now : &thread->released);
}

static uint64_t weak_add(void *p, uint32_t bytes, uint64_t v) {
    uint64_t before = weak_read(p, bytes);
    if (weak.current < 0) {
        weak_write(p, bytes, before + v);
        return before;
    }
    weak_step();
    weak_thread *thread = &weak.threads[weak.current];
    uint32_t number = weak_locate(p, bytes), at = weak.locations[number].messages - 1;
    before = weak_at(&weak.locations[number], at)->value;
    weak_view view = weak_at(&weak.locations[number], at)->view;
    weak_see(thread, number, at, false);
    weak_join(&view, &thread->released);
    weak_append(p, number, bytes == 4 ? (uint32_t)(before + v) : before + v, &view);
    return before;
}

static bool weak_cas(void *p, uint32_t bytes, uint64_t expected, uint64_t desired) {
    if (weak.current < 0) {
        if (weak_read(p, bytes) != expected) return false;
        weak_write(p, bytes, desired);
        return true;
    }
    weak_step();
    weak_thread *thread = &weak.threads[weak.current];
    uint32_t number = weak_locate(p, bytes);
    weak_location *location = &weak.locations[number];
    uint32_t newest = location->messages - 1, least = thread->now.at[number], at = newest;
    if (least < newest && weak_below(256) < weak.stale_odds) at = least + weak_below(newest - least + 1);
    if (weak_at(location, at)->value == expected) at = newest; /* a cas that is to succeed reads the newest */
    bool same = weak_at(location, at)->value == expected;
    weak_view view = weak_at(location, at)->view;
    weak_see(thread, number, at, same);
    if (!same) return false;
    if (weak.on_cas) weak.on_cas(p, expected);
    weak_join(&view, &thread->released);
    weak_append(p, number, desired, &view);
    return true;
}

static void weak_fence(bool acquire, bool release, bool full) {
    if (weak.current < 0) return;
    weak_step();
    weak_thread *thread = &weak.threads[weak.current];
    if (acquire) weak_join(&thread->now, &thread->pending);
    if (full) {
        weak_join(&thread->now, &weak.full);
        weak_join(&weak.full, &thread->now);
        weak_join(&thread->pending, &thread->now);
    }
    if (release) thread->released = thread->now;
}

/* What a copy of all memory may hold that is taken by the current thread at this instant: of each location a message that is
 * not before what the thread has seen, and with each message all that it carries. Real memory becomes that. */
static weak_view weak_cut(void) {
    for (uint32_t i = 0; i < weak.used_locations; i++) weak_locate(weak.locations[i].address, weak.locations[i].bytes);
    weak_view cut = weak.threads[weak.current].now;
    for (uint32_t i = 0; i < weak.used_locations; i++) {
        uint32_t newest = weak.locations[i].messages - 1;
        if (weak_below(2)) cut.at[i] = (uint16_t)(cut.at[i] + weak_below(newest - cut.at[i] + 1));
    }
    for (bool changed = true; changed;) {
        weak_view before = cut;
        for (uint32_t i = 0; i < weak.used_locations; i++) weak_join(&cut, &weak_at(&weak.locations[i], cut.at[i])->view);
        changed = memcmp(&before, &cut, sizeof cut) != 0;
    }
    for (uint32_t i = 0; i < weak.used_locations; i++) {
        weak_location *location = &weak.locations[i];
        weak_write(location->address, location->bytes, weak_at(location, cut.at[i])->value);
    }
    return cut;
}

/* --- what atomic.h asks for ---------------------------------------------------------------------------------------- */

#define NL_DEFINE_ATOMICS(bits)                                                                                        \
    static inline uint##bits##_t nl_load##bits(const uint##bits##_t *p) {                                              \
        return (uint##bits##_t)weak_load(p, bits / 8, false);                                                          \
    }                                                                                                                  \
    static inline uint##bits##_t nl_load##bits##_acquire(const uint##bits##_t *p) {                                    \
        return (uint##bits##_t)weak_load(p, bits / 8, true);                                                           \
    }                                                                                                                  \
    static inline void nl_store##bits(uint##bits##_t *p, uint##bits##_t v) { weak_store(p, bits / 8, v, false); }      \
    static inline void nl_store##bits##_release(uint##bits##_t *p, uint##bits##_t v) { weak_store(p, bits / 8, v, true); } \
    static inline uint##bits##_t nl_add##bits(uint##bits##_t *p, uint##bits##_t v) {                                   \
        return (uint##bits##_t)weak_add(p, bits / 8, v);                                                               \
    }                                                                                                                  \
    static inline bool nl_cas##bits(uint##bits##_t *p, uint##bits##_t expected, uint##bits##_t desired) {              \
        return weak_cas(p, bits / 8, expected, desired);                                                               \
    }
NL_DEFINE_ATOMICS(32)
NL_DEFINE_ATOMICS(64)
#undef NL_DEFINE_ATOMICS

static inline void nl_fence_acquire(void) { weak_fence(true, false, false); }
static inline void nl_fence_release(void) { weak_fence(false, true, false); }
static inline void nl_fence_full(void) { weak_fence(true, true, true); }

#endif
