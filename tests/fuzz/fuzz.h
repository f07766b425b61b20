/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_TESTS_FUZZ_H
#define MOAT_TESTS_FUZZ_H 1

/* What all fuzz targets share.  A target is one function; libFuzzer or replay.c calls it. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/choice.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* An invariant.  In every build, with the words of the source on stderr. */
#define HOLDS(C)                                                                                   \
    do {                                                                                           \
        if (!(C)) {                                                                                \
            fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #C);                 \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

/* A copy of exactly n bytes, so that a read past them is seen.  The caller frees it. */
static inline void *fuzz_exact(const void *p, size_t n)
{
    void *copy = malloc(n);

    HOLDS(copy || !n);
    if (n)
        memcpy(copy, p, n);
    return copy;
}

#endif /* tests/fuzz/fuzz.h */
