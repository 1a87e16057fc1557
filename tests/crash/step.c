/* step.c: single-step kills. A process (the victim) does one thing to a small table, one instruction at a time; whenever the table's
 * bytes have changed, a copy of them is kept. Each distinct copy is what the others would be left with had the victim been
 * killed there: heirs come to it (heir.h), in a file in which nobody's byte is locked, so the dead are dead.
 *
 * Then the same of the recovery: where a copy leaves something to mend, another victim comes to it, and is stepped in turn.
 *
 *     step [all] [SCENE]      all: every copy with something to mend, not only the first of each sort
 *
 * x86-64 and arm64 Linux. 77: the system permits no tracing. (Between an exclusive load and its store a stepped arm64 processor loses
 * its claim and tries for ever: that takes a processor with atomic instructions, and a compiler that uses them.)
 */
#include <sched.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#include "heir.h"

#define SECOND ((uint64_t)1000000000)
#define MINUTE (60 * SECOND)
enum { SKIPPED = 77, STEPS_MOST = 20000000, PLACES_SEEN = 8, DEEDS = 6 };

typedef struct {
    const char *name;
    uint32_t limit;
    uint64_t window_ns;
    uint32_t max_keys, on_full;
    life_deed before[DEEDS];
    life_deed deed;
    bool worn;       /* all places have been used up */
    bool unjoined;   /* the victim is not a member before the deed */
} scene;

/* The first stamp of each key comes at an epoch's beginning (2^40 ns, in ticks of 1 ns): what is said of the era counts from there. */
#define ERA_REACH ((((uint64_t)1 << 24) - 1) << 30)

