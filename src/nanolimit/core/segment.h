/* segment.h: the index: which slot has a fingerprint.
 *
 * A segment is a page of 64 buckets, a bucket a cache line:
 *
 *      tags[0]: 8 tags | tags[1]: 4 tags, passed : 32 | ids[12]
 *
 * A fingerprint's low 32 bits choose the segment (table.h), bits 40..45 its home bucket, the top byte its tag (0 is 'empty').
 * An entry whose home is full stands in the next bucket with room; each full bucket that it walked past counts it in
 * `passed`, and a search goes on to the next bucket only while that is not 0. Removing takes the same walk back.
 *
 * The segment's lock guards all changes. Readers hold nothing: what they read may be stale, torn between words, or of a
 * segment that has just been split; the fingerprint in the slot is the only truth. A reader that finds nothing asks again
 * under the lock. Zeros are a valid empty segment, so that empty pages can go back to the system; the header stands apart.
 */
#ifndef NL_SEGMENT_H
#define NL_SEGMENT_H

#include "slab.h"
#include "tags.h"

enum {
    NL_SEGMENT_BUCKETS = 64,
    NL_SEGMENT_ENTRIES = NL_BUCKET_ENTRIES * NL_SEGMENT_BUCKETS,
    NL_SEGMENT_SPLITS_AT = 690, /* of 768: beyond, walks grow long */
    NL_DEPTH_MOST = 32,
};

typedef struct {
    uint64_t tags[2];
    uint32_t ids[NL_BUCKET_ENTRIES];
} nl_bucket;

typedef struct {
    nl_lock lock;
    uint32_t used;
    uint16_t depth;  /* how many low bits of a fingerprint all its entries share */
    uint16_t dropped; /* its page of buckets was handed back */
    uint32_t prefix; /* those bits */
} nl_segment;

NL_ALWAYS_INLINE uint32_t nl_home_of(nl_fingerprint fp) { return (uint32_t)(fp.lo >> 40) & (NL_SEGMENT_BUCKETS - 1); }
NL_ALWAYS_INLINE uint32_t nl_tag_of(nl_fingerprint fp) {
    uint32_t tag = (uint32_t)(fp.lo >> 56);
    return tag + !tag;
}

NL_ALWAYS_INLINE uint32_t nl_bucket_passed(uint64_t tags1) { return (uint32_t)(tags1 >> 32); }

/* Finds the slot of a fingerprint. With or without the segment's lock; NULL counts only with it. */
NL_ALWAYS_INLINE nl_slot *nl_segment_find(const nl_bucket *buckets, const nl_slab *slab, nl_fingerprint fp) {
    uint32_t at = nl_home_of(fp), tag = nl_tag_of(fp);
    for (int walked = 0; walked < NL_SEGMENT_BUCKETS; walked++) {
        const nl_bucket *bucket = &buckets[at];
        for (uint64_t hits = nl_tags_match(bucket->tags, tag); hits; hits &= hits - 1) {
            uint32_t id = nl_load32(&bucket->ids[nl_first_hit(hits)]);
            if (NL_UNLIKELY(id >= slab->most)) continue; /* only a damaged file has such */
            nl_slot *slot = nl_slab_slot(slab, id);
            NL_PREFETCH(&slot->ring[5]); /* every second slot spans two lines: have both come at once */
            if (NL_LIKELY(nl_slot_is(slot, fp))) return slot;
        }
        if (NL_LIKELY(!nl_bucket_passed(nl_load64(&bucket->tags[1])))) return NULL;
        at = (at + 1) & (NL_SEGMENT_BUCKETS - 1);
    }
    return NULL;
}

static inline void nl_bucket_set_tag(nl_bucket *bucket, uint32_t place, uint32_t tag) {
    uint64_t *word = &bucket->tags[place >> 3];
    uint32_t shift = 8 * (place & 7);
    nl_store64_release(word, (*word & ~((uint64_t)0xff << shift)) | (uint64_t)tag << shift);
}

static inline void nl_bucket_pass(nl_bucket *bucket, uint64_t one) { nl_store64(&bucket->tags[1], bucket->tags[1] + (one << 32)); }

/* Adds an entry. Under the lock. False: all 768 places are taken. */
static inline bool nl_segment_add(nl_segment *segment, nl_bucket *buckets, nl_fingerprint fp, uint32_t id) {
    uint32_t at = nl_home_of(fp), walked = 0;
    while (walked < NL_SEGMENT_BUCKETS && !nl_tags_match(buckets[at].tags, 0)) walked++, at = (at + 1) & (NL_SEGMENT_BUCKETS - 1);
    if (walked == NL_SEGMENT_BUCKETS) return false;
    for (uint32_t full = nl_home_of(fp); walked; walked--, full = (full + 1) & (NL_SEGMENT_BUCKETS - 1))
        nl_bucket_pass(&buckets[full], 1); /* before the entry: searches must come this far */
    NL_POINT(insert_passed);
    uint32_t place = nl_first_hit(nl_tags_match(buckets[at].tags, 0));
    nl_store32(&buckets[at].ids[place], id);
    NL_POINT(insert_id);
    nl_bucket_set_tag(&buckets[at], place, nl_tag_of(fp));
    NL_POINT(insert_tag);
    segment->used++;
    return true;
}

