/* fuzz.c: libFuzzer over sequences of operations: clang -fsanitize=fuzzer. What a failing input means is told by sequence.h. */
#include "sequence.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    sequence_run(data, size);
    return 0;
}