static const scene scenes[] = {
    {"insert the first key", 6, MINUTE, 16, NL_ON_FULL_ALLOW,
     {{0}}, {LIFE_CHECK, 0, 1, 0, 0}, 0, 0},
    {"insert into a slot that was freed", 6, MINUTE, 16, NL_ON_FULL_ALLOW,
     {{LIFE_CHECK, 0, 1, 3, 0}, {LIFE_RESET, 1, 0, 0, 0}}, {LIFE_CHECK, 5, 1, 0, 9}, 0, 0},
    {"insert past a full bucket", 6, MINUTE, 16, NL_ON_FULL_ALLOW,
     {{LIFE_CHECK, 0, 1, 13, 0}}, {LIFE_CHECK, 15, 2, 0, 9}, 0, 0},
    {"insert a log with a chunk", 40, MINUTE, 16, NL_ON_FULL_ALLOW,
     {{LIFE_CHECK, 0, 5, 2, 0}}, {LIFE_CHECK, 3, 20, 0, 9}, 0, 0},
    {"accept", 6, MINUTE, 16, NL_ON_FULL_ALLOW,
     {{LIFE_CHECK, 0, 1, 3, 0}}, {LIFE_CHECK, 1, 1, 0, 9000}, 0, 0},
    {"accept a cost", 6, MINUTE, 16, NL_ON_FULL_ALLOW,
     {{LIFE_CHECK, 0, 1, 3, 0}}, {LIFE_CHECK, 1, 4, 0, 9000}, 0, 0},
    {"accept over expired stamps", 6, MINUTE, 16, NL_ON_FULL_ALLOW,
     {{LIFE_CHECK, 0, 3, 0, 0}, {LIFE_CHECK, 0, 3, 0, MINUTE / 2}}, {LIFE_CHECK, 0, 2, 0, 40 * SECOND}, 0, 0},
    {"accept when all have expired", 6, MINUTE, 16, NL_ON_FULL_ALLOW,
     {{LIFE_CHECK, 0, 6, 0, 0}}, {LIFE_CHECK, 0, 2, 0, MINUTE + SECOND}, 0, 0},
    {"accept over expired stamps of a chunk", 40, MINUTE, 16, NL_ON_FULL_ALLOW,
     {{LIFE_CHECK, 0, 4, 0, 0}, {LIFE_CHECK, 0, 4, 0, MINUTE / 2}}, {LIFE_CHECK, 0, 2, 0, 31 * SECOND}, 0, 0},
    {"grow out of the slot", 40, MINUTE, 16, NL_ON_FULL_ALLOW,
     {{LIFE_CHECK, 0, 4, 2, 0}}, {LIFE_CHECK, 0, 1, 0, 9}, 0, 0},
    {"grow the chunk", 40, MINUTE, 16, NL_ON_FULL_ALLOW,
     {{LIFE_CHECK, 0, 8, 2, 0}}, {LIFE_CHECK, 0, 1, 0, 9000}, 0, 0},
    {"come back into the slot", 40, MINUTE, 16, NL_ON_FULL_ALLOW,
     {{LIFE_CHECK, 0, 20, 0, 0}, {LIFE_CHECK, 0, 2, 0, MINUTE / 2}}, {LIFE_CHECK, 0, 1, 0, 31 * SECOND}, 0, 0},
    {"come back into a smaller chunk", 40, MINUTE, 16, NL_ON_FULL_ALLOW,
     {{LIFE_CHECK, 0, 33, 0, 0}, {LIFE_CHECK, 0, 6, 0, MINUTE / 2}}, {LIFE_CHECK, 0, 1, 0, 31 * SECOND}, 0, 0},
    {"move the era", 2047, SECOND, 16, NL_ON_FULL_ALLOW,
     {{LIFE_CHECK, 0, 1, 0, 0}, {LIFE_CHECK, 0, 1, 0, ERA_REACH + ((uint64_t)1 << 30) - 1000}}, {LIFE_CHECK, 0, 1, 0, 2000}, 0, 0},
    {"move the era of an expired log", 2047, SECOND, 16, NL_ON_FULL_ALLOW,
     {{LIFE_CHECK, 0, 9, 0, 0}}, {LIFE_CHECK, 0, 1, 0, ERA_REACH + ((uint64_t)1 << 31)}, 0, 0},
    {"deny", 6, MINUTE, 16, NL_ON_FULL_ALLOW,
     {{LIFE_CHECK, 0, 6, 2, 0}}, {LIFE_CHECK, 0, 1, 0, 9}, 0, 0},
    {"peek at a key that is not there", 6, MINUTE, 16, NL_ON_FULL_ALLOW,
     {{LIFE_CHECK, 0, 6, 2, 0}}, {LIFE_PEEK, 3, 1, 0, 9}, 0, 0},
    {"refund", 6, MINUTE, 16, NL_ON_FULL_ALLOW,
     {{LIFE_CHECK, 0, 2, 0, 0}, {LIFE_CHECK, 0, 2, 0, 9}}, {LIFE_REFUND, 0, 3, 0, 9}, 0, 0},
    {"refund all", 6, MINUTE, 16, NL_ON_FULL_ALLOW,
     {{LIFE_CHECK, 0, 2, 0, 0}}, {LIFE_REFUND, 0, 6, 0, 9}, 0, 0},
    {"refund to a log with a chunk", 40, MINUTE, 16, NL_ON_FULL_ALLOW,
     {{LIFE_CHECK, 0, 9, 0, 0}, {LIFE_CHECK, 0, 9, 0, 9}}, {LIFE_REFUND, 0, 12, 0, 9}, 0, 0},
    {"reset", 6, MINUTE, 16, NL_ON_FULL_ALLOW,
     {{LIFE_CHECK, 0, 2, 14, 0}}, {LIFE_RESET, 12, 0, 0, 9}, 0, 0},
    {"reset a log with a chunk", 40, MINUTE, 16, NL_ON_FULL_ALLOW,
     {{LIFE_CHECK, 0, 9, 2, 0}}, {LIFE_RESET, 1, 0, 0, 9}, 0, 0},
    {"reset in a table that was found full", 6, MINUTE, 16, NL_ON_FULL_DENY,
     {{LIFE_CHECK, 0, 1, 16, 0}, {LIFE_CHECK, 17, 1, 0, 9000}}, {LIFE_RESET, 4, 0, 0, 9000}, 0, 0},
    {"evict", 40, MINUTE, 16, NL_ON_FULL_ALLOW,
     {{LIFE_CHECK, 0, 5, 6, 0}, {LIFE_CHECK, 2, 6, 2, 40 * SECOND}}, {LIFE_EVICT, 0, 0, 0, 30 * SECOND}, 0, 0},
    {"clear", 40, MINUTE, 16, NL_ON_FULL_ALLOW,
     {{LIFE_CHECK, 0, 5, 4, 0}, {LIFE_CHECK, 4, 1, 3, 9}}, {LIFE_CLEAR, 0, 0, 0, 9}, 0, 0},
    {"reuse an expired slot", 40, MINUTE, 16, NL_ON_FULL_ALLOW,
     {{LIFE_CHECK, 0, 5, 16, 0}}, {LIFE_CHECK, 17, 1, 0, MINUTE + SECOND}, 0, 0},
    {"displace", 40, MINUTE, 16, NL_ON_FULL_EVICT,
     {{LIFE_CHECK, 3, 7, 0, 0}, {LIFE_CHECK, 0, 1, 3, 9000}, {LIFE_CHECK, 4, 1, 12, 9000}}, {LIFE_CHECK, 17, 5, 0, 9000}, 0, 0},
    {"turn away when full", 6, MINUTE, 16, NL_ON_FULL_DENY,
     {{LIFE_CHECK, 0, 1, 16, 0}}, {LIFE_CHECK, 17, 1, 0, 9000}, 0, 0},
    {"a batch", 6, MINUTE, 16, NL_ON_FULL_ALLOW,
     {{LIFE_CHECK, 0, 2, 3, 0}}, {LIFE_BATCH, 1, 2, 5, 9000}, 0, 0},
    {"a batch of long logs", 40, MINUTE, 16, NL_ON_FULL_ALLOW,
     {{LIFE_CHECK, 0, 4, 2, 0}}, {LIFE_BATCH, 0, 5, 4, 9000}, 0, 0},
    {"the hand's step before an insert", 6, MINUTE, 1100, NL_ON_FULL_ALLOW,
     {{LIFE_CHECK, 0, 1, 1100, 0}}, {LIFE_CHECK, 1101, 1, 0, MINUTE + SECOND}, 0, 0},
    {"register", 6, MINUTE, 16, NL_ON_FULL_ALLOW,
     {{LIFE_CHECK, 0, 2, 3, 0}}, {LIFE_REGISTER, 0, 0, 0, 0}, 0, true},
    {"register when all places are worn", 6, MINUTE, 16, NL_ON_FULL_ALLOW,
     {{LIFE_CHECK, 0, 2, 3, 0}}, {LIFE_REGISTER, 0, 0, 0, 0}, true, true},
    {"leave", 6, MINUTE, 16, NL_ON_FULL_ALLOW,
     {{LIFE_CHECK, 0, 2, 3, 0}}, {LIFE_LEAVE, 0, 0, 0, 0}, 0, 0},
};

