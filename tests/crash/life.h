/* life.h: a shared table without processes: made in a memory file, with keys that collide, what can be done to it, and what should
 * come of that, told by the model of the C tests (../c/model.h). step.c kills in the midst of it, corrupt.h damages what it left.
 */
#ifndef NL_TEST_LIFE_H
#define NL_TEST_LIFE_H

#include <inttypes.h>

#include "batch.h"
#include "refund.h"
#include "shared.h"
#include "verify.h"
#include "walk.h"

#include "../c/model.h"

enum { LIFE_SMALL = 100 }; /* up to so many keys share one home bucket */

typedef enum {
    LIFE_NOTHING, LIFE_CHECK, LIFE_PEEK, LIFE_RESET, LIFE_REFUND, LIFE_BATCH, LIFE_EVICT, LIFE_CLEAR, LIFE_MEND, LIFE_PASS, LIFE_REGISTER, LIFE_LEAVE
} life_verb;

typedef struct { /* something that a process does */
    life_verb verb;
    uint32_t key;   /* the first of them, if several */
    uint32_t cost;
    uint32_t keys;  /* how many one after another: checks one by one, or a batch; 0 is one */
    uint64_t ns;    /* that pass before it */
} life_deed;

typedef struct { /* what a table should hold */
    nl_config config;
    model model;
    uint64_t now_ns;
} life;

typedef struct { /* what came of a deed's last key */
    uint32_t outcome;
    uint64_t freed;
    nl_view view;
} life_result;

static const char *life_scene = "?"; /* told with a failure */
static char life_detail[160];

static void life_fail(const char *what, uint64_t expected, uint64_t found) {
    fprintf(stderr, "%s: %s: %s: expected %" PRIu64 ", found %" PRIu64 "\n", life_scene, life_detail, what, expected, found);
    fflush(stderr);
    _exit(1);
}

#define LIFE_SAME(what, expected, found)                                                                               \
    do {                                                                                                               \
        uint64_t expected_ = (expected), found_ = (found);                                                             \
        if (expected_ != found_) life_fail(what, expected_, found_);                                                   \
    } while (0)

static uint64_t life_mix(uint64_t x) { /* splitmix64 */
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static uint64_t life_random(uint64_t *state) { return life_mix(*state += 0x9e3779b97f4a7c15u); }

/* core/segment.h tells which bits do what: 0..31 segment, 40..45 bucket, 56..63 tag. In a small table the home of all keys is the
 * last bucket, so that entries walk into the first; every third has one tag. */
static nl_fingerprint life_fingerprint(const nl_config *config, uint32_t k) {
    nl_fingerprint fp = {life_mix(k), life_mix(k + ((uint64_t)1 << 40))};
    if (config->max_keys <= LIFE_SMALL) fp.lo |= (uint64_t)63 << 40;
    if (config->max_keys <= LIFE_SMALL && k % 3 == 0) fp.lo = (fp.lo & ~((uint64_t)255 << 56)) | (uint64_t)7 << 56;
    fp.lo += fp.lo == 0;
    return fp;
}

/* --- the table ------------------------------------------------------------------------------------------------------ */

/* A formatted table in a memory file. */
static int life_make(const nl_config *config) {
    const nl_origin origin = {.own_clock = 1};
    uint64_t bytes = nl_shared_bytes(config);
    int fd = memfd_create("table", MFD_CLOEXEC);
    void *base = ftruncate(fd, (off_t)bytes) ? MAP_FAILED : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) life_fail("room for a table", bytes, 0);
    nl_shared_format(base, config, &origin);
    munmap(base, bytes);
    return fd;
}

/* A process's view of it, registered. A stall counts as a deadlock: nobody here holds a lock for long. */
static void life_open(nl_table *t, int fd, uint32_t on_full) {
    const char *wrong = nl_shared_open(t, fd, NULL, on_full, 5000000000u, false);
    if (wrong) life_fail(wrong, 0, 1);
}
static void life_attach(nl_table *t, int fd, uint32_t on_full) {
    life_open(t, fd, on_full);
    LIFE_SAME("registering", 0, (uint64_t)nl_shared_register(t));
}

/* --- deeds ---------------------------------------------------------------------------------------------------------- */

static inline void life_begin(life *l, const nl_config *config, uint64_t now_ns) {
    l->config = *config;
    l->now_ns = now_ns;
    model_open(&l->model, config->window_ns, 2 * config->max_keys + 8);
}

static inline void life_copy(life *to, const life *from) {
    *to = *from;
    to->model.keys = model_memory(NULL, from->model.n * sizeof(model_key));
    for (uint32_t k = 0; k < from->model.n; k++) {
        model_key *key = &to->model.keys[k];
        *key = from->model.keys[k];
        key->room = key->count;
        key->stamps = key->count ? model_memory(NULL, key->count * sizeof(uint64_t)) : NULL;
        if (key->count) memcpy(key->stamps, from->model.keys[k].stamps, key->count * sizeof(uint64_t));
    }
}

static inline void life_end(life *l) { model_close(&l->model); }

