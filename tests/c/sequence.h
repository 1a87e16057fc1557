/* sequence.h: bytes become a table, keys that collide on purpose, a restless clock and a sequence of operations; every answer
 * is compared with the model's (model.h), and the table is verified again and again. Any bytes will do: random.c makes them
 * up, fuzz.c takes the fuzzer's. What is wrong is told on stderr, and the process aborts.
 */
#ifndef NL_TEST_SEQUENCE_H
#define NL_TEST_SEQUENCE_H

#include <inttypes.h>

#include "refusal.h"

#include "batch.h"
#include "claim.h"
#include "clock.h"
#include "refund.h"
#include "shared.h"
#include "verify.h"
#include "walk.h"

#include "model.h"

static uint64_t sequence_seed; /* told with a failure; 0: there is none */
static bool sequence_shared;   /* tables in files, which have all their memory from the start */

typedef struct {
    nl_table table;
    model model;
    nl_config config;
    nl_fingerprint *fps;
    const uint8_t *at, *end; /* bytes to come */
    uint64_t now_ns;
    uint32_t limit;          /* in force; the table is made for config.limit */
    uint32_t style;
    uint32_t operations;
    const char *operation;
    uint32_t key;            /* last used */
} sequence;

static void sequence_fail(const sequence *s, const char *what, uint64_t expected, uint64_t found) {
    fprintf(stderr, "seed %" PRIu64 ", operation %u (%s), key %u, now %" PRIu64 " ns: %s: expected %" PRIu64 ", found %" PRIu64 "\n",
            sequence_seed, s->operations, s->operation, s->key, s->now_ns, what, expected, found);
    fprintf(stderr, "limit %u (%u in force), window %" PRIu64 " ns, max_keys %u, on_full %u, %u keys of style %u, %u refusals\n",
            s->config.limit, s->limit, s->config.window_ns, s->config.max_keys, s->config.on_full, s->model.n, s->style, refusal.refused);
    fflush(stderr);
    abort();
}

#define SEQUENCE_SAME(s, what, expected, found)                                                                        \
    do {                                                                                                               \
        uint64_t expected_ = (expected), found_ = (found);                                                             \
        if (expected_ != found_) sequence_fail(s, what, expected_, found_);                                            \
    } while (0)

static uint32_t sequence_byte(sequence *s) { return s->at < s->end ? *s->at++ : 0; }
static uint32_t sequence_word(sequence *s) {
    uint32_t low = sequence_byte(s);
    return low | sequence_byte(s) << 8;
}

/* --- keys --------------------------------------------------------------------------------------------------------- */