/* Logs of runs (core/run.h): the limit is 5,000. First `stream` requests of key 0, so much time apart, then the rest. */
enum { RUNS_LIMIT = 5000, IN_ROOT = NL_RUNS_IN_ROOT, PIECE = NL_PIECE_RUNS };
#define TICK ((uint64_t)100) /* of a minute */

typedef struct {
    const char *name;
    uint32_t stream;
    uint64_t stream_ns;
    life_deed before[DEEDS];
    life_deed deed;
} runs_scene;

static const runs_scene runs_scenes[] = {
    {"insert a log of runs", 0, 0, {{0}}, {LIFE_CHECK, 0, 800, 0, 0}},
    {"add to the run in a slot", 0, 0, {{LIFE_CHECK, 0, 5, 2, 0}}, {LIFE_CHECK, 1, 700, 0, 0}},
    {"a second run", 0, 0, {{LIFE_CHECK, 0, 800, 2, 0}}, {LIFE_CHECK, 1, 700, 0, 9000}},
    {"a third run", 2, TICK, {{LIFE_CHECK, 1, 5, 2, 0}}, {LIFE_CHECK, 0, 700, 0, 9000}},
    {"another run in a root", 5, TICK, {{0}}, {LIFE_CHECK, 0, 3, 0, 9000}},
    {"more units of the newest run in a root", 5, TICK, {{0}}, {LIFE_CHECK, 0, 3, 0, 0}},
    {"grow a root of runs", 26, TICK, {{0}}, {LIFE_CHECK, 0, 3, 0, 9000}},
    {"accept over runs that have left", 10, 5 * SECOND, {{0}}, {LIFE_CHECK, 0, 3, 0, 20 * SECOND}},
    {"runs come back into the slot", 10, SECOND, {{0}}, {LIFE_CHECK, 0, 3, 0, MINUTE}},
    {"runs come back into a smaller root", 100, SECOND / 10, {{0}}, {LIFE_CHECK, 0, 3, 0, 58 * SECOND}},
    {"another run in a piece", PIECE + 9, TICK, {{0}}, {LIFE_CHECK, 0, 3, 0, 9000}},
    {"one more piece", PIECE + 1, TICK, {{0}}, {LIFE_CHECK, 0, 3, 0, 9000}},
    {"give a piece back", 2 * PIECE, 20 * SECOND / 1000, {{LIFE_CHECK, 0, 1, 0, 41 * SECOND}}, {LIFE_CHECK, 0, 3, 0, SECOND / 9}},
    {"runs come back out of pieces", PIECE + 20, TICK, {{LIFE_CHECK, 0, 1, 0, 30 * SECOND}, {LIFE_CHECK, 0, 1, 0, 31 * SECOND}},
     {LIFE_CHECK, 0, 3, 0, SECOND}},
    {"refund the last run's units", 5, TICK, {{LIFE_CHECK, 0, 7, 0, 9000}}, {LIFE_REFUND, 0, 3, 0, 9}},
    {"refund several runs", 9, TICK, {{0}}, {LIFE_REFUND, 0, 4, 0, 9}},
    {"refund all runs", 9, TICK, {{0}}, {LIFE_REFUND, 0, 4000, 0, 9}},
    {"refund a piece and more", 2 * PIECE + 40, TICK, {{0}}, {LIFE_REFUND, 0, PIECE + 60, 0, 9}},
    {"reset a log of runs", 9, TICK, {{LIFE_CHECK, 1, 9, 2, 9}}, {LIFE_RESET, 0, 0, 0, 9}},
    {"reset a log in pieces", PIECE + 90, TICK, {{0}}, {LIFE_RESET, 0, 0, 0, 9}},
    {"clear logs of runs", PIECE + 90, TICK, {{LIFE_CHECK, 1, 9, 2, 9}, {LIFE_CHECK, 1, 9, 2, 9}}, {LIFE_CLEAR, 0, 0, 0, 9}},
    {"a batch in runs", 9, TICK, {{LIFE_CHECK, 1, 9, 3, 9}}, {LIFE_BATCH, 0, 2, 4, 9000}},
};

/* --- copies --------------------------------------------------------------------------------------------------------- */

enum { PARTS = 3 };
typedef struct { /* the parts of the file that are compared after each step; all of it is, after the last */
    uint64_t from[PARTS], to[PARTS], bytes;
} parts;

