/* weak.c: the core's real headers on a machine that reorders memory (weak.h), under thousands of seeded schedules.
 *
 * A checker hears every store to a slot's meta word, which is where the core commits. It keeps the versions that each key's
 * log has gone through, made by a plain model (a list of stamps), and holds against them
 *
 *   accepts            the model allows the same at the same place in the order of commits: never one too many
 *   denials under the  the model denies there too
 *     slot's owner
 *   denials without    some version denies that the thread may still have taken for the newest: none that it knew to be older
 *     a lock
 *   peeks and views    equal the view of one such version in every number: never a mixture of two. (A log whose expired
 *                      stamps are published away before new ones overwrite them is a version too, between those before
 *                      and after the accept. Only a clock that is behind the accept's can tell it from the one before.)
 *   a child            of a fork at any operation: exactly the last version that its copy of memory holds; what it then
 *                      decides is what the model decides
 *   the end            every invariant of verify.h, and logs that equal the last versions
 *
 * Usage: weak [scenario [first seed [seeds]]]. Silent if all is well.
 */
#define NL_ATOMIC_HEADER "weak.h"
#define NL_PORTABLE_TAGS /* the others read two words at once, past the atomics */
#include "../../src/nanolimit/core/verify.h"

enum { KEYS = 3, VERSIONS = 96, STAMPS = 96, PROGRAM = 6 };

/* --- the model ---------------------------------------------------------------------------------------------------- */

typedef struct {
    uint64_t stamps[STAMPS];
    uint32_t n;
} model;

typedef struct {
    model log;
    uint32_t location, at; /* of the commit */
} version;

static uint32_t limit;
static uint64_t window;
static bool in_runs;       /* logs are kept in runs, as of large limits (core/run.h) */
enum { NEVER_SO_LONG = 1 << 20 }; /* what asks for them at a small limit */
static uint32_t algorithm; /* the log; or the fixed window, a log whose stamps are all its window's start: that shows all meters' protocol */

static uint32_t model_expired(const model *log, uint64_t now) {
    uint32_t out = 0;
    if (log->n && now < log->stamps[log->n - 1]) now = log->stamps[log->n - 1] - 1; /* time never runs backwards in a key */
    while (out < log->n && now + 1 > log->stamps[out] && now - log->stamps[out] >= window) out++;
    return out;
}

static bool model_fits(const model *log, uint64_t now, uint32_t cost) {
    return log->n - model_expired(log, now) + cost <= limit;
}

static void model_purge(model *log, uint64_t now) {
    uint32_t out = model_expired(log, now);
    log->n -= out;
    memmove(log->stamps, log->stamps + out, log->n * sizeof log->stamps[0]);
}

static void model_accept(model *log, uint64_t now, uint32_t cost) { /* ticks are nanoseconds here: nothing is rounded */
    model_purge(log, now);
    if (log->n && (algorithm || now < log->stamps[log->n - 1])) now = log->stamps[log->n - 1];
    while (cost--) log->stamps[log->n++] = now;
}

static bool model_shows(const model *log, uint64_t now, uint32_t cost, const nl_view *view) {
    uint32_t out = model_expired(log, now), used = log->n - out;
    if (view->used != used || view->limit != limit || view->now_ns != now) return false;
    if (!used) return true;
    if (view->newest_tick != log->stamps[log->n - 1] || view->oldest_tick != log->stamps[out]) return false;
    return used + cost <= limit || view->deciding_tick == log->stamps[out + used + cost - limit - 1];
}

/* --- what the threads do ------------------------------------------------------------------------------------------ */

typedef enum { CHECK, CHECK_VIEW, PEEK, RESET, FORK } verb;
typedef struct {
    verb verb;
    uint32_t key, cost;
    bool back; /* this call's clock is behind */
    uint64_t now;
    uint32_t least;             /* the newest version that the thread knew of when it began */
    uint32_t same;              /* the version at which it let go of the slot without a change, + 1 */
    uint32_t accepted;          /* the version that it made, + 1 */
    uint64_t owned;             /* meta when it took the slot */
    bool published;
} call;

static const char *scenario;
static uint64_t seed;
static nl_table table;
static nl_fingerprint fingerprints[KEYS];
static version versions[KEYS][VERSIONS];
static uint32_t newest[KEYS];
static call programs[WEAK_THREADS][PROGRAM];
static uint32_t lengths[WEAK_THREADS];
static call *current[WEAK_THREADS];
static uint64_t clock_ticks;
static weak_view cut;
static bool forked;

