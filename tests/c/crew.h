/* crew.h: threads that start at one instant, and a barrier, the same on every system. */
#ifndef NL_TEST_CREW_H
#define NL_TEST_CREW_H

#include <stdio.h>
#include <stdlib.h>

#include "lock.h"

enum { CREW_MOST = 16 };

#define CREW_REQUIRE(condition, ...)                                                                                   \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition);                                            \
            fprintf(stderr, __VA_ARGS__);                                                                              \
            fprintf(stderr, "\n");                                                                                     \
            fflush(stderr);                                                                                            \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

typedef struct {
    uint32_t size, arrived, round;
} crew_barrier;

/* Comes back when `size` threads have come. */
static void crew_meet(crew_barrier *barrier) {
    uint32_t round = nl_load32_acquire(&barrier->round);
    nl_fence_release();
    if (nl_add32(&barrier->arrived, 1) + 1 == barrier->size) {
        nl_fence_full();
        nl_store32(&barrier->arrived, 0);
        nl_store32_release(&barrier->round, round + 1);
    } else {
        for (int tries = 0; nl_load32_acquire(&barrier->round) == round; tries++) tries < 200 ? nl_pause() : nl_yield();
    }
}

typedef struct {
    void (*work)(void *shared, uint32_t self);
    void *shared;
    uint32_t self;
} crew_member;

#if defined(_WIN32)
typedef HANDLE crew_thread;
static DWORD WINAPI crew_main(LPVOID argument) {
    crew_member *member = argument;
    member->work(member->shared, member->self);
    return 0;
}
static bool crew_start(crew_thread *thread, crew_member *member) {
    return (*thread = CreateThread(NULL, 0, crew_main, member, 0, NULL)) != NULL;
}
static void crew_join(crew_thread thread) { WaitForSingleObject(thread, INFINITE), CloseHandle(thread); }
#else
typedef pthread_t crew_thread;
static void *crew_main(void *argument) {
    crew_member *member = argument;
    member->work(member->shared, member->self);
    return NULL;
}
static bool crew_start(crew_thread *thread, crew_member *member) { return !pthread_create(thread, NULL, crew_main, member); }
static void crew_join(crew_thread thread) { pthread_join(thread, NULL); }
#endif

/* Runs `work` in so many threads; `meanwhile` (or NULL) in this one. */
static void crew_run(uint32_t threads, void (*work)(void *, uint32_t), void *shared, void (*meanwhile)(void *)) {
    crew_member members[CREW_MOST];
    crew_thread handles[CREW_MOST];
    CREW_REQUIRE(threads <= CREW_MOST, "%u", threads);
    for (uint32_t i = 0; i < threads; i++) {
        members[i] = (crew_member){work, shared, i};
        CREW_REQUIRE(crew_start(&handles[i], &members[i]), "no thread %u", i);
    }
    if (meanwhile) meanwhile(shared);
    for (uint32_t i = 0; i < threads; i++) crew_join(handles[i]);
}

#endif
