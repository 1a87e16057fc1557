/* top.h: the keys that are denied most, and their text, in a memory of fixed size.
 *
 * Space-Saving (Metwally, Agrawal and El Abbadi, "Efficient computation of frequent and top-k elements in data streams", 2005): there
 * is an entry for each of so many keys. A denial of a key that has one is counted there. A newcomer gets a free entry, or the one
 * with the fewest denials, m, and begins with m + 1, of which m may be others': its error. So no count is too low, none is too high by
 * more than its error, and no key without an entry was denied more often than the least of those that have one.
 *
 * What is old must go. The time is cut into panes of two minutes, each with a sketch of its own; the newest five count, and a pane is
 * emptied when its turn comes again. Sums over panes keep what is said above ("Mergeable summaries", Agarwal et al., 2012).
 *
 *   pane:  head | entries | chains (next of each entry) | heap: entries, and their counts when last looked at | chains' heads
 *
 * A key that has an entry costs one look and one compare-and-swap, with no lock. The count shares its word with the entry's turn, which
 * changes whenever another key gets the entry, so a count never lands on the wrong key. The heap learns late of counts that grew
 * without it: they only grow, so its root is right as soon as what it says of the root is true. Newcomers take the pane's lock, for
 * a moment; one that finds it taken is counted as missed, and waits for nobody.
 *
 * Whoever inherits the lock (lock.h) makes chains and heap anew, from the entries; one whose turn is odd was being given away.
 */
#ifndef NL_TOP_H
#define NL_TOP_H

#include "hash.h"
#include "lock.h"

enum { NL_TOP_PANES = 5, NL_TOP_TEXT = 128, NL_TOP_KEYS_MOST = 1000, NL_TOP_TRIES = 4 };
#define NL_TOP_PANE_NS 120000000000u
#define NL_TOP_TURN ((uint64_t)1 << 32)

typedef struct {
    nl_fingerprint fp;
    uint64_t word;    /* turn : 32 | denials : 32 */
    uint64_t last_ns; /* when it was denied last */
    uint32_t error;
    uint32_t form;    /* of the text: what its bytes are (the seam knows) : 16 | how many : 16 */
    uint64_t text[NL_TOP_TEXT / 8];
} nl_top_entry;

typedef struct {
    uint64_t epoch;  /* which two minutes, from 1; 0: it is being emptied */
    uint64_t missed; /* denials that are nobody's */
    nl_lock lock;
    uint32_t used;   /* entries, from the front */
    uint64_t unused[5];
} nl_top_pane;

typedef struct { /* a process's view */
    unsigned char *base; /* NULL: nobody wants to know. A line with the newest epoch, then the panes */
    uint32_t keys;       /* entries of a pane */
    uint32_t chains;     /* a power of two */
} nl_top;

static inline uint32_t nl_top_chains(uint32_t keys) {
    uint32_t chains = 1;
    while (chains < 2 * keys) chains <<= 1;
    return chains;
}
static inline uint64_t nl_top_pane_bytes(uint32_t keys) {
    return (sizeof(nl_top_pane) + keys * (sizeof(nl_top_entry) + 3 * 4) + nl_top_chains(keys) * 4 + 63) / 64 * 64;
}
/* What so many keys take; 0 for none. Zeros are a valid empty one. */
static inline uint64_t nl_top_bytes(uint32_t keys) { return keys ? 64 + NL_TOP_PANES * nl_top_pane_bytes(keys) : 0; }

static inline nl_top nl_top_at(void *base, uint32_t keys) {
    nl_top top = {(unsigned char *)base, keys, nl_top_chains(keys)};
    return top;
}

NL_ALWAYS_INLINE nl_top_pane *nl_top_pane_of(const nl_top *top, uint64_t epoch) {
    return (nl_top_pane *)(void *)(top->base + 64 + epoch % NL_TOP_PANES * nl_top_pane_bytes(top->keys));
}
NL_ALWAYS_INLINE nl_top_entry *nl_top_entries(nl_top_pane *pane) { return (nl_top_entry *)(void *)(pane + 1); }
NL_ALWAYS_INLINE uint32_t *nl_top_next(const nl_top *top, nl_top_pane *pane) {
    return (uint32_t *)(void *)(nl_top_entries(pane) + top->keys);
}
NL_ALWAYS_INLINE uint32_t *nl_top_heap(const nl_top *top, nl_top_pane *pane) { return nl_top_next(top, pane) + top->keys; }
NL_ALWAYS_INLINE uint32_t *nl_top_heap_counts(const nl_top *top, nl_top_pane *pane) { return nl_top_next(top, pane) + 2 * top->keys; }
NL_ALWAYS_INLINE uint32_t *nl_top_chain(const nl_top *top, nl_top_pane *pane, nl_fingerprint fp) {
    return nl_top_next(top, pane) + 3 * top->keys + (fp.hi & (top->chains - 1)); /* the index has used the low word */
}