static void weak_fail(const char *what) {
    fprintf(stderr, "weak: %s, seed %llu: %s\n", scenario, (unsigned long long)seed, what);
    for (int i = 0; i < weak.count; i++)
        if (weak.current >= 0 && current[i])
            fprintf(stderr, "  thread %d%s: verb %d, key %u, cost %u, now %llu\n", i, i == weak.current ? " (here)" : "",
                    current[i]->verb, current[i]->key, current[i]->cost, (unsigned long long)current[i]->now);
    for (uint32_t key = 0; key < KEYS; key++)
        for (uint32_t n = 0; n <= newest[key]; n++) {
            fprintf(stderr, "  key %u, version %u:", key, n);
            for (uint32_t i = 0; i < versions[key][n].log.n; i++) fprintf(stderr, " %llu", (unsigned long long)versions[key][n].log.stamps[i]);
            fprintf(stderr, "\n");
        }
    fprintf(stderr, "  limit %u, window %llu\n", limit, (unsigned long long)window);
    exit(1);
}

static version *version_new(uint32_t key, uint32_t location, uint32_t at) {
    if (newest[key] + 1 == VERSIONS) weak_fail("too many versions");
    version *made = &versions[key][newest[key] + 1];
    made->log = versions[key][newest[key]].log;
    made->location = location;
    made->at = at;
    newest[key]++;
    return made;
}

static bool is_meta(const void *address) {
    const unsigned char *at = address, *slots = table.slab.slots.base;
    return at >= slots && at < slots + table.slab.slots.bytes && (size_t)(at - slots) % sizeof(nl_slot) == offsetof(nl_slot, meta);
}

static void on_cas(void *address, uint64_t before) {
    call *c = current[weak.current];
    if (!is_meta(address)) return;
    c->owned = before & ~(uint64_t)NL_OWNER_MASK;
    c->published = false;
}

static void accept(call *c, uint32_t location, uint32_t at) {
    if (!model_fits(&versions[c->key][newest[c->key]].log, c->now, c->cost)) weak_fail("one too many was allowed");
    model_accept(&version_new(c->key, location, at)->log, c->now, c->cost);
    c->accepted = newest[c->key] + 1;
}

static void on_store(void *address, uint64_t value, uint32_t location, uint32_t at) {
    call *c = current[weak.current];
    if (!is_meta(address)) return;
    if (c->verb == RESET) { /* published empty, and then freed */
        if (nl_meta_owner(value) && !(value & ~(uint64_t)NL_OWNER_MASK) && (c->published = !c->published))
            version_new(c->key, location, at)->log.n = 0;
        return;
    }
    if (nl_meta_owner(value)) {
        if ((value & ~(uint64_t)NL_OWNER_MASK) == c->owned) return; /* the cas that takes the slot */
        const model *log = &versions[c->key][newest[c->key]].log;
        if (nl_meta_count(table.rule.shape, value) > log->n - model_expired(log, c->now)) { /* it moved to another ring, stamps and all */
            accept(c, location, at);
            c->owned = value & ~(uint64_t)NL_OWNER_MASK;
        } else {
            c->published = true;
            model_purge(&version_new(c->key, location, at)->log, c->now);
        }
    } else if (value == c->owned && !c->published) {
        c->same = c->accepted ? 0 : newest[c->key] + 1;
    } else {
        accept(c, location, at);
    }
}

/* The newest version of a key that a view holds. */
static uint32_t version_in(const weak_view *view, uint32_t key) {
    uint32_t n = newest[key];
    while (n && versions[key][n].location < WEAK_LOCATIONS && view->at[versions[key][n].location] < versions[key][n].at) n--;
    return n;
}

