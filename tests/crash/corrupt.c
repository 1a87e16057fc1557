/* corrupt.c: damaged tables, made up from seeds: `corrupt COUNT [FIRST]` runs seeds FIRST .. FIRST + COUNT - 1; `corrupt 1 SEED` is one
 * that failed, alone. Built with -DCORRUPT_FUZZ and -fsanitize=fuzzer it takes the fuzzer's bytes instead.
 */
#include <stdlib.h>

#include "corrupt.h"

#ifdef CORRUPT_FUZZ
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    corrupt_run(data, size);
    return 0;
}
#else
static uint64_t corrupt_seed;

static void corrupt_fails(int signal) { /* a crash of a build without sanitizers, or it takes for ever */
    fprintf(stderr, "signal %d at seed %" PRIu64 "\n", signal, corrupt_seed);
    _exit(3);
}

int main(int argc, char **argv) {
    uint64_t count = argc > 1 ? strtoull(argv[1], NULL, 10) : 1000, first = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    static uint8_t bytes[512];
    signal(SIGALRM, corrupt_fails);
#ifndef __SANITIZE_ADDRESS__ /* which tells more */
    signal(SIGSEGV, corrupt_fails);
    signal(SIGBUS, corrupt_fails);
    signal(SIGFPE, corrupt_fails);
#endif
    for (corrupt_seed = first; corrupt_seed < first + count; corrupt_seed++) {
        uint64_t state = corrupt_seed, shape = life_random(&state);
        size_t size = 40 + shape % (sizeof bytes - 40);
        for (size_t i = 0; i < size; i++) bytes[i] = (uint8_t)life_random(&state);
        bytes[2] = (uint8_t)(shape >> 32 & 1 ? shape >> 40 & 3 : shape >> 40); /* half with few changes: they come further */
        alarm(30);
        corrupt_run(bytes, size);
        alarm(0);
    }
    printf("%" PRIu64 " tables from seed %" PRIu64 ", %" PRIu64 " changes: %" PRIu64 " refused, %" PRIu64 " used %" PRIu64 " times: no harm done\n",
           corrupt_sums.runs, first, corrupt_sums.mutations, corrupt_sums.refused, corrupt_sums.used, corrupt_sums.deeds);
    return 0;
}
#endif