/* The pane of a time; of the newest that was seen, should a clock go back. */
NL_ALWAYS_INLINE uint64_t nl_top_epoch(const nl_top *top, uint64_t now_ns) {
    uint64_t *newest = (uint64_t *)(void *)top->base, seen = nl_load64(newest), epoch = now_ns / NL_TOP_PANE_NS + 1;
    while (NL_UNLIKELY(epoch > seen)) {
        if (nl_cas64(newest, seen, epoch)) return epoch;
        seen = nl_load64(newest);
    }
    return seen;
}

/* Counts a denial of a key that has an entry in the pane of this epoch. False: it has none, or is losing it. */
NL_ALWAYS_INLINE bool nl_top_count_in(const nl_top *top, nl_top_pane *pane, nl_fingerprint fp, uint64_t now_ns) {
    uint32_t id = nl_load32(nl_top_chain(top, pane, fp));
    for (uint32_t step = 0; id && id <= top->keys && step < top->keys; step++) {
        nl_top_entry *entry = nl_top_entries(pane) + (id - 1);
        uint64_t word = nl_load64_acquire(&entry->word); /* first: then the fingerprint is not older than the turn */
        if (nl_load64(&entry->fp.lo) == fp.lo && nl_load64(&entry->fp.hi) == fp.hi) {
            const uint64_t turn = word >> 32;
            for (; !(turn & 1) && word >> 32 == turn; word = nl_load64(&entry->word)) {
                if ((uint32_t)word != UINT32_MAX && !nl_cas64(&entry->word, word, word + 1)) continue;
                nl_store64(&entry->last_ns, now_ns);
                return true;
            }
            return false;
        }
        id = nl_load32(nl_top_next(top, pane) + (id - 1));
    }
    return false;
}

NL_ALWAYS_INLINE bool nl_top_count(const nl_top *top, nl_fingerprint fp, uint64_t now_ns) {
    const uint64_t epoch = nl_top_epoch(top, now_ns);
    nl_top_pane *pane = nl_top_pane_of(top, epoch);
    return nl_load64_acquire(&pane->epoch) == epoch && nl_top_count_in(top, pane, fp, now_ns);
}

/* --- under the pane's lock ------------------------------------------------------------------------------------------ */

/* The heap's place i has a count that may be too high for it. */
static inline void nl_top_sink(const nl_top *top, nl_top_pane *pane, uint32_t i) {
    uint32_t *heap = nl_top_heap(top, pane), *counts = nl_top_heap_counts(top, pane);
    const uint32_t n = pane->used, id = heap[i], count = counts[i];
    for (;;) {
        uint32_t child = 2 * i + 1;
        if (child >= n) break;
        if (child + 1 < n && counts[child + 1] < counts[child]) child++;
        if (counts[child] >= count) break;
        heap[i] = heap[child];
        counts[i] = counts[child];
        i = child;
    }
    heap[i] = id;
    counts[i] = count;
}

static inline void nl_top_link(const nl_top *top, nl_top_pane *pane, uint32_t id) {
    uint32_t *chain = nl_top_chain(top, pane, nl_top_entries(pane)[id].fp);
    nl_store32(nl_top_next(top, pane) + id, nl_load32(chain));
    nl_store32_release(chain, id + 1);
}

static inline void nl_top_unlink(const nl_top *top, nl_top_pane *pane, uint32_t id) {
    uint32_t *at = nl_top_chain(top, pane, nl_top_entries(pane)[id].fp);
    for (uint32_t step = 0; step < top->keys && *at && *at <= top->keys; step++) {
        uint32_t *next = nl_top_next(top, pane) + (*at - 1);
        if (*at == id + 1) {
            nl_store32(at, *next);
            return;
        }
        at = next;
    }
}

static inline void nl_top_unchain_all(const nl_top *top, nl_top_pane *pane) {
    uint32_t *chains = nl_top_next(top, pane) + 3 * top->keys;
    for (uint32_t i = 0; i < top->chains; i++) nl_store32(chains + i, 0);
}