static uint64_t sequence_mix(uint64_t x) { /* splitmix64's finaliser: a bijection */
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

enum { SEQUENCE_STYLES = 8 };

/* Key k's fingerprint. core/segment.h tells which bits do what: 0..31 segment, 40..45 bucket, 56..63 tag. */
static nl_fingerprint sequence_fingerprint(uint32_t style, uint32_t shared_bits, uint32_t k) {
    const uint64_t bucket = (uint64_t)63 << 40, tag = (uint64_t)255 << 56;
    uint64_t mixed = sequence_mix(k + 1), shared = ((uint64_t)1 << shared_bits) - 1;
    nl_fingerprint fp = {mixed, sequence_mix(k + ((uint64_t)1 << 40))}; /* the upper half always differs */
    switch (style) {
    case 0: break;
    case 1: fp.lo = mixed | bucket; break;                                    /* one home bucket: the last, walks go round */
    case 2: fp.lo = (mixed & ~(bucket | tag)) | (uint64_t)7 << 40; break;     /* and one tag: the one that stands in for 0 */
    case 3: fp.lo = 0x0123456789abcdefu; break;                               /* nothing but the upper half differs */
    case 4: fp.lo = (mixed & ~(uint64_t)0xffffffff) | 0x89abcdef; break;      /* no split can part them */
    case 5: fp.lo = (mixed & ~shared) | (0x5555555555555555u & shared); break; /* the first splits leave all on one side */
    case 6: fp.lo = (uint64_t)k + 1; break;                                   /* one bucket, one tag, segments in turn */
    case 7: return sequence_fingerprint(k % 7, shared_bits, k);
    }
    fp.lo += fp.lo == 0;
    return fp;
}

static uint32_t sequence_pick_key(sequence *s) {
    uint32_t choice = sequence_byte(s), k;
    if (choice < 160) k = choice & 7;                          /* a few that are used again and again */
    else if (choice < 176) k = s->key;
    else k = (choice & 1) << 8 | sequence_byte(s) | (choice >> 1 & 7) << 9;
    return s->key = k % s->model.n;
}

/* --- time --------------------------------------------------------------------------------------------------------- */

static void sequence_move_to(sequence *s, uint64_t ns) { /* more than 2^62: below 0 or beyond the end; stay */
    if (ns < NL_TIME_END_NS) s->now_ns = ns;
}

/* To just before, at or just after an edge that is given in ticks. */
static void sequence_move_near(sequence *s, uint64_t tick, uint32_t byte) {
    uint64_t tick_ns = s->model.tick_ns;
    if (tick > NL_TIME_END_NS / tick_ns) return;
    int32_t off = (int32_t)(byte & 15) - 8;
    sequence_move_to(s, tick * tick_ns + (byte & 16 ? (uint64_t)(int64_t)off : (uint64_t)off * tick_ns));
}

static void sequence_jump(sequence *s) {
    static const uint64_t year = 31557600000000000u;
    uint32_t kind = sequence_byte(s), byte = sequence_byte(s);
    uint64_t tick = s->now_ns / s->model.tick_ns, epoch = (uint64_t)1 << 30, window_ns = s->config.window_ns;
    switch (kind % 10) {
    case 0: sequence_move_to(s, s->now_ns + byte * (year / 16)); break;
    case 1: sequence_move_near(s, ((tick >> 32) + 1) << 32, byte); break;         /* where the low 32 bits come round */
    case 2: sequence_move_near(s, ((tick >> 30) + 1 + (byte >> 6)) << 30, byte); break; /* the next epochs */
    case 3: sequence_move_near(s, tick + (((uint64_t)1 << (24 + byte % 17)) * epoch), kind); break; /* what the slot's bits of epoch reach */
    case 4: sequence_move_to(s, s->now_ns - byte * (window_ns / 128)); break;     /* back, within the window or a little more */
    case 5: sequence_move_to(s, s->now_ns - byte * (year / 64)); break;
    case 6: sequence_move_to(s, s->now_ns - byte); break;
    case 7: sequence_move_to(s, byte & 1 ? NL_TIME_END_NS - 1 - byte : byte); break;
    case 8: sequence_move_to(s, s->now_ns + 3 * epoch * s->model.tick_ns + byte); break; /* epochs are equal modulo 4 soon */
    case 9: sequence_move_near(s, tick + 2 * s->model.window, byte); break;
    }
}

/* To the instant that a denial promises, or one nanosecond before it. */
static void sequence_edge(sequence *s) {
    uint32_t k = sequence_pick_key(s), byte = sequence_byte(s);
    const model_key *key = &s->model.keys[k];
    if (!key->count) return;
    uint32_t which = (byte >> 2) * key->count >> 6;
    sequence_move_to(s, (key->stamps[which] + s->model.window) * s->model.tick_ns - (byte & 1));
}

/* --- what is compared --------------------------------------------------------------------------------------------- */

static void sequence_verify(sequence *s) {
    char message[200];
    uint32_t orphans;
    const char *broken = nl_verify(&s->table, &orphans, message, sizeof message);
    if (broken) sequence_fail(s, broken, 0, 1);
    SEQUENCE_SAME(s, "occupied slots", s->model.present, nl_table_keys(&s->table));
    SEQUENCE_SAME(s, "live keys", model_live_keys(&s->model, s->now_ns), nl_walk_count(&s->table, s->now_ns));
}

static void sequence_same_view(sequence *s, const model_view *expected, const nl_view *found) {
    SEQUENCE_SAME(s, "used", expected->used, found->used);
    SEQUENCE_SAME(s, "newest stamp", expected->newest, found->newest_tick);
    SEQUENCE_SAME(s, "oldest stamp", expected->oldest, found->oldest_tick);
    SEQUENCE_SAME(s, "deciding stamp", expected->deciding, found->deciding_tick);
    SEQUENCE_SAME(s, "limit", s->limit, found->limit);
    SEQUENCE_SAME(s, "now", s->now_ns, found->now_ns);
}

/* Takes note of the keys whose slots went to others. How many of them were live. */
static uint32_t sequence_note_lost(sequence *s) {
    uint32_t live = 0;
    if (nl_table_keys(&s->table) == s->model.present) return 0;
    for (uint32_t k = 0; k < s->model.n; k++) {
        if (!s->model.keys[k].present || nl_find(&s->table, s->fps[k])) continue;
        live += model_is_live(&s->model, &s->model.keys[k], s->now_ns);
        model_forget(&s->model, k);
    }
    SEQUENCE_SAME(s, "occupied slots", s->model.present, nl_table_keys(&s->table));
    return live;
}

/* The oldest of the other keys' newest stamps: since when the one idle longest has been idle. */
static uint64_t sequence_idle_longest(const sequence *s, uint32_t newcomer) {
    uint64_t oldest = UINT64_MAX;
    for (uint32_t k = 0; k < s->model.n; k++) {
        const model_key *key = &s->model.keys[k];
        if (k != newcomer && key->present && key->count && key->stamps[key->count - 1] < oldest) oldest = key->stamps[key->count - 1];
    }
    return oldest;
}

/* A newcomer was turned away, or a key's log couldn't grow: was there a reason, and did on_full decide? */
static void sequence_untracked(sequence *s, uint32_t k, nl_outcome outcome, const nl_view *view, uint32_t cost, bool refused) {
    bool allow = s->config.on_full != NL_ON_FULL_DENY, known = s->model.keys[k].present;
    SEQUENCE_SAME(s, "on_full's decision", allow, outcome & NL_ALLOWED);
    if (view) {
        model_view expected = {allow, allow ? cost : s->limit, 0, 0, 0};
        sequence_same_view(s, &expected, view);
    }
    bool crowded = s->table.segments[nl_segment_of(&s->table, s->fps[k])].used == NL_SEGMENT_ENTRIES;
    if (!refused && known) sequence_fail(s, "a known key was untracked", 0, 1);
    if (!refused && !crowded) {
        if (s->config.on_full == NL_ON_FULL_EVICT) sequence_fail(s, "nobody was displaced", 0, 1);
        SEQUENCE_SAME(s, "live keys of a full table", s->config.max_keys, model_live_keys(&s->model, s->now_ns));
    }
    const nl_slot *slot = nl_find(&s->table, s->fps[k]);
    if (slot) model_arrive(&s->model, k); /* it has a slot, though perhaps no stamps */
    /* On its way to a chunk that it didn't get, a log that was out altogether may have been emptied (log.h, the era). */
    if (slot && !nl_meta_count(s->table.rule.shape, slot->meta) && !model_is_live(&s->model, &s->model.keys[k], s->now_ns))
        s->model.keys[k].count = 0;
    if (sequence_note_lost(s) > (s->config.on_full == NL_ON_FULL_EVICT)) sequence_fail(s, "live keys were lost", 0, 1);
}

static void sequence_check(sequence *s, uint32_t k, uint32_t cost, bool with_view) {
    nl_view view;
    uint32_t refusals = refusal.refused;
    /* Nobody else is here: a quick call has nothing to wait for, so one that wants to would wait for ever. */
    nl_outcome outcome = nl_check_any(&s->table, s->fps[k], s->now_ns, cost, false, with_view ? &view : NULL);
    bool refused = refusal.refused != refusals, known = s->model.keys[k].present;
    if (outcome & ~(NL_ALLOWED | NL_UNTRACKED | NL_DISPLACED)) sequence_fail(s, "outcome", NL_ALLOWED, outcome);
    if (outcome & NL_UNTRACKED) {
        sequence_untracked(s, k, outcome, with_view ? &view : NULL, cost, refused);
        return;
    }
    if (outcome & NL_DISPLACED) {
        SEQUENCE_SAME(s, "on_full, of a table that displaces", NL_ON_FULL_EVICT, s->config.on_full);
        SEQUENCE_SAME(s, "a key that displaces another was known", false, known);
        if (!refused) SEQUENCE_SAME(s, "live keys of a full table", s->config.max_keys, model_live_keys(&s->model, s->now_ns));
    }
    uint64_t idle_longest = outcome & NL_DISPLACED && s->config.max_keys <= 32 && !refused ? sequence_idle_longest(s, k) : 0;
    model_view expected = model_check(&s->model, k, s->now_ns, s->limit, cost);
    SEQUENCE_SAME(s, "allowed", expected.allowed, outcome & NL_ALLOWED);
    if (with_view) sequence_same_view(s, &expected, &view);
    model_arrive(&s->model, k);
    SEQUENCE_SAME(s, "live keys displaced", outcome & NL_DISPLACED ? 1 : 0, sequence_note_lost(s));
    if (idle_longest && s->model.n > 1) { /* a table so small is looked through whole */
        uint64_t left = sequence_idle_longest(s, k);
        if (left < idle_longest) sequence_fail(s, "the key idle longest was not the one displaced", idle_longest, left);
    }
}

static void sequence_peek(sequence *s, uint32_t k, uint32_t cost) {
    nl_view view;
    nl_outcome outcome = nl_peek(&s->table, s->fps[k], s->now_ns, cost, false, &view);
    model_view expected = model_peek(&s->model, k, s->now_ns, s->limit, cost);
    SEQUENCE_SAME(s, "would fit", expected.allowed ? NL_ALLOWED : NL_DENIED, outcome);
    sequence_same_view(s, &expected, &view);
    SEQUENCE_SAME(s, "occupied slots", s->model.present, nl_table_keys(&s->table));
}

static void sequence_refund(sequence *s, uint32_t k) {
    const model_key *key = &s->model.keys[k];
    uint32_t which = sequence_byte(s), units = sequence_byte(s), given;
    uint64_t tick = NL_NEWEST;
    if (which >= 64 && key->count) tick = key->stamps[which % key->count] + (which == 64); /* one that is there, mostly */
    units = units < 128 ? units % 4 : units * s->config.limit / 200;
    nl_outcome outcome = nl_refund(&s->table, s->fps[k], s->now_ns, tick, units, NL_QUICKLY, &given);
    SEQUENCE_SAME(s, "outcome", NL_ALLOWED, outcome);
    SEQUENCE_SAME(s, "units given back", model_refund(&s->model, k, s->now_ns, tick, units), given);
}

static void sequence_claims(sequence *s) { /* of keys that are there, as in a batch */
    nl_claim claims[6];
    uint32_t ks[6], n = 0, refusals = refusal.refused;
    bool views = sequence_byte(s) & 1, fit = true;
    for (uint32_t wanted = 1 + sequence_byte(s) % 6; wanted; wanted--) {
        uint32_t k = sequence_pick_key(s), cost = sequence_byte(s), twice = 0;
        for (uint32_t i = 0; i < n; i++) twice |= ks[i] == k;
        if (twice || !s->model.keys[k].present) continue;
        cost = cost < 128 ? cost & 3 : cost * s->limit / 200;
        nl_claim claim = {.table = &s->table, .fp = s->fps[k], .limit = s->limit, .cost = cost > s->limit ? s->limit : cost};
        claim.now = nl_rule_now(&s->table.rule, s->now_ns);
        fit &= model_peek(&s->model, k, s->now_ns, s->limit, claim.cost).allowed;
        ks[n] = k;
        claims[n++] = claim;
    }
    if (!n) return;
    nl_outcome outcome = nl_claims_check(claims, n, views, NL_QUICKLY);
    if (outcome & NL_UNTRACKED) {
        if (refusal.refused == refusals) sequence_fail(s, "known keys were untracked", 0, 1);
        SEQUENCE_SAME(s, "on_full's decision", s->config.on_full != NL_ON_FULL_DENY, outcome & NL_ALLOWED);
        return;
    }
    SEQUENCE_SAME(s, "all fit", fit ? NL_ALLOWED : NL_DENIED, outcome);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t cost = claims[i].cost;
        s->key = ks[i];
        model_view expected = model_peek(&s->model, ks[i], s->now_ns, s->limit, cost);
        if (fit && cost) expected = model_check(&s->model, ks[i], s->now_ns, s->limit, cost);
        if (!views) continue;
        SEQUENCE_SAME(s, "fits by itself", expected.allowed, claims[i].outcome);
        sequence_same_view(s, &expected, &claims[i].view);
    }
}