/* Does it to the table. */
static void life_act(nl_table *t, const nl_config *config, life_deed d, uint64_t now_ns, life_result *r) {
    nl_fingerprint fps[NL_GROUP];
    unsigned char outcomes[NL_GROUP];
    nl_tally tally = {0, 0, 0, 0};
    bool stalled = false;
    r->outcome = 0;
    r->freed = 0;
    switch (d.verb) {
    case LIFE_CHECK:
        for (uint32_t i = 0; i < (d.keys ? d.keys : 1); i++)
            r->outcome = nl_check_any(t, life_fingerprint(config, d.key + i), now_ns, d.cost, NL_WAITING, &r->view);
        break;
    case LIFE_PEEK: r->outcome = nl_peek(t, life_fingerprint(config, d.key), now_ns, d.cost, NL_WAITING, &r->view); break;
    case LIFE_RESET: r->outcome = nl_reset(t, life_fingerprint(config, d.key), now_ns, NL_WAITING); break;
    case LIFE_REFUND: nl_refund(t, life_fingerprint(config, d.key), now_ns, NL_NEWEST, d.cost, NL_WAITING, &r->outcome); break;
    case LIFE_BATCH:
        for (uint32_t i = 0; i < d.keys; i++) fps[i] = life_fingerprint(config, d.key + i);
        nl_check_group(t, fps, d.keys, now_ns, d.cost, true, outcomes, &tally);
        r->outcome = outcomes[d.keys - 1];
        break;
    case LIFE_EVICT: r->freed = nl_walk_evict(t, now_ns, false, &stalled); break;
    case LIFE_CLEAR: r->freed = nl_walk_evict(t, now_ns, true, &stalled); break;
    case LIFE_MEND: stalled = !nl_walk_mend(t); break;
    case LIFE_REGISTER: r->outcome = (uint32_t)nl_shared_register(t); break;
    case LIFE_LEAVE: nl_shared_close(t); break;
    case LIFE_NOTHING:
    case LIFE_PASS: break;
    }
    if (stalled) r->outcome = NL_WOULD_WAIT;
}

/* The live key whose newest stamp is the oldest. */
static uint32_t life_idle_longest(const life *l) {
    uint32_t oldest = UINT32_MAX;
    for (uint32_t k = 0; k < l->model.n; k++) {
        const model_key *key = &l->model.keys[k];
        if (!model_is_live(&l->model, key, l->now_ns)) continue;
        if (oldest == UINT32_MAX || key->stamps[key->count - 1] < l->model.keys[oldest].stamps[l->model.keys[oldest].count - 1]) oldest = k;
    }
    return oldest;
}

/* The keys whose logs a deed changes, in the order in which it does so; a walk's have none. */
typedef struct {
    uint32_t keys[2 * NL_GROUP], n;
} life_order;

static uint32_t life_foresee_check(life *l, uint32_t k, uint32_t cost, model_view *view, life_order *order) {
    uint32_t outcome = 0;
    if (!model_is_live(&l->model, &l->model.keys[k], l->now_ns) && model_live_keys(&l->model, l->now_ns) >= l->config.max_keys) {
        if (l->config.on_full != NL_ON_FULL_EVICT) return NL_UNTRACKED | (l->config.on_full == NL_ON_FULL_ALLOW ? NL_ALLOWED : NL_DENIED);
        uint32_t displaced = life_idle_longest(l);
        model_forget(&l->model, displaced);
        if (order && order->n < 2 * NL_GROUP) order->keys[order->n++] = displaced;
        outcome = NL_DISPLACED;
    }
    *view = model_check(&l->model, k, l->now_ns, l->config.limit, cost);
    if (view->allowed) model_arrive(&l->model, k);
    if (view->allowed && order && order->n < 2 * NL_GROUP) order->keys[order->n++] = k;
    return outcome | (view->allowed ? NL_ALLOWED : NL_DENIED);
}

/* Does it to the model. The answer is that of the last key. */
static uint32_t life_foresee(life *l, life_deed d, model_view *view, life_order *order) {
    uint32_t outcome = 0;
    l->now_ns += d.ns;
    memset(view, 0, sizeof *view);
    switch (d.verb) {
    case LIFE_CHECK:
    case LIFE_BATCH:
        for (uint32_t i = 0; i < (d.keys ? d.keys : 1); i++) outcome = life_foresee_check(l, d.key + i, d.cost, view, order);
        break;
    case LIFE_PEEK:
        *view = model_peek(&l->model, d.key, l->now_ns, l->config.limit, d.cost);
        outcome = view->allowed ? NL_ALLOWED : NL_DENIED;
        break;
    case LIFE_RESET:
        outcome = model_is_live(&l->model, &l->model.keys[d.key], l->now_ns) ? NL_ALLOWED : NL_DENIED;
        model_forget(&l->model, d.key);
        if (order) order->keys[order->n++] = d.key;
        break;
    case LIFE_REFUND: /* of the last units: one store. In the middle of a log it is not the log before or after (test_pair.py) */
        outcome = model_refund(&l->model, d.key, l->now_ns, UINT64_MAX, d.cost);
        if (order) order->keys[order->n++] = d.key;
        break;
    case LIFE_CLEAR:
        for (uint32_t k = 0; k < l->model.n; k++) model_forget(&l->model, k);
        break;
    default: break;
    }
    return outcome;
}

static void life_compare(life_deed d, uint32_t expected, const model_view *view, const life_result *r) {
    LIFE_SAME("outcome", expected, r->outcome);
    if ((d.verb != LIFE_CHECK && d.verb != LIFE_PEEK) || expected & NL_UNTRACKED) return;
    LIFE_SAME("used", view->used, r->view.used);
    LIFE_SAME("newest stamp", view->newest, r->view.newest_tick);
    LIFE_SAME("oldest stamp", view->oldest, r->view.oldest_tick);
    LIFE_SAME("deciding stamp", view->deciding, r->view.deciding_tick);
}

/* Does it to both, and compares. */
static inline void life_do(nl_table *t, life *l, life_deed d) {
    model_view view;
    life_result result;
    uint32_t expected = life_foresee(l, d, &view, NULL);
    life_act(t, &l->config, d, l->now_ns, &result);
    life_compare(d, expected, &view, &result);
}

#endif