/* What a dead owner left: chains and heap are made of the entries. */
static NL_COLD void nl_top_repair(const nl_top *top, nl_top_pane *pane) {
    if (pane->used > top->keys) nl_store32(&pane->used, top->keys);
    nl_top_unchain_all(top, pane);
    for (uint32_t id = 0; id < pane->used; id++) {
        nl_top_entry *entry = nl_top_entries(pane) + id;
        uint64_t word = nl_load64(&entry->word);
        if (word & NL_TOP_TURN) { /* it is nobody's: with no denials, the first to be given away */
            nl_store64(&entry->fp.lo, 0);
            nl_store64(&entry->fp.hi, id);
            nl_store32(&entry->error, 0);
            nl_store64_release(&entry->word, ((word >> 32) + 1) << 32);
        }
        nl_top_link(top, pane, id);
        nl_top_heap(top, pane)[id] = id;
        nl_top_heap_counts(top, pane)[id] = (uint32_t)nl_load64(&entry->word);
    }
    for (uint32_t i = pane->used / 2; i-- > 0;) nl_top_sink(top, pane, i);
}

/* missed: as it was before the lock was taken. What is missed since then is missed in the new epoch. */
static inline void nl_top_empty(const nl_top *top, nl_top_pane *pane, uint64_t epoch, uint64_t missed) {
    nl_store64(&pane->epoch, 0);
    nl_fence_release();
    nl_top_unchain_all(top, pane);
    NL_POINT(top_emptied);
    nl_store32(&pane->used, 0);
    const uint64_t known = nl_load64(&pane->missed); /* less than it was, if another has emptied it meanwhile */
    nl_add64(&pane->missed, 0 - (missed < known ? missed : known));
    nl_store64_release(&pane->epoch, epoch);
}

/* The entry with the fewest denials, its turn made odd; how many it had. */
static inline uint32_t nl_top_oust(const nl_top *top, nl_top_pane *pane, uint32_t *had) {
    uint32_t *heap = nl_top_heap(top, pane), *counts = nl_top_heap_counts(top, pane);
    for (;;) {
        if (heap[0] >= top->keys) nl_top_repair(top, pane); /* a damaged file */
        nl_top_entry *entry = nl_top_entries(pane) + heap[0];
        uint64_t word = nl_load64(&entry->word);
        if ((uint32_t)word != counts[0]) {
            counts[0] = (uint32_t)word;
            nl_top_sink(top, pane, 0);
        } else if (nl_cas64(&entry->word, word, word | NL_TOP_TURN)) {
            *had = (uint32_t)word;
            return heap[0];
        }
    }
}

static inline void nl_top_admit(const nl_top *top, nl_top_pane *pane, nl_fingerprint fp, uint64_t now_ns, uint32_t form,
                                const uint64_t *text) {
    uint32_t *heap = nl_top_heap(top, pane), *counts = nl_top_heap_counts(top, pane);
    uint32_t had = 0, id = pane->used;
    const bool fresh = id < top->keys;
    if (fresh) {
        for (nl_top_entry *entry = nl_top_entries(pane) + id;;) { /* somebody may still count here, of a pane long gone */
            uint64_t word = nl_load64(&entry->word);
            if (nl_cas64(&entry->word, word, word | NL_TOP_TURN)) break;
        }
    } else {
        id = nl_top_oust(top, pane, &had);
        nl_top_unlink(top, pane, id);
    }
    NL_POINT(top_ousted);
    nl_top_entry *entry = nl_top_entries(pane) + id;
    nl_fence_release(); /* the odd turn, then what it stands for */
    nl_store64(&entry->fp.lo, fp.lo);
    nl_store64(&entry->fp.hi, fp.hi);
    nl_store64(&entry->last_ns, now_ns);
    nl_store32(&entry->error, had);
    nl_store32(&entry->form, form);
    for (int i = 0; i < NL_TOP_TEXT / 8; i++) nl_store64(&entry->text[i], text[i]);
    NL_POINT(top_written);
    const uint32_t count = had == UINT32_MAX ? had : had + 1;
    nl_store64_release(&entry->word, ((nl_load64(&entry->word) >> 32) + 1) << 32 | count);
    nl_top_link(top, pane, id);
    NL_POINT(top_linked);
    uint32_t i = 0;
    if (fresh) {
        for (i = id; i && counts[(i - 1) / 2] > count; i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2], counts[i] = counts[(i - 1) / 2];
        heap[i] = id;
        nl_store32_release(&pane->used, id + 1);
    }
    counts[i] = count;
    if (!fresh) nl_top_sink(top, pane, 0);
}