static void hold_against_the_model(const call *c, nl_outcome outcome, const nl_view *view) {
    bool counts = c->verb == CHECK || c->verb == CHECK_VIEW, shows = c->verb != CHECK;
    if (outcome != NL_ALLOWED && outcome != NL_DENIED) weak_fail("there was room, and it was said to be full");
    if (counts && (outcome == NL_ALLOWED) != (c->accepted != 0)) weak_fail("what was answered is not what was done");
    if (counts && (c->accepted || c->same)) {
        const model *log = &versions[c->key][(c->accepted ? c->accepted : c->same) - 1].log;
        if (!c->accepted && model_fits(log, c->now, c->cost)) weak_fail("what fits was denied, by the slot's owner");
        if (shows && !model_shows(log, c->now, c->accepted ? 0 : c->cost, view) && !(c->accepted && view->newest_tick == log->stamps[log->n - 1]))
            weak_fail("the view is not the log's");
        return;
    }
    for (uint32_t n = c->least; n <= newest[c->key]; n++) {
        const model *log = &versions[c->key][n].log;
        if (model_fits(log, c->now, c->cost) == (outcome == NL_ALLOWED) && (!shows || model_shows(log, c->now, c->cost, view))) return;
    }
    if (shows)
        fprintf(stderr, "outcome %d, used %u, oldest %llu, newest %llu, deciding %llu\n", outcome, view->used, (unsigned long long)view->oldest_tick,
                (unsigned long long)view->newest_tick, (unsigned long long)view->deciding_tick);
    weak_fail(!shows ? "what fits was denied, without a lock" : outcome == NL_DENIED ? "a denial's view is no log's" : "a peek saw a log that never was");
}

static void do_call(call *c) {
    nl_view view;
    c->now = clock_ticks += weak_below(2) ? 0 : weak_below((uint32_t)window);
    if (c->back) c->now -= 1 + weak_below((uint32_t)(2 * window));
    c->least = version_in(&weak.threads[weak.current].now, c->key);
    c->same = c->accepted = 0;
    c->published = false;
    switch (c->verb) {
    case CHECK:
        hold_against_the_model(c, nl_check_any(&table, fingerprints[c->key], c->now, c->cost, true, NULL), NULL);
        break;
    case CHECK_VIEW:
        hold_against_the_model(c, nl_check_any(&table, fingerprints[c->key], c->now, c->cost, true, &view), &view);
        break;
    case PEEK:
        hold_against_the_model(c, nl_peek(&table, fingerprints[c->key], c->now, c->cost, true, &view), &view);
        break;
    case RESET:
        nl_reset(&table, fingerprints[c->key], c->now, true);
        break;
    case FORK:
        nl_before_fork();
        cut = weak_cut();
        forked = true;
        weak_stop();
    }
}

static void program(int thread) {
    for (uint32_t i = 0; i < lengths[thread]; i++) {
        current[thread] = &programs[thread][i];
        do_call(current[thread]);
    }
    current[thread] = NULL;
}

/* --- before and after --------------------------------------------------------------------------------------------- */

static void open_table(uint32_t max_keys) {
    /* A clock on which little can hide: at its beginning, before and behind an epoch's end, behind a wrap of the low 32
     * bits (where a zero in a ring looks like a stamp), anywhere. */
    static const uint64_t starts[] = {100, ((uint64_t)7 << 30) - 20, ((uint64_t)1 << 32) + 3, ((uint64_t)5 << 32) - 10, 123456789012345};
    window = 8 + weak_below(40);
    clock_ticks = starts[weak_below(5)] + 3 * window;
    nl_config config = {.limit = limit, .window_ns = window, .max_keys = max_keys, .on_full = NL_ON_FULL_DENY, .secret = {1, 2}, .algorithm = algorithm, .max_log = in_runs ? NEVER_SO_LONG : 0};
    if (!nl_table_open(&table, &config)) weak_fail("no memory");
    bool same_tag = weak_below(2);
    for (uint32_t key = 0; key < KEYS; key++) { /* in one bucket, with one tag or not */
        fingerprints[key].lo = (uint64_t)(same_tag ? 9 : 9 + key) << 56 | (uint64_t)3 << 40 | (1 + key) << 8;
        fingerprints[key].hi = key;
        newest[key] = 0;
        versions[key][0].log.n = versions[key][0].at = versions[key][0].location = 0;
    }
    forked = false;
    nl_process.generation = 1;
    nl_process.closed = nl_process.running = 0;
    memset(weak_depths, 0, sizeof weak_depths);
}