typedef struct {
    unsigned char *bytes; /* of the parts, one after another */
    uint64_t hash, step;
} image;

typedef struct { /* of what one deed did */
    unsigned char *first; /* the whole file before it */
    image *images;
    uint32_t n, room;
    uint64_t steps;
} film;

typedef struct {
    uint64_t steps, images, heirs, victims;
} tally;

static bool thorough;

static uint64_t hash_of(const unsigned char *bytes, uint64_t n) {
    uint64_t hash = n, word;
    for (; n >= 8; n -= 8, bytes += 8) {
        memcpy(&word, bytes, 8);
        hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 29;
    }
    return hash;
}

/* The header and the first places; the last place; and all from the head to where a deed may take two more spans. */
static parts parts_of(const nl_config *config, const unsigned char *file) {
    const nl_layout l = nl_layout_of(config);
    uint64_t members = l.sizes[NL_REGION_HEADER], head = members + l.sizes[NL_REGION_MEMBERS], chunks = l.file_bytes - l.sizes[NL_REGION_CHUNKS];
    uint64_t spans = ((const nl_head *)(const void *)(file + head))->chunks.used + 3;
    parts p = {{0, head - sizeof(nl_member), head}, {members + PLACES_SEEN * sizeof(nl_member), head, chunks + (spans << NL_SPAN_SHIFT)}, l.file_bytes};
    if (p.to[2] > p.bytes) p.to[2] = p.bytes;
    return p;
}

static uint64_t parts_bytes(const parts *p) {
    uint64_t sum = 0;
    for (int i = 0; i < PARTS; i++) sum += p->to[i] - p->from[i];
    return sum;
}

static bool parts_same(const parts *p, const unsigned char *file, const unsigned char *kept) {
    for (int i = 0; i < PARTS; kept += p->to[i] - p->from[i], i++)
        if (memcmp(file + p->from[i], kept, p->to[i] - p->from[i]) != 0) return false;
    return true;
}

static void parts_keep(const parts *p, const unsigned char *file, unsigned char *kept) {
    for (int i = 0; i < PARTS; kept += p->to[i] - p->from[i], i++) memcpy(kept, file + p->from[i], p->to[i] - p->from[i]);
}

/* Makes `file` what the copy is of. */
static void parts_restore(const parts *p, const film *f, uint32_t copy, unsigned char *file) {
    const unsigned char *kept = f->images[copy].bytes;
    memcpy(file, f->first, p->bytes);
    for (int i = 0; i < PARTS; kept += p->to[i] - p->from[i], i++) memcpy(file + p->from[i], kept, p->to[i] - p->from[i]);
}

static void film_add(film *f, const parts *p, const unsigned char *kept) {
    if (f->n == f->room) f->images = model_memory(f->images, (f->room = 2 * f->room + 64) * sizeof(image));
    image *i = &f->images[f->n++];
    i->bytes = model_memory(NULL, parts_bytes(p));
    memcpy(i->bytes, kept, parts_bytes(p));
    i->hash = hash_of(kept, parts_bytes(p));
    i->step = f->steps;
}

static void film_end(film *f) {
    for (uint32_t i = 0; i < f->n; i++) free(f->images[i].bytes);
    free(f->images);
    free(f->first);
}

static int new_file(uint64_t bytes, unsigned char **mapped) {
    int fd = memfd_create("step", MFD_CLOEXEC);
    void *base = ftruncate(fd, (off_t)bytes) ? MAP_FAILED : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) life_fail("room for a copy", bytes, 0);
    *mapped = (unsigned char *)base;
    return fd;
}

/* Processes that live, at all places from PLACES_SEEN on but the last. Closing what it returns ends them. */
static int seat_others(int fd, uint64_t bytes) {
    char link[32];
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)(bytes + PLACES_SEEN), .l_len = NL_MEMBERS - 1 - PLACES_SEEN};
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int own = open(link, O_RDWR | O_CLOEXEC);
    if (own < 0 || fcntl(own, F_OFD_SETLK, &l) != 0) life_fail("places for others", 0, (uint64_t)errno);
    return own;
}

/* --- the victim ------------------------------------------------------------------------------------------------------ */

static void too_long(int signal) {
    (void)signal;
    life_fail("it does not come to an end", 0, 1);
}

/* Attaches, stops; does it, stops; says whether the answer was right. */
static void victim(int fd, const nl_config *config, life_deed d, uint64_t now_ns, bool unjoined, uint32_t expected, const model_view *view) {
    nl_table t;
    life_result result;
    if (unjoined) life_open(&t, fd, config->on_full);
    else life_attach(&t, fd, config->on_full);
    if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0) _exit(SKIPPED);
    raise(SIGSTOP);
    life_act(&t, config, d, now_ns, &result);
    raise(SIGSTOP);
    life_compare(d, expected, view, &result);
    _exit(0);
}

/* Until it stops. The signal that it stops at; 0: it ended. */
static int wait_for(pid_t pid, int *status) {
    if (waitpid(pid, status, 0) != pid) life_fail("waiting for the victim", 0, (uint64_t)errno);
    return WIFSTOPPED(*status) ? WSTOPSIG(*status) : 0;
}

