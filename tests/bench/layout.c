/* SPDX-License-Identifier: Apache-2.0 */

/* Trial of table layouts for a packet that meets two slots of one host (the sender's and
 * the receiver's).  Three candidates, same number of entries, bursts of 32 connections in
 * random order, look up both slots' entries, compare the key, write one word in each:
 *
 *   shared   buckets of 8 {tag, index}; first bucket by the tuple alone: both slots read
 *            the same line; entries elsewhere (what session.c does)
 *   apart    the same, but the slot is part of the bucket's hash: two lines
 *   inline   entries lie in the table itself, 4 to a bucket of 512 bytes, tags in front;
 *            both slots' entries are neighbours
 *
 * Usage: bench_layout [CONNECTIONS]   prints TSC cycles per packet (both slots), median of
 * interleaved rounds. */

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <x86intrin.h>

#define BURST 32
#define ROUNDS 15
#define BURSTS 20000

struct entry {
    uint64_t key[2];
    uint32_t slot, seen;
    uint8_t rest[104];
} __attribute__((aligned(64)));

struct bucket {
    uint32_t tag[8], index[8];
} __attribute__((aligned(64)));

struct inline_bucket {
    uint32_t tag[16]; /* a line of tags for 4 entries: as many as fit twice over */
    struct entry e[4];
} __attribute__((aligned(64)));

static uint32_t n_conns, n_buckets, n_inline;
static struct entry *entries;
static struct bucket *shared, *apart;
static struct inline_bucket *inl;

static void *huge(size_t size)
{
    size = (size + (2u << 20) - 1) & ~(size_t)((2u << 20) - 1);
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_POPULATE, -1, 0);

    if (p == MAP_FAILED) {
        perror("hugepages for the trial");
        exit(1);
    }
    return p;
}

static inline uint64_t mix(uint64_t a, uint64_t b)
{
    __uint128_t r = (__uint128_t)(a ^ 0x9e3779b97f4a7c15u) * (b ^ 0xc2b2ae3d27d4eb4fu);

    return (uint64_t)r ^ (uint64_t)(r >> 64);
}

static inline uint32_t tag_of(uint64_t h, uint32_t slot)
{
    return ((uint32_t)(h >> 32) ^ slot * 0x9e3779b1u) | 1;
}

static void put(struct bucket *t, uint64_t h, uint64_t h2, uint32_t slot, uint32_t index)
{
    for (int half = 0; half < 2; half++) {
        struct bucket *b = &t[(half ? h2 : h) & (n_buckets - 1)];

        for (int w = 0; w < 8; w++)
            if (!b->tag[w]) {
                b->tag[w] = tag_of(h, slot);
                b->index[w] = index;
                return;
            }
    }
}

static void put_inline(uint64_t h, uint32_t slot, const struct entry *e)
{
    for (uint32_t i = 0; i < 64; i++) {
        struct inline_bucket *b = &inl[(h + i) & (n_inline - 1)];

        for (int w = 0; w < 4; w++)
            if (!b->tag[w]) {
                b->tag[w] = tag_of(h, slot);
                b->e[w] = *e;
                return;
            }
    }
}

static void fill(void)
{
    for (uint32_t c = 0; c < n_conns; c++)
        for (uint32_t slot = 1; slot <= 2; slot++) {
            uint32_t i = c * 2 + slot - 1;
            uint64_t h = mix(c, 1);

            entries[i].key[0] = c;
            entries[i].key[1] = ~(uint64_t)c;
            entries[i].slot = slot;
            put(shared, h, mix(h, slot), slot, i);
            put(apart, mix(h, slot), mix(h, slot + 7), slot, i);
            put_inline(h, slot, &entries[i]);
        }
}

static inline void touch(struct entry *e, uint64_t c, uint32_t slot, uint32_t stamp)
{
    if (e->key[0] == c && e->key[1] == ~c && e->slot == slot)
        e->seen = stamp;
}

