/* slab.h: the array of slots, which never move, and which of them are free.
 *
 * Slots are used from the front: `fresh` is the first that never was. A slot that is freed later gets a bit, in a bitmap
 * outside the slab (nothing that matters lives in a page that may be handed back), in blocks of 1,024 slots, which are
 * a whole number of pages up to 16 KiB. Two levels of summary bits find a free one in a few steps: a bit a block that
 * has one, a bit a word of those.
 *
 * A free slot is all zeros, and so is a page that was handed back.
 */
#ifndef NL_SLAB_H
#define NL_SLAB_H

#include "memory.h"
#include "slot.h"

enum { NL_BLOCK_SHIFT = 10, NL_BLOCK_SLOTS = 1 << NL_BLOCK_SHIFT, NL_BLOCK_WORDS = NL_BLOCK_SLOTS / 64 };
#define NL_NO_SLOT 0xffffffffu
#define NL_SLOT_UNCOMMITTED 0xfffffffeu

typedef struct {
    nl_lock lock;
    uint32_t fresh;   /* slots below it are in use or have a bit */
    uint32_t freed;   /* bits set */
    uint32_t dropped; /* blocks whose pages were handed back */
    uint32_t hand;    /* where the next insert looks for an idle slot to reuse */
    uint64_t full_until; /* no slot falls idle before this tick: what the hand found when it last went round */
} nl_slab_state;

typedef struct {
    nl_slab_state *state;
    nl_region slots;
    nl_region bitmap;   /* the summaries, a bit a block that was dropped, then the free bits */
    uint32_t most;      /* slots that there may be: max_keys */
    uint64_t *blocks;   /* a bit a block with a free slot */
    uint64_t *groups;   /* a bit a word of `blocks` that is not 0 */
    uint64_t *dropped;  /* a bit a block that was handed back */
    uint32_t group_words;
} nl_slab;

static inline uint64_t nl_words_for(uint64_t bits) { return (bits + 63) / 64; }

static inline uint64_t nl_slab_bitmap_bytes(uint64_t most) {
    uint64_t blocks = (most + NL_BLOCK_SLOTS - 1) >> NL_BLOCK_SHIFT, words = nl_words_for(blocks);
    return 8 * (2 * words + nl_words_for(words) + blocks * NL_BLOCK_WORDS);
}

/* The summaries come first in the bitmap's region: they are small, and committed at once; the free bits follow the slots. */
static inline void nl_slab_lay_out(nl_slab *slab, uint32_t most) {
    uint64_t blocks = ((uint64_t)most + NL_BLOCK_SLOTS - 1) >> NL_BLOCK_SHIFT, words = nl_words_for(blocks);
    slab->most = most;
    slab->blocks = (uint64_t *)(void *)slab->bitmap.base;
    slab->dropped = slab->blocks + words;
    slab->groups = slab->dropped + words;
    slab->group_words = (uint32_t)nl_words_for(words);
}

NL_ALWAYS_INLINE nl_slot *nl_slab_slot(const nl_slab *slab, uint32_t id) { return &((nl_slot *)(void *)slab->slots.base)[id]; }

NL_ALWAYS_INLINE uint64_t *nl_slab_free_word(const nl_slab *slab, uint32_t id) {
    return slab->groups + slab->group_words + (id >> 6);
}

/* How much of the two regions the slots below `end` need. */
NL_ALWAYS_INLINE uint64_t nl_slab_slot_bytes(uint64_t end) { return end * sizeof(nl_slot); }
NL_ALWAYS_INLINE uint64_t nl_slab_bit_bytes(const nl_slab *slab, uint64_t end) {
    uint64_t block_end = (end + NL_BLOCK_SLOTS - 1) >> NL_BLOCK_SHIFT << NL_BLOCK_SHIFT;
    return (uint64_t)((unsigned char *)nl_slab_free_word(slab, 0) - slab->bitmap.base) + block_end / 8;
}

/* Room for the next slots. With nothing held. False: there is none. */
static inline bool nl_slab_commit(nl_slab *slab, size_t page_bytes) {
    uint64_t end = (uint64_t)nl_load32(&slab->state->fresh) + 32;
    if (end > slab->most) end = slab->most;
    return nl_region_commit(&slab->slots, nl_slab_slot_bytes(end), page_bytes) &&
           nl_region_commit(&slab->bitmap, nl_slab_bit_bytes(slab, end), page_bytes);
}

static inline void nl_slab_set_free(nl_slab *slab, uint32_t id) {
    uint32_t block = id >> NL_BLOCK_SHIFT;
    uint64_t *word = nl_slab_free_word(slab, id);
    nl_store64(word, *word | (uint64_t)1 << (id & 63));
    slab->blocks[block >> 6] |= (uint64_t)1 << (block & 63);
    slab->groups[block >> 12] |= (uint64_t)1 << (block >> 6 & 63);
    nl_store32(&slab->state->freed, slab->state->freed + 1);
}