/* Steps a victim through the deed. The neighbour, if there is one, had a place before it and leaves. */
static film step_through(int fd, unsigned char *file, const nl_config *config, life_deed d, uint64_t now_ns, bool unjoined,
                         nl_table *neighbour, uint32_t expected, const model_view *view, parts *p) {
    film f = {0};
    int status, signal;
    pid_t pid = fork();
    if (pid < 0) life_fail("fork", 0, (uint64_t)errno);
    if (pid == 0) victim(fd, config, d, now_ns, unjoined, expected, view);
    if ((signal = wait_for(pid, &status)) != SIGSTOP) {
        if (!signal && WIFEXITED(status) && WEXITSTATUS(status) == SKIPPED) _exit(SKIPPED);
        life_fail("the victim stops before the deed", SIGSTOP, (uint64_t)signal);
    }
    if (ptrace(PTRACE_SETOPTIONS, pid, NULL, PTRACE_O_EXITKILL) != 0) _exit(SKIPPED);
    if (neighbour) nl_shared_close(neighbour);
    *p = parts_of(config, file);
    unsigned char *kept = model_memory(NULL, parts_bytes(p));
    f.first = model_memory(NULL, p->bytes);
    memcpy(f.first, file, p->bytes);
    parts_keep(p, file, kept);
    film_add(&f, p, kept);
    for (;;) {
        if (ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL) != 0) life_fail("a step", 0, (uint64_t)errno);
        if ((signal = wait_for(pid, &status)) != SIGTRAP) break;
        if (++f.steps > STEPS_MOST) life_fail("the victim gets no further", 0, f.steps);
        if (parts_same(p, file, kept)) continue;
        parts_keep(p, file, kept);
        film_add(&f, p, kept);
    }
    if (signal != SIGSTOP) life_fail("the victim comes to the deed's end", SIGSTOP, (uint64_t)signal);
    unsigned char *last = model_memory(NULL, p->bytes);
    parts_restore(p, &f, f.n - 1, last);
    if (memcmp(last, file, p->bytes) != 0) life_fail("it wrote elsewhere in the file", 0, 1);
    free(last);
    free(kept);
    ptrace(PTRACE_CONT, pid, NULL, NULL);
    if (wait_for(pid, &status) || !WIFEXITED(status) || WEXITSTATUS(status)) life_fail("the victim's answer", 0, (uint64_t)status);
    return f;
}

/* --- what a copy leaves to mend --------------------------------------------------------------------------------------- */

static uint32_t sort_of(const nl_config *config, unsigned char *file) {
    const nl_layout l = nl_layout_of(config);
    nl_table t;
    memset(&t, 0, sizeof t);
    t.memory.base = file;
    nl_table_lay_out(&t, config, l.sizes);
    const nl_head *h = t.head;
    uint32_t owned = 0, lost = 0, segments = 0;
    for (uint64_t i = 0; i < l.segments; i++) segments |= t.segments[i].lock != 0;
    for (uint32_t id = 0; id < h->slab.fresh; id++) {
        const nl_slot *slot = nl_slab_slot(&t.slab, id);
        owned |= nl_meta_owner(slot->meta) != 0;
        lost |= !slot->fingerprint[0] && !nl_bits_has(&t.slab.free, id);
    }
    return segments | (h->slab.lock != 0) << 1 | (h->slab.intent != 0) << 2 | (h->chunks.lock != 0) << 3 | (h->chunks.intent != 0) << 4 |
           owned << 5 | lost << 6;
}

/* --- all of it --------------------------------------------------------------------------------------------------------- */

static void run_deed(const scene *s, int fd, unsigned char *file, const life *before, life_deed d, nl_table *neighbour, int depth,
                     tally *sums);

/* A victim comes to a copy, in a file of its own, and is cut short in turn. */
static void run_mending(const scene *s, const parts *p, const film *f, uint32_t i, const heir_brief *brief, life_deed d, bool neighbour_too,
                        tally *sums) {
    const nl_config *config = &brief->before->config;
    unsigned char *file;
    int fd = new_file(p->bytes, &file), crowd = s->worn ? seat_others(fd, p->bytes) : -1;
    nl_table t;
    life found;
    parts_restore(p, f, i, file);
    life_attach(&t, fd, config->on_full);
    heir_resolve(&t, brief, &found);
    nl_shared_close(&t);
    parts_restore(p, f, i, file);
    if (neighbour_too) life_attach(&t, fd, config->on_full);
    run_deed(s, fd, file, &found, d, neighbour_too ? &t : NULL, 2, sums);
    life_end(&found);
    munmap(file, p->bytes);
    close(fd);
    close(crowd);
}