/* Counts a denial of a key that has no entry, or had none just now. With nothing held; it waits for nobody. */
static inline void nl_top_add(const nl_top *top, const nl_party *us, nl_fingerprint fp, uint64_t now_ns, uint32_t form,
                              const uint64_t *text) {
    for (int tries = 0; tries < NL_TOP_TRIES; tries++) {
        const uint64_t epoch = nl_top_epoch(top, now_ns);
        nl_top_pane *pane = nl_top_pane_of(top, epoch);
        const uint64_t missed = nl_load64(&pane->missed);
        nl_taking taking = nl_lock_take(us, &pane->lock, NL_QUICKLY);
        if (taking == NL_BUSY) {
            const uint32_t owner = nl_load32(&pane->lock);
            nl_ask_about(us, owner);
            if (tries + 1 < NL_TOP_TRIES && nl_owner_is_dead(us, owner)) continue;
            nl_add64(&pane->missed, 1);
            return;
        }
        NL_POINT(top_locked);
        if (taking == NL_INHERITED || pane->used > top->keys) nl_top_repair(top, pane);
        bool done = false;
        if (nl_load64(&pane->epoch) < epoch) nl_top_empty(top, pane, epoch, missed);
        if (nl_load64(&pane->epoch) == epoch) { /* else the time went on meanwhile, by ten minutes */
            if (!nl_top_count_in(top, pane, fp, now_ns)) nl_top_admit(top, pane, fp, now_ns, form, text);
            done = true;
        }
        nl_unlock(&pane->lock);
        if (done) return;
    }
}

/* --- reading, without locks -------------------------------------------------------------------------------------------- */

/* A copy of an entry. False: it is nobody's, or is being given to another. */
static inline bool nl_top_read(const nl_top *top, nl_top_pane *pane, uint32_t id, nl_top_entry *copy) {
    const nl_top_entry *entry = nl_top_entries(pane) + id;
    (void)top;
    for (int tries = 0; tries < NL_TOP_TRIES; tries++) {
        const uint64_t before = nl_load64_acquire(&entry->word);
        if (before & NL_TOP_TURN || !(uint32_t)before) return false;
        copy->fp.lo = nl_load64(&entry->fp.lo);
        copy->fp.hi = nl_load64(&entry->fp.hi);
        copy->last_ns = nl_load64(&entry->last_ns);
        copy->error = nl_load32(&entry->error);
        copy->form = nl_load32(&entry->form);
        for (int i = 0; i < NL_TOP_TEXT / 8; i++) copy->text[i] = nl_load64(&entry->text[i]);
        nl_fence_acquire();
        copy->word = nl_load64(&entry->word);
        if (copy->word >> 32 == before >> 32) return true;
    }
    return false;
}

/* NULL, or what is wrong in a pane that nobody is at. */
static inline const char *nl_top_verify(const nl_top *top, nl_top_pane *pane) {
    const uint32_t *heap = nl_top_heap(top, pane), *counts = nl_top_heap_counts(top, pane), *next = nl_top_next(top, pane);
    const uint32_t used = nl_load32_acquire(&pane->used);
    uint32_t linked = 0;
    if (used > top->keys) return "a pane of the most denied has more entries than there are";
    for (uint32_t i = 0; i < used; i++) {
        const nl_top_entry *entry = nl_top_entries(pane) + i;
        const uint64_t word = nl_load64_acquire(&entry->word);
        const nl_fingerprint fp = {nl_load64(&entry->fp.lo), nl_load64(&entry->fp.hi)};
        if (word & NL_TOP_TURN) return "an entry of the most denied is being given away";
        if (nl_load32(&entry->error) > (uint32_t)word) return "an error of the most denied is above its count";
        if (heap[i] >= used || counts[i] > (uint32_t)nl_load64(&nl_top_entries(pane)[heap[i]].word)) return "the heap of the most denied is wrong";
        if (i && counts[(i - 1) / 2] > counts[i]) return "the heap of the most denied is out of order";
        uint32_t id = nl_load32(nl_top_chain(top, pane, fp)), steps = 0;
        while (id && id <= top->keys && id != i + 1 && steps++ < top->keys) id = nl_load32(next + (id - 1));
        if (id != i + 1) return "an entry of the most denied is in no chain";
    }
    for (uint32_t c = 0; c < top->chains; c++)
        for (uint32_t id = nl_load32(next + 3 * top->keys + c); id && id <= top->keys && linked <= top->keys; id = nl_load32(next + (id - 1)))
            linked++;
    return linked == used ? NULL : "a chain of the most denied has more than its entries";
}

#endif