/* A call from outside the machine: one thread, plain memory, and the model must agree in everything. */
static void plainly(uint32_t key, uint64_t now, uint32_t cost) {
    nl_view view;
    version *last = &versions[key][newest[key]];
    bool fits = model_fits(&last->log, now, cost);
    nl_outcome outcome = nl_peek(&table, fingerprints[key], now, cost, true, &view);
    if ((outcome == NL_ALLOWED) != fits || !model_shows(&last->log, now, cost, &view)) weak_fail("the log is not the one that was committed");
    outcome = nl_check_any(&table, fingerprints[key], now, cost, true, NULL);
    if (outcome != (fits ? NL_ALLOWED : NL_DENIED)) weak_fail("afterwards it decides otherwise than the model");
    if (fits) model_accept(&last->log, now, cost);
}

static void close_table(void) {
    char message[200];
    if (forked) {
        nl_after_fork_in_child();
        for (uint32_t key = 0; key < KEYS; key++) newest[key] = version_in(&cut, key);
    }
    uint32_t orphans;
    const char *broken = nl_verify(&table, &orphans, message, sizeof message);
    if (broken) weak_fail(broken);
    uint64_t now = clock_ticks;
    for (uint32_t i = 0; i < 4; i++) {
        for (uint32_t key = 0; key < KEYS; key++)
            if (newest[key] || versions[key][0].log.n || i) plainly(key, now, 1 + weak_below(limit > 4 ? limit / 3 : 1));
        now += weak_below((uint32_t)window);
    }
    broken = nl_verify(&table, &orphans, message, sizeof message);
    if (broken) weak_fail(broken);
    nl_table_close(&table);
}

static void fill(uint32_t key, uint32_t cost, uint32_t calls) { /* before the threads come */
    for (uint32_t i = 0; i < calls; i++) plainly(key, clock_ticks - 2 * window + weak_below((uint32_t)(2 * window)), cost);
}

static call a_call(verb v, uint32_t key, uint32_t cost_most) {
    call c = {.verb = v, .key = key, .cost = 1 + weak_below(cost_most), .back = weak_below(8) == 0};
    return c;
}

static void run(int threads) {
    weak.switch_odds = (const uint32_t[]){8, 40, 128}[weak_below(3)];
    weak.stale_odds = (const uint32_t[]){40, 128, 250}[weak_below(3)];
    weak.on_store = on_store;
    weak.on_cas = on_cas;
    memset(current, 0, sizeof current);
    weak_run(threads, program);
}

/* --- the scenarios ------------------------------------------------------------------------------------------------ */

/* Two that mostly accept, two that mostly are denied, on one key. */
static void hot_key(void) {
    limit = 2 + weak_below(5);
    open_table(4);
    fill(0, 1, limit + weak_below(3));
    for (uint32_t t = 0; t < 4; t++) {
        lengths[t] = 1 + weak_below(3);
        for (uint32_t i = 0; i < lengths[t]; i++) programs[t][i] = a_call(CHECK, 0, t < 2 ? 1 : limit < 5 ? limit : 4);
    }
    run(4);
    close_table();
}

/* Views while others accept. */
static void views(void) {
    limit = weak_below(2) ? 2 + weak_below(5) : 7 + weak_below(20);
    open_table(4);
    fill(0, 1, limit + weak_below(3));
    for (uint32_t t = 0; t < 4; t++) {
        lengths[t] = 1 + weak_below(2);
        for (uint32_t i = 0; i < lengths[t]; i++)
            programs[t][i] = a_call(t < 2 ? CHECK : t == 2 ? PEEK : CHECK_VIEW, 0, limit > 6 ? limit / 2 : limit < 5 ? limit : 4);
    }
    run(4);
    close_table();
}

/* A key is reset and another one gets its slot, while both are being asked for. */
static void reused_slot(void) {
    limit = weak_below(3) ? 2 + weak_below(3) : 7 + weak_below(6);
    open_table(KEYS + WEAK_THREADS); /* nobody must make room: what is idle to one clock is not to another */
    fill(0, 1, weak_below(limit + 2));
    if (weak_below(2)) fill(1, 1, weak_below(limit + 2));
    for (uint32_t t = 0; t < 4; t++) {
        lengths[t] = 1 + weak_below(3);
        for (uint32_t i = 0; i < lengths[t]; i++) {
            verb v = t == 0 ? RESET : weak_below(2) ? CHECK : weak_below(2) ? CHECK_VIEW : PEEK;
            programs[t][i] = a_call(v, t == 0 ? weak_below(2) : t == 3 ? 0 : weak_below(3), limit > 6 ? limit / 2 : limit);
        }
    }
    run(4);
    close_table();
}

