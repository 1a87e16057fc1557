/* model.h: what a table should say, kept in the plainest way: each key is a list of exact stamps.
 *
 * Times are full 64-bit ticks, lists are never packed, nothing is clever. It shares no line with the core: it has its own
 * idea of a tick. What it can't foretell is which idle key's slot the core takes for a newcomer; it is told (model_forget)
 * and says whether that was allowed.
 *
 * What it holds for true (docs/design.md):
 *   - a stamp counts while now - stamp < window; stamps round up to ticks, now rounds down;
 *   - a now before a key's newest stamp is taken for one tick before it; a new stamp is never before the newest;
 *   - what is out of the window is forgotten when the key's log is next added to, not before: a clock that goes back without
 *     an accepted request in between finds the old stamps again;
 *   - all units of a request count, or none.
 */
#ifndef NL_TEST_MODEL_H
#define NL_TEST_MODEL_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    uint64_t *stamps; /* oldest first */
    uint32_t count, room;
    bool present;     /* it has a slot in the table */
} model_key;

typedef struct {
    uint64_t tick_ns, window; /* window in ticks */
    uint32_t n;
    model_key *keys;
    uint32_t present; /* how many are */
} model;

typedef struct {
    bool allowed;
    uint32_t used; /* live units after the decision */
    uint64_t newest, oldest, deciding;
} model_view;

static void *model_memory(void *old, size_t bytes) {
    void *new = realloc(old, bytes);
    if (!new) abort();
    return new;
}

/* The smallest of 1, 2, 5, 10, 20, 50 ... ns of which at most 2^30 make the window. */
static uint64_t model_tick_of(uint64_t window_ns) {
    static const uint64_t digits[] = {1, 2, 5};
    for (uint64_t decade = 1;; decade *= 10)
        for (int i = 0; i < 3; i++)
            if (window_ns <= ((uint64_t)1 << 30) * digits[i] * decade) return digits[i] * decade;
}

static void model_open(model *m, uint64_t window_ns, uint32_t keys) {
    memset(m, 0, sizeof *m);
    m->tick_ns = model_tick_of(window_ns);
    m->window = window_ns / m->tick_ns + (window_ns % m->tick_ns != 0);
    m->n = keys;
    m->keys = memset(model_memory(NULL, keys * sizeof(model_key)), 0, keys * sizeof(model_key));
}

static void model_close(model *m) {
    for (uint32_t k = 0; k < m->n; k++) free(m->keys[k].stamps);
    free(m->keys);
}

/* How many of the oldest stamps are out. */
static uint32_t model_expired(const model *m, const model_key *key, uint64_t now_ns) {
    uint64_t now = now_ns / m->tick_ns;
    if (!key->count) return 0;
    uint64_t newest = key->stamps[key->count - 1];
    if (now < newest) now = newest - 1;
    uint32_t out = 0;
    while (out < key->count && now >= key->stamps[out] && now - key->stamps[out] >= m->window) out++;
    return out;
}

static bool model_is_live(const model *m, const model_key *key, uint64_t now_ns) {
    return key->count > model_expired(m, key, now_ns);
}

static model_view model_peek(const model *m, uint32_t k, uint64_t now_ns, uint32_t limit, uint32_t cost) {
    const model_key *key = &m->keys[k];
    uint32_t out = model_expired(m, key, now_ns);
    model_view view = {0};
    view.used = key->count - out;
    view.allowed = !cost || view.used + cost <= limit;
    if (view.used) {
        const uint64_t *live = key->stamps + out;
        view.oldest = live[0];
        view.newest = live[view.used - 1];
        if (view.used + cost > limit) view.deciding = live[view.used + cost - limit - 1]; /* so many must leave first */
    }
    return view;
}

static model_view model_check(model *m, uint32_t k, uint64_t now_ns, uint32_t limit, uint32_t cost) {
    model_key *key = &m->keys[k];
    model_view view = model_peek(m, k, now_ns, limit, cost);
    if (!view.allowed) return view;
    uint64_t stamp = now_ns / m->tick_ns + (now_ns % m->tick_ns != 0);
    if (view.used && stamp < view.newest) stamp = view.newest;
    uint32_t out = model_expired(m, key, now_ns);
    if (key->room < view.used + cost) key->stamps = model_memory(key->stamps, (key->room = 2 * (view.used + cost)) * sizeof(uint64_t));
    if (out) memmove(key->stamps, key->stamps + out, view.used * sizeof(uint64_t));
    key->count = view.used;
    for (uint32_t i = 0; i < cost; i++) key->stamps[key->count++] = stamp;
    view.used = key->count;
    view.newest = stamp;
    view.oldest = key->stamps[0];
    return view;
}

/* Gives back up to `units` of those counted at `tick`, or (UINT64_MAX) of the last. How many. */
static uint32_t model_refund(model *m, uint32_t k, uint64_t now_ns, uint64_t tick, uint32_t units) {
    model_key *key = &m->keys[k];
    uint32_t out = model_expired(m, key, now_ns), given = 0, kept = out;
    for (uint32_t i = key->count; i-- > out && given < units;)
        if (tick == UINT64_MAX || key->stamps[i] == tick) key->stamps[i] = UINT64_MAX, given++;
    if (!given) return 0; /* nothing was written: what is out is not forgotten either */
    for (uint32_t i = out; i < key->count; i++)
        if (key->stamps[i] != UINT64_MAX) key->stamps[kept++] = key->stamps[i];
    memmove(key->stamps, key->stamps + out, (kept - out) * sizeof(uint64_t));
    key->count = kept - out;
    return given;
}

static void model_arrive(model *m, uint32_t k) {
    m->present += !m->keys[k].present;
    m->keys[k].present = true;
}

static void model_forget(model *m, uint32_t k) {
    m->present -= m->keys[k].present;
    m->keys[k].present = false;
    m->keys[k].count = 0;
}

static uint32_t model_live_keys(const model *m, uint64_t now_ns) {
    uint32_t live = 0;
    for (uint32_t k = 0; k < m->n; k++) live += model_is_live(m, &m->keys[k], now_ns);
    return live;
}

#endif