static void burst_index(struct bucket *t, int with_slot, const uint32_t *c, uint32_t slot)
{
    uint64_t h[BURST], b[BURST];
    uint32_t ways[BURST];

    for (int i = 0; i < BURST; i++) {
        h[i] = mix(c[i], 1);
        b[i] = with_slot ? mix(h[i], slot) : h[i];
        __builtin_prefetch(&t[b[i] & (n_buckets - 1)]);
    }
    for (int i = 0; i < BURST; i++) {
        const struct bucket *k = &t[b[i] & (n_buckets - 1)];
        uint32_t tag = tag_of(with_slot ? b[i] : h[i], slot);

        ways[i] = 0;
        for (int w = 0; w < 8; w++)
            ways[i] |= (uint32_t)(k->tag[w] == tag) << w;
        if (ways[i])
            __builtin_prefetch(&entries[k->index[__builtin_ctz(ways[i])]], 1);
    }
    for (int i = 0; i < BURST; i++)
        for (uint32_t w = ways[i]; w; w &= w - 1)
            touch(&entries[t[b[i] & (n_buckets - 1)].index[__builtin_ctz(w)]], c[i], slot, c[0]);
}

static void burst_inline(const uint32_t *c, uint32_t slot)
{
    for (int i = 0; i < BURST; i++)
        __builtin_prefetch(&inl[mix(c[i], 1) & (n_inline - 1)]);
    for (int i = 0; i < BURST; i++) {
        uint64_t h = mix(c[i], 1);
        struct inline_bucket *b = &inl[h & (n_inline - 1)];

        for (int w = 0; w < 4; w++)
            if (b->tag[w] == tag_of(h, slot))
                __builtin_prefetch(&b->e[w], 1);
    }
    for (int i = 0; i < BURST; i++) {
        uint64_t h = mix(c[i], 1);

        for (int j = 0, done = 0; j < 64 && !done; j++) {
            struct inline_bucket *b = &inl[(h + (uint64_t)j) & (n_inline - 1)];

            for (int w = 0; w < 4; w++)
                if (b->tag[w] == tag_of(h, slot)) {
                    touch(&b->e[w], c[i], slot, c[0]);
                    done = 1;
                }
        }
    }
}

static double run(int which)
{
    uint64_t state = 88172645463325252u, start = __rdtsc();

    for (int n = 0; n < BURSTS; n++) {
        uint32_t c[BURST];

        for (int i = 0; i < BURST; i++) {
            state ^= state << 13, state ^= state >> 7, state ^= state << 17;
            c[i] = (uint32_t)(state >> 20) % n_conns;
        }
        for (uint32_t slot = 1; slot <= 2; slot++)
            if (which == 2)
                burst_inline(c, slot);
            else
                burst_index(which ? apart : shared, which, c, slot);
    }
    return (double)(__rdtsc() - start) / BURSTS / BURST;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    static const char *const names[] = {"shared", "apart", "inline"};
    double t[3][ROUNDS];

    n_conns = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 0) : 1u << 18;
    for (n_buckets = 1; n_buckets * 4 < n_conns * 2; n_buckets *= 2)
        ;
    for (n_inline = 1; n_inline * 2 < n_conns * 2; n_inline *= 2)
        ;
    entries = huge(sizeof *entries * n_conns * 2);
    shared = huge(sizeof *shared * n_buckets);
    apart = huge(sizeof *apart * n_buckets);
    inl = huge(sizeof *inl * n_inline);
    fill();
    for (int r = 0; r < ROUNDS; r++)
        for (int w = 0; w < 3; w++)
            t[w][r] = run(w);
    for (int w = 0; w < 3; w++) {
        qsort(t[w], ROUNDS, sizeof(double), by_value);
        printf("%-7s %7.1f cycles/packet (min %.1f, max %.1f), %" PRIu32 " connections\n", names[w],
               t[w][ROUNDS / 2], t[w][0], t[w][ROUNDS - 1], n_conns);
    }
    return 0;
}