/* Removes the entry (fp, id), if it is there. Under the lock. */
static inline bool nl_segment_remove(nl_segment *segment, nl_bucket *buckets, nl_fingerprint fp, uint32_t id) {
    uint32_t at = nl_home_of(fp), tag = nl_tag_of(fp);
    for (int walked = 0; walked < NL_SEGMENT_BUCKETS; walked++) {
        nl_bucket *bucket = &buckets[at];
        for (uint64_t hits = nl_tags_match(bucket->tags, tag); hits; hits &= hits - 1) {
            uint32_t place = nl_first_hit(hits);
            if (bucket->ids[place] != id) continue;
            nl_bucket_set_tag(bucket, place, 0);
            NL_POINT(free_tag);
            nl_store32(&bucket->ids[place], 0);
            for (at = nl_home_of(fp); walked; walked--, at = (at + 1) & (NL_SEGMENT_BUCKETS - 1))
                nl_bucket_pass(&buckets[at], (uint64_t)-1);
            segment->used--;
            return true;
        }
        if (!nl_bucket_passed(bucket->tags[1])) return false;
        at = (at + 1) & (NL_SEGMENT_BUCKETS - 1);
    }
    return false;
}

/* Who inherits a segment's lock makes it whole: entries that lead to no key of theirs go (the slot was freed, or is not yet the
 * key's), and what is counted is counted anew. Under the lock; looks at all 768 places, and may itself be cut short anywhere. */
static NL_COLD void nl_segment_mend(nl_segment *segment, uint32_t number, nl_bucket *buckets, const nl_slab *slab,
                                    const uint32_t *directory, uint32_t mask) {
    uint32_t used = 0, passed[NL_SEGMENT_BUCKETS] = {0};
    NL_POINT(repair_began);
    for (uint32_t at = 0; at < NL_SEGMENT_BUCKETS; at++) {
        for (uint32_t i = 0; i < NL_BUCKET_ENTRIES; i++) {
            uint32_t tag = (uint32_t)(buckets[at].tags[i >> 3] >> 8 * (i & 7)) & 0xff, id = buckets[at].ids[i];
            if (!tag) continue;
            const nl_slot *slot = id < slab->most ? nl_slab_slot(slab, id) : NULL;
            nl_fingerprint fp = {0, 0};
            if (slot) fp.lo = nl_load64_acquire(&slot->fingerprint[0]), fp.hi = nl_load64(&slot->fingerprint[1]);
            if (!fp.lo || nl_tag_of(fp) != tag || nl_load32(&directory[(uint32_t)fp.lo & mask]) != number) {
                nl_bucket_set_tag(&buckets[at], i, 0);
                NL_POINT(repair_entry);
                continue;
            }
            used++;
            for (uint32_t walk = nl_home_of(fp); walk != at; walk = (walk + 1) & (NL_SEGMENT_BUCKETS - 1)) passed[walk]++;
        }
    }
    for (uint32_t at = 0; at < NL_SEGMENT_BUCKETS; at++)
        nl_store64(&buckets[at].tags[1], (buckets[at].tags[1] & 0xffffffff) | (uint64_t)passed[at] << 32);
    segment->used = used;
    NL_POINT(repair_done);
}

/* Moves the entries whose fingerprints have bit `depth` set to a new segment (filled, nobody sees it yet). Under the lock of
 * the old one. The caller publishes the new segment in the directory between the two halves. */
typedef struct {
    uint32_t ids[NL_SEGMENT_ENTRIES];
    nl_fingerprint stay[NL_SEGMENT_ENTRIES];
    uint32_t staying;
} nl_split;

static inline void nl_segment_fill(const nl_bucket *from, const nl_slab *slab, uint32_t depth, nl_segment *to,
                                   nl_bucket *to_buckets, nl_split *split) {
    split->staying = 0;
    for (int at = 0; at < NL_SEGMENT_BUCKETS + 2; at++) {
        if (at < NL_SEGMENT_BUCKETS) { /* the slots are anywhere in memory: ask for them two buckets ahead */
            for (int i = 0; i < NL_BUCKET_ENTRIES; i++) NL_PREFETCH(nl_slab_slot(slab, from[at].ids[i]));
        }
        if (at < 2) continue;
        const nl_bucket *bucket = &from[at - 2];
        for (uint32_t i = 0; i < NL_BUCKET_ENTRIES; i++) {
            if (!(bucket->tags[i >> 3] >> 8 * (i & 7) & 0xff)) continue;
            const nl_slot *slot = nl_slab_slot(slab, bucket->ids[i]);
            nl_fingerprint fp = {slot->fingerprint[0], slot->fingerprint[1]};
            if (fp.lo >> depth & 1) {
                nl_segment_add(to, to_buckets, fp, bucket->ids[i]);
            } else {
                split->ids[split->staying] = bucket->ids[i];
                split->stay[split->staying++] = fp;
            }
        }
    }
}

/* Readers miss entries for a moment; they come back under the lock. */
static inline void nl_segment_keep(nl_segment *segment, nl_bucket *buckets, const nl_split *split) {
    for (int at = 0; at < NL_SEGMENT_BUCKETS; at++) {
        nl_store64(&buckets[at].tags[0], 0);
        nl_store64(&buckets[at].tags[1], 0);
    }
    segment->used = 0;
    for (uint32_t i = 0; i < split->staying; i++) nl_segment_add(segment, buckets, split->stay[i], split->ids[i]);
}

#endif
