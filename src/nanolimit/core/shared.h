/* shared.h: a table in a file that all processes of a machine map. The engine is the same; here is how such a table is laid out
 * and opened, who is at it, and who of them lives. Linux only.
 *
 *   header | members | head | directory | segment headers | buckets | bitmap | slots | spans | sets of spans | chunks | top
 *
 * All of it is there from the start and nothing grows: no segment splits, no page is handed back. What can be half done when a
 * process dies (and how its heirs mend it) stands in lock.h, slab.h, chunk.h and segment.h.
 *
 * Who lives: each process at the table holds a lock (fcntl's OFD locks) on one byte past the file's end, its place. The lock belongs
 * to an open file description that nothing refers to but one page mapped with MADV_DONTFORK: so it goes when the process goes,
 * however it goes, zombie or not, whatever PID namespace it was in; a daemoniser that closes descriptors does not lose it, and a
 * child does not inherit it. (A pid tells less: kill(pid, 0) takes zombies for living.) A child registers anew at its first call.
 *
 * A place's word has a serial, which grows whenever the place is given away; its low 5 bits stand in owner words. So words that a
 * dead process left never read as its successor's, until the 5 bits come round: before that, if any process at that place has
 * died, whoever wants the place walks the table and clears what the dead left.
 */
#ifndef NL_SHARED_H
#define NL_SHARED_H

#include "walk.h"

enum { NL_LAYOUT_VERSION = 3, NL_SHARED_SEGMENT_KEYS = 560, NL_SHARED_KEYS_MOST = 1 << 30 };
enum { NL_NO_PLACE = -1 }; /* 2,046 processes are at the table */
enum { NL_STATE_NEW, NL_STATE_READY, NL_STATE_REPLACED };
#define NL_MAGIC "nanolim"
#define NL_BYTE_ORDER 0x01020304u

typedef struct { /* where and when a file was made */
    unsigned char boot_id[16];
    uint64_t pid_namespace, time_namespace;
    uint64_t created_ns; /* since 1970 */
    uint32_t own_clock;  /* its users bring a clock of their own */
    uint16_t number, quotas; /* which of how many tables of its limiters: one a quota (claim.h) */
} nl_origin;

typedef struct { /* the file's first bytes. In every version: magic and version. */
    char magic[8];
    uint32_t version;
    uint32_t byte_order;
    uint32_t word_bytes, page_bytes;
    uint32_t header_bytes, state; /* state: READY is written last */
    uint64_t file_bytes;
    uint64_t window_ns;
    uint32_t max_keys, layout_limit, typical, algorithm;
    nl_origin origin;
    uint64_t secret[2];           /* as in the head */
    uint32_t max_log, track_top;
    uint64_t digest;              /* of all above but state */
} nl_header;

static inline uint64_t nl_header_digest(const nl_header *header) {
    nl_header copy = *header;
    nl_hash_seed seed = nl_hash_seed_of(0x6c696d69746e616e, 0x6865616465720a);
    copy.state = 0;
    return nl_hash_raw(&seed, &copy, offsetof(nl_header, digest)).lo;
}

/* --- the layout ---------------------------------------------------------------------------------------------------- */

typedef struct {
    uint64_t segments, directory, chunk_bytes, file_bytes;
    uint64_t sizes[NL_REGIONS];
} nl_layout;

/* What the chunks of a log of so many stamps, or runs, take. */
static inline uint64_t nl_layout_log_bytes(const nl_rule *rule, uint64_t stamps) {
    if (rule->algorithm != NL_RUNS) return stamps > rule->shape.inline_stamps ? 4 * nl_power_of_two_above(stamps < 8 ? 8 : stamps) : 8;
    if (stamps < 2) return 16;
    const uint64_t bytes = (uint64_t)1 << (NL_CHUNK_UNIT_SHIFT + nl_runs_class((uint32_t)stamps - 1));
    if (stamps - 1 <= NL_RUNS_IN_ROOT) return bytes;
    return bytes + (((stamps - 1) >> NL_PIECE_SHIFT) + ((stamps - 1) >> NL_INDEX_SHIFT) + 3) * 4 * NL_PIECE_WORDS;
}

/* Segments hold 560 keys on average and 768 at most: more than seven standard deviations. The directory deals hashes out to them, 32
 * entries or more to each, so that none gets over 3 % more than another. Memory for long logs: for the average key, and an eighth. */