static void run_deed(const scene *s, int fd, unsigned char *file, const life *before, life_deed d, nl_table *neighbour, int depth,
                     tally *sums) {
    life after;
    life_order order = {{0}, 0};
    model_view view;
    parts p;
    bool sorts[128] = {false};
    char last[sizeof life_detail];
    memcpy(last, life_detail, sizeof last);
    life_copy(&after, before);
    uint32_t expected = life_foresee(&after, d, &view, &order);
    film f = step_through(fd, file, &before->config, d, after.now_ns, s->unjoined && depth == 1, neighbour, expected, &view, &p);
    sums[depth - 1].steps += f.steps;
    sums[depth - 1].victims++;
    unsigned char *stage;
    int stage_fd = new_file(p.bytes, &stage), crowd = s->worn ? seat_others(stage_fd, p.bytes) : -1;
    uint64_t *hashes = model_memory(NULL, f.n * sizeof *hashes);
    uint32_t distinct = 0;
    for (uint32_t i = 0; i < f.n; i++) {
        bool ended = i == f.n - 1;
        uint32_t seen = 0;
        while (seen < distinct && hashes[seen] != f.images[i].hash) seen++;
        if (seen < distinct && !ended) continue;
        hashes[distinct++] = f.images[i].hash;
        heir_brief brief = {before, &after, &order, ended, life_mix(f.images[i].hash)};
        /* Of logs of runs each copy meets each kind of first call (heir.h): what it finds half done is in more places. */
        const uint32_t kinds = depth == 1 && s->limit == RUNS_LIMIT ? 6 : 1;
        for (uint32_t k = 0; k < kinds * (depth == 1 || thorough ? 2 : 1); k++) {
            const uint32_t two = k / kinds;
            bool second = (depth == 1 ? two : i + two) & 1;
            if (kinds > 1) brief.seed = brief.seed / kinds * kinds + k % kinds;
            snprintf(life_detail, sizeof life_detail, "%.60s%scopy %u of %u, step %" PRIu64 ", %s", depth == 1 ? "" : last,
                     depth == 1 ? "" : ", mending it: ", i, f.n, f.images[i].step, second ? "two heirs" : "one heir");
            alarm(60);
            parts_restore(&p, &f, i, stage);
            heir_check(stage_fd, &brief, second);
            sums[depth - 1].heirs++;
        }
        sums[depth - 1].images++;
    }
    for (uint32_t i = 0; i < f.n && depth == 1; i++) {
        const heir_brief brief = {before, &after, &order, i == f.n - 1, life_mix(f.images[i].hash)};
        parts_restore(&p, &f, i, stage);
        uint32_t sort = sort_of(&before->config, stage);
        if (!sort || (sorts[sort] && !thorough)) continue;
        sorts[sort] = true;
        snprintf(life_detail, sizeof life_detail, "copy %u of %u", i, f.n);
        life_deed again = d.verb == LIFE_REGISTER || d.verb == LIFE_LEAVE ? (life_deed){LIFE_CHECK, 7, 1, 0, 0} : d;
        again.ns = 9;
        for (int which = 0; which < 2; which++)
            if (thorough || which == (int)(sort + sort / 2 + sort / 32) % 2)
                run_mending(s, &p, &f, i, &brief, which ? again : (life_deed){LIFE_MEND, 0, 0, 0, 9}, (i + (uint32_t)which) & 1, sums);
    }
    memcpy(life_detail, last, sizeof last);
    free(hashes);
    munmap(stage, p.bytes);
    close(stage_fd);
    close(crowd);
    film_end(&f);
    life_end(&after);
}

/* As if all places' serials had been used up: the first places by processes that died, and left something with the serials that come
 * next; all others by processes that live. */
static void wear_out(const nl_table *t) {
    for (uint32_t place = 1; place < NL_MEMBERS - 1; place++) {
        uint64_t serial = place < PLACES_SEEN ? NL_SERIALS - 1 : 0, state = place > 1 && place < PLACES_SEEN ? NL_MEMBER_DEAD : NL_MEMBER_ALIVE;
        t->us.members[place].word = serial << NL_MEMBER_SHIFT | (serial ? NL_MEMBER_UNCLEAN : 0) | state;
    }
    t->us.members[0].pid = PLACES_SEEN - 1; /* those beyond have nothing to ask about */
    nl_slab_slot(&t->slab, 0)->meta |= 1 << NL_SERIAL_BITS;
    nl_slab_slot(&t->slab, 2)->meta |= 2 << NL_SERIAL_BITS | 1;
    t->segments[0].lock = 2 << NL_SERIAL_BITS;
}