static void sequence_reset(sequence *s, uint32_t k) {
    nl_outcome outcome = nl_reset(&s->table, s->fps[k], s->now_ns, false);
    SEQUENCE_SAME(s, "was live", model_is_live(&s->model, &s->model.keys[k], s->now_ns) ? NL_ALLOWED : NL_DENIED, outcome);
    model_forget(&s->model, k);
    SEQUENCE_SAME(s, "occupied slots", s->model.present, nl_table_keys(&s->table));
    if (nl_find(&s->table, s->fps[k])) sequence_fail(s, "is still there", 0, 1);
}

static void sequence_walk(sequence *s, bool live_too) {
    uint32_t gone = 0;
    for (uint32_t k = 0; k < s->model.n; k++) {
        if (!s->model.keys[k].present || (!live_too && model_is_live(&s->model, &s->model.keys[k], s->now_ns))) continue;
        model_forget(&s->model, k);
        gone++;
    }
    SEQUENCE_SAME(s, "keys walked away", gone, nl_walk_evict(&s->table, s->now_ns, live_too, &(bool){false}));
}

static void sequence_batch(sequence *s) { /* of keys that are there: a newcomer in the middle may cost another its slot */
    nl_fingerprint fps[NL_GROUP];
    uint32_t ks[NL_GROUP], n = 0, allowed = 0, refusals = refusal.refused;
    unsigned char outcomes[NL_GROUP];
    nl_tally tally = {0, 0, 0, 0};
    for (uint32_t i = 0, wanted = sequence_byte(s) % (NL_GROUP + 1); i < wanted; i++) {
        ks[n] = sequence_pick_key(s);
        fps[n] = s->fps[ks[n]];
        n += s->model.keys[ks[n]].present;
    }
    nl_check_group(&s->table, fps, n, s->now_ns, 1, false, outcomes, &tally);
    for (uint32_t i = 0; i < n; i++) {
        s->key = ks[i];
        if (outcomes[i] & NL_UNTRACKED) {
            if (refusal.refused == refusals) sequence_fail(s, "a known key was untracked", 0, 1);
            allowed += s->config.on_full != NL_ON_FULL_DENY;
            continue;
        }
        bool fits = model_check(&s->model, ks[i], s->now_ns, s->limit, 1).allowed;
        SEQUENCE_SAME(s, "allowed in a batch", fits, outcomes[i]);
        allowed += fits;
    }
    SEQUENCE_SAME(s, "allowed in all", allowed, tally.allowed);
    SEQUENCE_SAME(s, "denied in all", n - allowed, tally.denied);
}

