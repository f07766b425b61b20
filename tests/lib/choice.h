/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_TESTS_CHOICE_H
#define MOAT_TESTS_CHOICE_H 1

/* Where a generator's choices come from: a seed, for random tests, or the bytes of a
 * fuzzer's input.  With bytes a generator becomes a decoder: each input is one case, and
 * near inputs are near cases.  (Padhye et al., "Semantic Fuzzing with Zest", 2019.) */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct choice {
    bool random;
    uint64_t state;   /* random: of splitmix64 */
    const uint8_t *p; /* else: what is left of the input */
    size_t left;
};

static inline void choice_seed(struct choice *c, uint64_t seed)
{
    *c = (struct choice){.random = true, .state = seed};
}

static inline void choice_bytes(struct choice *c, const uint8_t *p, size_t n)
{
    *c = (struct choice){.p = p, .left = n};
}

/* A seed has no end. */
static inline bool choice_ended(const struct choice *c)
{
    return !c->random && !c->left;
}

static inline uint64_t choice_next(struct choice *c)
{
    uint64_t z = c->state += 0x9e3779b97f4a7c15;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

/* Below n; as few bytes of the input as n needs, 0 behind its end. */
static inline uint32_t choice_below(struct choice *c, uint32_t n)
{
    uint32_t v = 0;

    if (n < 2)
        return 0;
    if (c->random)
        return (uint32_t)((choice_next(c) >> 32) * n >> 32);
    for (uint32_t span = n - 1; span && c->left; span >>= 8) {
        v = v << 8 | *c->p++;
        c->left--;
    }
    return v % n;
}

/* True in one of n cases; with bytes: not behind their end. */
static inline bool choice_one_in(struct choice *c, uint32_t n)
{
    return choice_below(c, n) == n - 1;
}

static inline uint32_t choice_32(struct choice *c)
{
    return c->random ? (uint32_t)(choice_next(c) >> 32)
                     : choice_below(c, 1u << 16) << 16 | choice_below(c, 1u << 16);
}

/* Up to n bytes as they come; returns how many. */
static inline size_t choice_take(struct choice *c, void *out, size_t n)
{
    if (c->random) {
        for (size_t i = 0; i < n; i++)
            ((uint8_t *)out)[i] = (uint8_t)(choice_next(c) >> 56);
        return n;
    }
    if (n > c->left)
        n = c->left;
    if (n)
        memcpy(out, c->p, n);
    c->p += n;
    c->left -= n;
    return n;
}

#endif /* tests/lib/choice.h */
