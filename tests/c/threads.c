/* threads.c: real threads on one table: `threads TEST ROUNDS [THREADS]`, TEST being one of
 *
 *   hot      at a barrier, all ask for one key until they are denied: exactly `limit` get in, in every round, whatever else goes
 *            on (newcomers, splits, resets, evict(), peeks)
 *   sliding  a clock that all share moves on; the stamps given out are gathered: never more than `limit` in a window, and every
 *            denial had its reason. Costs vary, so that long logs move between chunks of all sizes
 *   clear    everything at once and clear() too: the table stays sound
 *   full     a table that is full and displaces: every newcomer gets in, the table stays sound
 *   claims   several keys of several tables at once, all or nothing, and some given back: at the end each log holds exactly what was
 *            counted and not given back
 *   heirs    a table's keys move to its successor's table, and on to the next, while all go on: exactly `limit` get in all the same,
 *            and nobody finds a key empty that was counted
 *   meters   the same for the algorithms that keep no log: exactly `limit` at one instant, and with a clock that moves on never more than
 *            each algorithm's law. What is refunded at once was never there
 *   top      the keys that are denied most, of few and of many more than there are entries, over panes that begin anew: no count is too
 *            low by what was not missed, none too high by more than its error, and no entry is read with another one's text
 *   fork     children forked in the middle of all that find a sound table and can use it (not on Windows)
 *
 * After each, nl_verify. What is wrong is told on stderr, and the process aborts.
 */
#include <inttypes.h>

#include "batch.h"
#include "claim.h"
#include "clock.h"
#include "crew.h"
#include "refund.h"
#include "successor.h"
#include "verify.h"
#include "walk.h"

#if !defined(_WIN32)
#include <sys/wait.h>
#include <unistd.h>
#endif

