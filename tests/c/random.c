/* random.c: sequences of operations made up from seeds: `random COUNT [FIRST]` runs seeds FIRST .. FIRST + COUNT - 1. A failure
 * names its seed: `random 1 SEED` is that one alone. A third argument: on shared tables.
 */
#include "sequence.h"

static uint64_t next_random(uint64_t *state) {
    *state += 0x9e3779b97f4a7c15u;
    return sequence_mix(*state);
}

int main(int argc, char **argv) {
    uint64_t count = argc > 1 ? strtoull(argv[1], NULL, 10) : 1000, first = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    uint64_t operations = 0;
    sequence_shared = argc > 3;
    enum { MOST = 1 << 15 };
    uint8_t *bytes = model_memory(NULL, MOST);
    for (uint64_t seed = first; seed < first + count; seed++) {
        uint64_t state = seed;
        uint64_t shape = next_random(&state);
        uint32_t size = 16 + (uint32_t)(shape % (shape >> 32 & 7 ? 2048 : MOST - 16)); /* one in eight may be long */
        for (uint32_t i = 0; i < size; i++) bytes[i] = (uint8_t)next_random(&state);
        sequence_seed = seed;
        sequence_run(bytes, size);
        operations += size;
    }
    free(bytes);
    printf("%" PRIu64 " sequences from seed %" PRIu64 ", %" PRIu64 " bytes of operations: all as the model says\n", count, first, operations);
    return 0;
}