static inline nl_layout nl_layout_of(const nl_config *config) {
    nl_layout l;
    nl_rule rule = nl_rule_of(config->limit, config->window_ns, config->algorithm, config->max_log);
    const uint64_t keys = config->max_keys, span = (uint64_t)1 << NL_SPAN_SHIFT;
    l.segments = (keys + NL_SHARED_SEGMENT_KEYS - 1) / NL_SHARED_SEGMENT_KEYS;
    l.directory = l.segments == 1 ? 1 : nl_power_of_two_above(32 * l.segments);
    l.chunk_bytes = 0;
    if (rule.shape.has_chunks) {
        uint64_t bytes = keys * nl_layout_log_bytes(&rule, config->typical);
        l.chunk_bytes = (bytes + bytes / 8 + span - 1) / span * span + (NL_CHUNK_CLASSES + 1) * span;
        if (l.chunk_bytes > (uint64_t)64 << 30) l.chunk_bytes = (uint64_t)64 << 30;
    }
    l.file_bytes = nl_table_measure(config, sizeof(nl_header), NL_MEMBERS, l.segments, l.directory, l.chunk_bytes, nl_page_bytes(),
                                    l.sizes);
    return l;
}

static inline uint64_t nl_shared_bytes(const nl_config *config) { return nl_layout_of(config).file_bytes; }

/* Has a table that was laid out for one limit room for the other? */
static inline bool nl_shared_holds(uint32_t layout_limit, uint32_t limit, uint64_t window_ns, uint32_t algorithm, uint32_t max_log) {
    nl_rule rule = nl_rule_of(layout_limit, window_ns, algorithm, max_log);
    return limit && limit <= nl_rule_most(&rule);
}

/* Has all processes at the table look at what stands of keys besides their logs, from now on. */
static inline void nl_shared_tell_of_policies(nl_table *t) {
    nl_store32(&t->head->policies, NL_FLAG_POLICY);
    nl_fence_full();
    nl_flags_set(t, NL_FLAG_POLICY, true);
    for (uint64_t place = 1; place <= nl_table_places(t); place++) {
        uint32_t *flags = &t->us.members[place].flags, seen = nl_load32(flags);
        while (!nl_cas32(flags, seen, seen | NL_FLAG_POLICY)) seen = nl_load32(flags);
    }
}

NL_ALWAYS_INLINE uint32_t nl_layout_segment(const nl_layout *l, uint64_t i) { return (uint32_t)(i * l->segments / l->directory); }

/* --- a file's life ------------------------------------------------------------------------------------------------- */

/* Makes a table of so many bytes of zeros. Its limit is config's; readers see READY last. */
static inline void nl_shared_format(void *base, const nl_config *config, const nl_origin *origin) {
    nl_layout l = nl_layout_of(config);
    nl_table t;
    memset(&t, 0, sizeof t);
    t.memory.base = (unsigned char *)base;
    nl_table_lay_out(&t, config, l.sizes);
    nl_header *header = (nl_header *)base;
    memset(header, 0, sizeof *header);
    memcpy(header->magic, NL_MAGIC, sizeof header->magic);
    header->version = NL_LAYOUT_VERSION;
    header->byte_order = NL_BYTE_ORDER;
    header->word_bytes = sizeof(void *);
    header->page_bytes = (uint32_t)nl_page_bytes();
    header->header_bytes = sizeof *header;
    header->file_bytes = l.file_bytes;
    header->window_ns = t.head->window_ns = config->window_ns;
    header->max_keys = config->max_keys;
    header->layout_limit = t.head->limit = config->limit;
    header->typical = config->typical;
    header->algorithm = config->algorithm;
    header->max_log = config->max_log;
    header->track_top = config->track_top;
    header->origin = *origin;
    for (int i = 0; i < 2; i++) header->secret[i] = t.head->secret[i] = config->secret[i];
    t.head->mask = (uint32_t)(l.directory - 1);
    t.head->segments = (uint32_t)l.segments;
    for (uint64_t i = 0; i < l.directory; i++) t.directory[i] = nl_layout_segment(&l, i);
    header->digest = nl_header_digest(header);
    nl_store32_release(&header->state, NL_STATE_READY);
}

#if defined(__linux__)
#define NL_HAS_SHARED 1
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#ifndef F_OFD_GETLK /* of the kernel's interface since 3.15; behind _GNU_SOURCE in some headers */
#define F_OFD_GETLK 36
#define F_OFD_SETLK 37
#endif