static void run_scene(const scene *s, uint32_t stream, uint64_t stream_ns) {
    const nl_config config = {s->limit, s->window_ns, s->max_keys, s->on_full, {0x736372617463, 0x68}, s->limit, NL_SLIDING_LOG, 0, 0};
    tally sums[2] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
    nl_table neighbour;
    life before;
    life_scene = s->name;
    snprintf(life_detail, sizeof life_detail, "before");
    int fd = life_make(&config);
    uint64_t bytes = nl_shared_bytes(&config);
    unsigned char *file = (unsigned char *)mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (file == MAP_FAILED) life_fail("room for a table", bytes, 0);
    life_attach(&neighbour, fd, s->on_full);
    life_begin(&before, &config, (uint64_t)1 << 40);
    for (uint32_t i = 0; i < stream; i++) life_do(&neighbour, &before, (life_deed){LIFE_CHECK, 0, 1, 0, stream_ns});
    for (const life_deed *d = s->before; d < s->before + DEEDS && d->verb != LIFE_NOTHING; d++)
        for (uint32_t i = 0; i < (d->keys ? d->keys : 1); i++) /* no two at the same instant */
            life_do(&neighbour, &before, (life_deed){d->verb, d->key + i, d->cost, 0, i ? before.model.tick_ns : d->ns});
    int crowd = s->worn ? seat_others(fd, bytes) : -1;
    if (s->worn) wear_out(&neighbour);
    snprintf(life_detail, sizeof life_detail, "stepping");
    alarm(240);
    run_deed(s, fd, file, &before, s->deed, &neighbour, 1, sums);
    alarm(0);
    printf("%s: %" PRIu64 " instructions, %" PRIu64 " distinct copies, %" PRIu64 " heirs", s->name, sums[0].steps, sums[0].images, sums[0].heirs);
    printf("; mending it: %" PRIu64 " victims, %" PRIu64 " instructions, %" PRIu64 " distinct copies, %" PRIu64 " heirs: all whole\n",
           sums[1].victims, sums[1].steps, sums[1].images, sums[1].heirs);
    fflush(stdout);
    life_end(&before);
    munmap(file, bytes);
    close(fd);
    close(crowd);
}

/* --- meters ----------------------------------------------------------------------------------------------------------- */

/* The model counts by the log. What a meter should hold is told by a table that nobody dies at: every copy must be, for each key, the
 * state before or the one after, as far as anybody can see it, and go on as that does. (What else a deed does, to the index and the
 * slab, the scenes above have shown.) */
enum { METER_KEYS = 8, METER_INSTANTS = 4 };

typedef struct {
    const char *name;
    uint32_t algorithm, limit;
    life_deed before[DEEDS];
    life_deed deed;
} meter_scene;

static const meter_scene meter_scenes[] = {
    {"gcra: insert", NL_GCRA, 100, {{LIFE_CHECK, 3, 1, 0, 0}}, {LIFE_CHECK, 1, 7, 0, 9000}},
    {"gcra: accept", NL_GCRA, 100, {{LIFE_CHECK, 0, 30, 3, 0}}, {LIFE_CHECK, 1, 50, 0, SECOND + 7}},
    {"gcra: accept past the limit", NL_GCRA, 7, {{LIFE_CHECK, 0, 7, 3, 0}}, {LIFE_CHECK, 1, 2, 0, 30 * SECOND}},
    {"gcra: accept when the bucket is full again", NL_GCRA, 7, {{LIFE_CHECK, 0, 7, 3, 0}}, {LIFE_CHECK, 1, 2, 0, MINUTE + SECOND}},
    {"fixed-window: accept", NL_FIXED_WINDOW, 9, {{LIFE_CHECK, 0, 2, 3, 0}}, {LIFE_CHECK, 1, 5, 0, 9000}},
    {"fixed-window: accept in a new window", NL_FIXED_WINDOW, 9, {{LIFE_CHECK, 0, 9, 3, 0}}, {LIFE_CHECK, 1, 5, 0, MINUTE + SECOND}},
    {"sliding-counter: accept", NL_SLIDING_COUNTER, 9, {{LIFE_CHECK, 0, 2, 3, 0}}, {LIFE_CHECK, 1, 5, 0, 9000}},
    {"sliding-counter: accept in the next window", NL_SLIDING_COUNTER, 9,
     {{LIFE_CHECK, 0, 4, 3, 0}, {LIFE_CHECK, 1, 3, 0, SECOND}}, {LIFE_CHECK, 1, 2, 0, MINUTE + SECOND}},
};

typedef struct { /* what can be seen of all keys, now and later */
    nl_view views[METER_KEYS][METER_INSTANTS];
} meter_sight;

static void meter_look(nl_table *t, const nl_config *config, uint64_t now_ns, meter_sight *sight) {
    for (uint32_t k = 0; k < METER_KEYS; k++)
        for (uint32_t i = 0; i < METER_INSTANTS; i++)
            nl_peek(t, life_fingerprint(config, k), now_ns + i * 20 * SECOND, 3, NL_WAITING, &sight->views[k][i]);
}

static bool meter_same(const meter_sight *a, const meter_sight *b, uint32_t k) {
    for (uint32_t i = 0; i < METER_INSTANTS; i++)
        if (!nl_view_same(&a->views[k][i], &b->views[k][i])) return false;
    return true;
}

/* Does it in a copy of the file. */
static void meter_foresee(const unsigned char *file, const nl_config *config, life_deed d, uint64_t now_ns, bool does, life_result *r,
                          meter_sight *sight) {
    const uint64_t bytes = nl_shared_bytes(config);
    unsigned char *copy;
    int fd = new_file(bytes, &copy);
    nl_table t;
    memcpy(copy, file, bytes);
    life_attach(&t, fd, config->on_full);
    if (does) life_act(&t, config, d, now_ns, r);
    meter_look(&t, config, now_ns, sight);
    nl_shared_close(&t);
    munmap(copy, bytes);
    close(fd);
}

