/* point.h: the places where a process may die and leave the most behind. In a build for the kill tests (NL_KILL_POINTS) each can
 * send the process a signal at its n-th passing; in every other build there is nothing here.
 */
#ifndef NL_POINT_H
#define NL_POINT_H

#ifdef NL_KILL_POINTS
#include <signal.h>

#include "atomic.h"

#define NL_POINTS(X)                                                                                                   \
    X(slot_owned) X(accept_purged) X(accept_stamped) X(accept_committed)                                               \
    X(slab_take_intent) X(slab_take_cleared) X(slab_fresh_owned) X(slab_taken) X(slab_give_intent) X(slab_give_set)     \
    X(chunk_take_intent) X(chunk_span_named) X(chunk_take_cleared) X(chunk_taken) X(chunk_give_intent) X(chunk_give_set) \
    X(move_copied) X(move_published) X(move_given)                                                                     \
    X(segment_locked) X(insert_fingerprint) X(insert_passed) X(insert_id) X(insert_tag) X(insert_placed)               \
    X(free_emptied) X(free_fingerprint) X(free_tag) X(free_removed) X(hand_took) X(orphan_claimed) X(walk_freed)       \
    X(repair_began) X(repair_entry) X(repair_done) X(register_locked) X(registered)                             \
    X(top_locked) X(top_emptied) X(top_ousted) X(top_written) X(top_linked)

typedef enum {
#define NL_AS_ENUM(name) NL_AT_##name,
    NL_POINTS(NL_AS_ENUM)
#undef NL_AS_ENUM
    NL_POINT_COUNT
} nl_point_name;

static const char *const nl_point_names[] = {
#define NL_AS_TEXT(name) #name,
    NL_POINTS(NL_AS_TEXT)
#undef NL_AS_TEXT
};

static struct {
    int at, signal;      /* at: -1 for none */
    uint32_t passings;   /* until it strikes */
} nl_armed = {-1, 0, 0};

static inline void nl_point(int at) {
    if (at == nl_armed.at && nl_add32(&nl_armed.passings, (uint32_t)-1) == 1) raise(nl_armed.signal);
}
#define NL_POINT(name) nl_point(NL_AT_##name)
#else
#define NL_POINT(name) ((void)0)
#endif

#endif