struct nl_shared {
    nl_table *table;
    struct nl_shared *next;  /* all of this process, for a child of a fork */
    int fd;                  /* a description of the file that holds no lock: to ask with, and to make others from */
    char *path;              /* or NULL: to find the file again, should somebody have closed fd */
    dev_t device;
    ino_t inode;
    void *lock_page;         /* the mapping that keeps our lock's description open */
    uint32_t own;            /* our owner id, or 0 */
};

static struct {
    struct nl_shared *first;
    nl_lock lock;
    nl_party us;
} nl_all_shared = {NULL, 0, {&nl_process.generation, NULL, 0, NULL, NULL}};

static void nl_shared_in_child(void) {
    nl_all_shared.lock = 0;
    for (struct nl_shared *s = nl_all_shared.first; s; s = s->next) {
        s->own = 0;
        s->lock_page = NULL; /* not mapped here */
        s->table->own_flags = *s->table->flags | NL_FLAG_CHILD; /* the place's are the parent's */
        s->table->flags = &s->table->own_flags;
    }
}

static inline bool nl_shared_is_ours(const struct nl_shared *s, int fd) {
    struct stat st;
    return fd >= 0 && fstat(fd, &st) == 0 && st.st_dev == s->device && st.st_ino == s->inode;
}

/* A new description of the file, or -1 and errno. */
static inline int nl_shared_reopen(const struct nl_shared *s) {
    char link[32];
    int fd = -1;
    if (nl_shared_is_ours(s, s->fd)) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", s->fd);
        fd = open(link, O_RDWR | O_CLOEXEC);
    }
    if (fd < 0 && s->path) {
        fd = open(s->path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
        if (fd >= 0 && !nl_shared_is_ours(s, fd)) {
            close(fd);
            fd = -1;
            errno = ENOENT; /* another file has its name by now */
        }
    }
    return fd;
}

static inline bool nl_place_lock(const struct nl_shared *s, int fd, uint32_t place, short type) {
    struct flock l = {.l_type = type, .l_whence = SEEK_SET, .l_start = (off_t)(s->table->memory.bytes + place), .l_len = 1};
    return fcntl(fd, F_OFD_SETLK, &l) == 0;
}

/* Is a place's byte locked? Where that can't be told it counts as locked: a live owner is never robbed. */
static inline bool nl_place_is_locked(int fd, uint64_t file_bytes, uint32_t place) {
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)(file_bytes + place), .l_len = 1};
    return fcntl(fd, F_OFD_GETLK, &l) != 0 || l.l_type != F_UNLCK;
}

/* Marks the owner's place dead if it is. A waiter's question, so within locks; it opens a descriptor only if ours was closed. */
static void nl_shared_ask(const nl_party *us, uint32_t owner) {
    const struct nl_shared *s = us->shared;
    uint32_t place = owner >> NL_SERIAL_BITS & (NL_MEMBERS - 1);
    uint64_t word = nl_load64_acquire(&us->members[place].word);
    if (nl_owner_is_dead(us, owner)) return;
    int fd = nl_shared_is_ours(s, s->fd) ? s->fd : nl_shared_reopen(s);
    if (fd >= 0 && !nl_place_is_locked(fd, s->table->memory.bytes, place))
        nl_cas64(&us->members[place].word, word, (word & ~(uint64_t)NL_MEMBER_STATE) | NL_MEMBER_DEAD);
    if (fd >= 0 && fd != s->fd) close(fd);
}

/* --- registering --------------------------------------------------------------------------------------------------- */

NL_ALWAYS_INLINE uint32_t nl_owner_of(uint32_t place, uint64_t word) {
    return place << NL_SERIAL_BITS | (uint32_t)(word >> NL_MEMBER_SHIFT & (NL_SERIALS - 1));
}
NL_ALWAYS_INLINE bool nl_place_is_worn(uint64_t word) { /* the next serial could be taken for a dead one's */
    bool died = (word & NL_MEMBER_UNCLEAN) || (word & NL_MEMBER_STATE) == NL_MEMBER_ALIVE || (word & NL_MEMBER_STATE) == NL_MEMBER_DEAD;
    return died && (word >> NL_MEMBER_SHIFT & (NL_SERIALS - 1)) == NL_SERIALS - 1;
}

