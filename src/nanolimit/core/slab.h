/* slab.h: the array of slots, which never move, and which of them are free.
 *
 * Slots are used from the front: `fresh` is the first that never was. A slot that is freed later goes into a set (bits.h), in a
 * bitmap outside the slab (nothing that matters lives in a page that may be handed back). Pages go back in blocks of 1,024
 * slots, which are a whole number of pages up to 16 KiB.
 *
 * A slot is
 *   in the index   its fingerprint leads to it
 *   free           in the set, all zeros. (Who came too late for its last key may own it for a moment, and sees that it is free.)
 *   in hand        neither; with no stamps; somebody owns it
 *   an orphan      as in hand, but its owner died or could not wait to give it back: the hand (table.h) claims it as it passes
 *
 * Giving and taking say in `intent` what they are about to do; who inherits the lock ends it with the slot free.
 * A free slot is all zeros, and so is a page that was handed back.
 */
#ifndef NL_SLAB_H
#define NL_SLAB_H

#include "bits.h"
#include "memory.h"
#include "slot.h"

enum { NL_BLOCK_SHIFT = 10, NL_BLOCK_SLOTS = 1 << NL_BLOCK_SHIFT, NL_BLOCK_WORDS = NL_BLOCK_SLOTS / 64 };
/* What taking may say in place of a slot's number. */
#define NL_NO_SLOT 0xffffffffu
#define NL_SLOT_UNCOMMITTED 0xfffffffeu
#define NL_SLOT_BUSY 0xfffffffdu    /* somebody looks at it who came too late for its last key: again */
#define NL_SLOT_STALLED 0xfffffffcu /* no patience left for the lock */

typedef struct {
    nl_lock lock;
    uint32_t fresh;   /* slots below it are in use or have a bit */
    uint32_t freed;   /* bits set */
    uint32_t dropped; /* blocks whose pages were handed back */
    uint32_t hand;    /* where the next insert looks for an idle slot to reuse */
    uint32_t forgotten; /* how often live keys were about to be forgotten: then the next line does not hold */
    uint64_t full_until; /* no slot falls idle before this tick: what the hand found when it last went round */
    uint64_t intent;  /* 1 : 1 | giving : 1 | slot : 30 | freed before : 32, or 0 */
} nl_slab_state;

typedef struct {
    nl_slab_state *state;
    nl_region slots;
    nl_region bitmap;   /* a bit a block that was dropped, then the set of free slots */
    uint32_t most;      /* slots that there may be: max_keys */
    uint64_t *dropped;  /* a bit a block that was handed back */
    nl_bits free;
} nl_slab;

static inline uint64_t nl_slab_blocks(uint64_t most) { return (most + NL_BLOCK_SLOTS - 1) >> NL_BLOCK_SHIFT; }

/* The set holds whole blocks, so that a block can be taken out and put back as words. */
static inline uint64_t nl_slab_bitmap_bytes(uint64_t most) {
    uint64_t blocks = nl_slab_blocks(most);
    return 8 * (nl_words_for(blocks) + nl_bits_words(blocks << NL_BLOCK_SHIFT));
}

static inline void nl_slab_lay_out(nl_slab *slab, uint32_t most) {
    uint64_t blocks = nl_slab_blocks(most);
    slab->most = most;
    slab->dropped = (uint64_t *)(void *)slab->bitmap.base;
    nl_bits_lay_out(&slab->free, slab->dropped + nl_words_for(blocks), blocks << NL_BLOCK_SHIFT);
}

NL_ALWAYS_INLINE nl_slot *nl_slab_slot(const nl_slab *slab, uint32_t id) { return &((nl_slot *)(void *)slab->slots.base)[id]; }
NL_ALWAYS_INLINE uint32_t nl_slab_id(const nl_slab *slab, const nl_slot *slot) { return (uint32_t)(slot - nl_slab_slot(slab, 0)); }

/* How much of the two regions the slots below `end` need. */
NL_ALWAYS_INLINE uint64_t nl_slab_slot_bytes(uint64_t end) { return end * sizeof(nl_slot); }
NL_ALWAYS_INLINE uint64_t nl_slab_bit_bytes(const nl_slab *slab, uint64_t end) {
    return (uint64_t)((unsigned char *)slab->free.levels[0] - slab->bitmap.base) + (nl_slab_blocks(end) << NL_BLOCK_SHIFT) / 8;
}