static uint64_t mix(uint64_t x) {
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static uint64_t next_random(uint64_t *state) { return mix(*state += 0x9e3779b97f4a7c15u); }

static nl_fingerprint key_of(uint64_t k) {
    nl_fingerprint fp = {mix(k + 1), mix(~k)};
    return fp;
}

static void open_table(nl_table *t, uint32_t limit, uint64_t window_ns, uint32_t max_keys, uint32_t on_full) {
    nl_config config = {limit, window_ns, max_keys, on_full, {1, 2}, 0, 0, 0, 0};
    CREW_REQUIRE(nl_table_open(t, &config), "no table");
}

static void verify(nl_table *t) {
    char message[200];
    uint32_t orphans;
    const char *broken = nl_verify(t, &orphans, message, sizeof message);
    CREW_REQUIRE(!broken, "%s", broken);
}

/* As the seam calls: quick, and when somebody is at it, waiting. A key that the quick call displaced stays displaced. */
static nl_outcome check(nl_table *t, nl_fingerprint fp, uint64_t now_ns, uint32_t cost, nl_view *view) {
    nl_outcome outcome = nl_check_any(t, fp, now_ns, cost, false, view);
    if (!(outcome & NL_WOULD_WAIT)) return outcome;
    return (nl_outcome)(nl_check_any(t, fp, now_ns, cost, true, view) | (outcome & NL_DISPLACED));
}

/* --- hot ---------------------------------------------------------------------------------------------------------- */

typedef struct {
    nl_table table;
    crew_barrier barrier;
    uint32_t threads, rounds, limit;
    uint64_t admitted[CREW_MOST][16]; /* a line each */
} hot;

enum { WINDOW_NS = 1000000000, HOT_KEYS = 1 << 20 };

/* What goes on beside the race: it must not touch the hot key's count. Its keys are stamped two windows ago: idle. */
static void disturb(nl_table *t, uint64_t *state, uint64_t now_ns, nl_fingerprint hot_key, uint32_t limit) {
    uint64_t random = next_random(state), k = HOT_KEYS + random % 4096;
    nl_view view;
    switch (random >> 32 & 7) {
    case 0: case 1: case 2: case 3: nl_check_any(t, key_of(k), now_ns - 2 * WINDOW_NS, 1 + random % limit, true, NULL); break;
    case 4: nl_reset(t, key_of(k), now_ns, true); break;
    case 5:
        nl_peek(t, key_of(k), now_ns, 1, true, &view);
        nl_peek(t, hot_key, now_ns, 1, true, &view);
        CREW_REQUIRE(view.used <= limit, "%u of %u", view.used, limit);
        CREW_REQUIRE(!view.used || (view.newest_tick == now_ns && view.oldest_tick == now_ns), "%" PRIu64, view.newest_tick);
        break;
    case 6:
        if (random >> 40 & 15) nl_check_any(t, key_of(k), now_ns - 2 * WINDOW_NS, 1, true, NULL);
        else nl_walk_evict(t, now_ns, false, &(bool){false});
        break;
    case 7:
        CREW_REQUIRE(nl_walk_count(t, now_ns) <= 1, "only the hot key is live");
        nl_table_bytes(t);
        break;
    }
}

static void hot_work(void *shared, uint32_t self) {
    hot *h = shared;
    uint64_t state = self;
    for (uint32_t round = 0; round < h->rounds; round++) {
        uint64_t now_ns = (uint64_t)10 * WINDOW_NS + (uint64_t)round * 3 * WINDOW_NS, admitted = 0;
        nl_fingerprint fp = key_of(round % 3 ? round : 0); /* a new key, or one that has a log already */
        uint32_t denied = 0, cost = h->limit >= 64 && round % 2 ? 1 + h->limit / 64 : 1;
        crew_meet(&h->barrier);
        while (denied < 3) {
            nl_view view;
            if (check(&h->table, fp, now_ns, cost, round % 2 ? &view : NULL) & NL_ALLOWED) {
                admitted += cost;
            } else {
                if (round % 2) CREW_REQUIRE(view.used + cost > h->limit && view.deciding_tick == now_ns, "%u of %u", view.used, h->limit);
                if (cost > 1) cost = 1; /* now unit by unit */
                else denied++;
            }
            if (admitted % 4 == 0) disturb(&h->table, &state, now_ns, fp, h->limit);
        }
        nl_store64(&h->admitted[self][0], admitted);
        crew_meet(&h->barrier);
        if (self == 0) {
            uint64_t all = 0;
            for (uint32_t i = 0; i < h->threads; i++) all += nl_load64(&h->admitted[i][0]);
            CREW_REQUIRE(all == h->limit, "round %u: %" PRIu64 " of %u were admitted", round, all, h->limit);
        }
    }
}

static void run_hot(uint32_t rounds, uint32_t threads) {
    static const uint32_t limits[] = {1, 5, 6, 7, 100, 2047, 5000};
    for (uint32_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        static hot h;
        memset(&h, 0, sizeof h);
        h.threads = h.barrier.size = threads;
        h.limit = limits[i];
        h.rounds = rounds / (1 + limits[i] / 16) + 1;
        open_table(&h.table, h.limit, WINDOW_NS, 1 << 16, NL_ON_FULL_DENY);
        crew_run(threads, hot_work, &h, NULL);
        verify(&h.table);
        nl_table_close(&h.table);
    }
}

/* --- sliding ------------------------------------------------------------------------------------------------------ */

enum { SLIDING_KEYS = 2, SLIDING_WINDOW = 4096 };

typedef struct {
    nl_table table;
    uint32_t limit, rounds;
    uint64_t now;
    struct stamp *stamps[CREW_MOST][SLIDING_KEYS]; /* that were given out */
    uint32_t counts[CREW_MOST][SLIDING_KEYS], rooms[CREW_MOST][SLIDING_KEYS];
} sliding;

typedef struct stamp {
    uint64_t at, until; /* until: what time it was when it had been counted */
} stamp;

static void note_stamps(sliding *s, uint32_t self, uint64_t k, uint64_t at, uint64_t until, uint32_t cost) {
    uint32_t *count = &s->counts[self][k], *room = &s->rooms[self][k];
    if (*count + cost > *room) {
        *room = 2 * (*count + cost);
        CREW_REQUIRE((s->stamps[self][k] = realloc(s->stamps[self][k], *room * sizeof(stamp))), "no memory");
    }
    while (cost--) s->stamps[self][k][(*count)++] = (stamp){at, until};
}

static void sliding_work(void *shared, uint32_t self) {
    sliding *s = shared;
    uint64_t state = self;
    for (uint32_t round = 0; round < s->rounds; round++) {
        uint64_t random = next_random(&state), k = random % SLIDING_KEYS;
        uint64_t step = random >> 8 & 63 ? 0 : random >> 16 & 7 ? random >> 20 & 255 : SLIDING_WINDOW;
        uint64_t now = nl_add64(&s->now, step) + step;
        uint32_t cost = random >> 32 & 3 ? 1 : 1 + (uint32_t)(random >> 34) % s->limit;
        if (s->table.rule.algorithm == NL_RUNS) { /* nearly every request at a tick of its own, so that there are pieces */
            step = random >> 8 & 8191 ? 1 : SLIDING_WINDOW;
            now = nl_add64(&s->now, step) + step;
            if (random >> 32 & 255) cost = 1;
        }
        nl_view view;
        nl_outcome outcome = check(&s->table, key_of(k), now, cost, &view);
        CREW_REQUIRE(!(outcome & ~NL_ALLOWED), "outcome %d", (int)outcome);
        if (outcome & NL_ALLOWED) {
            CREW_REQUIRE(view.used >= cost && view.used <= s->limit && view.newest_tick >= now, "%u units", view.used);
            note_stamps(s, self, k, view.newest_tick, nl_load64(&s->now), cost);
            if (s->table.rule.algorithm == NL_RUNS && (random >> 50) % 8 == 0) { /* and some are given back, out of the middle */
                uint32_t given;
                CREW_REQUIRE(nl_refund(&s->table, key_of(k), now, view.newest_tick, cost, NL_WAITING, &given) == NL_ALLOWED, "a refund waits");
                CREW_REQUIRE(given <= cost, "%u of %u given back", given, cost);
                s->counts[self][k] -= given;
            }
        } else {
            CREW_REQUIRE(view.used + cost > s->limit && view.used <= s->limit, "denied at %u", view.used);
            CREW_REQUIRE(view.deciding_tick + SLIDING_WINDOW > now, "denied by a stamp that is out");
        }
        CREW_REQUIRE(view.oldest_tick <= view.newest_tick && view.newest_tick - view.oldest_tick <= SLIDING_WINDOW, "a torn view");
    }
}

static int compare_stamps(const void *a, const void *b) {
    const stamp *x = a, *y = b;
    return (x->at > y->at) - (x->at < y->at);
}

/* Whether one of these was still being counted when a window from the first one on was over. A refund takes a key's time back to the
 * stamp before (docs/design.md, "Refunds and time"): whoever read the clock before that, and counts after it, is not moved up. */
static bool was_late(const stamp *first, uint32_t n) {
    for (uint32_t i = 0; i < n; i++)
        if (first[i].until >= first->at + SLIDING_WINDOW) return true;
    return false;
}

static void run_sliding(uint32_t rounds, uint32_t threads) {
    static const uint32_t limits[] = {1, 6, 7, 9, 33, 300, 2047, 2500};
    for (uint32_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        static sliding s;
        memset(&s, 0, sizeof s);
        s.limit = limits[i];
        s.rounds = rounds * 100;
        s.now = ((uint64_t)1 << 32) - 2 * SLIDING_WINDOW; /* the low 32 bits come round */
        open_table(&s.table, s.limit, SLIDING_WINDOW, 100, NL_ON_FULL_DENY);
        crew_run(threads, sliding_work, &s, NULL);
        verify(&s.table);
        for (uint32_t k = 0; k < SLIDING_KEYS; k++) {
            uint64_t n = 0, late = 0;
            stamp *all;
            for (uint32_t j = 0; j < threads; j++) n += s.counts[j][k];
            CREW_REQUIRE((all = malloc((n + 1) * sizeof *all)), "no memory");
            n = 0;
            for (uint32_t j = 0; j < threads; j++) {
                if (s.counts[j][k]) memcpy(all + n, s.stamps[j][k], s.counts[j][k] * sizeof *all);
                n += s.counts[j][k];
                free(s.stamps[j][k]);
            }
            qsort(all, n, sizeof *all, compare_stamps);
            for (uint64_t at = s.limit; at < n; at++) {
                const stamp *first = all + at - s.limit;
                if (all[at].at - first->at >= SLIDING_WINDOW) continue;
                late++;
                CREW_REQUIRE(s.table.rule.algorithm == NL_RUNS && was_late(first, s.limit + 1),
                             "%u and one more within a window, at %" PRIu64, s.limit, all[at].at);
            }
            CREW_REQUIRE(late <= n / 16, "%" PRIu64 " of %" PRIu64 " were late", late, n);
            free(all);
            uint64_t now = s.now + 2 * SLIDING_WINDOW; /* and then exactly as many as there may be */
            for (uint32_t unit = 0; unit < s.limit; unit++)
                CREW_REQUIRE(nl_check_any(&s.table, key_of(k), now, 1, true, NULL) == NL_ALLOWED, "unit %u of %u", unit, s.limit);
            CREW_REQUIRE(nl_check_any(&s.table, key_of(k), now, 1, true, NULL) == NL_DENIED, "one too many of %u", s.limit);
        }
        nl_table_close(&s.table);
    }
}

/* --- clear, full, fork -------------------------------------------------------------------------------------------- */

typedef struct {
    nl_table table;
    uint32_t rounds, limit, keys, stop;
    bool clears;
    uint64_t now;
    uint64_t admitted[CREW_MOST][16], lost[CREW_MOST][16];
} storm;

static void storm_work(void *shared, uint32_t self) {
    storm *s = shared;
    uint64_t state = self, admitted = 0;
    for (uint32_t round = 0; round < s->rounds && !nl_load32(&s->stop); round++) {
        uint64_t random = next_random(&state), now = nl_load64(&s->now);
        nl_fingerprint fp = key_of(random >> 20 & 1 ? random % 8 : random % s->keys);
        uint32_t cost = random >> 21 & 7 ? 1 : 1 + (uint32_t)(random >> 24) % s->limit;
        nl_view view;
        switch (random >> 56) {
        case 0: nl_add64(&s->now, random >> 40 & 7 ? 1000 : WINDOW_NS); break;
        case 1: if (s->clears) nl_walk_evict(&s->table, now, random >> 40 & 1, &(bool){false}); break;
        case 2: nl_walk_count(&s->table, now), nl_table_bytes(&s->table), nl_table_keys(&s->table); break;
        case 3: case 4: case 5: case 6: case 7: nl_reset(&s->table, fp, now, true); break;
        case 8: case 9: case 10: case 11:
            nl_peek(&s->table, fp, now, cost, true, &view);
            CREW_REQUIRE(view.used <= s->limit, "%u of %u", view.used, s->limit);
            break;
        default: admitted += check(&s->table, fp, now, cost, NULL) & NL_ALLOWED;
        }
    }
    s->admitted[self][0] = admitted;
}

static void open_storm(storm *s, uint32_t limit, uint32_t keys, uint32_t max_keys, uint32_t rounds, bool clears) {
    memset(s, 0, sizeof *s);
    s->limit = limit;
    s->keys = keys;
    s->rounds = rounds;
    s->clears = clears;
    s->now = (uint64_t)100 * WINDOW_NS;
    open_table(&s->table, limit, WINDOW_NS, max_keys, NL_ON_FULL_EVICT);
}

static void close_storm(storm *s) {
    verify(&s->table);
    nl_walk_evict(&s->table, s->now, true, &(bool){false});
    CREW_REQUIRE(nl_table_keys(&s->table) == 0, "%u slots are left", nl_table_keys(&s->table));
    verify(&s->table);
    nl_table_close(&s->table);
}

static void run_clear(uint32_t rounds, uint32_t threads) {
    static const uint32_t limits[] = {5, 40, 2047, 6000};
    for (int i = 0; i < 4; i++) {
        static storm s;
        open_storm(&s, limits[i], 6000, 8000, rounds * 50, true);
        crew_run(threads, storm_work, &s, NULL);
        uint64_t admitted = 0;
        for (uint32_t j = 0; j < threads; j++) admitted += s.admitted[j][0];
        CREW_REQUIRE(admitted, "nothing was admitted");
        close_storm(&s);
    }
}

/* Each thread brings keys of its own, that nobody saw before. */
static void full_work(void *shared, uint32_t self) {
    storm *s = shared;
    for (uint32_t round = 0; round < s->rounds; round++) {
        nl_outcome outcome = check(&s->table, key_of((uint64_t)self << 32 | round), nl_add64(&s->now, 1), 1, NULL);
        s->lost[self][0] += outcome != NL_ALLOWED && outcome != (NL_ALLOWED | NL_DISPLACED);
    }
}

static void run_full(uint32_t rounds, uint32_t threads) {
    static const uint32_t sizes[] = {50, 1500};
    for (int i = 0; i < 2; i++) {
        static storm s;
        open_storm(&s, 7, 1, sizes[i], rounds * 20, false);
        crew_run(threads, full_work, &s, NULL);
        uint64_t displaced = nl_table_count(&s.table, NL_COUNT_EVICTED), lost = 0, inserted = (uint64_t)threads * s.rounds;
        for (uint32_t j = 0; j < threads; j++) lost += s.lost[j][0];
        CREW_REQUIRE(!lost, "%" PRIu64 " newcomers were not let in", lost);
        CREW_REQUIRE(nl_walk_count(&s.table, s.now) == inserted - displaced, "%" PRIu64 " came, %" PRIu64 " went", inserted, displaced);
        CREW_REQUIRE(nl_table_keys(&s.table) <= sizes[i], "%u keys in a table of %u", nl_table_keys(&s.table), sizes[i]);
        close_storm(&s);
    }
}

static void open_meters(nl_table *t, uint32_t limit, uint64_t window_ns, uint32_t algorithm) {
    nl_config config = {limit, window_ns, 1000, NL_ON_FULL_DENY, {1, 2}, 0, algorithm, 0, 0};
    CREW_REQUIRE(nl_table_open(t, &config), "no table");
}

/* --- claims -------------------------------------------------------------------------------------------------------- */

enum { CLAIM_TABLES = 3, CLAIM_KEYS = 4, CLAIM_PLACES = CLAIM_TABLES * CLAIM_KEYS };

typedef struct {
    nl_table tables[CLAIM_TABLES];
    uint32_t rounds;
    uint64_t now;
    uint64_t counted[CREW_MOST][CLAIM_PLACES + 4], denied[CREW_MOST][16];
} crowd;

static const uint32_t crowd_limits[CLAIM_TABLES] = {3000, 60, 400};

/* Every key of every table is wanted by all, in another order by each, while others are inserted, split, and go idle again. */
static void claims_work(void *shared, uint32_t self) {
    crowd *c = shared;
    uint64_t state = self + 77;
    for (uint32_t round = 0; round < c->rounds; round++) {
        nl_claim claims[CLAIM_PLACES];
        uint32_t places[CLAIM_PLACES], n = 0, taken = 0;
        uint64_t random = next_random(&state);
        for (uint32_t wanted = 2 + random % (CLAIM_PLACES - 1); n < wanted;) { /* many: they are owned for long enough to meet */
            uint32_t place = (uint32_t)(next_random(&state) % CLAIM_PLACES), table = place % CLAIM_TABLES;
            if (taken >> place & 1) continue;
            taken |= 1u << place;
            places[n] = place;
            nl_claim claim = {.table = &c->tables[table], .fp = key_of(place / CLAIM_TABLES), .limit = crowd_limits[table], .cost = 1 + (uint32_t)(random >> 8) % 3};
            claim.now = nl_rule_now(&claim.table->rule, c->now);
            claims[n++] = claim;
        }
        bool views = random >> 16 & 1;
        nl_outcome outcome = random >> 17 & 1 ? nl_claims_check(claims, n, views, NL_QUICKLY) : NL_WOULD_WAIT;
        if (outcome & NL_WOULD_WAIT) outcome = nl_claims_check(claims, n, views, NL_WAITING);
        CREW_REQUIRE(!(outcome & ~NL_ALLOWED), "outcome %d", (int)outcome);
        bool excused = false;
        for (uint32_t i = 0; i < n; i++) {
            excused |= claims[i].outcome == NL_DENIED;
            if (outcome & NL_ALLOWED) c->counted[self][places[i]] += claims[i].cost;
            if (views) CREW_REQUIRE(claims[i].view.used <= claims[i].limit, "%u of %u", claims[i].view.used, claims[i].limit);
        }
        c->denied[self][0] += !(outcome & NL_ALLOWED);
        if (!(outcome & NL_ALLOWED)) CREW_REQUIRE(excused, "denied by nobody");
        for (uint32_t i = 0; i < n && random >> 24 & 7 && outcome & NL_ALLOWED; i++) { /* most of it: so that there is always room for more */
            uint32_t given;
            uint64_t tick = nl_now_rounded_up(claims[i].now, claims[i].table->rule.tick_ns);
            nl_outcome refund = nl_refund(claims[i].table, claims[i].fp, c->now, random >> 25 & 1 ? tick : NL_NEWEST, claims[i].cost, NL_WAITING, &given);
            CREW_REQUIRE(refund == NL_ALLOWED && given == claims[i].cost, "%u of %u given back", given, claims[i].cost);
            c->counted[self][places[i]] -= given;
        }
        nl_table *other = &c->tables[random >> 40 & 1];
        uint64_t k = HOT_KEYS + (random >> 44) % 3000;
        if (random >> 60 & 1) nl_check_any(other, key_of(k), c->now - (uint64_t)5000 * WINDOW_NS, 1, NL_WAITING, NULL); /* idle at once */
        else if ((random >> 60) == 14) nl_walk_evict(other, c->now, false, &(bool){false});
    }
}

static void run_claims_with(uint32_t algorithm, uint32_t rounds, uint32_t threads) {
    static crowd c;
    memset(&c, 0, sizeof c);
    c.rounds = rounds * 2;
    c.now = (uint64_t)10000 * WINDOW_NS;
    for (uint32_t i = 0; i < CLAIM_TABLES; i++) {
        if (algorithm && i == 1) open_meters(&c.tables[i], crowd_limits[i], (uint64_t)WINDOW_NS << 4 * i, algorithm);
        else open_table(&c.tables[i], crowd_limits[i], (uint64_t)WINDOW_NS << 4 * i, 1 << 14, NL_ON_FULL_DENY);
        c.tables[i].number = i;
    }
    crew_run(threads, claims_work, &c, NULL);
    uint64_t denied = 0, full = 0;
    for (uint32_t j = 0; j < threads; j++) denied += c.denied[j][0];
    for (uint32_t place = 0; place < CLAIM_PLACES; place++) {
        uint32_t table = place % CLAIM_TABLES;
        uint64_t counted = 0;
        nl_view view;
        for (uint32_t j = 0; j < threads; j++) counted += c.counted[j][place];
        nl_peek(&c.tables[table], key_of(place / CLAIM_TABLES), c.now, 1, NL_WAITING, &view);
        CREW_REQUIRE(view.used == counted, "key %u: its log holds %u units, %" PRIu64 " were counted", place, view.used, counted);
        full += view.used + 3 > crowd_limits[table];
    }
    CREW_REQUIRE(denied && full, "nothing was denied");
    for (uint32_t i = 0; i < CLAIM_TABLES; i++) {
        verify(&c.tables[i]);
        nl_table_close(&c.tables[i]);
    }
}

/* Who has to wait for the first slot in the order owns none behind it: else two of them could wait for each other. The slot is held
 * here, and the other one is seen to stay free; the claims are given the wrong way round. */
typedef struct {
    nl_table tables[2];
    nl_slot *slots[2];
    nl_outcome outcome;
} queue;

static void order_work(void *shared, uint32_t self) {
    queue *q = shared;
    nl_claim claims[2];
    (void)self;
    for (int i = 0; i < 2; i++) {
        nl_claim claim = {.table = &q->tables[1 - i], .fp = key_of(7), .limit = 5, .cost = 1};
        claim.now = nl_rule_now(&claim.table->rule, (uint64_t)100 * WINDOW_NS);
        claims[i] = claim;
    }
    q->outcome = nl_claims_check(claims, 2, false, NL_WAITING);
}

static void order_watch(void *shared) {
    queue *q = shared;
    uint64_t meta, published;
    const uint64_t until_ns = nl_clock_ns(NL_CLOCK_PRIVATE) + 100000000;
    CREW_REQUIRE(nl_slot_try(&q->tables[0].us, q->slots[0], &published), "the slot is not free");
    crew_thread thread;
    crew_member member = {order_work, shared, 0};
    CREW_REQUIRE(crew_start(&thread, &member), "no thread");
    while (nl_clock_ns(NL_CLOCK_PRIVATE) < until_ns) {
        CREW_REQUIRE(nl_slot_try(&q->tables[1].us, q->slots[1], &meta), "it owns the second while it waits for the first");
        nl_slot_commit(q->slots[1], meta);
        nl_yield();
    }
    nl_slot_commit(q->slots[0], published);
    crew_join(thread);
    CREW_REQUIRE(q->outcome == NL_ALLOWED, "outcome %d", (int)q->outcome);
}

static void check_order(void) {
    static queue q;
    for (uint32_t i = 0; i < 2; i++) {
        open_table(&q.tables[i], 5, WINDOW_NS, 100, NL_ON_FULL_DENY);
        q.tables[i].number = i;
        nl_check(&q.tables[i], key_of(7), (uint64_t)100 * WINDOW_NS, 1, NL_WAITING, NULL);
        CREW_REQUIRE((q.slots[i] = nl_find(&q.tables[i], key_of(7))), "no slot");
    }
    order_watch(&q);
    for (int i = 0; i < 2; i++) nl_table_close(&q.tables[i]);
}

/* Between being placed and being owned a slot may be freed by one thread and given to another of the same claims: found there twice, it
 * is nobody's, instead of being waited for by who has it. */
static void check_one_slot_twice(void) {
    static nl_table table;
    open_table(&table, 5, WINDOW_NS, 100, NL_ON_FULL_DENY);
    nl_check(&table, key_of(7), (uint64_t)100 * WINDOW_NS, 1, NL_WAITING, NULL);
    nl_slot *slot = nl_find(&table, key_of(7));
    nl_claim now = {.table = &table, .fp = key_of(7), .slot = slot}, stale = {.table = &table, .fp = key_of(8), .slot = slot};
    nl_claim *orders[2][2] = {{&now, &stale}, {&stale, &now}};
    for (int i = 0; i < 2; i++) {
        nl_outcome outcome = nl_claims_own(orders[i], 2, NL_QUICKLY);
        CREW_REQUIRE(outcome == NL_GONE, "outcome %d", (int)outcome);
        CREW_REQUIRE(!nl_meta_owner(nl_load64(&slot->meta)), "it is owned still");
    }
    nl_table_close(&table);
}

/* Claims for more keys than the table has places: they are given each other's, if nobody sees to it, and come to no end. */
enum { SCARCE_KEYS = 8, SCARCE_PLACES = 4, SCARCE_LIMIT = 1 << 20 };

typedef struct {
    nl_table table;
    uint32_t rounds;
    uint64_t now;
} scarcity;

static void scarce_work(void *shared, uint32_t self) {
    scarcity *s = shared;
    uint64_t state = self + 7;
    for (uint32_t round = 0; round < s->rounds; round++) {
        nl_claim claims[SCARCE_KEYS];
        uint64_t random = next_random(&state);
        uint32_t n = 0;
        for (uint32_t k = 0; k < SCARCE_KEYS; k++) {
            if (!(random >> k & 1)) continue;
            nl_claim claim = {.table = &s->table, .fp = key_of(k), .limit = SCARCE_LIMIT, .cost = 1};
            claim.now = nl_rule_now(&s->table.rule, s->now);
            claims[n++] = claim;
        }
        if (!n) continue;
        nl_outcome outcome = nl_claims_check(claims, n, false, NL_QUICKLY);
        if (outcome & NL_WOULD_WAIT) outcome = nl_claims_check(claims, n, false, NL_WAITING);
        CREW_REQUIRE(!(outcome & (NL_WOULD_WAIT | NL_MOVED)), "outcome %d", (int)outcome);
        if (random >> 40 & 1) nl_reset(&s->table, key_of(random >> 41 & (SCARCE_KEYS - 1)), s->now, NL_WAITING);
    }
}

static void run_scarce(uint32_t on_full, uint32_t rounds, uint32_t threads) {
    static scarcity s;
    memset(&s, 0, sizeof s);
    s.rounds = rounds;
    s.now = (uint64_t)100 * WINDOW_NS;
    open_table(&s.table, SCARCE_LIMIT, WINDOW_NS, SCARCE_PLACES, on_full);
    crew_run(threads, scarce_work, &s, NULL);
    verify(&s.table);
    CREW_REQUIRE(nl_table_keys(&s.table) <= SCARCE_PLACES, "%u keys", nl_table_keys(&s.table));
    nl_table_close(&s.table);
}

/* Logs alone, and with one table that counts by a meter among them. */
static void run_claims(uint32_t rounds, uint32_t threads) {
    check_order();
    check_one_slot_twice();
    for (uint32_t on_full = 0; on_full < 3; on_full++) run_scarce(on_full, rounds / 40, threads);
    static const uint32_t algorithms[] = {NL_SLIDING_LOG, NL_GCRA, NL_FIXED_WINDOW, NL_SLIDING_COUNTER};
    for (int i = 0; i < 4; i++) run_claims_with(algorithms[i], rounds / 4, threads);
}

/* --- successors ---------------------------------------------------------------------------------------------------- */

enum { HEIRS = 12, HEIR_KEYS = 40 };

typedef struct {
    nl_table tables[HEIRS];
    uint32_t current, rounds, limit, layout_limit, algorithm;
    uint64_t now;
    uint64_t counted[CREW_MOST][HEIR_KEYS], others[CREW_MOST][16], moved[CREW_MOST][16];
} dynasty;

/* Whatever table a thread has last heard of is asked; who is told that it has moved asks the successor. */
static void heirs_work(void *shared, uint32_t self) {
    dynasty *d = shared;
    uint64_t state = self + 5;
    nl_table *t = &d->tables[0];
    for (uint32_t round = 0; round < d->rounds || nl_load32(&d->current) + 1 < HEIRS; round++) {
        uint64_t random = next_random(&state);
        uint32_t key = (uint32_t)(random % HEIR_KEYS);
        bool other = (random >> 8 & 7) == 0; /* many keys: so that segments split while they move */
        nl_fingerprint fp = key_of(other ? HEIR_KEYS + (random >> 16) % 4000 : key);
        if (!(random >> 12 & 3)) t = &d->tables[nl_load32_acquire(&d->current)];
        nl_view view;
        nl_outcome outcome = nl_check_any(t, fp, d->now, 1, random >> 14 & 1 ? NL_QUICKLY : NL_WAITING, random >> 15 & 1 ? &view : NULL);
        while (outcome & (NL_MOVED | NL_WOULD_WAIT)) {
            if (outcome & NL_MOVED) CREW_REQUIRE((t = nl_table_after(t)), "moved, but where to?");
            d->moved[self][0] += (outcome & NL_MOVED) != 0;
            outcome = nl_check_any(t, fp, d->now, 1, NL_WAITING, NULL);
        }
        CREW_REQUIRE(!(outcome & ~NL_ALLOWED), "outcome %d", (int)outcome);
        if (other) d->others[self][0] += outcome & NL_ALLOWED;
        else d->counted[self][key] += outcome & NL_ALLOWED;
        if ((random >> 40 & 31) == 0 && !other) { /* a peek never finds a key empty that has once been counted */
            nl_table *at = t;
            while ((outcome = nl_peek(at, fp, d->now, 1, NL_WAITING, &view)) & NL_MOVED) at = nl_table_after(at);
            CREW_REQUIRE(view.used > 0 && view.used <= d->limit, "%u of %u", view.used, d->limit);
        }
    }
}

static void open_heir(dynasty *d, uint32_t i) {
    static const uint64_t windows[] = {WINDOW_NS, (uint64_t)WINDOW_NS * 60, (uint64_t)WINDOW_NS * 3};
    nl_config config = {i ? d->layout_limit : d->limit, windows[i % 3], 1 << 14, NL_ON_FULL_DENY, {1, 2}, 0, d->algorithm, 0, 0};
    CREW_REQUIRE(nl_table_open(&d->tables[i], &config), "no table");
    d->tables[i].head->limit = d->limit;
}

static void heirs_come(void *shared) {
    dynasty *d = shared;
    for (uint32_t i = 1; i < HEIRS; i++) {
        open_heir(d, i);
        nl_succeed(&d->tables[i - 1], &d->tables[i], d->now);
        nl_store32_release(&d->current, i);
        nl_move_all(&d->tables[i - 1], &d->tables[i]);
        for (uint32_t number = 0; number < d->tables[i - 1].head->segments; number++)
            CREW_REQUIRE(!d->tables[i - 1].segments[number].used, "%u keys are left", d->tables[i - 1].segments[number].used);
        nl_table_drop(&d->tables[i - 1]);
    }
}

static void run_heirs_with(uint32_t limit, uint32_t layout_limit, uint32_t algorithm, uint32_t rounds, uint32_t threads) {
    static dynasty d;
    memset(&d, 0, sizeof d);
    d.rounds = rounds;
    d.limit = limit;
    d.layout_limit = layout_limit;
    d.algorithm = algorithm;
    d.now = (uint64_t)10000 * WINDOW_NS;
    open_heir(&d, 0);
    crew_run(threads, heirs_work, &d, heirs_come);
    uint64_t moved = 0, others = 0, lived = 0;
    for (uint32_t key = 0; key < HEIR_KEYS; key++) {
        uint64_t counted = 0;
        nl_view view;
        for (uint32_t j = 0; j < threads; j++) counted += d.counted[j][key];
        nl_peek(&d.tables[HEIRS - 1], key_of(key), d.now, 1, NL_WAITING, &view);
        CREW_REQUIRE(view.used == counted, "key %u: its log holds %u units, %" PRIu64 " were counted", key, view.used, counted);
        while (nl_check_any(&d.tables[HEIRS - 1], key_of(key), d.now, 1, NL_WAITING, NULL) == NL_ALLOWED) counted++; /* what was left */
        CREW_REQUIRE(counted == limit, "key %u: %" PRIu64 " of %u were allowed", key, counted, limit);
    }
    for (uint32_t key = HEIR_KEYS; key < HEIR_KEYS + 4000; key++) {
        nl_view view;
        nl_peek(&d.tables[HEIRS - 1], key_of(key), d.now, 1, NL_WAITING, &view);
        lived += view.used;
    }
    for (uint32_t j = 0; j < threads; j++) moved += d.moved[j][0], others += d.others[j][0];
    CREW_REQUIRE(lived == others, "the others hold %" PRIu64 " units, %" PRIu64 " were counted", lived, others);
    CREW_REQUIRE(moved, "nobody came too late");
    verify(&d.tables[HEIRS - 1]);
    for (uint32_t i = 0; i < HEIRS; i++) nl_table_close(&d.tables[i]);
}

static void run_heirs(uint32_t rounds, uint32_t threads) {
    run_heirs_with(5, 511, NL_SLIDING_LOG, rounds, threads);
    run_heirs_with(300, 511, NL_SLIDING_LOG, rounds, threads);
    run_heirs_with(300, 5000, NL_SLIDING_LOG, rounds, threads); /* from stamps to runs, and on */
    run_heirs_with(5, 511, NL_FIXED_WINDOW, rounds, threads);
}

/* --- meters ------------------------------------------------------------------------------------------------------- */

static nl_outcome check_any(nl_table *t, nl_fingerprint fp, uint64_t now_ns, uint32_t cost, nl_view *view) {
    nl_outcome outcome = nl_check_any(t, fp, now_ns, cost, NL_QUICKLY, view);
    return outcome & NL_WOULD_WAIT ? nl_check_any(t, fp, now_ns, cost, NL_WAITING, view) : outcome;
}

static void meters_hot_work(void *shared, uint32_t self) {
    hot *h = shared;
    for (uint32_t round = 0; round < h->rounds; round++) {
        /* off the grid of a window of 10 s, every other round */
        uint64_t now_ns = ((uint64_t)10 + 30 * (uint64_t)round) * WINDOW_NS + round % 2 * 7, admitted = 0;
        nl_fingerprint fp = key_of(round % 3 ? round % 500 : 0);
        uint32_t denied = 0, cost = h->limit >= 64 ? 1 + h->limit / 256 : 1;
        crew_meet(&h->barrier);
        while (denied < 3) {
            nl_view view;
            if (check_any(&h->table, fp, now_ns, cost, round % 4 ? &view : NULL) & NL_ALLOWED) {
                admitted += cost;
                if (round % 4) CREW_REQUIRE(view.used <= h->limit && view.used >= cost, "%u of %u", view.used, h->limit);
            } else {
                if (round % 4) CREW_REQUIRE(view.used + cost > h->limit && view.used <= h->limit, "denied at %u of %u", view.used, h->limit);
                if (cost > 1) cost = 1;
                else denied++;
            }
            if (admitted % 8 == 0) nl_reset(&h->table, key_of(HOT_KEYS + self), now_ns, NL_WAITING);
            if (admitted % 8 == 4) check_any(&h->table, key_of(HOT_KEYS + self), now_ns, 1, NULL);
        }
        nl_store64(&h->admitted[self][0], admitted);
        crew_meet(&h->barrier);
        if (self == 0) {
            uint64_t all = 0;
            for (uint32_t i = 0; i < h->threads; i++) all += nl_load64(&h->admitted[i][0]);
            CREW_REQUIRE(all == h->limit, "algorithm %u, round %u: %" PRIu64 " of %u were admitted", h->table.rule.algorithm, round, all, h->limit);
        }
    }
}

typedef struct {
    nl_table table;
    uint32_t limit, rounds;
    uint64_t now, admitted[SLIDING_KEYS];
} flow;

static void meters_flow_work(void *shared, uint32_t self) {
    flow *f = shared;
    uint64_t state = self + 100;
    for (uint32_t round = 0; round < f->rounds; round++) {
        uint64_t random = next_random(&state), k = random % SLIDING_KEYS;
        uint64_t step = random >> 8 & 15 ? 0 : random >> 16 & 63 ? random >> 20 & 255 : 2 * SLIDING_WINDOW;
        uint64_t now = nl_add64(&f->now, step) + step;
        uint32_t cost = random >> 32 & 3 ? 1 : 1 + (uint32_t)(random >> 34) % f->limit;
        nl_view view;
        nl_outcome outcome = random >> 60 ? check_any(&f->table, key_of(k), now, cost, &view) : nl_peek(&f->table, key_of(k), now, cost, NL_WAITING, &view);
        CREW_REQUIRE(!(outcome & ~NL_ALLOWED), "outcome %d", (int)outcome);
        if (outcome & NL_ALLOWED) {
            if (random >> 60) nl_add64(&f->admitted[k], cost);
        } else {
            CREW_REQUIRE(view.used + cost > f->limit, "denied at %u", view.used);
            CREW_REQUIRE((int64_t)(view.deciding_tick + SLIDING_WINDOW - now) > 0, "denied until an instant that is past");
        }
        if (view.used) CREW_REQUIRE((int64_t)(view.newest_tick - view.oldest_tick) >= 0, "a torn view");
    }
}

static void meters_refund(nl_table *t, nl_fingerprint fp, uint64_t tick, uint64_t now_ns, uint32_t cost) {
    nl_now now = nl_rule_now(&t->rule, now_ns);
    nl_slot *slot = nl_find(t, fp);
    nl_meter m;
    uint64_t meta;
    CREW_REQUIRE(slot && nl_slot_take(&t->us, slot, &meta, NL_WAITING), "no slot");
    CREW_REQUIRE(nl_meter_read(&t->rule, slot, meta, now, t->head->limit, &m), "no state");
    nl_slab_forget(&t->slab);
    nl_slot_commit(slot, nl_meter_refund(&t->rule, slot, meta, &m, tick, t->head->limit, cost));
}

/* By one thread: what is refunded at once was never counted; what is refunded later never gives back more than there is. */
static void meters_refunds(uint32_t algorithm, uint32_t limit, uint32_t rounds) {
    static nl_table t;
    uint64_t now = 1000000, state = limit + algorithm;
    open_meters(&t, limit, SLIDING_WINDOW, algorithm);
    for (uint32_t round = 0; round < rounds; round++) {
        uint64_t random = next_random(&state);
        uint32_t cost = 1 + (uint32_t)(random >> 32) % limit, k = random & 1;
        nl_view before, counted, after, later;
        now += random >> 8 & 3 ? random >> 16 & 255 : random >> 16 & 8191;
        nl_peek(&t, key_of(k), now, 1, NL_WAITING, &before);
        if (!(check_any(&t, key_of(k), now, cost, &counted) & NL_ALLOWED)) continue;
        CREW_REQUIRE(counted.used == before.used + cost, "%u and %u are %u", before.used, cost, counted.used);
        if (random >> 24 & 1) {
            uint64_t wait = random >> 40 & 8191;
            nl_peek(&t, key_of(k), now + wait, 1, NL_WAITING, &before);
            meters_refund(&t, key_of(k), now, now + wait, cost);
            nl_peek(&t, key_of(k), now + wait, 1, NL_WAITING, &later);
            CREW_REQUIRE(later.used <= before.used && before.used - later.used <= cost, "%u of %u came back", before.used - later.used, cost);
            if (wait < 16 && algorithm == NL_FIXED_WINDOW && before.used >= cost)
                CREW_REQUIRE(later.used == before.used - cost, "%u of %u came back", before.used - later.used, cost);
            if (wait >= 2 * SLIDING_WINDOW) CREW_REQUIRE(later.used == before.used, "what counts no more came back");
            now += wait;
        } else {
            meters_refund(&t, key_of(k), now, now, cost);
            nl_peek(&t, key_of(k), now, 1, NL_WAITING, &after);
            CREW_REQUIRE(nl_view_same(&before, &after), "algorithm %u: %u before, %u after", algorithm, before.used, after.used);
        }
        /* Key 2 gets a refund for what key 3 never had: it must not come off better, and without a pause not worse. */
        const uint32_t first = 1 + cost / 2, second = 1 + (uint32_t)(random >> 48) % limit;
        const uint64_t pause = random >> 5 & 1 ? (random >> 28) % (2 * SLIDING_WINDOW) : 0;
        for (uint32_t key = 2; key < 4; key++) nl_reset(&t, key_of(key), now, NL_WAITING);
        check_any(&t, key_of(2), now, first, NULL);
        if (!(check_any(&t, key_of(2), now + pause, second, NULL) & NL_ALLOWED)) continue;
        check_any(&t, key_of(3), now + pause, second, NULL);
        meters_refund(&t, key_of(2), now, now + pause, first);
        nl_peek(&t, key_of(2), now + pause, 1, NL_WAITING, &after);
        nl_peek(&t, key_of(3), now + pause, 1, NL_WAITING, &later);
        CREW_REQUIRE(pause ? after.used >= later.used : after.used == later.used, "algorithm %u: %u and %u counted, %u given back after %" PRIu64 ": %u",
                     algorithm, first, second, first, pause, after.used);
        verify(&t);
    }
    nl_table_close(&t);
}

static void run_meters(uint32_t rounds, uint32_t threads) {
    static const uint32_t limits[] = {1, 5, 6, 100, 4097, 1 << 24};
    for (uint32_t i = 0; i < 3 * sizeof limits / sizeof *limits; i++) {
        const uint32_t algorithm = NL_GCRA + i % 3, limit = limits[i / 3];
        static hot h;
        static flow f;
        memset(&h, 0, sizeof h);
        h.threads = h.barrier.size = threads;
        h.limit = limit;
        h.rounds = rounds / (1 + limit / 64) + 1;
        open_meters(&h.table, h.limit, (uint64_t)10 * WINDOW_NS, algorithm);
        crew_run(threads, meters_hot_work, &h, NULL);
        verify(&h.table);
        nl_table_close(&h.table);
        memset(&f, 0, sizeof f);
        f.limit = limit;
        f.rounds = rounds * 100;
        f.now = ((uint64_t)1 << 32) - 2 * SLIDING_WINDOW;
        uint64_t began = f.now;
        open_meters(&f.table, limit, SLIDING_WINDOW, algorithm);
        crew_run(threads, meters_flow_work, &f, NULL);
        verify(&f.table);
        for (int k = 0; k < SLIDING_KEYS; k++) {
            uint64_t passed = f.now - began, most = limit + (algorithm == NL_GCRA ? passed * limit / SLIDING_WINDOW : passed / SLIDING_WINDOW * limit);
            CREW_REQUIRE(f.admitted[k] && f.admitted[k] <= most, "algorithm %u: %" PRIu64 " of %" PRIu64, algorithm, f.admitted[k], most);
        }
        nl_table_close(&f.table);
        meters_refunds(algorithm, limit, rounds);
    }
}

#if !defined(_WIN32)
/* In a child: the parent's threads are gone, in the middle of what they did. */
static void use_in_child(storm *s) {
    verify(&s->table);
    for (uint64_t k = 0; k < 300; k++) {
        nl_view before;
        nl_peek(&s->table, key_of(k), s->now, 1, true, &before);
        uint32_t fitting = before.limit - before.used;
        if (s->limit > 64 && k > 8) continue;
        for (uint32_t unit = 0; unit < fitting; unit++)
            CREW_REQUIRE(nl_check_any(&s->table, key_of(k), s->now, 1, true, NULL) & NL_ALLOWED, "unit %u of %u", unit, fitting);
        CREW_REQUIRE(!(nl_check_any(&s->table, key_of(k), s->now, 1, true, NULL) & NL_ALLOWED), "one too many after %u", fitting);
    }
    for (uint64_t k = 0; k < s->keys; k++) nl_reset(&s->table, key_of(k), s->now, true); /* every slot and every lock */
    nl_walk_evict(&s->table, s->now, true, &(bool){false});
    verify(&s->table);
    CREW_REQUIRE(nl_table_keys(&s->table) == 0, "%u slots are left", nl_table_keys(&s->table));
}

static uint32_t children;

static void fork_meanwhile(void *shared) {
    storm *s = shared;
    for (uint32_t i = 0; i < children; i++) {
        for (uint32_t spin = mix(i) % 20000; spin; spin--) nl_pause();
        pid_t child = fork();
        CREW_REQUIRE(child >= 0, "no fork");
        if (!child) {
            alarm(60); /* a lock that nobody gives back would hold it for ever */
            use_in_child(s);
            _exit(0);
        }
        int status;
        CREW_REQUIRE(waitpid(child, &status, 0) == child, "no child");
        CREW_REQUIRE(WIFEXITED(status) && !WEXITSTATUS(status), "child %u ended with %d", i, status);
    }
    nl_store32(&s->stop, 1);
}

static void run_fork(uint32_t rounds, uint32_t threads) {
    static const uint32_t limits[] = {5, 40, 6000};
    for (int i = 0; i < 3; i++) {
        static storm s;
        open_storm(&s, limits[i], 3000, 4000, UINT32_MAX, true);
        children = rounds;
        crew_run(threads, storm_work, &s, fork_meanwhile);
        close_storm(&s);
    }
}
#endif

/* --- top ---------------------------------------------------------------------------------------------------------- */

enum { TOP_ENTRIES = 16, TOP_KEYS_MOST = 96, TOP_DENIALS = 96 };

typedef struct {
    nl_top top;
    nl_party us;
    crew_barrier barrier;
    uint32_t rounds, keys;
    uint64_t denied[TOP_KEYS_MOST];
} offenders;

static void look_at_offender(offenders *o, nl_top_pane *pane, uint32_t id) {
    nl_top_entry entry;
    if (!nl_top_read(&o->top, pane, id, &entry)) return;
    nl_fingerprint fp = key_of(entry.text[0]);
    CREW_REQUIRE(fp.lo == entry.fp.lo && fp.hi == entry.fp.hi && entry.text[15] == entry.text[0] && entry.form == entry.text[0],
                 "an entry with another one's text");
    CREW_REQUIRE(entry.error <= (uint32_t)entry.word, "error %u of %u", entry.error, (uint32_t)entry.word);
}

static void top_work(void *shared, uint32_t self) {
    offenders *o = shared;
    uint64_t state = self;
    for (uint32_t round = 0; round < o->rounds; round++) {
        uint64_t now_ns = (uint64_t)round * NL_TOP_PANE_NS;
        nl_top_pane *pane = nl_top_pane_of(&o->top, round + 1);
        crew_meet(&o->barrier);
        for (uint32_t i = 0; i < TOP_DENIALS; i++) {
            uint64_t random = next_random(&state), k = random & 3 ? (random >> 8) % o->keys : (random >> 8) % 3;
            uint64_t text[NL_TOP_TEXT / 8] = {k, [15] = k};
            nl_add64(&o->denied[k], 1);
            /* a clock that goes back counts in the newest pane */
            uint64_t at_ns = now_ns - (random >> 40 & 7 || !round || !i ? 0 : NL_TOP_PANE_NS);
            if (!nl_top_count(&o->top, key_of(k), at_ns)) nl_top_add(&o->top, &o->us, key_of(k), at_ns, (uint32_t)k, text);
            if (i % 8 == 0) look_at_offender(o, pane, (uint32_t)(random >> 32) % TOP_ENTRIES);
        }
        crew_meet(&o->barrier);
        if (self) continue;
        CREW_REQUIRE(nl_lock_take(&o->us, &pane->lock, NL_QUICKLY) == NL_TAKEN, "the pane's lock was never let go");
        const char *broken = nl_top_verify(&o->top, pane);
        nl_unlock(&pane->lock);
        CREW_REQUIRE(!broken, "%s", broken);
        uint64_t sum = 0, seen = nl_load64(&pane->missed), least = UINT64_MAX, missed = seen, without = 0;
        bool has[TOP_KEYS_MOST] = {false};
        CREW_REQUIRE(nl_load64(&pane->epoch) == round + 1, "the pane was not emptied");
        for (uint32_t id = 0; id < nl_load32(&pane->used); id++) {
            nl_top_entry entry;
            CREW_REQUIRE(nl_top_read(&o->top, pane, id, &entry), "an entry that nobody has");
            uint64_t k = entry.text[0], count = (uint32_t)entry.word;
            CREW_REQUIRE(!has[k], "key %" PRIu64 " has two entries", k);
            has[k] = true;
            seen += count;
            if (count < least) least = count;
            CREW_REQUIRE(count + missed >= nl_load64(&o->denied[k]) && count - entry.error <= nl_load64(&o->denied[k]),
                         "key %" PRIu64 ": %" PRIu64 " - %u, was %" PRIu64, k, count, entry.error, nl_load64(&o->denied[k]));
            if (o->keys <= TOP_ENTRIES) CREW_REQUIRE(!entry.error, "an error of %u with room for all", entry.error);
        }
        for (uint32_t k = 0; k < o->keys; k++) {
            uint64_t denied = nl_load64(&o->denied[k]);
            sum += denied;
            if (!has[k] && denied > without) without = denied;
            nl_store64(&o->denied[k], 0);
        }
        CREW_REQUIRE(seen == sum, "%" PRIu64 " denials, %" PRIu64 " counted", sum, seen); /* who takes an entry over takes its count over */
        CREW_REQUIRE(nl_load32(&pane->used) < TOP_ENTRIES || without <= least + missed, "%" PRIu64 " denials without an entry", without);
    }
}

static void run_top(uint32_t rounds, uint32_t threads) {
    static const uint32_t keys[] = {3, TOP_ENTRIES, TOP_ENTRIES + 1, TOP_KEYS_MOST};
    for (uint32_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        static offenders o;
        memset(&o, 0, sizeof o);
        void *memory = calloc(1, nl_top_bytes(TOP_ENTRIES));
        CREW_REQUIRE(memory, "no memory");
        o.top = nl_top_at(memory, TOP_ENTRIES);
        o.us.me = &nl_process.generation;
        o.barrier.size = threads;
        o.rounds = rounds;
        o.keys = keys[i];
        crew_run(threads, top_work, &o, NULL);
        free(memory);
    }
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        void (*run)(uint32_t rounds, uint32_t threads);
    } tests[] = {
        {"hot", run_hot}, {"sliding", run_sliding}, {"clear", run_clear}, {"full", run_full}, {"claims", run_claims},
        {"heirs", run_heirs},
        {"meters", run_meters},
        {"top", run_top},
#if !defined(_WIN32)
        {"fork", run_fork},
#endif
    };
    if (nl_process_init()) return 2;
    uint32_t rounds = argc > 2 ? (uint32_t)atoi(argv[2]) : 100, threads = argc > 3 ? (uint32_t)atoi(argv[3]) : 4;
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        if (argc < 2 || strcmp(argv[1], tests[i].name)) continue;
        tests[i].run(rounds, threads);
        printf("%s: %u rounds by %u threads\n", tests[i].name, rounds, threads);
        return 0;
    }
    fprintf(stderr, "threads hot|sliding|clear|full|claims|heirs|meters|top|fork ROUNDS [THREADS]\n");
    return 2;
}