static void sequence_burst(sequence *s) { /* many keys, one after the other: growth, splits, full tables */
    uint32_t n = sequence_word(s) % 4096 >> (sequence_byte(s) & 3), first = sequence_pick_key(s);
    for (uint32_t i = 0; i < n; i++) {
        s->key = (first + i) % s->model.n;
        sequence_check(s, s->key, 1, i % 8 == 0);
    }
}

static void sequence_stream(sequence *s) { /* one key, again and again, while time passes: a log of many runs, which leave again */
    uint32_t n = sequence_word(s) % 4096, step = sequence_byte(s) % 8, k = sequence_pick_key(s), part = sequence_byte(s) % 4;
    for (uint32_t i = 0; i < n; i++) {
        s->key = k;
        sequence_move_to(s, s->now_ns + step * s->model.tick_ns + (part ? 0 : s->config.window_ns / 2500));
        sequence_check(s, k, 1 + (i % 16 == 5) * (i & 3), i % 8 == 0);
    }
}

/* --- the sequence ------------------------------------------------------------------------------------------------- */

static void sequence_step(sequence *s) {
    enum { CHECKS = 11, COSTS = 16, PEEKS = 17, REFUNDS = 18, CLAIMS = 19, RESETS = 20, TICKS = 23, PARTS = 25, EDGES = 28, JUMPS = 29, BACK = 30 };
    uint32_t what = sequence_byte(s) & 31, byte;
    if (what < CHECKS) {
        s->operation = "check";
        sequence_check(s, sequence_pick_key(s), 1, what & 1);
    } else if (what < COSTS) {
        s->operation = "check with a cost";
        uint32_t k = sequence_pick_key(s);
        byte = sequence_byte(s);
        uint32_t cost = what & 1 ? byte & 7 : byte * s->limit / 200;
        sequence_check(s, k, cost < 1 ? 1 : cost > s->limit ? s->limit : cost, byte & 1);
    } else if (what < PEEKS) {
        s->operation = "peek";
        uint32_t k = sequence_pick_key(s);
        sequence_peek(s, k, sequence_byte(s) % (s->limit + 1));
    } else if (what < REFUNDS) {
        s->operation = "refund";
        sequence_refund(s, sequence_pick_key(s));
    } else if (what < CLAIMS) {
        s->operation = "claims";
        sequence_claims(s);
    } else if (what < RESETS) {
        s->operation = "reset";
        sequence_reset(s, sequence_pick_key(s));
    } else if (what < TICKS) {
        byte = sequence_byte(s);
        sequence_move_to(s, s->now_ns + (what & 1 ? byte : byte * s->model.tick_ns));
    } else if (what < PARTS) { /* up to two windows */
        sequence_move_to(s, s->now_ns + sequence_byte(s) * (s->config.window_ns / 128 + 1));
    } else if (what < EDGES) {
        sequence_edge(s);
        s->operation = "check at an edge";
        sequence_check(s, s->key, 1, true);
    } else if (what < JUMPS) {
        sequence_jump(s);
    } else if (what < BACK) {
        s->operation = "batch";
        sequence_batch(s);
    } else if (what == BACK) {
        byte = sequence_byte(s);
        s->operation = byte < 48 ? "burst" : "stream";
        if (byte < 48) sequence_burst(s);
        else if (byte < 80) sequence_stream(s);
        else sequence_move_to(s, s->now_ns - byte * s->model.tick_ns / 16);
    } else {
        byte = sequence_byte(s);
        s->operation = byte < 128 ? "evict" : byte < 140 ? "clear" : byte < 180 ? "change of limit" : "verify";
        if (byte < 140) sequence_walk(s, byte >= 128);
        else if (byte < 180) nl_store32(&s->table.head->limit, s->limit = byte & 1 ? s->config.limit : 1 + byte % s->config.limit);
        if (byte < 140 || byte >= 180) sequence_verify(s);
    }
    if (++s->operations % 256 == 0) sequence_verify(s);
}