/* Takes a place whose byte one has locked. */
static inline void nl_place_take(struct nl_shared *s, uint32_t place) {
    nl_member *member = &s->table->us.members[place];
    uint64_t word = nl_load64(&member->word), state = word & NL_MEMBER_STATE;
    uint64_t unclean = state == NL_MEMBER_FREE ? word & NL_MEMBER_UNCLEAN : NL_MEMBER_UNCLEAN;
    word = ((word >> NL_MEMBER_SHIFT) + 1) << NL_MEMBER_SHIFT | unclean | NL_MEMBER_ALIVE;
    uint64_t *highest = &s->table->us.members[0].pid, seen = nl_load64(highest);
    while (place < NL_MEMBERS - 1 && seen < place && !nl_cas64(highest, seen, place)) seen = nl_load64(highest);
    nl_store64(&member->pid, (uint64_t)getpid());
    nl_store64_release(&member->word, word);
    s->own = nl_owner_of(place, word);
    NL_POINT(registered);
}

/* Looks for a place that nobody alive has, from the front, and locks its byte. 0: there is none that is not worn. Places that are said
 * to be alive are tried too, for their process may have died unseen; beyond the first 64 only if there is no other. */
static inline uint32_t nl_place_find(struct nl_shared *s, int fd) {
    const nl_member *members = s->table->us.members;
    for (uint32_t round = 0; round < 2; round++) {
        for (uint32_t place = 1; place < NL_MEMBERS - 1; place++) {
            uint64_t word = nl_load64(&members[place].word);
            if (nl_place_is_worn(word) || (!round && place > 64 && (word & NL_MEMBER_STATE) == NL_MEMBER_ALIVE)) continue;
            if (!nl_place_lock(s, fd, place, F_WRLCK)) continue;
            if (!nl_place_is_worn(nl_load64(&members[place].word))) return place;
            nl_place_lock(s, fd, place, F_UNLCK);
        }
    }
    return 0;
}

/* All places that are not in use are worn: clears what their dead left, as the owner of the last place, which is for that alone. */
static inline void nl_places_renew(struct nl_shared *s, int fd) {
    nl_table *t = s->table;
    uint64_t held[NL_MEMBERS / 64] = {0};
    if (!nl_place_lock(s, fd, NL_MEMBERS - 1, F_WRLCK)) return; /* somebody is at it */
    for (uint32_t place = 1; place < NL_MEMBERS - 1; place++) {
        if (!nl_place_is_worn(nl_load64(&t->us.members[place].word)) || !nl_place_lock(s, fd, place, F_WRLCK)) continue;
        held[place / 64] |= (uint64_t)1 << place % 64;
        uint64_t word = nl_load64(&t->us.members[place].word);
        nl_store64_release(&t->us.members[place].word, (word & ~(uint64_t)NL_MEMBER_STATE) | NL_MEMBER_DEAD);
    }
    nl_place_take(s, NL_MEMBERS - 1);
    nl_walk_mend(t);
    s->own = 0;
    for (uint32_t place = 1; place < NL_MEMBERS; place++) {
        bool last = place == NL_MEMBERS - 1;
        if (!last && !(held[place / 64] >> place % 64 & 1)) continue;
        uint64_t word = nl_load64(&t->us.members[place].word) & ~(uint64_t)(NL_MEMBER_STATE | NL_MEMBER_UNCLEAN);
        nl_store64_release(&t->us.members[place].word, word | NL_MEMBER_FREE);
        nl_place_lock(s, fd, place, F_UNLCK);
    }
}

/* Makes this process one of the table's, once after opening and once after each fork. 0, or an errno, or NL_NO_PLACE. */
static inline int nl_shared_register(nl_table *t) {
    struct nl_shared *s = t->us.shared;
    int error = 0;
    nl_gate_enter_now(); /* a child must not inherit the descriptor that is open in between */
    nl_lock_take(&nl_all_shared.us, &nl_all_shared.lock, NL_WAITING);
    int fd = s->own ? -1 : nl_shared_reopen(s);
    if (!s->own && fd < 0) error = errno;
    if (fd >= 0) {
        uint32_t place = nl_place_find(s, fd);
        if (!place) {
            nl_places_renew(s, fd);
            place = nl_place_find(s, fd);
        }
        NL_POINT(register_locked);
        void *page = place ? mmap(NULL, t->page_bytes, PROT_READ, MAP_SHARED, fd, 0) : MAP_FAILED;
        if (!place) error = NL_NO_PLACE;
        else if (page == MAP_FAILED) error = errno;
        else if (madvise(page, t->page_bytes, MADV_DONTFORK) != 0) error = errno, munmap(page, t->page_bytes);
        if (!error) {
            s->lock_page = page;
            nl_place_take(s, place);
            t->stripe = t->us.members[place].counters;
            nl_store32(&t->us.members[place].flags, nl_load32(&t->own_flags));
            t->flags = &t->us.members[place].flags;
            nl_fence_full(); /* our flags, then our look at the policies; who tells of policies does it the other way round */
            nl_flags_set(t, nl_load32(&t->own_flags) | nl_load32(&t->head->policies), true);
        }
        close(fd); /* the mapping holds the description */
    }
    if (!error) nl_flags_set(t, NL_FLAG_CHILD, false);
    nl_unlock(&nl_all_shared.lock);
    nl_gate_leave_now();
    return error;
}

