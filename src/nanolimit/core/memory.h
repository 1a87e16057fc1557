/* memory.h: address space is reserved once and committed piece by piece, so that nothing in a table ever moves.
 *
 * A table is one reservation, cut into regions. A region grows by moving its watermark (`committed`) ahead of need, with no
 * lock held; two threads that commit the same pages at once do no harm. When the system refuses, the caller reads it as
 * 'full'. Dropped pages read as zeros again and cost nothing.
 */
#ifndef NL_MEMORY_H
#define NL_MEMORY_H

#include <string.h>

#include "atomic.h"

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

static inline size_t nl_page_bytes(void) {
    SYSTEM_INFO info;
    GetSystemInfo(&info);
    return info.dwPageSize;
}
static inline void *nl_reserve(size_t bytes) { return VirtualAlloc(NULL, bytes, MEM_RESERVE, PAGE_NOACCESS); }
static inline bool nl_commit(void *at, size_t bytes) { return VirtualAlloc(at, bytes, MEM_COMMIT, PAGE_READWRITE) != NULL; }
/* Decommitted pages would be met by readers without a lock. Discarded ones stay mapped and read as zeros or as what was
 * there, which is zeros too. */
static inline void nl_drop(void *at, size_t bytes) {
    memset(at, 0, bytes);
    DiscardVirtualMemory(at, bytes);
}
static inline void nl_release(void *at, size_t bytes) { (void)bytes, VirtualFree(at, 0, MEM_RELEASE); }
#else
#include <sys/mman.h>
#include <unistd.h>
#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif
#ifndef MAP_ANONYMOUS
#define MAP_ANONYMOUS MAP_ANON
#endif

static inline size_t nl_page_bytes(void) { return (size_t)sysconf(_SC_PAGESIZE); }
static inline void *nl_reserve(size_t bytes) {
    void *at = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return at == MAP_FAILED ? NULL : at;
}
static inline bool nl_commit(void *at, size_t bytes) { return mprotect(at, bytes, PROT_READ | PROT_WRITE) == 0; }
/* Pages read as zeros afterwards. Linux does that with MADV_DONTNEED; elsewhere a fresh mapping takes the old one's place
 * in one step, so that a reader without a lock always meets a page. */
static inline void nl_drop(void *at, size_t bytes) {
#if defined(__linux__)
    madvise(at, bytes, MADV_DONTNEED);
#else
    mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
#endif
}
static inline void nl_release(void *at, size_t bytes) { munmap(at, bytes); }
#endif

typedef struct {
    unsigned char *base; /* where the region begins in this process */
    uint64_t bytes;      /* reserved; a multiple of the page size */
    uint64_t committed;  /* the watermark: [base, base + committed) may be touched */
} nl_region;

enum { NL_COMMIT_LEAST = 16 << 10, NL_COMMIT_MOST = 4 << 20 };

/* Makes [base, base + need) usable. False: beyond the reservation, or the system has no more. Any thread, no lock. */
static inline bool nl_region_commit(nl_region *region, uint64_t need, size_t page_bytes) {
    uint64_t have = nl_load64(&region->committed);
    if (need <= have) return true;
    if (need > region->bytes) return false;
    uint64_t step = have / 4;
    if (step < NL_COMMIT_LEAST) step = NL_COMMIT_LEAST;
    if (step > NL_COMMIT_MOST) step = NL_COMMIT_MOST;
    uint64_t want = (need + (have ? step : 0) + page_bytes - 1) / page_bytes * page_bytes;
    if (want > region->bytes) want = region->bytes;
    if (!nl_commit(region->base + have, (size_t)(want - have))) {
        want = (need + page_bytes - 1) / page_bytes * page_bytes; /* perhaps there is room for just what is needed */
        if (!nl_commit(region->base + have, (size_t)(want - have))) return false;
    }
    while (have < want && !nl_cas64(&region->committed, have, want)) have = nl_load64(&region->committed);
    return true;
}

#endif