static inline void nl_slab_clear_free(nl_slab *slab, uint32_t id) {
    uint32_t block = id >> NL_BLOCK_SHIFT;
    uint64_t any = 0, *first = nl_slab_free_word(slab, block << NL_BLOCK_SHIFT);
    uint64_t *word = nl_slab_free_word(slab, id);
    nl_store64(word, *word & ~((uint64_t)1 << (id & 63)));
    for (int i = 0; i < NL_BLOCK_WORDS; i++) any |= first[i];
    if (!any && !(slab->blocks[block >> 6] &= ~((uint64_t)1 << (block & 63))))
        slab->groups[block >> 12] &= ~((uint64_t)1 << (block >> 6 & 63));
    nl_store32(&slab->state->freed, slab->state->freed - 1);
}

/* A slot that nobody else has, all zeros; or NL_NO_SLOT, or NL_SLOT_UNCOMMITTED (nl_slab_commit, and again). */
static inline uint32_t nl_slab_take(nl_slab *slab) {
    nl_slab_state *state = slab->state;
    uint32_t id = NL_NO_SLOT;
    nl_lock_wait(&state->lock);
    if (state->freed) {
        uint32_t group = 0;
        while (!slab->groups[group]) group++; /* a word stands for 4 million slots */
        uint32_t word = group << 6 | nl_lowest_bit64(slab->groups[group]);
        uint32_t block = word << 6 | nl_lowest_bit64(slab->blocks[word]);
        uint64_t *bits = nl_slab_free_word(slab, block << NL_BLOCK_SHIFT);
        uint32_t i = 0;
        while (!bits[i]) i++;
        id = block << NL_BLOCK_SHIFT | i << 6 | nl_lowest_bit64(bits[i]);
        nl_slab_clear_free(slab, id);
        uint64_t bit = (uint64_t)1 << (block & 63);
        if (slab->dropped[block >> 6] & bit) slab->dropped[block >> 6] &= ~bit, nl_store32(&state->dropped, state->dropped - 1);
    } else if (state->fresh < slab->most) {
        uint64_t end = (uint64_t)state->fresh + 1;
        if (nl_slab_slot_bytes(end) > nl_load64(&slab->slots.committed) ||
            nl_slab_bit_bytes(slab, end) > nl_load64(&slab->bitmap.committed)) {
            id = NL_SLOT_UNCOMMITTED;
        } else {
            id = state->fresh;
            nl_store32_release(&state->fresh, id + 1);
        }
    }
    nl_unlock(&state->lock);
    return id;
}

/* Back from whoever has them to itself; they must be all zeros. */
static inline void nl_slab_give(nl_slab *slab, const uint32_t *ids, uint32_t n) {
    nl_lock_wait(&slab->state->lock);
    for (uint32_t i = 0; i < n; i++) nl_slab_set_free(slab, ids[i]);
    nl_unlock(&slab->state->lock);
}

static inline bool nl_slab_block_is_free(const uint64_t *bits) {
    uint64_t all = ~(uint64_t)0;
    for (int i = 0; i < NL_BLOCK_WORDS; i++) all &= nl_load64(&bits[i]);
    return !~all;
}

/* Takes all slots of a block out of the free ones, or puts them back. Under the lock. */
static inline void nl_slab_set_block(nl_slab *slab, uint32_t block, bool free) {
    uint64_t mark = (uint64_t)1 << (block & 63), *word = &slab->blocks[block >> 6];
    uint64_t group_mark = (uint64_t)1 << (block >> 6 & 63), *group = &slab->groups[block >> 12];
    uint64_t *bits = nl_slab_free_word(slab, block << NL_BLOCK_SHIFT);
    for (int i = 0; i < NL_BLOCK_WORDS; i++) nl_store64(&bits[i], free ? ~(uint64_t)0 : 0);
    *word = free ? *word | mark : *word & ~mark;
    *group = *word ? *group | group_mark : *group & ~group_mark;
    nl_store32(&slab->state->freed, slab->state->freed + (free ? NL_BLOCK_SLOTS : (uint32_t)-NL_BLOCK_SLOTS));
}

/* Hands the pages of blocks that are wholly free back to the system. A block's slots are taken meanwhile, so that nobody
 * else gets one; the system is called with no lock held. */
static inline void nl_slab_drop(nl_slab *slab, size_t page_bytes) {
    nl_slab_state *state = slab->state;
    const size_t block_bytes = sizeof(nl_slot) << NL_BLOCK_SHIFT;
    if (block_bytes % page_bytes) return; /* blocks share pages */
    uint32_t blocks = nl_load32(&state->fresh) >> NL_BLOCK_SHIFT;
    for (uint32_t block = 0; block < blocks; block++) {
        uint64_t *bits = nl_slab_free_word(slab, block << NL_BLOCK_SHIFT), mark = (uint64_t)1 << (block & 63);
        if (!nl_slab_block_is_free(bits)) continue; /* a glance without the lock; it counts only with it */
        nl_gate_enter();
        nl_lock_wait(&state->lock);
        bool drop = nl_slab_block_is_free(bits) && !(slab->dropped[block >> 6] & mark);
        if (drop) nl_slab_set_block(slab, block, false);
        nl_unlock(&state->lock);
        if (drop) {
            nl_drop(slab->slots.base + block * (uint64_t)block_bytes, block_bytes);
            nl_lock_wait(&state->lock);
            nl_slab_set_block(slab, block, true);
            slab->dropped[block >> 6] |= mark;
            nl_store32(&state->dropped, state->dropped + 1);
            nl_unlock(&state->lock);
        }
        nl_gate_leave();
    }
}

#endif
