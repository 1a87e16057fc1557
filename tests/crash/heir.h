/* heir.h: what whoever comes after a death must find and be able to do. Given a table's file in which nobody lives, and what each key's
 * log was before the deed that was cut short and would have been after it.
 *
 *   - each log is whole: what it was before, or what it is after; if the deed had ended, what it is after; and of a deed that
 *     changes several logs in order, none is changed before an earlier one
 *   - from there on everything answers as the model does: nobody waits for the dead, nothing is over-admitted, no key has two logs
 *   - no slot and no chunk is lost: max_keys keys find room for a full log each; afterwards all is free
 *   - the table is whole (verify.h)
 */
#ifndef NL_TEST_HEIR_H
#define NL_TEST_HEIR_H

#include "life.h"

typedef struct {
    const life *before, *after;
    const life_order *order;
    bool ended;       /* the deed was done and answered */
    uint64_t seed;    /* of what the heirs do */
} heir_brief;

static void heir_verify(nl_table *t, bool orphans_too) {
    char message[200];
    uint32_t orphans;
    const char *broken = nl_verify(t, &orphans, message, sizeof message);
    if (broken) life_fail(broken, 0, 1);
    if (orphans_too) LIFE_SAME("slots in nobody's hand", 0, orphans);
}

static bool heir_same_runs(const nl_table *t, const life *l, const nl_slot *slot, const model_key *key, uint32_t out) {
    nl_runs r = {.used = 0};
    if (slot && !nl_runs_read(&t->rule, &t->chunks, slot, slot->meta, nl_rule_now(&t->rule, l->now_ns), &r)) return false;
    if (r.used != key->count - out) return false;
    uint32_t before = r.from;
    for (uint32_t i = r.expired; r.used && i <= r.count; i++) {
        nl_run run = nl_runs_get(&t->chunks, &r, i);
        for (; before != run.total; before++, out++)
            if (out == key->count || key->stamps[out] != nl_runs_tick(&r, run.tick)) return false;
    }
    return out == key->count;
}

/* Are a key's live stamps those that the model has of it? */
static bool heir_same_log(const nl_table *t, const life *l, uint32_t k) {
    const model_key *key = &l->model.keys[k];
    uint32_t out = model_expired(&l->model, key, l->now_ns);
    const nl_slot *slot = nl_find(t, life_fingerprint(&l->config, k));
    nl_log log = {.used = 0};
    if (t->rule.algorithm == NL_RUNS) return heir_same_runs(t, l, slot, key, out);
    if (slot && !nl_log_read(&t->rule, &t->chunks, slot, slot->meta, nl_rule_now(&t->rule, l->now_ns), &log)) return false;
    if (log.used != key->count - out) return false;
    for (uint32_t i = 0; i < log.used; i++)
        if (nl_log_tick(&log, log.expired + i) != key->stamps[out + i]) return false;
    return true;
}

/* Which log does each key have? `found` becomes what the table holds. */
static void heir_resolve(nl_table *t, const heir_brief *brief, life *found) {
    nl_view view;
    bool unchanged_seen = false;
    life_copy(found, brief->before);
    found->now_ns = brief->after->now_ns;
    uint32_t n = found->model.n, in_order[2 * NL_GROUP];
    for (uint32_t i = 0; i < brief->order->n; i++) in_order[i] = 0;
    for (uint32_t k = 0; k < n; k++) {
        uint32_t seen = nl_peek(t, life_fingerprint(&found->config, k), found->now_ns, 1, NL_WAITING, &view);
        if (seen & NL_WOULD_WAIT) life_fail("a peek waits for the dead; key", 0, k);
        bool before = heir_same_log(t, found, k), after = heir_same_log(t, brief->after, k);
        if (!before && !after) life_fail("a log is neither what it was nor what it is; key", 0, k);
        if (brief->ended && !after) life_fail("an answered deed is lost; key", 0, k);
        if (after) {
            const model_key *key = &brief->after->model.keys[k];
            model_key *to = &found->model.keys[k];
            to->stamps = key->count ? model_memory(to->stamps, key->count * sizeof(uint64_t)) : to->stamps;
            if (key->count) memcpy(to->stamps, key->stamps, key->count * sizeof(uint64_t));
            to->count = to->room = key->count;
            if (!to->count) to->room = 0, free(to->stamps), to->stamps = NULL;
        }
        for (uint32_t i = 0; i < brief->order->n; i++)
            if (brief->order->keys[i] == k) in_order[i] = before && after ? 0 : after ? 1 : 2;
    }
    for (uint32_t i = 0; i < brief->order->n; i++) {
        unchanged_seen |= in_order[i] == 2;
        if (unchanged_seen && in_order[i] == 1) life_fail("a later log changed before an earlier one; key", 0, brief->order->keys[i]);
    }
}