/* Room for the next slots. With nothing held. False: there is none. */
static inline bool nl_slab_commit(nl_slab *slab, size_t page_bytes) {
    uint64_t end = (uint64_t)nl_load32(&slab->state->fresh) + 32;
    if (end > slab->most) end = slab->most;
    return nl_region_commit(&slab->slots, nl_slab_slot_bytes(end), page_bytes) &&
           nl_region_commit(&slab->bitmap, nl_slab_bit_bytes(slab, end), page_bytes);
}

NL_ALWAYS_INLINE void nl_slab_intend(nl_slab *slab, bool giving, uint32_t id) {
    nl_store64_release(&slab->state->intent, (uint64_t)1 << 63 | (uint64_t)giving << 62 | (uint64_t)id << 32 | slab->state->freed);
    nl_fence_release();
}

/* Ends what a dead owner of the lock had begun. */
static NL_COLD void nl_slab_mend(const nl_party *us, nl_slab *slab) {
    uint64_t intent = nl_load64(&slab->state->intent), meta;
    uint32_t id = (uint32_t)(intent >> 32) & 0x3fffffff;
    NL_POINT(repair_began);
    if (intent && id < slab->most) {
        nl_slot *slot = nl_slab_slot(slab, id);
        if (nl_slot_try(us, slot, &meta)) nl_slot_commit(slot, 0);
        nl_bits_add(&slab->free, id);
        nl_store32(&slab->state->freed, (uint32_t)intent + (uint32_t)(intent >> 62 & 1));
    }
    nl_store64_release(&slab->state->intent, 0);
    NL_POINT(repair_done);
}

static inline bool nl_slab_lock(const nl_party *us, nl_slab *slab, nl_patience patience) {
    nl_taking taking = nl_lock_take(us, &slab->state->lock, patience);
    if (NL_UNLIKELY(taking == NL_INHERITED)) nl_slab_mend(us, slab);
    return taking != NL_BUSY;
}

/* A slot in hand, with nothing in it; or NL_NO_SLOT, NL_SLOT_UNCOMMITTED (nl_slab_commit, and again), STALLED, or BUSY: *busy
 * is its meta word. */
static inline uint32_t nl_slab_take(const nl_party *us, nl_slab *slab, nl_patience patience, uint64_t *busy) {
    nl_slab_state *state = slab->state;
    uint32_t id = NL_NO_SLOT, fresh;
    uint64_t meta;
    if (!nl_slab_lock(us, slab, patience)) return NL_SLOT_STALLED;
    uint64_t first = state->freed ? nl_bits_first(&slab->free) : NL_NO_BIT;
    if (first < slab->most) {
        id = (uint32_t)first;
        if (nl_slot_try(us, nl_slab_slot(slab, id), &meta)) {
            nl_slab_intend(slab, false, id);
            NL_POINT(slab_take_intent);
            nl_bits_remove(&slab->free, id);
            NL_POINT(slab_take_cleared);
            nl_store32(&state->freed, state->freed - 1);
            uint64_t *word = &slab->dropped[id >> (NL_BLOCK_SHIFT + 6)], bit = (uint64_t)1 << (id >> NL_BLOCK_SHIFT & 63);
            if (*word & bit) *word &= ~bit, nl_store32(&state->dropped, state->dropped - 1);
            nl_store64_release(&state->intent, 0);
        } else {
            *busy = nl_load64(&nl_slab_slot(slab, id)->meta);
            id = NL_SLOT_BUSY; /* somebody is at it still: a slot that never was will do as well */
        }
    }
    if (id >= NL_SLOT_STALLED && (fresh = state->fresh) < slab->most) {
        uint64_t end = (uint64_t)fresh + 1;
        if (nl_slab_slot_bytes(end) > nl_load64(&slab->slots.committed) ||
            nl_slab_bit_bytes(slab, end) > nl_load64(&slab->bitmap.committed)) {
            id = NL_SLOT_UNCOMMITTED;
        } else if (nl_slot_try(us, nl_slab_slot(slab, fresh), &meta)) {
            NL_POINT(slab_fresh_owned);
            id = fresh;
            nl_store32_release(&state->fresh, fresh + 1);
        } else {
            id = NL_SLOT_BUSY; /* only a damaged file has such */
        }
    }
    nl_unlock(&state->lock);
    NL_POINT(slab_taken);
    return id;
}

/* Back from whoever has them in hand; they must be all zeros. Who can't have the lock leaves orphans. */
static inline void nl_slab_give(const nl_party *us, nl_slab *slab, const uint32_t *ids, uint32_t n) {
    bool locked = nl_slab_lock(us, slab, NL_BRIEFLY);
    for (uint32_t i = 0; i < n; i++) {
        nl_slot *slot = nl_slab_slot(slab, ids[i]);
        if (locked) {
            nl_slab_intend(slab, true, ids[i]);
            NL_POINT(slab_give_intent);
        }
        nl_slot_commit(slot, 0);
        if (!locked) continue;
        nl_bits_add(&slab->free, ids[i]);
        NL_POINT(slab_give_set);
        nl_store32(&slab->state->freed, slab->state->freed + 1);
        nl_store64_release(&slab->state->intent, 0);
    }
    if (locked) nl_unlock(&slab->state->lock);
}

