/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_BENCH_FRAMES_H
#define TESTS_BENCH_FRAMES_H 1

/* Frames of 60 bytes (64 with the checksum of the wire) between VM a (10.0.0.1) and VM b
 * (10.0.0.2), as both candidates get them: a connection is a pair of ports.  And how
 * both are timed: bursts of 32 connections in random order, only the judging between two
 * readings of the TSC, the median of many chunks (a neighbour on the core spoils a few). */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <x86intrin.h>

#define FRAME 60
#define FRAMES_MAX_CONNS (1u << 20)
#define FRAME_BURST 32
#define CHUNKS 301
#define CHUNK_BURSTS 64

#define FRAME_SYN 2
#define FRAME_ACK 16

static inline void put16(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

static inline void put32(uint8_t *p, uint32_t v)
{
    put16(p, v >> 16);
    put16(p + 2, v);
}

static inline uint32_t sum16(uint32_t sum, const uint8_t *p, unsigned n)
{
    for (unsigned i = 0; i < n; i += 2)
        sum += (uint32_t)p[i] << 8 | p[i + 1];
    return sum;
}

static inline uint32_t fold(uint32_t sum)
{
    sum = (sum & 0xffff) + (sum >> 16);
    return ~(sum + (sum >> 16)) & 0xffff;
}

/* Connection c, sent by a (back 0) or by b (back 1).  TCP: neither side sends data, so
 * that the same acknowledgement is right for ever. */
static inline void frame_make(uint8_t f[FRAME], int tcp, uint32_t c, int back, uint8_t flags)
{
    static const uint8_t mac[2][6] = {{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}};
    uint32_t port[2] = {1024 + (c & 0x7fff), 1000 + (c >> 15)};
    uint8_t *ip = f + 14, *l4 = f + 34;
    unsigned len = FRAME - 34;

    memset(f, 0, FRAME);
    memcpy(f, mac[!back], 6);
    memcpy(f + 6, mac[back], 6);
    put16(f + 12, 0x0800);
    ip[0] = 0x45;
    put16(ip + 2, FRAME - 14);
    ip[8] = 64;
    ip[9] = tcp ? 6 : 17;
    put32(ip + 12, 0x0a000001u + (uint32_t)back);
    put32(ip + 16, 0x0a000001u + !back);
    put16(ip + 10, fold(sum16(0, ip, 20)));
    put16(l4, port[back]);
    put16(l4 + 2, port[!back]);
    if (!tcp) {
        put16(l4 + 4, len);
        return;
    }
    put16(ip + 2, 40); /* the rest is padding */
    put16(ip + 10, 0);
    put16(ip + 10, fold(sum16(0, ip, 20)));
    put32(l4 + 4, flags & FRAME_SYN ? 1000 : 1001);
    if (flags & FRAME_ACK)
        put32(l4 + 8, 1001);
    l4[12] = 0x50;
    l4[13] = flags;
    put16(l4 + 14, 0x4000);
    put16(l4 + 16, fold(sum16(6 + 20, ip + 12, 8) + sum16(0, l4, 20)));
}

static inline uint32_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return (uint32_t)(*state >> 20);
}

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

#endif /* tests/bench/frames.h */