/* Goes on as users would, in turn through both views. */
static void heir_use(nl_table *views[2], life *l, uint64_t seed) {
    const uint32_t most = l->config.max_keys <= LIFE_SMALL ? l->config.max_keys + 4 : 12;
    const bool passes = seed & 8; /* time; else what was found out before the death may still be in force */
    for (uint32_t i = 0; i < 48; i++) {
        uint64_t r = life_random(&seed);
        static const life_verb verbs[] = {LIFE_CHECK, LIFE_CHECK, LIFE_CHECK, LIFE_CHECK, LIFE_PEEK, LIFE_RESET, LIFE_CHECK, LIFE_EVICT};
        uint32_t limit = l->config.limit, cost = r >> 16 & 3 ? 1 : 1 + (uint32_t)(r >> 32) % limit;
        /* Stamps of different keys should differ: who has been idle longest is then certain. */
        life_deed d = {verbs[r & 7], (uint32_t)(r >> 8 & 255) % most, cost, 0, l->model.tick_ns};
        if (passes && (r >> 24 & 15) == 0) d.ns += l->config.window_ns / 3;
        life_do(views[i & 1], l, d);
    }
}

/* Room for max_keys full logs, and for no more. */
static void heir_fill(nl_table *t, life *l) {
    uint32_t most = l->config.max_keys;
    for (uint32_t k = 0; k < most; k++) {
        life_deed d = {LIFE_CHECK, most + 8 + k, l->config.limit, 0, l->model.tick_ns};
        if (l->config.max_keys <= LIFE_SMALL) {
            life_do(t, l, d);
        } else { /* the model counts its live keys each time */
            nl_view view;
            l->now_ns += d.ns;
            LIFE_SAME("a full log for each key", NL_ALLOWED, nl_check_any(t, life_fingerprint(&l->config, d.key), l->now_ns, d.cost, NL_WAITING, &view));
        }
        if (nl_table_keys(t) > most) life_fail("slots in use", most, nl_table_keys(t));
    }
    LIFE_SAME("keys of a full table", most, nl_walk_count(t, l->now_ns));
    nl_outcome outcome = nl_check_any(t, life_fingerprint(&l->config, 0), l->now_ns, 1, NL_WAITING, NULL);
    uint32_t expected = l->config.on_full == NL_ON_FULL_ALLOW ? NL_ALLOWED | NL_UNTRACKED
                        : l->config.on_full == NL_ON_FULL_DENY ? NL_DENIED | NL_UNTRACKED : NL_ALLOWED | NL_DISPLACED;
    LIFE_SAME("one more than there is room for", expected, outcome);
}

static void heir_nothing_left(const nl_table *t) {
    LIFE_SAME("slots in use", 0, nl_table_keys(t));
    LIFE_SAME("slots that are free", t->head->slab.fresh, t->head->slab.freed);
    for (uint32_t at = 1; at <= t->head->chunks.used; at++)
        if (nl_span_at(&t->chunks, at)->class_) life_fail("a chunk is lost in span", 0, at);
}

