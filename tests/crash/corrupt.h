/* corrupt.h: bytes become a damaged table, and what is done with it. A table that has seen some life gets some of its words changed,
 * anywhere in the file; then it is opened, and if that does not refuse it, used by every verb, closed, and opened again. Any
 * answer will do. What will not: a crash, a hang, an access outside the mapping.
 *
 * For that the table is mapped in the middle of a terabyte that nobody may touch: an index of 32 bits that is followed unchecked
 * faults, whatever it counts. corrupt.c makes the bytes up, or takes the fuzzer's.
 */
#ifndef NL_TEST_CORRUPT_H
#define NL_TEST_CORRUPT_H

#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

static struct {
    unsigned char *base;
    size_t bytes, used;
} desert;

enum { DESERT_SHIFT = 40, DESERT_BEFORE_SHIFT = 38 };

static void *desert_mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t offset) {
    if (at || protection != PROT_NONE || desert.used) return mmap(at, bytes, protection, flags, fd, offset);
    if (!desert.base) {
        desert.bytes = (size_t)1 << DESERT_SHIFT;
        desert.base = (unsigned char *)mmap(NULL, desert.bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (desert.base == MAP_FAILED) abort();
    }
    desert.used = bytes;
    return desert.base + ((size_t)1 << DESERT_BEFORE_SHIFT);
}

static int desert_munmap(void *at, size_t bytes) {
    if (!desert.used || at != desert.base + ((size_t)1 << DESERT_BEFORE_SHIFT)) return munmap(at, bytes);
    desert.used = 0;
    return mmap(at, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == at ? 0 : -1;
}
#define mmap desert_mmap
#define munmap desert_munmap
#include "life.h"
#undef mmap
#undef munmap

static struct {
    uint64_t runs, mutations, refused, used, deeds;
} corrupt_sums;

typedef struct {
    const uint8_t *at, *end;
} corrupt_input;

static uint64_t corrupt_bytes(corrupt_input *in, int n) {
    uint64_t value = 0;
    for (int i = 0; i < n; i++) value |= (uint64_t)(in->at < in->end ? *in->at++ : 0) << 8 * i;
    return value;
}

/* --- tables that have seen some life -------------------------------------------------------------------------------- */

static const nl_config corrupt_configs[] = {
    {6, 60000000000, 16, NL_ON_FULL_ALLOW, {1, 2}, 6, 0, 0, 3},  {40, 60000000000, 16, NL_ON_FULL_EVICT, {3, 4}, 40, 0, 0, 0},
    {2047, 1000000000, 5, NL_ON_FULL_DENY, {5, 6}, 2047, 0, 0, 1},  {100, 60000000000, 600, NL_ON_FULL_EVICT, {7, 8}, 10, 0, 0, 20},
    {3, 1000000, 1100, NL_ON_FULL_ALLOW, {9, 10}, 3, 0, 0, 100},      {7, 86400000000000, 1, NL_ON_FULL_EVICT, {11, 12}, 7, 0, 0, 0},
    {300, 60000000000, 16, NL_ON_FULL_ALLOW, {13, 14}, 6, NL_GCRA, 0, 5},
    {6, 1000000, 16, NL_ON_FULL_EVICT, {15, 16}, 6, NL_FIXED_WINDOW, 0, 0},
    {9, 60000000000, 16, NL_ON_FULL_DENY, {17, 18}, 9, NL_SLIDING_COUNTER, 0, 2},
    {5000, 60000000000, 16, NL_ON_FULL_ALLOW, {19, 20}, 40, 0, 0, 0},
    {3000, 60000000000, 16, NL_ON_FULL_EVICT, {21, 22}, 20, 0, 16, 0},
};
enum { CORRUPT_CONFIGS = sizeof corrupt_configs / sizeof corrupt_configs[0] };
static struct {
    unsigned char *bytes;
    uint64_t n, now_ns;
} corrupt_lives[CORRUPT_CONFIGS];

static void corrupt_deny(nl_table *t, uint32_t key, uint64_t now_ns) {
    uint64_t text[NL_TOP_TEXT / 8] = {key};
    nl_fingerprint fp = nl_hash_word(&t->seeds[NL_KEY_INT], key);
    if (t->top.base && !nl_top_count(&t->top, fp, now_ns)) nl_top_add(&t->top, &t->us, fp, now_ns, key, text);
}

static void corrupt_live(uint32_t which) {
    const nl_config *config = &corrupt_configs[which];
    uint64_t seed = which, bytes = nl_shared_bytes(config), now_ns = (uint64_t)1 << 40;
    int fd = life_make(config);
    nl_table t;
    life_result r;
    life_attach(&t, fd, config->on_full);
    for (uint32_t i = 0; i < 3 * config->max_keys + 60; i++) {
        uint64_t chance = life_random(&seed);
        now_ns += config->window_ns / 64 / config->max_keys + 1;
        uint32_t key = (uint32_t)(chance >> 8) % (config->max_keys + 2), cost = 1 + (uint32_t)(chance >> 32) % config->limit;
        life_deed d = {i % 16 == 9 ? LIFE_RESET : LIFE_CHECK, key, cost, 0, 0};
        if (chance % 3) d.cost = 1 + d.cost / 8;
        life_act(&t, config, d, now_ns, &r);
        if (i & 1) corrupt_deny(&t, key, now_ns);
    }
    corrupt_lives[which].now_ns = now_ns;
    corrupt_lives[which].n = bytes;
    corrupt_lives[which].bytes = model_memory(NULL, bytes);
    memcpy(corrupt_lives[which].bytes, t.memory.base, bytes); /* its only member is gone without having left */
    nl_shared_close(&t);
    close(fd);
}

/* --- damage ---------------------------------------------------------------------------------------------------------- */

/* Values that words of a table may have, and should not have here. */
static uint64_t corrupt_value(corrupt_input *in, const nl_config *config) {
    const uint64_t telling[] = {0, 1, 2, 0x7fffffff, 0x80000000, 0xffffffff, ~(uint64_t)0, (uint64_t)1 << 63, config->max_keys, config->max_keys - 1,
                                config->limit, 0x21, 0x22, 0x41, 0xffff, (uint64_t)3 << 62 | 5, (uint64_t)1 << 63 | (uint64_t)3 << 32 | 7,
                                0x10000000, 0x80000200, (uint64_t)1 << 33 | 0x400, 64, 768, (uint64_t)1 << 32, 0x3fffffff};
    uint64_t which = corrupt_bytes(in, 1);
    return which < 128 ? telling[which % (sizeof telling / sizeof telling[0])] : corrupt_bytes(in, which < 192 ? 2 : 8);
}

static void corrupt_once(corrupt_input *in, const nl_config *config, unsigned char *file) {
    static const uint8_t regions[] = {NL_REGION_HEADER, NL_REGION_MEMBERS, NL_REGION_MEMBERS, NL_REGION_HEAD, NL_REGION_HEAD, NL_REGION_HEAD,
                                      NL_REGION_DIRECTORY, NL_REGION_SEGMENTS, NL_REGION_BUCKETS, NL_REGION_BUCKETS, NL_REGION_BITMAP,
                                      NL_REGION_SLOTS, NL_REGION_SLOTS, NL_REGION_SLOTS, NL_REGION_SPANS, NL_REGION_SETS, NL_REGION_CHUNKS, NL_REGION_TOP,
                                      NL_REGION_TOP};
    const nl_layout l = nl_layout_of(config);
    const uint64_t lively[NL_REGIONS] = {[NL_REGION_HEADER] = sizeof(nl_header), [NL_REGION_MEMBERS] = 4 * sizeof(nl_member),
                                         [NL_REGION_HEAD] = offsetof(nl_head, counters) + 64, [NL_REGION_SLOTS] = config->max_keys * sizeof(nl_slot),
                                         [NL_REGION_SEGMENTS] = l.segments * sizeof(nl_segment), [NL_REGION_SPANS] = 8 * sizeof(nl_span)};
    uint32_t region = regions[corrupt_bytes(in, 1) % sizeof regions], kind = (uint32_t)corrupt_bytes(in, 1);
    uint64_t at = 0, n = lively[region] && kind < 224 && lively[region] < l.sizes[region] ? lively[region] : l.sizes[region];
    for (uint32_t i = 0; i < region; i++) at += l.sizes[i];
    uint64_t offset = corrupt_bytes(in, 3), word;
    if (n < 16) return; /* this table has no such region */
    static const uint8_t sizes[] = {8, 4, 2, 1};
    uint32_t size = sizes[kind & 3];
    unsigned char *place = file + at + offset % (n / size) * size;
    memcpy(&word, place, size == 8 ? 8 : size);
    if (size < 8) word &= ((uint64_t)1 << 8 * size) - 1;
    switch (kind >> 2 & 3) {
    case 0: word = corrupt_value(in, config); break;
    case 1: word ^= (uint64_t)1 << corrupt_bytes(in, 1) % (8 * size); break;
    case 2: word += (uint64_t)(int64_t)(int8_t)corrupt_bytes(in, 1); break;
    case 3: memmove(&word, file + at + corrupt_bytes(in, 3) % (n / size) * size, size); break; /* what stands elsewhere */
    }
    if (region == NL_REGION_SLOTS && kind & 16) { /* selector, head and count, as they may not be */
        const nl_shape shape = nl_rule_of(config->limit, config->window_ns, config->algorithm, config->max_log).shape;
        place = file + at + offset % config->max_keys * sizeof(nl_slot) + offsetof(nl_slot, meta);
        size = 8;
        memcpy(&word, place, size);
        uint64_t fields = (((uint64_t)1 << shape.epoch_shift) - 1) & ~(uint64_t)NL_OWNER_MASK;
        word = (word & ~fields) | (corrupt_bytes(in, 5) << NL_SELECTOR_SHIFT & fields);
        if (kind & 32) word &= ~((uint64_t)shape.field_mask << shape.count_shift); /* none counts, wherever it begins */
    }
    memcpy(place, &word, size);
    corrupt_sums.mutations++;
}

/* --- use ------------------------------------------------------------------------------------------------------------- */

static void corrupt_use(corrupt_input *in, int fd, const nl_config *config, uint64_t now_ns) {
    static const life_verb verbs[] = {LIFE_CHECK, LIFE_CHECK, LIFE_CHECK, LIFE_PEEK, LIFE_RESET, LIFE_BATCH, LIFE_EVICT, LIFE_CLEAR, LIFE_MEND};
    nl_table t;
    life_result r;
    for (int opened = 0; opened < 2; opened++) {
        const char *wrong = nl_shared_open(&t, fd, NULL, (uint32_t)corrupt_bytes(in, 1) % 3, 3000000, false);
        if (wrong) {
            corrupt_sums.refused += !opened;
            return;
        }
        corrupt_sums.used += !opened;
        if (!nl_shared_register(&t)) {
            for (int i = 0; i < 40 && (i < 12 || in->at < in->end); i++) {
                uint64_t what = corrupt_bytes(in, 1), key = corrupt_bytes(in, 1), cost = corrupt_bytes(in, 1), passes = corrupt_bytes(in, 1);
                uint32_t limit = nl_load32(&t.head->limit);
                if (passes > 200) now_ns += config->window_ns / 200 * (passes - 200) * (passes & 1 ? 9 : 1);
                life_deed d = {verbs[(what ? what : (uint64_t)i * 5) % 9], (uint32_t)(key ? key : (uint64_t)i * 7) % (config->max_keys + 3),
                               1 + (uint32_t)(cost & 1 ? 0 : cost) % (limit ? limit : 1), 1 + (uint32_t)what % NL_GROUP, 0};
                if (d.verb != LIFE_BATCH) d.keys = 1;
                life_act(&t, config, d, now_ns, &r);
                corrupt_deny(&t, d.key, now_ns);
                corrupt_sums.deeds++;
            }
            nl_walk_count(&t, now_ns);
            for (uint32_t what = 0; what < NL_COUNTS; what++) nl_table_count(&t, what);
            nl_table_log_bytes(&t);
        }
        nl_shared_close(&t);
    }
}

/* As whoever asks for the most denied does. */
static void corrupt_look_at_top(const nl_table *t) {
    nl_top_entry entry;
    for (uint64_t epoch = 0; t->top.base && epoch < NL_TOP_PANES; epoch++)
        for (uint32_t id = 0; id < t->top.keys; id++) nl_top_read(&t->top, nl_top_pane_of(&t->top, epoch), id, &entry);
}

/* As `nanolimit inspect` does. */
static void corrupt_look(int fd, uint64_t now_ns) {
    nl_table t;
    if (nl_shared_open(&t, fd, NULL, 0, 0, true)) return;
    nl_walk_count(&t, now_ns);
    nl_table_keys(&t);
    corrupt_look_at_top(&t);
    for (uint32_t what = 0; what < NL_COUNTS; what++) nl_table_count(&t, what);
    for (uint64_t place = 1; place <= nl_table_places(&t); place++) nl_place_is_locked(fd, t.memory.bytes, (uint32_t)place);
    nl_shared_close(&t);
}

static void corrupt_run(const uint8_t *data, size_t size) {
    corrupt_input in = {data, data + size};
    uint32_t which = (uint32_t)corrupt_bytes(&in, 1) % CORRUPT_CONFIGS, flags = (uint32_t)corrupt_bytes(&in, 1);
    uint32_t mutations = 1 + (uint32_t)corrupt_bytes(&in, 1) % 24;
    if (!corrupt_lives[which].bytes) corrupt_live(which);
    const nl_config *config = &corrupt_configs[which];
    uint64_t bytes = corrupt_lives[which].n;
    int fd = memfd_create("corrupt", MFD_CLOEXEC);
    unsigned char *file = ftruncate(fd, (off_t)bytes) ? MAP_FAILED : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (file == MAP_FAILED) abort();
    memcpy(file, corrupt_lives[which].bytes, bytes);
    for (uint32_t i = 0; i < mutations; i++) corrupt_once(&in, config, file);
    nl_header *header = (nl_header *)(void *)file;
    if (flags & 3) header->digest = nl_header_digest(header); /* else it is refused for its header, if that was hit */
    munmap(file, bytes);
    if ((flags & 15) == 12 && ftruncate(fd, (off_t)(bytes * (flags >> 4) / 16))) abort();
    if (flags & 4) corrupt_look(fd, corrupt_lives[which].now_ns);
    corrupt_use(&in, fd, config, corrupt_lives[which].now_ns);
    close(fd);
    corrupt_sums.runs++;
}

#endif
