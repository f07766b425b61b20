/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_BENCH_TIMING_H
#define TESTS_BENCH_TIMING_H 1

/* How a benchmark's programs time: only the judging, between two readings of the TSC; the
 * median of many chunks of bursts (a neighbour on the core spoils a few of them). */

#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#include <x86intrin.h>

#define FRAME_BURST 32 /* packets that are judged at once */
#define CHUNKS 301
#define CHUNK_BURSTS 64

static inline int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* Cycles per packet: the median of chunks of bursts; once() makes one burst's frames and
 * returns how long their judging took. */
static inline double median_of(uint64_t (*once)(void *), void *aux, unsigned bursts)
{
    static double t[CHUNKS];

    for (unsigned i = 0; i < CHUNKS; i++) {
        uint64_t sum = 0;

        for (unsigned j = 0; j < bursts; j++)
            sum += once(aux);
        t[i] = (double)sum / bursts / FRAME_BURST;
    }
    qsort(t, CHUNKS, sizeof *t, by_value);
    return t[CHUNKS / 2];
}

static inline double tsc_hz(void)
{
    struct timespec a, b, ms20 = {.tv_nsec = 20000000};
    uint64_t t;

    clock_gettime(CLOCK_MONOTONIC_RAW, &a);
    t = __rdtsc();
    nanosleep(&ms20, NULL);
    t = __rdtsc() - t;
    clock_gettime(CLOCK_MONOTONIC_RAW, &b);
    return (double)t / ((double)(b.tv_sec - a.tv_sec) + (double)(b.tv_nsec - a.tv_nsec) / 1e9);
}

#endif /* tests/bench/timing.h */