static void sequence_open(sequence *s) {
    const char *wrong = NULL;
    if (!sequence_shared) {
        if (!nl_table_open(&s->table, &s->config)) wrong = "no room";
#if NL_HAS_SHARED
    } else {
        const nl_origin origin = {.own_clock = 1};
        s->config.typical = s->config.limit;
        uint64_t bytes = nl_shared_bytes(&s->config);
        int fd = memfd_create("table", MFD_CLOEXEC);
        void *base = ftruncate(fd, (off_t)bytes) ? MAP_FAILED : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (base == MAP_FAILED) abort();
        nl_shared_format(base, &s->config, &origin);
        munmap(base, bytes);
        wrong = nl_shared_open(&s->table, fd, NULL, s->config.on_full, 50000000, false);
        close(fd);
        if (!wrong && nl_shared_register(&s->table)) wrong = "no place";
#endif
    }
    if (!wrong) return;
    fprintf(stderr, "a table can't be opened: %s\n", wrong);
    abort();
}

static void sequence_begin(sequence *s) {
    static const uint16_t limits[] = {1, 2, 3, 5, 6, 7, 8, 9, 15, 16, 17, 31, 32, 63, 64, 100, 127, 128, 511, 512, 1000, 1023, 1024, 2047};
    static const uint32_t wide[] = {2048, 2049, 2500, 3000, 5000, 9999, 65535, 100000}; /* kept in runs */
    static const uint64_t windows[] = {1000, 1001, 999983, 1000000, 1000000000, 1073741824, 1073741825, 1999999943, 60000000000,
                                       3600000000000, 86400000000000, 86399999999999, 315576000000000000};
    static const uint16_t sizes[] = {1, 2, 3, 17, 31, 32, 33, 100, 689, 690, 768, 769, 1023, 1024, 1025, 1100, 2047, 5000};
    uint32_t byte = sequence_byte(s), word = sequence_word(s);
    s->config.limit = byte < 168 ? limits[byte % 24] : byte < 216 ? wide[byte % 8] : 1 + word % NL_LIMIT_MOST;
    byte = sequence_byte(s), word = sequence_word(s);
    s->config.window_ns = byte < 200 ? windows[byte % 13] : 1000 + ((uint64_t)word << byte % 42);
    byte = sequence_byte(s), word = sequence_word(s);
    s->config.max_keys = byte < 220 ? sizes[byte % 18] : 1 + word % 5000;
    s->config.on_full = sequence_byte(s) % 3;
    s->config.secret[0] = s->config.secret[1] = byte;
    s->config.max_log = !sequence_shared && byte % 4 == 0 ? 1 << 20 : 0; /* never so long; but kept in runs (core/run.h) */
    byte = sequence_byte(s);
    s->style = sequence_shared ? 0 : byte % SEQUENCE_STYLES; /* its segments are sized for hashes that nobody aims */
    uint32_t shared_bits = sequence_byte(s) % 33;
    byte = sequence_byte(s);
    uint32_t keys = byte < 64 ? 1 + byte : s->config.max_keys + byte % 64 + (byte & 1 ? s->config.max_keys / 2 : 0);
    byte = sequence_byte(s);
    refusal.left = UINT32_MAX;
    refusal.refused = 0;

    sequence_open(s);
    if (byte < 40 && !sequence_shared) refusal.left = byte / 2; /* memory for so many more steps */
    s->limit = s->config.limit;
    model_open(&s->model, s->config.window_ns, keys);
    SEQUENCE_SAME(s, "tick", s->model.tick_ns, s->table.rule.tick_ns);
    SEQUENCE_SAME(s, "window in ticks", s->model.window, s->table.rule.window);
    s->fps = model_memory(NULL, keys * sizeof *s->fps);
    for (uint32_t k = 0; k < keys; k++) s->fps[k] = sequence_fingerprint(s->style, shared_bits, k);
    byte = sequence_byte(s);
    s->now_ns = (uint64_t)(byte & 127) << 55; /* anywhere in 146 years, the first day included */
    if (byte & 128) sequence_jump(s);
}

static void sequence_run(const uint8_t *data, size_t size) {
    sequence s;
    memset(&s, 0, sizeof s);
    s.at = data;
    s.end = data + size;
    s.operation = "begin";
    sequence_begin(&s);
    while (s.at < s.end) sequence_step(&s);
    s.operation = "end";
    sequence_verify(&s);
    sequence_walk(&s, false);
    sequence_walk(&s, true);
    sequence_verify(&s);
    SEQUENCE_SAME(&s, "slots left", 0, nl_table_keys(&s.table));
    if (sequence_shared) nl_shared_close(&s.table);
    else nl_table_close(&s.table);
    model_close(&s.model);
    free(s.fps);
}

#endif