/* Before a live key is forgotten: should its slot become an orphan, the hand must look for it. */
static inline void nl_slab_forget(nl_slab *slab) {
    nl_add32(&slab->state->forgotten, 1);
    nl_fence_full(); /* either we overwrite what the hand says, or it sees that we come */
    nl_store64(&slab->state->full_until, 0);
}

static inline void nl_slab_is_full_until(nl_slab *slab, uint64_t tick, uint32_t forgotten) {
    nl_store64(&slab->state->full_until, tick);
    nl_fence_full();
    if (nl_load32(&slab->state->forgotten) != forgotten) nl_store64(&slab->state->full_until, 0);
}

/* Takes an orphan in hand. */
static inline bool nl_slab_claim(const nl_party *us, nl_slab *slab, uint32_t id) {
    nl_slot *slot = nl_slab_slot(slab, id);
    uint64_t meta = nl_load64(&slot->meta);
    uint32_t owner = nl_meta_owner(meta);
    if (nl_bits_has(&slab->free, id) || (owner && !nl_owner_is_dead(us, owner))) return false;
    if (!nl_slab_lock(us, slab, NL_QUICKLY)) return false;
    bool claimed = !nl_bits_has(&slab->free, id) && !nl_load64(&slot->fingerprint[0]) && nl_slot_try(us, slot, &meta);
    if (claimed && nl_load64(&slot->fingerprint[0])) { /* it was in hand, and is in the index by now */
        nl_slot_commit(slot, meta);
        claimed = false;
    }
    nl_unlock(&slab->state->lock);
    if (claimed) NL_POINT(orphan_claimed);
    return claimed;
}

static inline bool nl_slab_block_is_free(const uint64_t *bits) {
    uint64_t all = ~(uint64_t)0;
    for (int i = 0; i < NL_BLOCK_WORDS; i++) all &= nl_load64(&bits[i]);
    return !~all;
}

/* Takes all slots of a block out of the free ones, or puts them back. Under the lock. */
static inline void nl_slab_set_block(nl_slab *slab, uint32_t block, bool free) {
    uint64_t first = (uint64_t)block << (NL_BLOCK_SHIFT - 6);
    for (int i = 0; i < NL_BLOCK_WORDS; i++) nl_bits_put(&slab->free, first + (unsigned)i, free ? ~(uint64_t)0 : 0);
    nl_store32(&slab->state->freed, slab->state->freed + (free ? NL_BLOCK_SLOTS : (uint32_t)-NL_BLOCK_SLOTS));
}

/* Hands the pages of blocks that are wholly free back to the system. A block's slots are taken meanwhile, so that nobody
 * else gets one; the system is called with no lock held. A private table's only. */
static inline void nl_slab_drop(const nl_party *us, nl_slab *slab, size_t page_bytes) {
    nl_slab_state *state = slab->state;
    const size_t block_bytes = sizeof(nl_slot) << NL_BLOCK_SHIFT;
    if (block_bytes % page_bytes) return; /* blocks share pages */
    uint32_t blocks = nl_load32(&state->fresh) >> NL_BLOCK_SHIFT;
    for (uint32_t block = 0; block < blocks; block++) {
        uint64_t *bits = &slab->free.levels[0][(uint64_t)block << (NL_BLOCK_SHIFT - 6)], mark = (uint64_t)1 << (block & 63);
        if (!nl_slab_block_is_free(bits)) continue; /* a glance without the lock; it counts only with it */
        nl_gate_enter(us);
        nl_slab_lock(us, slab, NL_WAITING);
        bool drop = nl_slab_block_is_free(bits) && !(slab->dropped[block >> 6] & mark);
        if (drop) nl_slab_set_block(slab, block, false);
        nl_unlock(&state->lock);
        if (drop) {
            nl_drop(slab->slots.base + block * (uint64_t)block_bytes, block_bytes);
            nl_slab_lock(us, slab, NL_WAITING);
            nl_slab_set_block(slab, block, true);
            slab->dropped[block >> 6] |= mark;
            nl_store32(&state->dropped, state->dropped + 1);
            nl_unlock(&state->lock);
        }
        nl_gate_leave(us);
    }
}

#endif