/* Signs off and unmaps, when the last call has left. */
static inline void nl_shared_close(nl_table *t) {
    struct nl_shared *s = t->us.shared;
    if (!s) return;
    nl_gate_enter_now();
    nl_lock_take(&nl_all_shared.us, &nl_all_shared.lock, NL_WAITING);
    for (struct nl_shared **at = &nl_all_shared.first; *at; at = &(*at)->next)
        if (*at == s) {
            *at = s->next;
            break;
        }
    nl_unlock(&nl_all_shared.lock);
    if (s->own) {
        uint64_t *word = &t->us.members[s->own >> NL_SERIAL_BITS].word;
        nl_store64_release(word, (nl_load64(word) & ~(uint64_t)NL_MEMBER_STATE) | NL_MEMBER_FREE);
    }
    if (s->lock_page) munmap(s->lock_page, t->page_bytes);
    if (t->memory.base) munmap(t->memory.base - t->page_bytes, (size_t)t->memory.bytes + 2 * t->page_bytes);
    if (nl_shared_is_ours(s, s->fd)) close(s->fd);
    nl_gate_leave_now();
    free(s->path);
    free(s);
    t->us.shared = NULL;
    t->memory.base = NULL;
}

/* --- opening -------------------------------------------------------------------------------------------------------- */

/* Does a header speak of a table that we can use? NULL, or what is wrong. */
static inline const char *nl_header_check(const nl_header *h, uint64_t bytes, nl_config *config) {
    if (memcmp(h->magic, NL_MAGIC, sizeof h->magic) != 0) return "it does not begin as a table does";
    if (h->version != NL_LAYOUT_VERSION || h->byte_order != NL_BYTE_ORDER || h->word_bytes != sizeof(void *) ||
        h->page_bytes != nl_page_bytes() || h->header_bytes != sizeof *h)
        return "its layout is another one";
    if (nl_header_digest(h) != h->digest) return "its header is damaged";
    if (!nl_load32(&((nl_header *)(uintptr_t)h)->state)) return "it was never finished";
    if (h->algorithm >= NL_ALGORITHMS || !h->layout_limit || h->layout_limit > nl_limit_most(h->algorithm) || h->window_ns < 1000 || h->window_ns > (uint64_t)1 << 60 || !h->max_keys ||
        h->max_keys > NL_SHARED_KEYS_MOST || h->track_top > NL_TOP_KEYS_MOST || !h->typical || h->typical > h->layout_limit ||
        (h->max_log && (h->algorithm || h->max_log < NL_MAX_LOG_LEAST || h->max_log > h->layout_limit)))
        return "its configuration is out of range";
    nl_config c = {h->layout_limit, h->window_ns, h->max_keys, 0, {h->secret[0], h->secret[1]}, h->typical, h->algorithm, h->max_log,
                   h->track_top};
    *config = c;
    if (h->file_bytes != bytes || nl_shared_bytes(config) != bytes) return "its size is not what its configuration takes";
    return NULL;
}

/* The same of what lies behind the header, as far as a wrong word there could lead outside the mapping. */
static inline const char *nl_shared_check(const nl_table *t, const nl_config *config) {
    const nl_layout l = nl_layout_of(config);
    const nl_head *h = t->head;
    uint32_t limit = nl_load32(&h->limit);
    if (h->window_ns != config->window_ns || h->secret[0] != config->secret[0] || h->secret[1] != config->secret[1])
        return "its head is damaged: it is not what the header says";
    if (!nl_shared_holds(config->limit, limit, config->window_ns, config->algorithm, config->max_log))
        return "its head is damaged: the limit";
    if (h->mask != l.directory - 1 || h->segments != l.segments) return "its head is damaged: the index's size";
    if (h->slab.fresh > config->max_keys || h->slab.freed > h->slab.fresh) return "its head is damaged: the number of keys";
    if (h->chunks.used && h->chunks.used >= l.chunk_bytes >> NL_SPAN_SHIFT) return "its head is damaged: the number of spans";
    for (uint64_t i = 0; i < l.directory; i++)
        if (t->directory[i] != nl_layout_segment(&l, i)) return "its directory is damaged";
    for (uint64_t i = 0; i < l.segments; i++)
        if (t->segments[i].depth || t->segments[i].prefix) return "a segment of its index is damaged";
    return NULL;
}