static void run_meter_scene(const meter_scene *s) {
    const nl_config config = {s->limit, MINUTE, 16, NL_ON_FULL_ALLOW, {0x736372617463, 0x68}, s->limit, s->algorithm, 0, 0};
    const uint64_t bytes = nl_shared_bytes(&config);
    uint64_t now_ns = (uint64_t)1 << 40, heirs = 0;
    nl_table t;
    life_result r, again;
    meter_sight before, after, twice, found;
    parts p;
    unsigned char *file, *stage;
    char message[200];
    life_scene = s->name;
    snprintf(life_detail, sizeof life_detail, "before");
    int fd = life_make(&config), stage_fd = new_file(bytes, &stage);
    if ((file = (unsigned char *)mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) == MAP_FAILED) life_fail("room", bytes, 0);
    life_attach(&t, fd, config.on_full);
    for (const life_deed *d = s->before; d < s->before + DEEDS && d->verb != LIFE_NOTHING; d++) {
        now_ns += d->ns;
        life_act(&t, &config, *d, now_ns, &r);
        LIFE_SAME("outcome", NL_ALLOWED, r.outcome);
    }
    now_ns += s->deed.ns;
    meter_foresee(file, &config, s->deed, now_ns, false, &r, &before);
    meter_foresee(file, &config, s->deed, now_ns, true, &r, &after);
    LIFE_SAME("outcome", NL_ALLOWED, r.outcome);
    if (meter_same(&before, &after, s->deed.key)) life_fail("the deed is seen", 1, 0);
    const model_view view = {.used = r.view.used, .newest = r.view.newest_tick, .oldest = r.view.oldest_tick, .deciding = r.view.deciding_tick};
    snprintf(life_detail, sizeof life_detail, "stepping");
    alarm(240);
    film f = step_through(fd, file, &config, s->deed, now_ns, false, &t, r.outcome, &view, &p);
    for (uint32_t i = 0; i < f.n; i++) {
        for (int changed = 0; changed < 2; changed++) { /* looks first; or counts first, as the next who comes */
            uint32_t orphans;
            snprintf(life_detail, sizeof life_detail, "copy %u of %u, step %" PRIu64, i, f.n, f.images[i].step);
            parts_restore(&p, &f, i, stage);
            meter_foresee(stage, &config, s->deed, now_ns, false, &again, &found);
            const bool is_before = meter_same(&found, &before, s->deed.key), is_after = meter_same(&found, &after, s->deed.key);
            if (!is_before && !is_after) life_fail("neither the state before nor the one after; used", before.views[s->deed.key][0].used, found.views[s->deed.key][0].used);
            if (i == f.n - 1 && !is_after) life_fail("the state after", 1, 0);
            for (uint32_t k = 0; k < METER_KEYS; k++)
                if (k != s->deed.key && !meter_same(&found, &before, k)) life_fail("another key's state", 0, k);
            meter_foresee(is_before ? f.first : file, &config, s->deed, now_ns, true, &again, &twice);
            life_attach(&t, stage_fd, config.on_full);
            if (!changed) LIFE_SAME("a walk that mends all", true, nl_walk_mend(&t));
            life_act(&t, &config, s->deed, now_ns, &r);
            LIFE_SAME("the next one's outcome", again.outcome, r.outcome);
            meter_look(&t, &config, now_ns, &found);
            for (uint32_t k = 0; k < METER_KEYS; k++)
                if (!meter_same(&found, &twice, k)) life_fail("the state after the next one; key", 0, k);
            const char *broken = nl_verify(&t, &orphans, message, sizeof message);
            if (broken) life_fail(broken, 0, 1);
            nl_shared_close(&t);
            heirs++;
        }
    }
    alarm(0);
    printf("%s: %" PRIu64 " instructions, %u distinct copies, %" PRIu64 " heirs; mending it: 0 victims, none: all whole\n", s->name, f.steps, f.n, heirs);
    film_end(&f);
    munmap(file, bytes);
    munmap(stage, bytes);
    close(fd);
    close(stage_fd);
}

int main(int argc, char **argv) {
    const char *only = NULL;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "all")) thorough = true;
        else only = argv[i];
    }
    signal(SIGALRM, too_long);
    uint32_t run = 0;
    for (size_t i = 0; i < sizeof scenes / sizeof scenes[0]; i++)
        if (!only || !strcmp(only, scenes[i].name)) run_scene(&scenes[i], 0, 0), run++;
    for (size_t i = 0; i < sizeof runs_scenes / sizeof runs_scenes[0]; i++) {
        const runs_scene *r = &runs_scenes[i];
        scene s = {r->name, RUNS_LIMIT, MINUTE, 16, NL_ON_FULL_ALLOW, {{0}}, r->deed, false, false};
        memcpy(s.before, r->before, sizeof s.before);
        if (!only || !strcmp(only, r->name)) run_scene(&s, r->stream, r->stream_ns), run++;
    }
    for (size_t i = 0; i < sizeof meter_scenes / sizeof meter_scenes[0]; i++)
        if (!only || !strcmp(only, meter_scenes[i].name)) run_meter_scene(&meter_scenes[i]), run++;
    if (!run) fprintf(stderr, "there is no scene of that name\n");
    return run ? 0 : 2;
}
