/* refusal.h: a system that has no more memory, when a test says so. Include it before the core.
 *
 * The core commits memory with mprotect. Here that call passes through a counter: after `left` more calls each one is refused,
 * as it would be under a limit of the process or of the machine.
 */
#ifndef NL_TEST_REFUSAL_H
#define NL_TEST_REFUSAL_H

#include <stddef.h>
#include <stdint.h>

static struct {
    uint32_t left;    /* calls that still succeed; UINT32_MAX: all */
    uint32_t refused; /* so far */
} refusal = {UINT32_MAX, 0};

#if !defined(_WIN32)
#include <errno.h>
#include <sys/mman.h>

static int refusal_mprotect(void *at, size_t bytes, int protection) {
    if (refusal.left == 0) {
        refusal.refused++;
        errno = ENOMEM;
        return -1;
    }
    if (refusal.left != UINT32_MAX) refusal.left--;
    return mprotect(at, bytes, protection);
}
#define mprotect refusal_mprotect
#endif

#endif