/* Maps the table in fd, of which it keeps a copy. NULL, or what is wrong (errno, if it is not 0, says more); then nothing is held.
 * Afterwards t is for nl_shared_register; or, if only to be read, for what writes nothing. */
static inline const char *nl_shared_open(nl_table *t, int fd, const char *path, uint32_t on_full, uint64_t stall_ns, bool read_only) {
    static const uint32_t nobody = 0;
    const int protection = read_only ? PROT_READ : PROT_READ | PROT_WRITE;
    const size_t page = nl_page_bytes();
    struct stat st;
    nl_header header;
    nl_config config;
    const char *wrong = NULL;
    memset(t, 0, sizeof *t);
    t->page_bytes = page;
    errno = 0;
    if (fstat(fd, &st) != 0) return "its size is not known";
    if (pread(fd, &header, sizeof header, 0) != (ssize_t)sizeof header) return errno ? "it can't be read" : "it is shorter than a header";
    if ((wrong = nl_header_check(&header, (uint64_t)st.st_size, &config))) return wrong;
    const nl_layout l = nl_layout_of(&config);
    /* A page that nobody may touch before it and behind it. */
    unsigned char *base = (unsigned char *)mmap(NULL, l.file_bytes + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return "there is no address space for it";
    struct nl_shared *s = (struct nl_shared *)calloc(1, sizeof *s);
    if (!s || (s->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3)) < 0 || (path && !(s->path = strdup(path)))) wrong = "there is no room for one more";
    else if (mmap(base + page, l.file_bytes, protection, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) wrong = "it can't be mapped";
    if (wrong) {
        if (s && s->fd > 0) close(s->fd);
        if (s) free(s->path);
        free(s);
        munmap(base, l.file_bytes + 2 * page);
        return wrong;
    }
    t->memory.base = base + page;
    t->memory.bytes = l.file_bytes;
    t->rule = nl_rule_of(config.limit, config.window_ns, config.algorithm, config.max_log);
    t->own_flags = t->rule.algorithm ? NL_FLAG_ALGORITHM : 0;
    t->flags = &t->own_flags;
    t->on_full = on_full;
    t->clock = NL_CLOCK_SHARED;
    t->number = header.origin.number;
    nl_table_lay_out(t, &config, l.sizes);
    nl_region *whole[] = {&t->directory_region, &t->segment_region, &t->bucket_region, &t->slab.bitmap,
                          &t->slab.slots,       &t->chunks.spans,   &t->chunks.sets_region, &t->chunks.chunks};
    for (int i = 0; i < 8; i++) whole[i]->committed = whole[i]->bytes;
    s->table = t;
    s->device = st.st_dev;
    s->inode = st.st_ino;
    t->us.me = read_only ? &nobody : &s->own;
    t->us.stall_ns = stall_ns;
    t->us.ask = nl_shared_ask;
    t->us.shared = s;
    if (!(wrong = nl_shared_check(t, &config))) nl_table_learn(t, t->head);
    if (!wrong && !read_only) {
        nl_gate_enter_now();
        nl_lock_take(&nl_all_shared.us, &nl_all_shared.lock, NL_WAITING);
        nl_process.in_child = nl_shared_in_child;
        s->next = nl_all_shared.first;
        nl_all_shared.first = s;
        nl_unlock(&nl_all_shared.lock);
        nl_gate_leave_now();
    }
    if (wrong) nl_shared_close(t), errno = 0;
    return wrong;
}
#else
#define NL_HAS_SHARED 0
static inline const char *nl_shared_open(nl_table *t, int fd, const char *path, uint32_t on_full, uint64_t stall_ns, bool read_only) {
    (void)t, (void)fd, (void)path, (void)on_full, (void)stall_ns, (void)read_only;
    return "shared tables are for Linux";
}
static inline void nl_shared_close(nl_table *t) { (void)t; }
static inline int nl_shared_register(nl_table *t) { (void)t; return 0; }
static inline bool nl_place_is_locked(int fd, uint64_t file_bytes, uint32_t place) { return (void)fd, (void)file_bytes, (void)place, false; }
#endif

#endif