/* Its locks are waited for briefly (NL_BRIEF_NS), and a machine with a lot to do may take all of that to ask who lives. */
static bool heir_mend(nl_table *t) {
    for (int tries = 0; tries < 20; tries++)
        if (nl_walk_mend(t)) return true;
    return false;
}

/* Somebody had found a key's slot before the death, and comes to it only now. True: one stamp more is the key's. */
static bool heir_late(nl_table *t, const life *l, uint32_t k) {
    nl_fingerprint fp = life_fingerprint(&l->config, k);
    for (uint32_t id = 0; id < t->slab.most; id++) {
        nl_slot *slot = nl_slab_slot(&t->slab, id);
        if (!nl_slot_is(slot, fp)) continue;
        nl_now now = nl_rule_now(&t->rule, l->now_ns);
        nl_outcome outcome = t->rule.algorithm == NL_RUNS
                                 ? nl_runs_allow(&t->us, &t->rule, &t->chunks, slot, fp, now, l->config.limit, 1, NL_WAITING, NULL)
                                 : nl_log_allow(&t->us, &t->rule, &t->chunks, slot, fp, now, l->config.limit, 1, NL_WAITING, NULL);
        if (outcome & NL_WOULD_WAIT) life_fail("who comes late waits for the dead; key", 0, k);
        return outcome == NL_ALLOWED;
    }
    return false;
}

/* All of it. The first heir gets the first place, which may be a dead one's; if there are two, the second gets the next. */
static void heir_check(int fd, const heir_brief *brief, bool two) {
    nl_table tables[2], *views[2] = {&tables[0], &tables[two]};
    const nl_config *config = &brief->before->config;
    bool stalled;
    life l, before, after;
    heir_brief known = *brief;
    life_copy(&before, brief->before);
    life_copy(&after, brief->after);
    known.before = &before;
    known.after = &after;
    for (int i = 0; i <= two; i++) life_attach(&tables[i], fd, config->on_full);
    nl_table *t = views[1];
    bool room = model_live_keys(&brief->before->model, brief->after->now_ns) + 2 <= config->max_keys;
    switch (brief->seed % 6) { /* whatever the first call is, it copes */
    case 1: if (room) nl_check_any(t, life_fingerprint(config, 2 * config->max_keys + 9), brief->after->now_ns, 1, NL_WAITING, NULL); break;
    case 2: nl_walk_evict(t, brief->after->now_ns, false, &stalled); break;
    case 3: heir_verify(t, false); break;
    case 4: LIFE_SAME("a walk that mends all", true, heir_mend(t)); break;
    case 5:
        if (brief->order->n && heir_late(t, &after, brief->order->keys[0])) {
            model_check(&before.model, brief->order->keys[0], after.now_ns, config->limit, 1);
            model_check(&after.model, brief->order->keys[0], after.now_ns, config->limit, 1);
        }
        break;
    default: break;
    }
    if (brief->seed % 6 == 1 && room) nl_reset(t, life_fingerprint(config, 2 * config->max_keys + 9), brief->after->now_ns, NL_WAITING);
    heir_resolve(t, &known, &l);
    heir_verify(t, false);
    heir_use(views, &l, brief->seed);
    heir_verify(t, false);
    life_do(t, &l, (life_deed){LIFE_CLEAR, 0, 0, 0, 1});
    LIFE_SAME("live keys of a cleared table", 0, nl_walk_count(t, l.now_ns));
    heir_fill(views[0], &l);
    heir_verify(t, true);
    life_do(t, &l, (life_deed){LIFE_CLEAR, 0, 0, 0, 1});
    heir_nothing_left(t);
    heir_verify(t, true);
    life_end(&l);
    life_end(&before);
    life_end(&after);
    for (int i = 0; i <= two; i++) nl_shared_close(&tables[i]);
}

#endif