/* The same, aimed: who asks for a key that is never near its limit must not be denied by the stamps of the slot's next owner. */
static void stolen_slot(void) {
    limit = weak_below(2) ? 2 + weak_below(3) : 7 + weak_below(6);
    open_table(KEYS + WEAK_THREADS);
    fill(0, 1, 1);
    for (uint32_t t = 0; t < 4; t++) {
        lengths[t] = t == 1 ? 2 : 1;
        for (uint32_t i = 0; i < lengths[t]; i++) programs[t][i] = a_call(t == 0 ? RESET : t == 2 && weak_below(4) == 0 ? PEEK : CHECK, t == 1, 1);
    }
    programs[1][0].cost = limit < 6 ? limit : 5;
    programs[1][1].cost = limit - programs[1][0].cost + 1;
    run(4);
    close_table();
}

/* Logs that move between the slot and chunks while denials read them; above 63 with an era. */
static void growth(void) {
    limit = weak_below(4) ? 7 + weak_below(34) : 64 + weak_below(8);
    open_table(4);
    fill(0, 1 + weak_below(limit / 2), 1 + weak_below(3));
    fill(1, 1 + weak_below(limit / 2), weak_below(3));
    for (uint32_t t = 0; t < 4; t++) {
        lengths[t] = 1 + weak_below(2);
        for (uint32_t i = 0; i < lengths[t]; i++) programs[t][i] = a_call(t == 3 ? CHECK_VIEW : CHECK, t == 2 ? weak_below(2) : 0, limit * 2 / 3);
    }
    run(4);
    close_table();
}

/* All threads stop for ever at some operation but one, which forks. */
static void death(void) {
    limit = weak_below(2) ? 2 + weak_below(5) : 7 + weak_below(34);
    open_table(KEYS + WEAK_THREADS); /* nobody must make room: what is idle to one clock is not to another */
    fill(0, 1, weak_below(limit + 2));
    for (uint32_t t = 0; t < 4; t++) {
        lengths[t] = 2 + weak_below(3);
        for (uint32_t i = 0; i < lengths[t]; i++)
            programs[t][i] = a_call(weak_below(16) ? CHECK : RESET, weak_below(4) ? 0 : 1, limit > 6 ? limit / 2 : limit < 5 ? limit : 4);
    }
    lengths[3] = 1 + weak_below(4);
    for (uint32_t i = 0; i < lengths[3]; i++) programs[3][i] = a_call(PEEK, 2, 1);
    programs[3][lengths[3] - 1].verb = FORK;
    run(4);
    close_table();
}

/* All but `growth` once more with a meter, which never grows. */
static void meters(void) {
    static void (*const all[])(void) = {hot_key, views, reused_slot, stolen_slot, death};
    algorithm = NL_FIXED_WINDOW;
    all[weak_below(5)]();
    algorithm = NL_SLIDING_LOG;
}

/* All of them with logs of runs. */
static void runs(void) {
    static void (*const all[])(void) = {hot_key, views, reused_slot, stolen_slot, growth, death};
    in_runs = true;
    all[weak_below(6)]();
    in_runs = false;
}

static const struct {
    const char *name;
    void (*once)(void);
    uint64_t seeds; /* of a plain run */
} scenarios[] = {{"hot_key", hot_key, 10000}, {"views", views, 10000}, {"reused_slot", reused_slot, 10000}, {"stolen_slot", stolen_slot, 100000},
                 {"growth", growth, 10000}, {"death", death, 10000}, {"meters", meters, 20000}, {"runs", runs, 20000}};

int main(int argc, char **argv) {
    uint64_t first = argc > 2 ? strtoull(argv[2], NULL, 10) : 0, seeds = argc > 3 ? strtoull(argv[3], NULL, 10) : 0;
    for (size_t i = 0; i < sizeof scenarios / sizeof scenarios[0]; i++) {
        if (argc > 1 && strcmp(argv[1], "all") && strcmp(argv[1], scenarios[i].name)) continue;
        scenario = scenarios[i].name;
        for (seed = first; seed < first + (seeds ? seeds : scenarios[i].seeds); seed++) {
            weak.random = seed * 0x2545f4914f6cdd1du + i;
            scenarios[i].once();
        }
    }
    return 0;
}
